//! What came of a load: counts, histograms, and how busy the generator itself was.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Value, json};

use crate::limits::{MAX_EXPLANATIONS, MAX_FIELD_VALUES, MAX_LATENCY_MICROSECONDS};
use crate::unit::{show_bytes, show_duration};

/// Share of a core above which the generator is suspected of being what limits the result.
pub const SUSPECT_BUSY_SHARE: f64 = 0.8;

/// Why a request has no answer that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The server refused the connection, or could not be reached.
    Connect,
    /// The two sides could not agree on TLS, or one broke it.
    Tls,
    /// No answer, or no complete one, within the timeout.
    Timeout,
    /// The connection ended before the head of the answer was complete: nobody knows whether the request had an effect.
    Cut,
    /// The connection ended, or was reset, after the head and before the end of the answer.
    Truncated,
    /// The answer breaks the protocol.
    Malformed,
    /// The answer is complete but its body is not what was asked for.
    WrongBody,
}

impl Failure {
    /// Its name in results.
    pub fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Cut => "cut",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
            Self::WrongBody => "wrong_body",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Counts and latencies of requests, or of TCP round trips.
#[derive(Clone)]
pub struct Tally {
    /// Complete answers, by status. Empty for TCP.
    pub statuses: BTreeMap<u16, u64>,
    /// Complete answers whose status was expected; for TCP, complete round trips.
    pub succeeded: u64,
    /// Complete answers whose status was not expected.
    pub unexpected: u64,
    /// Requests without a complete answer, by cause.
    pub failures: BTreeMap<Failure, u64>,
    /// Complete answers by the value of the counted field (`""`: it was missing).
    pub field_values: BTreeMap<String, u64>,
    /// From the instant a request was due (closed loop: from its start) to the end of its answer. Complete answers only.
    latency: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            statuses: BTreeMap::new(),
            succeeded: 0,
            unexpected: 0,
            failures: BTreeMap::new(),
            field_values: BTreeMap::new(),
            latency: new_histogram(),
        }
    }
}

impl Tally {
    /// Complete answers, whatever they say.
    pub fn answered(&self) -> u64 {
        self.succeeded + self.unexpected
    }

    /// Requests that ended, with or without an answer.
    pub fn requests(&self) -> u64 {
        self.answered() + self.failures.values().sum::<u64>()
    }

    /// Requests that got no answer at all because the connection ended under them.
    pub fn cut(&self) -> u64 {
        self.failure(Failure::Cut)
    }

    /// Requests that failed: unexpected status, or no complete answer for another reason than being cut.
    pub fn failed(&self) -> u64 {
        self.requests() - self.succeeded - self.cut()
    }

    /// Requests that failed for one cause.
    pub fn failure(&self, cause: Failure) -> u64 {
        self.failures.get(&cause).copied().unwrap_or(0)
    }

    /// Answers by class: `2` for 200 to 299, and so on.
    pub fn class(&self, class: u16) -> u64 {
        self.statuses.range(class * 100..(class + 1) * 100).map(|(_, count)| count).sum()
    }

    /// Share of requests that succeeded; 1 if there was none.
    pub fn success_rate(&self) -> f64 {
        match self.requests() {
            0 => 1.0,
            all => self.succeeded as f64 / all as f64,
        }
    }

    /// Latency below which this share (0 to 1) of the complete answers lies.
    pub fn quantile(&self, share: f64) -> Duration {
        Duration::from_micros(self.latency.value_at_quantile(share))
    }

    /// The longest latency.
    pub fn slowest(&self) -> Duration {
        Duration::from_micros(self.latency.max())
    }

    /// The mean latency.
    pub fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.latency.mean() / 1e6)
    }

    /// The histogram itself, in microseconds.
    pub fn latency(&self) -> &Histogram<u64> {
        &self.latency
    }

    pub(crate) fn answer(&mut self, status: Option<u16>, expected: Expected, latency: Duration) {
        if let Some(status) = status {
            *self.statuses.entry(status).or_default() += 1;
        }
        match expected {
            Expected::Yes => self.succeeded += 1,
            Expected::No => self.unexpected += 1,
        }
        record(&mut self.latency, latency);
    }

    pub(crate) fn fail(&mut self, cause: Failure) {
        *self.failures.entry(cause).or_default() += 1;
    }

    pub(crate) fn field_value(&mut self, value: &str) {
        if let Some(count) = self.field_values.get_mut(value) {
            *count += 1;
            return;
        }
        // The server chooses the values, so we choose how many are told apart.
        let value = if self.field_values.len() < MAX_FIELD_VALUES { value } else { "other" };
        *self.field_values.entry(value.to_owned()).or_default() += 1;
    }

    /// What came after an earlier state of this same tally.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut latency = self.latency.clone();
        latency.subtract(&earlier.latency).expect("an earlier state counts nothing that a later one does not");
        Self {
            statuses: subtract_counts(&self.statuses, &earlier.statuses),
            succeeded: self.succeeded - earlier.succeeded,
            unexpected: self.unexpected - earlier.unexpected,
            failures: subtract_counts(&self.failures, &earlier.failures),
            field_values: subtract_counts(&self.field_values, &earlier.field_values),
            latency,
        }
    }

    fn add(&mut self, other: &Self) {
        add_counts(&mut self.statuses, &other.statuses);
        add_counts(&mut self.failures, &other.failures);
        add_counts(&mut self.field_values, &other.field_values);
        self.succeeded += other.succeeded;
        self.unexpected += other.unexpected;
        self.latency.add(&other.latency).expect("all histograms have the same bounds");
    }
}

