//! Takes events out of the workers' rings: handshakes are kept and counted, requests become lines of the access log.
//!
//! A thread of its own writes the log, so that a reader who does not read (a full pipe) holds up neither the config nor
//! the admin pages. The rings go on being drained by whoever asks for handshakes; lines that find no room are dropped and
//! counted. Requests never wait for any of this.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ringmesh_dataplane::outcome::Reason;
use ringmesh_dataplane::telemetry::event::{Event, Reach, Unreadable};
use ringmesh_model::snapshot::AccessLog;
use ringmesh_ring::event_ring;

use super::access;
use super::handshakes::{Count, Handshakes, Record, direction_word};
use super::limits::{MAX_EVENTS_AT_ONCE, MAX_PENDING_BYTES, MAX_REFUSALS_LOGGED};

/// Where encoded events come from: a worker's ring.
pub trait Source: Send {
    /// Moves the next event into `into`, replacing what was there; false if there is none.
    fn pop(&mut self, into: &mut Vec<u8>) -> bool;
}

impl Source for event_ring::Consumer {
    fn pop(&mut self, into: &mut Vec<u8>) -> bool {
        Self::pop(self, into)
    }
}

/// The events of one workload's data planes. Clones share them.
#[derive(Clone, Default)]
pub struct Events(Arc<Mutex<Inbox>>);

/// What became of the events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Read.
    pub read: u64,
    /// Read, but not understood.
    pub malformed: u64,
    /// Log lines dropped for want of room, or because they could not be written.
    pub lines_lost: u64,
}

#[derive(Default)]
struct Inbox {
    sources: Vec<Box<dyn Source>>,
    /// Wakes the writer.
    wake: Option<OwnedFd>,
    event: Vec<u8>,
    handshakes: Handshakes,
    log: Log,
    lines: Vec<u8>,
    tally: Tally,
    warnings: Warnings,
    refusals: Warnings,
    hints: Warnings,
    unreadable: Warnings,
    reaches: Warnings,
}

/// Whether requests become lines.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Log {
    On,
    #[default]
    Off,
}

impl Events {
    /// From now on events come from these rings; `wake` is the eventfd that the writer waits on. What the rings before
    /// still hold is taken first.
    pub fn attach(&self, sources: Vec<Box<dyn Source>>, wake: OwnedFd) {
        let mut inbox = self.lock();
        inbox.drain();
        (inbox.sources, inbox.wake) = (sources, Some(wake));
    }

    /// Whether requests become lines from now on.
    pub fn set_log(&self, log: AccessLog) {
        self.lock().log = match log {
            AccessLog::On => Log::On,
            AccessLog::Off => Log::Off,
        };
    }

    /// Takes what is in the rings.
    pub fn drain(&self) {
        drop(self.drained());
    }

    /// Takes what is in the rings, and all lines that wait to be written; `lines` is empty and lends its storage.
    pub fn take_lines(&self, lines: &mut Vec<u8>) {
        let mut inbox = self.lock();
        inbox.drain();
        std::mem::swap(&mut inbox.lines, lines);
    }

    /// So many lines could not be written.
    pub fn count_lost(&self, lines: u64) {
        self.lock().tally.lines_lost += lines;
    }

    /// The newest handshakes, up to this moment.
    pub fn handshakes(&self) -> Vec<Record> {
        self.drained().handshakes.records()
    }

    /// All handshakes up to this moment, by who met whom.
    pub fn handshake_counts(&self) -> Vec<Count> {
        self.drained().handshakes.counts()
    }

    /// What became of the events up to now.
    pub fn tally(&self) -> Tally {
        self.lock().tally
    }

