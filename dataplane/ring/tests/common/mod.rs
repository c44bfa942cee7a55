//! What the tests on real kernels share: running on every driver, sockets, and chance with a seed.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(unreachable_pub, reason = "a module of several test binaries")]
#![allow(clippy::print_stdout, reason = "seeds are printed, and shown when a test fails")]
#![allow(clippy::unwrap_used, reason = "a panic is a test's report")]

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::pin::pin;
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;

use ringmesh_ring::{Address, Grant, Instant, Socket, Stop, run, setup};

/// No test takes longer, on any driver, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `test` on a worker of every kind that this machine grants, one after the other.
pub fn on_every_driver<F: Future<Output = ()> + 'static>(test: fn() -> F) {
    for grant in setup::probe_all() {
        on_worker(&grant, test);
    }
}

/// Runs `test` on a worker in a thread of its own; fails when it hangs.
pub fn on_worker<F: Future<Output = ()> + 'static>(grant: &Grant, test: fn() -> F) {
    let (done, result) = mpsc::channel();
    let on = grant.clone();
    let worker = std::thread::spawn(move || {
        run(&on, test()).unwrap();
        done.send(()).unwrap();
    });
    match result.recv_timeout(PATIENCE) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("hangs on {}", grant.driver),
        _ => worker.join().unwrap_or_else(|_| panic!("failed on {}", grant.driver)),
    }
}

/// A connection over loopback: our end on this worker, the other end blocking, for a thread.
pub fn connection() -> (Socket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    far.set_nodelay(true).unwrap();
    let (near, _) = listener.accept().unwrap();
    let near = Socket::from_fd(near.into()).unwrap();
    ringmesh_ring::socket::set_client_options(near.descriptor(), None);
    (near, far)
}

/// As [`connection`], but the kernel holds little of what is sent, so that senders have to wait.
pub fn narrow_connection() -> (Socket, TcpStream) {
    let (near, far) = connection();
    socket2::SockRef::from(&near.descriptor()).set_send_buffer_size(16 * 1024).unwrap();
    socket2::SockRef::from(&far).set_recv_buffer_size(16 * 1024).unwrap();
    (near, far)
}

/// A connection over loopback with both ends on this worker.
pub fn connected_pair() -> (Socket, Socket) {
    let (near, far) = connection();
    (near, Socket::from_fd(far.into()).unwrap())
}

/// An address on loopback with a listener that accepts nothing by itself.
pub fn listener() -> (TcpListener, Address) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Ip(listener.local_addr().unwrap());
    (listener, address)
}

/// Awaits two futures in one task.
pub async fn both<A: Future, B: Future>(first: A, second: B) -> (A::Output, B::Output) {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let (mut one, mut two) = (None, None);
    poll_fn(|cx| {
        if one.is_none()
            && let Poll::Ready(output) = first.as_mut().poll(cx)
        {
            one = Some(output);
        }
        if two.is_none()
            && let Poll::Ready(output) = second.as_mut().poll(cx)
        {
            two = Some(output);
        }
        match (one.is_some(), two.is_some()) {
            (true, true) => Poll::Ready((one.take().unwrap(), two.take().unwrap())),
            _ => Poll::Pending,
        }
    })
    .await
}

/// Polls a future once and drops it.
pub async fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        Poll::Ready(match future.as_mut().poll(cx) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

/// A stop that fires far beyond any test, as a place to run operations under.
pub fn unhurried() -> Stop {
    let stop = Stop::new();
    stop.set_deadline(Some(Instant::now() + PATIENCE));
    stop
}

/// Chance that can be repeated: the seed is printed when a test fails.
pub struct Chance(Cell<u64>);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        println!("seed {seed}");
        Chance(Cell::new(seed ^ 0x9e37_79b9_7f4a_7c15))
    }

    pub fn below(&self, bound: u64) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        x % bound
    }
}

/// The bytes of a stream that shows any loss or change of order.
pub fn pattern(from: u64, len: usize) -> Vec<u8> {
    (from..from + len as u64).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect()
}

/// Writes a pattern from a thread in bursts and pauses.
pub fn write_in_bursts(mut far: TcpStream, total: u64, seed: u64) -> std::thread::JoinHandle<TcpStream> {
    std::thread::spawn(move || {
        let chance = Chance::new(seed);
        let mut sent = 0;
        while sent < total {
            let len = (1 + chance.below(3000)).min(total - sent);
            far.write_all(&pattern(sent, len as usize)).unwrap();
            sent += len;
            for _ in 0..chance.below(200) {
                std::hint::spin_loop();
            }
            if chance.below(10) == 0 {
                std::thread::yield_now();
            }
        }
        far
    })
}

/// Open descriptors of the process.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