/// Whether an answer was one of those that its entry expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Yes,
    No,
}

/// The result of a load: of one worker while it runs, of all of them when it has ended.
#[derive(Clone)]
pub struct Report {
    /// Everything together.
    pub total: Tally,
    /// Each entry of the load by name, in the order given.
    pub entries: Vec<(String, Tally)>,
    /// From sending a request to the end of its answer, without the waiting for a free connection.
    service: Histogram<u64>,
    /// From the instant a request was due to its sending, where a connection was free all that time: how late the
    /// generator itself was.
    delay: Histogram<u64>,
    /// Requests that were due but never sent, because no connection was free before the end.
    pub unsent: u64,
    /// Connections made.
    pub connections: u64,
    /// TLS handshakes completed, and how many of them took up an earlier session.
    pub handshakes: u64,
    /// See `handshakes`.
    pub resumed: u64,
    /// From the first byte of a TLS handshake to its end.
    handshake: Histogram<u64>,
    /// What went wrong where, and what to do about it, for people; with how often.
    pub explanations: BTreeMap<String, u64>,
    /// Kept connections that turned out to be closed by the server when the next request was due.
    pub closed_by_server: u64,
    /// Bytes sent and received, as the protocol above TCP counts them.
    pub bytes_sent: u64,
    /// See `bytes_sent`.
    pub bytes_received: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Time on CPU of the generator's threads.
    pub busy: Duration,
    /// The generator's threads.
    pub workers: u32,
    /// The I/O driver it ran on.
    pub driver: String,
}

impl Report {
    pub(crate) fn new(entries: impl IntoIterator<Item = String>, driver: String) -> Self {
        Self {
            total: Tally::default(),
            entries: entries.into_iter().map(|name| (name, Tally::default())).collect(),
            service: new_histogram(),
            delay: new_histogram(),
            unsent: 0,
            connections: 0,
            handshakes: 0,
            resumed: 0,
            handshake: new_histogram(),
            explanations: BTreeMap::new(),
            closed_by_server: 0,
            bytes_sent: 0,
            bytes_received: 0,
            elapsed: Duration::ZERO,
            busy: Duration::ZERO,
            workers: 1,
            driver,
        }
    }

    /// Adds another worker's result of the same load.
    pub(crate) fn add(&mut self, other: &Self) {
        self.total.add(&other.total);
        for ((_, mine), (_, theirs)) in self.entries.iter_mut().zip(&other.entries) {
            mine.add(theirs);
        }
        self.service.add(&other.service).expect("all histograms have the same bounds");
        self.delay.add(&other.delay).expect("all histograms have the same bounds");
        self.unsent += other.unsent;
        self.connections += other.connections;
        self.handshakes += other.handshakes;
        self.resumed += other.resumed;
        self.handshake.add(&other.handshake).expect("all histograms have the same bounds");
        for (text, count) in &other.explanations {
            self.explain_often(text, *count);
        }
        self.closed_by_server += other.closed_by_server;
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.busy += other.busy;
        self.workers += other.workers;
    }

    pub(crate) fn served(&mut self, service: Duration) {
        record(&mut self.service, service);
    }

    pub(crate) fn delayed(&mut self, delay: Duration) {
        record(&mut self.delay, delay);
    }

    pub(crate) fn shook_hands(&mut self, took: Duration, resumed: bool) {
        self.handshakes += 1;
        self.resumed += u64::from(resumed);
        record(&mut self.handshake, took);
    }

    pub(crate) fn explain(&mut self, text: &str) {
        self.explain_often(text, 1);
    }

    fn explain_often(&mut self, text: &str, count: u64) {
        if let Some(known) = self.explanations.get_mut(text) {
            *known += count;
            return;
        }
        // What a server says is part of some, so they are bounded.
        let text = if self.explanations.len() < MAX_EXPLANATIONS { text } else { "further causes" };
        *self.explanations.entry(text.to_owned()).or_default() += count;
    }

