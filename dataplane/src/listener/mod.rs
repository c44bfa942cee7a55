//! Accepting connections, and giving each to the worker with the fewest, before its first byte is read.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use ringmesh_ring::net::{Net, Sockets};
use ringmesh_ring::socket::{Listener, Socket, is_out_of_descriptors};
use ringmesh_ring::stop::Stop;

use crate::places::Place;
use crate::proxy::connection::{self, Exchanges};
use crate::proxy::relay::{Raced, race};
use crate::telemetry::layout::gauge;
use crate::worker::Worker;

/// Connections accepted in one turn at most, so that those that are open get theirs.
const ACCEPTS_PER_TURN: usize = 32;

/// How long accepting pauses when there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection on its way to another worker.
#[derive(Debug)]
pub struct Handover {
    /// The accepted socket.
    pub descriptor: OwnedFd,
    /// The client's address.
    pub client: Option<SocketAddr>,
    /// Where it came in.
    pub listener: Place,
    /// The worker that accepted it.
    pub from: u16,
}

/// Gives accepted connections to workers.
pub struct Placement {
    worker: Rc<Worker<Sockets>>,
    workers: u16,
    /// Connections sent to each worker so far: until they are counted there they count here, so that a burst is spread.
    sent: RefCell<Vec<u64>>,
    send: Box<dyn Fn(u16, Handover) -> Result<(), Handover>>,
}

impl Placement {
    /// Places among so many workers; `send` passes a connection on and returns it if there is no room.
    pub fn new(
        worker: Rc<Worker<Sockets>>,
        workers: u16,
        send: impl Fn(u16, Handover) -> Result<(), Handover> + 'static,
    ) -> Self {
        let sent = (0..workers).map(|other| received(&worker, other)).collect();
        Self { worker, workers, sent: RefCell::new(sent), send: Box::new(send) }
    }

    /// Gives a connection to the worker with the fewest; equal ones stay here.
    fn place(&self, exchanges: &impl Exchanges<Sockets>, handover: Handover) {
        let own = self.worker.number;
        let mut best = (self.worker.recorder.gauge(gauge::CONNECTIONS), own);
        for other in (0..self.workers).filter(|other| *other != own) {
            let underway = self.sent.borrow()[usize::from(other)].wrapping_sub(received(&self.worker, other));
            let load = self.worker.recorder.gauge_of(other, gauge::CONNECTIONS) + underway;
            // Being equal is no reason to move.
            if load < best.0 {
                best = (load, other);
            }
        }
        if best.1 == own {
            return begin(&self.worker, exchanges, handover);
        }
        match (self.send)(best.1, handover) {
            Ok(()) => {
                let sent = &mut self.sent.borrow_mut()[usize::from(best.1)];
                *sent = sent.wrapping_add(1);
            }
            Err(handover) => begin(&self.worker, exchanges, handover),
        }
    }
}

/// How many connections `other` has taken over from this worker.
fn received(worker: &Worker<Sockets>, other: u16) -> u64 {
    worker.recorder.gauge_of(other, gauge::RECEIVED + usize::from(worker.number))
}

/// Takes over a connection from another worker.
pub fn take_over(worker: &Rc<Worker<Sockets>>, exchanges: &impl Exchanges<Sockets>, handover: Handover) {
    worker.recorder.gauge_add(gauge::RECEIVED + usize::from(handover.from), 1);
    worker.recorder.gauge_add(gauge::HANDED_OVER, 1);
    begin(worker, exchanges, handover);
}

fn begin(worker: &Rc<Worker<Sockets>>, exchanges: &impl Exchanges<Sockets>, handover: Handover) {
    let Ok(socket) = Socket::from_fd(handover.descriptor) else {
        worker.recorder.gauge_add(gauge::ACCEPT_FAILED, 1);
        return;
    };
    // Unix sockets have no such option, and a connection without it works all the same.
    let _ = socket.set_nodelay();
    let served = connection::serve(worker.clone(), exchanges.clone(), socket, handover.client, handover.listener);
    ringmesh_ring::spawn(served);
}

/// Accepts until `stop` is triggered.
pub async fn accept(
    placement: Rc<Placement>,
    exchanges: impl Exchanges<Sockets>,
    listener: Listener,
    place: Place,
    stop: Stop,
) {
    loop {
        match race(listener.readable(), stop.stopped()).await {
            Raced::First(Ok(())) => {}
            Raced::First(Err(_)) | Raced::Second(_) => return,
        }
        for _ in 0..ACCEPTS_PER_TURN {
            match listener.accept() {
                Ok(Some((descriptor, client))) => {
                    let from = placement.worker.number;
                    placement.place(&exchanges, Handover { descriptor, client, listener: place, from });
                }
                Ok(None) => break,
                Err(error) => {
                    placement.worker.recorder.gauge_add(gauge::ACCEPT_FAILED, 1);
                    if is_out_of_descriptors(&error) {
                        let until = placement.worker.net.now() + PAUSE;
                        if let Raced::Second(_) = race(ringmesh_ring::sleep_until(until), stop.stopped()).await {
                            return;
                        }
                    }
                    break;
                }
            }
        }
    }
}
