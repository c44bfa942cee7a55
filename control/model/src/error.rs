//! What is wrong with a config: file, line, key, what is wrong there and what would be right.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::ops::Deref;

use crate::network::Network;
use crate::snapshot::ProxyAt;
use crate::spiffe;
use crate::unit;

/// Most problems that are printed; the rest is counted. A template that went wrong repeats one fault a thousand times.
const MAX_SHOWN: usize = 20;

/// A position in the file, both counted from 1; the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

/// A value and where the file says it. Two of them are equal if the values are, wherever they stand: a config whose lines
/// only moved is the same config.
#[derive(Clone, Copy)]
pub struct Located<T> {
    /// What is said.
    pub value: T,
    /// Where; for a default, where the table begins that it belongs to.
    pub place: Place,
}

impl<T> Deref for Located<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: PartialEq> PartialEq for Located<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Located<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

impl<T: fmt::Display> fmt::Display for Located<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

/// Everything that is wrong with a config, in the order of the file. Never empty.
#[derive(Debug)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Sorts what was found.
    ///
    /// # Panics
    /// If nothing was found.
    pub(crate) fn new(mut problems: Vec<Problem>) -> Self {
        assert!(!problems.is_empty(), "problems are made where something is wrong");
        problems.sort_by_key(|problem| problem.place);
        Self(problems)
    }

    /// All of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    /// How many there are; at least one.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Problems {
    /// One line a problem, without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().take(MAX_SHOWN).enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem}")?;
        }
        match self.0.len().saturating_sub(MAX_SHOWN) {
            0 => Ok(()),
            rest => write!(f, "\n… and {rest} more"),
        }
    }
}

impl std::error::Error for Problems {}

/// One thing that is wrong.
#[derive(Debug)]
pub struct Problem {
    /// The file, as it was named to us.
    pub file: String,
    /// Where in it. None: the file as a whole.
    pub place: Option<Place>,
    /// The key's path from the top, such as `service[2].endpoints`; counts from 0. Empty: the file as a whole.
    pub key: String,
    /// The object it belongs to as people call it, such as `service "payments"`; empty at the top.
    pub subject: String,
    /// The key within that object, if the cause does not name it itself.
    pub field: String,
    /// What is wrong and what would be right.
    pub cause: Cause,
}

impl fmt::Display for Problem {
    /// As compilers do it: `sidecar.toml:12: service "payments": unknown key ...`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(place) = self.place {
            write!(f, ":{}", place.line)?;
        }
        f.write_str(": ")?;
        if !self.subject.is_empty() {
            write!(f, "{}: ", self.subject)?;
        }
        if !self.field.is_empty() {
            write!(f, "`{}`: ", self.field)?;
        }
        self.cause.fmt(f)
    }
}

impl std::error::Error for Problem {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.cause)
    }
}

/// What would be right instead of an unknown word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// A known word that looks or means alike.
    Nearest(String),
    /// The word is right, but belongs into this section.
    Elsewhere(&'static str),
    /// What it means elsewhere is said in other words here.
    Means(&'static str),
    /// All that is known.
    OneOf(Vec<String>),
    /// There is nothing to choose from.
    Nothing,
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nearest(word) => write!(f, "; did you mean `{word}`?"),
            Self::Elsewhere(section) => write!(f, "; it belongs in {section}"),
            Self::Means(words) => write!(f, "; {words}"),
            Self::OneOf(words) => {
                write!(f, "; expected {}", one_of(words))
            }
            Self::Nothing => Ok(()),
        }
    }
}

/// "`a`", "`a` or `b`", "one of `a`, `b`, `c`".
fn one_of(words: &[impl AsRef<str>]) -> String {
    let words: Vec<_> = words.iter().map(|word| format!("`{}`", word.as_ref())).collect();
    match &words[..] {
        [one] => one.clone(),
        [one, other] => format!("{one} or {other}"),
        words => format!("one of {}", words.join(", ")),
    }
}

fn on(listener: Option<&str>) -> String {
    listener.map(|name| format!(" on listener \"{name}\"")).unwrap_or_default()
}

