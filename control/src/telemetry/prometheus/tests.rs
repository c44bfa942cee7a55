use ringmesh_dataplane::outcome::Reason;

use super::*;
use crate::telemetry::grammar;
use crate::telemetry::merge::Listener;
use crate::telemetry::testing::scrape;

fn page(scrape: &Scrape, format: Format) -> String {
    let mut page = Vec::new();
    write(scrape, format, &mut page).unwrap();
    String::from_utf8(page).unwrap()
}

/// Everything but the buckets, which have tests of their own, and the samples of the many that are all alike.
fn without_buckets(page: &str) -> String {
    page.lines().filter(|line| !line.contains("_bucket{")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_prometheus_page_of_a_small_memory_is_exactly_this() {
    let text = page(&scrape(), Format::Prometheus);
    assert_eq!(without_buckets(&text), include_str!("expected.txt").replace("{VERSION}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_openmetrics_page_says_the_same_under_openmetrics_names() {
    let scrape = scrape();
    let (prometheus, openmetrics) = (page(&scrape, Format::Prometheus), page(&scrape, Format::OpenMetrics));
    let samples =
        |page: &str| page.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(samples(&prometheus), samples(&openmetrics), "samples have the same names and numbers in both");
    for line in [
        "# TYPE ringmesh_request counter",
        "# TYPE ringmesh_request_duration_seconds histogram",
        "# UNIT ringmesh_request_duration_seconds seconds",
        "# UNIT ringmesh_request_body_bytes bytes",
        "# TYPE ringmesh_build info",
    ] {
        assert!(openmetrics.lines().any(|found| found == line), "{line}");
    }
    assert!(openmetrics.ends_with("\n# EOF\n"));
}

#[test]
fn both_pages_keep_to_their_grammar_and_sums_are_right_whichever_labels_are_left_out() {
    for format in [Format::Prometheus, Format::OpenMetrics] {
        let samples = grammar::read(&page(&scrape(), format), format);
        let web = [("route", "web \"v1\"\\")];
        assert_eq!(samples.sum("ringmesh_request_total", &[]), 3.0);
        assert_eq!(samples.sum("ringmesh_request_total", &web), 3.0);
        assert_eq!(samples.sum("ringmesh_request_total", &[("class", "2xx")]), 2.0);
        assert_eq!(samples.sum("ringmesh_request_outcome_total", &web), 3.0);
        assert_eq!(samples.sum("ringmesh_request_duration_seconds_count", &web), 3.0);
        assert_eq!(samples.sum("ringmesh_request_duration_seconds_bucket", &[("le", "0.000128")]), 2.0);
        assert_eq!(samples.sum("ringmesh_tls_handshakes_total", &[("side", "inbound")]), 4.0);
        assert_eq!(samples.sum("ringmesh_listener_connections_accepted_total", &[]), 6.0);
        assert_eq!(samples.sum("ringmesh_worker_skew_ratio", &[]), 2.0, "three connections on one worker of two");
    }
}

#[test]
fn a_page_without_a_data_plane_is_whole_too() {
    let mut scrape = scrape();
    (scrape.totals, scrape.state) = (Totals::default(), State::default());
    for format in [Format::Prometheus, Format::OpenMetrics] {
        let samples = grammar::read(&page(&scrape, format), format);
        assert_eq!(samples.sum("ringmesh_dataplane_up", &[]), 0.0);
        assert!(!samples.names().contains("ringmesh_request_total"));
    }
}

#[test]
fn numbers_that_have_no_word_yet_are_shown_as_numbers() {
    let mut scrape = scrape();
    let listener: &mut Listener = scrape.totals.listeners.get_mut("inbound").unwrap();
    listener.reasons[MAX_REASONS - 1] = 4;
    listener.refused[MAX_CAUSES - 1] = 5;
    let samples = grammar::read(&page(&scrape, Format::Prometheus), Format::Prometheus);
    assert!(Reason::from_number(MAX_REASONS as u8 - 1).is_none());
    assert_eq!(
        samples
            .sum("ringmesh_listener_connections_outcome_total", &[("reason", &format!("reason_{}", MAX_REASONS - 1))]),
        4.0
    );
    let cause = format!("cause_{}", MAX_CAUSES - 1);
    assert_eq!(samples.sum("ringmesh_tls_handshakes_total", &[("result", &cause)]), 5.0);
}
