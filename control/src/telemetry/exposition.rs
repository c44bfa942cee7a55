//! Writes metrics as text: Prometheus text format 0.0.4, or OpenMetrics 1.0. Both have a family's samples in one block
//! below its description; they differ in how counters and facts are named, in units, and in the last line.

use std::fmt::Write as _;
use std::io;

use super::histogram::{BOUNDS_MICROS, Histogram};

/// Which of the two formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// Its media type, for `Content-Type`.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What a family's numbers mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Always 1: its labels are what it says.
    Fact,
    /// Durations by bucket.
    Histogram,
}

/// What one is of. It ends the family's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things that are counted.
    None,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// A share or a multiple.
    Ratio,
}

/// What stands above a family's samples.
pub struct Description {
    /// What its numbers mean.
    pub kind: Type,
    /// Its name without the ending that its type gives it (`_total`, `_info`).
    pub name: &'static str,
    /// Its unit.
    pub unit: Unit,
    /// What it is, in a sentence.
    pub help: &'static str,
}

/// A label's name and its value, which may hold any character.
pub type Label<'a> = (&'static str, &'a str);

/// Text that is passed on at once. A family may have a hundred thousand lines.
const PIECE_BYTES: usize = 16 * 1024;

/// A page of metrics that is being written.
pub struct Page<'a> {
    format: Format,
    /// What is not passed on yet.
    text: String,
    out: &'a mut dyn io::Write,
    passed_on: io::Result<()>,
}

/// A family whose samples are being written.
pub struct Family<'a, 'b> {
    page: &'a mut Page<'b>,
    name: &'static str,
    ending: &'static str,
}

impl<'b> Page<'b> {
    /// An empty page, to be written to `out`.
    pub fn new(format: Format, out: &'b mut dyn io::Write) -> Self {
        Self { format, text: String::new(), out, passed_on: Ok(()) }
    }

    /// Begins a family.
    pub fn family(&mut self, description: &Description) -> Family<'_, 'b> {
        let Description { kind, name, unit, help } = *description;
        debug_assert!(is_plain(help), "{name}: help is written as it is");
        let ending = match kind {
            Type::Counter => "_total",
            Type::Fact => "_info",
            Type::Gauge | Type::Histogram => "",
        };
        let (described, word) = match (self.format, kind) {
            (Format::OpenMetrics, Type::Fact) => ("", "info"),
            (Format::OpenMetrics, Type::Counter) => ("", "counter"),
            (Format::Prometheus, Type::Counter) => (ending, "counter"),
            (Format::Prometheus, Type::Fact) => (ending, "gauge"),
            (_, Type::Gauge) => ("", "gauge"),
            (_, Type::Histogram) => ("", "histogram"),
        };
        self.write(format_args!("# HELP {name}{described} {help}\n# TYPE {name}{described} {word}\n"));
        if let (Format::OpenMetrics, Some(unit)) = (self.format, unit.word()) {
            debug_assert!(name.strip_suffix(unit).is_some_and(|stem| stem.ends_with('_')), "{name} ends with its unit");
            self.write(format_args!("# UNIT {name} {unit}\n"));
        }
        Family { page: self, name, ending }
    }

    /// Ends the page.
    ///
    /// # Errors
    /// If some of it could not be written.
    pub fn finish(mut self) -> io::Result<()> {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.pass_on();
        self.passed_on
    }

    /// Once that has failed, nobody reads the page any more.
    fn pass_on(&mut self) {
        if self.passed_on.is_ok() {
            self.passed_on = self.out.write_all(self.text.as_bytes());
        }
        self.text.clear();
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        self.text.write_fmt(text).expect("writing to a string cannot fail");
    }
}

