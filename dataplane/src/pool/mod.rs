//! Connections to endpoints that wait for their next request, one pool a worker; and those of HTTP/2, which serve many at a
//! time.

pub(crate) mod opening;
pub mod shared;

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::rc::Rc;
use std::time::Duration;

use ringmesh_ring::clock::Instant;
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::Stop;
use ringmesh_ring::stream::{Idle, Stream};

use crate::balance::Candidate;
use crate::drain::Registered;
use crate::mux::Channel;
use crate::mux::client::Trunks;
use crate::places::Place;
use crate::proxy::transport::Transport;
use crate::standing::{self, Standing};
use crate::tables::Service;
use crate::worker::Worker;

/// How often connections that nobody used are looked after, while there are any.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How long an endpoint is passed over after connecting to it failed for the n-th time in a row: doubled each time, up to
/// the second value.
const AVOID: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// Connects in a row that requests may give up before the endpoint is taken for one that does not answer.
const MAX_GIVEN_UP: u32 = 3;

/// What one worker knows about one endpoint.
pub struct State<S: Stream> {
    generation: u32,
    in_flight: Cell<u32>,
    failures: Cell<u32>,
    /// Connects in a row for which their requests had no time left.
    given_up: Cell<u32>,
    avoided_until: Cell<Option<Instant>>,
    #[allow(clippy::vec_box, reason = "a request takes one and returns it: a pointer moves, not the connection")]
    waiting: RefCell<Vec<Box<Kept<S>>>>,
    shared: shared::Shared,
    /// Connections that carry channels.
    pub(crate) trunks: Trunks,
    /// The one of either kind that is being made.
    pub(crate) making: opening::Making,
    pub(crate) mesh: Cell<Mesh>,
}

/// Whether an endpoint is a proxy of ours, which takes many channels in one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mesh {
    /// It was not asked yet.
    Unknown,
    /// It has agreed to it.
    Yes,
    /// It has not.
    No,
    /// It refused a handshake in which that was offered, and is not asked again.
    Never,
}

/// A way to an endpoint, for one request.
pub enum Leased<N: Net> {
    /// A connection of its own.
    Own(Lease<N>),
    /// A place on one that others use too.
    Shared(shared::Lease<N>),
}

/// A connection that may serve one request after the other.
pub struct Kept<S: Stream> {
    /// The connection.
    pub transport: Transport<S>,
    /// When it is closed unless it is used.
    until: Instant,
    /// How the endpoint stands, if it has proved who it is.
    standing: Option<Rc<Standing>>,
    key: u64,
    preface: Preface,
    idle_timeout: Duration,
    max_idle: u32,
}

/// The PROXY header that a connection to an endpoint began with. It names one client for the life of the connection, so
/// only requests that would send the same may use it.
pub type Preface = Option<Box<[u8]>>;

/// A connection to an endpoint, on loan to one request. Dropped, it is closed; [`Lease::give_back`] keeps it.
pub struct Lease<N: Net> {
    kept: Box<Kept<N::Stream>>,
    /// Whether it was there before: then the endpoint may have closed it at the moment it was taken.
    pub reused: bool,
    /// Whether nothing was sent on it yet.
    pub fresh: bool,
    in_flight: InFlight<N::Stream>,
    /// Ends the request if what the endpoint has proved is over for too long.
    watched: Option<Registered>,
}

impl<N: Net> Deref for Lease<N> {
    type Target = Kept<N::Stream>;

    #[inline]
    fn deref(&self) -> &Kept<N::Stream> {
        &self.kept
    }
}

/// Counts a request in flight as long as it lives.
struct InFlight<S: Stream>(Rc<State<S>>);

impl<S: Stream> InFlight<S> {
    fn begin(state: Rc<State<S>>) -> Self {
        state.in_flight.set(state.in_flight.get() + 1);
        Self(state)
    }
}

impl<S: Stream> Drop for InFlight<S> {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
    }
}

impl<S: Stream> State<S> {
    /// Nothing is known yet.
    pub fn new(generation: u32) -> Self {
        Self {
            generation,
            in_flight: Cell::new(0),
            failures: Cell::new(0),
            given_up: Cell::new(0),
            avoided_until: Cell::new(None),
            waiting: RefCell::default(),
            shared: shared::Shared::default(),
            trunks: Trunks::default(),
            making: opening::Making::default(),
            mesh: Cell::new(Mesh::Unknown),
        }
    }