    /// One entry's tally.
    pub fn entry(&self, name: &str) -> Option<&Tally> {
        self.entries.iter().find(|(entry, _)| entry == name).map(|(_, tally)| tally)
    }

    /// From sending to the end of the answer, in microseconds.
    pub fn service(&self) -> &Histogram<u64> {
        &self.service
    }

    /// How long TLS handshakes took, in microseconds.
    pub fn handshake(&self) -> &Histogram<u64> {
        &self.handshake
    }

    /// The generator's own lateness, in microseconds.
    pub fn delay(&self) -> &Histogram<u64> {
        &self.delay
    }

    /// Requests a second that ended.
    pub fn rate(&self) -> f64 {
        self.total.requests() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Share of the time that the generator's threads were on CPU; 1 means that they could do no more.
    pub fn busy_share(&self) -> f64 {
        self.busy.as_secs_f64() / (self.elapsed.as_secs_f64() * f64::from(self.workers)).max(1e-9)
    }

    /// What the reader must know before trusting the figures.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.busy_share() > SUSPECT_BUSY_SHARE {
            warnings.push(format!(
                "the generator was busy {:.0} % of the time and may be the bottleneck: give it more --threads",
                self.busy_share() * 100.0
            ));
        }
        if self.unsent > 0 {
            warnings.push(format!(
                "{} requests were due but never sent: all connections were waiting for answers",
                self.unsent
            ));
        }
        let delay = Duration::from_micros(self.delay.value_at_quantile(0.99));
        if delay > Duration::from_millis(1) && delay * 5 > self.total.quantile(0.99) {
            warnings.push(format!(
                "1 % of the requests were sent {} late or later by the generator itself: latencies include that",
                show_duration(delay)
            ));
        }
        warnings
    }

    /// One JSON object.
    pub fn to_json(&self) -> Value {
        json!({
            "requests": self.total.requests(),
            "rate": self.rate(),
            "elapsed_seconds": self.elapsed.as_secs_f64(),
            "total": tally_json(&self.total),
            "entries": self.entries.iter().map(|(name, tally)| (name.clone(), tally_json(tally))).collect::<serde_json::Map<_, _>>(),
            "service_us": histogram_json(&self.service),
            "delay_us": histogram_json(&self.delay),
            "unsent": self.unsent,
            "connections": self.connections,
            "handshakes": self.handshakes,
            "resumed": self.resumed,
            "handshake_us": histogram_json(&self.handshake),
            "explanations": self.explanations,
            "closed_by_server": self.closed_by_server,
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "busy_share": self.busy_share(),
            "threads": self.workers,
            "driver": self.driver,
            "warnings": self.warnings(),
        })
    }
}

/// The table for people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = &self.total;
        writeln!(
            f,
            "{} requests in {}, {:.0}/s, on {} connections made ({}, {} thread{})",
            total.requests(),
            show_duration(self.elapsed),
            self.rate(),
            self.connections,
            self.driver,
            self.workers,
            if self.workers == 1 { "" } else { "s" },
        )?;
        writeln!(f, "{} sent, {} received", show_bytes(self.bytes_sent), show_bytes(self.bytes_received))?;
        if self.handshakes > 0 {
            let took = |share| show_duration(Duration::from_micros(self.handshake.value_at_quantile(share)));
            writeln!(
                f,
                "{} TLS handshakes, {} resumed, p50 {}, p99 {}",
                self.handshakes,
                self.resumed,
                took(0.5),
                took(0.99)
            )?;
        }
        writeln!(f)?;
        writeln!(f, "  succeeded {:>10}   {:.3} %", total.succeeded, total.success_rate() * 100.0)?;
        writeln!(f, "  failed    {:>10}", total.failed())?;
        writeln!(f, "  cut       {:>10}   (no answer: the connection ended)", total.cut())?;
        for (status, count) in &total.statuses {
            writeln!(f, "  status {status} {count:>12}")?;
        }
        for (cause, count) in &total.failures {
            writeln!(f, "  {:<10}{count:>10}", cause.label())?;
        }
        for (value, count) in &total.field_values {
            let share = *count as f64 / total.answered().max(1) as f64 * 100.0;
            writeln!(f, "  {:<10}{count:>10}   {share:.1} %", if value.is_empty() { "(none)" } else { value })?;
        }
        for (text, count) in &self.explanations {
            writeln!(f, "  {count} times: {text}")?;
        }
        if total.answered() > 0 {
            writeln!(f, "\n  latency     p50 {:>9}", show_duration(total.quantile(0.5)))?;
            for (name, share) in [("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)] {
                writeln!(f, "        {name:>9} {:>9}", show_duration(total.quantile(share)))?;
            }
            writeln!(f, "              max {:>9}", show_duration(total.slowest()))?;
        }
        writeln!(f)?;
        write!(f, "  generator busy {:.0} %", self.busy_share() * 100.0)?;
        if !self.delay.is_empty() {
            let delay = Duration::from_micros(self.delay.value_at_quantile(0.99));
            write!(f, ", p99 of its own delay {}", show_duration(delay))?;
        }
        for warning in self.warnings() {
            write!(f, "\n  warning: {warning}")?;
        }
        Ok(())
    }
}

