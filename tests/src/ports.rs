//! Free ports for processes that are told theirs in a file.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range from which the kernel takes ports for outgoing connections (32768 on), so that no client of a test
/// running beside us is given one of ours.
const FIRST: u16 = 10_000;
const COUNT: u16 = 22_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// An address on loopback that nobody listens on. Each is given out once by this process.
///
/// # Panics
/// If all ports are taken.
pub fn free() -> SocketAddr {
    // Test binaries that run one after the other begin at different places, as ports of the last one may linger.
    let start = (std::process::id().wrapping_mul(211) % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (start.wrapping_add(step)) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return address;
        }
    }
    panic!("no port between {FIRST} and {} is free", FIRST + COUNT);
}
