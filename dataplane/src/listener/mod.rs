//! Accepting connections, and giving each to the worker with the fewest, before its first byte is read.

pub mod proxy_header;
pub mod handshakes;
pub mod sources;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringmesh_ring::net::{Net, Sockets};
use ringmesh_ring::socket::{Accepted, Listener, Socket, is_out_of_descriptors, set_client_options};
use ringmesh_ring::stop::Stop;

use crate::places::Place;
use crate::proxy::connection::{self, Exchanges};
use crate::proxy::relay::{Raced, race};
use crate::telemetry::layout::gauge;
use crate::worker::Worker;

/// Connections accepted in one turn at most, so that those that are open get theirs.
const ACCEPTS_PER_TURN: usize = 32;

/// After a client that came alone, so many are taken without a look for others behind them: a rush is noticed that late.
const LONE_CLIENTS: u32 = 8;

/// How long accepting pauses when it fails, mostly because there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// How many connections each worker has, those included that are on their way to it. All workers write it, but only when
/// a connection comes or goes, never for a request: with numbers of their own, several that accept at once would all find
/// the same worker the least busy, and long-lived connections stay where a burst has put them.
#[derive(Clone)]
pub struct Places(Arc<[Count]>);

/// In a cache line of its own.
#[repr(align(64))]
#[derive(Default)]
struct Count {
    now: AtomicU64,
    /// The most since it was last asked for.
    most: AtomicU64,
}

impl Places {
    /// For so many workers, none of which has a connection.
    pub fn new(workers: u16) -> Self {
        Self((0..workers).map(|_| Count::default()).collect())
    }

    /// Connections of all workers, and the most that there were, worker by worker, since [`Self::forget_peak`].
    pub fn now_and_peak(&self) -> (u64, u64) {
        let sum = |of: fn(&Count) -> &AtomicU64| self.0.iter().map(|count| of(count).load(Ordering::Relaxed)).sum();
        (sum(|count| &count.now), sum(|count| &count.most))
    }

