//! Whether the hops between sidecars are mutual TLS: what both ends say of each connection, compared.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::admin::Handshake;
use super::shop::{HOPS, Hop, Shop, spiffe_id};

/// The version that both ends must have agreed on.
const TLS: &str = "1.3";

/// Handshakes of all sidecars, gathered while the demo runs: each sidecar remembers its newest only.
#[derive(Default)]
pub(super) struct Records {
    by_member: BTreeMap<&'static str, BTreeSet<Handshake>>,
}

/// Most handshakes that are kept of one sidecar. A demo that runs for days makes that many.
const MAX_RECORDS: usize = 100_000;

/// What came of the comparison, for one hop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Compared {
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    /// Connections that the caller's end knows of.
    pub(super) connections: usize,
    /// Those of which both ends say the same, and the right thing.
    pub(super) authenticated: usize,
    /// SPIFFE ID of the caller, as the called end saw it.
    pub(super) caller: Option<String>,
    /// TLS version and cipher suite of the newest connection.
    pub(super) tls: Option<String>,
    pub(super) cipher: Option<String>,
    /// What is wrong with those that are not authenticated; the first few.
    pub(super) faults: Vec<String>,
}

/// Most faults that are told.
const MAX_FAULTS: usize = 5;

impl Records {
    /// Adds what a sidecar's page says.
    pub(super) fn add(&mut self, member: &'static str, page: impl IntoIterator<Item = Handshake>) {
        let records = self.by_member.entry(member).or_default();
        for record in page {
            if records.len() < MAX_RECORDS {
                records.insert(record);
            }
        }
    }

    /// Compares both ends of every hop, as far as records go.
    pub(super) fn compare(&self, shop: &Shop) -> Vec<Compared> {
        HOPS.iter().map(|hop| self.compare_hop(shop, hop)).collect()
    }

    /// Compares both ends of every hop, and with them the number of connections that the caller's sidecar has counted: a
    /// plain one leaves no record of a handshake.
    pub(super) fn compare_all(&self, shop: &Shop, opened: impl Fn(&Hop) -> Option<usize>) -> Vec<Compared> {
        let mut all = self.compare(shop);
        for (hop, compared) in HOPS.iter().zip(&mut all) {
            let Some(opened) = opened(hop) else {
                compared.faults.push("the caller's sidecar does not tell how many connections it has made".to_owned());
                continue;
            };
            if opened > compared.connections {
                let missing = opened - compared.connections;
                compared.faults.push(format!("{missing} connections were made without a handshake on record"));
                compared.connections = opened;
            }
        }
        all
    }

    fn compare_hop(&self, shop: &Shop, hop: &Hop) -> Compared {
        let (from, to) = (shop.member(hop.from), shop.member(hop.to));
        let caller = spiffe_id(from.workload).to_string();
        let called = spiffe_id(to.workload).to_string();
        let inbound = to.ports.inbound.to_string();
        let mut compared = Compared {
            from: hop.from,
            to: hop.to,
            connections: 0,
            authenticated: 0,
            caller: None,
            tls: None,
            cipher: None,
            faults: Vec::new(),
        };
        for ours in self.of(hop.from).filter(|record| record.direction == "outbound" && record.remote == inbound) {
            compared.connections += 1;
            let theirs = self.of(hop.to).find(|record| {
                record.direction == "inbound" && record.remote == ours.local && record.local == ours.remote
            });
            compared.caller = theirs.and_then(|record| record.peer.clone()).or(compared.caller);
            compared.tls = ours.tls.clone().or(compared.tls);
            compared.cipher = ours.cipher.clone().or(compared.cipher);
            match fault(ours, theirs, &caller, &called) {
                None => compared.authenticated += 1,
                Some(fault) if compared.faults.len() < MAX_FAULTS => {
                    compared.faults.push(format!("{} → {}: {fault}", ours.local, ours.remote));
                }
                Some(_) => {}
            }
        }
        compared
    }

