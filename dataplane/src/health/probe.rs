//! One probe of one endpoint, on a way of its own: the connections of requests, and what they say of an endpoint, are others'.

use std::fmt;
use std::rc::Rc;

use bytes::{Buf, Bytes};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, header};
use ringmesh_codec::framing::BodyLength;
use ringmesh_codec::grpc_health::{self, Serving};
use ringmesh_codec::http1::ResponseHead;
use ringmesh_codec::limits::Limits;
use ringmesh_codec::proxy_protocol;
use ringmesh_codec::{grpc as words, head};
use ringmesh_model::health::Probe;
use ringmesh_model::snapshot::{HealthCheck, ProxyVersion};
use ringmesh_ring::buffer::{Buffer, Size};
use ringmesh_ring::clock::Instant;
use ringmesh_ring::net::Net;
use ringmesh_ring::output::Output;
use ringmesh_ring::stop::{Reason as StopReason, Stop};

use crate::outcome::Reason;
use crate::pool::{Lease, Leased, State, shared};
use crate::proxy::exchange::data::Data;
use crate::proxy::exchange::head::request_to_http1;
use crate::proxy::exchange::{Answer, Lost, More, Part, Sink, http1, http2};
use crate::proxy::grpc;
use crate::tables::{Endpoint, Service};
use crate::upstream::{self, Needs, Way};
use crate::worker::Worker;

/// Most bytes of an answer that are read. A page may be longer: its status is known then.
const MAX_ANSWER_BYTES: usize = 16 * 1024;

/// Most interim answers to one probe.
const MAX_INTERIM: u32 = 10;

/// Who asks, for the endpoint's log.
const USER_AGENT: &str = "ringmesh-health";

/// Why a probe failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is no connection to it.
    Unreachable(Reason),
    /// It did not answer in time.
    Silent,
    /// It ended the connection, or the request on it.
    Cut,
    /// What it answered is not what it is to speak.
    Garbage,
    /// An HTTP status that is not healthy.
    Status(u16),
    /// A gRPC status other than OK.
    Grpc(u8),
    /// It says so itself.
    Says(Serving),
    /// The name of the service, or the host, is none that a request can have.
    Unfit,
}

impl fmt::Display for Failure {
    /// What went wrong, and what to try where that is known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(reason) => write!(f, "no connection ({})", reason.label()),
            Self::Silent => f.write_str("no answer in time"),
            Self::Cut => f.write_str("it ended the connection"),
            Self::Garbage => f.write_str("its answer cannot be understood; does `protocol` say what it speaks?"),
            Self::Status(status) => write!(f, "it answered {status}"),
            Self::Grpc(5) => f.write_str("gRPC status 5: it does not know the service; is `service` right?"),
            Self::Grpc(12) => f.write_str(
                "gRPC status 12: it has no grpc.health.v1.Health; register that service there, or check with kind = \"tcp\"",
            ),
            Self::Grpc(status) => write!(f, "gRPC status {status}"),
            Self::Says(Serving::NotServing) => f.write_str("it says NOT_SERVING"),
            Self::Says(Serving::ServiceUnknown) => f.write_str("it says SERVICE_UNKNOWN; is `service` right?"),
            Self::Says(_) => f.write_str("it says UNKNOWN"),
            Self::Unfit => f.write_str("no request can be made of `host` and `path`"),
        }
    }
}

/// How an exchange failed.
enum Failed {
    /// The connection had been used before, and has ended: a new one tells.
    Stale,
    As(Failure),
}

