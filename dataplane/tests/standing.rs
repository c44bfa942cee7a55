//! What becomes of connections whose peers' certificates end, or whose root is not trusted any more, and of requests that wait for
//! one that many are to share. The clock is the world's: it moves only when nothing else can.

#![allow(clippy::unwrap_used, reason = "a test ends where its own world is broken")]

mod world;

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};
use ringmesh_codec::mux::{Frame, data_header};
use ringmesh_dataplane::outcome::Reason;
use ringmesh_dataplane::proxy::relay::{Raced, race};
use ringmesh_dataplane::tls::{self, Alpn, TlsStream};
use ringmesh_model::snapshot::{Identity, Key, Mtls, Object, Protocol};
use ringmesh_model::spiffe::SpiffeId;
use ringmesh_ring::clock::Instant;
use ringmesh_ring::memory::{self, Network, block_on};
use ringmesh_ring::{Buffer, Net, Output, Size, Stop, Stream};
use world::World;

/// As the world's settings say.
const DRAIN: Duration = Duration::from_secs(5);

/// Longer than any of these tests.
const LONG: Duration = Duration::from_hours(1);

/// How much later than a certificate's end its connections may be ended: certificates know whole seconds, and so does who looks.
const LATE: Duration = Duration::from_millis(2_500);

struct Root(CertifiedIssuer<'static, KeyPair>);

impl Root {
    fn new() -> Self {
        let mut root = CertificateParams::default();
        root.distinguished_name.push(DnType::CommonName, "root");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap())
    }

    fn der(&self) -> Vec<u8> {
        self.0.der().to_vec()
    }

    /// An identity whose certificate ends that long from now. It trusts this root.
    fn svid(&self, name: &str, life: Duration) -> Identity {
        let mut leaf = CertificateParams::default();
        leaf.subject_alt_names = vec![SanType::URI(id(name).as_str().try_into().unwrap())];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.not_after = (SystemTime::now() + life).into();
        let key = KeyPair::generate().unwrap();
        let leaf = leaf.signed_by(&key, &self.0).unwrap();
        Identity {
            id: id(name),
            chain: vec![leaf.der().to_vec()],
            key: key.serialize_der(),
            bundle: vec![self.der()],
            expires: u64::MAX,
        }
    }
}

fn id(name: &str) -> SpiffeId {
    format!("spiffe://test/ns/default/sa/{name}").parse().unwrap()
}

fn set_identity(world: &World, identity: Identity) {
    world.reload(|objects| {
        objects.insert(Key::Identity, Object::Identity(identity.into()));
    });
}

/// Makes the listener demand clients of mutual TLS.
fn demand(world: &World, identity: Identity) {
    world.reload(|objects| {
        objects.insert(Key::Identity, Object::Identity(identity.into()));
        if let Some(Object::Listener(listener)) = objects.get_mut(&Key::Listener("in".into())) {
            Arc::make_mut(listener).mtls = Mtls::Strict;
        }
    });
}

/// Makes the service one whose endpoint is `pay`.
fn call(world: &World, identity: Identity, protocol: Protocol, shares: bool) {
    world.reload(|objects| {
        objects.insert(Key::Identity, Object::Identity(identity.into()));
        if let Some(Object::Service(service)) = objects.get_mut(&Key::Service("s".into())) {
            let service = Arc::make_mut(service);
            (service.peer, service.protocol, service.share_connections) = (Some(id("pay")), protocol, shares);
        }
    });
}

/// One end of a connection, and what has come and was not looked at.
struct End<S> {
    stream: S,
    net: Network,
    got: Vec<u8>,
}

type Secure = End<TlsStream<memory::Stream>>;

fn patience(net: &Network) -> Stop {
    let stop = net.stop();
    stop.set_deadline(Some(net.now() + Duration::from_secs(120)));
    stop
}

/// A client of the listener, which is `test`.
async fn client(world: &World, identity: &Identity, protocols: &[Alpn]) -> Secure {
    let config = tls::client(identity, &id("test"), protocols).unwrap();
    let (stream, _) = tls::connect(world.connect(), config, &patience(&world.net)).await.unwrap();
    End { stream, net: world.net.clone(), got: Vec::new() }
}

