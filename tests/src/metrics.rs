//! A scrape of `/metrics`, as samples.

use std::collections::BTreeMap;
use std::fmt;

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// All lines of one scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// The lines.
    pub samples: Vec<Sample>,
    /// Names declared to be counters.
    pub counters: Vec<String>,
}

impl Metrics {
    /// Reads the Prometheus text format.
    ///
    /// # Panics
    /// If a line is not of that format.
    pub fn parse(page: &str) -> Self {
        let mut metrics = Self { samples: Vec::new(), counters: Vec::new() };
        for line in page.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(kind) => metrics.counters.extend(kind.strip_suffix(" counter").map(str::to_owned)),
                None if line.starts_with('#') || line.is_empty() => {}
                None => metrics.samples.push(sample(line).unwrap_or_else(|| panic!("no sample: `{line}`"))),
            }
        }
        metrics
    }

    /// The samples of this name that have all these labels.
    pub fn find<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Sample> {
        let fits = move |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|found| found == value))
        };
        self.samples.iter().filter(fits)
    }

    /// The sum of the samples of this name that have all these labels; 0 if there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.find(name, labels).map(|sample| sample.value).sum::<f64>() as u64
    }

    /// What has become less since `before` although it is a counter.
    pub fn fallen_since(&self, before: &Self) -> Vec<String> {
        let now = |old: &Sample| {
            let same = |new: &&Sample| new.name == old.name && new.labels == old.labels;
            self.samples.iter().find(same).map(|new| new.value)
        };
        let counts = |sample: &&Sample| {
            let name = sample.name.as_str();
            let part = ["_bucket", "_count", "_sum"].iter().any(|end| name.ends_with(end));
            part || before.counters.iter().any(|counter| counter == name)
        };
        let fallen = |old: &Sample| match now(old) {
            Some(new) if new >= old.value => None,
            new => Some(format!("{old}, later {new:?}")),
        };
        before.samples.iter().filter(counts).filter_map(fallen).collect()
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {}", self.name, self.labels, self.value)
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (name, rest) = line.split_at(line.find(['{', ' '])?);
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.trim_start_matches(',').to_owned(), value);
            rest = after;
        }
        rest = &rest[1..];
    }
    let value = rest.split_whitespace().next()?;
    let value = if value == "+Inf" { f64::INFINITY } else { value.parse().ok()? };
    Some(Sample { name: name.to_owned(), labels, value })
}

/// A label's value up to its closing quote, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str =
        "# HELP a A.\n# TYPE a counter\na{x=\"1\",y=\"q\\\"}\"} 3\na{x=\"2\",y=\"\"} 4\n# TYPE g gauge\ng 1.5\n";

    #[test]
    fn samples_are_found_by_their_labels_and_summed() {
        let metrics = Metrics::parse(PAGE);
        assert_eq!(metrics.sum("a", &[]), 7);
        assert_eq!(metrics.sum("a", &[("y", "q\"}")]), 3);
        assert_eq!(metrics.sum("b", &[]), 0);
        assert_eq!(metrics.samples[2].value, 1.5);
    }

    #[test]
    fn a_counter_that_falls_or_vanishes_is_told_and_a_gauge_is_not() {
        let before = Metrics::parse(PAGE);
        assert_eq!(before.fallen_since(&before), Vec::<String>::new());
        let later = Metrics::parse("# TYPE a counter\na{x=\"1\",y=\"q\\\"}\"} 2\n# TYPE g gauge\ng 1\n");
        let fallen = later.fallen_since(&before);
        assert_eq!(fallen.len(), 2, "{fallen:?}");
    }
}
