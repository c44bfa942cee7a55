//! SPIFFE IDs (SPIFFE-ID standard, sections 2 and 4).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest SPIFFE ID, in bytes (SPIFFE-ID section 2.3).
pub const MAX_SPIFFE_ID_BYTES: usize = 2048;

/// Longest trust domain name, in bytes (SPIFFE-ID section 2.1).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// A valid SPIFFE ID: `spiffe://trust-domain/path`, with a path of at least one segment.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    text: String,
    /// Where the path begins (its slash).
    path: usize,
}

/// Why a text is no SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a `spiffe` URI.
    #[error("a SPIFFE ID begins with `spiffe://`")]
    Scheme,
    /// Longer than allowed.
    #[error("a SPIFFE ID has at most {MAX_SPIFFE_ID_BYTES} bytes")]
    TooLong,
    /// A trust domain is lower-case letters, digits, dots, dashes and underscores.
    #[error("trust domain `{0}` may hold lower-case letters, digits, `.`, `-` and `_` only, and at most 255 of them")]
    TrustDomain(String),
    /// There is no path: it names a trust domain, not a workload.
    #[error("it names no workload: a path such as /ns/default/sa/NAME is missing")]
    NoPath,
    /// A segment is empty, `.`, `..`, or holds other characters.
    #[error(
        "path segment `{0}` may hold letters, digits, `.`, `-` and `_` only, and be neither empty nor `.` nor `..`"
    )]
    Segment(String),
}

impl SpiffeId {
    /// The ID of a workload: `spiffe://domain/ns/namespace/sa/name`.
    ///
    /// # Errors
    /// If a part holds a character that is not allowed.
    pub fn workload(trust_domain: &str, namespace: &str, name: &str) -> Result<Self, Error> {
        if let Some(wrong) = [namespace, name].into_iter().find(|segment| !is_segment(segment)) {
            return Err(Error::Segment(wrong.to_owned()));
        }
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{name}").parse()
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its trust domain, without scheme.
    pub fn trust_domain(&self) -> &str {
        &self.text["spiffe://".len()..self.path]
    }

    /// Its path, with the leading slash.
    pub fn path(&self) -> &str {
        &self.text[self.path..]
    }

    /// The workload's name if the path has the usual form `/ns/NAMESPACE/sa/NAME`, else the whole ID.
    pub fn short(&self) -> &str {
        match self.path().split('/').collect::<Vec<_>>()[..] {
            ["", "ns", _, "sa", name] => name,
            _ => self.as_str(),
        }
    }
}

/// Checks a trust domain name.
///
/// # Errors
/// If it is empty, too long, or holds a character that is not allowed.
pub fn check_trust_domain(name: &str) -> Result<(), Error> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_');
    if name.is_empty() || name.len() > MAX_TRUST_DOMAIN_BYTES || !name.bytes().all(allowed) {
        return Err(Error::TrustDomain(name.to_owned()));
    }
    Ok(())
}

/// Whether a text may stand between two slashes of a SPIFFE ID's path (SPIFFE-ID section 2.2).
pub fn is_segment(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !text.is_empty() && text != "." && text != ".." && text.bytes().all(allowed)
}

impl FromStr for SpiffeId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.len() > MAX_SPIFFE_ID_BYTES {
            return Err(Error::TooLong);
        }
        let rest = text.strip_prefix("spiffe://").ok_or(Error::Scheme)?;
        let (domain, path) = rest.split_once('/').ok_or(Error::NoPath)?;
        check_trust_domain(domain)?;
        for segment in path.split('/') {
            if !is_segment(segment) {
                return Err(Error::Segment(segment.to_owned()));
            }
        }
        Ok(Self { text: text.to_owned(), path: "spiffe://".len() + domain.len() })
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.text
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<(&str, &str), Error>) {
        let found = text.parse::<SpiffeId>();
        assert_eq!(found.as_ref().map(|id| (id.trust_domain(), id.path())).map_err(Clone::clone), expected, "{text}");
    }

    #[test]
    fn ids_are_read_by_the_standards_rules() {
        check("spiffe://shop.example/ns/default/sa/web", Ok(("shop.example", "/ns/default/sa/web")));
        check("https://shop.example/a", Err(Error::Scheme));
        check("spiffe://shop.example", Err(Error::NoPath));
        check("spiffe://shop.example/", Err(Error::Segment(String::new())));
        check("spiffe://Shop/a", Err(Error::TrustDomain("Shop".into())));
        check("spiffe://shop:80/a", Err(Error::TrustDomain("shop:80".into())));
        check("spiffe://shop/a/../b", Err(Error::Segment("..".into())));
        check("spiffe://shop/a%20b", Err(Error::Segment("a%20b".into())));
        check("spiffe://shop/a?b", Err(Error::Segment("a?b".into())));
        check(&format!("spiffe://shop/{}", "a".repeat(2048)), Err(Error::TooLong));
    }

    #[test]
    fn a_workloads_name_is_one_segment() {
        let id = |namespace, name| SpiffeId::workload("shop", namespace, name).map(String::from);
        assert_eq!(id("default", "web"), Ok("spiffe://shop/ns/default/sa/web".into()));
        assert_eq!(id("default", "web/sa/payments"), Err(Error::Segment("web/sa/payments".into())));
        assert_eq!(id("a/b", "web"), Err(Error::Segment("a/b".into())));
    }

    #[test]
    fn the_short_name_is_the_service_account() {
        let short = |text: &str| text.parse::<SpiffeId>().map(|id| id.short().to_owned());
        assert_eq!(short("spiffe://shop/ns/default/sa/web"), Ok("web".into()));
        assert_eq!(short("spiffe://shop/web"), Ok("spiffe://shop/web".into()));
    }
}