/// The endpoint's end of the next connection.
async fn endpoint(world: &World, identity: &Identity, protocols: &[Alpn]) -> Secure {
    let config = tls::server(identity, "test", protocols).unwrap();
    let (stream, _) = tls::accept(world.accept().await, config, &patience(&world.net)).await.unwrap();
    End { stream, net: world.net.clone(), got: Vec::new() }
}

impl<S: Stream> End<S> {
    async fn send(&self, bytes: &[u8]) {
        let mut output = Output::new();
        output.push_bytes(bytes);
        self.stream.flush(&mut output, &patience(&self.net)).await.unwrap();
    }

    /// Whether more has come.
    async fn has_more(&mut self) -> bool {
        let mut buffer = Buffer::take(Size::Small);
        let came = self.stream.fill(&mut buffer, &patience(&self.net)).await;
        self.got.extend_from_slice(buffer.filled());
        matches!(came, Ok(1..))
    }

    async fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.got.len() < count {
            if !self.has_more().await {
                return None;
            }
        }
        Some(self.got.drain(..count).collect())
    }

    /// Up to and including a blank line.
    async fn head(&mut self) -> String {
        let mut text = String::new();
        while !text.ends_with("\r\n\r\n") {
            text.push_str(&String::from_utf8(self.take(1).await.expect("a head")).unwrap());
        }
        text
    }

    /// When it ends.
    async fn ended(&mut self) -> Instant {
        while self.has_more().await {}
        self.net.now()
    }

    /// Kind, channel and payload of the next frame of a trunk.
    async fn frame(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        let header = self.take(8).await?;
        let length = u16::from_be_bytes([header[2], header[3]]);
        let channel = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        Some((header[0], channel, self.take(length.into()).await?))
    }

    /// Kind and stream of the next frame of HTTP/2.
    async fn frame2(&mut self) -> Option<(u8, u32)> {
        let header = self.take(9).await?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
        self.take(length as usize).await?;
        Some((header[3], stream))
    }
}

const DATA: u8 = 2;
const CLOSE: u8 = 4;
const RESET: u8 = 5;
const GOAWAY: u8 = 8;
/// What an endpoint of HTTP/2 gets first, and says first: empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: s\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

fn data(channel: u32, bytes: &[u8]) -> Vec<u8> {
    [&data_header(channel, bytes.len(), false)[..], bytes].concat()
}

async fn pass(world: &World, length: Duration) {
    ringmesh_ring::sleep_until(world.net.now() + length).await;
}

/// Between `after` and a moment later.
fn check_in_time(begun: Instant, after: Duration, ended: Instant) {
    let took = ended.saturating_since(begun);
    assert!(took + Duration::from_secs(1) >= after && took <= after + LATE, "{took:?} instead of {after:?}");
}

/// A request there and back.
async fn exchange(world: &World, client: &mut Secure) -> String {
    client.send(REQUEST).await;
    let mut upstream = End { stream: world.accept().await, net: world.net.clone(), got: Vec::new() };
    upstream.head().await;
    upstream.send(ANSWER).await;
    client.head().await
}

const LIFE: Duration = Duration::from_secs(20);

/// Short enough for a request to go on for longer: it has 10 seconds.
const SHORT: Duration = Duration::from_secs(2);

#[test]
fn an_idle_connection_ends_with_its_clients_certificate() {
    let (world, root) = (World::new(), Root::new());
    block_on(&world.net, async {
        demand(&world, root.svid("test", LONG));
        let begun = world.net.now();
        let mut client = client(&world, &root.svid("web", LIFE), &[]).await;
        assert!(!exchange(&world, &mut client).await.contains("Connection: close"));
        check_in_time(begun, LIFE, client.ended().await);
    });
}

#[test]
fn a_request_under_way_when_its_clients_certificate_ends_is_answered_and_the_last_one() {
    let (world, root) = (World::new(), Root::new());
    block_on(&world.net, async {
        demand(&world, root.svid("test", LONG));
        let mut client = client(&world, &root.svid("web", Duration::from_secs(3)), &[]).await;
        client.send(REQUEST).await;
        let mut upstream = End { stream: world.accept().await, net: world.net.clone(), got: Vec::new() };
        upstream.head().await;
        pass(&world, Duration::from_millis(4_500)).await;
        upstream.send(ANSWER).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 204 ") && head.contains("Connection: close\r\n"), "{head}");
        let answered = world.net.now();
        check_in_time(answered, Duration::ZERO, client.ended().await);
    });
    assert_eq!(world.ended(Reason::Ok), 1);
}

