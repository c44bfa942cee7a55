//! From a connected stream to a TLS connection with a known peer, or to the cause why there is none.

use std::rc::Rc;
use std::sync::Arc;

use ringmesh_codec::{mux, sniff};
use ringmesh_model::spiffe::SpiffeId;
use ringmesh_ring::{Buffer, Output, Size, Stop, Stream};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, CommonState, ProtocolVersion, ServerConfig};

use super::budget;
use super::config::take_asked_name;
use super::limits::MAX_REFUSED_BYTES;
use super::proof::{Proof, take_found};
use super::refused::Refused;
use super::session::{Progress, Session, has_record};
use super::shared::{Shared, State};
use super::stream::TlsStream;
use super::verify::spiffe_id;
use crate::outcome::Reason;

/// Who is at the other end of a TLS connection, and how it is protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its SPIFFE ID, checked. None only where none was asked for, see [`super::accept_as`].
    pub id: Option<Rc<SpiffeId>>,
    /// What proves that, where there is an identity.
    pub proof: Option<Proof>,
    /// The protocol version.
    pub version: &'static str,
    /// The cipher suite as IANA names it.
    pub cipher_suite: &'static str,
    /// The key exchange group as IANA names it.
    pub group: &'static str,
    /// The protocol agreed on by ALPN (RFC 7301), if both sides named any.
    pub alpn: Option<Alpn>,
    /// What it asked for, if it is a client that asked for anything.
    pub asked: Option<Box<Asked>>,
}

/// A protocol that can be agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// `http/1.1`.
    Http1,
    /// `http/1.0`, of clients that speak no later version.
    Http10,
    /// `h2`.
    Http2,
    /// Many channels between two proxies of ours ([`crate::mux`]).
    Mesh,
    /// The same, where each carries HTTP/1.1 in place of a later version.
    MeshHttp,
}

impl Alpn {
    /// As it is written in a handshake.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http10 => "http/1.0",
            Self::Http2 => "h2",
            Self::Mesh => mux::ALPN,
            Self::MeshHttp => mux::ALPN_HTTP,
        }
    }

    fn from_name(name: &[u8]) -> Option<Self> {
        [Self::Http1, Self::Http10, Self::Http2, Self::Mesh, Self::MeshHttp]
            .into_iter()
            .find(|alpn| alpn.name().as_bytes() == name)
    }
}

/// What a client asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The host (SNI, RFC 6066 section 3), where certificates are chosen by it.
    pub name: Option<Box<str>>,
    /// The protocol that was agreed on (ALPN, RFC 7301).
    pub protocol: Option<Box<[u8]>>,
}

/// Takes the server's side of a handshake.
///
/// The deadline is the stop's. On a refusal the peer has been sent the alert that fits, and the stream is closed.
///
/// # Errors
/// By cause, see [`Refused`].
pub async fn accept<S: Stream>(
    stream: S,
    config: Arc<ServerConfig>,
    stop: &Stop,
) -> Result<(TlsStream<S>, Peer), Refused> {
    known(accept_read(stream, config, Buffer::hollow(), stop, &mut None).await?)
}

/// A refused client that may not have read yet why. It has finished its side of the handshake and goes on to what it came for
/// (RFC 8446 section 4.4.2.4): were the connection closed now, the answer to its next bytes would be a reset, and all that its
/// program could say of it is that the connection broke.
pub struct Parting<S: Stream>(Rc<Shared<S>>);

impl<S: Stream> Parting<S> {
    /// Takes what it still sends, until it has seen our end, or sends too much, or `stop`.
    pub async fn linger(self, stop: &Stop) {
        let mut dropped = Buffer::take(Size::Small);
        let mut left = MAX_REFUSED_BYTES;
        while left > 0 {
            match self.0.inner.fill(&mut dropped, stop).await {
                Ok(0) | Err(_) => return,
                Ok(count) => left = left.saturating_sub(count),
            }
            dropped.clear();
        }
    }
}

