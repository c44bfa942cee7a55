//! One thread of a load: its connections are tasks that take requests off one schedule.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ringmesh_ring::Instant;
use ringmesh_ring::mailbox::Receiver;
use ringmesh_ring::net::{Net, Sockets};
use ringmesh_ring::runtime;
use ringmesh_ring::stop::Stop;

use super::entry::Mix;
use super::template::Values;
use super::{Error, Progress, Protocol, Settings, Version, http, http2, tcp, websocket};
use crate::arrival::{Arrivals, Schedule};
use crate::pace::{Pacer, Waited};
use crate::report::{Expected, Failure, Report};
use crate::thread::Usage;
use crate::wait::{Countdown, Event, First, first};

/// How often the result so far is published.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(100);

/// How often a thread looks whether all others are ready too.
const START_POLL: Duration = Duration::from_millis(1);

/// How long a connection waits after a failed connect in a closed loop, which would spin otherwise.
pub(super) const CONNECT_PAUSE: Duration = Duration::from_millis(10);

/// What one thread has to do.
pub(super) struct Part {
    pub(super) index: usize,
    pub(super) settings: Settings,
    pub(super) progress: Arc<Progress>,
    pub(super) arrival: Arrival,
}

/// A thread that is not ready to begin yet; dropped when it is, or when it ends before, so that no other waits for it.
pub(super) struct Arrival(pub(super) Arc<Progress>);

impl Drop for Arrival {
    fn drop(&mut self) {
        self.0.arrive();
    }
}

/// What the tasks of one thread share.
pub(super) struct Shared<N: Net = Sockets> {
    pub(super) net: N,
    pub(super) settings: Settings,
    pub(super) report: RefCell<Report>,
    pub(super) pacer: Rc<Pacer>,
    targets: RefCell<Mix>,
    /// The number that the next request with placeholders gets; those of all threads differ.
    counter: Cell<u64>,
    schedule: RefCell<Option<Schedule>>,
    /// Requests that may still be sent.
    left: Cell<u64>,
    start: Cell<Instant>,
    /// Requests due before are the warm-up.
    measured: Cell<Instant>,
    end: Cell<Option<Instant>>,
    /// Connections are made before the clock starts.
    connected: Countdown,
    go: Event,
    done: Countdown,
    ended: Cell<bool>,
}

/// A request that is due.
pub(super) struct Due {
    /// When it was.
    pub(super) at: Instant,
    /// When its connection was free for it.
    pub(super) free: Instant,
}

/// A request that ended, as its connection saw it.
pub(crate) struct Ended<'a> {
    /// Which entry of the load it was; 0 where there are none.
    pub(crate) entry: usize,
    /// When it was begun.
    pub(crate) begin: Instant,
    /// What came of it.
    pub(crate) outcome: Result<Answered<'a>, Failure>,
}

/// A complete answer.
pub(crate) struct Answered<'a> {
    /// Its status, where the protocol has one.
    pub(crate) status: Option<u16>,
    /// Whether it was one that the entry expects.
    pub(crate) expected: Expected,
    /// Value of the counted field, where one is counted.
    pub(crate) field: Option<&'a str>,
    /// Bytes sent for it, as the protocol above TCP counts them.
    pub(crate) bytes_sent: u64,
    /// Bytes received likewise.
    pub(crate) bytes_received: u64,
}

/// Runs a thread's part to its end.
pub(super) async fn run(part: Part, report: Report, mut asked: Receiver<()>) -> Result<Report, Error> {
    let connections = share(part.settings.connections as u64, part.index, part.settings.threads) as usize;
    let streams = part.settings.protocol.streams();
    let shared = Rc::new(Shared::new(Sockets, Pacer::start()?, part.index, part.settings, report));
    match shared.settings.protocol.clone() {
        Protocol::Http(http) if http.version == Version::Http1 => http::spawn(&shared, &http, connections),
        Protocol::Http(http) => {
            http2::spawn(&shared, http2::Plan::new(&shared, &http, None), connections, streams);
        }
        Protocol::Grpc(http, grpc) => {
            http2::spawn(&shared, http2::Plan::new(&shared, &http, Some(&grpc)), connections, streams);
        }
        Protocol::WebSocket(websocket) => websocket::spawn(&shared, &websocket, connections),
        Protocol::Tcp(exchange) => tcp::spawn(&shared, exchange, connections),
    }
    match first(shared.connected.wait(), asked.ready()).await {
        First::One(()) => {}
        First::Other(_) => shared.end(),
    }
    drop(part.arrival);
    shared.start_with(&part.progress).await;
    let mut meter = Meter { before: Usage::now(), warm: shared.settings.warm_up.is_zero() };
    let publish = || {
        let now = Instant::now();
        if !meter.warm && now >= shared.measured.get() {
            meter = Meter { before: Usage::now(), warm: true };
        }
        let mut report = shared.report.borrow_mut();
        report.elapsed = now.saturating_since(shared.measured.get());
        if meter.warm {
            report.used(Usage::now().since(meter.before));
        }
        part.progress.publish(part.index, &report);
    };
    shared.watch(&mut asked, publish).await;
    shared.pacer.end();
    let mut report = shared.report.borrow().snapshot();
    report.finish();
    Ok(report)
}

