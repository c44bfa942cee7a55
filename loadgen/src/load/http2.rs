//! HTTP/2 load: each task is one stream after the other, on a connection that it shares.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use http::{HeaderName, HeaderValue, Method, Request, Uri, Version};
use ringmesh_ring::Instant;
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::Stop;

use super::connection::Answer;
use super::count::Counted;
use super::draft::Draft;
use super::entry::{Entry, Mix, pattern_bytes};
use super::grpc::{self, Grpc};
use super::links::{Lease, Link};
use super::seen::Seen;
use super::worker::{self, Due, Ready, Shared};
use super::{Http, Reuse};
use crate::report::Failure;
use crate::tls;
use crate::wait::{First, first};

/// How often a request is begun again that the server says it has not looked at (RFC 9113 section 8.7).
const MAX_ATTEMPTS: usize = 3;

/// What all streams of a thread send.
pub(super) struct Plan {
    calls: Vec<Call>,
    /// For those calls that are made anew for each request.
    drafts: Vec<Option<Draft>>,
    security: Security,
    mix: RefCell<Mix>,
    tls: Option<tls::Client>,
    reuse: Reuse,
    count_field: Option<String>,
}

/// A request, made once.
pub(super) struct Call {
    pub(super) entry: Entry,
    pub(super) request: Request<()>,
    pub(super) body: Bytes,
    pub(super) grpc: Option<Grpc>,
}

/// Why an exchange has no answer.
pub(super) enum Fault {
    /// The server has not looked at the request, and takes no more on this connection.
    Gone,
    /// The connection or the stream broke.
    Broken(Failure, h2::Error),
    Failed(Failure),
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Call {
    /// # Errors
    /// What is wrong with the entry.
    pub(super) fn new(entry: &Entry, security: Security, grpc: Option<Grpc>) -> Result<Self, http::Error> {
        let scheme = match security {
            Security::Plain => "http",
            Security::Tls => "https",
        };
        let uri = Uri::builder().scheme(scheme).authority(entry.host.as_str()).path_and_query(entry.path.as_str());
        let mut request = Request::builder()
            .version(Version::HTTP_2)
            .method(Method::from_bytes(entry.method.as_bytes())?)
            .uri(uri.build()?)
            .body(())?;
        for (name, value) in &entry.fields {
            request.headers_mut().append(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
        }
        let body = match &grpc {
            Some(grpc) => {
                grpc::add_fields(&mut request);
                grpc.frame()
            }
            None => entry.body.clone().unwrap_or_else(|| pattern_bytes(entry.body_bytes)),
        };
        if grpc.is_none() && !body.is_empty() {
            request.headers_mut().insert(http::header::CONTENT_LENGTH, body.len().into());
        }
        Ok(Self { entry: entry.clone(), request, body, grpc })
    }
}

/// Whether connections are TLS, which the scheme says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Security {
    Plain,
    Tls,
}

impl Security {
    pub(super) fn of(settings: &super::Settings) -> Self {
        if settings.tls.is_some() { Self::Tls } else { Self::Plain }
    }
}

impl Plan {
    pub(super) fn new(shared: &Shared, http: &Http, grpc: Option<&Grpc>) -> Self {
        let security = Security::of(&shared.settings);
        let drafts: Vec<_> = match grpc {
            // Its messages are bytes, and its paths are methods.
            Some(_) => http.entries.iter().map(|_| None).collect(),
            None => http.entries.iter().map(Draft::checked).collect(),
        };
        let call = |(entry, draft): (&Entry, &Option<Draft>)| {
            let example = draft.as_ref().map(Draft::example);
            let entry = example.as_ref().unwrap_or(entry);
            Call::new(entry, security, grpc.cloned()).expect("checked before the load started")
        };
        Self {
            calls: http.entries.iter().zip(&drafts).map(call).collect(),
            drafts,
            security,
            mix: RefCell::new(Mix::new(http.entries.iter().map(|entry| entry.weight))),
            tls: shared.settings.tls.as_ref().map(|tls| tls.offering(&[tls::HTTP2])),
            reuse: http.reuse,
            count_field: http.count_field.clone(),
        }
    }
}

/// One stream at a time.
struct Task {
    shared: Rc<Shared>,
    plan: Rc<Plan>,
    stop: Stop,
    /// One for each target.
    links: Rc<[Rc<Link>]>,
}

/// Starts a thread's connections, with so many streams each.
pub(super) fn spawn(shared: &Rc<Shared>, plan: Plan, connections: usize, streams: usize) {
    let plan = Rc::new(plan);
    for _ in 0..connections {
        let links: Rc<[Rc<Link>]> = shared.settings.targets.iter().map(|_| Rc::default()).collect();
        for _ in 0..streams {
            let task =
                Task { stop: shared.net.stop(), shared: shared.clone(), plan: plan.clone(), links: links.clone() };
            worker::spawn(shared, |ready| task.run(ready));
        }
    }
}

impl Task {
    async fn run(self, ready: Ready) {
        if self.plan.reuse == Reuse::KeepAlive {
            self.shared.begin_deadline(&self.stop);
            for target in 0..self.links.len() {
                // A failure here is met again, and counted, with the first request.
                let _failure = self.sender(target).await;
            }
            self.stop.set_deadline(None);
        }
        self.shared.begin(ready).await;
        while let Some(due) = self.shared.next().await {
            let failure = self.request(&due).await;
            self.shared.pause_after(failure).await;
        }
    }

