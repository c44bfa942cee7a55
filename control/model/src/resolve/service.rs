//! Services and their endpoints.

use std::collections::HashSet;

use super::{Answers, Resolver, Subject};
use crate::error::Cause;
use crate::health::Probe;
use crate::service::{EndpointAddress, Service};
use crate::snapshot::{self, Address, Destination, Protocol};

impl<'a> Resolver<'a> {
    pub(super) fn service(&mut self, index: usize, service: &'a Service, answers: &Answers) -> snapshot::Service {
        let subject = Subject { kind: "service", index, name: &service.name };
        let peer = service.peer.as_ref().and_then(|peer| {
            self.needs_identity(subject, "peer", peer.place, "mutual TLS");
            self.spiffe_id(subject, "peer", peer)
        });
        if let (Some(protocol), Some(_)) = (&service.protocol, service.proxy_protocol)
            && protocol.value == Protocol::Http2
        {
            self.note(subject, "protocol", protocol.place, Cause::ProxyProtocolOnHttp2);
        }
        if let Some(check) = &service.health_check {
            let is_grpc = matches!(check.probe, Probe::Grpc { .. });
            if service.destination == Destination::Original {
                self.note(subject, "health_check", check.place, Cause::NothingToCheck);
            } else if is_grpc && service.protocol.as_ref().map(|protocol| protocol.value) != Some(Protocol::Http2) {
                self.note(subject, "health_check.kind", check.place, Cause::GrpcCheckNeedsHttp2);
            }
        }
        let endpoints = endpoints(service, answers);
        let name = service.name.as_str();
        let only_tcp = self.called_by_tcp.contains(name) && !self.called_by_http.contains(name);
        // Whom a client wanted to reach it meant to speak to, in the version of HTTP that it speaks.
        let as_its_client =
            service.destination == Destination::Original && peer.is_none() && service.proxy_protocol.is_none();
        let implied = if only_tcp {
            Protocol::Tcp
        } else if as_its_client {
            Protocol::Detect
        } else {
            Protocol::Http
        };
        snapshot::Service {
            name: service.name.value.clone(),
            protocol: service.protocol.as_ref().map_or(implied, |protocol| protocol.value),
            peer,
            proxy_protocol: service.proxy_protocol,
            destination: service.destination,
            mark: self.mark,
            endpoints,
            balance: service.balance,
            connect_timeout: service.connect_timeout,
            connect_retries: service.connect_retries,
            idle_timeout: service.idle_timeout,
            max_in_flight: service.max_in_flight,
            max_idle_per_endpoint: service.max_idle_per_endpoint,
            share_connections: service.share_connections,
            tcp_keepalive: service.tcp_keepalive,
            health_check: service.health_check.as_ref().map(|check| check.value.clone()),
        }
    }
}

/// The endpoints of a service, once each: listed ones in the order of the file, those of a name in the order of their
/// addresses, since DNS servers rotate them and that is no change.
fn endpoints(service: &Service, answers: &Answers) -> Vec<snapshot::Endpoint> {
    let mut seen = HashSet::with_capacity(service.endpoints.len());
    let mut endpoints = Vec::with_capacity(service.endpoints.len());
    let mut push = |address: Address, zone: &Option<String>| {
        if seen.insert(address.clone()) {
            endpoints.push(snapshot::Endpoint { address, zone: zone.clone() });
        }
    };
    for endpoint in &service.endpoints {
        match &endpoint.address {
            EndpointAddress::At(address) => push(address.clone(), &endpoint.zone),
            EndpointAddress::Name(name) => {
                let mut found = answers.get(name).cloned().unwrap_or_default();
                found.sort_unstable();
                found.into_iter().for_each(|address| push(Address::Ip(address), &endpoint.zone));
            }
        }
    }
    endpoints
}
