//! The world a proxy lives in: its clock, its chance, and how it reaches others. The real one, and one in memory.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::clock::Instant;
use crate::socket::Socket;
use crate::stop::Stop;
use crate::stream::{Bare, Error};

/// Where something listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// An IP address and a TCP port.
    Ip(SocketAddr),
    /// The path of a Unix socket, or `@` and the name of one without a file.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        Address::Ip(address)
    }
}

/// A world. Everything that runs in it takes time, chance and connections from it alone.
pub trait Net: Clone + 'static {
    /// Its connections.
    type Stream: Bare;

    /// Its clock.
    fn now(&self) -> Instant;

    /// A stop whose deadlines are on its clock.
    fn stop(&self) -> Stop;

    /// A random number; good enough to spread load, not to keep a secret.
    fn random(&self) -> u64;

    /// Connects. What is sent carries `mark` where the kernel has marks, if there is one (`SO_MARK`, socket(7)).
    fn connect(
        &self,
        address: &Address,
        mark: Option<u32>,
        stop: &Stop,
    ) -> impl Future<Output = Result<Self::Stream, Error>>;
}

/// The real world.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sockets;

impl Net for Sockets {
    type Stream = Socket;

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn stop(&self) -> Stop {
        Stop::new()
    }

    fn random(&self) -> u64 {
        thread_local! {
            static CHANCE: Cell<u64> = Cell::new(RandomState::new().hash_one(0));
        }
        CHANCE.with(next_random)
    }

    async fn connect(&self, address: &Address, mark: Option<u32>, stop: &Stop) -> Result<Socket, Error> {
        Socket::connect(address, mark, stop).await
    }
}

/// Marsaglia's xorshift with a multiplication behind it (xorshift64*).
pub(crate) fn next_random(state: &Cell<u64>) -> u64 {
    let mut x = state.get().max(1);
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    state.set(x);
    x.wrapping_mul(0x2545_f491_4f6c_dd1d)
}
