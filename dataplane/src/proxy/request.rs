//! The way of one request, in the order it goes: authorize, filters, route, permit, then for each attempt pick an endpoint,
//! lease a connection, exchange. It knows neither the version of HTTP nor sockets.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::rc::Rc;
use std::time::Duration;

use ringmesh_codec::head::Head;
use ringmesh_codec::normalize;
use ringmesh_model::hop::Hop;
use ringmesh_model::snapshot::{AccessLog, Destination, Protocol};
use ringmesh_ring::clock::Instant;
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::Stop;

use crate::balance::Tried;
use crate::filter::Verdict;
use crate::outcome::{Reason, Retry};
use crate::policy::Decision;
use crate::pool::Leased;
use crate::proxy::connection::Connection;
use crate::proxy::deadline::{Deadlines, Part};
use crate::proxy::hop;
use crate::proxy::pace::Pace;
use crate::proxy::redirect;
use crate::route::Rule;
use crate::tables::{Endpoint, Listener, Service, Tables, Target};
use crate::telemetry::event::{Access, Event, clip};
use crate::telemetry::layout::{gauge, request as counter};
use crate::telemetry::recorder::Series;
use crate::upstream::{self, Needs};
use crate::worker::{Worker, unix_micros};

/// A request as its version of HTTP presents it.
pub trait Call<N: Net> {
    /// Its head.
    fn head(&self) -> impl Head + '_;

    /// How long the client says that it waits.
    fn timeout(&self) -> Option<Duration> {
        None
    }

    /// Whether it says that its body will be larger than the listener allows.
    fn announces_too_much(&self) -> bool {
        false
    }

    /// Whether this hop lets it have what it asks for beside a response.
    ///
    /// # Errors
    /// What it ends in otherwise.
    fn admit(&self, _hop: &Hop) -> Result<(), Reason> {
        Ok(())
    }

    /// What it needs of the way to the endpoint.
    fn needs(&self) -> Needs {
        Needs::Anything
    }

    /// Whether its client means a server of HTTP/2: by what it speaks in plain, where no ALPN of ours had a part in it, or by
    /// gRPC, however it has come here.
    fn is_for_http2(&self) -> bool {
        false
    }

    /// It names no host, as HTTP/1.0 need not, and the next hop may want one: this one then.
    fn name_host(&mut self, _host: &str) {}

    /// Sends it on a connection and passes the response back.
    fn exchange(
        &mut self,
        lease: Leased<N>,
        patience: Patience,
        account: &mut Account,
    ) -> impl Future<Output = Result<(), Failed>>;

    /// Answers it ourselves, if the response has not begun; else cuts it.
    fn answer(&mut self, reason: Reason, account: &mut Account) -> impl Future<Output = ()>;
}

/// How an exchange failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// The connection had been used before and was closed before a byte of a response came, and the request is safe to
    /// send again (RFC 9110 section 9.2.2, RFC 9112 section 9.3.1).
    Stale,
    /// It ends like this.
    Ended(Reason),
}

/// How long an exchange may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// The end of the request, if it has one.
    pub deadline: Option<Instant>,
    /// Longest time without a byte in either direction.
    pub idle: Duration,
}

impl Patience {
    /// The deadlines of an exchange that `stop` ends.
    #[inline]
    pub fn deadlines<'a>(&self, stop: &'a Stop, listener: &Listener) -> Deadlines<'a> {
        let deadlines = Deadlines::new(stop, self.idle, Pace::new(listener.config.limits.min_transfer_rate));
        if let Some(deadline) = self.deadline {
            deadlines.set(Part::Whole, deadline, Reason::RequestTimeout);
        }
        deadlines
    }
}

/// What telemetry tells of a request, beside its end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    /// Status sent to the client; 0: none yet.
    pub status: u16,
    /// The call's gRPC status, once it is known.
    pub grpc_status: Option<u8>,
    /// Attempts, the first included.
    pub attempts: u8,
    /// Bytes of the request's body passed on.
    pub request_bytes: u64,
    /// Bytes of the response's body passed on.
    pub response_bytes: u64,
}

/// Where a request went, as far as it came.
#[derive(Clone, Copy, Default)]
struct Way<'t> {
    decided_by: &'t str,
    rule: Option<&'t Rule>,
    service: Option<&'t Service>,
    endpoint: Option<&'t Endpoint>,
    series: Option<Series>,
}

