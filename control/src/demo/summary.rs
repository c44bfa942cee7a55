//! What came of a demo, and whether it was right.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringmesh_loadgen::report::{Report, Tally};
use ringmesh_loadgen::unit::show_duration;
use serde_json::{Value, json};

use super::hops::Compared;
use super::plaintext::Attempt;
use super::shop::SPLIT;
use super::town::Processes;

/// What came of a demo.
pub struct Summary {
    customers: Tally,
    elapsed: Duration,
    unsent: u64,
    refusals: Tally,
    versions: BTreeMap<String, u64>,
    hops: Vec<Compared>,
    attempts: Vec<Attempt>,
    processes: BTreeMap<&'static str, Processes>,
    driver: String,
    problems: Vec<String>,
    folder: Option<PathBuf>,
}

impl Summary {
    /// Sums up and judges. `problems` are those that were seen already.
    pub(super) fn new(
        customers: &Report,
        intruder: &Report,
        hops: Vec<Compared>,
        attempts: Vec<Attempt>,
        processes: BTreeMap<&'static str, Processes>,
        problems: Vec<String>,
    ) -> Self {
        let mut summary = Self {
            customers: customers.total.clone(),
            elapsed: customers.elapsed,
            unsent: customers.unsent,
            refusals: intruder.total.clone(),
            versions: versions(&customers.total),
            hops,
            attempts,
            processes,
            driver: customers.driver.clone(),
            problems,
            folder: None,
        };
        let mut found = summary.judge();
        summary.problems.append(&mut found);
        summary
    }

    /// Says where the demo's files are, if they stay.
    pub(super) fn with_folder(mut self, folder: &Path, stays: bool) -> Self {
        self.folder = stays.then(|| folder.to_owned());
        self
    }

    /// What went wrong; empty if all was as it must be.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// What is not as it must be.
    fn judge(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.customers.requests() == 0 {
            problems.push("no request was sent".to_owned());
        }
        if self.failures() > 0 {
            problems.push(format!(
                "{} of {} requests failed that should not have: {}",
                self.failures(),
                self.customers.requests(),
                causes(&self.customers)
            ));
        }
        for hop in &self.hops {
            if hop.connections == 0 {
                problems.push(format!("no handshake is recorded for {} → {}", hop.from, hop.to));
            }
            for fault in &hop.faults {
                problems.push(format!("{} → {} was not mutually authenticated: {fault}", hop.from, hop.to));
            }
        }
        for attempt in self.attempts.iter().filter(|attempt| !attempt.was_refused()) {
            let (sidecar, address, result) = (attempt.sidecar, attempt.address, attempt.result);
            problems.push(format!("a plain connection to {sidecar} ({address}) was not refused: {result}"));
        }
        if self.refusals.succeeded == 0 || self.refusals.succeeded < self.refusals.requests() {
            problems.push(format!(
                "{} of {} calls were refused that the policy forbids: {}",
                self.refusals.succeeded,
                self.refusals.requests(),
                causes(&self.refusals)
            ));
        }
        problems
    }

    fn failures(&self) -> u64 {
        self.customers.requests() - self.customers.succeeded
    }

    fn share(&self, version: &str) -> f64 {
        let all: u64 = self.versions.values().sum();
        self.versions.get(version).copied().unwrap_or(0) as f64 / all.max(1) as f64
    }

    fn connections(&self) -> (usize, usize) {
        let sum = |count: fn(&Compared) -> usize| self.hops.iter().map(count).sum();
        (sum(|hop| hop.connections), sum(|hop| hop.authenticated))
    }

    /// One JSON object.
    pub fn to_json(&self) -> Value {
        let (hops, authenticated) = self.connections();
        let shares: BTreeMap<_, _> = SPLIT.iter().map(|(version, _)| (*version, self.share(version))).collect();
        json!({
            "ok": self.problems.is_empty(),
            "problems": self.problems,
            "requests": self.customers.requests(),
            "failures": self.failures(),
            "unsent": self.unsent,
            "requests_per_second": self.customers.requests() as f64 / self.elapsed.as_secs_f64().max(1e-9),
            "latency_us": {
                "p50": self.customers.latency().value_at_quantile(0.5) / 1_000,
                "p99": self.customers.latency().value_at_quantile(0.99) / 1_000,
                "max": self.customers.latency().max() / 1_000,
            },
            "share_per_version": shares,
            "answers_per_version": self.versions,
            "hops": hops,
            "mutually_authenticated_hops": authenticated,
            "hops_between": self.hops,
            "refused_calls": self.refusals.succeeded,
            "forbidden_calls": self.refusals.requests(),
            "plaintext_attempts": self.attempts,
            "processes": self.processes,
            "versions": { "ringmesh": env!("CARGO_PKG_VERSION"), "payments": SPLIT.map(|(version, _)| version) },
            "driver": self.driver,
            "elapsed_seconds": self.elapsed.as_secs_f64(),
            "directory": self.folder,
        })
    }
}