    /// A peak begins anew with what there is now.
    pub fn forget_peak(&self) {
        for count in &*self.0 {
            count.most.store(count.now.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Reserves a place on the worker with the fewest connections; equal ones stay with `own`.
    fn reserve(&self, own: u16) -> Reserved {
        let load = |worker: u16| self.0[usize::from(worker)].now.load(Ordering::Relaxed);
        let mut best = (load(own), own);
        for other in 0..self.0.len() as u16 {
            // Being equal is no reason to move.
            let load = load(other);
            if load < best.0 {
                best = (load, other);
            }
        }
        self.reserve_on(best.1)
    }

    fn reserve_on(&self, worker: u16) -> Reserved {
        let count = &self.0[usize::from(worker)];
        let now = count.now.fetch_add(1, Ordering::Relaxed) + 1;
        if now > count.most.load(Ordering::Relaxed) {
            count.most.fetch_max(now, Ordering::Relaxed);
        }
        Reserved { places: self.clone(), worker }
    }
}

/// A connection's place on a worker, from its being accepted to its end.
pub struct Reserved {
    places: Places,
    worker: u16,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.places.0[usize::from(self.worker)].now.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Reserved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reserved(worker {})", self.worker)
    }
}

/// An accepted connection, on its way to its worker.
#[derive(Debug)]
pub struct Handover {
    /// The client's connection.
    pub accepted: Accepted,
    /// The client's address.
    pub client: Option<SocketAddr>,
    /// Where it came in.
    pub listener: Place,
    /// The worker that accepted it.
    pub from: u16,
    /// Its place where it goes.
    pub reserved: Reserved,
}

/// Gives accepted connections to workers.
pub struct Placement {
    worker: Rc<Worker<Sockets>>,
    places: Places,
    send: Box<dyn Fn(u16, Handover) -> Result<(), Handover>>,
}

impl Placement {
    /// Places a worker's accepted connections; `send` passes one on and returns it if there is no room.
    pub fn new(
        worker: Rc<Worker<Sockets>>,
        places: Places,
        send: impl Fn(u16, Handover) -> Result<(), Handover> + 'static,
    ) -> Self {
        Self { worker, places, send: Box::new(send) }
    }

    /// Gives a connection to the worker with the fewest.
    fn place(
        &self,
        exchanges: &impl Exchanges<Sockets>,
        (accepted, client): (Accepted, Option<SocketAddr>),
        listener: Place,
    ) {
        let own = self.worker.number;
        let reserved = self.places.reserve(own);
        let to = reserved.worker;
        let handover = Handover { accepted, client, listener, from: own, reserved };
        if to == own {
            return begin(&self.worker, exchanges, handover);
        }
        if let Err(returned) = (self.send)(to, handover) {
            let reserved = self.places.reserve_on(own);
            begin(&self.worker, exchanges, Handover { reserved, ..returned });
        }
    }
}

/// Takes over a connection from another worker.
pub fn take_over(worker: &Rc<Worker<Sockets>>, exchanges: &impl Exchanges<Sockets>, handover: Handover) {
    worker.recorder.gauge_add(gauge::RECEIVED + usize::from(handover.from), 1);
    worker.recorder.gauge_add(gauge::HANDED_OVER, 1);
    begin(worker, exchanges, handover);
}

fn begin(worker: &Rc<Worker<Sockets>>, exchanges: &impl Exchanges<Sockets>, handover: Handover) {
    let Handover { accepted, client, listener, reserved, .. } = handover;
    let Ok(socket) = Socket::accepted(accepted) else {
        worker.recorder.gauge_add(gauge::ACCEPT_FAILED, 1);
        return;
    };
    let (worker, exchanges) = (worker.clone(), exchanges.clone());
    ringmesh_ring::spawn(connection::serve(worker, exchanges, socket, client, listener, Some(reserved)));
}

/// Accepts until `stop` is triggered; whoever waits in the backlog then is still taken, because closing it would reset them.
pub async fn accept(
    placement: Rc<Placement>,
    exchanges: impl Exchanges<Sockets>,
    listener: Listener,
    place: Place,
    stop: Stop,
) {
    let (mut options, mut lone) = (Options::default(), Lone::default());
    loop {
        let taken = match race(listener.readable(), stop.stopped()).await {
            Raced::First(ready) => {
                ready.and_then(|()| take(&placement, &exchanges, &listener, place, &mut options, &mut lone))
            }
            Raced::Second(_) => {
                lone = Lone::default();
                while let Ok(Taken::Many) = take(&placement, &exchanges, &listener, place, &mut options, &mut lone) {}
                return;
            }
        };
        match taken {
            Ok(Taken::All | Taken::One) => {}
            // Who waits there waits for the listener that has these sockets now.
            Ok(Taken::NotOurs) => {
                stop.stopped().await;
                return;
            }
            // On epoll the next wait would end at once, and none of the clients would be served.
            Ok(Taken::Many) => ringmesh_ring::yield_now().await,
            Err(error) => {
                placement.worker.recorder.gauge_add(gauge::ACCEPT_FAILED, 1);
                if !is_out_of_descriptors(&error) {
                    tracing::error!(target: "listener", "cannot accept: {error}");
                }
                // Whatever it is, it may last, and the listener stays readable meanwhile.
                let until = placement.worker.net.now() + PAUSE;
                if let Raced::Second(_) = race(ringmesh_ring::sleep_until(until), stop.stopped()).await {
                    return;
                }
            }
        }
    }
}

/// What accepted sockets have from their listener, so that it costs a connection nothing; only who was in the backlog before is
/// told apart.
#[derive(Default)]
struct Options {
    applied: Option<Option<Duration>>,
    is_behind: bool,
}

impl Options {
    fn apply(&mut self, listener: &Listener, silence: Option<Duration>) {
        if self.applied.replace(silence) != Some(silence) {
            listener.set_client_options(silence);
            self.is_behind = true;
        }
    }

    fn catch_up(&self, accepted: &Accepted) {
        if let (true, Some(silence)) = (self.is_behind, self.applied) {
            set_client_options(accepted.as_fd(), silence);
        }
    }
}

/// Clients that come one at a time: then looking for another one behind each is in vain, for which the kernel makes a socket all
/// the same.
#[derive(Default)]
struct Lone {
    /// So many more are taken without a look behind them.
    left: u32,
}

impl Lone {
    /// Whether nobody is likely to be behind the client that was just taken.
    fn is_next(&mut self) -> bool {
        let is_next = self.left > 0;
        self.left = self.left.saturating_sub(1);
        is_next
    }
}

/// How many clients were taken.
enum Taken {
    /// All that were there.
    All,
    /// One; there may be others.
    One,
    /// As many as one turn may take.
    Many,
    /// None: the tables have no such listener any more.
    NotOurs,
}

fn take(
    placement: &Placement,
    exchanges: &impl Exchanges<Sockets>,
    listener: &Listener,
    place: Place,
    options: &mut Options,
    lone: &mut Lone,
) -> io::Result<Taken> {
    let tables = placement.worker.tables();
    let Some(found) = tables.listener(place) else { return Ok(Taken::NotOurs) };
    options.apply(listener, found.config.limits.tcp_keepalive);
    for taken in 0..ACCEPTS_PER_TURN {
        match listener.accept()? {
            Some(accepted) => {
                options.catch_up(&accepted.0);
                placement.place(exchanges, accepted, place);
            }
            None => {
                options.is_behind = false;
                if taken == 1 {
                    lone.left = LONE_CLIENTS;
                }
                return Ok(Taken::All);
            }
        }
        if taken == 0 && lone.is_next() && !options.is_behind {
            return Ok(Taken::One);
        }
    }
    Ok(Taken::Many)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(places: &Places) -> Vec<u64> {
        places.0.iter().map(|count| count.now.load(Ordering::Relaxed)).collect()
    }

    #[test]
    fn every_worker_sees_what_the_others_have_placed() {
        let places = Places::new(4);
        // All four accept by turns, and none has taken over anything yet.
        let open: Vec<Reserved> = (0..100).map(|turn| places.reserve(turn % 4)).collect();
        assert_eq!(loads(&places), [25; 4]);
        drop(open);
        assert_eq!(loads(&places), [0; 4]);
    }

    #[test]
    fn a_peak_is_remembered_until_it_is_forgotten() {
        let places = Places::new(2);
        let open: Vec<Reserved> = (0..10).map(|turn| places.reserve(turn % 2)).collect();
        assert_eq!(places.now_and_peak(), (10, 10));
        drop(open);
        let _one = places.reserve(0);
        assert_eq!(places.now_and_peak(), (1, 10));
        places.forget_peak();
        assert_eq!(places.now_and_peak(), (1, 1));
    }

    #[test]
    fn a_connection_stays_where_it_was_accepted_unless_another_worker_has_fewer() {
        let places = Places::new(3);
        let first = places.reserve(1);
        let second = places.reserve(2);
        assert_eq!((first.worker, second.worker), (1, 2));
        assert_eq!(places.reserve(1).worker, 0, "the only one without any");
    }
}
