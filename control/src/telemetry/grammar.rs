//! A strict reader of metric pages, for tests: whatever Prometheus or OpenMetrics forbid, it refuses by panicking.

use std::collections::{BTreeMap, BTreeSet};

use super::exposition::Format;

/// A sample's labels, and its number.
pub(crate) type Sample = (BTreeMap<String, String>, f64);

/// A page, read: each sample by name.
#[derive(Debug, Default)]
pub(crate) struct Samples(BTreeMap<String, Vec<Sample>>);

impl Samples {
    /// The sum over all samples of that name that carry these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let carries =
            |sample: &&Sample| labels.iter().all(|(label, value)| sample.0.get(*label).is_some_and(|v| v == value));
        self.0.get(name).into_iter().flatten().filter(carries).map(|sample| sample.1).sum()
    }

    /// The names of all samples.
    pub(crate) fn names(&self) -> BTreeSet<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

/// Reads a page.
pub(crate) fn read(text: &str, format: Format) -> Samples {
    let body = match format {
        Format::Prometheus => text,
        Format::OpenMetrics => text.strip_suffix("# EOF\n").expect("OpenMetrics ends with # EOF"),
    };
    assert!(body.is_empty() || body.ends_with('\n'), "the last line ends");
    let mut samples = Samples::default();
    let mut described = BTreeSet::new();
    let mut lines = body.lines().peekable();
    while let Some(line) = lines.next() {
        let (family, help) = comment(line, "HELP").split_once(' ').expect("a family has help");
        assert!(described.insert(family.to_owned()), "{family} is described once");
        assert!(help.ends_with('.'), "{family}: help is a sentence");
        let (name, kind) = comment(lines.next().expect("a type follows"), "TYPE").split_once(' ').expect("a type");
        assert_eq!(name, family, "help and type are of one family");
        check_name(family);
        if let Some(unit) = lines.next_if(|line| line.starts_with("# UNIT ")) {
            let (name, unit) = comment(unit, "UNIT").split_once(' ').expect("a unit");
            assert_eq!((format, name), (Format::OpenMetrics, family));
            assert!(family.ends_with(&format!("_{unit}")), "{family} ends with its unit {unit}");
        }
        let mut seen = BTreeSet::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let (name, (labels, value)) = sample(line);
            assert!(endings(kind, format).iter().any(|ending| name.strip_suffix(ending) == Some(family)), "{line}");
            assert!(seen.insert((name.to_owned(), labels.clone())), "twice: {line}");
            assert!(kind == "gauge" || value >= 0.0, "negative: {line}");
            samples.0.entry(name.to_owned()).or_default().push((labels, value));
        }
        if kind == "histogram" {
            check_histogram(&samples, family);
        }
    }
    samples
}

fn comment<'a>(line: &'a str, word: &str) -> &'a str {
    line.strip_prefix("# ")
        .and_then(|rest| rest.strip_prefix(word))
        .and_then(|rest| rest.strip_prefix(' '))
        .unwrap_or_else(|| panic!("`{line}` stands where {word} was expected"))
}

fn endings(kind: &str, format: Format) -> &'static [&'static str] {
    match (kind, format) {
        ("counter", Format::OpenMetrics) => &["_total"],
        ("info", Format::OpenMetrics) => &["_info"],
        ("counter" | "gauge", _) => &[""],
        ("histogram", _) => &["_bucket", "_sum", "_count"],
        _ => panic!("no such type: {kind}"),
    }
}

/// Our own rule, stricter than the formats': lower-case words, ours or those that every process has.
fn check_name(name: &str) {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let known = ["ringmesh_", "process_"].iter().any(|start| name.starts_with(start));
    assert!(known && name.chars().all(plain), "{name}");
}

fn sample(line: &str) -> (&str, Sample) {
    let name_end = line.find(['{', ' ']).expect("a sample has a value");
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"").expect("a label has a value");
            assert!(label.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "label {label}");
            let (value, after) = quoted(after);
            assert!(labels.insert(label.to_owned(), value).is_none(), "label twice: {line}");
            match after.split_at(1) {
                (",", after) => rest = after,
                ("}", after) => {
                    rest = after;
                    break;
                }
                _ => panic!("after a label: {line}"),
            }
        }
    }
    let value = rest.strip_prefix(' ').expect("one space before the value");
    let value = match value {
        "+Inf" => f64::INFINITY,
        number => {
            assert!(number.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | '-')), "a plain number: {line}");
            number.parse().expect("a number")
        }
    };
    (name, (labels, value))
}

/// A label's value up to its closing quote, and what follows that.
fn quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((place, character)) = characters.next() {
        match character {
            '"' => return (value, &text[place + 1..]),
            '\\' => value.push(match characters.next() {
                Some((_, 'n')) => '\n',
                Some((_, escaped @ ('\\' | '"'))) => escaped,
                other => panic!("no such escape: {other:?}"),
            }),
            other => value.push(other),
        }
    }
    panic!("no closing quote: {text}");
}

fn check_histogram(samples: &Samples, family: &str) {
    let of = |ending: &str| samples.0.get(&format!("{family}{ending}")).cloned().unwrap_or_default();
    let counts = of("_count");
    assert_eq!(of("_sum").len(), counts.len(), "{family}: a sum for each count");
    for (labels, count) in counts {
        let mut before = (f64::NEG_INFINITY, 0.0);
        for (mut bucket, below) in of("_bucket") {
            let bound: f64 = bucket.remove("le").expect("a bucket has a bound").parse().expect("bounds are numbers");
            if bucket == labels {
                assert!(bound > before.0 && below >= before.1, "{family}: buckets ascend");
                before = (bound, below);
            }
        }
        assert_eq!(before, (f64::INFINITY, count), "{family}: the last bucket has all");
    }
}
