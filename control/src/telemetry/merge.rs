//! What all workers have counted, together: read when somebody asks, out of the memory that the workers write.
//!
//! A data plane that is started again goes on counting in the same memory, so that no total goes down. Only one of another
//! version, whose memory this control could not read, is replaced by one that counts from nothing.

use std::collections::BTreeMap;

use ringmesh_dataplane::outcome::MAX_REASONS;
use ringmesh_dataplane::proxy::grpc::STATUSES;
use ringmesh_dataplane::telemetry::Reader;
use ringmesh_dataplane::telemetry::layout::{self, Kind, gauge, header, listener, request, service};
use ringmesh_dataplane::telemetry::reader::Counts;

use super::histogram::Histogram;

/// Response classes: no response, informational, then 2xx to 5xx.
pub const CLASSES: usize = 6;

/// Causes of a refused handshake that a block has words for.
pub const MAX_CAUSES: usize = layout::HISTOGRAM - listener::REFUSED;
const _: () = assert!(listener::REFUSED == service::REFUSED, "one bound serves both");

/// Reads the telemetry memory of one workload's data plane.
#[derive(Default)]
pub struct Merge {
    reader: Option<Reader>,
}

/// Everything counted, summed over workers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// Requests, by listener, route, rule and service.
    pub requests: BTreeMap<[String; 4], Requests>,
    /// Connections of listeners, by name.
    pub listeners: BTreeMap<String, Listener>,
    /// Connections to services, by name.
    pub services: BTreeMap<String, Service>,
    /// The workers, in order.
    pub workers: Vec<Worker>,
    /// How often a data plane has started.
    pub starts: u64,
    /// Series that have a place in the directory.
    pub series: u64,
    /// Listeners that no worker accepts on.
    pub deaf: u64,
}

/// Requests of one series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requests {
    /// By response class; see [`layout::request::CLASS`].
    pub classes: [u64; CLASSES],
    /// By number of the [`ringmesh_dataplane::outcome::Reason`].
    pub reasons: [u64; MAX_REASONS],
    /// Bytes of request bodies.
    pub request_bytes: u64,
    /// Bytes of response bodies.
    pub response_bytes: u64,
    /// Attempts beyond the first.
    pub retries: u64,
    /// gRPC calls by status.
    pub grpc: [u64; STATUSES],
    /// Durations.
    pub durations: Histogram,
}

/// Connections of one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Accepted.
    pub accepted: u64,
    /// Closed.
    pub closed: u64,
    /// Handshakes that ended well.
    pub handshakes: u64,
    /// Handshakes refused, by number of the cause.
    pub refused: [u64; MAX_CAUSES],
    /// Bytes received on opaque connections.
    pub received_bytes: u64,
    /// Bytes sent on opaque connections.
    pub sent_bytes: u64,
    /// Ends by number of the [`ringmesh_dataplane::outcome::Reason`].
    pub reasons: [u64; MAX_REASONS],
}

/// Connections to one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Opened.
    pub opened: u64,
    /// Connects that failed.
    pub connect_failed: u64,
    /// Requests that an unused connection was found for.
    pub reused: u64,
    /// Handshakes that ended well.
    pub handshakes: u64,
    /// Handshakes refused, by number of the cause.
    pub refused: [u64; MAX_CAUSES],
    /// Endpoints that probes have found healthy, of the live data plane.
    pub healthy: u64,
    /// Endpoints that probes have found unhealthy, of the live data plane.
    pub unhealthy: u64,
    /// Probes that found an endpoint to serve.
    pub probes_passed: u64,
    /// Probes that did not.
    pub probes_failed: u64,
}

/// One worker. The first four are as they stand; the rest are counted over all starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Worker {
    /// Open downstream connections.
    pub connections: u64,
    /// Requests in flight.
    pub in_flight: u64,
    /// Version of the tables in use.
    pub version: u64,
    /// 1 on epoll, 0 on io_uring.
    pub epoll: u64,
    /// Tasks that panicked.
    pub panics: u64,
    /// Events dropped because nobody drained them.
    pub events_dropped: u64,
    /// Connections taken over from other workers.
    pub handed_over: u64,
    /// Accepts that failed for want of descriptors or memory.
    pub accept_failed: u64,
    /// Upstream connections opened.
    pub upstream_opened: u64,
}

impl Merge {
    /// From now on `reader` is the data plane's memory.
    pub fn attach(&mut self, reader: Reader) {
        self.reader = Some(reader);
    }

    /// Whether a data plane's memory is attached.
    pub fn is_attached(&self) -> bool {
        self.reader.is_some()
    }

    /// Reads everything.
    pub fn totals(&self) -> Totals {
        self.reader.as_ref().map(Totals::of).unwrap_or_default()
    }
}

impl Totals {
    fn of(reader: &Reader) -> Self {
        let mut totals = Self {
            workers: (0..reader.workers()).map(|number| Worker::of(reader, number)).collect(),
            starts: reader.header(header::STARTS),
            series: reader.header(header::TAKEN),
            deaf: reader.header(header::DEAF),
            ..Self::default()
        };
        for counts in reader.each_series() {
            totals.add_series(counts);
        }
        totals
    }

