//! The result for programs. What it means is fixed by its version: a reader of another one refuses it.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::histogram::{self, Latencies};
use super::{PERCENTILES, Report, Tally};

/// Version of the schema. Fields may be added within one; none changes its meaning or goes away.
pub const SCHEMA_VERSION: u64 = 1;

/// Name of the schema.
pub(crate) const SCHEMA: &str = "ringmesh-load";

impl Report {
    /// One JSON object.
    pub fn to_json(&self) -> Value {
        let entries = self.entries.iter().map(|(name, tally)| (name.clone(), tally_json(tally)));
        json!({
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "version": env!("CARGO_PKG_VERSION"),
            "asked": {
                "arrivals": self.asked.arrivals,
                "per_second": self.asked.per_second,
                "open_loop": self.asked.open_loop,
                "connections": self.asked.connections,
                "warm_up_seconds": self.asked.warm_up.as_secs_f64(),
                "duration_seconds": self.asked.duration.map(|duration| duration.as_secs_f64()),
            },
            "requests": self.total.requests(),
            "rate": self.rate(),
            "elapsed_seconds": self.elapsed.as_secs_f64(),
            "total": tally_json(&self.total),
            "entries": entries.collect::<Map<_, _>>(),
            "service_us": histogram_json(&self.service),
            "delay_us": histogram_json(&self.delay),
            "unsent": self.unsent,
            "connections": self.connections,
            "handshakes": self.handshakes,
            "resumed": self.resumed,
            "tls_parameters": self.tls_parameters,
            "handshake_us": histogram_json(&self.handshake),
            "explanations": self.explanations,
            "closed_by_server": self.closed_by_server,
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "busy_share": self.busy_share(),
            "busiest_share": self.busiest_share,
            "waiting_share": self.waiting_share(),
            "threads": self.workers,
            "driver": self.driver,
            "generator_was_bottleneck": self.bottleneck().is_some(),
            "warnings": self.warnings(),
            "slices": slices_json(self),
        })
    }
}

fn tally_json(tally: &Tally) -> Value {
    let classes = (1..=5).map(|class| (format!("{class}xx"), Value::from(tally.class(class))));
    json!({
        "requests": tally.requests(),
        "succeeded": tally.succeeded,
        "failed": tally.failed(),
        "cut": tally.cut(),
        "statuses": tally.statuses,
        "classes": classes.collect::<Map<_, _>>(),
        "failures": tally.failures.iter().map(|(cause, count)| (cause.label(), count)).collect::<BTreeMap<_, _>>(),
        "field_values": tally.field_values,
        "latency_us": histogram_json(tally.latency()),
    })
}

/// In microseconds; and whole, in nanoseconds, as HdrHistogram tools exchange them.
fn histogram_json(histogram: &Latencies) -> Value {
    let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1e3;
    let mut object = Map::new();
    object.insert("count".to_owned(), histogram.len().into());
    object.insert("mean".to_owned(), (histogram.mean() / 1e3).into());
    for (name, share) in PERCENTILES {
        object.insert(name.replace('.', ""), microseconds(histogram.value_at_quantile(share)).into());
    }
    object.insert("max".to_owned(), microseconds(histogram.max()).into());
    object.insert("histogram_ns".to_owned(), encode(histogram).into());
    Value::Object(object)
}

fn slices_json(report: &Report) -> Value {
    let slices = report.slices.done().iter().map(|slice| {
        let mut latency = histogram::new();
        slice.latency.add_to(&mut latency);
        json!({ "requests": slice.requests, "succeeded": slice.succeeded, "histogram_ns": encode(&latency) })
    });
    json!({ "seconds": report.slices.length().as_secs_f64(), "done": slices.collect::<Vec<_>>() })
}

/// Base64 of the compressed histogram, as in HDR logs.
pub(crate) fn encode(histogram: &Latencies) -> String {
    STANDARD.encode(histogram::compress(histogram))
}

/// The opposite of [`encode`].
pub(crate) fn decode(text: &str) -> Option<Latencies> {
    histogram::expand(&STANDARD.decode(text).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_survives_its_text() {
        let mut latencies = histogram::new();
        histogram::record(&mut latencies, std::time::Duration::from_micros(42));
        assert_eq!(decode(&encode(&latencies)), Some(latencies));
        assert_eq!(decode("HISTFAAA"), None);
    }
}
