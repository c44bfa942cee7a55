//! What a `[[listener]]` says to clients of everywhere: where HTTPS is, that they shall keep to it, and which TLS they may speak.

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use crate::error::{Cause, Located};
use crate::reader::{Field, FromField, Keys, Section, Word, within};
use crate::snapshot::{Hsts, Redirect, RedirectStatus, TlsVersion};
use crate::unit::ByteSize;

/// Keys of `redirect` in a listener.
pub const REDIRECT_KEYS: Keys =
    Keys { path: "listener.redirect", header: "`redirect` of [[listener]]", names: &["port", "status"] };

/// Keys of `hsts` in a listener.
pub const HSTS_KEYS: Keys = Keys {
    path: "listener.hsts",
    header: "`hsts` of [[listener]]",
    names: &["max_age", "include_subdomains", "preload"],
};

/// Where browsers look for HTTPS. It is the port that clients see, which need not be the one that a listener binds.
pub const DEFAULT_REDIRECT_PORT: u32 = 443;

/// A redirect that keeps method and body (RFC 9110 section 15.4.9).
pub const DEFAULT_REDIRECT_STATUS: u32 = 308;

/// TLS 1.2 is for clients that have nothing newer: it shows the certificate to everybody who listens, takes a round trip more,
/// and has been broken in more ways.
pub const DEFAULT_TLS_MIN_VERSION: TlsVersion = TlsVersion::Tls13;

/// A host's subdomains may be served by others, over plain HTTP.
pub const DEFAULT_INCLUDE_SUBDOMAINS: bool = false;

/// Browsers' built-in lists are slow to forget: who wants to be in them says so.
pub const DEFAULT_PRELOAD: bool = false;

/// Longest that browsers are told to remember HTTPS: a bound for mistakes, which nobody can take back.
pub const MAX_HSTS: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Least that <https://hstspreload.org> takes.
pub const MIN_PRELOAD: Duration = Duration::from_secs(365 * 24 * 3600);
const _: () = assert!(MIN_PRELOAD.as_secs() <= MAX_HSTS.as_secs());

/// Most connections of a source that can be asked for: a bound for mistakes.
pub const MAX_MAX_CONNECTIONS_PER_SOURCE: u32 = 1_000_000;

/// Most handshakes that can be asked for: a bound for mistakes.
pub const MAX_MAX_HANDSHAKES: u32 = 1_000_000;

/// Largest body that can be asked for: a bound for mistakes. Whoever wants more wants none.
pub const MAX_MAX_BODY: ByteSize = ByteSize(1 << 50);

/// What one listener says.
#[derive(Clone, Debug, PartialEq)]
pub struct Edge {
    /// Sends all requests to HTTPS. None: they are forwarded.
    pub redirect: Option<Located<Redirect>>,
    /// Tells browsers to keep to HTTPS. None: nothing is told.
    pub hsts: Option<Located<Hsts>>,
    /// The oldest version of TLS.
    pub tls_min_version: Located<TlsVersion>,
    /// Most open connections of one source. None: no limit.
    pub max_connections_per_source: Option<NonZeroU32>,
    /// Most handshakes under way. None: no limit.
    pub max_handshakes: Option<Located<NonZeroU32>>,
    /// Largest body of a request. None: no limit.
    pub max_body: Option<ByteSize>,
}

impl Edge {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let place = section.field("tls_min_version").map_or(section.place(), |field| field.place());
        let version = Located { value: section.word("tls_min_version", DEFAULT_TLS_MIN_VERSION), place };
        let per_source = section.number_or_off("max_connections_per_source", None, 1, MAX_MAX_CONNECTIONS_PER_SOURCE);
        Self {
            redirect: section.field("redirect").and_then(|field| redirect(&field)),
            hsts: section.field("hsts").and_then(|field| hsts(&field)),
            tls_min_version: version,
            max_connections_per_source: per_source.and_then(NonZeroU32::new),
            max_handshakes: max_handshakes(section),
            max_body: section.ranged_or_off("max_body", None, ByteSize(0), MAX_MAX_BODY),
        }
    }
}

fn max_handshakes(section: &Section<'_>) -> Option<Located<NonZeroU32>> {
    let max = section.number_or_off("max_handshakes", None, 1, MAX_MAX_HANDSHAKES).and_then(NonZeroU32::new)?;
    Some(Located { value: max, place: section.field("max_handshakes")?.place() })
}

/// `"https"`, or a table that says more.
fn redirect(field: &Field<'_>) -> Option<Located<Redirect>> {
    const EXPECTED: &str = "\"https\", or a table such as { port = 8443 }";
    let place = field.place();
    if !field.is_table() {
        return match field.expect_text(EXPECTED)? {
            "https" => Some(Located { value: Redirect::default(), place }),
            other => {
                field.refuse(Cause::WrongText { expected: EXPECTED, found: other.to_owned() });
                None
            }
        };
    }
    let table = field.section(&REDIRECT_KEYS, EXPECTED)?;
    let port = table.number("port", DEFAULT_REDIRECT_PORT, 1, u32::from(u16::MAX));
    let port = u16::try_from(port).ok().and_then(NonZeroU16::new)?;
    let status = match table.number("status", DEFAULT_REDIRECT_STATUS, 100, 599) {
        301 => RedirectStatus::MovedPermanently,
        308 => RedirectStatus::PermanentRedirect,
        other => {
            let found = other.to_string();
            let expected = "308, which keeps the method, or 301, which old clients know";
            table.field("status").as_ref().unwrap_or(field).refuse(Cause::WrongText { expected, found });
            return None;
        }
    };
    Some(Located { value: Redirect { port, status }, place })
}

/// A duration, or a table that says more.
fn hsts(field: &Field<'_>) -> Option<Located<Hsts>> {
    let place = field.place();
    if !field.is_table() {
        let max_age = within(field, Duration::from_field(field)?, Duration::ZERO, MAX_HSTS)?;
        return Some(Located { value: Hsts { max_age, include_subdomains: false, preload: false }, place });
    }
    let table = field.section(&HSTS_KEYS, "a duration such as \"365d\", or a table such as { max_age = \"365d\" }")?;
    let Some(max_age) = table.ranged_or_none("max_age", Duration::ZERO, MAX_HSTS) else {
        if table.field("max_age").is_none() {
            table.miss("max_age", "max_age = \"365d\"");
        }
        return None;
    };
    let include_subdomains = table.or("include_subdomains", DEFAULT_INCLUDE_SUBDOMAINS);
    let preload = table.or("preload", DEFAULT_PRELOAD);
    if preload && (!include_subdomains || max_age < MIN_PRELOAD) {
        table.field("preload").as_ref().unwrap_or(field).refuse(Cause::HstsPreload);
        return None;
    }
    Some(Located { value: Hsts { max_age, include_subdomains, preload }, place })
}

impl Word for TlsVersion {
    const WORDS: &'static [(&'static str, Self)] = &[("1.2", Self::Tls12), ("1.3", Self::Tls13)];
}