/// Asks an endpoint whether it serves. `state` keeps the connection for the next time.
///
/// # Errors
/// Why it does not.
pub async fn probe<N: Net>(
    worker: &Rc<Worker<N>>,
    service: &Service,
    endpoint: &Endpoint,
    check: &HealthCheck,
    state: &Rc<State<N::Stream>>,
) -> Result<(), Failure> {
    let stop = worker.net.stop();
    let until = worker.net.now() + check.timeout;
    stop.set_deadline(Some(until));
    // As for a connection of our own, which this is.
    let preface = service.config.proxy_protocol.map(|version| {
        let version = match version {
            ProxyVersion::V1 => proxy_protocol::Version::V1,
            ProxyVersion::V2 => proxy_protocol::Version::V2,
        };
        proxy_protocol::write(version, &proxy_protocol::Header::default())
    });
    let preface = preface.as_deref();
    let unreachable = |reason| Failure::Unreachable(reason);
    if check.probe == Probe::Tcp {
        let way = Way::to(service, preface, Needs::Connection);
        let connected = upstream::dedicated(worker, service, endpoint, state.clone(), way, &stop, Some(until)).await;
        return connected.map(drop).map_err(unreachable);
    }
    let asked = Asked::new(service, check).ok_or(Failure::Unfit)?;
    let way = Way::to(service, preface, Needs::Http2);
    let lease = upstream::lease(worker, service, endpoint, state.clone(), way, &stop, Some(until)).await;
    match asked.exchange(worker, lease.map_err(unreachable)?, &stop, until).await {
        Ok(()) => return Ok(()),
        Err(Failed::As(failure)) => return Err(failure),
        Err(Failed::Stale) => {}
    }
    let lease = upstream::connect(worker, service, endpoint, state.clone(), way, &stop, Some(until)).await;
    asked.exchange(worker, lease.map_err(unreachable)?, &stop, until).await.map_err(|failed| match failed {
        Failed::As(failure) => failure,
        Failed::Stale => Failure::Cut,
    })
}

/// What is asked.
struct Asked<'a> {
    probe: &'a Probe,
    authority: Authority,
    path: PathAndQuery,
}

/// What was answered.
struct Answered {
    status: u16,
    head: HeaderMap,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

impl<'a> Asked<'a> {
    fn new(service: &'a Service, check: &'a HealthCheck) -> Option<Self> {
        let (path, host) = match &check.probe {
            Probe::Http { path, host, .. } => (path.as_str(), host.as_deref()),
            Probe::Grpc { .. } | Probe::Tcp => (grpc_health::PATH, None),
        };
        let authority = Authority::try_from(host.unwrap_or(&service.config.name)).ok()?;
        Some(Self { probe: &check.probe, authority, path: PathAndQuery::try_from(path).ok()? })
    }

    async fn exchange<N: Net>(
        &self,
        worker: &Rc<Worker<N>>,
        lease: Leased<N>,
        stop: &Stop,
        until: Instant,
    ) -> Result<(), Failed> {
        let reused = match &lease {
            Leased::Own(lease) => lease.reused,
            Leased::Shared(lease) => lease.reused,
        };
        let answered = match lease {
            Leased::Own(lease) => Box::pin(self.over_http1(worker, lease, stop)).await,
            Leased::Shared(lease) => Box::pin(self.over_http2(worker, &lease, stop, until)).await,
        };
        let answered = answered.map_err(|lost| match lost {
            Lost::Unprocessed => Failed::Stale,
            Lost::Gone | Lost::Io(_) | Lost::Cut if reused => Failed::Stale,
            Lost::Stopped(StopReason::Deadline) => Failed::As(Failure::Silent),
            Lost::Gone | Lost::Io(_) | Lost::Cut | Lost::Stopped(_) => Failed::As(Failure::Cut),
            Lost::Broken | Lost::TooLarge => Failed::As(Failure::Garbage),
        })?;
        self.judge(&answered).map_err(Failed::As)
    }