#[test]
fn what_is_under_way_outlives_its_clients_certificate_and_its_root_by_no_more_than_a_drain() {
    let (root, other) = (Root::new(), Root::new());
    // An answer without end, and opaque bytes.
    for (world, asks, life) in [(World::new(), REQUEST, SHORT), (World::opaque(), b"opaque", LIFE)] {
        block_on(&world.net, async {
            demand(&world, root.svid("test", LONG));
            let mut client = client(&world, &root.svid("web", life), &[]).await;
            client.send(asks).await;
            let mut upstream = End { stream: world.accept().await, net: world.net.clone(), got: Vec::new() };
            upstream.take(6).await.unwrap();
            if asks == REQUEST {
                upstream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
                client.head().await;
            }
            let goes_on = async |client: &mut Secure, upstream: &End<memory::Stream>| {
                for _ in 0..2 {
                    upstream.send(b"1\r\na\r\n").await;
                    client.take(1).await.expect("it goes on");
                    pass(&world, Duration::from_secs(1)).await;
                }
            };
            pass(&world, life).await;
            goes_on(&mut client, &upstream).await;
            if asks != REQUEST {
                pass(&world, DRAIN).await;
                goes_on(&mut client, &upstream).await;
            }
            let begun = world.net.now();
            set_identity(&world, other.svid("test", LONG));
            goes_on(&mut client, &upstream).await;
            check_in_time(begun, DRAIN, client.ended().await);
        });
        assert_eq!(world.ended(Reason::Drained) + world.connections(Reason::Drained), 1);
    }
}

#[test]
fn a_trunk_is_left_when_its_clients_certificate_ends_and_serves_nothing_that_is_opened_long_after() {
    let (world, root) = (World::new(), Root::new());
    block_on(&world.net, async {
        demand(&world, root.svid("test", LONG));
        let begun = world.net.now();
        let mut client = client(&world, &root.svid("web", LIFE), &[Alpn::Mesh]).await;
        client.send(&Frame::Hello { channels: 0 }.encode()).await;
        client.send(&[&Frame::Open { channel: 1 }.encode()[..], &data(1, REQUEST)].concat()).await;
        let mut upstream = End { stream: world.accept().await, net: world.net.clone(), got: Vec::new() };
        upstream.head().await;
        upstream.send(ANSWER).await;
        while client.frame().await.expect("an answer").0 != DATA {}
        // It could not know.
        while client.frame().await.expect("a goodbye").0 != GOAWAY {}
        check_in_time(begun, LIFE, world.net.now());
        client.send(&[&Frame::Open { channel: 2 }.encode()[..], &data(2, REQUEST)].concat()).await;
        upstream.head().await;
        upstream.send(ANSWER).await;
        let (kind, channel, bytes) = client.frame().await.unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!((kind, channel) == (DATA, 2) && text.contains("Connection: close"), "{kind} {channel} {text}");
        pass(&world, Duration::from_secs(4)).await;
        client.send(&[&Frame::Open { channel: 3 }.encode()[..], &data(3, REQUEST)].concat()).await;
        let (kind, channel) = loop {
            match client.frame().await {
                Some((kind, channel, _)) if channel == 3 => break (kind, channel),
                Some(_) => {}
                None => panic!("cut too early"),
            }
        };
        assert!(matches!(kind, CLOSE | RESET), "{kind} {channel}");
        let farewell = [1, 2].map(|channel| Frame::Close { channel }.encode());
        client.send(&[&farewell[0][..], &farewell[1], &Frame::GoAway.encode()].concat()).await;
        let begun = world.net.now();
        check_in_time(begun, Duration::ZERO, client.ended().await);
    });
    assert_eq!(world.ended(Reason::Ok), 2);
}

#[test]
fn a_client_of_http2_is_told_to_leave_when_its_certificate_ends() {
    let (world, root) = (World::new(), Root::new());
    block_on(&world.net, async {
        demand(&world, root.svid("test", LONG));
        let begun = world.net.now();
        let mut client = client(&world, &root.svid("web", LIFE), &[Alpn::Http2]).await;
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
        while client.frame2().await.expect("a goodbye").0 != 7 {}
        check_in_time(begun, LIFE, world.net.now());
    });
}

