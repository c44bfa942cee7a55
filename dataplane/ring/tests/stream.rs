//! Sockets as streams: every byte, in order, through every way in and out.
#![allow(clippy::unwrap_used, reason = "a panic is a test's report")]

mod common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use common::{both, connected_pair, connection, narrow_connection, on_every_driver, pattern, poll_once, unhurried};
use ringmesh_ring::{Bare, Buffer, Error, Idle, Instant, Output, Pipe, Reason, Size, Slice, Stop, Stream};

#[test]
fn many_slices_arrive_in_order_at_a_slow_reader() {
    on_every_driver(|| async {
        let (near, mut far) = narrow_connection();
        let expected = pattern(0, 2_000_000);
        let reader = std::thread::spawn(move || {
            let (mut received, mut bytes) = (Vec::new(), vec![0; 10_000]);
            loop {
                let len = far.read(&mut bytes).unwrap();
                if len == 0 {
                    return received;
                }
                received.extend_from_slice(&bytes[..len]);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let mut output = Output::new();
        // Slices of odd lengths, more of them than one vectored send takes.
        for (index, part) in expected.chunks(997).enumerate() {
            if index % 3 == 0 {
                output.push_bytes(part);
            } else {
                let mut buffer = Buffer::take(Size::Small);
                buffer.extend_from_slice(part).unwrap();
                output.push(buffer.slice(0..part.len()));
            }
        }
        assert_eq!(output.len_bytes(), expected.len());
        near.flush(&mut output, &unhurried()).await.unwrap();
        assert!(output.is_empty());
        near.shutdown_write().unwrap();
        assert!(reader.join().unwrap() == expected);
    });
}

#[test]
fn idle_connection_tells_what_it_is_without_losing_bytes() {
    on_every_driver(|| async {
        let (near, mut far) = connection();
        let mut buffer = Buffer::take(Size::Small);
        assert_eq!(near.check_idle().unwrap(), Idle::Open);
        assert_eq!(near.try_fill(&mut buffer).unwrap(), None);
        assert!(poll_once(near.readable()).await.is_none());
        far.write_all(b"abc").unwrap();
        near.readable().await.unwrap();
        assert_eq!(near.check_idle().unwrap(), Idle::Data);
        assert_eq!(near.try_fill(&mut buffer).unwrap(), Some(3));
        assert_eq!(buffer.filled(), b"abc");
        assert_eq!(near.check_idle().unwrap(), Idle::Open);
        far.shutdown(Shutdown::Write).unwrap();
        near.readable().await.unwrap();
        assert_eq!(near.check_idle().unwrap(), Idle::Closed);
        assert_eq!(near.try_fill(&mut buffer).unwrap(), Some(0));
    });
}

#[test]
fn bytes_that_were_looked_at_are_still_there_and_just_as_many_are_taken_as_asked() {
    on_every_driver(|| async {
        let (near, mut far) = connection();
        let mut bytes = [0; 4];
        assert_eq!(near.try_peek(&mut bytes).unwrap(), None);
        assert_eq!(near.try_take(&mut bytes).unwrap(), None);
        far.write_all(b"abcdef").unwrap();
        near.readable().await.unwrap();
        assert_eq!((near.try_peek(&mut bytes).unwrap(), &bytes), (Some(4), b"abcd"));
        assert_eq!((near.try_take(&mut bytes[..3]).unwrap(), &bytes[..3]), (Some(3), &b"abc"[..]));
        assert_eq!((near.try_peek(&mut bytes).unwrap(), &bytes[..3]), (Some(3), &b"def"[..]));
        // What is left wakes who waits for it, also where readiness was told before.
        near.readable().await.unwrap();
        let mut buffer = Buffer::take(Size::Small);
        assert_eq!(near.fill(&mut buffer, &unhurried()).await.unwrap(), 3);
        far.shutdown(Shutdown::Write).unwrap();
        near.readable().await.unwrap();
        assert_eq!(near.try_peek(&mut bytes).unwrap(), Some(0));
        assert_eq!(near.try_take(&mut bytes).unwrap(), Some(0));
    });
}

#[test]
fn half_closed_connection_still_receives() {
    on_every_driver(|| async {
        let (near, mut far) = connection();
        near.shutdown_write().unwrap();
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
        far.write_all(b"late").unwrap();
        let mut buffer = Buffer::take(Size::Small);
        assert_eq!(near.fill(&mut buffer, &unhurried()).await.unwrap(), 4);
    });
}

#[test]
fn reset_is_told_apart_from_an_ordinary_end() {
    on_every_driver(|| async {
        let (near, far) = connected_pair();
        near.reset_on_close();
        drop(near);
        let error = far.fill(&mut Buffer::take(Size::Small), &unhurried()).await.unwrap_err();
        assert!(error.is_reset(), "{error}");
        let mut output = Output::new();
        output.push_bytes(b"x");
        assert!(far.flush(&mut output, &unhurried()).await.unwrap_err().is_reset());
        assert_eq!(far.check_idle().unwrap(), Idle::Closed);
    });
}

#[test]
fn receiving_without_room_is_an_error_and_not_the_end() {
    on_every_driver(|| async {
        let (near, mut far) = connection();
        far.write_all(b"x").unwrap();
        let mut full = Buffer::take(Size::Small);
        full.extend_from_slice(&[0; ringmesh_ring::BUFFER_BYTES]).unwrap();
        assert!(matches!(near.fill(&mut full, &unhurried()).await, Err(Error::Io(_))));
        near.readable().await.unwrap();
        assert!(near.try_fill(&mut full).is_err());
        assert!(near.fill(&mut Buffer::hollow(), &unhurried()).await.is_err());
    });
}

#[test]
fn memory_of_a_dropped_receive_stays_the_kernels_until_it_is_done() {
    on_every_driver(|| async {
        for _ in 0..50 {
            let (near, mut far) = connection();
            let mut buffer = Buffer::take(Size::Small);
            assert!(poll_once(near.fill(&mut buffer, &Stop::new())).await.is_none());
            assert_eq!(buffer.capacity(), 0);
            // Nothing may be written into these, whenever the kernel gets to see the bytes.
            let mut others: Vec<Buffer> = (0..4).map(|_| Buffer::take(Size::Small)).collect();
            for other in &mut others {
                other.extend_from_slice(&[7; 1000]).unwrap();
            }
            far.write_all(&[1; 1000]).unwrap();
            ringmesh_ring::yield_now().await;
            far.write_all(&[1; 1000]).unwrap();
            ringmesh_ring::yield_now().await;
            assert!(others.iter().all(|other| other.filled() == [7; 1000]));
        }
    });
}

#[test]
fn memory_of_a_dropped_send_stays_the_kernels_until_it_is_done() {
    on_every_driver(|| async {
        let (near, mut far) = connection();
        let mut output = Output::new();
        // More than the socket takes, so that the send is still in flight when it is dropped.
        for _ in 0..300 {
            let mut buffer = Buffer::take(Size::Large);
            buffer.spare_mut().fill(1);
            buffer.commit(64 * 1024);
            output.push(buffer.slice(0..64 * 1024));
        }
        {
            let stop = Stop::new();
            let mut flush = std::pin::pin!(near.flush(&mut output, &stop));
            for _ in 0..10 {
                assert!(poll_once(flush.as_mut()).await.is_none());
                ringmesh_ring::yield_now().await;
            }
        }
        assert!(output.is_empty());
        for _ in 0..100 {
            let mut buffer = Buffer::take(Size::Large);
            buffer.spare_mut().fill(2);
        }
        near.shutdown_write().unwrap();
        let mut received = Vec::new();
        far.read_to_end(&mut received).unwrap();
        assert!(received.iter().all(|byte| *byte == 1));
    });
}

#[test]
fn spliced_bytes_arrive_whole_and_in_order() {
    const TOTAL: usize = 24_000_000;
    on_every_driver(|| async {
        let (from, mut source) = connection();
        let (to, mut sink) = connection();
        let writer = std::thread::spawn(move || source.write_all(&pattern(0, TOTAL)).unwrap());
        let reader = std::thread::spawn(move || {
            let mut received = Vec::new();
            sink.read_to_end(&mut received).unwrap();
            received
        });
        let mut pipe = Pipe::new().unwrap();
        let stop = unhurried();
        let mut moved = 0;
        loop {
            match from.splice_to(&to, &mut pipe, 1024 * 1024, &stop).await.unwrap() {
                0 => break,
                len => moved += len,
            }
            assert!(pipe.is_empty());
        }
        assert_eq!(moved, TOTAL);
        // The same connections serve copies again.
        let mut output = Output::new();
        output.push_bytes(b"tail");
        to.flush(&mut output, &stop).await.unwrap();
        to.shutdown_write().unwrap();
        writer.join().unwrap();
        let received = reader.join().unwrap();
        assert!(received[..TOTAL] == pattern(0, TOTAL));
        assert_eq!(&received[TOTAL..], b"tail");
    });
}

#[test]
fn splicing_stops_while_it_waits_on_either_side() {
    on_every_driver(|| async {
        let (from, mut source) = connection();
        let (to, _sink) = connection();
        let mut pipe = Pipe::new().unwrap();
        let soon = || {
            let stop = Stop::new();
            stop.set_deadline(Some(Instant::now() + Duration::from_millis(50)));
            stop
        };
        let waiting = from.splice_to(&to, &mut pipe, 1 << 20, &soon()).await;
        assert!(matches!(waiting, Err(Error::Stopped(Reason::Deadline))));
        assert!(pipe.is_empty());

        let writer = std::thread::spawn(move || source.write_all(&vec![0; 100_000_000]));
        let stop = soon();
        let blocked = loop {
            match from.splice_to(&to, &mut pipe, 1 << 20, &stop).await {
                Ok(len) => assert!(len > 0),
                Err(error) => break error,
            }
        };
        assert_eq!(blocked.stopped(), Some(Reason::Deadline));
        drop(from);
        // A ring closes with the next trip to the kernel.
        ringmesh_ring::yield_now().await;
        assert!(writer.join().unwrap().is_err());
    });
}

#[test]
fn splicing_leaves_the_other_direction_alone() {
    on_every_driver(|| async {
        let (from, mut source) = connection();
        let (to, mut sink) = connection();
        let far = std::thread::spawn(move || {
            let mut question = [0; 4];
            for n in 0..200u32 {
                sink.write_all(&n.to_le_bytes()).unwrap();
                source.read_exact(&mut question).unwrap();
                assert_eq!(question, n.to_le_bytes());
                source.write_all(&question).unwrap();
                sink.read_exact(&mut question).unwrap();
                assert_eq!(question, n.to_le_bytes());
            }
        });
        let stop = unhurried();
        let there = async {
            let mut pipe = Pipe::new().unwrap();
            while from.splice_to(&to, &mut pipe, 1 << 20, &stop).await.unwrap() > 0 {}
        };
        let back = async {
            let (mut buffer, mut output) = (Buffer::take(Size::Small), Output::new());
            while to.fill(&mut buffer, &stop).await.unwrap() > 0 {
                output.push(buffer.slice(0..buffer.len()));
                buffer.clear();
                buffer.compact();
                from.flush(&mut output, &stop).await.unwrap();
            }
        };
        both(there, back).await;
        far.join().unwrap();
    });
}

#[test]
fn connection_handed_over_to_another_worker_goes_on() {
    on_every_driver(|| async {
        let (near, mut far) = connection();
        assert!(poll_once(near.readable()).await.is_none());
        let descriptor = near.into_fd().unwrap();
        far.write_all(b"hello").unwrap();
        let grants = ringmesh_ring::setup::probe_all();
        std::thread::spawn(move || {
            ringmesh_ring::run(&grants[grants.len() - 1], async move {
                let near = ringmesh_ring::Socket::from_fd(descriptor).unwrap();
                let mut buffer = Buffer::take(Size::Small);
                assert_eq!(near.fill(&mut buffer, &unhurried()).await.unwrap(), 5);
            })
            .unwrap();
        })
        .join()
        .unwrap();
    });
}

#[test]
fn slices_are_views_and_not_copies() {
    let mut buffer = Buffer::take(Size::Small);
    buffer.extend_from_slice(b"hello world").unwrap();
    let origin = buffer.filled().as_ptr();
    let hello = buffer.slice(0..5);
    buffer.consume(6);
    let world: Slice = buffer.slice(0..5);
    assert_eq!((hello.as_ptr(), world.as_ptr()), (origin, origin.wrapping_add(6)));

    // Compacting while slices live moves elsewhere; nothing they show changes.
    buffer.compact();
    buffer.spare_mut().fill(0);
    assert_eq!((&hello[..], &world[..], buffer.filled()), (&b"hello"[..], &b"world"[..], &b"world"[..]));
    buffer.filled_mut()[0] = b'W';
    assert_eq!((&world[..], buffer.filled()), (&b"world"[..], &b"World"[..]));
    let copy = buffer.slice(1..5);
    buffer.filled_mut().fill(b'-');
    assert_eq!(&copy[..], b"orld");
    buffer.grow();
    assert_eq!((buffer.filled(), buffer.capacity()), (&b"-----"[..], ringmesh_ring::LARGE_BUFFER_BYTES));
}

#[test]
fn output_joins_what_lies_together() {
    let mut buffer = Buffer::take(Size::Small);
    buffer.extend_from_slice(b"hello world").unwrap();
    let mut output = Output::new();
    output.push(buffer.slice(0..5));
    output.push(buffer.slice(5..11));
    output.push_bytes(b"! ");
    output.push_bytes(b"bye");
    output.push(buffer.slice(0..0));
    let pieces: Vec<&[u8]> = output.slices().collect();
    assert_eq!(pieces, [&b"hello world"[..], b"! bye"]);
    assert_eq!(output.len_bytes(), 16);
    output.advance(13);
    assert_eq!(output.slices().collect::<Vec<_>>(), [b"bye"]);
    output.push_bytes(&vec![b'x'; 40_000]);
    assert_eq!(output.slices().flatten().count(), 40_003);
    output.clear();
    assert!(output.is_empty());
}

#[test]
fn futures_and_values_held_per_connection_are_small() {
    fn check(name: &str, bytes: usize, expected: std::ops::RangeInclusive<usize>) {
        assert!(expected.contains(&bytes), "{name} takes {bytes} bytes, expected are {expected:?}");
    }
    on_every_driver(|| async {
        let (near, far) = connected_pair();
        let (mut buffer, mut output, stop) = (Buffer::take(Size::Small), Output::new(), Stop::new());
        let mut pipe = Pipe::new().unwrap();
        // An idle connection holds these.
        check("socket", size_of_val(&near), 16..=16);
        check("stop", size_of_val(&stop), 8..=8);
        check("output", size_of_val(&output), 8..=8);
        check("buffer", size_of_val(&buffer), 16..=16);
        check("slice", size_of::<Slice>(), 16..=16);
        check("readable", size_of_val(&near.readable()), 96..=128);
        check("stopped", size_of_val(&stop.stopped()), 16..=24);
        // A busy one holds some of these, in a pooled slot.
        check("fill", size_of_val(&near.fill(&mut buffer, &stop)), 256..=408);
        check("flush", size_of_val(&near.flush(&mut output, &stop)), 256..=408);
        check("splice", size_of_val(&near.splice_to(&far, &mut pipe, 1, &stop)), 256..=408);
        check("yield", size_of_val(&ringmesh_ring::yield_now()), 96..=136);
        let address = ringmesh_ring::Address::Unix("x".into());
        check("connect", size_of_val(&ringmesh_ring::Socket::connect(&address, None, &stop)), 300..=640);
    });
}
