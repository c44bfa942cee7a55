//! Servers named by how they misbehave. Each is dropped to end it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};

use crate::client::reset;
use crate::service::{Service, Talk};

/// An address that refuses connections, and stays taken so that nobody else is found there.
pub struct Refusing {
    _bound: OwnedFd,
    address: SocketAddr,
}

impl Refusing {
    /// A free one.
    ///
    /// # Panics
    /// If there is no free port.
    pub fn new() -> Self {
        let bound = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a descriptor");
        bind(&bound, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
        let address = getsockname(&bound).ok().and_then(|address| SocketAddr::try_from(address).ok());
        Self { _bound: bound, address: address.expect("it is bound") }
    }

    /// Where.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Default for Refusing {
    fn default() -> Self {
        Self::new()
    }
}

/// An address where connecting hangs, as when packets are dropped on the way: nobody accepts, and its queue is full.
pub struct Unreachable {
    listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Unreachable {
    /// A free one.
    ///
    /// # Panics
    /// If its queue does not fill.
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listen(&listener, 0).expect("it listens already");
        let address = listener.local_addr().expect("it is bound");
        let mut queued = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            queued.push(stream);
            assert!(queued.len() < 16, "the queue of a listener does not fill");
        }
        Self { listener, _queued: queued }
    }

    /// Where.
    ///
    /// # Panics
    /// Never: it is bound.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("it is bound")
    }
}

impl Default for Unreachable {
    fn default() -> Self {
        Self::new()
    }
}

/// Accepts and reads, and never says a word.
pub fn hanging_server() -> Service {
    Service::conversing(|talk| talk.rest().map(drop))
}

/// Sends these bytes for each request, and then closes: too few, of what they announce.
pub fn truncating_server(bytes: &'static str) -> Service {
    Service::conversing(move |talk| {
        talk.request()?;
        talk.send(bytes)
    })
}

/// Sends these bytes for a request, and then resets the connection.
pub fn resetting_server(bytes: &'static str) -> Service {
    Service::conversing(move |talk| {
        talk.request()?;
        talk.send(bytes)?;
        reset_talk(talk)
    })
}

/// Resets every connection as soon as it is there.
pub fn slamming_server() -> Service {
    Service::sockets(reset)
}

/// Answers each request with what is no HTTP.
pub fn garbage_server() -> Service {
    Service::conversing(|talk| {
        while talk.request()?.is_some() {
            talk.send("\x16\x03\x01\x02\0SSH-2.0-what is this\r\n\0\0\0\r\n\r\n")?;
        }
        Ok(())
    })
}

/// Answers each request with a head that has no end.
pub fn endless_head_server() -> Service {
    Service::conversing(|talk| {
        while talk.request()?.is_some() {
            talk.send("HTTP/1.1 200 OK\r\n")?;
            for number in 0.. {
                talk.send(format!("x-field-{number}: {}\r\n", "x".repeat(1000)))?;
            }
        }
        Ok(())
    })
}

/// Makes a service's connection end by a reset once the conversation is over.
///
/// # Errors
/// If the socket cannot be had.
pub fn reset_talk(talk: &Talk) -> std::io::Result<()> {
    // The last descriptor that is closed sends it, when the conversation returns.
    Ok(rustix::net::sockopt::set_socket_linger(talk.socket(), Some(Duration::ZERO))?)
}
