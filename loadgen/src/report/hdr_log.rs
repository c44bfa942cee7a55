//! The result as an HDR log: one compressed histogram of latencies in nanoseconds for each slice of time. HdrHistogram
//! tools of every language plot and merge these.

use std::time::{Duration, SystemTime};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;

use super::{Report, histogram};

/// The largest value of an interval is written in these: milliseconds, by the format's custom.
const MAX_UNIT_NANOSECONDS: f64 = 1e6;

impl Report {
    /// The log. `began` is when the load did.
    pub fn to_hdr_log(&self, began: SystemTime) -> String {
        let mut text = Vec::new();
        let mut serializer = V2DeflateSerializer::new();
        let comment = format!("ringmesh-load {}: latencies in nanoseconds", env!("CARGO_PKG_VERSION"));
        let mut log = IntervalLogWriterBuilder::new()
            .add_comment(&comment)
            .with_start_time(began)
            .with_max_value_divisor(MAX_UNIT_NANOSECONDS)
            .begin_log_with(&mut text, &mut serializer)
            .expect("memory takes everything");
        let length = self.slices.length();
        for (slice, at) in self.slices.done().iter().zip(0..) {
            let mut latency = histogram::new();
            slice.latency.add_to(&mut latency);
            let start: Duration = length * at;
            log.write_histogram(&latency, start, length, None).expect("memory takes everything");
        }
        String::from_utf8(text).expect("the format is text")
    }
}