/// How busy this thread has been.
struct Meter {
    /// What it had used when measuring began.
    before: Usage,
    /// Whether measuring has begun.
    warm: bool,
}

impl<N: Net> Shared<N> {
    pub(super) fn new(net: N, pacer: Rc<Pacer>, index: usize, settings: Settings, report: Report) -> Self {
        let connections = share(settings.connections as u64, index, settings.threads) as usize;
        let tasks = connections * settings.protocol.streams();
        let now = net.now();
        Self {
            net,
            report: RefCell::new(report),
            pacer,
            counter: Cell::new(index as u64),
            targets: RefCell::new(Mix::new(settings.targets.iter().map(|target| target.weight))),
            schedule: RefCell::new(match &settings.arrivals {
                Arrivals::Open { rate, spacing } => Some(Schedule::new(rate, *spacing, index, settings.threads)),
                Arrivals::Closed => None,
            }),
            left: Cell::new(match settings.requests {
                Some(requests) => share(requests, index, settings.threads),
                None => u64::MAX,
            }),
            start: Cell::new(now),
            measured: Cell::new(now),
            end: Cell::new(None),
            connected: Countdown::new(tasks),
            go: Event::default(),
            done: Countdown::new(tasks),
            ended: Cell::new(false),
            settings,
        }
    }

    /// Lets all threads begin at the same instant, when the connections of all are made.
    async fn start_with(&self, progress: &Progress) {
        let start = loop {
            match progress.start() {
                Some(start) => break start,
                None => runtime::sleep_until(Instant::now() + START_POLL).await,
            }
        };
        self.start_at(start);
    }

    /// Starts the clock, and with it the connections.
    pub(super) fn start_at(&self, start: Instant) {
        let measured = start + self.settings.warm_up;
        self.start.set(start);
        self.measured.set(measured);
        self.end.set(self.settings.duration.map(|duration| measured + duration));
        self.go.set();
    }

    /// Publishes until all connections are done, and ends them when asked to.
    async fn watch(&self, asked: &mut Receiver<()>, mut publish: impl FnMut()) {
        let mut next = Instant::now() + PUBLISH_INTERVAL;
        loop {
            if asked.try_recv().is_some() {
                self.end();
            }
            let measured = self.measured.get();
            let next_look = if measured > Instant::now() { next.min(measured) } else { next };
            let tick = async {
                match self.ended.get() {
                    // The pacer waits no more, but open requests may go on for a while.
                    true => runtime::sleep_until(next_look).await,
                    false => drop(first(self.pacer.until(next_look), asked.ready()).await),
                }
            };
            match first(self.done.wait(), tick).await {
                First::One(()) => {
                    publish();
                    return;
                }
                First::Other(()) => {}
            }
            if Instant::now() >= next_look {
                publish();
                next = Instant::now() + PUBLISH_INTERVAL;
            }
        }
    }

    /// No more requests.
    fn end(&self) {
        if !self.ended.replace(true) {
            self.count_unsent(self.net.now());
            self.pacer.end();
        }
    }

    /// The target of the next request.
    pub(super) fn pick_target(&self) -> usize {
        self.targets.borrow_mut().pick()
    }

    /// What the placeholders of the next request are filled with.
    pub(super) fn values(&self) -> Values<impl Fn() -> u64> {
        let counter = self.counter.replace(self.counter.get() + self.settings.threads as u64);
        Values { counter, random: || self.net.random() }
    }

    /// Whether no more is to be sent.
    pub(super) fn is_over(&self) -> bool {
        self.ended.get() || self.end.get().is_some_and(|end| self.net.now() >= end)
    }

    /// Says that a connection is ready to begin, and waits for the others.
    pub(super) async fn begin(&self, ready: Ready<N>) {
        drop(ready);
        self.go.wait().await;
        // All threads begin together, a little later than the last of them is ready.
        self.pacer.until(self.start.get()).await;
    }