    /// Takes what is in the rings. Lines among it are out of shared memory then, so they are to be written at once: this
    /// process may be killed at any time, and the next one finds only what is still in the rings.
    fn drained(&self) -> MutexGuard<'_, Inbox> {
        let mut inbox = self.lock();
        inbox.drain();
        if let (Some(wake), false) = (&inbox.wake, inbox.lines.is_empty()) {
            // Only a counter at its very end refuses this, and then the writer is being woken already.
            let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
        }
        inbox
    }

    /// A thread that panicked in here leaves counts that are right up to its last event.
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbox {
    fn drain(&mut self) {
        let mut sources = std::mem::take(&mut self.sources);
        let mut event = std::mem::take(&mut self.event);
        for source in &mut sources {
            let mut left = MAX_EVENTS_AT_ONCE;
            while left > 0 && source.pop(&mut event) {
                left -= 1;
                self.add(&event);
            }
        }
        (self.sources, self.event) = (sources, event);
    }

    /// Another process wrote these bytes: they may be anything.
    fn add(&mut self, bytes: &[u8]) {
        self.tally.read += 1;
        match postcard::from_bytes(bytes) {
            Ok(Event::Access(access)) => self.write(|line| access::write_request(&access, line)),
            Ok(Event::Connection(connection)) => self.write(|line| access::write_connection(&connection, line)),
            Ok(Event::Hint(hint)) => {
                let now = Instant::now();
                let reason = Reason::from_number(hint.reason).filter(|_| self.hints.admit(now, "such connections"));
                if let Some(reason) = reason {
                    tracing::warn!(
                        target: "ringmesh::detect",
                        listener = hint.listener,
                        client = hint.client,
                        reason = reason.label(),
                        "client speaks something else: {}",
                        reason.words(),
                    );
                }
            }
            Ok(Event::Unreadable(unreadable)) => {
                if self.unreadable.admit(Instant::now(), "messages that cannot be read") {
                    tell_unreadable(&unreadable);
                }
            }
            Ok(Event::Reach(reach)) => {
                if self.reaches.admit(Instant::now(), "services that cannot be reached, or can again; see /metrics") {
                    tell_reach(&reach);
                }
            }
            Ok(Event::Handshake(handshake)) => {
                self.handshakes.add(&handshake);
                let refused = !handshake.refused.is_empty();
                if refused && self.warnings.admit(Instant::now(), "refused handshakes; see /handshakes") {
                    tracing::warn!(
                        target: "ringmesh::tls",
                        direction = direction_word(handshake.direction),
                        name = handshake.name,
                        remote = handshake.remote,
                        cause = handshake.refused,
                        "handshake refused: {}",
                        handshake.detail,
                    );
                }
            }
            Ok(Event::Refused(refused)) => {
                if self.refusals.admit(Instant::now(), "refused connections; see /metrics") {
                    tracing::warn!(
                        target: "ringmesh::listener",
                        listener = refused.listener,
                        remote = refused.remote,
                        cause = access::reason_word(refused.reason),
                        "connection refused: {}",
                        refused.detail,
                    );
                }
            }
            Err(_) => self.tally.malformed += 1,
        }
    }

    /// Appends a line if there is a log and room.
    fn write(&mut self, line: impl FnOnce(&mut Vec<u8>)) {
        if self.log == Log::Off {
            return;
        }
        let before = self.lines.len();
        line(&mut self.lines);
        if self.lines.len() > MAX_PENDING_BYTES {
            self.lines.truncate(before);
            self.tally.lines_lost += 1;
        }
    }
}

/// What is wrong with a message, for whoever wrote it. What strangers send is no reason to be woken; what an own service
/// answers is.
fn tell_unreadable(unreadable: &Unreadable<'_>) {
    let Unreadable { listener, service, from, reason, detail } = *unreadable;
    let reason = access::reason_word(reason);
    if service.is_empty() {
        tracing::info!(target: "ringmesh::codec", listener, client = from, reason, "request refused: {detail}");
    } else {
        tracing::warn!(
            target: "ringmesh::codec", listener, service, endpoint = from, reason,
            "the endpoint's answer cannot be understood: {detail}"
        );
    }
}

/// Whether a service can be reached: without a line a request, somebody has to learn that all of them fail.
fn tell_reach(reach: &Reach<'_>) {
    let Reach { service, endpoints, endpoint, reason } = *reach;
    if reason == Reason::Ok as u8 {
        tracing::info!(target: "ringmesh::upstream", service, endpoint, "the service can be reached again");
        return;
    }
    let reason = access::reason_word(reason);
    tracing::warn!(
        target: "ringmesh::upstream", service, endpoints, endpoint, reason,
        "no endpoint of the service can be reached; its requests fail until one can"
    );
}

/// Keeps a peer that does the same again and again from filling the log.
#[derive(Default)]
struct Warnings {
    second: Option<Instant>,
    logged: u32,
    held_back: u64,
}

