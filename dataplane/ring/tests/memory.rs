//! The world in memory: same promises as sockets, on a clock that tests own.
#![allow(clippy::unwrap_used, reason = "a panic is a test's report")]

use std::cell::RefCell;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use ringmesh_ring::memory::{Network, block_on};
use ringmesh_ring::{
    Address, Bare, Buffer, Error, Idle, Net, Output, Pipe, Reason, Size, Stream, panics, sleep_until, spawn, yield_now,
};

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn connections_carry_bytes_both_ways_in_chosen_chunks() {
    let network = Network::new(1);
    network.set_chunk_bytes(3);
    network.set_capacity_bytes(10);
    let listener = network.listen(address("10.0.0.1:80"));
    block_on(&network.clone(), async move {
        let world = network.clone();
        spawn(async move {
            let (stop, near) = (world.stop(), listener.accept().await);
            let (mut buffer, mut output) = (Buffer::take(Size::Small), Output::new());
            while near.fill(&mut buffer, &stop).await.unwrap() > 0 {
                assert!(buffer.len() <= 3);
                output.push(buffer.slice(0..buffer.len()));
                buffer.clear();
                near.flush(&mut output, &stop).await.unwrap();
            }
        });
        let stop = network.stop();
        let near = network.connect(&address("10.0.0.1:80").into(), None, &stop).await.unwrap();
        assert_eq!(near.peer_address(), Some(address("10.0.0.1:80")));
        let sent: Vec<u8> = (0..200).collect();
        let (mut buffer, mut output) = (Buffer::take(Size::Small), Output::new());
        for part in sent.chunks(7) {
            output.push_bytes(part);
            near.flush(&mut output, &stop).await.unwrap();
            while near.try_fill(&mut buffer).unwrap().is_some() {}
        }
        near.shutdown_write().unwrap();
        while near.fill(&mut buffer, &stop).await.unwrap() > 0 {}
        assert_eq!(buffer.filled(), sent);
    });
}

#[test]
fn clock_jumps_to_the_next_deadline_and_no_further() {
    let network = Network::new(1);
    let start = network.now();
    let order = Rc::new(RefCell::new(Vec::new()));
    let seen = order.clone();
    block_on(&network.clone(), async move {
        for seconds in [5, 1, 3] {
            let seen = seen.clone();
            spawn(async move {
                sleep_until(start + Duration::from_secs(seconds)).await;
                seen.borrow_mut().push(seconds);
            });
        }
        let (near, _far) = network.pair();
        let stop = network.stop();
        stop.set_deadline(Some(start + Duration::from_secs(4)));
        let filled = near.fill(&mut Buffer::take(Size::Small), &stop).await;
        assert!(matches!(filled, Err(Error::Stopped(Reason::Deadline))));
        let passed = network.now().saturating_since(start);
        assert!((4000..4020).contains(&passed.as_millis()), "{passed:?}");
        assert_eq!(*seen.borrow(), [1, 3]);
    });
    assert_eq!(*order.borrow(), [1, 3]);
}

#[test]
fn connecting_is_refused_or_hangs_until_the_deadline() {
    let network = Network::new(1);
    network.silence(address("10.0.0.9:80"));
    block_on(&network.clone(), async move {
        let stop = network.stop();
        let refused = network.connect(&address("10.0.0.1:80").into(), None, &stop).await;
        assert!(matches!(refused, Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused));
        drop(network.listen(address("10.0.0.1:80")));
        assert!(network.connect(&address("10.0.0.1:80").into(), None, &stop).await.is_err());

        let start = network.now();
        stop.set_deadline(Some(start + Duration::from_secs(30)));
        let silent = network.connect(&address("10.0.0.9:80").into(), None, &stop).await;
        assert!(matches!(silent, Err(Error::Stopped(Reason::Deadline))));
        assert!(network.now() >= start + Duration::from_secs(30));
        let unix = Address::Unix("/run/app.sock".into());
        let _listener = network.listen(unix.clone());
        stop.clear();
        assert_eq!(network.connect(&unix, None, &stop).await.unwrap().peer_address(), None);
    });
}