/// Like [`accept`], of a client from whom these bytes have been read already, and who need not prove who it is. If it is
/// refused for its certificate, it is left in `parting`.
pub(super) async fn accept_read<S: Stream>(
    stream: S,
    config: Arc<ServerConfig>,
    arrived: Buffer,
    stop: &Stop,
    parting: &mut Option<Parting<S>>,
) -> Result<(TlsStream<S>, Peer), Refused> {
    let session = UnbufferedServerConnection::new(config).map_err(Refused::Protocol)?;
    let shared = Shared::new(stream, Session::Server(session));
    shared.state.borrow_mut().reading.input = arrived;
    let accepted = run(shared.clone(), stop).await;
    if let Err(Refused::NoCertificate | Refused::Certificate(_)) = &accepted {
        *parting = Some(Parting(shared));
    }
    accepted
}

/// Takes the client's side of a handshake. It is over before the server has seen our certificate (RFC 8446 section 2):
/// if that is refused, the first read says so, see [`Refused::inside`].
///
/// # Errors
/// By cause, see [`Refused`].
pub async fn connect<S: Stream>(
    stream: S,
    config: Arc<ClientConfig>,
    stop: &Stop,
) -> Result<(TlsStream<S>, Peer), Refused> {
    step(stop).await?;
    // Our verifier does not ask for the name, and an address is never sent.
    let name = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
    let session = UnbufferedClientConnection::new(config, name).map_err(Refused::Protocol)?;
    known(run(Shared::new(stream, Session::Client(session)), stop).await?)
}

/// Refuses a peer that has not proved who it is.
pub(super) fn known<S: Stream>((stream, peer): (TlsStream<S>, Peer)) -> Result<(TlsStream<S>, Peer), Refused> {
    match peer.id {
        Some(_) => Ok((stream, peer)),
        None => Err(Refused::NoCertificate),
    }
}

async fn run<S: Stream>(shared: Rc<Shared<S>>, stop: &Stop) -> Result<(TlsStream<S>, Peer), Refused> {
    let mut output = Output::new();
    let mut first = true;
    let (mut name, mut proof) = (None, None);
    let mut has_received = !shared.state.borrow().reading.input.is_empty();
    loop {
        if has_received && std::mem::take(&mut first) && !speaks_tls(&shared.state.borrow()) {
            return Err(answer_plain_http(&shared, stop).await.unwrap_or(Refused::NotTls));
        }
        if has_received && shared.state.borrow().has_flight() {
            step(stop).await?;
        }
        let stage = shared.state.borrow_mut().advance(&mut output);
        // The library tells it to who chooses the certificate, on this thread and within this step.
        name = take_asked_name().or(name);
        // So does the verifier.
        proof = take_found().or(proof);
        let sent = shared.inner.flush(&mut output, stop).await;
        match stage {
            Ok(Stage::Over) => {
                sent?;
                let peer = peer(shared.state.borrow().session.common(), name, proof)?;
                return Ok((TlsStream { shared }, peer));
            }
            Ok(Stage::Waiting) => sent?,
            Err(refused) => {
                part(&shared.inner);
                return Err(refused);
            }
        }
        receive(&shared, stop).await?;
        has_received = true;
    }
}

/// Where a handshake stands after a step.
enum Stage {
    /// The peer's next flight is needed.
    Waiting,
    /// It is complete.
    Over,
}

impl State {
    /// Takes steps until the peer's next bytes are needed. What is to be sent goes to `output`, also after a refusal.
    fn advance(&mut self, output: &mut Output) -> Result<Stage, Refused> {
        let stage = loop {
            let progress = match self.reading.shake(&mut self.session, &mut self.pending) {
                Ok(progress) => progress,
                Err(refused) => break Err(refused),
            };
            let common = self.session.common();
            match progress {
                Progress::PeerClosed if common.is_handshaking() => break Err(Refused::Closed),
                // Its end may have come together with its last flight: it has nothing to send, and is served all the same.
                _ if !common.is_handshaking() && !common.wants_write() => break Ok(Stage::Over),
                Progress::NeedsInput => break Ok(Stage::Waiting),
                Progress::Again | Progress::PeerClosed => {}
            }
        };
        output.push_bytes(&self.pending);
        self.pending = Vec::new();
        stage
    }

