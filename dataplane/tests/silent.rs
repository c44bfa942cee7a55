//! Peers that stop answering on an HTTP/2 connection: they are asked by a PING, and given up if that stays without an answer
//! too. On a virtual clock.

mod world;

use std::ops::Range;
use std::time::Duration;

use ringmesh_dataplane::health::Checker;
use ringmesh_dataplane::outcome::Reason;
use ringmesh_dataplane::proxy::http2::limits::{MAX_UNASKED_BYTES, PONG_TIMEOUT, SILENCE};
use ringmesh_model::health::Probe;
use ringmesh_model::snapshot::{HealthCheck, Key, Object, Protocol, Service};
use ringmesh_ring::memory::{self, block_on};
use ringmesh_ring::{Buffer, Instant, Net, Output, Size, Stream};
use world::{World, read_head, send};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(1_000);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames and their flags (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const END_STREAM_AND_HEADERS: u8 = 5;

/// `:status: 200`, and a GET of `/` from `s`, by the static table (RFC 7541 appendix A).
const OK: &[u8] = &[0x88];
const GET: &[u8] = &[0x82, 0x86, 0x84, 0x41, 1, b's'];

const GET_BY_1: &[u8] = b"GET / HTTP/1.1\r\nHost: s\r\n\r\n";
const POST_BY_1: &[u8] = b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 0\r\n\r\n";

/// A world whose endpoint speaks this, and where nothing else bounds a request.
fn world(protocol: Protocol) -> World {
    let world = World::with(|listener| {
        listener.limits.request_timeout = None;
        listener.limits.idle_timeout = PATIENCE;
    });
    change(&world, |service| service.protocol = protocol);
    world
}

fn change(world: &World, change: impl FnOnce(&mut Service)) {
    world.reload(|objects| {
        let Some(Object::Service(service)) = objects.get_mut(&Key::Service("s".into())) else { panic!("it is there") };
        change(std::sync::Arc::make_mut(service));
    });
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// One side of an HTTP/2 connection, which says and answers what it is told to.
struct Peer<'w> {
    world: &'w World,
    stream: memory::Stream,
}

impl<'w> Peer<'w> {
    /// The endpoint's side of the next connection.
    async fn accept(world: &'w World) -> Self {
        let peer = Self { world, stream: world.accept().await };
        assert_eq!(peer.bytes(PREFACE.len()).await.expect("the proxy begins"), PREFACE);
        peer.say(SETTINGS, 0, 0, &[]).await;
        peer
    }

    /// A client's side of a new connection.
    async fn connect(world: &'w World) -> Self {
        let peer = Self { world, stream: world.connect() };
        send(&peer.stream, &world.net, PREFACE).await;
        peer.say(SETTINGS, 0, 0, &[]).await;
        peer
    }

    async fn say(&self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        send(&self.stream, &self.world.net, &bytes).await;
    }

    /// So many bytes, or None at the end.
    async fn bytes(&self, count: usize) -> Option<Vec<u8>> {
        let (net, mut bytes) = (&self.world.net, Vec::new());
        while bytes.len() < count {
            let mut buffer = Buffer::take(Size::Small);
            let unused = buffer.spare() - (count - bytes.len());
            buffer.commit(unused);
            let stop = net.stop();
            stop.set_deadline(Some(net.now() + PATIENCE));
            match self.stream.fill(&mut buffer, &stop).await {
                Ok(1..) => bytes.extend_from_slice(&buffer.filled()[unused..]),
                Ok(0) | Err(ringmesh_ring::Error::Io(_)) => return None,
                Err(stopped) => panic!("nothing comes: {stopped}"),
            }
        }
        Some(bytes)
    }

    /// The next frame, or None at the end.
    async fn frame(&self) -> Option<Frame> {
        let head = self.bytes(9).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload: self.bytes(length).await? })
    }

    /// The next frame of this type that is no acknowledgement.
    async fn next(&self, kind: u8) -> Frame {
        loop {
            let frame = self.frame().await.expect("the connection is open");
            if frame.kind == kind && (kind != PING || frame.flags & ACK == 0) {
                return frame;
            }
        }
    }

    /// Whether the proxy has kept the connection.
    async fn is_kept(&self) -> bool {
        let mut output = Output::new();
        output.push_bytes(b"x");
        self.stream.flush(&mut output, &self.world.net.stop()).await.is_ok()
    }

    /// Whether the proxy has not closed it, with all that it sends left where it is.
    fn is_open(&self) -> bool {
        !matches!(self.stream.check_idle(), Ok(ringmesh_ring::Idle::Closed) | Err(_))
    }

    async fn pong(&self, ping: &Frame) {
        self.say(PING, ACK, 0, &ping.payload).await;
    }

    /// Reads to the end without a word.
    async fn fall_silent(&self) {
        while self.frame().await.is_some() {}
    }
}