    /// Waits until this connection's next request is due. None: there is none any more.
    pub(super) async fn next(&self) -> Option<Due> {
        let free = self.net.now();
        if self.ended.get() || self.left.get() == 0 {
            return None;
        }
        if self.end.get().is_some_and(|end| free >= end) {
            self.count_unsent(free);
            return None;
        }
        if self.schedule.borrow().is_none() {
            self.take_one(free);
            return Some(Due { at: free, free });
        }
        // None: the rate has fallen to nothing for ever.
        let at = self.start.get() + self.schedule.borrow().as_ref().and_then(Schedule::next_due)?;
        if self.end.get().is_some_and(|end| at >= end) {
            return None;
        }
        self.take_one(at);
        self.schedule.borrow_mut().as_mut().map(Schedule::take);
        match self.pacer.until(at).await {
            Waited::Due => Some(Due { at, free }),
            Waited::Ended => None,
        }
    }

    /// The warm-up is not part of the number that was asked for.
    fn take_one(&self, due: Instant) {
        if due >= self.measured.get() {
            self.left.set(self.left.get() - 1);
        }
    }

    /// Gives a request the time that it may take.
    pub(super) fn begin_deadline(&self, stop: &Stop) {
        stop.clear();
        stop.set_deadline(Some(self.net.now() + self.settings.timeout));
    }

    /// After a connection that did not come about, a closed loop would spin.
    pub(super) async fn pause_after(&self, failure: Option<Failure>) {
        if matches!(failure, Some(Failure::Connect | Failure::Tls)) && self.settings.arrivals == Arrivals::Closed {
            self.pacer.until(self.net.now() + CONNECT_PAUSE).await;
        }
    }

    /// Whether the clock is past the warm-up.
    pub(super) fn is_measuring(&self) -> bool {
        self.net.now() >= self.measured.get()
    }

    /// A request's part past the warm-up.
    pub(super) fn measured_part(&self, due: &Due) -> Due {
        Due { at: due.at.max(self.measured.get()), free: due.free.max(self.measured.get()) }
    }

    /// Counts a request that ended, unless it belongs to the warm-up.
    pub(super) fn record(&self, due: &Due, ended: &Ended<'_>) {
        if due.at < self.measured.get() {
            return;
        }
        let now = self.net.now();
        let offset = now.saturating_since(self.measured.get());
        self.report.borrow_mut().record(offset, now.saturating_since(due.at), now.saturating_since(ended.begin), ended);
    }

    /// A request is being sent; in an open loop that tells how late the generator itself was.
    pub(super) fn delayed(&self, due: &Due, begin: Instant) {
        if due.at >= self.measured.get() && self.schedule.borrow().is_some() {
            self.report.borrow_mut().delayed(begin.saturating_since(due.at.max(due.free)));
        }
    }

    /// Requests that were due before the end, and found no free connection.
    fn count_unsent(&self, now: Instant) {
        let until = self.end.get().map_or(now, |end| end.min(now));
        let mut schedule = self.schedule.borrow_mut();
        let Some(schedule) = schedule.as_mut() else { return };
        let since_start = |instant: Instant| instant.saturating_since(self.start.get());
        // The warm-up is not part of the number that was asked for.
        schedule.take_before(since_start(until.min(self.measured.get())), u64::MAX);
        let unsent = schedule.take_before(since_start(until), self.left.get());
        self.left.set(self.left.get() - unsent);
        self.report.borrow_mut().unsent += unsent;
    }
}

/// A connection that is not ready to begin yet; dropped when it is, also by a panic.
pub(super) struct Ready<N: Net = Sockets>(Rc<Shared<N>>);

impl<N: Net> Drop for Ready<N> {
    fn drop(&mut self) {
        self.0.connected.one_done();
    }
}

/// A connection that is not done yet; dropped when it is, also by a panic.
struct Open<N: Net>(Rc<Shared<N>>);

impl<N: Net> Drop for Open<N> {
    fn drop(&mut self) {
        self.0.done.one_done();
    }
}

/// Starts a connection's task. It is done when it has ended.
pub(super) fn spawn<N, F>(shared: &Rc<Shared<N>>, run: impl FnOnce(Ready<N>) -> F + 'static)
where
    N: Net,
    F: Future<Output = ()>,
{
    let (ready, open) = (Ready(shared.clone()), Open(shared.clone()));
    runtime::spawn(async move {
        run(ready).await;
        drop(open);
    });
}

/// The part of a whole that one of several threads gets.
fn share(whole: u64, index: usize, threads: usize) -> u64 {
    let (index, threads) = (index as u64, threads as u64);
    whole / threads + u64::from(index < whole % threads)
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn shares_sum_to_the_whole() {
        for whole in [0, 1, 7, 100] {
            for threads in [1, 2, 3, 8] {
                assert_eq!((0..threads).map(|index| share(whole, index, threads)).sum::<u64>(), whole);
            }
        }
    }
}