    fn of(&self, member: &str) -> impl Iterator<Item = &Handshake> {
        self.by_member.get(member).into_iter().flatten()
    }
}

/// What is wrong with a connection, as far as its two ends know.
fn fault(ours: &Handshake, theirs: Option<&Handshake>, caller: &str, called: &str) -> Option<String> {
    let Some(theirs) = theirs else { return Some("the called end has no record of it".to_owned()) };
    let none = "nobody".to_owned();
    if let Some(cause) = ours.refused.as_ref().or(theirs.refused.as_ref()) {
        return Some(format!("refused: {cause}"));
    }
    if ours.peer.as_deref() != Some(called) {
        return Some(format!("the caller met {}, not {called}", ours.peer.as_ref().unwrap_or(&none)));
    }
    if theirs.peer.as_deref() != Some(caller) {
        return Some(format!("the called end met {}, not {caller}", theirs.peer.as_ref().unwrap_or(&none)));
    }
    if ours.tls != theirs.tls || !ours.tls.as_deref().is_some_and(|version| version.contains(TLS)) {
        return Some(format!("the ends speak of TLS {:?} and {:?}", ours.tls, theirs.tls));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ringmesh_loadgen::Driver;

    use super::*;

    fn record(direction: &str, peer: &str, local: String, remote: String) -> Handshake {
        Handshake {
            direction: direction.to_owned(),
            name: "x".to_owned(),
            peer: Some(spiffe_id(peer).to_string()),
            tls: Some("TLS1.3".to_owned()),
            cipher: None,
            local,
            remote,
            refused: None,
            time: None,
        }
    }

    /// Both ends of one connection from web to checkout, changed before they are compared.
    fn check(change: impl FnOnce(&mut Handshake, &mut Handshake), authenticated: usize) {
        let shop = Shop::new(Path::new("/tmp/shop"), Driver::Auto).unwrap();
        let inbound = shop.member("checkout").ports.inbound.to_string();
        let mut ours = record("outbound", "checkout", "127.0.0.1:40000".to_owned(), inbound.clone());
        let mut theirs = record("inbound", "web", inbound, "127.0.0.1:40000".to_owned());
        change(&mut ours, &mut theirs);
        let mut records = Records::default();
        records.add("web", [ours]);
        records.add("checkout", [theirs]);
        let compared = records.compare(&shop).remove(0);
        assert_eq!((compared.connections, compared.authenticated), (1, authenticated), "{compared:?}");
        assert_eq!(compared.faults.len(), 1 - authenticated);
    }

    #[test]
    fn a_hop_counts_when_both_ends_met_whom_they_should() {
        check(|_, _| {}, 1);
    }

    #[test]
    fn connections_without_a_handshake_are_not_authenticated() {
        let shop = Shop::new(Path::new("/tmp/shop"), Driver::Auto).unwrap();
        let records = Records::default();
        let compared = records.compare_all(&shop, |hop| Some(if hop.to == "checkout" { 3 } else { 0 }));
        assert_eq!((compared[0].connections, compared[0].authenticated), (3, 0));
        assert_eq!(compared[0].faults, ["3 connections were made without a handshake on record"]);
        assert_eq!((compared[1].connections, compared[1].faults.len()), (0, 0));
        assert_eq!(records.compare_all(&shop, |_| None)[0].faults.len(), 1);
    }

    #[test]
    fn a_hop_does_not_count_when_one_end_tells_another_story() {
        check(|ours, _| ours.peer = Some(spiffe_id("web").to_string()), 0);
        check(|_, theirs| theirs.peer = Some(spiffe_id("payments").to_string()), 0);
        check(|_, theirs| theirs.peer = None, 0);
        check(|ours, _| ours.tls = Some("TLS1.2".to_owned()), 0);
        check(
            |ours, theirs| {
                ours.tls = None;
                theirs.tls = None;
            },
            0,
        );
        check(|_, theirs| theirs.remote = "127.0.0.1:40001".to_owned(), 0);
        check(|_, theirs| theirs.refused = Some("expired".to_owned()), 0);
    }
}
