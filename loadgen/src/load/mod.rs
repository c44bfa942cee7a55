//! The client side: threads of connections that send requests by a schedule, and count what comes of them.

mod connection;
mod count;
mod dial;
mod draft;
mod entry;
mod grpc;
mod http;
mod http2;
mod links;
mod seen;
mod tcp;
mod template;
mod websocket;
mod worker;

#[cfg(test)]
mod allocations;
#[cfg(test)]
mod virtual_time;

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ringmesh_ring::Instant;
use ringmesh_ring::net::Address;
use ringmesh_ring::setup::{self, Grant, Wish};
use ringmesh_ring::socket::raise_descriptor_limit;

use crate::arrival::Arrivals;
use crate::limits::{MAX_CONNECTIONS, MAX_ENTRIES, MAX_MESSAGE_BYTES, MAX_RATE, MAX_STREAMS, MAX_TARGETS};
use crate::proxy_header::ProxyHeader;
use crate::report::Report;
use crate::thread::{Worker, check_cores, core_of};
use crate::tls;

pub use crate::thread::Error;
pub(crate) use connection::Connection;
pub use dial::Target;
use draft::Draft;
pub use entry::{BodyCheck, BodyForm, Entry, Expect};
pub(crate) use entry::{Prepared, body_pattern, pattern_bytes};
pub use grpc::{Grpc, Kind};
pub use tcp::Exchange;
pub use template::Error as TemplateError;
pub use websocket::WebSocket;
#[cfg(test)]
pub(crate) use worker::Answered;
pub(crate) use worker::Ended;

/// How long a load takes when neither a duration nor a number of requests is given.
pub const DEFAULT_DURATION: Duration = Duration::from_secs(10);

/// Descriptors that the process needs beside those of connections, roughly: a few a thread, and what it was given.
const OWN_DESCRIPTORS: u64 = 32;

/// How many times, 100 ms apart, the threads publish what there is after somebody has looked.
const WANTED: u32 = 20;

/// How long after the last thread is ready all of them begin: time for each to see it.
const START_DELAY: Duration = Duration::from_millis(5);

/// How long a request may take.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// What to send where.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to connect; requests are spread over them by their weights.
    pub targets: Vec<Target>,
    /// TLS with them, if any.
    pub tls: Option<tls::Client>,
    /// Sent ahead on each connection, if any.
    pub proxy_header: Option<ProxyHeader>,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Connections over all threads.
    pub connections: usize,
    /// When requests are due.
    pub arrivals: Arrivals,
    /// For how long requests are sent before any is counted.
    pub warm_up: Duration,
    /// No new request after this time, the warm-up not included. None: until the load is ended or has sent its `requests`.
    pub duration: Option<Duration>,
    /// No more than so many requests.
    pub requests: Option<u64>,
    /// From the start of a request (its connecting included) to the end of its answer.
    pub timeout: Duration,
    /// Threads, each with its own ring.
    pub threads: usize,
    /// The cores that threads are kept on, one after the other; none: the kernel chooses.
    pub cores: Vec<usize>,
    /// Which I/O driver.
    pub driver: Wish,
}

/// What a load speaks.
#[derive(Clone, Debug)]
pub enum Protocol {
    /// HTTP/1.1 or HTTP/2.
    Http(Http),
    /// gRPC: the entries say which methods, by their paths; statuses are gRPC's.
    Grpc(Http, Grpc),
    /// WebSocket messages, for an echo.
    WebSocket(WebSocket),
    /// Bytes, for the echo or sink of [`crate::serve`].
    Tcp(Exchange),
}

/// What is particular to an HTTP load.
#[derive(Clone, Debug)]
pub struct Http {
    /// What is asked for; by their weights, in an even mix.
    pub entries: Vec<Entry>,
    /// Which version is spoken.
    pub version: Version,
    /// Whether connections are kept.
    pub reuse: Reuse,
    /// The response field whose values are counted, such as the version that answered.
    pub count_field: Option<String>,
}

/// The version of HTTP. Over TLS it is what ALPN offers, else known beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One request after the other.
    Http1,
    /// So many at once on each connection.
    Http2 {
        /// Streams of a connection.
        streams: usize,
    },
}

/// Whether a connection serves more than one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// It is kept until the server closes it.
    KeepAlive,
    /// It is closed after one, which says `Connection: close`.
    PerRequest,
}

impl Http {
    /// HTTP/1.1 on kept connections.
    pub fn new(entries: Vec<Entry>) -> Self {
        Self { entries, version: Version::Http1, reuse: Reuse::KeepAlive, count_field: None }
    }

    /// Requests that a connection carries at once.
    fn streams(&self) -> usize {
        match (self.version, self.reuse) {
            (Version::Http2 { streams }, Reuse::KeepAlive) => streams,
            (Version::Http1, _) | (_, Reuse::PerRequest) => 1,
        }
    }
}

