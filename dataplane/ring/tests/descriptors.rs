//! No descriptor stays behind, whatever is in flight when its owner ends. A binary of its own, with one test at a time:
//! it counts the descriptors of the process.
#![allow(clippy::unwrap_used, reason = "a panic is a test's report")]

mod common;

use std::future::Future;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use common::{connected_pair, connection, descriptors, on_worker, poll_once, unhurried};
use ringmesh_ring::{
    Buffer, Listener, Output, Pipe, Reason, Size, Socket, Stop, Stream, mailbox, setup, spawn, yield_now,
};

static ALONE: Mutex<()> = Mutex::new(());

/// Runs `test` on each driver, and compares the descriptors before and after.
fn check<F: Future<Output = ()> + 'static>(test: fn() -> F) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for grant in setup::probe_all() {
        // Whatever a first run opens for good is open after it.
        on_worker(&grant, || async {});
        let before = descriptors();
        for _ in 0..3 {
            on_worker(&grant, test);
        }
        assert_eq!(descriptors(), before, "on {}", grant.driver);
    }
}

#[test]
fn tasks_that_end_with_their_worker_leave_nothing() {
    check(|| async {
        for _ in 0..50 {
            let (near, far) = connection();
            spawn(async move {
                let _far = far;
                let _ = near.fill(&mut Buffer::take(Size::Small), &Stop::new()).await;
            });
            let (near, far) = connected_pair();
            spawn(async move {
                let _ = near.readable().await;
            });
            spawn(async move {
                let mut buffer = Buffer::take(Size::Small);
                buffer.commit(buffer.spare());
                let mut output = Output::new();
                (0..1000).for_each(|_| output.push(buffer.slice(0..buffer.len())));
                let _ = far.flush(&mut output, &unhurried()).await;
            });
        }
        let (listener, _) = common::listener();
        let listener = Listener::from_fd(listener.into()).unwrap();
        spawn(async move {
            listener.readable().await.unwrap();
        });
        let (senders, receiver) = mailbox::mailbox::<u32>(4, 4).unwrap();
        spawn(async move {
            let _senders = senders;
            receiver.ready().await.unwrap();
        });
        yield_now().await;
    });
}

#[test]
fn operations_that_are_dropped_or_cancelled_close_what_they_held() {
    check(|| async {
        let before = descriptors();
        for round in 0..100 {
            let (near, far) = connection();
            let stop = Stop::new();
            let mut buffer = Buffer::take(Size::Small);
            match round % 4 {
                0 => assert!(poll_once(near.fill(&mut buffer, &stop)).await.is_none()),
                1 => assert!(poll_once(near.readable()).await.is_none()),
                2 => {
                    let filled = common::both(near.fill(&mut buffer, &stop), async { stop.trigger(Reason::Abort) });
                    assert!(filled.await.0.is_err());
                }
                _ => {
                    let (to, _) = connection();
                    let mut pipe = Pipe::new().unwrap();
                    assert!(poll_once(near.splice_to(&to, &mut pipe, 1000, &stop)).await.is_none());
                }
            }
            drop((near, far));
        }
        for _ in 0..3 {
            yield_now().await;
        }
        assert_eq!(descriptors(), before);
    });
}

#[test]
fn clients_and_handed_over_connections_are_closed_once() {
    check(|| async {
        let before = descriptors();
        for _ in 0..100 {
            let (listener, address) = common::listener();
            let listener = Listener::from_fd(listener.into()).unwrap();
            let client = Socket::connect(&address, None, &unhurried()).await.unwrap();
            listener.readable().await.unwrap();
            let (accepted, _) = listener.accept().unwrap().unwrap();
            let accepted = Socket::accepted(accepted).unwrap();
            let mut handed = std::net::TcpStream::from(accepted.into_fd().unwrap());
            yield_now().await;
            // Were the descriptor closed twice, this could hit somebody else's.
            handed.write_all(b"x").unwrap();
            let mut buffer = Buffer::take(Size::Small);
            assert_eq!(client.fill(&mut buffer, &unhurried()).await.unwrap(), 1);
        }
        for _ in 0..3 {
            yield_now().await;
        }
        assert_eq!(descriptors(), before);
    });
}
