//! A stop may come at any moment: no byte, no client and no descriptor is lost by it.
#![allow(clippy::unwrap_used, reason = "a panic is a test's report")]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use common::{Chance, both, connection, narrow_connection, on_every_driver, pattern, unhurried, write_in_bursts};
use ringmesh_ring::{Buffer, Error, Listener, Output, Reason, Size, Stop, Stream, yield_now};

/// Triggers after some turns of the loop.
async fn trigger_after(turns: u64, stop: &Stop) {
    for _ in 0..turns {
        yield_now().await;
    }
    stop.trigger(Reason::Abort);
}

#[test]
fn no_byte_is_lost_when_receives_are_cancelled_at_any_point() {
    const TOTAL: u64 = 4_000_000;
    on_every_driver(|| async {
        let (near, far) = connection();
        let writer = write_in_bursts(far, TOTAL, 7);
        let chance = Chance::new(8);
        let stop = Stop::new();
        let mut buffer = Buffer::take(Size::Small);
        let (mut received, mut cancelled) = (0, 0);
        while received < TOTAL {
            stop.clear();
            if chance.below(8) == 0 {
                stop.trigger(Reason::Abort);
            }
            let (filled, ()) = both(near.fill(&mut buffer, &stop), trigger_after(chance.below(4), &stop)).await;
            match filled {
                Ok(0) => panic!("ended after {received} of {TOTAL} bytes"),
                Ok(len) => assert_eq!(len, buffer.len()),
                Err(Error::Stopped(Reason::Abort)) => cancelled += 1,
                Err(error) => panic!("{error}"),
            }
            assert!(buffer.filled() == pattern(received, buffer.len()), "wrong bytes after {received}");
            received += buffer.len() as u64;
            buffer.clear();
        }
        assert!(cancelled > 100, "only {cancelled} receives were cancelled");
        drop(writer.join().unwrap());
        assert_eq!(near.fill(&mut buffer, &unhurried()).await.unwrap(), 0);
    });
}

