//! `/metrics`: which families there are, and where their numbers come from. In the order of the stages.
//!
//! A sum over a family's labels is always right: a request is counted once in `ringmesh_request_total` (by class) and once
//! in `ringmesh_request_outcome_total` (by reason), a handshake once in `ringmesh_tls_handshakes_total`.

use std::borrow::Cow;
use std::io;
use std::time::SystemTime;

use ringmesh_dataplane::outcome::{MAX_REASONS, Reason};
use ringmesh_dataplane::proxy::grpc::STATUSES;
use ringmesh_dataplane::telemetry::event::Direction;
use ringmesh_dataplane::telemetry::layout::MAX_SERIES;
use ringmesh_dataplane::tls::Refused;

use crate::state::{Phase, State};
use crate::telemetry::events::Tally;
use crate::telemetry::exposition::{Description, Family, Format, Label, Page, Type, Unit, Value};
use crate::telemetry::handshakes::direction_word;
use crate::telemetry::merge::{CLASSES, MAX_CAUSES, Requests, Totals, Worker};
use crate::telemetry::processes::Usage;
use crate::telemetry::time::unix_seconds;

/// Everything that a page shows, read at one moment.
pub struct Scrape {
    /// What the workers have counted.
    pub totals: Totals,
    /// What became of their events.
    pub events: Tally,
    /// What control knows.
    pub state: State,
    /// What the processes take, by their names.
    pub processes: [(&'static str, Usage); 2],
    /// Tasks and threads of control that panicked.
    pub panics: u64,
    /// The moment.
    pub now: SystemTime,
}

/// Writes the page to `out`.
///
/// # Errors
/// If it cannot be written there.
pub fn write(scrape: &Scrape, format: Format, out: &mut dyn io::Write) -> io::Result<()> {
    let mut page = Page::new(format, out);
    listeners(&mut page, &scrape.totals);
    handshakes(&mut page, &scrape.totals);
    health(&mut page, &scrape.totals);
    upstream(&mut page, &scrape.totals);
    requests(&mut page, &scrape.totals);
    workers(&mut page, &scrape.totals);
    dataplane(&mut page, scrape);
    config(&mut page, scrape);
    processes(&mut page, scrape);
    control(&mut page, scrape);
    page.finish()
}

const fn counter(name: &'static str, help: &'static str) -> Description {
    Description { kind: Type::Counter, name, unit: Unit::None, help }
}

const fn byte_counter(name: &'static str, help: &'static str) -> Description {
    Description { kind: Type::Counter, name, unit: Unit::Bytes, help }
}

const fn gauge(name: &'static str, unit: Unit, help: &'static str) -> Description {
    Description { kind: Type::Gauge, name, unit, help }
}

const fn fact(name: &'static str, help: &'static str) -> Description {
    Description { kind: Type::Fact, name, unit: Unit::None, help }
}

fn listeners(page: &mut Page<'_>, totals: &Totals) {
    let accepted = counter("ringmesh_listener_connections_accepted", "Connections accepted.");
    let mut family = page.family(&accepted);
    for (name, listener) in &totals.listeners {
        family.sample(&[("listener", name)], listener.accepted);
    }
    let closed = counter("ringmesh_listener_connections_closed", "Connections closed.");
    let mut family = page.family(&closed);
    for (name, listener) in &totals.listeners {
        family.sample(&[("listener", name)], listener.closed);
    }
    let ended = counter(
        "ringmesh_listener_connections_outcome",
        "Connections that ended for a reason of their own, opaque ones among them, by reason.",
    );
    let mut family = page.family(&ended);
    for (name, listener) in &totals.listeners {
        by_reason(&mut family, &[("listener", name)], &listener.reasons);
    }
    let received =
        byte_counter("ringmesh_listener_received_bytes", "Bytes received from clients on opaque connections.");
    let mut family = page.family(&received);
    for (name, listener) in &totals.listeners {
        family.sample(&[("listener", name)], listener.received_bytes);
    }
    let sent = byte_counter("ringmesh_listener_sent_bytes", "Bytes sent to clients on opaque connections.");
    let mut family = page.family(&sent);
    for (name, listener) in &totals.listeners {
        family.sample(&[("listener", name)], listener.sent_bytes);
    }
}

fn handshakes(page: &mut Page<'_>, totals: &Totals) {
    let handshakes = counter(
        "ringmesh_tls_handshakes",
        "Handshakes by result: ok, or why they were refused. Inbound ones by listener, outbound ones by service.",
    );
    let mut family = page.family(&handshakes);
    for (name, listener) in &totals.listeners {
        by_result(&mut family, Direction::Inbound, name, listener.handshakes, &listener.refused);
    }
    for (name, service) in &totals.services {
        by_result(&mut family, Direction::Outbound, name, service.handshakes, &service.refused);
    }
}

/// Only services that are asked have these.
fn health(page: &mut Page<'_>, totals: &Totals) {
    let asked = || totals.services.iter().filter(|(_, service)| service.is_probed());
    let endpoints = gauge("ringmesh_health_endpoints", Unit::None, "Endpoints by what probes have found.");
    let mut family = page.family(&endpoints);
    for (name, service) in asked() {
        for (verdict, count) in [("healthy", service.healthy), ("unhealthy", service.unhealthy)] {
            family.sample(&[("service", name), ("health", verdict)], count);
        }
    }
    let probes = counter("ringmesh_health_probes", "Probes of endpoints, by result.");
    let mut family = page.family(&probes);
    for (name, service) in asked() {
        for (result, count) in [("passed", service.probes_passed), ("failed", service.probes_failed)] {
            family.sample(&[("service", name), ("result", result)], count);
        }
    }
}

fn upstream(page: &mut Page<'_>, totals: &Totals) {
    let opened = counter("ringmesh_upstream_connections_opened", "Connections opened to endpoints.");
    let mut family = page.family(&opened);
    for (name, service) in &totals.services {
        family.sample(&[("service", name)], service.opened);
    }
    let failed = counter("ringmesh_upstream_connections_failed", "Connects to endpoints that failed.");
    let mut family = page.family(&failed);
    for (name, service) in &totals.services {
        family.sample(&[("service", name)], service.connect_failed);
    }
    let reused = counter("ringmesh_pool_connections_reused", "Requests that an unused connection was found for.");
    let mut family = page.family(&reused);
    for (name, service) in &totals.services {
        family.sample(&[("service", name)], service.reused);
    }
}

fn requests(page: &mut Page<'_>, totals: &Totals) {
    let by_class = counter("ringmesh_request", "Requests that ended, by response class; none: no response.");
    let mut family = page.family(&by_class);
    for (labels, requests) in &totals.requests {
        for (class, count) in CLASS_WORDS.iter().zip(requests.classes) {
            // An interim response ends no request (RFC 9110 section 15.2), so there is none of that class but by mistake.
            if count != 0 || *class != "1xx" {
                family.sample(&with(labels, ("class", class)), count);
            }
        }
    }
    let by_outcome = counter("ringmesh_request_outcome", "Requests that ended, by reason.");
    let mut family = page.family(&by_outcome);
    for (labels, requests) in &totals.requests {
        by_reason(&mut family, &request_labels(labels), &requests.reasons);
    }
    let duration = Description {
        kind: Type::Histogram,
        name: "ringmesh_request_duration_seconds",
        unit: Unit::Seconds,
        help: "From the end of the request head to the end of the response.",
    };
    let mut family = page.family(&duration);
    for (labels, requests) in &totals.requests {
        family.histogram(&request_labels(labels), &requests.durations);
    }
    let by_status = counter("ringmesh_request_grpc", "gRPC calls that ended, by status: OK, or what went wrong.");
    let mut family = page.family(&by_status);
    for (labels, requests) in &totals.requests {
        for (status, count) in GRPC_WORDS.iter().zip(requests.grpc).filter(|(_, count)| *count != 0) {
            family.sample(&with(labels, ("grpc_status", status)), count);
        }
    }
    for (description, value) in REQUEST_COUNTERS {
        let mut family = page.family(&description);
        for (labels, requests) in &totals.requests {
            family.sample(&request_labels(labels), value(requests));
        }
    }
}

/// A counter's description, and how it is read off.
type RequestCounter = (Description, fn(&Requests) -> u64);

const REQUEST_COUNTERS: [RequestCounter; 3] = [
    (byte_counter("ringmesh_request_body_bytes", "Bytes of request bodies passed on."), |requests| {
        requests.request_bytes
    }),
    (byte_counter("ringmesh_response_body_bytes", "Bytes of response bodies passed on."), |requests| {
        requests.response_bytes
    }),
    (counter("ringmesh_request_retries", "Attempts beyond the first."), |requests| requests.retries),
];

/// Words of the response classes, in the order of their numbers.
const CLASS_WORDS: [&str; CLASSES] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// The names of gRPC's statuses, in the order of their numbers (gRPC's `statuscodes.md`).
pub(super) const GRPC_WORDS: [&str; STATUSES] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// A worker's description, and how it is read off.
type WorkerNumber = (Description, fn(&Worker) -> u64);

const WORKER_NUMBERS: [WorkerNumber; 8] = [
    (gauge("ringmesh_worker_connections", Unit::None, "Open downstream connections."), |worker| worker.connections),
    (gauge("ringmesh_worker_requests_in_flight", Unit::None, "Requests in flight."), |worker| worker.in_flight),
    (gauge("ringmesh_worker_config_version", Unit::None, "Version of the config in use."), |worker| worker.version),
    (counter("ringmesh_worker_connections_taken_over", "Connections taken over from other workers."), |worker| {
        worker.handed_over
    }),
    (counter("ringmesh_worker_accepts_failed", "Accepts that failed for want of descriptors or memory."), |worker| {
        worker.accept_failed
    }),
    (counter("ringmesh_worker_upstream_connections_opened", "Connections opened to endpoints."), |worker| {
        worker.upstream_opened
    }),
    (counter("ringmesh_worker_panics", "Tasks that panicked; each ended one connection."), |worker| worker.panics),
    (counter("ringmesh_worker_events_dropped", "Events dropped because nobody drained them."), |worker| {
        worker.events_dropped
    }),
];

fn workers(page: &mut Page<'_>, totals: &Totals) {
    for (description, value) in WORKER_NUMBERS {
        let mut family = page.family(&description);
        for (number, worker) in totals.workers.iter().enumerate() {
            family.sample(&[("worker", &number.to_string())], value(worker));
        }
    }
    let skew = gauge(
        "ringmesh_worker_skew_ratio",
        Unit::Ratio,
        "Open connections of the heaviest worker over those of the mean one.",
    );
    page.family(&skew).sample(&[], totals.skew());
}

fn dataplane(page: &mut Page<'_>, scrape: &Scrape) {
    let Scrape { totals, state, .. } = scrape;
    let up = gauge("ringmesh_dataplane_up", Unit::None, "1 if a data plane serves and answers, else 0.");
    page.family(&up).sample(&[], u64::from(state.dataplane.phase == Phase::Running));
    let starts = counter("ringmesh_dataplane_starts", "How often a data plane has started.");
    page.family(&starts).sample(&[], totals.starts);
    let deaf = gauge(
        "ringmesh_dataplane_listeners_deaf",
        Unit::None,
        "Listeners that no worker accepts on, for want of descriptors.",
    );
    page.family(&deaf).sample(&[], totals.deaf);
    let driver = fact("ringmesh_driver", "The I/O driver in use, and why it is not the better one.");
    let mut family = page.family(&driver);
    if let Some(driver) = &state.dataplane.driver {
        let reason = state.dataplane.driver_reason.as_deref().unwrap_or_default();
        family.sample(&[("driver", driver), ("reason", reason)], 1);
    }
    let series = gauge("ringmesh_telemetry_series", Unit::None, "Series that have a place of their own.");
    page.family(&series).sample(&[], totals.series);
    let max =
        gauge("ringmesh_telemetry_series_max", Unit::None, "Places for series; those beyond are counted as `other`.");
    page.family(&max).sample(&[], MAX_SERIES as u64);
}

fn config(page: &mut Page<'_>, scrape: &Scrape) {
    let config = &scrape.state.config;
    let version = gauge("ringmesh_config_version", Unit::None, "Version of the config that is wanted.");
    page.family(&version).sample(&[], config.version);
    let live =
        gauge("ringmesh_config_live_version", Unit::None, "Version of the config that all workers use; 0: none.");
    page.family(&live).sample(&[], config.live_version);
    let problems =
        gauge("ringmesh_config_problems", Unit::None, "How many things are wrong with the config file as it is now.");
    page.family(&problems).sample(&[], config.problems.len() as u64);
    let reloads = counter("ringmesh_config_reloads", "How often the config file was read anew: taken, or refused.");
    page.family(&reloads)
        .sample(&[("result", "taken")], config.reloads)
        .sample(&[("result", "refused")], config.refused_reloads);
    let read = gauge(
        "ringmesh_config_last_success_timestamp_seconds",
        Unit::Seconds,
        "When the config file was last read without problems.",
    );
    page.family(&read).sample(&[], config.read_at);
    let expiry =
        gauge("ringmesh_identity_expiry_timestamp_seconds", Unit::Seconds, "When the certificate in use ends.");
    let left =
        gauge("ringmesh_identity_validity_seconds", Unit::Seconds, "How long the certificate in use is still valid.");
    let now = unix_seconds(scrape.now);
    let identity = scrape.state.identity.as_ref();
    let mut family = page.family(&expiry);
    if let Some(identity) = identity {
        family.sample(&[("id", &identity.id)], identity.expires_at);
    }
    let mut family = page.family(&left);
    if let Some(identity) = identity {
        family.sample(&[("id", &identity.id)], identity.expires_at as f64 - now.floor());
    }
    let age = gauge("ringmesh_dns_answer_age_seconds", Unit::Seconds, "Age of an endpoint name's last answer.");
    let mut family = page.family(&age);
    for answer in &scrape.state.names {
        if let Some(answered) = answer.answered_at {
            family.sample(&[("name", &answer.name)], (now.floor() - answered as f64).max(0.0));
        }
    }
    let failing =
        gauge("ringmesh_dns_failing", Unit::None, "1 if the last question about a name was not answered, else 0.");
    let mut family = page.family(&failing);
    for answer in &scrape.state.names {
        family.sample(&[("name", &answer.name)], u64::from(answer.error.is_some()));
    }
}

/// A number of a process, and how it is read off.
type ProcessNumber = (Description, fn(&Usage) -> Option<Value>);

/// Under the names that Prometheus' own client libraries have for them.
const PROCESS_NUMBERS: [ProcessNumber; 6] = [
    (
        Description {
            kind: Type::Counter,
            name: "process_cpu_seconds",
            unit: Unit::Seconds,
            help: "User and system time on processors.",
        },
        |usage| usage.cpu_seconds.map(Value::Number),
    ),
    (gauge("process_resident_memory_bytes", Unit::Bytes, "Resident memory."), |usage| {
        usage.resident_bytes.map(Value::Count)
    }),
    (gauge("process_virtual_memory_bytes", Unit::Bytes, "Virtual memory."), |usage| {
        usage.virtual_bytes.map(Value::Count)
    }),
    (gauge("process_open_fds", Unit::None, "Open file descriptors."), |usage| usage.open_fds.map(Value::Count)),
    (gauge("process_max_fds", Unit::None, "Most file descriptors that may be open."), |usage| {
        usage.max_fds.map(Value::Count)
    }),
    (gauge("process_start_time_seconds", Unit::Seconds, "When the process started, since the Unix epoch."), |usage| {
        usage.start_seconds.map(Value::Number)
    }),
];

fn processes(page: &mut Page<'_>, scrape: &Scrape) {
    for (description, value) in PROCESS_NUMBERS {
        let mut family = page.family(&description);
        for (name, usage) in &scrape.processes {
            if let Some(value) = value(usage) {
                family.sample(&[("process", name)], value);
            }
        }
    }
}

fn control(page: &mut Page<'_>, scrape: &Scrape) {
    let Scrape { state, events, panics, .. } = scrape;
    let start = gauge("ringmesh_control_start_time_seconds", Unit::Seconds, "When this control process started.");
    page.family(&start).sample(&[], state.control.started_at);
    let epoch = gauge("ringmesh_control_epoch", Unit::None, "Counts the controls of this instance.");
    page.family(&epoch).sample(&[], state.control.epoch);
    let crashed = counter("ringmesh_control_panics", "Threads and tasks of this control process that panicked.");
    page.family(&crashed).sample(&[], *panics);
    let read = counter("ringmesh_control_events", "Events of the data plane that were read.");
    page.family(&read).sample(&[], events.read);
    let lost =
        counter("ringmesh_control_log_lines_lost", "Access log lines that could not be written, or not fast enough.");
    page.family(&lost).sample(&[], events.lines_lost);
    let malformed = counter("ringmesh_control_events_malformed", "Events that could not be read.");
    page.family(&malformed).sample(&[], events.malformed);
    let workload = fact("ringmesh_workload", "Whose proxy this is.");
    page.family(&workload)
        .sample(&[("mesh", &state.mesh), ("workload", &state.workload), ("instance", &state.instance)], 1);
    let build = fact("ringmesh_build", "What runs.");
    page.family(&build).sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
}

/// One sample for each reason that has occurred, and `ok` from the start.
fn by_reason(family: &mut Family<'_, '_>, labels: &[Label<'_>], reasons: &[u64; MAX_REASONS]) {
    for (number, count) in (0_u8..).zip(reasons) {
        if *count == 0 && number != Reason::Ok as u8 {
            continue;
        }
        let word: Cow<'_, str> = match Reason::from_number(number) {
            Some(reason) => reason.label().into(),
            None => format!("reason_{number}").into(),
        };
        let labels: Vec<Label<'_>> = labels.iter().copied().chain([("reason", &*word)]).collect();
        family.sample(&labels, *count);
    }
}

/// One sample for `ok`, and one for each cause that has occurred; nothing where there was no handshake at all.
fn by_result(family: &mut Family<'_, '_>, direction: Direction, name: &str, ok: u64, refused: &[u64; MAX_CAUSES]) {
    if ok == 0 && refused.iter().all(|count| *count == 0) {
        return;
    }
    let side = ("side", direction_word(direction));
    family.sample(&[side, ("name", name), ("result", "ok")], ok);
    for (number, count) in refused.iter().enumerate().filter(|(_, count)| **count != 0) {
        family.sample(&[side, ("name", name), ("result", &cause(number))], *count);
    }
}

/// The word for the cause of a refused handshake; a number of a later version's data plane has none yet.
fn cause(number: usize) -> Cow<'static, str> {
    Refused::LABELS.get(number).map_or_else(|| format!("cause_{number}").into(), |label| (*label).into())
}

fn request_labels(labels: &[String; 4]) -> [Label<'_>; 4] {
    let [listener, route, rule, service] = labels;
    [("listener", listener), ("route", route), ("rule", rule), ("service", service)]
}

fn with<'a>(labels: &'a [String; 4], last: Label<'a>) -> [Label<'a>; 5] {
    let [listener, route, rule, service] = request_labels(labels);
    [listener, route, rule, service, last]
}

#[cfg(test)]
mod tests;
