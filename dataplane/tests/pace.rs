//! Slow peers: who sends or takes too slowly is told so or cut, and nobody else is blamed. On a virtual clock.

mod world;

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use ringmesh_dataplane::outcome::Reason;
use ringmesh_ring::memory::{self, block_on};
use ringmesh_ring::{Buffer, Idle, Instant, Net, Output, Size, Stream};
use world::{MIN_TRANSFER_RATE, World, read_bytes, read_head, read_to_end, send};

const GRACE: u64 = 5;
const MAX_CREDIT: u64 = 60;
/// Less than the patience of the tests' own reads and writes.
const IDLE: u64 = 50;

/// A second's bytes for a peer that is just fast enough.
const ENOUGH: usize = MIN_TRANSFER_RATE as usize;

/// Without a bound on the request, so that only the peers' pace counts.
fn world() -> World {
    World::with(|listener| {
        listener.limits.request_timeout = None;
        listener.limits.idle_timeout = Duration::from_secs(IDLE);
    })
}

async fn sleep(world: &World, seconds: u64) {
    ringmesh_ring::sleep_until(world.net.now() + Duration::from_secs(seconds)).await;
}

#[track_caller]
fn check_took(world: &World, begun: Instant, expected: Range<u64>) {
    let took = world.net.now().saturating_since(begun);
    assert!(expected.contains(&took.as_secs()), "{took:?}, expected {expected:?} s");
}

fn post(bytes: usize) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: s\r\nContent-Length: {bytes}\r\n\r\n").into_bytes()
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: s\r\n\r\n";

/// A request whose head has reached the endpoint.
async fn begin(world: &World, request: &[u8]) -> (memory::Stream, memory::Stream) {
    let client = world.connect();
    send(&client, &world.net, request).await;
    let upstream = world.accept().await;
    read_head(&upstream, &world.net).await;
    (client, upstream)
}

/// Sends a piece each second until something has come back.
async fn trickle(world: &World, client: &memory::Stream, piece: &[u8]) {
    while client.check_idle().expect("it can be told") == Idle::Open {
        send(client, &world.net, piece).await;
        sleep(world, 1).await;
    }
}

/// Reads so many bytes each second until so many have come.
async fn sip(world: &World, stream: &memory::Stream, each: usize, bytes: usize) {
    for _ in 0..bytes / each {
        read_bytes(stream, &world.net, each).await;
        sleep(world, 1).await;
    }
}

/// Sends so many bytes while the test goes on, however long it takes.
fn send_meanwhile(world: &World, stream: &Rc<memory::Stream>, bytes: usize) {
    let (stream, stop) = (stream.clone(), world.net.stop());
    ringmesh_ring::spawn(async move {
        let mut output = Output::new();
        output.push_bytes(&vec![b'x'; bytes]);
        // What is not taken is the other side's to notice.
        let _ = stream.flush(&mut output, &stop).await;
    });
}

async fn check_served(world: &World) {
    let (client, upstream) = begin(world, GET).await;
    send(&upstream, &world.net, b"HTTP/1.1 204 No Content\r\n\r\n").await;
    assert!(read_head(&client, &world.net).await.starts_with("HTTP/1.1 204 "));
}

#[test]
fn a_body_that_trickles_gets_408_and_is_cut_upstream() {
    let world = world();
    block_on(&world.net, async {
        let (client, upstream) = begin(&world, &post(1000)).await;
        let begun = world.net.now();
        trickle(&world, &client, b"x").await;
        check_took(&world, begun, GRACE..GRACE + 2);
        let head = read_head(&client, &world.net).await;
        assert!(head.starts_with("HTTP/1.1 408 ") && head.contains("client_sends_slowly"), "{head}");
        assert!(head.contains("connection: close"), "{head}");
        read_to_end(&upstream, &world.net).await;
        check_took(&world, begun, GRACE..GRACE + 2);
        check_served(&world).await;
    });
    assert_eq!(world.ended(Reason::ClientSendsSlowly), 1);
    assert_eq!(world.ended(Reason::Ok), 1);
}

