//! What an endpoint is told of the client before the first byte: the PROXY header of a connection to it.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::net::SocketAddr;

use ringmesh_codec::mux;
use ringmesh_codec::proxy_protocol::{self, Between, Header, Version};
use ringmesh_model::snapshot::ProxyVersion;
use ringmesh_ring::net::Net;
use ringmesh_ring::stream::Stream;

use crate::pool::Preface;
use crate::proxy::connection::Connection;
use crate::tables::Service;

impl<N: Net> Connection<N> {
    /// What a connection to an endpoint of this service begins with for this client. None: nothing is said.
    #[inline]
    pub fn preface(&self, service: &Service) -> Preface {
        service.config.proxy_protocol.map(|version| self.header(version))
    }

    /// Out of the way of those who say nothing.
    #[cold]
    fn header(&self, version: ProxyVersion) -> Box<[u8]> {
        let version = match version {
            ProxyVersion::V1 => Version::V1,
            ProxyVersion::V2 => Version::V2,
        };
        proxy_protocol::write(version, &self.said()).into()
    }

    /// What is known of the client: what its own proxy has said, and what it told us in its handshake.
    fn said(&self) -> Header {
        let from_proxy = self.proxied();
        let asked = self.asked();
        let between = match from_proxy.map(|header| &header.between) {
            Some(between @ (Between::Ip { .. } | Between::Unix { .. })) => between.clone(),
            Some(Between::Own) | None => match (self.client(), self.transport.local_address()) {
                (Some(source), Some(destination)) => {
                    Between::Ip { source: canonical(source), destination: canonical(destination) }
                }
                _ => Between::Own,
            },
        };
        // Our own handshake is what the client did just now; a proxy in front of it may have ended one before.
        let spoken = |protocol: &[u8]| ![mux::ALPN, mux::ALPN_HTTP].iter().any(|own| own.as_bytes() == protocol);
        let alpn = asked.and_then(|asked| asked.protocol.clone()).filter(|protocol| spoken(protocol));
        let authority = asked.and_then(|asked| asked.name.clone());
        Header {
            between,
            alpn: alpn.or_else(|| from_proxy?.alpn.clone()),
            authority: authority.or_else(|| from_proxy?.authority.clone()),
            unique_id: from_proxy.and_then(|header| header.unique_id.clone()),
        }
    }
}

/// An IPv4 client of a socket of both families has an IPv4 address.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
