//! Listeners: where they are and where their traffic goes.

use std::collections::{BTreeMap, HashMap};

use super::{Resolver, Subject};
use crate::error::Cause;
use crate::listener::{CertificateFiles, Listener};
use crate::snapshot::{self, Address, Certificate, ListenerTarget, Mtls, Protocol};

impl<'a> Resolver<'a> {
    /// No two listeners, the admin pages included, on one address.
    pub(super) fn addresses(&mut self) {
        let mut seen: HashMap<Address, String> = HashMap::new();
        // The listener of all addresses at a port, and any listener there.
        let mut wildcards: HashMap<(bool, u16), String> = HashMap::new();
        let mut ports: HashMap<(bool, u16), String> = HashMap::new();
        let config = self.config;
        if let Some(bind) = &config.admin.bind {
            let name = "the admin pages ([admin] `bind`)".to_owned();
            if let Address::Ip(address) = bind.value {
                let family = (address.is_ipv6(), address.port());
                ports.insert(family, name.clone());
                if address.ip().is_unspecified() {
                    wildcards.insert(family, name.clone());
                }
            }
            seen.insert(bind.value.clone(), name);
        }
        for (index, listener) in config.listeners.iter().enumerate() {
            let bind = &listener.bind;
            let name = format!("listener \"{}\" (line {})", listener.name, bind.place.line);
            let mut taken = seen.get(&bind.value).cloned();
            if let Address::Ip(address) = bind.value {
                // The kernel chooses a free port.
                if address.port() == 0 {
                    continue;
                }
                let family = (address.is_ipv6(), address.port());
                taken = taken.or_else(|| wildcards.get(&family).cloned());
                if address.ip().is_unspecified() {
                    taken = taken.or_else(|| ports.get(&family).cloned());
                    wildcards.entry(family).or_insert_with(|| name.clone());
                }
                ports.entry(family).or_insert_with(|| name.clone());
            }
            if let Some(other) = taken {
                let subject = Subject { kind: "listener", index, name: &listener.name };
                self.note(subject, "bind", bind.place, Cause::AddressTaken { address: bind.to_string(), other });
            }
            seen.entry(bind.value.clone()).or_insert(name);
        }
    }

    pub(super) fn listener(
        &mut self,
        index: usize,
        listener: &'a Listener,
        certificates: &BTreeMap<CertificateFiles, Certificate>,
    ) -> snapshot::Listener {
        let subject = Subject { kind: "listener", index, name: &listener.name };
        if listener.mtls.value == Mtls::Strict {
            self.needs_identity(subject, "mtls", listener.mtls.place, "\"strict\"");
            if !listener.tls.is_empty() {
                self.note(subject, "mtls", listener.mtls.place, Cause::TwoKindsOfTls);
            }
        }
        let mut tls = Vec::new();
        for files in &listener.tls {
            match certificates.get(&files.value) {
                Some(certificate) => tls.push(certificate.clone()),
                None => {
                    let cause = Cause::CertificateNotLoaded(files.certificate.display().to_string());
                    self.note(subject, "tls", files.place, cause);
                }
            }
        }
        let target = match &listener.service {
            Some(service) => {
                self.call(subject, "service", service, service.place, listener.protocol);
                ListenerTarget::Service(service.value.clone())
            }
            None => {
                if listener.protocol == Protocol::Tcp {
                    self.note(subject, "", listener.name.place, Cause::TcpWithoutService);
                } else if !self.is_routed(listener) {
                    self.note(subject, "", listener.name.place, Cause::NoTarget);
                }
                ListenerTarget::Routes
            }
        };
        snapshot::Listener {
            name: listener.name.value.clone(),
            bind: listener.bind.value.clone(),
            protocol: listener.protocol,
            mtls: listener.mtls.value,
            tls,
            target,
            limits: listener.limits.clone(),
            hop: listener.hop.clone(),
        }
    }

    fn is_routed(&self, listener: &Listener) -> bool {
        self.routed_everywhere || self.routed.contains(listener.name.as_str())
    }
}