#[test]
fn a_body_that_trickles_under_a_response_that_has_begun_is_cut_on_both_sides() {
    let world = world();
    block_on(&world.net, async {
        let (client, upstream) = begin(&world, &post(1000)).await;
        let begun = world.net.now();
        send(&upstream, &world.net, b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf").await;
        read_head(&client, &world.net).await;
        read_bytes(&client, &world.net, "half".len()).await;
        trickle(&world, &client, b"x").await;
        check_took(&world, begun, GRACE..GRACE + 2);
        let error = client.fill(&mut Buffer::take(Size::Small), &world.net.stop()).await;
        assert!(error.is_err_and(|error| error.is_reset()), "half a response must not look whole");
        read_to_end(&upstream, &world.net).await;
    });
    assert_eq!(world.ended(Reason::ClientSendsSlowly), 1);
}

#[test]
fn a_body_at_the_rate_goes_through_however_long_it_takes_and_however_silent_the_endpoint_is() {
    let world = world();
    block_on(&world.net, async {
        let seconds = 3 * IDLE as usize;
        let bytes = seconds * ENOUGH;
        let (client, upstream) = begin(&world, &post(bytes)).await;
        for _ in 0..seconds {
            send(&client, &world.net, &[b'x'; ENOUGH]).await;
            sleep(&world, 1).await;
        }
        for _ in 0..seconds {
            read_bytes(&upstream, &world.net, ENOUGH).await;
        }
        send(&upstream, &world.net, b"HTTP/1.1 204 No Content\r\n\r\n").await;
        assert!(read_head(&client, &world.net).await.starts_with("HTTP/1.1 204 "));
    });
    assert_eq!(world.ended(Reason::Ok), 1);
}

#[test]
fn a_fast_start_buys_a_rest_but_not_a_long_one() {
    for (rest, expected) in [(MAX_CREDIT - 1, Reason::Ok), (MAX_CREDIT + 1, Reason::ClientSendsSlowly)] {
        let world = World::with(|listener| {
            listener.limits.request_timeout = None;
            listener.limits.idle_timeout = Duration::from_secs(2 * MAX_CREDIT);
        });
        block_on(&world.net, async {
            let fast = 1000 * ENOUGH;
            let (client, upstream) = begin(&world, &post(fast + 1)).await;
            for _ in 0..1000 {
                send(&client, &world.net, &[b'x'; ENOUGH]).await;
                read_bytes(&upstream, &world.net, ENOUGH).await;
            }
            let begun = world.net.now();
            sleep(&world, rest).await;
            if expected == Reason::Ok {
                send(&client, &world.net, b"x").await;
                read_bytes(&upstream, &world.net, 1).await;
                send(&upstream, &world.net, b"HTTP/1.1 204 No Content\r\n\r\n").await;
            }
            read_head(&client, &world.net).await;
            check_took(&world, begun, rest..rest + 1);
        });
        assert_eq!(world.ended(expected), 1, "after {rest} s");
    }
}

#[test]
fn a_client_that_is_held_back_by_the_endpoint_is_not_blamed() {
    let world = world();
    block_on(&world.net, async {
        let bytes = 20 * ENOUGH;
        let (client, upstream) = begin(&world, &post(bytes)).await;
        world.net.set_capacity_bytes(ENOUGH);
        // The endpoint takes just enough. The client sends as soon as there is room, and is done long before.
        let client = Rc::new(client);
        send_meanwhile(&world, &client, bytes);
        sip(&world, &upstream, ENOUGH, bytes).await;
        send(&upstream, &world.net, b"HTTP/1.1 204 No Content\r\n\r\n").await;
        assert!(read_head(&client, &world.net).await.starts_with("HTTP/1.1 204 "));
    });
    assert_eq!(world.ended(Reason::Ok), 1);
}

#[test]
fn an_endpoint_that_takes_nothing_of_a_body_is_blamed_with_504() {
    let world = world();
    block_on(&world.net, async {
        let (client, _upstream) = begin(&world, &post(1000 * ENOUGH)).await;
        world.net.set_capacity_bytes(1);
        let begun = world.net.now();
        send(&client, &world.net, &[b'x'; 1]).await;
        send(&client, &world.net, &[b'x'; 1]).await;
        let head = read_head(&client, &world.net).await;
        assert!(head.starts_with("HTTP/1.1 504 ") && head.contains("upstream_reads_slowly"), "{head}");
        check_took(&world, begun, GRACE..GRACE + 1);
        read_to_end(&client, &world.net).await;
    });
    assert_eq!(world.ended(Reason::UpstreamReadsSlowly), 1);
}

#[test]
fn a_client_that_takes_nothing_of_its_response_is_blamed_and_cut() {
    let world = world();
    block_on(&world.net, async {
        let (client, upstream) = begin(&world, GET).await;
        let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1000 * ENOUGH);
        send(&upstream, &world.net, response.as_bytes()).await;
        read_head(&client, &world.net).await;
        world.net.set_capacity_bytes(ENOUGH);
        let begun = world.net.now();
        let upstream = Rc::new(upstream);
        send_meanwhile(&world, &upstream, 10 * ENOUGH);
        read_to_end(&upstream, &world.net).await;
        // What it had to take was at least the last piece and at most all of it.
        check_took(&world, begun, GRACE..GRACE + 10);
        let mut buffer = Buffer::take(Size::Small);
        assert!(client.fill(&mut buffer, &world.net.stop()).await.is_err(), "what it got must not look whole");
    });
    assert_eq!(world.ended(Reason::ClientReadsSlowly), 1);
}