#[track_caller]
fn check_took(world: &World, begun: Instant, expected: Range<Duration>) {
    let took = world.net.now().saturating_since(begun);
    assert!(expected.contains(&took), "{took:?}, expected {expected:?}");
}

/// Between two looks at a connection.
const TICK: Duration = SILENCE.checked_div(2).unwrap();

/// When a silent peer is asked, and when it is given up.
const ASKED: Range<Duration> = SILENCE..SILENCE.saturating_add(TICK.saturating_mul(2));
const GIVEN_UP: Range<Duration> = SILENCE.saturating_add(PONG_TIMEOUT)..ASKED.end.saturating_add(PONG_TIMEOUT);

async fn answer(client: &memory::Stream, world: &World) -> String {
    // Longer than one wait of the tests' own.
    let begun = world.net.now();
    while client.check_idle().is_ok_and(|idle| idle == ringmesh_ring::Idle::Open) {
        assert!(world.net.now().saturating_since(begun) < PATIENCE, "no answer");
        ringmesh_ring::sleep_until(world.net.now() + Duration::from_secs(1)).await;
    }
    read_head(client, &world.net).await
}

#[test]
fn an_endpoint_that_stops_answering_is_asked_given_up_with_its_requests_and_replaced() {
    let world = world(Protocol::Http2);
    block_on(&world.net, async {
        let [first, second, third] = [GET_BY_1, POST_BY_1, GET_BY_1].map(|request| (world.connect(), request));
        send(&first.0, &world.net, first.1).await;
        let endpoint = Peer::accept(&world).await;
        assert_eq!(endpoint.next(HEADERS).await.stream, 1);
        for (number, (client, request)) in [(3, &second), (5, &third)] {
            send(client, &world.net, request).await;
            assert_eq!(endpoint.next(HEADERS).await.stream, number, "they share a connection");
        }
        let begun = world.net.now();
        endpoint.next(PING).await;
        check_took(&world, begun, ASKED);
        endpoint.fall_silent().await;
        check_took(&world, begun, GIVEN_UP);
        // Both may have had an effect: the one by its method, the other because the connection was new.
        for (client, _) in [&first, &second] {
            let head = answer(client, &world).await;
            assert!(head.starts_with("HTTP/1.1 502 ") && head.contains("upstream_reset"), "{head}");
        }
        // This one had none, and goes to the next connection.
        let endpoint = Peer::accept(&world).await;
        endpoint.next(HEADERS).await;
        endpoint.say(HEADERS, END_STREAM_AND_HEADERS, 1, OK).await;
        assert!(answer(&third.0, &world).await.starts_with("HTTP/1.1 200 "));
        check_took(&world, begun, GIVEN_UP);
    });
    assert_eq!((world.ended(Reason::UpstreamReset), world.ended(Reason::Ok)), (2, 1));
}

#[test]
fn an_endpoint_that_answers_nothing_but_pings_is_waited_for() {
    let world = world(Protocol::Http2);
    block_on(&world.net, async {
        let client = world.connect();
        send(&client, &world.net, POST_BY_1).await;
        let endpoint = Peer::accept(&world).await;
        endpoint.next(HEADERS).await;
        for _ in 0..10 {
            let begun = world.net.now();
            let ping = endpoint.next(PING).await;
            check_took(&world, begun, ASKED);
            endpoint.pong(&ping).await;
        }
        endpoint.say(HEADERS, END_STREAM_AND_HEADERS, 1, OK).await;
        assert!(answer(&client, &world).await.starts_with("HTTP/1.1 200 "));
    });
    assert_eq!(world.ended(Reason::Ok), 1);
}

