//! One thread of a load: its connections are tasks that take requests off one schedule.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ringmesh_ring::Instant;
use ringmesh_ring::mailbox::Receiver;
use ringmesh_ring::net::Sockets;
use ringmesh_ring::runtime;

use super::entry::Mix;
use super::{Error, Progress, Protocol, Settings, http, tcp};
use crate::arrival::{Arrivals, Schedule};
use crate::pace::{Pacer, Waited};
use crate::report::Report;
use crate::thread::cpu_time;
use crate::wait::{Countdown, Event, First, first};

/// How often the result so far is published.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(100);

/// How long a connection waits after a failed connect in a closed loop, which would spin otherwise.
pub(super) const CONNECT_PAUSE: Duration = Duration::from_millis(10);

/// What one thread has to do.
pub(super) struct Part {
    pub(super) index: usize,
    pub(super) settings: Settings,
    pub(super) progress: Arc<Progress>,
}

/// What the tasks of one thread share.
pub(super) struct Shared {
    pub(super) net: Sockets,
    pub(super) settings: Settings,
    pub(super) report: RefCell<Report>,
    pub(super) pacer: Rc<Pacer>,
    targets: RefCell<Mix>,
    schedule: RefCell<Option<Schedule>>,
    /// Requests that may still be sent.
    left: Cell<u64>,
    start: Cell<Instant>,
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

/// Runs a thread's part to its end.
pub(super) async fn run(part: Part, report: Report, mut asked: Receiver<()>) -> Result<Report, Error> {
    let connections = share(part.settings.connections as u64, part.index, part.settings.threads) as usize;
    let now = Instant::now();
    let shared = Rc::new(Shared {
        net: Sockets,
        report: RefCell::new(report),
        pacer: Pacer::start()?,
        targets: RefCell::new(Mix::new(part.settings.targets.iter().map(|target| target.weight))),
        schedule: RefCell::new(match part.settings.arrivals {
            Arrivals::Constant { per_second } => Some(Schedule::new(per_second, part.index, part.settings.threads)),
            Arrivals::Closed => None,
        }),
        left: Cell::new(match part.settings.requests {
            Some(requests) => share(requests, part.index, part.settings.threads),
            None => u64::MAX,
        }),
        start: Cell::new(now),
        end: Cell::new(None),
        connected: Countdown::new(connections),
        go: Event::default(),
        done: Countdown::new(connections),
        ended: Cell::new(false),
        settings: part.settings,
    });
    match shared.settings.protocol.clone() {
        Protocol::Http(http) => http::spawn(&shared, &http, connections),
        Protocol::Tcp(exchange) => tcp::spawn(&shared, exchange, connections),
    }
    match first(shared.connected.wait(), asked.ready()).await {
        First::One(()) => {}
        First::Other(_) => shared.end(),
    }

    let start = Instant::now();
    let busy = cpu_time();
    shared.start.set(start);
    shared.end.set(shared.settings.duration.map(|duration| start + duration));
    shared.go.set();
    let publish = || {
        let mut report = shared.report.borrow_mut();
        report.elapsed = Instant::now().saturating_since(start);
        report.busy = cpu_time().saturating_sub(busy);
        part.progress.publish(part.index, &report);
    };
    shared.watch(&mut asked, publish).await;
    publish();
    shared.pacer.end();
    Ok(shared.report.borrow().clone())
}

impl Shared {
    /// Publishes until all connections are done, and ends them when asked to.
    async fn watch(&self, asked: &mut Receiver<()>, publish: impl Fn()) {
        let mut next = Instant::now() + PUBLISH_INTERVAL;
        loop {
            if asked.try_recv().is_some() {
                self.end();
            }
            let tick = async {
                match self.ended.get() {
                    // The pacer waits no more, but open requests may go on for a while.
                    true => runtime::sleep_until(next).await,
                    false => drop(first(self.pacer.until(next), asked.ready()).await),
                }
            };
            match first(self.done.wait(), tick).await {
                First::One(()) => return,
                First::Other(()) => {}
            }
            if Instant::now() >= next {
                publish();
                next = Instant::now() + PUBLISH_INTERVAL;
            }
        }
    }

    /// No more requests.
    fn end(&self) {
        if !self.ended.replace(true) {
            self.count_unsent(Instant::now());
            self.pacer.end();
        }
    }

    /// The target of the next request.
    pub(super) fn pick_target(&self) -> usize {
        self.targets.borrow_mut().pick()
    }

    /// Whether no more is to be sent.
    pub(super) fn is_over(&self) -> bool {
        self.ended.get() || self.end.get().is_some_and(|end| Instant::now() >= end)
    }

    /// Says that a connection is ready to begin, and waits for the others.
    pub(super) async fn begin(&self, ready: Ready) {
        drop(ready);
        self.go.wait().await;
    }

    /// Waits until this connection's next request is due. None: there is none any more.
    pub(super) async fn next(&self) -> Option<Due> {
        let free = Instant::now();
        if self.ended.get() || self.left.get() == 0 {
            return None;
        }
        if self.end.get().is_some_and(|end| free >= end) {
            self.count_unsent(free);
            return None;
        }
        let Some(at) = self.schedule.borrow_mut().as_mut().map(|schedule| self.start.get() + schedule.next_due())
        else {
            self.left.set(self.left.get() - 1);
            return Some(Due { at: free, free });
        };
        if self.end.get().is_some_and(|end| at >= end) {
            return None;
        }
        self.left.set(self.left.get() - 1);
        self.schedule.borrow_mut().as_mut().map(Schedule::take);
        match self.pacer.until(at).await {
            Waited::Due => Some(Due { at, free }),
            Waited::Ended => None,
        }
    }

    /// A request is being sent; in an open loop that tells how late the generator itself was.
    pub(super) fn delayed(&self, due: &Due, begin: Instant) {
        if self.schedule.borrow().is_some() {
            self.report.borrow_mut().delayed(begin.saturating_since(due.at.max(due.free)));
        }
    }

    /// Requests that were due before the end, and found no free connection.
    fn count_unsent(&self, now: Instant) {
        let until = self.end.get().map_or(now, |end| end.min(now));
        if let Some(schedule) = self.schedule.borrow_mut().as_mut() {
            while self.start.get() + schedule.next_due() < until && self.left.get() > 0 {
                schedule.take();
                self.left.set(self.left.get() - 1);
                self.report.borrow_mut().unsent += 1;
            }
        }
    }
}

/// A connection that is not ready to begin yet; dropped when it is, also by a panic.
pub(super) struct Ready(Rc<Shared>);

impl Drop for Ready {
    fn drop(&mut self) {
        self.0.connected.one_done();
    }
}

/// A connection that is not done yet; dropped when it is, also by a panic.
pub(super) struct Open(Rc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.done.one_done();
    }
}

/// The two things that each connection tells.
pub(super) fn tokens(shared: &Rc<Shared>) -> (Ready, Open) {
    (Ready(shared.clone()), Open(shared.clone()))
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