#[test]
fn a_client_that_takes_nothing_of_a_response_that_is_spliced_is_blamed_too() {
    const BYTES: usize = 4_000_000;
    let world = world();
    block_on(&world.net, async {
        let (client, upstream) = begin(&world, GET).await;
        let upstream = Rc::new(upstream);
        let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n");
        send(&upstream, &world.net, response.as_bytes()).await;
        read_head(&client, &world.net).await;
        // Two pieces at least are spliced: the first is taken.
        world.net.set_capacity_bytes(ENOUGH);
        send_meanwhile(&world, &upstream, BYTES);
        let mut buffer = Buffer::take(Size::Large);
        let mut taken = 0;
        while taken < BYTES / 2 {
            buffer.clear();
            taken += client.fill(&mut buffer, &world.net.stop()).await.expect("it is passed on");
        }
        let begun = world.net.now();
        read_to_end(&upstream, &world.net).await;
        check_took(&world, begun, GRACE..IDLE + 1);
    });
    assert_eq!(world.ended(Reason::ClientReadsSlowly), 1);
}

#[test]
fn a_client_that_takes_its_response_at_the_rate_gets_all_of_it() {
    let world = world();
    block_on(&world.net, async {
        let bytes = 2 * IDLE as usize * ENOUGH;
        let (client, upstream) = begin(&world, GET).await;
        let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n");
        send(&upstream, &world.net, response.as_bytes()).await;
        read_head(&client, &world.net).await;
        world.net.set_capacity_bytes(10 * ENOUGH);
        send_meanwhile(&world, &Rc::new(upstream), bytes);
        sip(&world, &client, ENOUGH, bytes).await;
    });
    assert_eq!(world.ended(Reason::Ok), 1);
}

#[test]
fn events_may_be_rare_but_not_rarer_than_the_idle_timeout() {
    let world = world();
    block_on(&world.net, async {
        let (client, upstream) = begin(&world, GET).await;
        send(&upstream, &world.net, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        read_head(&client, &world.net).await;
        for _ in 0..3 {
            sleep(&world, IDLE - 1).await;
            send(&upstream, &world.net, b"1\r\nx\r\n").await;
            read_bytes(&client, &world.net, "1\r\nx\r\n".len()).await;
        }
        let begun = world.net.now();
        read_to_end(&upstream, &world.net).await;
        check_took(&world, begun, IDLE..IDLE + 1);
    });
    assert_eq!(world.ended(Reason::UpstreamSilent), 1);
}

#[test]
fn the_rest_of_a_response_has_a_deadline_after_the_request_has_ended() {
    let world = world();
    block_on(&world.net, async {
        let (client, upstream) = begin(&world, &post(8)).await;
        send(&client, &world.net, b"half").await;
        send(&upstream, &world.net, b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf").await;
        read_head(&client, &world.net).await;
        read_bytes(&upstream, &world.net, 4).await;
        sleep(&world, 1).await;
        send(&client, &world.net, b"more").await;
        let begun = world.net.now();
        read_bytes(&upstream, &world.net, 4).await;
        read_to_end(&upstream, &world.net).await;
        check_took(&world, begun, IDLE..IDLE + 1);
    });
    assert_eq!(world.ended(Reason::UpstreamSilent), 1);
}

#[test]
fn who_waits_to_be_told_to_go_on_is_waited_for_only_from_then_on() {
    let request = b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    for told in [true, false] {
        let world = world();
        block_on(&world.net, async {
            let (client, upstream) = begin(&world, request).await;
            sleep(&world, 3 * GRACE).await;
            send(&upstream, &world.net, b"HTTP/1.1 102 Processing\r\n\r\n").await;
            read_head(&client, &world.net).await;
            sleep(&world, 3 * GRACE).await;
            let begun = world.net.now();
            if told {
                send(&upstream, &world.net, b"HTTP/1.1 100 Continue\r\n\r\n").await;
                read_head(&client, &world.net).await;
            }
            let head = read_head(&client, &world.net).await;
            assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
            let left = IDLE - 6 * GRACE;
            check_took(&world, begun, if told { GRACE..GRACE + 1 } else { left..left + 1 });
        });
        let reason = if told { Reason::ClientSendsSlowly } else { Reason::ClientTimeout };
        assert_eq!(world.ended(reason), 1, "told to go on: {told}");
    }
}

#[test]
fn without_a_rate_only_the_idle_timeout_counts() {
    let world = World::with(|listener| {
        listener.limits.request_timeout = None;
        listener.limits.idle_timeout = Duration::from_secs(IDLE);
        listener.limits.min_transfer_rate = None;
    });
    block_on(&world.net, async {
        let (client, _upstream) = begin(&world, &post(1000)).await;
        sleep(&world, IDLE - 1).await;
        send(&client, &world.net, b"x").await;
        let begun = world.net.now();
        assert!(read_head(&client, &world.net).await.contains("client_timeout"));
        check_took(&world, begun, IDLE..IDLE + 1);
    });
    assert_eq!(world.ended(Reason::ClientTimeout), 1);
}