#[test]
fn a_client_that_stops_answering_is_asked_and_given_up_and_its_request_with_it() {
    let world = world(Protocol::Http);
    block_on(&world.net, async {
        let client = Peer::connect(&world).await;
        client.say(HEADERS, END_STREAM_AND_HEADERS, 1, GET).await;
        let upstream = world.accept().await;
        read_head(&upstream, &world.net).await;
        // While it answers, it may wait for as long as it likes.
        for _ in 0..3 {
            let begun = world.net.now();
            let ping = client.next(PING).await;
            check_took(&world, begun, ASKED);
            client.pong(&ping).await;
        }
        let begun = world.net.now();
        client.next(PING).await;
        client.fall_silent().await;
        check_took(&world, begun, GIVEN_UP);
        let upstream = Peer { world: &world, stream: upstream };
        assert!(upstream.bytes(1).await.is_none(), "nobody waits for the endpoint's answer any more");
        check_took(&world, begun, GIVEN_UP);
    });
    assert_eq!(world.ended(Reason::ClientAborted), 1);
}

/// Waits for a peer that reads nothing, in a world where a connection may be unused for a minute.
async fn check_let_go(peer: &Peer<'_>) {
    let seconds = |seconds| peer.world.net.now() + Duration::from_secs(seconds);
    ringmesh_ring::sleep_until(seconds(55)).await;
    assert!(peer.is_kept().await, "it may be slow");
    ringmesh_ring::sleep_until(seconds(10)).await;
    assert!(!peer.is_kept().await, "it is waited for");
}

#[test]
fn a_client_that_breaks_the_rules_and_takes_nothing_is_let_go() {
    let world = World::new();
    world.net.set_capacity_bytes(1_000);
    block_on(&world.net, async {
        let client = Peer::connect(&world).await;
        client.say(SETTINGS, 0, 0, &[0, 4, 1, 0, 0, 0]).await;
        client.say(WINDOW_UPDATE, 0, 0, &[1, 0, 0, 0]).await;
        client.say(HEADERS, END_STREAM_AND_HEADERS, 1, GET).await;
        let waiting = Peer { world: &world, stream: world.accept().await };
        read_head(&waiting.stream, &world.net).await;
        client.say(HEADERS, END_STREAM_AND_HEADERS, 3, GET).await;
        let upstream = world.accept().await;
        read_head(&upstream, &world.net).await;
        let body = [&b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"[..], &[b'x'; 100_000]].concat();
        send(&upstream, &world.net, &body).await;
        // No stream has this number.
        client.say(DATA, 0, 0, b"x").await;
        let begun = world.net.now();
        assert!(waiting.bytes(1).await.is_none(), "nobody waits for the endpoint's answer any more");
        check_took(&world, begun, Duration::ZERO..Duration::from_secs(1));
        check_let_go(&client).await;
    });
    assert_eq!(world.connections(Reason::Http2Error), 1);
}

#[test]
fn streams_that_never_become_requests_are_counted_and_no_others() {
    let world = World::with(|listener| listener.limits.max_streams = 2);
    block_on(&world.net, async {
        let client = Peer::connect(&world).await;
        let second_head: &[u8] = &[0, 1, b'a', 1, b'b', 0x82];
        client.say(HEADERS, END_STREAM_AND_HEADERS, 1, second_head).await;
        assert_eq!(client.next(RST_STREAM).await.stream, 1, "its head breaks a rule");
        assert_eq!(world.ended(Reason::StreamRefused), 1);
        for stream in [3, 5] {
            client.say(HEADERS, END_HEADERS, stream, &[&[0x83][..], &GET[1..]].concat()).await;
            read_head(&world.accept().await, &world.net).await;
        }
        for stream in [7, 9] {
            client.say(HEADERS, END_STREAM_AND_HEADERS, stream, GET).await;
            let told = client.next(RST_STREAM).await;
            assert_eq!((told.stream, &told.payload[..]), (stream, &[0, 0, 0, 7][..]), "it is one too many");
        }
        assert_eq!(world.ended(Reason::StreamRefused), 3);
        // Trailers, and a head in pieces.
        client.say(HEADERS, END_STREAM_AND_HEADERS, 3, &second_head[..5]).await;
        client.say(RST_STREAM, 0, 5, &[0, 0, 0, 8]).await;
        client.say(HEADERS, 1, 11, &GET[..3]).await;
        ringmesh_ring::sleep_until(world.net.now() + Duration::from_secs(1)).await;
        client.say(CONTINUATION, END_HEADERS, 11, &GET[3..]).await;
        read_head(&world.accept().await, &world.net).await;
    });
    assert_eq!(world.ended(Reason::StreamRefused), 3);
}

#[test]
fn a_request_whose_stream_the_client_makes_us_reset_ends_at_once() {
    // A field, and a method behind it.
    let second_head: &[u8] = &[0, 1, b'a', 1, b'b', 0x82];
    let table: [(&str, u8, u8, u32, &[u8]); 4] = [
        ("more than the largest window", WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff]),
        ("a stream that depends on itself", PRIORITY, 0, 1, &[0, 0, 0, 1, 16]),
        ("a second head", HEADERS, END_STREAM_AND_HEADERS, 1, second_head),
        ("a second head with the bit that means nothing", HEADERS, END_STREAM_AND_HEADERS, 0x8000_0001, second_head),
    ];
    for (name, kind, flags, stream, payload) in table {
        let world = world(Protocol::Http);
        block_on(&world.net, async {
            let client = Peer::connect(&world).await;
            client.say(HEADERS, END_STREAM_AND_HEADERS, 1, GET).await;
            let upstream = Peer { world: &world, stream: world.accept().await };
            read_head(&upstream.stream, &world.net).await;
            let begun = world.net.now();
            client.say(kind, flags, stream, payload).await;
            assert_eq!(client.next(RST_STREAM).await.stream, 1, "{name}");
            assert!(upstream.bytes(1).await.is_none(), "{name}: nobody waits for the endpoint's answer any more");
            let took = world.net.now().saturating_since(begun);
            assert!(took < Duration::from_secs(1), "{name}: {took:?}");
        });
        assert_eq!(world.ended(Reason::ClientAborted), 1, "{name}");
    }
}