impl Protocol {
    /// Requests that a connection carries at once.
    fn streams(&self) -> usize {
        match self {
            Self::Http(http) | Self::Grpc(http, _) => http.streams(),
            Self::WebSocket(_) | Self::Tcp(_) => 1,
        }
    }
}

impl Settings {
    /// HTTP on ten kept connections in a closed loop, on one thread and the best driver.
    pub fn http(address: Address, entries: Vec<Entry>) -> Self {
        Self::new(address, Protocol::Http(Http::new(entries)))
    }

    /// gRPC calls of one method on ten connections with one stream each, in a closed loop, on one thread and the best
    /// driver.
    pub fn grpc(address: Address, host: &str, method: &str, grpc: Grpc) -> Self {
        let entry = Entry { expect: Expect::Status(0), ..Entry::post(host, method, grpc.message.len() as u64) };
        let http = Http { version: Version::Http2 { streams: 1 }, ..Http::new(vec![entry]) };
        Self::new(address, Protocol::Grpc(http, grpc))
    }

    /// WebSocket round trips on ten connections in a closed loop, on one thread and the best driver.
    pub fn websocket(address: Address, host: &str, path: &str, bytes: u64) -> Self {
        let websocket = WebSocket { host: host.to_owned(), path: path.to_owned(), fields: Vec::new(), bytes };
        Self::new(address, Protocol::WebSocket(websocket))
    }

    /// TCP on ten connections in a closed loop, on one thread and the best driver.
    pub fn tcp(address: Address, exchange: Exchange) -> Self {
        Self::new(address, Protocol::Tcp(exchange))
    }

    fn new(address: Address, protocol: Protocol) -> Self {
        Self {
            targets: vec![address.into()],
            tls: None,
            proxy_header: None,
            protocol,
            connections: 10,
            arrivals: Arrivals::Closed,
            warm_up: Duration::ZERO,
            duration: Some(DEFAULT_DURATION),
            requests: None,
            timeout: DEFAULT_TIMEOUT,
            threads: 1,
            cores: Vec::new(),
            driver: Wish::Auto,
        }
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |message| Err(Error::Settings(message));
        if self.connections == 0 || self.connections > MAX_CONNECTIONS {
            return wrong("a load has 1 to 100,000 connections");
        }
        if self.targets.is_empty() || self.targets.len() > MAX_TARGETS {
            return wrong("a load has 1 to 1,000 targets");
        }
        if self.targets.iter().all(|target| target.weight == 0) {
            return wrong("the weights of the targets sum to nothing");
        }
        if self.threads == 0 || self.threads > self.connections {
            return wrong("a load has at least one thread, and no more threads than connections");
        }
        if let Arrivals::Open { rate, .. } = &self.arrivals
            && rate.is_constant().is_some_and(|per_second| !(0.001..=MAX_RATE).contains(&per_second))
        {
            return wrong("a rate lies between 0.001 and 10,000,000 requests a second");
        }
        if !(1..=MAX_STREAMS).contains(&self.protocol.streams()) {
            return wrong("a connection has 1 to 10,000 streams");
        }
        if let Protocol::Http(http) | Protocol::Grpc(http, _) = &self.protocol {
            if http.entries.is_empty() || http.entries.len() > MAX_ENTRIES {
                return wrong("an HTTP load has 1 to 1,000 entries");
            }
            if http.entries.iter().all(|entry| entry.weight == 0) {
                return wrong("the weights of the entries sum to nothing");
            }
            let examples = Self::examples(&http.entries)?;
            if examples.iter().any(|entry| !entry.is_sendable()) {
                return wrong(
                    "method, host, path and fields hold visible ASCII only, and no blanks in the first three",
                );
            }
            let security = http2::Security::of(self);
            if http.version != Version::Http1
                && examples.iter().any(|entry| http2::Call::new(entry, security, None).is_err())
            {
                return wrong("an entry is no HTTP/2 request: see its method, host, path and fields");
            }
        }
        if let Protocol::WebSocket(websocket) = &self.protocol {
            let request = Entry { fields: websocket.fields.clone(), ..Entry::get(&websocket.host, &websocket.path) };
            if !request.is_sendable() {
                return wrong("host, path and fields hold visible ASCII only, and no blanks in the first two");
            }
            if websocket.bytes > MAX_MESSAGE_BYTES {
                return wrong("a WebSocket message has at most 64 MiB");
            }
        }
        if let Protocol::Grpc(http, _) = &self.protocol
            && http.version == Version::Http1
        {
            return wrong("gRPC needs HTTP/2");
        }
        Ok(())
    }

    /// The entries with their placeholders filled.
    fn examples(entries: &[Entry]) -> Result<Vec<Entry>, TemplateError> {
        let example = |entry| Ok(Draft::new(entry)?.map_or_else(|| entry.clone(), |draft| draft.example()));
        entries.iter().map(example).collect()
    }