    async fn over_http1<N: Net>(&self, worker: &Rc<Worker<N>>, lease: Lease<N>, stop: &Stop) -> Result<Answered, Lost> {
        let mut output = Output::new();
        let fields = HeaderMap::from_iter([(header::USER_AGENT, HeaderValue::from_static(USER_AGENT))]);
        let (path, host) = (self.path.as_str().as_bytes(), self.authority.as_str().as_bytes());
        request_to_http1(&Method::GET, path, host, &fields, BodyLength::None, &mut output);
        http1::Outgoing::new(&lease.transport, &mut output, BodyLength::None).flush(stop).await?;
        let (mut parsed, limits) = (ResponseHead::default(), Limits::default());
        let buffer = Buffer::take(Size::Small);
        let mut answer = http1::Awaited::new(&lease.transport, &mut parsed, buffer, head::Method::Get, &limits);
        let answered = read(&mut answer, stop).await?;
        let persists = answer.persists();
        drop(answer);
        if persists {
            lease.give_back(worker);
        }
        Ok(answered)
    }

    async fn over_http2<N: Net>(
        &self,
        worker: &Rc<Worker<N>>,
        lease: &shared::Lease<N>,
        stop: &Stop,
        until: Instant,
    ) -> Result<Answered, Lost> {
        let mut request = Request::new(());
        *request.version_mut() = Version::HTTP_2;
        let uri = Uri::builder().scheme(lease.hop().scheme()).authority(self.authority.clone());
        *request.uri_mut() = uri.path_and_query(self.path.clone()).build().map_err(|_unfit| Lost::Broken)?;
        let fields = request.headers_mut();
        fields.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        let message = match self.probe {
            Probe::Grpc { service } => {
                fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                fields.insert(header::TE, HeaderValue::from_static("trailers"));
                grpc::pass_timeout_on(fields, Some(until), worker.net.now());
                *request.method_mut() = Method::POST;
                Some(grpc_health::write_request(service))
            }
            Probe::Http { .. } | Probe::Tcp => None,
        };
        let (head, upload) = lease.send(request, message.is_none())?;
        let mut upload = http2::Upload::new(upload, |bytes| lease.sends(bytes));
        if let Some(message) = message {
            let message = Data::Bytes(Bytes::from(message));
            if let Some(message) = upload.data_at_once(message, More::Nothing)? {
                upload.data(message, More::Nothing, stop).await?;
            }
        }
        let answered = read(&mut http2::Awaited::new(head, lease.may_be_interim()), stop).await;
        lease.close_if_over();
        answered
    }

    fn judge(&self, answered: &Answered) -> Result<(), Failure> {
        match self.probe {
            Probe::Http { status: None, .. } if (200..300).contains(&answered.status) => Ok(()),
            Probe::Http { status: Some(status), .. } if *status == answered.status => Ok(()),
            Probe::Grpc { .. } if answered.status == 200 => {
                let told = answered.trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
                let told = told.or_else(|| answered.head.get("grpc-status"));
                match told.map(|status| words::parse_status(status.as_bytes())) {
                    Some(0) => match grpc_health::read_response(&answered.body) {
                        Some(Serving::Serving) => Ok(()),
                        Some(other) => Err(Failure::Says(other)),
                        None => Err(Failure::Garbage),
                    },
                    Some(status) => Err(Failure::Grpc(status)),
                    None => Err(Failure::Garbage),
                }
            }
            _ => Err(Failure::Status(answered.status)),
        }
    }
}

/// Reads an answer to its end, or as far as is read of one.
async fn read(answer: &mut impl Answer, stop: &Stop) -> Result<Answered, Lost> {
    let mut interim = 0;
    let response = loop {
        let response = answer.head(stop).await?;
        if !response.status().is_informational() {
            break response;
        }
        interim += 1;
        if interim > MAX_INTERIM {
            return Err(Lost::Broken);
        }
    };
    let (parts, ()) = response.into_parts();
    let mut answered =
        Answered { status: parts.status.as_u16(), head: parts.headers, body: Vec::new(), trailers: None };
    while !answer.is_done() {
        match answer.next(stop).await? {
            Part::Data(data) => {
                let bytes = data.remaining();
                if answered.body.len() + bytes > MAX_ANSWER_BYTES {
                    break;
                }
                answered.body.extend_from_slice(data.chunk());
                answer.passed(bytes);
            }
            Part::End(trailers) => {
                answered.trailers = trailers;
                break;
            }
        }
    }
    Ok(answered)
}