/// Serves one request from its head to the end of its response. `stop` ends what is done for it: the connection's own, where
/// that serves one request at a time.
pub async fn serve<N: Net>(
    worker: &Rc<Worker<N>>,
    connection: &Connection<N>,
    tables: &Tables,
    listener: &Listener,
    stop: &Stop,
    call: &mut impl Call<N>,
) -> Reason {
    let begun = worker.net.now();
    let mut way = Way::default();
    let mut account = Account::default();
    worker.recorder.gauge_add(gauge::IN_FLIGHT, 1);
    let _in_flight = OnDrop(|| worker.recorder.gauge_sub(gauge::IN_FLIGHT, 1));
    let reason = match forward(worker, connection, tables, listener, stop, call, begun, &mut way, &mut account).await {
        Ok(()) => Reason::Ok,
        Err(reason) => {
            if let (Some(service), Some(endpoint)) = (way.service, way.endpoint) {
                match reason {
                    Reason::UpstreamGarbage => worker.tell_garbage(listener, service, endpoint),
                    reason => upstream::reach::failed(worker, service, endpoint, reason),
                }
            }
            Box::pin(call.answer(reason, &mut account)).await;
            reason
        }
    };
    let head = call.head();
    let asked = || Asked { method: head.method(), path: head.path(), authority: head.authority().unwrap_or_default() };
    tell(worker, connection, tables, listener, asked, begun, &way, &account, reason);
    reason
}

/// Counts and logs a request whose head could not be read, and which so came to nothing.
pub fn refused<N: Net>(
    worker: &Worker<N>,
    connection: &Connection<N>,
    tables: &Tables,
    listener: &Listener,
    account: &Account,
    reason: Reason,
) {
    let now = worker.net.now();
    tell(worker, connection, tables, listener, Asked::default, now, &Way::default(), account, reason);
}

/// What the access log says of a request's head.
#[derive(Default)]
struct Asked<'a> {
    method: &'a [u8],
    path: &'a [u8],
    authority: &'a [u8],
}

#[allow(clippy::too_many_arguments, reason = "one story, told once")]
async fn forward<'t, N: Net>(
    worker: &Rc<Worker<N>>,
    connection: &'t Connection<N>,
    tables: &'t Tables,
    listener: &'t Listener,
    stop: &Stop,
    call: &mut impl Call<N>,
    begun: Instant,
    way: &mut Way<'t>,
    account: &mut Account,
) -> Result<(), Reason> {
    let target = {
        let head = call.head();
        let path = normalize::unambiguous(head.path());
        match listener.policy.authorize(connection.peer_id(), head.method(), path.as_deref()) {
            Decision::Allow(rule) => way.decided_by = rule,
            Decision::Deny(rule) => {
                way.decided_by = rule;
                return Err(Reason::PolicyDenied);
            }
        }
        hop::admit(&listener.config.hop, &head)?;
        call.admit(&listener.config.hop)?;
        if worker.filters.iter().any(|filter| filter.request(head.method(), head.path()) == Verdict::Refuse) {
            return Err(Reason::FilterRefused);
        }
        match &listener.target {
            Target::Service(target) => target,
            Target::Routes(routes) => {
                let rule = routes.find(&head, path.as_deref()).ok_or(Reason::NoRoute)?;
                way.rule = Some(rule);
                rule.pick(|| worker.net.random())
            }
            Target::Redirect(_) => return Err(redirect::outcome(&head)),
        }
    };
    if call.announces_too_much() {
        return Err(Reason::BodyTooLarge);
    }
    let service = tables.service(target.service).ok_or(Reason::NoEndpoint)?;
    way.service = Some(service);
    way.series = Some(target.series);

    let timeout = way.rule.and_then(|rule| rule.timeout).or(listener.config.limits.request_timeout);
    let timeout = match call.timeout() {
        Some(own) => Some(timeout.map_or(own, |timeout| timeout.min(own))),
        None => timeout,
    };
    let patience =
        Patience { deadline: timeout.map(|timeout| begun + timeout), idle: listener.config.limits.idle_timeout };
    let _permit = worker.admit(service, stop, patience.deadline).await?;

    let preface = connection.preface(service);
    let as_its_client = service.config.protocol == Protocol::Detect;
    let needs = if as_its_client && call.is_for_http2() { Needs::Http2 } else { call.needs() };
    let to = upstream::Way::to(service, preface.as_deref(), needs);
    let mut tried = Tried::default();
    let mut last = Reason::NoEndpoint;
    loop {
        let (endpoint, original) = match service.config.destination {
            Destination::Endpoints => (upstream::pick(worker, service, target.service, &mut tried).ok_or(last)?, None),
            Destination::Original => {
                let original = connection.original().ok_or(Reason::NoOriginalDestination)?;
                if account.attempts > 0 {
                    return Err(last);
                }
                (&original.endpoint, Some(&original.state))
            }
        };
        let state = || original.map_or_else(|| worker.pools.state(endpoint.place), Rc::clone);
        way.endpoint = Some(endpoint);
        if call.head().authority().is_none() {
            call.name_host(if original.is_some() { &endpoint.text } else { &service.config.name });
        }
        account.attempts = account.attempts.saturating_add(1);
        let lease = match upstream::lease(worker, service, endpoint, state(), to, stop, patience.deadline).await {
            Ok(lease) => lease,
            Err(reason) if may_try_elsewhere(reason, account, service) => {
                last = reason;
                continue;
            }
            Err(reason) => return Err(reason),
        };
        let stale = match call.exchange(lease, patience, account).await {
            Err(Failed::Stale) => true,
            Err(Failed::Ended(reason)) => return Err(reason),
            Ok(()) => return Ok(()),
        };
        debug_assert!(stale);
        // The endpoint closed the connection while it was unused. A new one tells whether it is there at all.
        account.attempts = account.attempts.saturating_add(1);
        match upstream::connect(worker, service, endpoint, state(), to, stop, patience.deadline).await {
            Ok(lease) => {
                return call.exchange(lease, patience, account).await.map_err(|failed| match failed {
                    Failed::Stale => Reason::UpstreamReset,
                    Failed::Ended(reason) => reason,
                });
            }
            Err(reason) if may_try_elsewhere(reason, account, service) => last = reason,
            Err(reason) => return Err(reason),
        }
    }
}

