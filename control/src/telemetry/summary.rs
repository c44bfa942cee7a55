//! Requests in a few numbers each, for tables that people read.

use std::collections::BTreeMap;

use ringmesh_dataplane::outcome::Reason;
use serde::{Deserialize, Serialize};

use super::merge::Totals;
use super::prometheus::GRPC_WORDS;

/// Requests of one listener, route, rule and service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Requests {
    /// Listener they came to.
    pub listener: String,
    /// Route that matched, or empty.
    pub route: String,
    /// Its rule, or empty.
    pub rule: String,
    /// Service they went to, or empty.
    pub service: String,
    /// How many.
    pub requests: u64,
    /// How many of them ended well: whole response passed on, whatever its status.
    pub ok: u64,
    /// How many answers were 5xx, the proxy's own among them.
    pub server_errors: u64,
    /// How many for each reason that has occurred.
    pub reasons: BTreeMap<String, u64>,
    /// Of gRPC calls, how many ended in each status, `OK` among them: their answers are 200 however they end.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub grpc: BTreeMap<String, u64>,
    /// Half of them took less, in microseconds.
    pub p50_micros: Option<u64>,
    /// All but one of a hundred took less.
    pub p99_micros: Option<u64>,
}

/// All that have counted something.
pub fn requests(totals: &Totals) -> Vec<Requests> {
    let with_requests = totals.requests.iter().filter(|(_, requests)| requests.count() != 0);
    with_requests
        .map(|(labels, requests)| {
            let [listener, route, rule, service] = labels.clone();
            let occurred = Reason::ALL.iter().filter(|reason| requests.reasons[**reason as usize] != 0);
            let statuses = GRPC_WORDS.iter().zip(requests.grpc).filter(|(_, count)| *count != 0);
            Requests {
                listener,
                route,
                rule,
                service,
                requests: requests.count(),
                ok: requests.reasons[Reason::Ok as usize],
                server_errors: requests.classes[5],
                reasons: occurred
                    .map(|reason| (reason.label().to_owned(), requests.reasons[*reason as usize]))
                    .collect(),
                grpc: statuses.map(|(status, count)| ((*status).to_owned(), count)).collect(),
                p50_micros: requests.durations.quantile_micros(0.5),
                p99_micros: requests.durations.quantile_micros(0.99),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::merge::Merge;
    use super::super::testing::Dataplane;
    use super::*;

    #[test]
    fn calls_that_failed_are_told_by_their_status() {
        let labels = ["inbound", "shop", "0", "local"];
        let mut dataplane = Dataplane::start();
        (0..3).for_each(|_| dataplane.serve(0, labels, 1000));
        let mut merge = Merge::default();
        merge.attach(dataplane.reader());
        let mut totals = merge.totals();
        let plain = serde_json::to_value(requests(&totals)).unwrap();
        assert_eq!(plain[0].get("grpc"), None, "nobody has called");
        let counted = totals.requests.get_mut(&labels.map(str::to_owned)).unwrap();
        (counted.grpc[0], counted.grpc[13]) = (1, 2);
        let shown = serde_json::to_value(requests(&totals)).unwrap();
        assert_eq!(shown[0]["grpc"], serde_json::json!({ "OK": 1, "INTERNAL": 2 }));
    }
}
