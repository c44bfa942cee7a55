//! Which handshakes there were: the newest one by one, and all of them counted by who met whom.

use std::collections::{BTreeMap, VecDeque};

use ringmesh_dataplane::telemetry::event::{Direction, Handshake};
use serde::{Serialize, Serializer};

use super::limits::{MAX_HANDSHAKE_COUNTS, MAX_HANDSHAKE_RECORDS};
use super::time::rfc3339;

/// The handshakes of one workload.
#[derive(Default)]
pub struct Handshakes {
    records: VecDeque<Record>,
    counts: BTreeMap<Pair, u64>,
}

/// One handshake, as `/handshakes` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// Its end.
    #[serde(serialize_with = "as_rfc3339")]
    pub time: u64,
    /// Who began: the peer (`inbound`) or we (`outbound`).
    pub direction: &'static str,
    /// Listener (inbound) or service (outbound).
    pub name: String,
    /// The peer's SPIFFE ID, if one was proven.
    pub peer: Option<String>,
    /// Version of TLS, if it was agreed on.
    pub tls: Option<String>,
    /// Cipher suite, if it was agreed on.
    pub cipher: Option<String>,
    /// Own end of the connection.
    pub local: String,
    /// The other end.
    pub remote: String,
    /// The cause of the refusal; none: it ended well.
    pub refused: Option<String>,
    /// The refusal in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Who met whom, and how.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Pair {
    /// Who began.
    pub direction: &'static str,
    /// Listener (inbound) or service (outbound).
    pub name: String,
    /// The peer's SPIFFE ID, if one was proven.
    pub peer: Option<String>,
    /// Version of TLS.
    pub tls: Option<String>,
    /// Cipher suite.
    pub cipher: Option<String>,
    /// The cause of the refusal; none: it ended well.
    pub refused: Option<String>,
}

/// How often two met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Who.
    #[serde(flatten)]
    pub pair: Pair,
    /// How often.
    pub handshakes: u64,
}

/// A direction as pages, logs and metrics write it.
pub const fn direction_word(direction: Direction) -> &'static str {
    match direction {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
    }
}

impl Handshakes {
    /// Keeps and counts one.
    pub fn add(&mut self, handshake: &Handshake<'_>) {
        let record = Record::new(handshake);
        let pair = Pair {
            direction: record.direction,
            name: record.name.clone(),
            peer: record.peer.clone(),
            tls: record.tls.clone(),
            cipher: record.cipher.clone(),
            refused: record.refused.clone(),
        };
        let full = self.counts.len() >= MAX_HANDSHAKE_COUNTS && !self.counts.contains_key(&pair);
        *self.counts.entry(if full { pair.other() } else { pair }).or_default() += 1;
        if self.records.len() == MAX_HANDSHAKE_RECORDS {
            self.records.pop_front();
        }
        self.records.push_back(record);
    }

    /// The newest, oldest of them first. They come from one worker after the other, so their times decide.
    pub fn records(&self) -> Vec<Record> {
        let mut records: Vec<Record> = self.records.iter().cloned().collect();
        records.sort_by_key(|record| record.time);
        records
    }

    /// All of them, counted.
    pub fn counts(&self) -> Vec<Count> {
        self.counts.iter().map(|(pair, handshakes)| Count { pair: pair.clone(), handshakes: *handshakes }).collect()
    }
}

impl Record {
    fn new(handshake: &Handshake<'_>) -> Self {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Self {
            time: handshake.time,
            direction: direction_word(handshake.direction),
            name: handshake.name.to_owned(),
            peer: some(handshake.peer),
            tls: some(handshake.version),
            cipher: some(handshake.cipher),
            local: handshake.local.to_owned(),
            remote: handshake.remote.to_owned(),
            refused: some(handshake.refused),
            detail: some(handshake.detail),
        }
    }
}

impl Pair {
    /// Where those are counted for which there is no place of their own.
    fn other(self) -> Self {
        Self { name: "other".to_owned(), peer: None, tls: None, cipher: None, ..self }
    }
}

fn as_rfc3339<S: Serializer>(micros: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*micros))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn handshake(peer: &str) -> Handshake<'_> {
        Handshake {
            time: 1_700_000_000_000_001,
            direction: Direction::Inbound,
            name: "inbound",
            local: "127.0.0.1:15006",
            remote: "127.0.0.1:40000",
            peer,
            version: "TLSv1.3",
            cipher: "TLS13_AES_128_GCM_SHA256",
            refused: "",
            detail: "",
        }
    }

    #[test]
    fn a_record_names_both_ends_and_what_was_agreed() {
        let mut handshakes = Handshakes::default();
        handshakes.add(&handshake("spiffe://shop/ns/default/sa/web"));
        assert_eq!(
            serde_json::to_string(&handshakes.records()).unwrap(),
            "[{\"time\":\"2023-11-14T22:13:20.000001Z\",\"direction\":\"inbound\",\"name\":\"inbound\",\
             \"peer\":\"spiffe://shop/ns/default/sa/web\",\"tls\":\"TLSv1.3\",\"cipher\":\"TLS13_AES_128_GCM_SHA256\",\
             \"local\":\"127.0.0.1:15006\",\"remote\":\"127.0.0.1:40000\",\"refused\":null}]"
        );
    }

    #[test]
    fn a_refused_one_says_why_and_claims_no_peer() {
        let mut handshakes = Handshakes::default();
        let refused =
            Handshake { refused: "expired", detail: "expired 3 s ago", version: "", cipher: "", ..handshake("") };
        handshakes.add(&refused);
        let record = &handshakes.records()[0];
        assert_eq!((record.refused.as_deref(), record.detail.as_deref()), (Some("expired"), Some("expired 3 s ago")));
        assert_eq!((&record.peer, &record.tls, &record.cipher), (&None, &None, &None));
    }

    #[test]
    fn records_of_different_workers_are_in_the_order_of_their_times() {
        let mut handshakes = Handshakes::default();
        for time in [3, 1, 2] {
            handshakes.add(&Handshake { time, ..handshake("") });
        }
        assert_eq!(handshakes.records().iter().map(|record| record.time).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn only_the_newest_are_kept_but_all_are_counted_under_a_bound() {
        let mut handshakes = Handshakes::default();
        let peers: Vec<String> = (0..MAX_HANDSHAKE_RECORDS + 10).map(|n| format!("spiffe://shop/{n}")).collect();
        for peer in &peers {
            handshakes.add(&handshake(peer));
        }
        let records = handshakes.records();
        assert_eq!(records.len(), MAX_HANDSHAKE_RECORDS);
        assert_eq!(records[0].peer.as_deref(), Some("spiffe://shop/10"));
        let counts = handshakes.counts();
        assert_eq!(counts.len(), MAX_HANDSHAKE_COUNTS + 1, "the last is `other`");
        assert_eq!(counts.iter().map(|count| count.handshakes).sum::<u64>(), peers.len() as u64);
    }
}
