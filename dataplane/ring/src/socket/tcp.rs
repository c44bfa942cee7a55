//! What only TCP has: keep-alive probes, and states.

use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::from_mut;
use std::time::Duration;

use rustix::net::sockopt;
use socket2::{SockRef, TcpKeepalive};

/// Time between two probes that nobody answers, and how many of them end the connection: a minute, in which a network that
/// is only slow has come back (Linux itself waits for eleven).
const PROBES: (Duration, u32) = (Duration::from_secs(15), 4);

/// What clients' connections have from their listener, or get by themselves if they came before it was set there: small pieces
/// are sent at once (`TCP_NODELAY`), and [`keep_alive`].
pub fn set_client_options(socket: BorrowedFd<'_>, silence: Option<Duration>) {
    // A Unix socket has no such option, and any connection works without it.
    let _ = sockopt::set_tcp_nodelay(socket, true);
    keep_alive(socket, silence);
}

/// Has the kernel ask whether the other end is still there after so much silence; None: it never asks. On a listener it is
/// for those who are accepted from then on. Nothing happens to a socket that is not TCP.
pub fn keep_alive(socket: BorrowedFd<'_>, silence: Option<Duration>) {
    let socket = SockRef::from(&socket);
    // Without it the connection works all the same.
    let _ = match silence {
        Some(silence) => {
            let probes = TcpKeepalive::new().with_time(silence).with_interval(PROBES.0).with_retries(PROBES.1);
            socket.set_tcp_keepalive(&probes)
        }
        None => socket.set_keepalive(false),
    };
}

/// Whether nothing is left of a TCP connection: after a reset, or after both sides have ended. False for other sockets.
pub(crate) fn is_closed(socket: BorrowedFd<'_>) -> bool {
    /// `TCP_CLOSE` in the kernel's `include/net/tcp_states.h`, which is an interface for programs, too.
    const CLOSE: u8 = 7;
    // SAFETY: `tcp_info` is numbers only, for which all zeroes is a value.
    let mut info: libc::tcp_info = unsafe { zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    let (level, name, place) = (libc::IPPROTO_TCP, libc::TCP_INFO, from_mut(&mut info).cast());
    // SAFETY: the descriptor is open as long as its borrow, and the kernel writes at most `length` bytes at `place`, which
    // is as large.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, place, &raw mut length) };
    result == 0 && info.tcpi_state == CLOSE
}