#[test]
fn who_is_vouched_for_by_a_root_that_is_not_trusted_any_more_is_let_go_and_nobody_else() {
    let (world, old, new) = (Rc::new(World::new()), Root::new(), Root::new());
    block_on(&world.net, async {
        ringmesh_ring::spawn(answer_all(world.clone()));
        let trusting = |mut identity: Identity, roots: &[&Root]| {
            identity.bundle = roots.iter().map(|root| root.der()).collect();
            identity
        };
        let asks = async |client: &mut Secure| {
            client.send(REQUEST).await;
            client.head().await
        };
        demand(&world, trusting(old.svid("test", LONG), &[&old, &new]));
        let mut of_old = client(&world, &trusting(old.svid("web", LONG), &[&old, &new]), &[]).await;
        let mut of_new = client(&world, &trusting(new.svid("web", LONG), &[&old, &new]), &[]).await;
        let mut trunk = client(&world, &trusting(old.svid("web", LONG), &[&old, &new]), &[Alpn::Mesh]).await;
        trunk.send(&Frame::Hello { channels: 0 }.encode()).await;
        assert_eq!(asks(&mut of_old).await + &asks(&mut of_new).await, str::from_utf8(ANSWER).unwrap().repeat(2));
        // A renewed certificate of our own is no reason to end anything, nor is a bundle that has the same roots otherwise.
        set_identity(&world, trusting(new.svid("test", LONG), &[&new, &old]));
        pass(&world, Duration::from_secs(5)).await;
        assert_eq!(asks(&mut of_old).await + &asks(&mut of_new).await, str::from_utf8(ANSWER).unwrap().repeat(2));
        let begun = world.net.now();
        set_identity(&world, new.svid("test", LONG));
        check_in_time(begun, Duration::ZERO, of_old.ended().await);
        while trunk.frame().await.expect("a goodbye").0 != GOAWAY {}
        check_in_time(begun, Duration::ZERO, world.net.now());
        trunk.send(&[&Frame::Open { channel: 1 }.encode()[..], &data(1, REQUEST)].concat()).await;
        let (kind, channel, _) = trunk.frame().await.expect("a refusal");
        assert!(channel == 1 && matches!(kind, CLOSE | RESET), "{kind} {channel}");
        pass(&world, Duration::from_secs(10)).await;
        assert_eq!(asks(&mut of_new).await.as_bytes(), ANSWER);
    });
}

/// Answers every request that comes to the endpoint.
async fn answer_all(world: Rc<World>) {
    loop {
        let stream = world.accept().await;
        let mut upstream = End { stream, net: world.net.clone(), got: Vec::new() };
        ringmesh_ring::spawn(async move {
            while upstream.has_more().await {
                while upstream.got.windows(4).any(|window| window == b"\r\n\r\n") {
                    upstream.head().await;
                    upstream.send(ANSWER).await;
                }
            }
        });
    }
}

/// A client in plain, and its endpoint's first connection, on which nothing was said yet.
async fn called(
    world: &World,
    root: &Root,
    protocol: Protocol,
    offered: &[Alpn],
    life: Duration,
) -> (End<memory::Stream>, Secure) {
    call(world, root.svid("test", LONG), protocol, offered.contains(&Alpn::Mesh) || offered.contains(&Alpn::MeshHttp));
    let client = End { stream: world.connect(), net: world.net.clone(), got: Vec::new() };
    client.send(REQUEST).await;
    let endpoint = endpoint(world, &root.svid("pay", life), offered).await;
    (client, endpoint)
}

#[test]
fn a_kept_connection_is_not_lent_any_more_once_the_endpoints_certificate_has_ended() {
    let (world, root) = (World::new(), Root::new());
    block_on(&world.net, async {
        let begun = world.net.now();
        let (mut client, mut first) = called(&world, &root, Protocol::Http, &[Alpn::Http1], LIFE).await;
        for _ in 0..2 {
            first.head().await;
            first.send(ANSWER).await;
            client.head().await;
            client.send(REQUEST).await;
        }
        first.head().await;
        first.send(ANSWER).await;
        client.head().await;
        pass(&world, LIFE + Duration::from_secs(1)).await;
        client.send(REQUEST).await;
        let mut second = endpoint(&world, &root.svid("pay", LIFE), &[Alpn::Http1]).await;
        second.head().await;
        second.send(ANSWER).await;
        client.head().await;
        // Those that wait are looked after every few seconds.
        assert!(first.ended().await.saturating_since(begun) < LIFE + Duration::from_secs(6));
    });
    assert_eq!(world.ended(Reason::Ok), 4);
}

