//! Which rule a request falls under, and which service of the rule it goes to.
//!
//! Finding the host is one hash lookup (one more for each label of the name if suffixes are configured), whatever the
//! number of hosts. Within a host rules stand in order of precedence, so the first that matches is the one.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use ringmesh_codec::ClientHello;
use ringmesh_codec::head::Head;
use ringmesh_model::snapshot::{self, HostPattern, PathMatch};

use crate::tables::Map;
use crate::telemetry::recorder::Series;

/// Longest host that is looked up, in bytes (RFC 1035 section 2.3.4); a longer one has no route.
const MAX_HOST_BYTES: usize = 255;

/// The routes of one listener.
#[derive(Debug, Default)]
pub struct Table {
    exact: Hosts,
    suffix: Hosts,
    any: Vec<Rule>,
}

type Hosts = Map<Box<[u8]>, Vec<Rule>>;

/// One rule, ready for matching.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Name of the route.
    pub route: Box<str>,
    /// Name of the rule.
    pub name: Box<str>,
    /// What a request must be like.
    pub matches: snapshot::RouteMatch,
    /// Where it goes. Never empty, the weights sum to more than nothing.
    pub to: Vec<Target>,
    /// Sum of the weights.
    pub total_weight: u32,
    /// From the head's end to the response's end; replaces the listener's.
    pub timeout: Option<std::time::Duration>,
}

/// A service of a rule.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Index of the service in the tables.
    pub service: u32,
    /// Its share.
    pub weight: u32,
    /// What counts its requests.
    pub series: Series,
}

impl Table {
    /// Adds a rule for a host; rules are added in order of precedence.
    pub fn add(&mut self, host: &HostPattern, rule: Rule) {
        // Most hosts have one rule: ten thousand times the room for three more is some megabytes.
        let one = || Vec::with_capacity(1);
        let rules = match host {
            HostPattern::Exact(name) => self.exact.entry(name.as_bytes().into()).or_insert_with(one),
            HostPattern::Suffix(name) => self.suffix.entry(name.as_bytes().into()).or_insert_with(one),
            HostPattern::Any => &mut self.any,
        };
        rules.push(rule);
    }

    /// Whether it has no rule.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.suffix.is_empty() && self.any.is_empty()
    }

    /// The services of all rules.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.exact.values().chain(self.suffix.values()).chain([&self.any]).flatten().flat_map(|rule| &rule.to)
    }

    /// The rule that a request falls under: those of its exact host first, then of the longest suffix, then of any host.
    /// `path` is its path in normal form. What the service would make of an ambiguous one (None) is not known: it falls
    /// only under rules for every path.
    pub fn find(&self, head: &impl Head, path: Option<&[u8]>) -> Option<&Rule> {
        let mut lower = [0; MAX_HOST_BYTES];
        let host = host_of(head.authority().unwrap_or_default(), &mut lower);
        self.find_host(host, |rule| matches(&rule.matches, path, head))
    }

    /// The rule that a TLS connection falls under, by the server name that it asks for and the protocols that it offers. One
    /// that asks for no name falls only under rules for any host.
    pub fn find_name(&self, hello: &ClientHello) -> Option<&Rule> {
        let offered = |wanted: &[String]| wanted.iter().any(|protocol| hello.offers(protocol.as_bytes()));
        let matches = |rule: &Rule| rule.matches.alpn.is_empty() || offered(&rule.matches.alpn);
        match hello.name() {
            Some(name) => self.find_host(name.as_bytes(), matches),
            None => self.any.iter().find(|rule| matches(rule)),
        }
    }

    #[inline]
    fn find_host(&self, host: &[u8], matches: impl Fn(&Rule) -> bool) -> Option<&Rule> {
        let matching = |rules: &'_ [Rule]| rules.iter().position(&matches);
        if let Some(rules) = self.exact.get(host)
            && let Some(found) = matching(rules)
        {
            return rules.get(found);
        }
        if !self.suffix.is_empty() {
            let mut rest = host;
            while let Some(dot) = rest.iter().position(|byte| *byte == b'.') {
                rest = &rest[dot + 1..];
                if let Some(rules) = self.suffix.get(rest)
                    && let Some(found) = matching(rules)
                {
                    return rules.get(found);
                }
            }
        }
        matching(&self.any).and_then(|found| self.any.get(found))
    }
}

impl Rule {
    /// The service that a request goes to: each with its weight's share of `random`, which is uniform over all 64-bit
    /// numbers, and is asked for only where there are several.
    #[inline]
    pub fn pick(&self, random: impl FnOnce() -> u64) -> &Target {
        if let [only] = &self.to[..] {
            return only;
        }
        // The upper half of a 64-bit product: uniform, and without a division.
        let mut point = ((u128::from(random()) * u128::from(self.total_weight)) >> 64) as u32;
        for target in &self.to {
            if point < target.weight {
                return target;
            }
            point -= target.weight;
        }
        self.to.last().expect("a rule has a service")
    }
}

/// The host of an authority: without port and trailing dot, in lower case; empty if it is too long.
fn host_of<'a>(authority: &[u8], lower: &'a mut [u8; MAX_HOST_BYTES]) -> &'a [u8] {
    let length = match authority.first() {
        Some(b'[') => memchr::memchr(b']', authority).map(|end| end + 1),
        _ => memchr::memchr(b':', authority),
    };
    let host = &authority[..length.unwrap_or(authority.len())];
    let host = host.strip_suffix(b".").unwrap_or(host);
    let Some(lower) = lower.get_mut(..host.len()) else { return &[] };
    lower.copy_from_slice(host);
    lower.make_ascii_lowercase();
    lower
}

/// Whether a request is like that; `path` is its path in normal form, if it has one.
fn matches(wanted: &snapshot::RouteMatch, path: Option<&[u8]>, head: &impl Head) -> bool {
    path.map_or_else(|| matches_every_path(&wanted.path), |path| path_matches(&wanted.path, path))
        && (wanted.methods.is_empty() || wanted.methods.iter().any(|method| method.as_bytes() == head.method()))
        && wanted.headers.iter().all(|header| head.field(&header.name) == Some(header.value.as_bytes()))
}

fn matches_every_path(wanted: &PathMatch) -> bool {
    match wanted {
        PathMatch::Any => true,
        PathMatch::Exact(_) => false,
        PathMatch::Prefix(prefix) => prefix == "/",
    }
}

/// Whether `path` (without query) is matched.
pub fn path_matches(wanted: &PathMatch, path: &[u8]) -> bool {
    match wanted {
        PathMatch::Any => true,
        PathMatch::Exact(exact) => path == exact.as_bytes(),
        PathMatch::Prefix(prefix) if prefix == "/" => true,
        PathMatch::Prefix(prefix) => {
            path.strip_prefix(prefix.as_bytes()).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        }
    }
}

#[cfg(test)]
mod tests;
