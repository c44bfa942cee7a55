//! The result as Prometheus reads it, for a Pushgateway or the textfile collector.

use std::fmt::Write;

use super::{PERCENTILES, Report};

impl Report {
    /// Text exposition format.
    pub fn to_prometheus(&self) -> String {
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, samples: &[(String, f64)]| {
            // Writing to a string cannot fail.
            let _ok = writeln!(text, "# HELP ringmesh_load_{name} {help}\n# TYPE ringmesh_load_{name} {kind}");
            for (labels, value) in samples {
                let _ok = writeln!(text, "ringmesh_load_{name}{labels} {value}");
            }
        };
        let total = &self.total;
        let plain = |value: f64| [(String::new(), value)];
        let statuses = total.statuses.iter().map(|(status, count)| (format!("{{status=\"{status}\"}}"), *count as f64));
        let failures =
            total.failures.iter().map(|(cause, count)| (format!("{{cause=\"{}\"}}", cause.label()), *count as f64));
        metric("requests", "gauge", "Requests that ended.", &plain(total.requests() as f64));
        metric("succeeded_requests", "gauge", "Requests that succeeded.", &plain(total.succeeded as f64));
        metric("unsent_requests", "gauge", "Requests that were due and never sent.", &plain(self.unsent as f64));
        metric("answers", "gauge", "Complete answers by status.", &statuses.collect::<Vec<_>>());
        metric("failures", "gauge", "Requests without a complete answer by cause.", &failures.collect::<Vec<_>>());
        metric("requests_per_second", "gauge", "Requests that ended, a second.", &plain(self.rate()));
        metric("sent_bytes", "gauge", "Bytes sent.", &plain(self.bytes_sent as f64));
        metric("received_bytes", "gauge", "Bytes received.", &plain(self.bytes_received as f64));
        metric("connections", "gauge", "Connections made.", &plain(self.connections as f64));
        metric("elapsed_seconds", "gauge", "How long it took.", &plain(self.elapsed.as_secs_f64()));
        metric("generator_busy_ratio", "gauge", "Share of the time on CPU.", &plain(self.busy_share()));
        metric("latency_seconds", "summary", "From when a request was due to the end of its answer.", &self.summary());
        let (sum, count) = (total.latency().mean() / 1e9 * total.answered() as f64, total.answered());
        let _ok =
            writeln!(text, "ringmesh_load_latency_seconds_sum {sum}\nringmesh_load_latency_seconds_count {count}");
        text
    }

    fn summary(&self) -> Vec<(String, f64)> {
        let quantile =
            |(_, share): &(&str, f64)| (format!("{{quantile=\"{share}\"}}"), self.total.quantile(*share).as_secs_f64());
        PERCENTILES.iter().map(quantile).collect()
    }
}
