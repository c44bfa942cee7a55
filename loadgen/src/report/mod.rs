//! What came of a load: counts, histograms, how it went over time, and how busy the generator itself was.

mod failure;
pub mod histogram;
mod hdr_log;
mod json;
mod prometheus;
pub mod saved;
pub mod slice;
mod table;
mod tally;
mod verdict;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::limits::MAX_EXPLANATIONS;
use crate::load::{Ended, Settings};
use crate::thread::Usage;

pub use failure::Failure;
pub use histogram::Latencies;
pub use json::SCHEMA_VERSION;
use slice::{Ending, Slices};
pub(crate) use tally::Expected;
pub use tally::Tally;
pub use verdict::{Bottleneck, SUSPECT_BUSY_SHARE};

/// The percentiles that are shown everywhere: name, and share of the answers.
pub const PERCENTILES: [(&str, f64); 7] =
    [("p50", 0.5), ("p75", 0.75), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999)];

/// The result of a load: of one worker while it runs, of all of them when it has ended.
#[derive(Clone)]
pub struct Report {
    /// What was asked for.
    pub asked: Asked,
    /// Everything together.
    pub total: Tally,
    /// Each entry of the load by name, in the order given.
    pub entries: Vec<(String, Tally)>,
    /// From sending a request to the end of its answer, without the waiting for a free connection.
    service: Latencies,
    /// From the instant a request was due to its sending, where a connection was free all that time: how late the
    /// generator itself was.
    delay: Latencies,
    /// How it went over time.
    slices: Slices,
    /// Requests that were due but never sent, because no connection was free before the end.
    pub unsent: u64,
    /// Connections made, those before the warm-up's end included.
    pub connections: u64,
    /// TLS handshakes completed, and how many of them took up an earlier session.
    pub handshakes: u64,
    /// See `handshakes`.
    pub resumed: u64,
    /// Handshakes by what both sides agreed on: key exchange group and cipher suite.
    pub tls_parameters: BTreeMap<String, u64>,
    /// From the first byte of a TLS handshake to its end.
    handshake: Latencies,
    /// What went wrong where, and what to do about it, for people; with how often.
    pub explanations: BTreeMap<String, u64>,
    /// Kept connections that turned out to be closed by the server when the next request was due.
    pub closed_by_server: u64,
    /// Bytes sent and received, as the protocol above TCP counts them.
    pub bytes_sent: u64,
    /// See `bytes_sent`.
    pub bytes_received: u64,
    /// How long it took, without the warm-up.
    pub elapsed: Duration,
    /// Time on CPU of the generator's threads.
    pub busy: Duration,
    /// Time that the generator's threads could have run and had no core, where the kernel tells.
    pub waiting: Duration,
    /// Share of the time that the busiest thread was on CPU, or waiting for it.
    pub busiest_share: f64,
    /// The generator's threads.
    pub workers: u32,
    /// The I/O driver it ran on.
    pub driver: String,
}

/// What was asked for, as results tell it.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Such as `1000 requests a second, evenly spaced`.
    pub arrivals: String,
    /// Requests a second, if they are the same from start to end. None too in a closed loop.
    pub per_second: Option<f64>,
    /// Whether latencies count from the instant a request was due.
    pub open_loop: bool,
    /// Connections.
    pub connections: usize,
    /// The warm-up.
    pub warm_up: Duration,
    /// When the load would end, counted from the end of the warm-up.
    pub duration: Option<Duration>,
}

impl Asked {
    fn of(settings: &Settings) -> Self {
        use crate::arrival::{Arrivals, Spacing};
        let (arrivals, per_second) = match &settings.arrivals {
            Arrivals::Closed => ("closed loop".to_owned(), None),
            Arrivals::Open { rate, spacing } => {
                let spacing = match spacing {
                    Spacing::Even => "evenly spaced".to_owned(),
                    Spacing::Poisson { seed } => format!("at random, seed {seed}"),
                };
                (format!("open loop at {rate} requests a second, {spacing}"), rate.is_constant())
            }
        };
        Self {
            arrivals,
            per_second,
            open_loop: settings.arrivals != Arrivals::Closed,
            connections: settings.connections,
            warm_up: settings.warm_up,
            duration: settings.duration,
        }
    }
}

