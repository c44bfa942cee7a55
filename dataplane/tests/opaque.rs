//! Opaque connections: how slow, how silent and how long they may be, and who is blamed. On a virtual clock.

mod world;

use std::num::NonZeroU32;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use ringmesh_dataplane::outcome::Reason;
use ringmesh_model::snapshot::{ListenerTarget, OpaqueLimits, Protocol};
use ringmesh_ring::memory::{self, block_on};
use ringmesh_ring::{Buffer, Instant, Net, Output, Size, Stream};
use world::{MIN_TRANSFER_RATE, World, read_bytes, send};

const GRACE: u64 = 5;
const IDLE: u64 = 50;

/// A second's bytes for a peer that is just fast enough.
const ENOUGH: usize = MIN_TRANSFER_RATE as usize;

/// So many at once are spliced, after the first few reads.
const BULK: usize = 1_000_000;

fn world(change: impl FnOnce(&mut OpaqueLimits)) -> World {
    World::with(|listener| {
        listener.protocol = Protocol::Tcp;
        listener.target = ListenerTarget::Service("s".into());
        listener.limits.opaque = OpaqueLimits {
            idle_timeout: Duration::from_secs(IDLE),
            min_transfer_rate: NonZeroU32::new(MIN_TRANSFER_RATE),
            max_duration: None,
        };
        change(&mut listener.limits.opaque);
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

/// Both ends of a connection through the proxy.
async fn open(world: &World) -> [Rc<memory::Stream>; 2] {
    let client = world.connect();
    let upstream = world.accept().await;
    [Rc::new(client), Rc::new(upstream)]
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

/// Takes so many bytes.
async fn take(world: &World, stream: &memory::Stream, bytes: usize) {
    let (mut buffer, mut left) = (Buffer::take(Size::Large), bytes);
    while left > 0 {
        buffer.clear();
        left -= stream.fill(&mut buffer, &world.net.stop()).await.expect("the connection is open");
    }
}

/// Waits for the end of a connection, which must be a reset, without taking anything.
async fn see_reset(world: &World, stream: &memory::Stream) {
    let mut buffer = Buffer::take(Size::Large);
    loop {
        buffer.clear();
        match stream.fill(&mut buffer, &world.net.stop()).await {
            Ok(0) => panic!("an end that looks like one in order"),
            Ok(_) => {}
            Err(error) => return assert!(error.is_reset(), "{error}"),
        }
    }
}

/// One of the two takes nothing of what the other sends.
fn check_blamed(lazy: usize, bytes: usize, expected: Reason) {
    let world = world(|_| {});
    block_on(&world.net, async {
        let ends = open(&world).await;
        let (lazy, eager) = (&ends[lazy], &ends[1 - lazy]);
        if bytes == BULK {
            // At first it takes all, until bytes are spliced.
            send_meanwhile(&world, eager, bytes);
            take(&world, lazy, bytes).await;
        }
        world.net.set_capacity_bytes(ENOUGH);
        let begun = world.net.now();
        send_meanwhile(&world, eager, bytes);
        see_reset(&world, eager).await;
        // For what was there when it stopped to take: at most a buffer of the proxy's.
        check_took(&world, begun, GRACE..GRACE + 700);
    });
    assert_eq!(world.connections(expected), 1, "{bytes} bytes");
}

#[test]
fn who_takes_nothing_of_what_waits_for_it_is_cut_on_both_sides() {
    for bytes in [10 * ENOUGH, BULK] {
        check_blamed(0, bytes, Reason::ClientReadsSlowly);
        check_blamed(1, bytes, Reason::UpstreamReadsSlowly);
    }
}

#[test]
fn who_takes_at_the_rate_gets_all_of_it_however_long_it_takes() {
    for lazy in [0, 1] {
        let world = world(|_| {});
        block_on(&world.net, async {
            let ends = open(&world).await;
            let seconds = 4 * IDLE as usize;
            world.net.set_capacity_bytes(10 * ENOUGH);
            send_meanwhile(&world, &ends[1 - lazy], seconds * ENOUGH);
            for _ in 0..seconds {
                read_bytes(&ends[lazy], &world.net, ENOUGH).await;
                sleep(&world, 1).await;
            }
        });
        assert_eq!(world.connections(Reason::ClientReadsSlowly), 0);
        assert_eq!(world.connections(Reason::UpstreamReadsSlowly), 0);
    }
}

#[test]
fn silence_is_no_slowness() {
    let world = world(|_| {});
    block_on(&world.net, async {
        let [client, upstream] = open(&world).await;
        sleep(&world, IDLE - 2).await;
        send(&client, &world.net, b"x").await;
        read_bytes(&upstream, &world.net, 1).await;
        let begun = world.net.now();
        see_reset(&world, &upstream).await;
        check_took(&world, begun, IDLE..IDLE + 1);
    });
    assert_eq!(world.connections(Reason::IdleTimeout), 1);
}

#[test]
fn without_a_rate_who_takes_nothing_is_cut_only_by_the_silence_of_both() {
    let world = world(|limits| limits.min_transfer_rate = None);
    block_on(&world.net, async {
        let [client, upstream] = open(&world).await;
        world.net.set_capacity_bytes(ENOUGH);
        let begun = world.net.now();
        send_meanwhile(&world, &client, 10 * ENOUGH);
        sleep(&world, IDLE / 2).await;
        send(&upstream, &world.net, b"x").await;
        read_bytes(&client, &world.net, 1).await;
        see_reset(&world, &client).await;
        check_took(&world, begun, IDLE / 2 + IDLE..IDLE / 2 + IDLE + 1);
    });
    assert_eq!(world.connections(Reason::IdleTimeout), 1);
}

#[test]
fn a_busy_connection_ends_when_its_time_is_over() {
    let world = world(|limits| limits.max_duration = Some(Duration::from_secs(2 * IDLE)));
    block_on(&world.net, async {
        let begun = world.net.now();
        let [client, upstream] = open(&world).await;
        for _ in 0..2 * IDLE - 1 {
            send(&client, &world.net, b"ping").await;
            read_bytes(&upstream, &world.net, 4).await;
            sleep(&world, 1).await;
        }
        see_reset(&world, &client).await;
        see_reset(&world, &upstream).await;
        check_took(&world, begun, 2 * IDLE..2 * IDLE + 1);
    });
    assert_eq!(world.connections(Reason::MaxDuration), 1);
}