    /// One request, counted. Says why it failed, if it did.
    async fn request(&self, due: &Due) -> Option<Failure> {
        let entry = self.plan.mix.borrow_mut().pick();
        let made = self.plan.drafts[entry].as_ref().map(|draft| draft.fill(&self.shared.values()));
        let made = made.map(|entry| Call::new(&entry, self.plan.security, None).expect("its example was checked"));
        let call = made.as_ref().unwrap_or(&self.plan.calls[entry]);
        let target = self.shared.pick_target();
        let begin = Instant::now();
        self.shared.delayed(due, begin);
        self.shared.begin_deadline(&self.stop);
        let result = self.attempts(target, call).await;
        self.stop.set_deadline(None);
        let (sent, received) = self.links[target].take_counts();
        let result = result.map(|answer| Answer { bytes: received, ..answer });
        let counted = Counted {
            entry,
            expect: call.entry.expect,
            begin,
            bytes_sent: sent,
            counts_field: self.plan.count_field.is_some(),
        };
        self.shared.count(due, &counted, &result);
        result.err()
    }

    async fn attempts(&self, target: usize, call: &Call) -> Result<Answer, Failure> {
        for _ in 0..MAX_ATTEMPTS {
            let lease = self.sender(target).await?;
            let exchange = self.exchange(call, lease.sender);
            let result = match first(exchange, self.stop.stopped()).await {
                First::One(result) => result,
                First::Other(_) => Err(Fault::Failed(Failure::Timeout)),
            };
            if self.plan.reuse == Reuse::PerRequest {
                self.links[target].close(lease.generation);
            }
            match result {
                Ok(answer) => return Ok(answer),
                Err(Fault::Failed(failure)) => return Err(failure),
                Err(Fault::Broken(failure, error)) => {
                    self.explain(target, failure, &error);
                    return Err(self.shared.blame(target, &lease.transport, failure));
                }
                Err(Fault::Gone) if lease.transport.tls().is_some_and(|stream| stream.fault().is_some()) => {
                    return Err(self.shared.blame(target, &lease.transport, Failure::Cut));
                }
                Err(Fault::Gone) => {
                    if self.links[target].close(lease.generation) {
                        self.shared.report.borrow_mut().closed_by_server += 1;
                    }
                }
            }
        }
        Err(Failure::Cut)
    }

    /// Says what HTTP/2 says; what TCP or TLS have to say comes from them.
    fn explain(&self, target: usize, failure: Failure, error: &h2::Error) {
        if error.is_io() {
            return;
        }
        let address = &self.shared.settings.targets[target].address;
        let advice = if failure == Failure::Malformed { "; does it speak HTTP/2 there?" } else { "" };
        self.shared.explain(|| format!("HTTP/2 with {address}: {error}{advice}"));
    }

    async fn sender(&self, target: usize) -> Result<Lease, Failure> {
        self.links[target].sender(&self.shared, target, self.plan.tls.as_ref(), &self.stop).await
    }

    async fn exchange(&self, call: &Call, sender: SendRequest<Bytes>) -> Result<Answer, Fault> {
        let sender = sender.ready().await.map_err(not_begun)?;
        match &call.grpc {
            Some(grpc) => grpc::exchange(call, grpc, sender).await,
            None => exchange(call, sender, self.plan.count_field.as_deref()).await,
        }
    }
}

async fn exchange(call: &Call, mut sender: SendRequest<Bytes>, field: Option<&str>) -> Result<Answer, Fault> {
    let (response, mut body) =
        sender.send_request(call.request.clone(), call.body.is_empty()).map_err(before_the_answer)?;
    if !call.body.is_empty() {
        // Shared, not copied; the library sends it as the windows allow.
        body.send_data(call.body.clone(), true).map_err(before_the_answer)?;
    }
    let (head, mut stream) = response.await.map_err(before_the_answer)?.into_parts();
    let field = field.and_then(|name| head.headers.get(name));
    let field = field.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let mut seen = Seen::new(call.entry.check, call.entry.length(), call.entry.body.as_ref());
    while let Some(data) = next_data(&mut stream).await? {
        seen.take(&data);
    }
    let status = head.status.as_u16();
    if call.entry.expect.admits(status) && !seen.is_right() {
        return Err(Failure::WrongBody.into());
    }
    Ok(Answer { status, field, bytes: 0, persistent: true })
}

/// The next part of a body, whose window is given back at once.
pub(super) async fn next_data(stream: &mut RecvStream) -> Result<Option<Bytes>, Fault> {
    let Some(data) = stream.data().await else { return Ok(None) };
    let data = data.map_err(within_the_answer)?;
    // Fails only where nothing more comes.
    let _ended = stream.flow_control().release_capacity(data.len());
    Ok(Some(data))
}

/// No stream could be had: the connection is over, and the request was not sent.
fn not_begun(error: h2::Error) -> Fault {
    match before_the_answer(error) {
        Fault::Broken(Failure::Cut, _) => Fault::Gone,
        other => other,
    }
}

pub(super) fn before_the_answer(error: h2::Error) -> Fault {
    if error.is_remote() && error.is_go_away() && error.reason() == Some(Reason::NO_ERROR) {
        return Fault::Gone;
    }
    let ended = error.is_io() || error.is_remote();
    Fault::Broken(if ended { Failure::Cut } else { Failure::Malformed }, error)
}

pub(super) fn within_the_answer(error: h2::Error) -> Fault {
    let ended = error.is_io() || error.is_remote();
    Fault::Broken(if ended { Failure::Truncated } else { Failure::Malformed }, error)
}
