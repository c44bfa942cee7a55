//! Which of the two metric formats a scraper wants (RFC 9110 section 12.5.1).

use crate::telemetry::exposition::Format;

/// The format that an `Accept` field asks for. OpenMetrics only for who names it and likes it at least as much; a browser,
/// or nobody's wish, gets the Prometheus text that every tool reads.
pub fn format(accept: &str) -> Format {
    let (mut openmetrics, mut text) = (0, 0);
    for part in accept.split(',') {
        let mut parameters = part.split(';').map(str::trim);
        let media_type = parameters.next().unwrap_or_default().to_ascii_lowercase();
        let mut quality = 1000;
        let mut version = None;
        for (name, value) in parameters.filter_map(|parameter| parameter.split_once('=')) {
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => quality = thousandths(value.trim()),
                "version" => version = Some(value.trim().trim_matches('"')),
                _ => {}
            }
        }
        match media_type.as_str() {
            "application/openmetrics-text" if version.is_none_or(|version| version == "1.0.0") => {
                openmetrics = openmetrics.max(quality);
            }
            "text/plain" | "text/*" | "*/*" => text = text.max(quality),
            _ => {}
        }
    }
    if openmetrics > 0 && openmetrics >= text { Format::OpenMetrics } else { Format::Prometheus }
}

/// A quality value in thousandths; what is none counts as not wanted.
fn thousandths(quality: &str) -> u32 {
    match quality.parse::<f64>() {
        Ok(quality) if (0.0..=1.0).contains(&quality) => (quality * 1000.0) as u32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it() {
        use Format::{OpenMetrics, Prometheus};
        for (accept, expected) in [
            ("", Prometheus),
            ("*/*", Prometheus),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Prometheus),
            ("text/plain;version=0.0.4", Prometheus),
            ("application/openmetrics-text", OpenMetrics),
            ("Application/OpenMetrics-Text; Version=1.0.0; charset=utf-8", OpenMetrics),
            ("application/openmetrics-text; version=\"1.0.0\", */*;q=0.5", OpenMetrics),
            // What Prometheus 2 and 3 send.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                 text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                 text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,*/*;q=0.2",
                OpenMetrics,
            ),
            ("application/openmetrics-text;version=0.0.1", Prometheus),
            ("application/openmetrics-text;q=0.1,text/plain", Prometheus),
            ("application/openmetrics-text;q=0", Prometheus),
            ("application/openmetrics-text;q=nan", Prometheus),
            (";;,=,q=1;", Prometheus),
        ] {
            assert_eq!(format(accept), expected, "{accept:?}");
        }
    }
}