    /// Adds one series. Two with the same labels (long ones are cut) become one, or the page could not be parsed.
    fn add_series(&mut self, counts: Counts) {
        let Counts { kind, mut labels, counters, histogram } = counts;
        // Labels that were cut off are empty.
        labels.resize(kind.labels().len(), String::new());
        let at = |word: usize| counters.get(word).copied().unwrap_or(0);
        match kind {
            Kind::Request => {
                let labels = labels.try_into().expect("resized to the four labels of a request");
                let requests = Requests {
                    classes: std::array::from_fn(|class| at(request::CLASS + class)),
                    reasons: std::array::from_fn(|reason| at(request::REASON + reason)),
                    request_bytes: at(request::REQUEST_BYTES),
                    response_bytes: at(request::RESPONSE_BYTES),
                    retries: at(request::RETRIES),
                    grpc: std::array::from_fn(|status| at(request::GRPC + status)),
                    durations: Histogram::new(&histogram, at(request::DURATION_SUM)),
                };
                self.requests.entry(labels).and_modify(|sum| sum.add(&requests)).or_insert(requests);
            }
            Kind::Listener => {
                let listener = Listener {
                    accepted: at(listener::ACCEPTED),
                    closed: at(listener::CLOSED),
                    handshakes: at(listener::HANDSHAKES),
                    refused: std::array::from_fn(|cause| at(listener::REFUSED + cause)),
                    received_bytes: at(listener::RECEIVED_BYTES),
                    sent_bytes: at(listener::SENT_BYTES),
                    reasons: std::array::from_fn(|reason| at(listener::REASON + reason)),
                };
                let name = labels.swap_remove(0);
                self.listeners.entry(name).and_modify(|sum| sum.add(&listener)).or_insert(listener);
            }
            Kind::Service => {
                let service = Service {
                    opened: at(service::OPENED),
                    connect_failed: at(service::CONNECT_FAILED),
                    reused: at(service::REUSED),
                    handshakes: at(service::HANDSHAKES),
                    refused: std::array::from_fn(|cause| at(service::REFUSED + cause)),
                    healthy: level(at(service::HEALTHY)),
                    unhealthy: level(at(service::UNHEALTHY)),
                    probes_passed: at(service::PROBES_PASSED),
                    probes_failed: at(service::PROBES_FAILED),
                };
                let name = labels.swap_remove(0);
                self.services.entry(name).and_modify(|sum| sum.add(&service)).or_insert(service);
            }
        }
    }

    /// Open connections of the heaviest worker over those of the mean one; 1 if there are none.
    pub fn skew(&self) -> f64 {
        let connections = || self.workers.iter().map(|worker| worker.connections as f64);
        let (heaviest, total) = (connections().fold(0.0, f64::max), connections().sum::<f64>());
        if total == 0.0 { 1.0 } else { heaviest * self.workers.len() as f64 / total }
    }
}

impl Worker {
    fn of(reader: &Reader, number: u16) -> Self {
        let gauge = |gauge| reader.gauge(number, gauge);
        Self {
            connections: level(gauge(gauge::CONNECTIONS)),
            in_flight: level(gauge(gauge::IN_FLIGHT)),
            version: gauge(gauge::VERSION),
            epoll: gauge(gauge::EPOLL),
            panics: gauge(gauge::PANICS),
            events_dropped: gauge(gauge::EVENTS_DROPPED),
            handed_over: gauge(gauge::HANDED_OVER),
            accept_failed: gauge(gauge::ACCEPT_FAILED),
            upstream_opened: gauge(gauge::UPSTREAM_OPENED),
        }
    }
}

impl Requests {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.classes.iter().fold(0, |sum, count| sum.wrapping_add(*count))
    }

    fn add(&mut self, other: &Self) {
        sum_all(&mut self.classes, &other.classes);
        sum_all(&mut self.reasons, &other.reasons);
        sum(&mut self.request_bytes, other.request_bytes);
        sum(&mut self.response_bytes, other.response_bytes);
        sum(&mut self.retries, other.retries);
        sum_all(&mut self.grpc, &other.grpc);
        self.durations.add(&other.durations);
    }
}

impl Listener {
    fn add(&mut self, other: &Self) {
        sum(&mut self.accepted, other.accepted);
        sum(&mut self.closed, other.closed);
        sum(&mut self.handshakes, other.handshakes);
        sum_all(&mut self.refused, &other.refused);
        sum(&mut self.received_bytes, other.received_bytes);
        sum(&mut self.sent_bytes, other.sent_bytes);
        sum_all(&mut self.reasons, &other.reasons);
    }
}

impl Service {
    /// Whether its endpoints are asked, or were.
    pub fn is_probed(&self) -> bool {
        self.probes_passed != 0 || self.probes_failed != 0
    }

