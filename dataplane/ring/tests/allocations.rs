//! In steady state, moving bytes allocates nothing. Needs the feature `count-allocations`.
#![allow(clippy::unwrap_used, reason = "a panic is a test's report")]

mod common;

use std::time::Duration;

use common::{both, connected_pair, on_every_driver};
use ringmesh_ring::allocator::{Counting, counts};
use ringmesh_ring::slot::Pool;
use ringmesh_ring::{Buffer, Instant, Output, Size, Socket, Stop, Stream, yield_now};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One exchange as a proxy has it: wait without a buffer, take one, receive, send what came and something around it.
async fn exchange(near: &Socket, far: &Socket, near_stop: &Stop, far_stop: &Stop, output: &mut Output) {
    near_stop.set_deadline(Some(Instant::now() + Duration::from_secs(30)));
    output.push_bytes(b"a question");
    near.flush(output, near_stop).await.unwrap();

    far.readable().await.unwrap();
    let mut buffer = Buffer::take(Size::Small);
    far_stop.set_deadline(Some(Instant::now() + Duration::from_secs(2)));
    let received = far.fill(&mut buffer, far_stop).await.unwrap();
    output.push(buffer.slice(0..received / 2));
    output.push_bytes(b" and ");
    output.push(buffer.slice(received / 2..received));
    buffer.consume(received);
    far_stop.set_deadline(None);

    let mut answer = Buffer::take(Size::Large);
    // The receive is in flight before the answer is sent.
    let (filled, flushed) = both(near.fill(&mut answer, near_stop), far.flush(output, far_stop)).await;
    flushed.unwrap();
    assert_eq!(filled.unwrap(), received + 5);
    assert_eq!(answer.filled(), b"a que and stion");
}

#[test]
fn exchanges_yields_and_slots_allocate_nothing_once_warm() {
    on_every_driver(|| async {
        let (near, far) = connected_pair();
        let (near_stop, far_stop) = (Stop::new(), Stop::new());
        let pool = Pool::new(|turns: u32| async move {
            let large = [0u8; 4096];
            for _ in 0..turns {
                yield_now().await;
            }
            large.len()
        });
        let mut output = Output::new();
        let mut round = async || {
            exchange(&near, &far, &near_stop, &far_stop, &mut output).await;
            assert_eq!(pool.run(2).await, 4096);
        };
        for _ in 0..100 {
            round().await;
        }
        let before = counts();
        for _ in 0..1000 {
            round().await;
        }
        assert_eq!(counts(), before);
    });
}