/// The causes. Those of the first group are found while reading, the others while resolving.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The file is not there or not ours to read.
    #[error("cannot be read: {0}")]
    Unreadable(#[source] io::Error),
    /// The file is larger than any sensible config.
    #[error("is larger than {0}, the most that is read; is it the right file?")]
    TooLarge(unit::ByteSize),
    /// TOML is UTF-8.
    #[error("is not UTF-8 here, and so no TOML")]
    NotUtf8,
    /// Not TOML.
    #[error("not TOML: {0}")]
    Syntax(String),
    /// A key that this version does not know.
    #[error("unknown key `{key}`{hint}")]
    UnknownKey {
        /// As written.
        key: String,
        /// What would be right.
        hint: Hint,
    },
    /// A section that this version does not know.
    #[error("unknown section `{key}`{hint}")]
    UnknownSection {
        /// As written.
        key: String,
        /// What would be right.
        hint: Hint,
    },
    /// A key that must be there.
    #[error("`{key}` is missing; add for example `{example}`")]
    Missing {
        /// The key.
        key: &'static str,
        /// What to write.
        example: &'static str,
    },
    /// A section that may be there once is written as a list, or the other way round.
    #[error("write {0}")]
    Brackets(&'static str),
    /// Another type is needed.
    #[error("expected {expected}, found {found}")]
    WrongType {
        /// What would be right.
        expected: &'static str,
        /// What is there, as type and value.
        found: String,
    },
    /// Right type, but it does not say what it must.
    #[error("expected {expected}, found \"{found}\"")]
    WrongText {
        /// What would be right.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// No duration.
    #[error("expected {}, found \"{found}\": {error}", unit::DURATION_EXAMPLE)]
    Duration {
        /// What is there.
        found: String,
        /// Why not.
        error: unit::Error,
    },
    /// No size.
    #[error("expected {}, found \"{found}\": {error}", unit::SIZE_EXAMPLE)]
    Size {
        /// What is there.
        found: String,
        /// Why not.
        error: unit::Error,
    },
    /// Out of range.
    #[error("must be {min} to {max}, found {found}")]
    OutOfRange {
        /// What is there.
        found: String,
        /// Least allowed.
        min: String,
        /// Most allowed.
        max: String,
    },
    /// A word is needed.
    #[error("expected {}, found {found}", one_of(words))]
    WrongWordType {
        /// What is there, as type and value.
        found: String,
        /// The words.
        words: Vec<&'static str>,
    },
    /// No word that this key takes.
    #[error("unknown value \"{found}\"{hint}")]
    UnknownWord {
        /// What is there.
        found: String,
        /// What would be right.
        hint: Hint,
    },
    /// An empty list, which might be read as "nobody" or as "everybody".
    #[error("the list is empty; {0}")]
    EmptyList(&'static str),
    /// A list is longer than makes sense.
    #[error("the list has {found} entries; at most {max} are allowed")]
    TooMany {
        /// How many there are.
        found: usize,
        /// How many there may be.
        max: usize,
    },
    /// A key that says something of another kind.
    #[error("says nothing of kind \"{0}\"; leave it out")]
    NotOfKind(&'static str),
    /// A key that says something of requests, where there are none.
    #[error("has no effect: with protocol = \"{0}\" no request is looked at; leave it out")]
    NotForBytes(&'static str),
    /// A time for what never happens.
    #[error("has no effect: with protocol = \"{0}\" nothing is detected; leave it out, or set `protocol = \"detect\"`")]
    NothingDetected(&'static str),
    /// A bound of what never happens.
    #[error("has no effect: no TLS ends at this listener; leave it out, or add `tls` or `mtls = \"strict\"`")]
    NoHandshakes,
    /// Something is listed twice.
    #[error("{0} is listed twice")]
    Twice(String),
    /// Both keys say the same thing in two ways.
    #[error("`{0}` and `{1}` exclude each other; keep one")]
    Exclusive(&'static str, &'static str),
    /// No SPIFFE trust domain.
    #[error(transparent)]
    TrustDomain(spiffe::Error),
    /// No SPIFFE ID.
    #[error(transparent)]
    SpiffeId(spiffe::Error),
    /// Hosts have a key of their own, which wildcards and HTTP/2 understand.
    #[error("the host is matched by `hosts` of the [[route]]")]
    HostHeader,
    /// A path that no request has: paths are compared in their normal form.
    #[error("path \"{path}\" never matches: {reason}")]
    Path {
        /// As written.
        path: String,
        /// Why not.
        reason: &'static str,
    },
    /// Methods are case-sensitive (RFC 9110 section 9.1).
    #[error("method \"{found}\" is not \"{right}\": methods are case-sensitive; write it in capitals")]
    MethodCase {
        /// As written.
        found: String,
        /// In capitals.
        right: String,
    },
    /// An address with bits behind the prefix.
    #[error("\"{found}\" is no network: it has bits behind its prefix; write \"{network}\" or \"{address}\"")]
    NotANetwork {
        /// As written.
        found: String,
        /// The network around it.
        network: Network,
        /// The address alone.
        address: IpAddr,
    },
    /// No path or name that a Unix socket can have.
    #[error("\"{path}\" has {bytes} bytes; a Unix socket's path, or its name behind `@`, has 1 to 107, and no NUL")]
    UnixPath {
        /// As written.
        path: String,
        /// Its length.
        bytes: usize,
    },
    /// A key says something of another kind of address than the listener has.
    #[error("has no effect on {address}: {why}")]
    NotForAddress {
        /// The address.
        address: String,
        /// What it is for.
        why: &'static str,
    },
    /// HTTP inside of HTTP, or TLS, which the proxy could not look into.
    #[error("an upgrade to \"{0}\" would carry requests past the proxy; it is never passed on")]
    UpgradePastTheProxy(String),
    /// A relative path where there is no folder it could be relative to.
    #[error("path \"{0}\" must be absolute")]
    RelativePath(String),

    /// Connections are brought to a port, in either family.
    #[error(
        "a Unix socket or a port that the kernel chooses cannot take intercepted connections; give `bind` an address with a port"
    )]
    InterceptsNoPort,
    /// Connections from outside do not reach loopback.
    #[error("connections from outside cannot be brought to {0}; bind \"0.0.0.0:PORT\" or \"[::]:PORT\"")]
    InterceptsLoopback(String),
    /// One connection goes to one listener.
    #[error(
        "listener \"{other}\" (line {line}) takes these connections already; each direction has one listener for IPv4 and one for IPv6"
    )]
    InterceptedTwice {
        /// The other listener.
        other: String,
        /// Its line.
        line: u32,
    },
    /// Nobody knows where such a connection wanted to go.
    #[error(
        "service \"{service}\" goes to the original destination, which connections of listener \"{listener}\" do not have; set `intercept` there"
    )]
    NoOriginal {
        /// The service.
        service: String,
        /// The listener.
        listener: String,
    },
    /// The proxy would intercept itself.
    #[error(
        "the proxy may not mark its own connections, so they would be intercepted as well; give it CAP_NET_ADMIN (from Linux 5.17 on \
         CAP_NET_RAW is enough), or run it as a user of its own and write `exclude_users = [{0}]` in [intercept]"
    )]
    CannotMark(String),

    /// Two objects of a kind have one name.
    #[error("the name \"{name}\" is taken since line {first}; give each its own")]
    DuplicateName {
        /// The name.
        name: String,
        /// Line of the first.
        first: u32,
    },
    /// A reference leads nowhere.
    #[error("there is no {kind} \"{name}\"{hint}")]
    NoSuch {
        /// `service` or `listener`.
        kind: &'static str,
        /// The name.
        name: String,
        /// What would be right.
        hint: Hint,
    },
    /// Two listeners cannot share an address.
    #[error("{address} is already the address of {other}")]
    AddressTaken {
        /// The address.
        address: String,
        /// Who has it, and where.
        other: String,
    },
    /// An identity is needed and not configured.
    #[error("{what} needs an identity; add `identity = {{ files = \"DIR\" }}` to [workload]")]
    NoIdentity {
        /// What needs it.
        what: &'static str,
    },
    /// A listener can have one kind of TLS.
    #[error("a listener has either `mtls = \"strict\"` or `tls`: the first shows the SVID and demands the peer's")]
    TwoKindsOfTls,
    /// A listener that sends everybody away forwards nothing.
    #[error("a listener that redirects forwards nothing: leave `{0}` out, or put it on the listener with `tls`")]
    RedirectWith(&'static str),
    /// A route names a listener that redirects.
    #[error("listener \"{0}\" redirects everything, so no route applies there")]
    ListenerRedirects(String),
    /// Only requests can be redirected.
    #[error("only requests can be redirected, and this listener's protocol is \"{0}\"")]
    RedirectOfBytes(&'static str),
    /// What is said of TLS to clients of everywhere, on a listener that shows them no certificate.
    #[error("is for a listener with `tls`{0}")]
    NeedsTls(&'static str),
    /// The lists of browsers take no less.
    #[error("browsers' lists take only `include_subdomains = true` and at least 365d of `max_age`")]
    HstsPreload,
    /// A proxy that no connection on this listener is from.
    #[error("\"{proxy}\" never connects: {why}")]
    NeverConnects {
        /// As written.
        proxy: ProxyAt,
        /// Why not, and what to write.
        why: &'static str,
    },
    /// A certificate that a listener names is not loaded.
    #[error("certificate {0} is not loaded")]
    CertificateNotLoaded(String),
    /// A list is longer than it may be.
    #[error("is a list of {found}; at most {max} are possible")]
    TooManyItems {
        /// The most.
        max: usize,
        /// How many there are.
        found: usize,
    },
    /// An identity is configured, but could not be loaded.
    #[error("{what} needs the identity in {directory}, which is not loaded")]
    IdentityNotLoaded {
        /// What needs it.
        what: &'static str,
        /// Where it should be.
        directory: String,
    },
    /// The SVID names another workload than the file.
    #[error("the SVID is that of {found}, but this is {expected}; issue the right one, or set `id` in [workload]")]
    WrongIdentity {
        /// The ID in the certificate.
        found: String,
        /// The ID in the config.
        expected: String,
    },
    /// A short name needs a trust domain to be short in.
    #[error("\"{0}\" needs a trust domain; set `trust_domain` in [mesh]")]
    NoTrustDomain(String),
    /// No SPIFFE ID.
    #[error("\"{text}\" is no identity; write NAME, NAMESPACE/NAME or spiffe://DOMAIN/PATH ({error})")]
    NotAnIdentity {
        /// As written.
        text: String,
        /// Why not.
        error: spiffe::Error,
    },
    /// The trust bundle holds the own trust domain only, so a foreign peer is never admitted.
    #[error("{id} is not of the trust domain \"{trust_domain}\", and others are not trusted")]
    ForeignTrustDomain {
        /// The ID.
        id: String,
        /// Ours.
        trust_domain: String,
    },
    /// All traffic goes to one service already.
    #[error(
        "listener \"{listener}\" sends everything to service \"{service}\" (line {line}), so no route applies there"
    )]
    ListenerHasService {
        /// The listener.
        listener: String,
        /// Its service.
        service: String,
        /// Where it says so.
        line: u32,
    },
    /// A listener that passes TLS on cannot end it.
    #[error(
        "a tls listener passes TLS on unopened and so shows no certificate; to end TLS here, say what is inside: protocol \"http\" or \"tcp\""
    )]
    TlsEnded,
    /// A TCP listener knows no hosts and paths, so it cannot choose a route.
    #[error("a tcp listener needs `service`: there is no host to route by")]
    TcpWithoutService,
    /// Requests of many clients share a connection, whose header tells of one.
    #[error(
        "a connection of HTTP/2 serves many clients, and a PROXY header tells of one; leave `proxy_protocol` out or set \"http\""
    )]
    ProxyProtocolOnHttp2,
    /// gRPC is spoken in HTTP/2 alone.
    #[error("a check by gRPC needs an endpoint of HTTP/2; set `protocol = \"http2\"`, or check by \"http\" or \"tcp\"")]
    GrpcCheckNeedsHttp2,
    /// There are no endpoints that could be asked.
    #[error("a service that goes to the original destination has no endpoints to check; leave it out")]
    NothingToCheck,
    /// An HTTP listener has nowhere to send anything.
    #[error("no route applies to it and it has no `service`; add one of them")]
    NoTarget,
    /// A listener that detects the protocol, but has a place for one only.
    #[error("only {0} have somewhere to go: add routes for the others or a `service`, or set the protocol to \"{1}\"")]
    NothingToDetect(&'static str, &'static str),
    /// Routes match HTTP.
    #[error("listener \"{0}\" is a tcp one, which has no hosts to route by; set its `service` instead")]
    RouteOnTcp(String),
    /// A route of one protocol on a listener of another.
    #[error("listener \"{listener}\" takes {takes}, and this route is for {routes}; set the route's `protocol`")]
    RouteProtocol {
        /// The listener.
        listener: String,
        /// What comes in there.
        takes: &'static str,
        /// What the route is for.
        routes: &'static str,
    },
    /// Nothing but the ClientHello is read of TLS that is passed on.
    #[error("{0} cannot be seen in TLS that is passed on unopened; only `alpn` can be matched")]
    NotInTls(&'static str),
    /// A request has no ALPN.
    #[error("`alpn` is matched by a route with `protocol = \"tls\"`, which passes TLS on unopened")]
    AlpnOfRequest,
    /// No listener is left for the route.
    #[error("no {0} listener without a `service` of its own is left for this route")]
    RouteWithoutListener(&'static str),
    /// Two routes claim the same requests.
    #[error("host \"{host}\"{} is already routed by route \"{other}\" (line {line})", on(listener.as_deref()))]
    HostTaken {
        /// The host.
        host: String,
        /// The listener where both apply. None: all of them.
        listener: Option<String>,
        /// The other route.
        other: String,
        /// Its line.
        line: u32,
    },
    /// Where shall requests go?
    #[error(
        "has neither `to` nor a [[route.rule]], and no service is named like its first host \"{0}\"; say `to = \"SERVICE\"`"
    )]
    RouteWithoutTarget(String),
    /// A rule that can never be the one.
    #[error("is never reached: the rule in line {0} matches the same requests and comes first")]
    Unreachable(u32),
    /// A split of nothing.
    #[error("the weights sum to 0, so no request could go anywhere; give at least one service a weight above 0")]
    NoWeight,
    /// An HTTP request to a service that does not speak it.
    #[error("service \"{0}\" speaks tcp, so requests cannot be sent to it")]
    HttpToTcp(String),
    /// A policy that its listener cannot enforce.
    #[error("cannot be enforced: listener \"{listener}\" {why}")]
    Unenforceable {
        /// The listener.
        listener: String,
        /// What it lacks, and what to do.
        why: &'static str,
    },
}