fn tally_json(tally: &Tally) -> Value {
    json!({
        "requests": tally.requests(),
        "succeeded": tally.succeeded,
        "failed": tally.failed(),
        "cut": tally.cut(),
        "statuses": tally.statuses,
        "failures": tally.failures.iter().map(|(cause, count)| (cause.label(), count)).collect::<BTreeMap<_, _>>(),
        "field_values": tally.field_values,
        "latency_us": histogram_json(&tally.latency),
    })
}

fn histogram_json(histogram: &Histogram<u64>) -> Value {
    json!({
        "count": histogram.len(),
        "mean": histogram.mean(),
        "p50": histogram.value_at_quantile(0.5),
        "p90": histogram.value_at_quantile(0.9),
        "p99": histogram.value_at_quantile(0.99),
        "p999": histogram.value_at_quantile(0.999),
        "max": histogram.max(),
    })
}

/// From 1 µs with three digits that matter: about 200 KiB at most.
fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_LATENCY_MICROSECONDS, 3).expect("the bounds are constants that it accepts")
}

fn record(histogram: &mut Histogram<u64>, latency: Duration) {
    histogram.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1));
}

fn add_counts<K: Ord + Clone>(mine: &mut BTreeMap<K, u64>, theirs: &BTreeMap<K, u64>) {
    for (key, count) in theirs {
        *mine.entry(key.clone()).or_default() += count;
    }
}

fn subtract_counts<K: Ord + Clone>(now: &BTreeMap<K, u64>, earlier: &BTreeMap<K, u64>) -> BTreeMap<K, u64> {
    let before = |key| earlier.get(key).copied().unwrap_or(0);
    now.iter().map(|(key, count)| (key.clone(), count - before(key))).filter(|(_, count)| *count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Tally {
        let mut tally = Tally::default();
        for millisecond in 1..=100 {
            tally.answer(Some(200), Expected::Yes, Duration::from_millis(millisecond));
        }
        tally.answer(Some(503), Expected::No, Duration::from_millis(1));
        tally.fail(Failure::Cut);
        tally.fail(Failure::Timeout);
        tally
    }

    #[test]
    fn cut_requests_are_counted_apart_from_failed_ones() {
        let tally = sample();
        assert_eq!((tally.requests(), tally.succeeded, tally.failed(), tally.cut()), (103, 100, 2, 1));
        assert_eq!((tally.class(2), tally.class(5)), (100, 1));
    }

    #[test]
    fn merged_reports_hold_the_counts_of_both() {
        let mut report = Report::new(["a".to_owned()], "epoll".to_owned());
        report.total = sample();
        let other = report.clone();
        report.add(&other);
        assert_eq!(report.total.requests(), 206);
        assert_eq!(report.workers, 2);
        let median = report.total.quantile(0.5).as_secs_f64();
        assert!((0.049..0.052).contains(&median), "{median}");
    }

    #[test]
    fn what_came_since_is_told_apart_from_what_was_before() {
        let earlier = sample();
        let mut now = earlier.clone();
        for _ in 0..10 {
            now.answer(Some(404), Expected::No, Duration::from_secs(1));
        }
        let since = now.since(&earlier);
        assert_eq!((since.requests(), since.class(4), since.class(2), since.cut()), (10, 10, 0, 0));
        assert!(since.quantile(0.01) >= Duration::from_millis(999));
    }

    #[test]
    fn values_of_the_counted_field_are_bounded() {
        let mut tally = Tally::default();
        for value in 0..MAX_FIELD_VALUES + 50 {
            tally.field_value(&value.to_string());
        }
        assert_eq!(tally.field_values.len(), MAX_FIELD_VALUES + 1);
        assert_eq!(tally.field_values["other"], 50);
    }

    #[test]
    fn latency_beyond_the_bound_counts_as_the_bound() {
        let mut tally = Tally::default();
        tally.answer(None, Expected::Yes, Duration::from_secs(100_000));
        assert!(tally.slowest() >= Duration::from_secs(119));
    }
}