#[test]
fn a_request_outlives_its_endpoints_certificate_and_its_root_by_no_more_than_a_drain() {
    let (world, root, other) = (World::new(), Root::new(), Root::new());
    block_on(&world.net, async {
        let (mut client, mut endpoint) = called(&world, &root, Protocol::Http, &[Alpn::Http1], SHORT).await;
        endpoint.head().await;
        endpoint.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        client.head().await;
        let goes_on = async |client: &mut End<memory::Stream>, endpoint: &Secure| {
            for _ in 0..3 {
                endpoint.send(b"1\r\na\r\n").await;
                client.take(1).await.expect("it goes on");
                pass(&world, Duration::from_secs(1)).await;
            }
        };
        goes_on(&mut client, &endpoint).await;
        let begun = world.net.now();
        set_identity(&world, other.svid("test", LONG));
        goes_on(&mut client, &endpoint).await;
        check_in_time(begun, DRAIN, client.ended().await);
    });
    assert_eq!(world.ended(Reason::Drained), 1);
}

#[test]
fn a_connection_that_has_waited_in_the_pool_is_looked_after_again_when_it_is_used() {
    let (world, root, new) = (World::new(), Root::new(), Root::new());
    block_on(&world.net, async {
        let (mut client, mut first) = called(&world, &root, Protocol::Http, &[Alpn::Http1], LIFE).await;
        // Another one ends meanwhile, when nothing is under way on the first.
        let mut other = End { stream: world.connect(), net: world.net.clone(), got: Vec::new() };
        other.send(REQUEST).await;
        let mut second = endpoint(&world, &root.svid("pay", SHORT), &[Alpn::Http1]).await;
        second.head().await;
        first.head().await;
        first.send(ANSWER).await;
        client.head().await;
        pass(&world, Duration::from_secs(4)).await;
        second.send(ANSWER).await;
        other.head().await;
        pass(&world, LIFE - Duration::from_secs(5)).await;
        client.send(REQUEST).await;
        first.head().await;
        first.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        client.head().await;
        let begun = world.net.now();
        set_identity(&world, new.svid("test", LONG));
        check_in_time(begun, DRAIN, client.ended().await);
    });
    assert_eq!(world.ended(Reason::Drained), 1);
}

#[test]
fn a_trunk_is_left_once_the_endpoints_certificate_has_ended_and_cut_a_drain_after_its_root() {
    let (world, root, new) = (World::new(), Root::new(), Root::new());
    block_on(&world.net, async {
        let begun = world.net.now();
        let (mut client, mut first) = called(&world, &root, Protocol::Http, &[Alpn::Mesh], SHORT).await;
        first.send(&Frame::Hello { channels: 100 }.encode()).await;
        while first.frame().await.expect("a request").0 != DATA {}
        first.send(&data(1, ANSWER)).await;
        client.head().await;
        // One that goes on.
        client.send(REQUEST).await;
        while first.frame().await.expect("a request").0 != DATA {}
        while first.frame().await.expect("a goodbye").0 != GOAWAY {}
        check_in_time(begun, SHORT, world.net.now());
        first.send(&Frame::GoAway.encode()).await;
        let mut other = End { stream: world.connect(), net: world.net.clone(), got: Vec::new() };
        other.send(REQUEST).await;
        let mut second = endpoint(&world, &root.svid("pay", SHORT), &[Alpn::Mesh]).await;
        second.send(&Frame::Hello { channels: 100 }.encode()).await;
        while second.frame().await.expect("a request").0 != DATA {}
        second.send(&data(1, ANSWER)).await;
        other.head().await;
        let begun = world.net.now();
        set_identity(&world, new.svid("test", LONG));
        check_in_time(begun, DRAIN, first.ended().await);
        assert!(client.head().await.starts_with("HTTP/1.1 503 "));
    });
    assert_eq!((world.ended(Reason::Ok), world.ended(Reason::Drained)), (2, 1));
}