#[test]
fn a_request_whose_body_breaks_the_rules_ends_at_once_while_its_endpoint_takes_nothing() {
    let world = world(Protocol::Http);
    world.net.set_capacity_bytes(1_000);
    block_on(&world.net, async {
        let client = Peer::connect(&world).await;
        // A POST of 3,000 bytes.
        let head = [&[0x83][..], &GET[1..], &[0x0f, 0x0d, 4], b"3000"].concat();
        client.say(HEADERS, END_HEADERS, 1, &head).await;
        let upstream = world.accept().await;
        read_head(&upstream, &world.net).await;
        client.say(DATA, 0, 1, &[b'x'; 3_000]).await;
        let begun = world.net.now();
        ringmesh_ring::sleep_until(begun + Duration::from_millis(100)).await;
        client.say(DATA, 0, 1, b"x").await;
        assert_eq!(client.next(RST_STREAM).await.stream, 1);
        ringmesh_ring::sleep_until(begun + Duration::from_secs(1)).await;
        assert_eq!(world.ended(Reason::ClientAborted), 1);
    });
}

#[test]
fn a_client_that_shuts_its_windows_between_two_responses_is_noticed_after_a_bound() {
    let world = World::with(|listener| listener.limits.request_timeout = None);
    let unasked = MAX_UNASKED_BYTES / 1_000;
    block_on(&world.net, async {
        let client = Peer::connect(&world).await;
        let answer = [&b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"[..], &[b'x'; 1_000]].concat();
        let mut upstream = None;
        let mut streams = (1..).step_by(2);
        let mut ask = async || {
            client.say(HEADERS, END_STREAM_AND_HEADERS, streams.next().expect("without an end"), GET).await;
            let upstream = match &mut upstream {
                Some(upstream) => upstream,
                none => none.insert(world.accept().await),
            };
            read_head(upstream, &world.net).await;
            send(upstream, &world.net, &answer).await;
        };
        ask().await;
        assert_eq!(client.next(DATA).await.stream, 1);
        // A window of no byte for each stream.
        client.say(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]).await;
        for _ in 0..unasked + 1 {
            ask().await;
        }
        let begun = world.net.now();
        let waits = 2 * unasked as u32 + 3;
        assert_eq!(client.next(RST_STREAM).await.stream, waits, "the first that was asked for");
        check_took(&world, begun, Duration::from_secs(1)..PATIENCE);
        assert_eq!((world.ended(Reason::Ok), world.ended(Reason::ClientReadsSlowly)), (1 + unasked as u64, 1));
        client.say(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]).await;
        for stream in (3..waits).step_by(2) {
            assert_eq!(client.next(DATA).await.stream, stream, "what was given waits for the window");
        }
    });
}