    /// Names of what is tallied apart.
    fn entry_names(&self) -> Vec<String> {
        match &self.protocol {
            Protocol::Http(http) | Protocol::Grpc(http, _) => {
                http.entries.iter().map(|entry| entry.name.clone()).collect()
            }
            Protocol::WebSocket(_) | Protocol::Tcp(_) => Vec::new(),
        }
    }
}

/// A load that is running. Dropping it ends the load without waiting.
pub struct Running {
    workers: Vec<Worker<Report>>,
    progress: Arc<Progress>,
}

/// What the threads tell each other and others: when to begin, and what there is so far.
pub(crate) struct Progress {
    reports: Vec<Mutex<Report>>,
    /// Threads whose connections are made.
    arrived: AtomicUsize,
    start: OnceLock<Instant>,
    /// Publications that somebody waits for. Publishing takes a thread's time, so it is done only while somebody looks.
    wanted: Vec<AtomicU32>,
}

impl Progress {
    pub(crate) fn new(threads: usize, empty: &Report) -> Self {
        Self {
            reports: (0..threads).map(|_| Mutex::new(empty.clone())).collect(),
            arrived: AtomicUsize::new(0),
            start: OnceLock::new(),
            wanted: (0..threads).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    pub(crate) fn publish(&self, worker: usize, report: &Report) {
        let wanted = &self.wanted[worker];
        match wanted.load(Ordering::Relaxed) {
            0 => return,
            left => wanted.store(left - 1, Ordering::Relaxed),
        }
        let mut published = self.reports[worker].lock().unwrap_or_else(PoisonError::into_inner);
        *published = report.snapshot();
    }

    /// One thread is ready to begin; the last one says when.
    pub(crate) fn arrive(&self) {
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.reports.len() {
            let delay = if self.reports.len() > 1 { START_DELAY } else { Duration::ZERO };
            self.start.get_or_init(|| Instant::now() + delay);
        }
    }

    /// When all threads begin; none while not all are ready.
    pub(crate) fn start(&self) -> Option<Instant> {
        self.start.get().copied()
    }
}

/// Starts a load.
///
/// # Errors
/// If the settings make no sense, or the kernel grants neither driver nor threads.
pub fn start(settings: Settings) -> Result<Running, Error> {
    start_on(&setup::probe(settings.driver)?, settings)
}

/// Starts a load on a driver that was granted before; `settings.driver` does not count.
///
/// # Errors
/// If the settings make no sense, or threads are not to be had.
pub fn start_on(grant: &Grant, settings: Settings) -> Result<Running, Error> {
    settings.check()?;
    check_cores(&settings.cores)?;
    if let Some(allowed) = raise_descriptor_limit().soft
        && allowed < settings.connections as u64 + OWN_DESCRIPTORS
    {
        return Err(Error::Descriptors { connections: settings.connections, allowed });
    }
    let empty = Report::new(&settings, settings.entry_names(), grant.driver.to_string());
    let progress = Arc::new(Progress::new(settings.threads, &empty));
    let workers = (0..settings.threads)
        .map(|index| {
            let arrival = worker::Arrival(progress.clone());
            let part = worker::Part { index, settings: settings.clone(), progress: progress.clone(), arrival };
            let report = empty.clone();
            let core = core_of(&settings.cores, index);
            Worker::start(format!("load-{index}"), core, grant.clone(), move |asked| worker::run(part, report, asked))
        })
        .collect::<Result<_, _>>()?;
    Ok(Running { workers, progress })
}

/// Runs a load to its end on this thread's time.
///
/// # Errors
/// As [`start`] and [`Running::wait`].
pub fn run(settings: Settings) -> Result<Report, Error> {
    start(settings)?.wait()
}

impl Running {
    /// What there is so far: at most 100 ms old if the last call is no longer ago than two seconds.
    pub fn progress(&self) -> Report {
        self.progress.wanted.iter().for_each(|wanted| wanted.store(WANTED, Ordering::Relaxed));
        let mut reports = self.progress.reports.iter().map(|report| {
            let report = report.lock().unwrap_or_else(PoisonError::into_inner);
            report.clone()
        });
        let mut sum = reports.next().expect("a load has at least one thread");
        for report in reports {
            sum.add(&report);
        }
        sum
    }

    /// Sends no more requests. Those under way end by themselves, or by the timeout.
    pub fn end(&mut self) {
        self.workers.iter_mut().for_each(Worker::end);
    }

    /// Whether all threads have ended.
    pub fn is_finished(&self) -> bool {
        self.workers.iter().all(Worker::is_finished)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// If a thread could not start its ring, or panicked.
    pub fn wait(mut self) -> Result<Report, Error> {
        let mut reports = std::mem::take(&mut self.workers).into_iter().map(Worker::join);
        let mut sum = reports.next().expect("a load has at least one thread")?;
        for report in reports {
            sum.add(&report?);
        }
        Ok(sum)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}
