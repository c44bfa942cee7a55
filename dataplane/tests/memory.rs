//! The whole way of a request without a kernel: connections in memory, a clock that moves only when nothing else can.

mod world;

use std::ops::Range;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType};
use ringmesh_codec::head::Head;
use ringmesh_dataplane::outcome::Reason;
use ringmesh_dataplane::pool::Leased;
use ringmesh_dataplane::proxy::request::{self, Account, Call, Failed, Patience};
use ringmesh_model::snapshot::{Identity, Key, Mtls, Object};
use ringmesh_ring::memory::{self, Network, block_on};
use ringmesh_ring::{Buffer, Net, Size, Stream};
use world::{World, read_head, send};

#[test]
fn a_request_goes_through_all_stages_and_back() {
    let world = World::new();
    block_on(&world.net, async {
        let client = world.connect();
        send(&client, &world.net, b"GET /a HTTP/1.1\r\nHost: s\r\n\r\n").await;
        let upstream = world.accept().await;
        assert_eq!(read_head(&upstream, &world.net).await, "GET /a HTTP/1.1\r\nHost: s\r\n\r\n");
        send(&upstream, &world.net, b"HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(read_head(&client, &world.net).await, "HTTP/1.1 204 No Content\r\n\r\n");

        // The next request takes the same connections on both sides.
        send(&client, &world.net, b"GET /b HTTP/1.1\r\nHost: s\r\n\r\n").await;
        assert_eq!(read_head(&upstream, &world.net).await, "GET /b HTTP/1.1\r\nHost: s\r\n\r\n");
        send(&upstream, &world.net, b"HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(read_head(&client, &world.net).await, "HTTP/1.1 204 No Content\r\n\r\n");
    });
    assert_eq!(world.ended(Reason::Ok), 2);
}

#[test]
fn heads_and_bodies_are_sent_from_where_they_arrived() {
    let world = World::new();
    world.net.record();
    block_on(&world.net, async {
        let client = world.connect();
        let request =
            b"POST /pay HTTP/1.1\r\nHost: s\r\nX-A: 1\r\nConnection: x-b\r\nX-B: 2\r\nContent-Length: 4\r\n\r\nbody";
        send(&client, &world.net, request).await;
        world.net.take_flushed();
        let upstream = world.accept().await;
        let passed = "POST /pay HTTP/1.1\r\nHost: s\r\nX-A: 1\r\nContent-Length: 4\r\n\r\nbody";
        assert_eq!(world::read_bytes(&upstream, &world.net, passed.len()).await, passed);
        check_no_copy(&world.net, passed.len());

        let response = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nanswer";
        send(&upstream, &world.net, response.as_bytes()).await;
        world.net.take_flushed();
        assert_eq!(world::read_bytes(&client, &world.net, response.len()).await, response);
        check_no_copy(&world.net, response.len());
    });
}

async fn sleep(net: &Network, length: Duration) {
    ringmesh_ring::sleep_until(net.now() + length).await;
}

/// Every one of the `bytes` flushed since the last look lay in a buffer that bytes were received into.
fn check_no_copy(net: &Network, bytes: usize) {
    let (filled, flushed) = (net.take_filled(), net.take_flushed());
    let inside =
        |part: &&Range<usize>| filled.iter().any(|buffer| buffer.start <= part.start && part.end <= buffer.end);
    assert_eq!(flushed.iter().map(ExactSizeIterator::len).sum::<usize>(), bytes);
    assert_eq!(flushed.iter().filter(inside).map(ExactSizeIterator::len).sum::<usize>(), bytes, "a part was copied");
}

#[test]
fn deadlines_pass_on_the_clock_of_the_world() {
    let world = World::new();
    let begun = world.net.now();
    block_on(&world.net, async {
        let client = world.connect();
        send(&client, &world.net, b"GET / HTTP/1.1\r\nHost: s\r\n\r\n").await;
        let upstream = world.accept().await;
        read_head(&upstream, &world.net).await;
        let head = read_head(&client, &world.net).await;
        assert!(head.starts_with("HTTP/1.1 504 "), "{head}");
    });
    let waited = world.net.now().saturating_since(begun);
    assert!(waited >= world::REQUEST_TIMEOUT && waited < world::REQUEST_TIMEOUT + Duration::from_secs(1), "{waited:?}");
    assert_eq!(world.ended(Reason::RequestTimeout), 1);
}

#[test]
fn a_slow_head_is_answered_and_the_connection_ended() {
    let world = World::new();
    block_on(&world.net, async {
        let client = world.connect();
        send(&client, &world.net, b"GET / HT").await;
        let head = read_head(&client, &world.net).await;
        assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
    });
    assert_eq!(world.ended(Reason::ClientTimeout), 1);
}

#[test]
fn a_connection_that_the_endpoint_closed_meanwhile_is_replaced() {
    let world = World::new();
    block_on(&world.net, async {
        let client = world.connect();
        for _ in 0..3 {
            send(&client, &world.net, b"GET / HTTP/1.1\r\nHost: s\r\n\r\n").await;
            let upstream = world.accept().await;
            read_head(&upstream, &world.net).await;
            send(&upstream, &world.net, b"HTTP/1.1 204 No Content\r\n\r\n").await;
            assert!(read_head(&client, &world.net).await.starts_with("HTTP/1.1 204"));
        }
    });
    assert_eq!(world.ended(Reason::Ok), 3);
}

#[test]
fn the_client_going_away_ends_the_request_upstream() {
    let world = World::new();
    block_on(&world.net, async {
        let client = world.connect();
        send(&client, &world.net, b"GET / HTTP/1.1\r\nHost: s\r\n\r\n").await;
        let upstream = world.accept().await;
        read_head(&upstream, &world.net).await;
        let left = world.net.now();
        drop(client);
        world::read_to_end(&upstream, &world.net).await;
        assert!(world.net.now().saturating_since(left) < Duration::from_secs(1));
    });
    assert_eq!(world.ended(Reason::ClientAborted), 1);
}

#[test]
fn a_response_that_began_before_a_drain_tells_the_client_to_close() {
    let world = World::new();
    block_on(&world.net, async {
        let client = world.connect();
        send(&client, &world.net, b"GET / HTTP/1.1\r\nHost: s\r\n\r\n").await;
        let upstream = world.accept().await;
        read_head(&upstream, &world.net).await;
        world.worker.drain();
        send(&upstream, &world.net, b"HTTP/1.1 204 No Content\r\n\r\n").await;
        let head = read_head(&client, &world.net).await;
        assert!(head.contains("Connection: close\r\n"), "{head}");
        world::read_to_end(&client, &world.net).await;
    });
    assert_eq!(world.ended(Reason::Ok), 1);
}

#[test]
fn a_request_that_came_before_a_drain_is_served() {
    let world = World::new();
    block_on(&world.net, async {
        let client = world.connect();
        send(&client, &world.net, b"GET / HTTP/1.1\r\nHost: s\r\n\r\n").await;
        let upstream = world.accept().await;
        read_head(&upstream, &world.net).await;
        send(&upstream, &world.net, b"HTTP/1.1 204 No Content\r\n\r\n").await;
        read_head(&client, &world.net).await;
        // The connection is idle, and has not seen the next request yet when it is told to end.
        sleep(&world.net, Duration::from_millis(50)).await;
        send(&client, &world.net, b"POST /pay HTTP/1.1\r\nHost: s\r\nContent-Length: 0\r\n\r\n").await;
        world.worker.drain();
        let upstream = world.accept().await;
        read_head(&upstream, &world.net).await;
        send(&upstream, &world.net, b"HTTP/1.1 204 No Content\r\n\r\n").await;
        let head = read_head(&client, &world.net).await;
        assert!(head.contains("Connection: close\r\n"), "{head}");
    });
    assert_eq!(world.ended(Reason::Ok), 2);
}

#[test]
fn a_client_that_connected_just_before_a_drain_may_send_its_request() {
    let world = World::new();
    block_on(&world.net, async {
        let clients = [world.connect(), world.connect()];
        sleep(&world.net, Duration::from_millis(50)).await;
        world.worker.drain();
        sleep(&world.net, Duration::from_millis(50)).await;
        send(&clients[0], &world.net, b"GET / HTTP/1.1\r\nHost: s\r\n\r\n").await;
        let upstream = world.accept().await;
        read_head(&upstream, &world.net).await;
        send(&upstream, &world.net, b"HTTP/1.1 204 No Content\r\n\r\n").await;
        read_head(&clients[0], &world.net).await;
        // One that sends nothing does not hold the drain up.
        let begun = world.net.now();
        world::read_to_end(&clients[1], &world.net).await;
        assert!(world.net.now().saturating_since(begun) < Duration::from_secs(2));
    });
    assert_eq!(world.ended(Reason::Ok), 1);
}

#[test]
fn an_idle_connection_ends_at_once_when_the_worker_drains() {
    let world = World::new();
    block_on(&world.net, async {
        let client = world.connect();
        send(&client, &world.net, b"GET / HTTP/1.1\r\nHost: s\r\n\r\n").await;
        let upstream = world.accept().await;
        read_head(&upstream, &world.net).await;
        send(&upstream, &world.net, b"HTTP/1.1 204 No Content\r\n\r\n").await;
        read_head(&client, &world.net).await;
        sleep(&world.net, Duration::from_millis(50)).await;
        let begun = world.net.now();
        world.worker.drain();
        world::read_to_end(&client, &world.net).await;
        assert_eq!(world.net.now(), begun);
    });
}

#[test]
fn an_opaque_connection_goes_on_while_the_worker_drains() {
    let world = World::opaque();
    block_on(&world.net, async {
        let client = world.connect();
        send(&client, &world.net, b"one").await;
        let upstream = world.accept().await;
        assert_eq!(world::read_bytes(&upstream, &world.net, 3).await, "one");
        world.worker.drain();
        sleep(&world.net, Duration::from_millis(50)).await;
        send(&upstream, &world.net, b"two").await;
        assert_eq!(world::read_bytes(&client, &world.net, 3).await, "two");
        world.worker.connections.stop_all();
        world::read_to_end(&client, &world.net).await;
    });
}

#[test]
fn a_response_before_the_end_of_the_request_ends_the_connection_and_says_so() {
    let world = World::new();
    block_on(&world.net, async {
        let client = world.connect();
        send(&client, &world.net, b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 10\r\n\r\nhalf").await;
        let upstream = world.accept().await;
        read_head(&upstream, &world.net).await;
        send(&upstream, &world.net, b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n").await;
        let head = read_head(&client, &world.net).await;
        assert!(head.contains("Connection: close\r\n"), "{head}");
        world::read_to_end(&client, &world.net).await;
    });
    assert_eq!(world.ended(Reason::Ok), 1);
}

#[test]
fn a_response_that_begins_before_the_end_of_the_request_and_ends_after_it_keeps_the_connection() {
    let world = World::new();
    block_on(&world.net, async {
        let client = world.connect();
        send(&client, &world.net, b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 8\r\n\r\nhalf").await;
        let upstream = world.accept().await;
        read_head(&upstream, &world.net).await;
        send(&upstream, &world.net, b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf").await;
        let head = read_head(&client, &world.net).await;
        assert!(!head.to_ascii_lowercase().contains("connection:"), "{head}");
        assert_eq!(world::read_bytes(&client, &world.net, "half".len()).await, "half");
        send(&client, &world.net, b"more").await;
        assert_eq!(world::read_bytes(&upstream, &world.net, "halfmore".len()).await, "halfmore");
        send(&upstream, &world.net, b"more").await;
        assert_eq!(world::read_bytes(&client, &world.net, "more".len()).await, "more");
        send(&client, &world.net, b"GET / HTTP/1.1\r\nHost: s\r\n\r\n").await;
        assert!(read_head(&upstream, &world.net).await.starts_with("GET / "), "both connections go on");
    });
}

#[test]
fn nothing_follows_half_an_interim_response() {
    let world = World::new();
    block_on(&world.net, async {
        let client = world.connect();
        send(&client, &world.net, b"GET / HTTP/1.1\r\nHost: s\r\n\r\n").await;
        let upstream = world.accept().await;
        read_head(&upstream, &world.net).await;
        world.net.set_capacity_bytes(8);
        send(&upstream, &world.net, b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n").await;
        // The client reads nothing for longer than it may.
        world::read_to_end(&upstream, &world.net).await;
        let mut buffer = Buffer::take(Size::Small);
        let read = client.fill(&mut buffer, &world.net.stop()).await;
        assert!(read.is_err(), "{:?}", String::from_utf8_lossy(buffer.filled()));
    });
    assert_eq!(world.ended(Reason::ClientReadsSlowly), 1);
}

#[test]
fn interim_responses_without_end_are_cut() {
    let world = World::new();
    block_on(&world.net, async {
        let client = world.connect();
        send(&client, &world.net, b"GET / HTTP/1.1\r\nHost: s\r\n\r\n").await;
        let upstream = world.accept().await;
        read_head(&upstream, &world.net).await;
        send(&upstream, &world.net, "HTTP/1.1 102 Processing\r\n\r\n".repeat(200).as_bytes()).await;
        let mut head = read_head(&client, &world.net).await;
        while head.starts_with("HTTP/1.1 102 ") {
            head = read_head(&client, &world.net).await;
        }
        assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    });
    assert_eq!(world.ended(Reason::UpstreamGarbage), 1);
}

#[test]
fn a_client_that_never_pauses_leaves_others_their_turn() {
    let world = World::new();
    block_on(&world.net, async {
        let (busy, other) = (world.connect(), world.connect());
        send(&busy, &world.net, "GET /denied HTTP/1.1\r\nHost: s\r\n\r\n".repeat(200).as_bytes()).await;
        send(&other, &world.net, b"GET /denied HTTP/1.1\r\nHost: s\r\n\r\n").await;
        let head = read_head(&other, &world.net).await;
        assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    });
    let served = world.ended(Reason::PolicyDenied);
    assert!(served < 100, "{served} of the other's requests came first");
}

/// An SVID of its own making.
fn identity() -> Identity {
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate().expect("a key")).expect("a root");
    let id = "spiffe://test/ns/default/sa/test";
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![SanType::URI(id.try_into().expect("text"))];
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate().expect("a key");
    let leaf = leaf.signed_by(&key, &root).expect("a leaf");
    Identity {
        id: id.parse().expect("an identity"),
        chain: vec![leaf.der().to_vec()],
        key: key.serialize_der(),
        bundle: vec![root.der().to_vec()],
        expires: u64::MAX,
    }
}

#[test]
fn a_plain_connection_is_not_served_by_a_listener_that_has_begun_to_demand_tls() {
    let world = World::new();
    block_on(&world.net, async {
        let (idle, busy) = (world.connect(), world.connect());
        let request = b"GET / HTTP/1.1\r\nHost: s\r\n\r\n";
        let response = b"HTTP/1.1 204 No Content\r\n\r\n";
        send(&idle, &world.net, request).await;
        let first = world.accept().await;
        read_head(&first, &world.net).await;
        send(&busy, &world.net, request).await;
        let second = world.accept().await;
        read_head(&second, &world.net).await;
        send(&first, &world.net, response).await;
        read_head(&idle, &world.net).await;

        world.reload(|objects| {
            objects.insert(Key::Identity, Object::Identity(identity().into()));
            if let Some(Object::Listener(listener)) = objects.get_mut(&Key::Listener("in".into())) {
                std::sync::Arc::make_mut(listener).mtls = Mtls::Strict;
            }
        });
        send(&idle, &world.net, request).await;
        world::read_to_end(&idle, &world.net).await;
        send(&second, &world.net, response).await;
        let head = read_head(&busy, &world.net).await;
        assert!(head.contains("Connection: close\r\n"), "{head}");
    });
    assert_eq!(world.ended(Reason::Ok), 2);
}

#[test]
fn a_listener_that_goes_takes_its_connections_along_in_order() {
    let world = World::new();
    block_on(&world.net, async {
        let client = world.connect();
        send(&client, &world.net, b"GET / HTTP/1.1\r\nHost: s\r\n\r\n").await;
        let upstream = world.accept().await;
        read_head(&upstream, &world.net).await;
        world.reload(|objects| objects.retain(|key, _| !matches!(key, Key::Listener(_) | Key::Policy(_))));
        send(&upstream, &world.net, b"HTTP/1.1 204 No Content\r\n\r\n").await;
        let head = read_head(&client, &world.net).await;
        assert!(head.contains("Connection: close\r\n"), "{head}");
        world::read_to_end(&client, &world.net).await;
    });
    assert_eq!(world.ended(Reason::Ok), 1);
}

#[test]
fn a_client_that_resets_after_its_body_ends_the_request_upstream() {
    let world = World::new();
    block_on(&world.net, async {
        let client = world.connect();
        send(&client, &world.net, b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 8\r\n\r\nhalf").await;
        let upstream = world.accept().await;
        read_head(&upstream, &world.net).await;
        // Longer than the proxy is patient with a silent client before it watches it.
        sleep(&world.net, Duration::from_secs(2)).await;
        send(&client, &world.net, b"more").await;
        assert_eq!(world::read_bytes(&upstream, &world.net, 8).await, "halfmore");
        sleep(&world.net, Duration::from_secs(2)).await;
        let left = world.net.now();
        client.reset_on_close();
        drop(client);
        world::read_to_end(&upstream, &world.net).await;
        assert!(world.net.now().saturating_since(left) < Duration::from_secs(1));
    });
    assert_eq!(world.ended(Reason::ClientAborted), 1);
}

#[test]
fn a_client_that_ends_its_side_after_its_body_still_gets_its_response() {
    let world = World::new();
    block_on(&world.net, async {
        let client = world.connect();
        send(&client, &world.net, b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 8\r\n\r\nhalf").await;
        let upstream = world.accept().await;
        read_head(&upstream, &world.net).await;
        sleep(&world.net, Duration::from_secs(2)).await;
        send(&client, &world.net, b"more").await;
        client.shutdown_write().expect("it is open");
        sleep(&world.net, Duration::from_secs(2)).await;
        send(&upstream, &world.net, b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf").await;
        sleep(&world.net, Duration::from_secs(2)).await;
        send(&upstream, &world.net, b"more").await;
        read_head(&client, &world.net).await;
        assert_eq!(world::read_bytes(&client, &world.net, 8).await, "halfmore");
    });
    assert_eq!(world.ended(Reason::Ok), 1);
}

/// A request that never was bytes: another version of HTTP, as far as the path can tell.
struct Owned {
    path: &'static str,
    answered: Option<Reason>,
    exchanged: Vec<String>,
}

struct OwnedHead(&'static str);

impl Head for OwnedHead {
    fn method(&self) -> &[u8] {
        b"GET"
    }

    fn target(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn path(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn authority(&self) -> Option<&[u8]> {
        Some(b"s")
    }

    fn field(&self, _name: &str) -> Option<&[u8]> {
        None
    }

    fn for_each_field(&self, _visit: &mut dyn FnMut(&[u8], &[u8])) {}
}

impl Call<Network> for Owned {
    fn head(&self) -> impl Head + '_ {
        OwnedHead(self.path)
    }

    async fn exchange(&mut self, lease: Leased<Network>, _: Patience, account: &mut Account) -> Result<(), Failed> {
        let Leased::Own(lease) = lease else { panic!("the service speaks HTTP/1") };
        self.exchanged.push(format!("{:?}", lease.transport.peer_address()));
        account.status = 200;
        Ok(())
    }

    async fn answer(&mut self, reason: Reason, account: &mut Account) {
        self.answered = Some(reason);
        account.status = reason.status();
    }
}

#[test]
fn the_path_serves_another_kind_of_head() {
    let world = World::new();
    let mut allowed = Owned { path: "/a", answered: None, exchanged: Vec::new() };
    let mut denied = Owned { path: "/denied", answered: None, exchanged: Vec::new() };
    block_on(&world.net, async {
        let (_client, far): (memory::Stream, memory::Stream) = world.net.pair();
        let connection = world.connection(far);
        let tables = world.worker.tables();
        let listener = tables.listener(connection.listener).expect("it is there");
        request::serve(&world.worker, &connection, &tables, listener, &connection.stop, &mut allowed).await;
        request::serve(&world.worker, &connection, &tables, listener, &connection.stop, &mut denied).await;
    });
    assert_eq!(
        allowed.exchanged,
        [format!("{:?}", Some(world::ENDPOINT.parse::<std::net::SocketAddr>().expect("valid")))]
    );
    assert_eq!(denied.answered, Some(Reason::PolicyDenied));
    assert_eq!((world.ended(Reason::Ok), world.ended(Reason::PolicyDenied)), (1, 1));
}
