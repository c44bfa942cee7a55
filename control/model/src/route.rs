//! `[[route]]`: which requests go where. The words mean what the Gateway API means by them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::error::{Cause, Located};
use crate::listener::{MAX_TIMEOUT, MIN_TIMEOUT};
use crate::name::Name;
use crate::reader::{Field, FromField, Keys, Section, Word};
use crate::service::is_host;
use crate::snapshot::{HeaderMatch, HostPattern, PathMatch, RouteMatch, RouteProtocol};

/// Keys of `[[route]]`.
pub const KEYS: Keys = Keys {
    path: "route",
    header: "[[route]]",
    names: &["name", "protocol", "hosts", "listeners", "to", "timeout", "rule"],
};

/// Keys of `[[route.rule]]`.
pub const RULE_KEYS: Keys =
    Keys { path: "route.rule", header: "[[route.rule]]", names: &["name", "match", "to", "timeout"] };

/// Keys of `match` in a rule.
pub const MATCH_KEYS: Keys = Keys {
    path: "route.rule.match",
    header: "`match` of a [[route.rule]]",
    names: &["path", "path_prefix", "method", "methods", "headers", "alpn"],
};

/// Keys of one share of a split.
pub const TO_KEYS: Keys =
    Keys { path: "route.rule.to", header: "`to` of a [[route.rule]]", names: &["service", "weight"] };

/// The share of a service that names none, so that a list of names is an even split.
pub const DEFAULT_WEIGHT: u32 = 1;

/// Largest weight: parts per million are as fine as anybody splits, and sums stay far from overflow.
pub const MAX_WEIGHT: u32 = 1_000_000;

/// What is routed where nothing is said.
pub const DEFAULT_PROTOCOL: RouteProtocol = RouteProtocol::Http;

/// Longest name of a protocol in ALPN (RFC 7301 section 3.1).
const MAX_ALPN_BYTES: usize = 255;

/// Most services in one split. Nobody splits among so many, and the sum of the weights stays within 32 bits.
pub const MAX_SHARES: usize = 1_000;
const _: () = assert!(MAX_SHARES as u64 * (MAX_WEIGHT as u64) < u32::MAX as u64);

/// `[[route]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Unique name; the first host unless given.
    pub name: Located<String>,
    /// What it routes.
    pub protocol: RouteProtocol,
    /// Hosts it applies to; at least one.
    pub hosts: Vec<Located<HostPattern>>,
    /// Listeners it applies to. Empty: all of its protocol without a service of their own.
    pub listeners: Vec<Located<String>>,
    /// Its rules, in the order of the file.
    pub rules: Vec<Rule>,
    /// Where requests go that no rule matches. None: nowhere, unless there are no rules and a service is named like the
    /// first host.
    pub to: Option<Located<Vec<Located<Share>>>>,
    /// Timeout of its requests, unless their rule says otherwise.
    pub timeout: Option<Located<Duration>>,
}

/// `[[route.rule]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Unique within the route. None: its position.
    pub name: Option<Located<String>>,
    /// What a request must be like.
    pub matches: Located<RouteMatch>,
    /// Where it goes.
    pub to: Located<Vec<Located<Share>>>,
    /// From the head's end to the response's end.
    pub timeout: Option<Located<Duration>>,
}

/// A service with its share of the requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Name of the service.
    pub service: String,
    /// Its share, relative to the sum.
    pub weight: u32,
}

impl Route {
    pub(crate) fn read(section: &Section<'_>) -> Option<Self> {
        let name = section.optional::<Located<Name>>("name").map(Name::unwrap);
        let protocol = section.word("protocol", DEFAULT_PROTOCOL);
        let hosts = hosts(section);
        let listeners = match section.field("listeners") {
            Some(field) => listeners(&field),
            None => Vec::new(),
        };
        let rules = section.field("rule").map(|field| rules(&field)).unwrap_or_default();
        let to = section.optional::<Located<To>>("to").map(To::unwrap);
        let timeout = timeout(section);
        let hosts = hosts?;
        let name = name.or_else(|| hosts.first().map(|host| Located { value: host.to_string(), place: host.place }));
        Some(Self { name: name?, protocol, hosts, listeners, rules, to, timeout })
    }
}

fn rules(field: &Field<'_>) -> Vec<Rule> {
    let Some(items) = field.items() else {
        field.refuse(Cause::Brackets(RULE_KEYS.header));
        return Vec::new();
    };
    let sections = items.iter().filter_map(|item| item.section(&RULE_KEYS, "a table"));
    sections.filter_map(|section| Rule::read(&section)).collect()
}

fn timeout(section: &Section<'_>) -> Option<Located<Duration>> {
    let place = section.field("timeout")?.place();
    section.ranged_or_none("timeout", MIN_TIMEOUT, MAX_TIMEOUT).map(|value| Located { value, place })
}

fn hosts(section: &Section<'_>) -> Option<Vec<Located<HostPattern>>> {
    let Some(field) = section.field("hosts") else {
        section.miss("hosts", "hosts = [\"payments\"]");
        return None;
    };
    field.expect_set("a list such as [\"payments\"]", "write [\"*\"] for any host")
}