#[test]
fn opaque_bytes_in_a_trunk_go_on_after_the_endpoints_certificate_and_for_a_drain_after_its_root() {
    // By time, and by a bundle that has the root no more.
    for (life, distrusts) in [(LIFE, false), (LONG, true)] {
        let (world, root, other) = (World::opaque(), Root::new(), Root::new());
        block_on(&world.net, async {
            call(&world, root.svid("test", LONG), Protocol::Tcp, true);
            let mut begun = world.net.now();
            let mut client = End { stream: world.connect(), net: world.net.clone(), got: Vec::new() };
            client.send(b"opaque").await;
            let mut endpoint = endpoint(&world, &root.svid("pay", life), &[Alpn::Mesh]).await;
            endpoint.send(&Frame::Hello { channels: 100 }.encode()).await;
            while endpoint.frame().await.expect("bytes").0 != DATA {}
            let mut ends = life;
            if distrusts {
                (begun, ends) = (world.net.now(), Duration::ZERO);
                set_identity(&world, other.svid("test", LONG));
            }
            while endpoint.frame().await.expect("a goodbye").0 != GOAWAY {}
            check_in_time(begun, ends, world.net.now());
            endpoint.send(&data(1, b"still")).await;
            client.take(5).await.expect("it goes on");
            if !distrusts {
                pass(&world, DRAIN * 2).await;
                endpoint.send(&data(1, b"still")).await;
                client.take(5).await.expect("it goes on");
                (begun, ends) = (world.net.now(), Duration::ZERO);
                set_identity(&world, other.svid("test", LONG));
            }
            check_in_time(begun, ends + DRAIN, client.ended().await);
        });
        assert_eq!(world.connections(Reason::Drained), 1);
    }
}

#[test]
fn a_request_of_http2_goes_on_for_a_drain_after_its_endpoints_root_and_its_end_is_ours() {
    let (world, root, new) = (World::new(), Root::new(), Root::new());
    block_on(&world.net, async {
        let (mut client, mut first) = called(&world, &root, Protocol::Http2, &[Alpn::Http2], LONG).await;
        first.take(PREFACE.len()).await.unwrap();
        first.send(SETTINGS).await;
        while first.frame2().await.expect("a request") != (1, 1) {}
        let begun = world.net.now();
        set_identity(&world, new.svid("test", LONG));
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        check_in_time(begun, DRAIN, world.net.now());
        check_in_time(begun, DRAIN, first.ended().await);
    });
    assert_eq!(world.ended(Reason::Drained), 1);
}

#[test]
fn a_connection_of_http2_takes_no_request_once_the_endpoints_certificate_has_ended() {
    let (world, root) = (World::new(), Root::new());
    block_on(&world.net, async {
        let begun = world.net.now();
        let (mut client, mut first) = called(&world, &root, Protocol::Http2, &[Alpn::Http2], LIFE).await;
        // 204 by HPACK's own table, in a HEADERS frame that ends its stream.
        let answer = |stream: u8| [0, 0, 1, 1, 5, 0, 0, 0, stream, 0x89];
        first.take(PREFACE.len()).await.unwrap();
        first.send(SETTINGS).await;
        for stream in [1, 3] {
            while first.frame2().await.expect("a request") != (1, stream) {}
            first.send(&answer(stream as u8)).await;
            assert!(client.head().await.starts_with("HTTP/1.1 204 "));
            if stream == 1 {
                client.send(REQUEST).await;
            }
        }
        check_in_time(begun, LIFE, first.ended().await);
        client.send(REQUEST).await;
        let mut second = endpoint(&world, &root.svid("pay", LIFE), &[Alpn::Http2]).await;
        second.take(PREFACE.len()).await.unwrap();
        second.send(SETTINGS).await;
        while second.frame2().await.expect("a request") != (1, 1) {}
        second.send(&answer(1)).await;
        assert!(client.head().await.starts_with("HTTP/1.1 204 "));
    });
}