    fn add(&mut self, other: &Self) {
        sum(&mut self.opened, other.opened);
        sum(&mut self.connect_failed, other.connect_failed);
        sum(&mut self.reused, other.reused);
        sum(&mut self.healthy, other.healthy);
        sum(&mut self.unhealthy, other.unhealthy);
        sum(&mut self.probes_passed, other.probes_passed);
        sum(&mut self.probes_failed, other.probes_failed);
        sum(&mut self.handshakes, other.handshakes);
        sum_all(&mut self.refused, &other.refused);
    }
}

/// Wraps: the memory is another process' to write, and no content of it may panic here.
fn sum(total: &mut u64, amount: u64) {
    *total = total.wrapping_add(amount);
}

fn sum_all(totals: &mut [u64], amounts: &[u64]) {
    totals.iter_mut().zip(amounts).for_each(|(total, amount)| sum(total, *amount));
}

/// A gauge that goes up and down; one that fell below nothing is nothing.
fn level(gauge: u64) -> u64 {
    if gauge > u64::MAX / 2 { 0 } else { gauge }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Dataplane;
    use super::*;

    const WEB: [&str; 4] = ["inbound", "web", "0", "local"];

    fn served(merge: &Merge) -> u64 {
        merge.totals().requests.values().map(Requests::count).sum()
    }

    #[test]
    fn counts_of_all_workers_are_summed_and_histograms_with_them() {
        let mut dataplane = Dataplane::start();
        (0..100).for_each(|n| dataplane.serve(n % 2, WEB, n as u64 * 1000));
        let mut merge = Merge::default();
        merge.attach(dataplane.reader());
        let totals = merge.totals();
        let requests = &totals.requests[&WEB.map(str::to_owned)];
        assert_eq!((requests.count(), requests.classes[2], requests.reasons[0]), (100, 100, 100));
        assert_eq!(requests.durations.count(), 100);
        assert_eq!(requests.durations.sum_seconds(), 4.95);
        assert_eq!(totals.requests.len(), 1, "what nobody has counted is not there");
    }

    #[test]
    fn totals_go_on_when_a_data_plane_starts_again_on_the_same_memory() {
        let mut dataplane = Dataplane::start();
        let mut merge = Merge::default();
        merge.attach(dataplane.reader());
        dataplane.serve(0, WEB, 10);
        assert_eq!((served(&merge), merge.totals().starts), (1, 1));
        let mut dataplane = dataplane.restart();
        assert_eq!(served(&merge), 1);
        dataplane.serve(0, WEB, 10);
        dataplane.serve(1, ["inbound", "new", "0", "local"], 10);
        assert_eq!((served(&merge), merge.totals().starts), (3, 2));
    }

    #[test]
    fn what_probes_have_found_is_that_of_the_last_start_alone() {
        let find = |dataplane: &mut Dataplane, healthy: u64, unhealthy: u64| {
            let series = dataplane.place(Kind::Service, "local");
            dataplane.workers[0].add(series, service::HEALTHY, healthy);
            dataplane.workers[0].add(series, service::UNHEALTHY, unhealthy);
            dataplane.workers[0].add(series, service::PROBES_PASSED, 10);
        };
        let found = |merge: &Merge| {
            let local = &merge.totals().services["local"];
            (local.healthy, local.unhealthy, local.probes_passed)
        };
        let mut merge = Merge::default();
        let mut dataplane = Dataplane::start();
        merge.attach(dataplane.reader());
        find(&mut dataplane, 3, 1);
        assert_eq!(found(&merge), (3, 1, 10));
        // One that starts again on the same memory knows nothing yet.
        let mut dataplane = dataplane.restart();
        assert_eq!(found(&merge), (0, 0, 10));
        find(&mut dataplane, 1, 2);
        assert_eq!(found(&merge), (1, 2, 20));
    }

    #[test]
    fn series_whose_long_labels_were_cut_are_one() {
        let mut dataplane = Dataplane::start();
        let long = "r".repeat(300);
        dataplane.serve(0, ["inbound", &long, "0", "a"], 10);
        dataplane.serve(1, ["inbound", &long, "1", "b"], 10);
        let mut merge = Merge::default();
        merge.attach(dataplane.reader());
        assert_eq!(served(&merge), 2);
        let cut = ["inbound", &long[..layout::MAX_LABEL_BYTES - "inbound\0".len()], "", ""].map(str::to_owned);
        assert_eq!(merge.totals().requests.into_keys().collect::<Vec<_>>(), [cut], "what was cut off is empty");
    }

    #[test]
    fn a_gauge_below_nothing_is_nothing() {
        let mut merge = Merge::default();
        let dataplane = Dataplane::start();
        dataplane.workers[0].gauge_sub(gauge::IN_FLIGHT, 1);
        merge.attach(dataplane.reader());
        assert_eq!(merge.totals().workers[0].in_flight, 0);
        assert_eq!(merge.totals().skew(), 1.0);
    }
}