    /// Notes that connecting failed.
    pub fn failed(&self, now: Instant) {
        let failures = self.failures.get().saturating_add(1);
        self.failures.set(failures);
        let pause = AVOID.0.saturating_mul(1 << (failures - 1).min(10)).min(AVOID.1);
        self.avoided_until.set(Some(now + pause));
    }

    /// Notes that a request had no time left to connect after `waited`, of the `whole` that connecting may take. Once says
    /// little of the endpoint; half of the time, or several times in a row, says that it does not answer. Whether it does.
    pub fn gave_up(&self, waited: Duration, whole: Duration, now: Instant) -> bool {
        self.given_up.set(self.given_up.get().saturating_add(1));
        let silent = waited >= whole / 2 || self.given_up.get() >= MAX_GIVEN_UP;
        if silent {
            self.failed(now);
        }
        silent
    }

    /// Notes that connecting went well.
    pub fn succeeded(&self) {
        self.given_up.set(0);
        self.failures.set(0);
        self.avoided_until.set(None);
    }

    /// Whether connecting has failed not long ago.
    pub(crate) fn is_avoided(&self, now: impl Fn() -> Instant) -> bool {
        self.avoided_until.get().is_some_and(|until| until > now())
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// Unused connections.
    pub fn waiting(&self) -> usize {
        self.waiting.borrow().len() + self.shared.idle() + self.trunks.idle()
    }

    /// Connects that failed in a row.
    pub fn failures(&self) -> u32 {
        self.failures.get()
    }

    /// Whether the last connect failed, not long before `since` or after it, and no connection is left from before.
    pub fn is_out_of_reach(&self, since: Instant) -> bool {
        let failed = self.avoided_until.get().is_some_and(|until| until > since);
        failed && self.in_flight() == 0 && self.waiting() == 0
    }

    /// Closes its unused connections, and those that others use too once their requests have ended.
    pub fn close(&self) {
        self.waiting.borrow_mut().clear();
        self.shared.close();
        self.trunks.close();
    }

    /// The unused connection that was used last, if one is open. Those that have ended are closed on the way.
    fn take(&self, key: u64, now: Instant) -> Option<Box<Kept<S>>> {
        loop {
            let waiting = self.waiting.borrow_mut().pop()?;
            if waiting.key == key && waiting.until > now && matches!(waiting.transport.check_idle(), Ok(Idle::Open)) {
                return Some(waiting);
            }
        }
    }

    /// Like [`Self::take`], where each connection is for one client: those of others stay.
    fn take_of(&self, key: u64, preface: &[u8], now: Instant) -> Option<Box<Kept<S>>> {
        loop {
            let waiting = {
                let mut all = self.waiting.borrow_mut();
                let fits = |one: &Kept<S>| one.key == key && one.preface.as_deref() == Some(preface);
                let index = all.iter().rposition(|one| fits(one))?;
                all.remove(index)
            };
            if waiting.until > now && matches!(waiting.transport.check_idle(), Ok(Idle::Open)) {
                return Some(waiting);
            }
        }
    }

    /// Closes those whose time is up and those that the endpoint has closed; how many are left.
    pub(crate) fn sweep(&self, now: Instant) -> usize {
        let mut waiting = self.waiting.borrow_mut();
        waiting.retain(|waiting| waiting.until > now && matches!(waiting.transport.check_idle(), Ok(Idle::Open)));
        if waiting.is_empty() {
            waiting.shrink_to_fit();
        }
        waiting.len()
    }
}

impl<S: Stream> Candidate for Rc<State<S>> {
    fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    fn avoided_until(&self) -> Option<Instant> {
        self.avoided_until.get()
    }
}

impl<N: Net> Lease<N> {
    /// An unused connection to the endpoint that the state is of, which began with `preface`.
    ///
    /// # Errors
    /// If there is none.
    pub fn unused(
        state: Rc<State<N::Stream>>,
        service: &Service,
        preface: Option<&[u8]>,
        now: Instant,
    ) -> Result<Self, Rc<State<N::Stream>>> {
        let taken = match preface {
            None => state.take(service.pool_key, now),
            Some(preface) => state.take_of(service.pool_key, preface, now),
        };
        match taken {
            Some(mut kept) => {
                // What is said of the service may be said anew.
                kept.idle_timeout = service.config.idle_timeout;
                kept.max_idle = service.config.max_idle_per_endpoint;
                Ok(Self { kept, reused: true, fresh: false, in_flight: InFlight::begin(state), watched: None })
            }
            None => Err(state),
        }
    }

    /// A connection that was just made, and began with `preface`.
    pub fn fresh(
        state: Rc<State<N::Stream>>,
        service: &Service,
        transport: Transport<N::Stream>,
        standing: Option<Rc<Standing>>,
        preface: Option<&[u8]>,
    ) -> Self {
        Self::new(state, service, transport, standing, preface, false)
    }