#[test]
fn no_byte_is_lost_or_doubled_when_sends_are_cancelled_at_any_point() {
    const TOTAL: u64 = 8_000_000;
    on_every_driver(|| async {
        let (near, mut far) = narrow_connection();
        let reader = std::thread::spawn(move || {
            let chance = Chance::new(3);
            let (mut received, mut bytes) = (0, vec![0; 100_000]);
            while received < TOTAL {
                let len = far.read(&mut bytes).unwrap();
                assert!(len > 0, "ended after {received}");
                assert!(bytes[..len] == pattern(received, len), "wrong bytes after {received}");
                received += len as u64;
                for _ in 0..chance.below(20_000) {
                    std::hint::spin_loop();
                }
            }
        });
        let chance = Chance::new(4);
        let stop = Stop::new();
        let mut output = Output::new();
        let (mut produced, mut cancelled) = (0, 0);
        while produced < TOTAL || !output.is_empty() {
            for _ in 0..chance.below(6) {
                let len = (1 + chance.below(60_000)).min(TOTAL - produced);
                if output.len_bytes() > 500_000 || len == 0 {
                    break;
                }
                let mut buffer = Buffer::take(Size::Large);
                buffer.extend_from_slice(&pattern(produced, len as usize)).unwrap();
                if chance.below(2) == 0 {
                    output.push(buffer.slice(0..len as usize));
                } else {
                    output.push_bytes(buffer.filled());
                }
                produced += len;
            }
            stop.clear();
            match both(near.flush(&mut output, &stop), trigger_after(chance.below(4), &stop)).await.0 {
                Ok(()) => assert!(output.is_empty()),
                Err(Error::Stopped(Reason::Abort)) => cancelled += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(cancelled > 20, "only {cancelled} sends were cancelled");
        reader.join().unwrap();
    });
}

#[test]
fn both_directions_of_a_connection_are_cancelled_by_one_stop() {
    on_every_driver(|| async {
        let (near, far) = connection();
        let stop = Stop::new();
        let (mut buffer, mut output) = (Buffer::take(Size::Small), Output::new());
        for _ in 0..1000 {
            output.push_bytes(&[0; 16 * 1024]);
        }
        let operations = both(near.fill(&mut buffer, &stop), near.flush(&mut output, &stop));
        let ((filled, flushed), ()) = both(operations, trigger_after(20, &stop)).await;
        assert!(matches!(filled, Err(Error::Stopped(Reason::Abort))));
        assert!(matches!(flushed, Err(Error::Stopped(Reason::Abort))));
        assert!(output.len_bytes() > 0);
        assert_eq!(buffer.capacity(), ringmesh_ring::BUFFER_BYTES);
        drop(far);
    });
}

#[test]
fn no_client_is_lost_when_waiting_for_clients_is_dropped_at_any_point() {
    const CLIENTS: usize = 400;
    on_every_driver(|| async {
        let (listener, _) = common::listener();
        let address = listener.local_addr().unwrap();
        let listener = Listener::from_fd(listener.into()).unwrap();
        let clients = std::thread::spawn(move || {
            let chance = Chance::new(5);
            for n in 0..CLIENTS {
                let mut client = TcpStream::connect(address).unwrap();
                client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                client.write_all(&(n as u32).to_le_bytes()).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                if chance.below(4) == 0 {
                    let mut answer = Vec::new();
                    client.read_to_end(&mut answer).unwrap();
                    assert_eq!(answer, b"ok");
                }
            }
        });
        let chance = Chance::new(6);
        let mut served = 0;
        while served < CLIENTS {
            let stop = Stop::new();
            let waiting = async {
                let mut waiting = std::pin::pin!(listener.readable());
                std::future::poll_fn(|cx| match waiting.as_mut().poll(cx) {
                    std::task::Poll::Ready(result) => std::task::Poll::Ready(Some(result)),
                    std::task::Poll::Pending => stop.poll_stopped(cx).map(|_| None),
                })
                .await
            };
            let (ready, ()) = both(waiting, trigger_after(chance.below(4), &stop)).await;
            ready.transpose().unwrap();
            while let Some((client, address)) = listener.accept().unwrap() {
                assert!(address.unwrap().ip().is_loopback());
                let socket = ringmesh_ring::Socket::accepted(client).unwrap();
                let mut buffer = Buffer::take(Size::Small);
                while socket.fill(&mut buffer, &unhurried()).await.unwrap() > 0 {}
                assert_eq!(buffer.filled(), (served as u32).to_le_bytes());
                served += 1;
                let mut output = Output::new();
                output.push_bytes(b"ok");
                // Most clients do not wait for the answer.
                let _ = socket.flush(&mut output, &unhurried()).await;
            }
        }
        clients.join().unwrap();
    });
}

#[test]
fn operations_fail_at_once_after_a_stop_and_work_again_when_it_is_cleared() {
    on_every_driver(|| async {
        let (near, mut far) = connection();
        let stop = Stop::new();
        stop.trigger(Reason::Drain);
        let (mut buffer, mut output) = (Buffer::take(Size::Small), Output::new());
        output.push_bytes(b"hello");
        far.write_all(b"there").unwrap();
        assert!(matches!(near.fill(&mut buffer, &stop).await, Err(Error::Stopped(Reason::Drain))));
        assert!(matches!(near.flush(&mut output, &stop).await, Err(Error::Stopped(Reason::Drain))));
        stop.clear();
        assert_eq!(near.fill(&mut buffer, &stop).await.unwrap(), 5);
        near.flush(&mut output, &stop).await.unwrap();
        let mut received = [0; 5];
        far.read_exact(&mut received).unwrap();
        assert_eq!((&received, buffer.filled()), (b"hello", &b"there"[..]));
    });
}
