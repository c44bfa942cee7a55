//! The PROXY header of a connection: who must send one, and taking it off without a byte of what follows.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::io;
use std::net::SocketAddr;

use ringmesh_codec::proxy_protocol::{self, Between, Fault, Header, MAX_HEADER_BYTES};
use ringmesh_model::snapshot::{Others, ProxyAt, ProxyProtocol};
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::Bare;

use crate::outcome::Reason;
use crate::proxy::relay::{Raced, race};

/// How many bytes are looked at in one go: nearly every header is shorter, and nothing more is kept of others.
const STEP_BYTES: usize = 256;

/// What is expected of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It is a proxy: a header comes first.
    Header,
    /// It is none: what it sends is its own, also if it looks like a header.
    None,
    /// It is none, and may not connect here.
    Nobody,
}

/// What is expected of the client at an address. One without is on a Unix socket.
pub fn expected(config: &ProxyProtocol, client: Option<SocketAddr>) -> Expected {
    let is_proxy = config.from.iter().any(|proxy| match (proxy, client) {
        (ProxyAt::Network(network), Some(client)) => network.contains(client.ip()),
        (ProxyAt::Unix, None) => true,
        _ => false,
    });
    match (is_proxy, config.others) {
        (true, _) => Expected::Header,
        (false, Others::Serve) => Expected::None,
        (false, Others::Refuse) => Expected::Nobody,
    }
}

/// Why there is no header. Side: the proxy that should have sent it.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// What came is none.
    #[error("no valid PROXY header: {0}")]
    Fault(#[from] Fault),
    /// It ended before its header did.
    #[error("the connection ended after {0} bytes of a PROXY header")]
    Cut(usize),
    /// It ended before its first byte: most checks of whether a port is open do just that.
    #[error("the connection ended before a PROXY header")]
    Closed,
    /// The header was not whole in time, or the worker drains.
    #[error("the PROXY header was not whole in time: {0} bytes came")]
    Stopped(usize, StopReason),
    /// The connection broke.
    #[error("the connection broke before its PROXY header was whole: {0}")]
    Io(#[from] io::Error),
}

impl Refused {
    /// How the connection ends.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Fault(_) | Self::Cut(_) => Reason::ProxyHeader,
            Self::Stopped(_, StopReason::Deadline) => Reason::ProxyHeaderTimeout,
            Self::Stopped(_, reason) => Reason::of_stop(*reason),
            Self::Closed | Self::Io(_) => Reason::ClientAborted,
        }
    }
}

/// Takes the header off the front of a connection. The deadline is the stop's.
///
/// # Errors
/// By cause, see [`Refused`].
pub async fn take<S: Bare>(stream: &S, stop: &Stop) -> Result<Header, Refused> {
    let mut bytes = Vec::new();
    loop {
        let kept = bytes.len();
        if let Some(reason) = stop.reason() {
            return Err(Refused::Stopped(kept, reason));
        }
        bytes.resize(MAX_HEADER_BYTES.min(kept + STEP_BYTES), 0);
        let there = stream.try_peek(&mut bytes[kept..]);
        bytes.truncate(kept + there.as_ref().ok().copied().flatten().unwrap_or_default());
        match there? {
            Some(0) if kept == 0 => return Err(Refused::Closed),
            Some(0) => return Err(Refused::Cut(kept)),
            Some(_) => {}
            None => {
                if bytes.is_empty() {
                    // A proxy that keeps connections ready for later costs no memory meanwhile.
                    bytes = Vec::new();
                }
                match race(stream.readable(), stop.stopped()).await {
                    Raced::First(ready) => ready?,
                    Raced::Second(reason) => return Err(Refused::Stopped(kept, reason)),
                }
                continue;
            }
        }
        let found = proxy_protocol::read(&bytes)?;
        // All that was looked at is the header's, or it is whole and ends before what follows.
        let end = found.as_ref().map_or(bytes.len(), |(_, length)| *length);
        let mut taken = kept;
        while taken < end {
            match stream.try_take(&mut bytes[taken..end])? {
                Some(count @ 1..) => taken += count,
                // They were there a moment ago, and nobody else takes them.
                _ => return Err(Refused::Cut(taken)),
            }
        }
        if let Some((header, _)) = found {
            return Ok(header);
        }
    }
}

/// The client that a header names, if it names another than the connection's own.
pub fn source(header: &Header) -> Option<Source> {
    match &header.between {
        Between::Own => None,
        Between::Ip { source, .. } => Some(Source::Ip(*source)),
        Between::Unix { source } => Some(Source::Unix(format!("unix:{}", String::from_utf8_lossy(source)).into())),
    }
}

/// A client that a header names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// At an address.
    Ip(SocketAddr),
    /// On a Unix socket, as text for logs.
    Unix(Box<str>),
}

#[cfg(test)]
mod tests {
    use ringmesh_model::network::Network;

    use super::*;

    #[test]
    fn who_is_listed_must_send_a_header_and_who_is_not_must_not() {
        let network = |text: &str, prefix| ProxyAt::Network(Network::new(text.parse().unwrap(), prefix).unwrap());
        let config = |others| ProxyProtocol { from: vec![network("10.0.0.0", 8), network("::1", 128)], others };
        let check = |client: &str, refuse: Expected, serve: Expected| {
            let client = Some(client.parse().unwrap());
            assert_eq!(expected(&config(Others::Refuse), client), refuse, "{client:?}");
            assert_eq!(expected(&config(Others::Serve), client), serve, "{client:?}");
        };
        check("10.9.8.7:1", Expected::Header, Expected::Header);
        check("[::ffff:10.9.8.7]:1", Expected::Header, Expected::Header);
        check("[::1]:1", Expected::Header, Expected::Header);
        check("127.0.0.1:1", Expected::Nobody, Expected::None);
        check("[::2]:1", Expected::Nobody, Expected::None);
        assert_eq!(expected(&config(Others::Refuse), None), Expected::Nobody);
        let unix = ProxyProtocol { from: vec![ProxyAt::Unix], others: Others::Refuse };
        assert_eq!(expected(&unix, None), Expected::Header);
    }
}