impl Family<'_, '_> {
    /// Writes one sample.
    pub fn sample(&mut self, labels: &[Label<'_>], value: impl Into<Value>) -> &mut Self {
        self.line(self.ending, labels, None, value.into());
        self
    }

    /// Writes a histogram's buckets, its sum and its count.
    pub fn histogram(&mut self, labels: &[Label<'_>], histogram: &Histogram) {
        for (bound, below) in BOUNDS_MICROS.iter().zip(histogram.cumulative()) {
            let bound = (*bound as f64 / 1e6).to_string();
            self.line("_bucket", labels, Some(("le", &bound)), Value::Count(below));
        }
        let count = Value::Count(histogram.count());
        self.line("_bucket", labels, Some(("le", "+Inf")), count);
        self.line("_sum", labels, None, Value::Number(histogram.sum_seconds()));
        self.line("_count", labels, None, count);
    }

    fn line(&mut self, ending: &str, labels: &[Label<'_>], last: Option<Label<'_>>, value: Value) {
        let Self { page, name, .. } = self;
        if page.passed_on.is_err() {
            return;
        }
        page.write(format_args!("{name}{ending}"));
        let mut before = '{';
        for (label, value) in labels.iter().chain(last.as_ref()) {
            page.write(format_args!("{before}{label}=\""));
            escape(value, &mut page.text);
            page.text.push('"');
            before = ',';
        }
        if before == ',' {
            page.text.push('}');
        }
        match value {
            Value::Count(count) => page.write(format_args!(" {count}\n")),
            Value::Number(number) if number.is_nan() => page.text.push_str(" NaN\n"),
            Value::Number(number) if number.is_infinite() => {
                page.text.push_str(if number > 0.0 { " +Inf\n" } else { " -Inf\n" });
            }
            Value::Number(number) => page.write(format_args!(" {number}\n")),
        }
        if page.text.len() >= PIECE_BYTES {
            page.pass_on();
        }
    }
}

/// A sample's number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A whole one.
    Count(u64),
    /// Any.
    Number(f64),
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl Unit {
    const fn word(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Bytes => Some("bytes"),
            Self::Seconds => Some("seconds"),
            Self::Ratio => Some("ratio"),
        }
    }
}

/// A label's value between quotes: the three characters that have a meaning there are escaped.
fn escape(value: &str, into: &mut String) {
    for character in value.chars() {
        match character {
            '\\' => into.push_str("\\\\"),
            '"' => into.push_str("\\\""),
            '\n' => into.push_str("\\n"),
            other => into.push(other),
        }
    }
}

fn is_plain(text: &str) -> bool {
    !text.contains(['\\', '\n', '"'])
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECTIONS: Description =
        Description { kind: Type::Counter, name: "ringmesh_test", unit: Unit::None, help: "Connections." };
    const DURATION: Description = Description {
        kind: Type::Histogram,
        name: "ringmesh_test_duration_seconds",
        unit: Unit::Seconds,
        help: "Durations.",
    };
    const BUILD: Description =
        Description { kind: Type::Fact, name: "ringmesh_test_build", unit: Unit::None, help: "What runs." };
    const SKEW: Description =
        Description { kind: Type::Gauge, name: "ringmesh_test_ratio", unit: Unit::Ratio, help: "A share." };

    fn check(format: Format, description: &Description, write: impl Fn(&mut Family<'_, '_>), expected: &str) {
        let mut text = Vec::new();
        let mut page = Page::new(format, &mut text);
        write(&mut page.family(description));
        page.finish().unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn a_counter_is_described_by_its_whole_name_in_prometheus_and_without_total_in_openmetrics() {
        let write = |family: &mut Family<'_, '_>| {
            family.sample(&[("listener", "in")], 7).sample(&[], u64::MAX);
        };
        let samples = "ringmesh_test_total{listener=\"in\"} 7\nringmesh_test_total 18446744073709551615\n";
        let head = "# HELP ringmesh_test_total Connections.\n# TYPE ringmesh_test_total counter\n";
        check(Format::Prometheus, &CONNECTIONS, write, &format!("{head}{samples}"));
        let head = "# HELP ringmesh_test Connections.\n# TYPE ringmesh_test counter\n";
        check(Format::OpenMetrics, &CONNECTIONS, write, &format!("{head}{samples}# EOF\n"));
    }

    #[test]
    fn a_fact_is_a_gauge_in_prometheus_and_info_in_openmetrics() {
        let write = |family: &mut Family<'_, '_>| {
            family.sample(&[("version", "1")], 1);
        };
        let sample = "ringmesh_test_build_info{version=\"1\"} 1\n";
        let head = "# HELP ringmesh_test_build_info What runs.\n# TYPE ringmesh_test_build_info gauge\n";
        check(Format::Prometheus, &BUILD, write, &format!("{head}{sample}"));
        let head = "# HELP ringmesh_test_build What runs.\n# TYPE ringmesh_test_build info\n";
        check(Format::OpenMetrics, &BUILD, write, &format!("{head}{sample}# EOF\n"));
    }

    #[test]
    fn numbers_are_written_as_both_formats_read_them() {
        let write = |family: &mut Family<'_, '_>| {
            for number in [0.000064, 1.0, 1.5, 1e15, 1e-9, f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
                family.sample(&[], number);
            }
        };
        let head = "# HELP ringmesh_test_ratio A share.\n# TYPE ringmesh_test_ratio gauge\n";
        let numbers = ["0.000064", "1", "1.5", "1000000000000000", "0.000000001", "+Inf", "-Inf", "NaN"];
        let samples: String = numbers.map(|number| format!("ringmesh_test_ratio {number}\n")).concat();
        check(Format::Prometheus, &SKEW, write, &format!("{head}{samples}"));
        let unit = "# UNIT ringmesh_test_ratio ratio\n";
        check(Format::OpenMetrics, &SKEW, write, &format!("{head}{unit}{samples}# EOF\n"));
    }

    #[test]
    fn label_values_are_escaped_and_nothing_else_in_them_is_changed() {
        let value = "a\\b\"c\nd{e}=f,g#h\tß";
        let write = |family: &mut Family<'_, '_>| {
            family.sample(&[("name", value), ("other", "")], 1);
        };
        let head = "# HELP ringmesh_test_total Connections.\n# TYPE ringmesh_test_total counter\n";
        let sample = "ringmesh_test_total{name=\"a\\\\b\\\"c\\nd{e}=f,g#h\tß\",other=\"\"} 1\n";
        check(Format::Prometheus, &CONNECTIONS, write, &format!("{head}{sample}"));
    }

    #[test]
    fn a_histogram_has_its_bounds_in_order_then_sum_and_count() {
        let mut buckets = vec![0; ringmesh_dataplane::telemetry::layout::BUCKETS];
        for micros in [63_u64, 64, 1000, 90_000_000] {
            buckets[ringmesh_dataplane::telemetry::layout::bucket(micros)] += 1;
        }
        let histogram = Histogram::new(&buckets, 63 + 64 + 1000 + 90_000_000);
        let mut text = Vec::new();
        let mut page = Page::new(Format::Prometheus, &mut text);
        page.family(&DURATION).histogram(&[("route", "r")], &histogram);
        page.finish().unwrap();
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(lines.len(), BOUNDS_MICROS.len() + 3);
        assert_eq!(lines[0], "ringmesh_test_duration_seconds_bucket{route=\"r\",le=\"0.000064\"} 1");
        assert_eq!(lines[1], "ringmesh_test_duration_seconds_bucket{route=\"r\",le=\"0.000128\"} 2");
        assert_eq!(lines[4], "ringmesh_test_duration_seconds_bucket{route=\"r\",le=\"0.001024\"} 3");
        assert_eq!(lines[19], "ringmesh_test_duration_seconds_bucket{route=\"r\",le=\"33.554432\"} 3");
        assert_eq!(lines[20], "ringmesh_test_duration_seconds_bucket{route=\"r\",le=\"+Inf\"} 4");
        assert_eq!(lines[21], "ringmesh_test_duration_seconds_sum{route=\"r\"} 90.001127");
        assert_eq!(lines[22], "ringmesh_test_duration_seconds_count{route=\"r\"} 4");
    }
}