#[test]
fn ends_and_resets_look_like_those_of_sockets() {
    let network = Network::new(1);
    block_on(&network.clone(), async move {
        let stop = network.stop();
        let (mut buffer, mut output) = (Buffer::take(Size::Small), Output::new());
        output.push_bytes(b"abc");

        let (near, far) = network.pair();
        near.flush(&mut output, &stop).await.unwrap();
        assert_eq!((near.check_idle().unwrap(), far.check_idle().unwrap()), (Idle::Open, Idle::Data));
        drop(near);
        assert_eq!(far.fill(&mut buffer, &stop).await.unwrap(), 3);
        assert_eq!(far.fill(&mut buffer, &stop).await.unwrap(), 0);
        assert_eq!(far.check_idle().unwrap(), Idle::Closed);
        output.push_bytes(b"abc");
        assert!(far.flush(&mut output, &stop).await.unwrap_err().is_reset());

        let (near, far) = network.pair();
        let mut bytes = [0; 2];
        output.clear();
        output.push_bytes(b"abc");
        assert_eq!(far.try_peek(&mut bytes).unwrap(), None);
        near.flush(&mut output, &stop).await.unwrap();
        assert_eq!((far.try_peek(&mut bytes).unwrap(), &bytes), (Some(2), b"ab"));
        assert_eq!((far.try_take(&mut bytes[..1]).unwrap(), &bytes[..1]), (Some(1), &b"a"[..]));
        assert_eq!((far.try_take(&mut bytes).unwrap(), &bytes), (Some(2), b"bc"));
        near.shutdown_write().unwrap();
        assert_eq!(far.try_peek(&mut bytes).unwrap(), Some(0));
        output.push_bytes(b"abc");

        let (near, far) = network.pair();
        near.reset_on_close();
        drop(near);
        assert!(far.try_peek(&mut bytes).is_err());
        assert!(far.fill(&mut buffer, &stop).await.unwrap_err().is_reset());
        // Closing with bytes unread is a reset.
        let (near, far) = network.pair();
        near.flush(&mut output, &stop).await.unwrap();
        drop(far);
        assert!(near.fill(&mut buffer, &stop).await.unwrap_err().is_reset());
    });
}

#[test]
fn flushed_slices_are_recorded_where_they_lie() {
    let network = Network::new(1);
    block_on(&network.clone(), async move {
        let stop = network.stop();
        let (near, far) = network.pair();
        let (mut buffer, mut output) = (Buffer::take(Size::Small), Output::new());
        output.push_bytes(b"hello");
        near.flush(&mut output, &stop).await.unwrap();
        network.record();
        far.fill(&mut buffer, &stop).await.unwrap();
        output.push(buffer.slice(1..4));
        far.flush(&mut output, &stop).await.unwrap();
        let start = buffer.filled().as_ptr().addr();
        assert_eq!(network.take_flushed(), vec![Range { start: start + 1, end: start + 4 }]);
        assert_eq!(network.take_flushed(), []);
    });
}

#[test]
fn splicing_copies_at_most_what_is_asked_for() {
    let network = Network::new(1);
    block_on(&network.clone(), async move {
        let stop = network.stop();
        let ((source, from), (to, sink)) = (network.pair(), network.pair());
        let (mut buffer, mut output) = (Buffer::take(Size::Small), Output::new());
        output.push_bytes(b"hello world");
        source.flush(&mut output, &stop).await.unwrap();
        drop(source);
        let mut pipe = Pipe::new().unwrap();
        for expected in [4, 4, 3, 0] {
            assert_eq!(from.splice_to(&to, &mut pipe, 4, &stop).await.unwrap(), expected);
        }
        sink.fill(&mut buffer, &stop).await.unwrap();
        assert_eq!(buffer.filled(), b"hello world");
    });
}

#[test]
fn panic_ends_its_task_alone() {
    let network = Network::new(1);
    let before = panics();
    block_on(&network, async {
        spawn(async { panic!("expected by the test") });
        yield_now().await;
        yield_now().await;
    });
    assert_eq!(panics(), before + 1);
}

#[test]
fn same_seed_gives_the_same_chance() {
    let draw = |seed| {
        let network = Network::new(seed);
        [network.random(), network.random(), network.random()]
    };
    assert_eq!(draw(7), draw(7));
    assert_ne!(draw(7), draw(8));
}

#[test]
#[should_panic(expected = "nothing can move")]
fn waiting_for_ever_is_a_panic() {
    let network = Network::new(1);
    let (near, _far) = network.pair();
    let stop = network.stop();
    let _ = block_on(&network, async move { near.fill(&mut Buffer::take(Size::Small), &stop).await });
}