#[test]
fn a_client_that_takes_nothing_and_asks_on_is_ended_and_counted() {
    let world = World::new();
    world.net.set_capacity_bytes(1_000);
    block_on(&world.net, async {
        let client = Peer::connect(&world).await;
        // Windows for all that there is: the library takes it at once.
        client.say(SETTINGS, 0, 0, &[0, 4, 1, 0, 0, 0]).await;
        client.say(WINDOW_UPDATE, 0, 0, &[1, 0, 0, 0]).await;
        let body = [&b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"[..], &[b'x'; 100_000]].concat();
        let begun = world.net.now();
        let (mut upstream, mut stream) = (None, 1);
        while client.is_open() {
            let took = world.net.now().saturating_since(begun);
            assert!(took < Duration::from_secs(180), "it is waited for");
            client.say(HEADERS, END_STREAM_AND_HEADERS, stream, GET).await;
            let upstream = match &mut upstream {
                Some(upstream) => upstream,
                none => none.insert(world.accept().await),
            };
            read_head(upstream, &world.net).await;
            send(upstream, &world.net, &body).await;
            // Never just when it is looked at.
            ringmesh_ring::sleep_until(world.net.now() + Duration::from_millis(10_700)).await;
            if client.is_open() {
                client.say(RST_STREAM, 0, stream, &[0, 0, 0, 8]).await;
            }
            stream += 2;
        }
        check_took(&world, begun, Duration::from_secs(60)..Duration::from_secs(100));
    });
    assert_eq!(world.connections(Reason::ClientReadsSlowly), 1);
}

#[test]
fn a_client_that_takes_its_answers_slowly_is_not_idle() {
    let world = World::with(|listener| listener.limits.idle_timeout = Duration::from_secs(4));
    world.net.set_capacity_bytes(1_000);
    block_on(&world.net, async {
        let client = Peer::connect(&world).await;
        client.say(SETTINGS, 0, 0, &[0, 4, 1, 0, 0, 0]).await;
        client.say(WINDOW_UPDATE, 0, 0, &[1, 0, 0, 0]).await;
        client.say(HEADERS, END_STREAM_AND_HEADERS, 1, GET).await;
        let upstream = world.accept().await;
        read_head(&upstream, &world.net).await;
        let body = [&b"HTTP/1.1 200 OK\r\nContent-Length: 40000\r\n\r\n"[..], &[b'x'; 40_000]].concat();
        send(&upstream, &world.net, &body).await;
        let mut taken = 0;
        while taken < 40_000 {
            ringmesh_ring::sleep_until(world.net.now() + Duration::from_secs(1)).await;
            let frame = client.frame().await.expect("it is served to the end");
            taken += if frame.kind == DATA { frame.payload.len() } else { 0 };
        }
        client.next(GOAWAY).await;
    });
}

/// A client that was silent for as long as it may be, and has been told to leave.
async fn said_goodbye(world: &World) -> Peer<'_> {
    let client = Peer::connect(world).await;
    client.next(GOAWAY).await;
    assert_eq!(world.connections(Reason::IdleTimeout), 1);
    client
}