impl Report {
    pub(crate) fn new(settings: &Settings, entries: impl IntoIterator<Item = String>, driver: String) -> Self {
        Self {
            asked: Asked::of(settings),
            total: Tally::default(),
            entries: entries.into_iter().map(|name| (name, Tally::default())).collect(),
            service: histogram::new(),
            delay: histogram::new(),
            slices: Slices::new(),
            unsent: 0,
            connections: 0,
            handshakes: 0,
            resumed: 0,
            tls_parameters: BTreeMap::new(),
            handshake: histogram::new(),
            explanations: BTreeMap::new(),
            closed_by_server: 0,
            bytes_sent: 0,
            bytes_received: 0,
            elapsed: Duration::ZERO,
            busy: Duration::ZERO,
            waiting: Duration::ZERO,
            busiest_share: 0.0,
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
        self.slices.add(&other.slices);
        self.unsent += other.unsent;
        self.connections += other.connections;
        self.handshakes += other.handshakes;
        self.resumed += other.resumed;
        for (parameters, count) in &other.tls_parameters {
            *self.tls_parameters.entry(parameters.clone()).or_default() += count;
        }
        self.handshake.add(&other.handshake).expect("all histograms have the same bounds");
        for (text, count) in &other.explanations {
            self.explain_often(text, *count);
        }
        self.closed_by_server += other.closed_by_server;
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.busy += other.busy;
        self.waiting += other.waiting;
        self.busiest_share = self.busiest_share.max(other.busiest_share);
        self.workers += other.workers;
    }

    /// Counts a request that ended at an offset from the beginning of measuring.
    pub(crate) fn record(&mut self, offset: Duration, latency: Duration, service: Duration, ended: &Ended<'_>) {
        let ending = match &ended.outcome {
            Ok(answer) => {
                self.bytes_sent += answer.bytes_sent;
                self.bytes_received += answer.bytes_received;
                histogram::record(&mut self.service, service);
                match answer.expected {
                    Expected::Yes => Ending::Succeeded(latency),
                    Expected::No => Ending::Unexpected(latency),
                }
            }
            Err(_) => Ending::Failed,
        };
        self.slices.record(offset, ending);
        let count = |tally: &mut Tally| match &ended.outcome {
            Ok(answer) => {
                tally.answer(answer.status, answer.expected, latency);
                if let Some(value) = answer.field {
                    tally.field_value(value);
                }
            }
            Err(cause) => tally.fail(*cause),
        };
        count(&mut self.total);
        // A single entry is the total.
        if self.entries.len() > 1 {
            count(&mut self.entries[ended.entry].1);
        }
    }

    /// A copy for others.
    pub(crate) fn snapshot(&self) -> Self {
        let mut snapshot = self.clone();
        if let [(_, tally)] = &mut snapshot.entries[..] {
            tally.clone_from(&self.total);
        }
        snapshot
    }

    /// What its thread has used so far.
    pub(crate) fn used(&mut self, usage: Usage) {
        (self.busy, self.waiting) = (usage.busy, usage.waiting);
        self.busiest_share = self.busy_share() + self.waiting_share();
    }

    /// Closes what is open.
    pub(crate) fn finish(&mut self) {
        self.slices.finish();
    }

    pub(crate) fn delayed(&mut self, delay: Duration) {
        histogram::record(&mut self.delay, delay);
    }

    pub(crate) fn shook_hands(&mut self, took: Duration, resumed: bool, parameters: Option<String>) {
        self.handshakes += 1;
        if let Some(parameters) = parameters {
            *self.tls_parameters.entry(parameters).or_default() += 1;
        }
        self.resumed += u64::from(resumed);
        histogram::record(&mut self.handshake, took);
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

    /// From sending to the end of the answer, in nanoseconds.
    pub fn service(&self) -> &Latencies {
        &self.service
    }

    /// How long TLS handshakes took, in nanoseconds.
    pub fn handshake(&self) -> &Latencies {
        &self.handshake
    }

    /// The generator's own lateness, in nanoseconds.
    pub fn delay(&self) -> &Latencies {
        &self.delay
    }

    /// The generator's own lateness below which this share (0 to 1) of the requests lies.
    pub fn delay_quantile(&self, share: f64) -> Duration {
        histogram::quantile(&self.delay, share)
    }

    /// The load over time.
    pub fn slices(&self) -> &Slices {
        &self.slices
    }

    /// Requests a second that ended.
    pub fn rate(&self) -> f64 {
        self.total.requests() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Share of the time that the generator's threads were on CPU; 1 means that they could do no more.
    pub fn busy_share(&self) -> f64 {
        self.share_of_time(self.busy)
    }

    /// Share of the time that the generator's threads waited for a core.
    pub fn waiting_share(&self) -> f64 {
        self.share_of_time(self.waiting)
    }

    fn share_of_time(&self, time: Duration) -> f64 {
        time.as_secs_f64() / (self.elapsed.as_secs_f64() * f64::from(self.workers)).max(1e-9)
    }
}