    /// Whether a step is worth its place in the budget: bytes of a record that is not whole yet cost next to nothing.
    fn has_flight(&self) -> bool {
        has_record(self.reading.input.filled())
    }
}

/// Waits for a place in the turn. One whose time ran out meanwhile costs nothing more: under a flood that is what lets
/// the others be in time.
async fn step(stop: &Stop) -> Result<(), Refused> {
    budget::step().await;
    stop.reason().map_or(Ok(()), |reason| Err(Refused::Stopped(reason)))
}

/// Receives the next bytes of the handshake.
async fn receive<S: Stream>(shared: &Shared<S>, stop: &Stop) -> Result<(), Refused> {
    let mut input = shared.state.borrow_mut().reading.lend()?;
    let received = shared.inner.fill(&mut input, stop).await;
    let reading = &mut shared.state.borrow_mut().reading;
    reading.give_back(input, received.as_ref().ok().copied());
    match received? {
        0 => Err(Refused::Closed),
        _ if reading.failed() => Err(Refused::TooLarge),
        _ => Ok(()),
    }
}

/// Whether the first byte is that of a handshake record, or of an alert, which a server may answer with.
fn speaks_tls(state: &State) -> bool {
    let alert = matches!(state.session, Session::Client(_)).then_some(0x15);
    state.reading.input.filled().first().is_some_and(|byte| *byte == 0x16 || Some(*byte) == alert)
}

/// Tells a client that has sent a request in plain text what is spoken here. None: it has sent something else.
async fn answer_plain_http<S: Stream>(shared: &Shared<S>, stop: &Stop) -> Option<Refused> {
    let is_plain_http = {
        let state = shared.state.borrow();
        matches!(state.session, Session::Server(_)) && sniff::is_plain_http(state.reading.input.filled())
    };
    if !is_plain_http {
        return None;
    }
    let mut output = Output::new();
    output.push_bytes(&Reason::PlainToTlsPort.last_answer());
    // It may be gone already, or have no time left: then there is nobody left to tell.
    if shared.inner.flush(&mut output, stop).await.is_ok() {
        part(&shared.inner);
    }
    Some(Refused::PlainHttp)
}

/// Ends a refused connection so that the alert arrives: what the peer has sent already is taken, since closing with
/// bytes unread makes the kernel send a reset.
fn part<S: Stream>(stream: &S) {
    let mut dropped = Buffer::take(Size::Small);
    let mut left = MAX_REFUSED_BYTES;
    while let Ok(Some(1..)) = stream.try_fill(&mut dropped) {
        left = left.saturating_sub(dropped.len());
        dropped.clear();
        if left == 0 {
            break;
        }
    }
    // The peer may be gone already; there is nobody left to tell.
    let _ = stream.shutdown_write();
}

/// As everybody writes it.
fn version(version: ProtocolVersion) -> Option<&'static str> {
    match version {
        ProtocolVersion::TLSv1_2 => Some("TLSv1.2"),
        ProtocolVersion::TLSv1_3 => Some("TLSv1.3"),
        _ => None,
    }
}

fn peer(connection: &CommonState, asked_name: Option<Box<str>>, proof: Option<Proof>) -> Result<Peer, Refused> {
    let asked = Asked { name: asked_name, protocol: connection.alpn_protocol().map(Box::from) };
    // There is one only where our verifier has checked it.
    let leaf = connection.peer_certificates().and_then(|chain| chain.first()).filter(|_| proof.is_some());
    let name = |name: Option<&'static str>| name.unwrap_or("unknown");
    Ok(Peer {
        id: leaf.map(spiffe_id).transpose()?.map(Rc::new),
        proof: proof.filter(|_| leaf.is_some()),
        version: name(connection.protocol_version().and_then(version)),
        cipher_suite: name(connection.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str())),
        alpn: connection.alpn_protocol().and_then(Alpn::from_name),
        group: name(connection.negotiated_key_exchange_group().and_then(|group| group.name().as_str())),
        asked: (asked != Asked::default()).then(|| Box::new(asked)),
    })
}