#[test]
fn a_request_that_meets_the_goodbye_to_an_idle_client_is_served_whole() {
    let world = World::new();
    block_on(&world.net, async {
        let client = said_goodbye(&world).await;
        client.say(HEADERS, END_STREAM_AND_HEADERS, 1, GET).await;
        let upstream = world.accept().await;
        read_head(&upstream, &world.net).await;
        ringmesh_ring::sleep_until(world.net.now() + Duration::from_secs(8)).await;
        send(&upstream, &world.net, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(client.next(DATA).await.payload, b"ok");
    });
    assert_eq!((world.ended(Reason::Ok), world.connections(Reason::IdleTimeout)), (1, 1));
}

#[test]
fn an_idle_client_that_was_told_to_leave_wins_no_time_by_heads_that_are_no_requests() {
    let world = World::new();
    block_on(&world.net, async {
        let client = said_goodbye(&world).await;
        let begun = world.net.now();
        // In two frames, with a method behind a field.
        client.say(HEADERS, 1, 1, &[0, 1, b'a', 1, b'b']).await;
        ringmesh_ring::sleep_until(begun + Duration::from_millis(100)).await;
        client.say(CONTINUATION, END_HEADERS, 1, &[0x82]).await;
        assert_eq!(client.next(RST_STREAM).await.stream, 1);
        client.fall_silent().await;
        check_took(&world, begun, Duration::from_secs(4)..Duration::from_secs(10));
    });
}

#[test]
fn an_endpoint_that_breaks_the_rules_and_takes_nothing_is_let_go() {
    let world = world(Protocol::Http2);
    world.net.set_capacity_bytes(1_000);
    block_on(&world.net, async {
        let client = world.connect();
        let body = [&b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 60000\r\n\r\n"[..], &[b'x'; 60_000]].concat();
        send(&client, &world.net, &body).await;
        let endpoint = Peer::accept(&world).await;
        endpoint.say(DATA, 0, 0, b"x").await;
        assert!(answer(&client, &world).await.starts_with("HTTP/1.1 502 "));
        check_let_go(&endpoint).await;
    });
}

#[test]
fn a_probe_without_an_answer_has_the_next_one_go_by_a_new_connection() {
    let world = world(Protocol::Http2);
    block_on(&world.net, async {
        let (before, checker) = (world.worker.tables(), Checker::default());
        let [interval, timeout] = [5, 1].map(Duration::from_secs);
        let probe = Probe::Http { path: "/".to_owned(), host: None, status: None };
        let check = HealthCheck { probe, interval, timeout, healthy_after: 1, unhealthy_after: 1 };
        change(&world, |service| service.health_check = Some(check));
        checker.commit(&world.worker, &before);
        let endpoint = Peer::accept(&world).await;
        endpoint.next(HEADERS).await;
        endpoint.say(HEADERS, END_STREAM_AND_HEADERS, 1, OK).await;
        assert_eq!(endpoint.next(HEADERS).await.stream, 3, "the connection is used again");
        ringmesh_ring::sleep_until(world.net.now() + 2 * timeout).await;
        assert!(!endpoint.is_kept().await, "it may be dead");
        let endpoint = Peer::accept(&world).await;
        assert_eq!(endpoint.next(HEADERS).await.stream, 1);
    });
}

#[test]
fn a_client_that_has_said_that_its_request_is_the_last_is_not_waited_for_and_one_that_may_send_more_is() {
    let world = world(Protocol::Http);
    let asks = async |request: &[u8]| {
        let client = world.connect();
        send(&client, &world.net, request).await;
        let endpoint = world.accept().await;
        read_head(&endpoint, &world.net).await;
        send(&endpoint, &world.net, b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
        assert!(read_head(&client, &world.net).await.contains("204"));
        // Its end, too; what the client still has to say, it never does.
        let peer = Peer { world: &world, stream: client };
        assert_eq!(peer.bytes(1).await, None);
        world.worker.connections.count()
    };
    block_on(&world.net, async {
        assert_eq!(asks(b"GET / HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n").await, 0);
        assert_eq!(asks(b"GET / HTTP/1.0\r\nHost: s\r\n\r\n").await, 0);
        assert_eq!(asks(b"GET / HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n\r\n").await, 1);
        assert_eq!(asks(b"POST / HTTP/1.1\r\nHost: s\r\nConnection: close\r\nContent-Length: 1\r\n\r\na").await, 1);
    });
}