    /// A new channel of a connection that was there before.
    pub(crate) fn channel(state: Rc<State<N::Stream>>, service: &Service, channel: Channel) -> Self {
        Self::new(state, service, Transport::Channel(channel), None, None, true)
    }

    fn new(
        state: Rc<State<N::Stream>>,
        service: &Service,
        transport: Transport<N::Stream>,
        standing: Option<Rc<Standing>>,
        preface: Option<&[u8]>,
        reused: bool,
    ) -> Self {
        let kept = Kept {
            transport,
            until: Instant::FAR_FUTURE,
            standing,
            key: service.pool_key,
            preface: preface.map(Box::from),
            idle_timeout: service.config.idle_timeout,
            max_idle: service.config.max_idle_per_endpoint,
        };
        Self { kept: kept.into(), reused, fresh: true, in_flight: InFlight::begin(state), watched: None }
    }

    /// Has `stop`, the request's, end it if it goes on for too long after the endpoint's certificate has ended.
    pub(crate) fn watched(mut self, worker: &Worker<N>, stop: &Stop) -> Self {
        if let Some(standing) = &self.kept.standing {
            self.watched = Some(standing::watch(worker, standing, stop.clone()));
        }
        self
    }

    /// Keeps the connection for the next request. Only after a whole response, with nothing left to read or write.
    pub fn give_back(self, worker: &Rc<Worker<N>>) {
        let Self { mut kept, in_flight, .. } = self;
        let proved = kept.standing.as_ref().map_or(Instant::FAR_FUTURE, |standing| standing.until());
        let max_idle = kept.max_idle as usize;
        let mut waiting = in_flight.0.waiting.borrow_mut();
        if kept.preface.is_some() && waiting.len() >= max_idle && !waiting.is_empty() {
            // The oldest is for a client that has gone, most likely, and nobody else can use it.
            waiting.remove(0);
        }
        if waiting.len() < max_idle && !worker.draining() {
            kept.until = (worker.net.now() + kept.idle_timeout).min(proved);
            waiting.push(kept);
            worker.pools.start_sweeping(worker);
        }
    }
}

/// All endpoints' states, by place.
pub struct Pools<S: Stream> {
    states: RefCell<Vec<Option<Rc<State<S>>>>>,
    sweeping: Cell<bool>,
}

impl<S: Stream> Default for Pools<S> {
    fn default() -> Self {
        Self { states: RefCell::default(), sweeping: Cell::new(false) }
    }
}

impl<S: Stream> Pools<S> {
    /// What is known about the endpoint at a place.
    pub fn state(&self, place: Place) -> Rc<State<S>> {
        let mut states = self.states.borrow_mut();
        let index = place.index as usize;
        if states.len() <= index {
            states.resize_with(index + 1, || None);
        }
        match &states[index] {
            Some(state) if state.generation == place.generation => state.clone(),
            // A request with older tables, whose endpoint is gone, must not throw out the state of the new owner.
            Some(state) if state.generation > place.generation => Rc::new(State::new(place.generation)),
            _ => states[index].insert(Rc::new(State::new(place.generation))).clone(),
        }
    }

    /// What is known about the endpoint at a place, if it was ever called.
    pub fn known(&self, place: Place) -> Option<Rc<State<S>>> {
        let states = self.states.borrow();
        let state = states.get(place.index as usize)?.as_ref();
        state.filter(|state| state.generation == place.generation).cloned()
    }

    /// Closes all unused connections.
    pub fn clear(&self) {
        for state in self.states.borrow().iter().flatten() {
            state.close();
        }
    }

    /// Looks after unused connections from now on, until there are none.
    fn start_sweeping<N: Net<Stream = S>>(&self, worker: &Rc<Worker<N>>) {
        if !self.sweeping.replace(true) {
            ringmesh_ring::spawn(sweep(Rc::downgrade(worker)));
        }
    }
}

async fn sweep<N: Net>(worker: std::rc::Weak<Worker<N>>) {
    loop {
        let Some(at) = worker.upgrade().map(|worker| worker.net.now() + SWEEP_INTERVAL) else { return };
        ringmesh_ring::sleep_until(at).await;
        let Some(worker) = worker.upgrade() else { return };
        let now = worker.net.now();
        let left: usize = worker.pools.states.borrow().iter().flatten().map(|state| state.sweep(now)).sum();
        if left == 0 {
            worker.pools.sweeping.set(false);
            return;
        }
    }
}