impl Warnings {
    /// Whether one more may be logged; tells how many were not, once that second is over.
    fn admit(&mut self, now: Instant, what: &str) -> bool {
        let same = self.second.is_some_and(|second| now.saturating_duration_since(second).as_secs() == 0);
        if !same {
            if self.held_back > 0 {
                tracing::warn!(target: "ringmesh::telemetry", count = self.held_back, "there were more {what}");
            }
            *self = Self { second: Some(now), logged: 0, held_back: 0 };
        }
        let admitted = self.logged < MAX_REFUSALS_LOGGED;
        self.logged += u32::from(admitted);
        self.held_back += u64::from(!admitted);
        admitted
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::VecDeque;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use ringmesh_dataplane::telemetry::event::Handshake;
    use ringmesh_dataplane::telemetry::{self, layout};
    use ringmesh_ring::shared_memory::SharedMemory;
    use rustix::event::{EventfdFlags, eventfd};

    use super::super::access::tests::access;
    use super::super::handshakes::tests::handshake;
    use super::*;

    /// A ring that holds what a test puts into it.
    #[derive(Clone, Default)]
    pub(crate) struct Ring(Arc<Mutex<VecDeque<Vec<u8>>>>);

    impl Ring {
        pub(crate) fn push(&self, event: &Event<'_>) {
            self.push_bytes(postcard::to_stdvec(event).unwrap());
        }

        fn push_bytes(&self, bytes: Vec<u8>) {
            self.0.lock().unwrap().push_back(bytes);
        }
    }

    impl Source for Ring {
        fn pop(&mut self, into: &mut Vec<u8>) -> bool {
            let Some(event) = self.0.lock().unwrap().pop_front() else { return false };
            *into = event;
            true
        }
    }

    pub(in crate::telemetry) fn attached(ring: &Ring) -> Events {
        let events = Events::default();
        attach(&events, ring);
        events.set_log(AccessLog::On);
        events
    }

    pub(crate) fn attach(events: &Events, ring: &Ring) {
        events.attach(vec![Box::new(ring.clone())], wake());
    }

    fn wake() -> OwnedFd {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
    }

    fn lines(events: &Events) -> Vec<u8> {
        let mut lines = Vec::new();
        events.take_lines(&mut lines);
        lines
    }

    #[test]
    fn requests_become_lines_and_handshakes_become_records() {
        let ring = Ring::default();
        let events = attached(&ring);
        ring.push(&Event::Access(access()));
        ring.push(&Event::Handshake(handshake("spiffe://shop/a")));
        ring.push(&Event::Access(access()));
        let mut expected = Vec::new();
        access::write_request(&access(), &mut expected);
        access::write_request(&access(), &mut expected);
        assert_eq!(lines(&events), expected);
        assert_eq!(events.handshakes().len(), 1);
        assert_eq!(events.handshake_counts()[0].handshakes, 1);
        assert_eq!(events.tally(), Tally { read: 3, malformed: 0, lines_lost: 0 });
    }

    #[test]
    fn events_come_through_shared_memory_from_the_workers_own_ends() {
        let memory = SharedMemory::create("test", layout::event_memory_bytes(2)).unwrap();
        let wake = wake();
        let mut producers = telemetry::ring::producers(&memory, 2, &wake).unwrap();
        let consumers = telemetry::ring::consumers(&memory, 2).unwrap();
        let events = Events::default();
        events.attach(consumers.into_iter().map(|consumer| Box::new(consumer) as Box<dyn Source>).collect(), wake);
        let event = postcard::to_stdvec(&Event::Handshake(handshake("spiffe://shop/a"))).unwrap();
        assert!(producers.iter_mut().all(|producer| producer.push(&event)));
        assert_eq!(events.handshakes().len(), 2);
        memory.map_writer().unwrap().words().iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
        events.drain();
        assert_eq!(events.tally(), Tally { read: 2, malformed: 0, lines_lost: 0 }, "nonsense is skipped");
    }

    #[test]
    fn lines_that_somebody_else_takes_out_of_the_rings_wake_the_writer() {
        let (ring, wake) = (Ring::default(), wake());
        let events = Events::default();
        events.set_log(AccessLog::On);
        events.attach(vec![Box::new(ring.clone())], wake.try_clone().unwrap());
        let woken = || rustix::io::read(&wake, &mut [0; 8]).is_ok();
        ring.push(&Event::Handshake(handshake("spiffe://shop/a")));
        events.drain();
        assert!(!woken(), "there is nothing to write");
        let looks: [fn(&Events); 3] =
            [Events::drain, |events| drop(events.handshakes()), |events| drop(events.handshake_counts())];
        for look in looks {
            ring.push(&Event::Access(access()));
            look(&events);
            assert!(woken());
            lines(&events);
        }
    }

    #[test]
    fn without_a_log_requests_leave_nothing_but_handshakes_still_count() {
        let ring = Ring::default();
        let events = attached(&ring);
        events.set_log(AccessLog::Off);
        ring.push(&Event::Access(access()));
        ring.push(&Event::Handshake(handshake("")));
        assert_eq!(lines(&events), b"");
        assert_eq!(events.handshakes().len(), 1);
        assert_eq!(events.tally().lines_lost, 0);
    }

    #[test]
    fn any_bytes_in_a_ring_are_counted_and_nothing_else_happens() {
        let ring = Ring::default();
        let events = attached(&ring);
        let whole = postcard::to_stdvec(&Event::Access(access())).unwrap();
        let mut pushed = 0;
        for end in 0..whole.len() {
            ring.push_bytes(whole[..end].to_vec());
            pushed += 1;
        }
        for place in 0..whole.len() {
            for value in [0, 0x7f, 0x80, 0xff] {
                let mut torn = whole.clone();
                torn[place] = value;
                ring.push_bytes(torn);
                pushed += 1;
            }
        }
        let lines = lines(&events);
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            serde_json::from_slice::<serde_json::Value>(line).expect("each line is one JSON object");
        }
        let tally = events.tally();
        assert_eq!(tally.read, pushed);
        assert!(tally.malformed >= whole.len() as u64, "each cut event is malformed: {tally:?}");
    }