/// Whether there is a point in another endpoint: no byte was sent to this one, and there may be more attempts.
fn may_try_elsewhere(reason: Reason, account: &Account, service: &Service) -> bool {
    reason.retry() == Retry::Elsewhere && u32::from(account.attempts) <= service.config.connect_retries
}

#[allow(clippy::too_many_arguments, reason = "one story, told once")]
fn tell<'a, N: Net>(
    worker: &Worker<N>,
    connection: &Connection<N>,
    tables: &Tables,
    listener: &Listener,
    asked: impl FnOnce() -> Asked<'a>,
    begun: Instant,
    way: &Way<'_>,
    account: &Account,
    reason: Reason,
) {
    let micros = worker.net.now().saturating_since(begun).as_micros() as u64;
    count(worker, way.series.unwrap_or(listener.unrouted), account, reason, micros);
    let logged = tables.settings.as_ref().is_some_and(|settings| settings.access_log == AccessLog::On);
    if !logged {
        return;
    }
    let asked = asked();
    worker.tell(&Event::Access(Access {
        time: unix_micros(),
        listener: &listener.config.name,
        route: way.rule.map_or("", |rule| &rule.route),
        rule: way.rule.map_or("", |rule| &rule.name),
        service: way.service.map_or("", |service| &service.config.name),
        endpoint: way.endpoint.map_or("", |endpoint| &endpoint.text),
        client: connection.client_text(),
        peer: connection.peer_id().map_or("", |id| id.as_str()),
        decided_by: way.decided_by,
        method: clip(asked.method),
        path: clip(asked.path),
        authority: clip(asked.authority),
        status: account.status,
        grpc_status: account.grpc_status,
        reason: reason as u8,
        attempts: account.attempts,
        duration: micros,
        request_bytes: account.request_bytes,
        response_bytes: account.response_bytes,
    }));
}

/// Counts a request that has ended.
fn count<N: Net>(worker: &Worker<N>, series: Series, account: &Account, reason: Reason, micros: u64) {
    let Some(counters) = worker.recorder.series(series) else { return };
    let class = usize::from(account.status / 100).min(5);
    counters.add(counter::CLASS + class, 1);
    counters.add(counter::REASON + reason as usize, 1);
    counters.add(counter::DURATION_SUM, micros);
    counters.observe(micros);
    if account.request_bytes > 0 {
        counters.add(counter::REQUEST_BYTES, account.request_bytes);
    }
    if account.response_bytes > 0 {
        counters.add(counter::RESPONSE_BYTES, account.response_bytes);
    }
    if let Some(status) = account.grpc_status {
        counters.add(counter::GRPC + usize::from(status), 1);
    }
    if account.attempts > 1 {
        counters.add(counter::RETRIES, u64::from(account.attempts - 1));
    }
}

/// Does something when it goes, also when a panic unwinds.
pub struct OnDrop<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