#[test]
fn an_endpoint_whose_root_leaves_the_bundle_during_its_handshake_gets_no_request() {
    for protocol in [Alpn::Http1, Alpn::Mesh] {
        let (world, root, new) = (World::new(), Root::new(), Root::new());
        block_on(&world.net, async {
            call(&world, root.svid("test", LONG), Protocol::Http, protocol == Alpn::Mesh);
            let mut client = End { stream: world.connect(), net: world.net.clone(), got: Vec::new() };
            client.send(REQUEST).await;
            let stream = world.accept().await;
            set_identity(&world, new.svid("test", LONG));
            let config = tls::server(&root.svid("pay", LONG), "test", &[protocol]).unwrap();
            let (stream, _) = tls::accept(stream, config, &patience(&world.net)).await.unwrap();
            let mut endpoint = End { stream, net: world.net.clone(), got: Vec::new() };
            assert!(!endpoint.has_more().await, "{}", String::from_utf8_lossy(&endpoint.got));
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("upstream_identity"), "{head}");
        });
        assert_eq!(world.ended(Reason::UpstreamIdentity), 1);
    }
}

#[test]
fn requests_that_wait_for_a_trunk_end_with_it_if_it_ends_before_its_greeting() {
    const WAITING: usize = 20;
    let (world, root) = (World::new(), Root::new());
    block_on(&world.net, async {
        call(&world, root.svid("test", LONG), Protocol::Http, true);
        let mut clients: Vec<_> =
            (0..WAITING).map(|_| End { stream: world.connect(), net: world.net.clone(), got: Vec::new() }).collect();
        for client in &clients {
            client.send(REQUEST).await;
        }
        // Each handshake takes a while.
        let all = async {
            let mut heads = Vec::new();
            for client in &mut clients {
                heads.push(client.head().await);
            }
            heads
        };
        let endpoints = async {
            loop {
                let stream = world.accept().await;
                pass(&world, Duration::from_millis(100)).await;
                let config = tls::server(&root.svid("pay", LONG), "test", &[Alpn::Mesh]).unwrap();
                drop(tls::accept(stream, config, &patience(&world.net)).await);
            }
        };
        let begun = world.net.now();
        let Raced::First(heads) = race(all, endpoints).await;
        assert!(heads.iter().all(|head| head.starts_with("HTTP/1.1 50")), "{heads:?}");
        let took = world.net.now().saturating_since(begun);
        assert!(took < Duration::from_millis(500), "{took:?}");
    });
    assert_eq!((world.ended(Reason::UpstreamReset), world.ended(Reason::ConnectFailed)), (1, WAITING as u64 - 1));
}

#[test]
fn a_busy_trunk_is_used_where_no_further_one_can_be_made() {
    // As many as have another one made beside theirs.
    const BUSY: u32 = 64;
    let (world, root) = (World::new(), Root::new());
    block_on(&world.net, async {
        let (client, mut first) = called(&world, &root, Protocol::Http, &[Alpn::Mesh], LONG).await;
        first.send(&Frame::Hello { channels: 100 }.encode()).await;
        let mut clients = vec![client];
        while first.frame().await.expect("a request").0 != DATA {}
        let ask = async |clients: &mut Vec<_>| {
            let client = End { stream: world.connect(), net: world.net.clone(), got: Vec::new() };
            client.send(REQUEST).await;
            clients.push(client);
        };
        for _ in 1..BUSY {
            ask(&mut clients).await;
            while first.frame().await.expect("a request").0 != DATA {}
        }
        // The endpoint refuses one connection, then says nothing to another one.
        for refuses in [true, false] {
            ask(&mut clients).await;
            let refused = world.accept().await;
            let begun = world.net.now();
            if refuses {
                drop(refused);
            }
            while first.frame().await.expect("a request").0 != DATA {}
            let took = world.net.now().saturating_since(begun);
            assert!(took < Duration::from_secs(2), "{took:?}");
            // Not each request finds out anew.
            ask(&mut clients).await;
            while first.frame().await.expect("a request").0 != DATA {}
            assert_eq!(world.net.now().saturating_since(begun), took);
            pass(&world, Duration::from_secs(1)).await;
        }
        for channel in 1..=BUSY + 4 {
            first.send(&data(channel, ANSWER)).await;
        }
        for client in &mut clients {
            client.head().await;
        }
    });
    assert_eq!(world.ended(Reason::Ok), u64::from(BUSY) + 4);
}