fn listeners(field: &Field<'_>) -> Vec<Located<String>> {
    let names = field.expect_set::<Name>("a list such as [\"outbound\"]", "leave it out for all listeners");
    names.unwrap_or_default().into_iter().map(Name::unwrap).collect()
}

impl FromField for HostPattern {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        const EXPECTED: &str = "a host without a port, such as \"payments\", \"*.shop.example\" or \"*\"";
        let text = field.expect_text(EXPECTED)?.to_ascii_lowercase();
        let pattern = match text.strip_prefix("*.") {
            _ if text == "*" => Some(Self::Any),
            Some(rest) => is_host(rest).then(|| Self::Suffix(rest.to_owned())),
            None => (is_host(&text) || is_address(&text)).then(|| Self::Exact(text.clone())),
        };
        if pattern.is_none() {
            field.refuse(Cause::WrongText { expected: EXPECTED, found: text });
        }
        pattern
    }
}

/// An address as it stands in a `Host` field: IPv6 in brackets (RFC 3986 section 3.2.2).
fn is_address(text: &str) -> bool {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    text.parse::<Ipv4Addr>().is_ok() || bracketed.is_some_and(|text| text.parse::<Ipv6Addr>().is_ok())
}

impl Rule {
    fn read(section: &Section<'_>) -> Option<Self> {
        let name = section.optional::<Located<Name>>("name").map(Name::unwrap);
        let matches = match section.field("match") {
            Some(field) => Located::from_field(&field),
            None => Some(Located { value: RouteMatch::default(), place: section.place() }),
        };
        let to = section.required::<Located<To>>("to", "to = \"payments\"");
        let timeout = timeout(section);
        Some(Self { name, matches: matches?, to: To::unwrap(to?), timeout })
    }
}

impl FromField for RouteMatch {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        let section = field.section(&MATCH_KEYS, "a table such as { path_prefix = \"/v2\" }")?;
        let exact = section.optional::<Path>("path");
        let prefix = section.optional::<Path>("path_prefix");
        if section.field("path").is_some() && section.field("path_prefix").is_some() {
            section.refuse(Cause::Exclusive("path", "path_prefix"));
        }
        let path = match (exact, prefix) {
            (Some(path), _) => PathMatch::Exact(path.0),
            (None, Some(path)) => PathMatch::Prefix(path.into_prefix()),
            (None, None) => PathMatch::Any,
        };
        let one = section.optional::<Method>("method");
        let many = section.field("methods").and_then(|field| methods(&field));
        if section.field("method").is_some() && section.field("methods").is_some() {
            section.refuse(Cause::Exclusive("method", "methods"));
        }
        let methods = one.map(|method| vec![method.0]).or(many).unwrap_or_default();
        let headers = section.field("headers").map(|field| headers(&field)).unwrap_or_default();
        let alpn = section.field("alpn").and_then(|field| alpn(&field)).unwrap_or_default();
        Some(Self { path, methods, headers, alpn })
    }
}

/// Reads a list of ALPN protocols.
fn alpn(field: &Field<'_>) -> Option<Vec<String>> {
    let found = field.expect_set::<Alpn>("a list such as [\"h2\", \"http/1.1\"]", "leave it out for any protocol")?;
    Some(found.into_iter().map(|protocol| protocol.value.0).collect())
}

/// The name of a protocol in ALPN. They are bytes; those that people write are visible characters.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Alpn(String);

impl FromField for Alpn {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        const EXPECTED: &str = "a protocol of ALPN such as \"h2\" or \"http/1.1\"";
        let text = field.expect_text(EXPECTED)?;
        let is_name = (1..=MAX_ALPN_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_name {
            field.refuse(Cause::WrongText { expected: EXPECTED, found: text.escape_debug().to_string() });
        }
        is_name.then(|| Self(text.to_owned()))
    }
}

impl std::fmt::Display for Alpn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Word for RouteProtocol {
    const WORDS: &'static [(&'static str, Self)] = &[("http", Self::Http), ("tls", Self::Tls)];
}

/// A path without query.
pub(crate) struct Path(pub(crate) String);

impl Path {
    /// Notes it at `field` if no request can have this path.
    pub(crate) fn check(field: &Field<'_>, path: &str) -> Option<Self> {
        match never_matches(path) {
            None => Some(Self(path.to_owned())),
            Some(reason) => {
                field.refuse(Cause::Path { path: path.to_owned(), reason });
                None
            }
        }
    }

    /// `/v2/` and `/v2` match the same requests (Gateway API `PathPrefix`).
    pub(crate) fn into_prefix(self) -> String {
        match self.0.trim_end_matches('/') {
            "" => "/".to_owned(),
            path => path.to_owned(),
        }
    }
}

impl FromField for Path {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        Self::check(field, field.expect_text("a path such as \"/v2\"")?)
    }
}