    #[test]
    fn lines_nobody_takes_are_bounded_and_counted() {
        let ring = Ring::default();
        let events = attached(&ring);
        let mut one = Vec::new();
        access::write_request(&access(), &mut one);
        let fit = MAX_PENDING_BYTES / one.len();
        for _ in 0..fit + 7 {
            ring.push(&Event::Access(access()));
        }
        events.drain();
        assert_eq!(events.tally().lines_lost, 7);
        assert_eq!(lines(&events).len(), fit * one.len());
        ring.push(&Event::Access(access()));
        assert_eq!(lines(&events), one, "once they are taken there is room again");
    }

    #[test]
    fn a_worker_that_never_stops_writing_cannot_hold_the_reader() {
        struct Endless;
        impl Source for Endless {
            fn pop(&mut self, into: &mut Vec<u8>) -> bool {
                into.clear();
                true
            }
        }
        let events = Events::default();
        events.attach(vec![Box::new(Endless), Box::new(Endless)], wake());
        events.drain();
        assert_eq!(events.tally().read, 2 * MAX_EVENTS_AT_ONCE as u64);
    }

    #[test]
    fn what_the_rings_before_still_hold_is_not_lost_when_others_take_their_place() {
        let (before, after) = (Ring::default(), Ring::default());
        let events = attached(&before);
        before.push(&Event::Handshake(handshake("spiffe://shop/before")));
        attach(&events, &after);
        after.push(&Event::Handshake(Handshake { name: "second", ..handshake("spiffe://shop/after") }));
        let peers: Vec<_> = events.handshakes().into_iter().filter_map(|record| record.peer).collect();
        assert_eq!(peers, ["spiffe://shop/before", "spiffe://shop/after"]);
    }

    #[test]
    fn a_flood_of_refusals_is_logged_a_few_times_a_second() {
        let start = Instant::now();
        let mut warnings = Warnings::default();
        let admitted = |warnings: &mut Warnings, at| (0..100).filter(|_| warnings.admit(at, "")).count() as u32;
        assert_eq!(admitted(&mut warnings, start), MAX_REFUSALS_LOGGED);
        assert_eq!(admitted(&mut warnings, start + Duration::from_millis(999)), 0);
        assert_eq!(warnings.held_back, 200 - u64::from(MAX_REFUSALS_LOGGED));
        assert_eq!(admitted(&mut warnings, start + Duration::from_secs(1)), MAX_REFUSALS_LOGGED);
    }
}
