//! What the edge tells clients of HTTPS: to come by it, and to keep to it.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use http::HeaderMap;
use http::header::{HeaderValue, STRICT_TRANSPORT_SECURITY};
use ringmesh_codec::authority;
use ringmesh_codec::head::Head;
use ringmesh_model::snapshot::Redirect;

use crate::outcome::Reason;
use crate::tables::{Listener, Target};

/// The field that tells clients to keep to HTTPS (RFC 6797 section 6.1).
pub const HSTS: &str = "strict-transport-security";

/// What a request to a listener that redirects ends in.
pub fn outcome(head: &impl Head) -> Reason {
    match head.authority().map(authority::parse) {
        // Its target is another host, which HTTPS would not change.
        _ if head.method() == b"CONNECT" => Reason::NotImplemented,
        Some(Ok(_)) => Reason::Redirected,
        _ => Reason::BadRequest,
    }
}

/// An answer that sends its client elsewhere.
#[derive(Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// Its status.
    pub status: u16,
    /// Its Location.
    pub location: String,
}

/// Where the client of a request is sent, if it ends so.
pub fn elsewhere(reason: Reason, listener: &Listener, head: &impl Head) -> Option<Elsewhere> {
    match (reason, &listener.target) {
        (Reason::Redirected, Target::Redirect(to)) => {
            Some(Elsewhere { status: to.status.code(), location: location(*to, head)? })
        }
        _ => None,
    }
}

/// The same resource by HTTPS. It has only bytes that the codec lets pass: no control characters, nothing above ASCII.
fn location(to: Redirect, head: &impl Head) -> Option<String> {
    let host = std::str::from_utf8(authority::parse(head.authority()?).ok()?.host).ok()?;
    // Of the server as a whole, the URI has no path (RFC 9110 section 7.1).
    let target = match head.target() {
        b"*" => "",
        target => std::str::from_utf8(target).ok()?,
    };
    Some(match to.port.get() {
        443 => format!("https://{host}{target}"),
        port => format!("https://{host}:{port}{target}"),
    })
}

/// Says in an HTTP/2 head what the listener says of HTTPS, in place of what an endpoint has said.
pub fn tell_hsts(listener: &Listener, fields: &mut HeaderMap) {
    // A value of its own: those that share their bytes count on all cores who has them.
    if let Some(Ok(value)) = listener.hsts.as_deref().map(HeaderValue::from_str) {
        fields.insert(STRICT_TRANSPORT_SECURITY, value);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use ringmesh_model::snapshot::RedirectStatus;

    use super::*;

    struct Request(&'static str, Option<&'static str>);

    impl Head for Request {
        fn method(&self) -> &[u8] {
            b"GET"
        }

        fn target(&self) -> &[u8] {
            self.0.as_bytes()
        }

        fn path(&self) -> &[u8] {
            self.0.split('?').next().unwrap_or_default().as_bytes()
        }

        fn authority(&self) -> Option<&[u8]> {
            self.1.map(str::as_bytes)
        }

        fn field(&self, _name: &str) -> Option<&[u8]> {
            None
        }

        fn for_each_field(&self, _visit: &mut dyn FnMut(&[u8], &[u8])) {}
    }

    #[test]
    fn the_same_resource_is_named_by_https_with_the_port_of_the_config() {
        let check = |target, authority, port, expected| {
            let to = Redirect { port: NonZeroU16::new(port).unwrap(), status: RedirectStatus::PermanentRedirect };
            assert_eq!(location(to, &Request(target, Some(authority))).as_deref(), expected, "{authority} {target}");
        };
        check("/", "shop.example", 443, Some("https://shop.example/"));
        check("/a?b=c&d=%0d%0a", "shop.example:80", 443, Some("https://shop.example/a?b=c&d=%0d%0a"));
        check("/a", "shop.example:8080", 8443, Some("https://shop.example:8443/a"));
        check("/", "[::1]:80", 443, Some("https://[::1]/"));
        check("//evil.example/", "shop.example", 443, Some("https://shop.example//evil.example/"));
        check("*", "shop.example", 443, Some("https://shop.example"));
        check("/", "shop.example@evil.example", 443, None);
        check("/", "", 443, None);
    }

    #[test]
    fn who_names_no_host_is_told_so() {
        assert_eq!(outcome(&Request("/", Some("shop.example"))), Reason::Redirected);
        assert_eq!(outcome(&Request("/", Some(""))), Reason::BadRequest);
        assert_eq!(outcome(&Request("/", None)), Reason::BadRequest);
    }
}