/// Why no request has this path, if so. Paths are compared in their normal form (RFC 3986 section 6.2.2): what is not
/// written in that form would lie in the file and match nothing.
fn never_matches(path: &str) -> Option<&'static str> {
    let dots = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
    match path {
        _ if !path.starts_with('/') => Some("a path begins with `/`"),
        _ if path.contains(['?', '#']) => Some("the query is not part of the path"),
        _ if path.split('/').any(dots) => Some("`.` and `..` are resolved before paths are compared"),
        _ if path.contains('*') => Some("`*` may only be the end of a policy's path, as `/*`"),
        _ if path.contains('\\') => Some("requests with a backslash are refused"),
        _ if !path.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Some("such characters are percent-encoded in requests")
        }
        _ => path.split('%').skip(1).find_map(never_encoded),
    }
}

/// Why no normalized path has this after a `%`, if so.
fn never_encoded(rest: &str) -> Option<&'static str> {
    let digits = rest.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
    match byte {
        None => Some("two hex digits follow each `%`"),
        Some(b'/' | b'\\' | 0) => Some("requests with an encoded `/`, `\\` or NUL are refused"),
        Some(b'-' | b'.' | b'_' | b'~') => Some("letters, digits, `-`, `.`, `_` and `~` are decoded before"),
        Some(byte) if byte.is_ascii_alphanumeric() => Some("letters, digits, `-`, `.`, `_` and `~` are decoded before"),
        Some(_) if rest[..2].bytes().any(|digit| digit.is_ascii_lowercase()) => {
            Some("hex digits are written in capitals")
        }
        Some(_) => None,
    }
}

/// A method in capitals.
pub(crate) struct Method(String);

impl FromField for Method {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        const EXPECTED: &str = "a method such as \"GET\"";
        let text = field.expect_text(EXPECTED)?;
        if !is_token(text) {
            field.refuse(Cause::WrongText { expected: EXPECTED, found: text.to_owned() });
            return None;
        }
        let right = text.to_ascii_uppercase();
        if right != text {
            field.refuse(Cause::MethodCase { found: text.to_owned(), right });
            return None;
        }
        Some(Self(right))
    }
}

/// Reads a list of methods.
pub(crate) fn methods(field: &Field<'_>) -> Option<Vec<String>> {
    let items = field.expect_items("a list such as [\"GET\", \"HEAD\"]", "leave it out for any method")?;
    Some(items.iter().filter_map(Method::from_field).map(|method| method.0).collect())
}

fn headers(field: &Field<'_>) -> Vec<HeaderMatch> {
    const EXPECTED: &str = "a table such as { x-version = \"2\" }";
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in field.entries(EXPECTED).unwrap_or_default() {
        let lower = name.to_ascii_lowercase();
        if !is_token(name) {
            value.refuse(Cause::WrongText { expected: "a field name", found: name.to_owned() });
        } else if lower == "host" {
            value.refuse(Cause::HostHeader);
        } else if let Some(FieldValue(text)) = FieldValue::from_field(&value)
            && found.insert(lower.clone(), text).is_some()
        {
            value.refuse(Cause::Twice(format!("field `{lower}` (case does not matter)")));
        }
    }
    found.into_iter().map(|(name, value)| HeaderMatch { name, value }).collect()
}

/// A field value (RFC 9110 section 5.5): no control characters, no white space at its ends.
struct FieldValue(String);

impl FromField for FieldValue {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        const EXPECTED: &str = "a field value: visible characters, with no space at its ends";
        let text = field.expect_text("a string")?;
        if text.chars().any(|c| c.is_ascii_control()) || text.trim() != text {
            field.refuse(Cause::WrongText { expected: EXPECTED, found: text.escape_debug().to_string() });
            return None;
        }
        Some(Self(text.to_owned()))
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(allowed)
}

/// What `to` says: a service, or a split.
struct To(Vec<Located<Share>>);

impl To {
    fn unwrap(to: Located<Self>) -> Located<Vec<Located<Share>>> {
        Located { value: to.value.0, place: to.place }
    }
}

impl FromField for To {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        const EXPECTED: &str = "a service, or a list such as [{ service = \"payments\", weight = 90 }, …]";
        if field.text().is_some() {
            return Located::from_field(field).map(|share| Self(vec![share]));
        }
        let items = field.expect_items(EXPECTED, "name at least one service")?;
        if items.len() > MAX_SHARES {
            field.refuse(Cause::TooMany { found: items.len(), max: MAX_SHARES });
            return None;
        }
        Some(Self(items.iter().filter_map(Located::from_field).collect()))
    }
}

impl FromField for Share {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        if field.text().is_some() {
            let name = Located::<Name>::from_field(field)?;
            return Some(Self { service: Name::unwrap(name).value, weight: DEFAULT_WEIGHT });
        }
        let table = field.section(&TO_KEYS, "a service, or a table such as { service = \"payments\", weight = 90 }")?;
        let service = table.required::<Located<Name>>("service", "service = \"payments\"");
        let weight = table.number("weight", DEFAULT_WEIGHT, 0, MAX_WEIGHT);
        Some(Self { service: Name::unwrap(service?).value, weight })
    }
}