/// For people.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let customers = &self.customers;
        writeln!(
            f,
            "requests    {} in {}, {} failed; p50 {}, p99 {}",
            customers.requests(),
            show_duration(self.elapsed),
            self.failures(),
            show_duration(customers.quantile(0.5)),
            show_duration(customers.quantile(0.99)),
        )?;
        write!(f, "payments    ")?;
        for (index, (version, weight)) in SPLIT.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{version} {:.1} % (weight {weight} at the start)", self.share(version) * 100.0)?;
        }
        let (hops, authenticated) = self.connections();
        writeln!(f, "\nhops        {authenticated} of {hops} connections between sidecars mutually authenticated")?;
        for hop in &self.hops {
            writeln!(
                f,
                "            {} → {}: {} of {}, {} {}",
                hop.from,
                hop.to,
                hop.authenticated,
                hop.connections,
                hop.tls.as_deref().unwrap_or("no TLS"),
                hop.cipher.as_deref().unwrap_or(""),
            )?;
        }
        let refused = self.attempts.iter().filter(|attempt| attempt.was_refused()).count();
        writeln!(f, "plaintext   {refused} of {} inbound ports refused a plain connection", self.attempts.len())?;
        write!(f, "policy      {} of {} forbidden calls refused", self.refusals.succeeded, self.refusals.requests())?;
        if let Some(folder) = &self.folder {
            write!(f, "\nfiles       {}", folder.display())?;
        }
        Ok(())
    }
}

/// How often each version of payments had a part in an answer: `web/v1, checkout/v1, payments/v2`.
fn versions(tally: &Tally) -> BTreeMap<String, u64> {
    let mut versions = BTreeMap::new();
    for (served_by, count) in &tally.field_values {
        if let Some(version) = served_by.split(", ").find_map(|part| part.strip_prefix("payments/")) {
            *versions.entry(version.to_owned()).or_default() += count;
        }
    }
    versions
}

/// Statuses and failures in a line.
fn causes(tally: &Tally) -> String {
    let statuses = tally.statuses.iter().map(|(status, count)| format!("{count} × status {status}"));
    let failures = tally.failures.iter().map(|(cause, count)| format!("{count} × {cause}"));
    match statuses.chain(failures).collect::<Vec<_>>() {
        causes if causes.is_empty() => "none was made".to_owned(),
        causes => causes.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use ringmesh_loadgen::report::Failure;

    use super::super::plaintext::Outcome;
    use super::*;

    fn tally(succeeded: u64) -> Tally {
        let mut tally = Tally::default();
        tally.succeeded = succeeded;
        tally
    }

    /// A demo in which all was as it must be.
    fn good() -> Summary {
        let attempt = Attempt {
            sidecar: "web",
            address: "127.0.0.1:1".parse().unwrap(),
            result: Outcome::Closed,
            got_through: false,
        };
        let hop = Compared {
            from: "web",
            to: "checkout",
            connections: 2,
            authenticated: 2,
            caller: None,
            tls: None,
            cipher: None,
            faults: Vec::new(),
        };
        Summary {
            customers: tally(100),
            elapsed: Duration::from_secs(1),
            unsent: 0,
            refusals: tally(1),
            versions: BTreeMap::from([("v1".to_owned(), 91), ("v2".to_owned(), 9)]),
            hops: vec![hop],
            attempts: vec![attempt],
            processes: BTreeMap::new(),
            driver: "epoll".to_owned(),
            problems: Vec::new(),
            folder: None,
        }
    }

    /// One thing is changed, and the verdict must name it.
    fn check(change: impl FnOnce(&mut Summary), problem: &str) {
        let mut summary = good();
        change(&mut summary);
        let problems = summary.judge();
        assert!(problems.len() == 1 && problems[0].contains(problem), "{problem}: {problems:?}");
    }

    #[test]
    fn a_good_demo_has_no_problem_and_tells_its_shares() {
        let summary = good();
        assert_eq!(summary.judge(), Vec::<String>::new());
        let json = summary.to_json();
        assert_eq!(json["share_per_version"]["v2"], 0.09);
        assert_eq!((&json["hops"], &json["mutually_authenticated_hops"]), (&json!(2), &json!(2)));
    }

    #[test]
    fn whatever_is_not_as_it_must_be_is_a_problem() {
        check(|summary| summary.customers.succeeded = 0, "no request was sent");
        check(|summary| summary.customers.unexpected = 1, "1 of 101 requests failed");
        check(
            |summary| {
                summary.customers.failures.insert(Failure::Cut, 2);
            },
            "2 of 102 requests failed",
        );
        check(
            |summary| {
                summary.hops[0].authenticated = 1;
                summary.hops[0].faults.push("the ends differ".to_owned());
            },
            "web → checkout was not mutually authenticated: the ends differ",
        );
        check(|summary| (summary.hops[0].connections, summary.hops[0].authenticated) = (0, 0), "no handshake");
        check(|summary| summary.attempts[0].result = Outcome::Answered, "a plain connection to web");
        check(|summary| summary.attempts[0].result = Outcome::Silent, "a plain connection to web");
        check(|summary| summary.refusals.succeeded = 0, "0 of 0 calls were refused");
        check(|summary| summary.refusals.unexpected = 1, "1 of 2 calls were refused");
    }

    #[test]
    fn versions_are_those_of_payments_alone() {
        let mut tally = tally(9);
        tally.field_values = BTreeMap::from([
            ("web/v1, checkout/v1, payments/v2".to_owned(), 3),
            ("web/v1, checkout/v1".to_owned(), 5),
            (String::new(), 1),
        ]);
        assert_eq!(versions(&tally), BTreeMap::from([("v2".to_owned(), 3)]));
    }
}
