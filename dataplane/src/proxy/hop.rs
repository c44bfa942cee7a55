//! What this proxy does as one hop of several, whatever the version of HTTP: who asked first (`Forwarded`, RFC 7239, and
//! its older kin), `Via`, `Max-Forwards`, and which requests may become tunnels (RFC 9110 section 7.6).
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::io::Write as _;
use std::net::IpAddr;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use ringmesh_codec::authority;
use ringmesh_codec::head::{Head, Version};
use ringmesh_codec::http1::{ClientFields, Edits};
pub use ringmesh_codec::name::tells_of_client;
use ringmesh_model::hop::{Connect, Forwarded, Hop, Write};

use crate::outcome::Reason;

/// Longest list of earlier hops that ours is written behind, in one line. What a peer can make longer goes on as it came,
/// with a line of our own after it, which means the same (RFC 9110 section 5.3).
const MAX_JOINED_BYTES: usize = 1024;

/// Takes the changes of a head. Names and values are right as fields.
pub trait Fields {
    /// Puts one field in place of all of that name.
    fn set(&mut self, name: &str, value: &[u8]);
    /// Adds a field after all others.
    fn append(&mut self, name: &str, value: &[u8]);
    /// Leaves out all that [tell of the client](tells_of_client) and have come in.
    fn forget_client(&mut self);
}

impl Fields for Edits {
    fn set(&mut self, name: &str, value: &[u8]) {
        let set = self.set(name, value);
        debug_assert!(set.is_ok(), "{name} is no field of one connection");
    }

    fn append(&mut self, name: &str, value: &[u8]) {
        let appended = self.append(name, value);
        debug_assert!(appended.is_ok(), "{name} is no field of one connection");
    }

    fn forget_client(&mut self) {
        self.set_client_fields(ClientFields::Drop);
    }
}

/// Of HTTP/2. What cannot be a field there was none that came, and more than it can hold the limits of heads refuse.
impl Fields for HeaderMap {
    fn set(&mut self, name: &str, value: &[u8]) {
        let set = field(name, value).is_some_and(|(name, value)| self.try_insert(name, value).is_ok());
        debug_assert!(set, "{name} is a field, and there is room for it");
    }

    fn append(&mut self, name: &str, value: &[u8]) {
        let appended = field(name, value).is_some_and(|(name, value)| self.try_append(name, value).is_ok());
        debug_assert!(appended, "{name} is a field, and there is room for it");
    }

    fn forget_client(&mut self) {
        let tells = |name: &&HeaderName| tells_of_client(name.as_str().as_bytes());
        let said: Vec<HeaderName> = self.keys().filter(tells).cloned().collect();
        said.iter().for_each(|name| drop(self.remove(name)));
    }
}

fn field(name: &str, value: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(value).ok()?))
}

/// Who has connected.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// Where from; None on a Unix socket.
    pub address: Option<IpAddr>,
    /// Whether it has proved an identity, so that its word counts.
    pub is_peer: bool,
    /// Whether through TLS.
    pub secure: bool,
}

/// Whether a hop writes into heads at all. Most do not, and then nobody looks at them.
#[inline]
pub fn writes(hop: &Hop) -> bool {
    hop.forwarded.is_some() || hop.via.is_some()
}

/// Whether a request of this method gets something written into its head.
pub fn writes_into(hop: &Hop, method: &[u8]) -> bool {
    writes(hop) || matches!(method, b"OPTIONS" | b"TRACE")
}

/// Whether a request may go on to another hop.
///
/// # Errors
/// It has been here before, came as far as it may, or asks for a tunnel where there is none.
#[inline]
pub fn admit(hop: &Hop, head: &impl Head) -> Result<(), Reason> {
    match head.method() {
        b"OPTIONS" | b"TRACE" | b"CONNECT" => admit_slowly(hop, head),
        _ if hop.via.is_some() => admit_slowly(hop, head),
        _ => Ok(()),
    }
}

#[cold]
fn admit_slowly(hop: &Hop, head: &impl Head) -> Result<(), Reason> {
    if hop.via.as_ref().is_some_and(|own| has_passed(own, head)) {
        return Err(Reason::LoopDetected);
    }
    match head.method() {
        b"CONNECT" if hop.connect == Connect::Off => Err(Reason::NotImplemented),
        // As the final recipient we know no TRACE, which would show a client what others have added on the way.
        b"TRACE" if max_forwards(head) == Some(0) => Err(Reason::NotImplemented),
        b"OPTIONS" if max_forwards(head) == Some(0) => Err(Reason::MaxForwards),
        _ => Ok(()),
    }
}

/// Whether `Via` has the proxy of that name.
fn has_passed(own: &str, head: &impl Head) -> bool {
    let mut found = false;
    head.for_each_field(&mut |name, value| {
        let mut hops = value.split(|byte| *byte == b',');
        let is_own = |hop: &[u8]| {
            let mut words = hop.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
            words.nth(1).is_some_and(|by| by.eq_ignore_ascii_case(own.as_bytes()))
        };
        found |= name.eq_ignore_ascii_case(b"via") && hops.any(is_own);
    });
    found
}

/// How many hops may follow (RFC 9110 section 7.6.2). None: any number, or it is no number.
fn max_forwards(head: &impl Head) -> Option<u32> {
    let digits = head.field("max-forwards").filter(|digits| !digits.is_empty())?;
    digits.iter().try_fold(0_u32, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u32::from(digit - b'0'))?;
        Some(number.saturating_mul(10).saturating_add(digit))
    })
}

/// Whether a request that asks for these protocols may go on asking: for all of them, since a service chooses.
pub fn may_upgrade<'a>(hop: &Hop, mut protocols: impl Iterator<Item = &'a [u8]>) -> bool {
    let allowed = |protocol: &[u8]| hop.upgrade.iter().any(|one| protocol.eq_ignore_ascii_case(one.as_bytes()));
    protocols.next().is_some_and(allowed) && protocols.all(allowed)
}

/// Writes what the next hop should know into a request's head. `text` is storage.
pub fn write_request(
    hop: &Hop,
    client: Client,
    version: &str,
    head: &impl Head,
    text: &mut Vec<u8>,
    fields: &mut impl Fields,
) {
    if let Some(forwarded) = &hop.forwarded {
        write_forwarded(forwarded, client, head, text, fields);
    }
    if let Some(own) = &hop.via {
        write_via(own, version, |visit| head.for_each_field(visit), text, fields);
    }
    if matches!(head.method(), b"OPTIONS" | b"TRACE")
        && let Some(left) = max_forwards(head)
    {
        text.clear();
        push(text, format_args!("{}", left.saturating_sub(1)));
        fields.set("Max-Forwards", text);
    }
}

/// Writes what the hop before should know into a response's head: `Via`. `each` shows its fields.
pub fn write_response(
    hop: &Hop,
    version: &str,
    each: impl Fn(&mut dyn FnMut(&[u8], &[u8])),
    text: &mut Vec<u8>,
    fields: &mut impl Fields,
) {
    if let Some(own) = &hop.via {
        write_via(own, version, each, text, fields);
    }
}

/// How a version stands in `Via`.
pub fn received(version: Version) -> &'static str {
    match version {
        Version::Http10 => "1.0",
        Version::Http11 => "1.1",
    }
}

/// How a version stands in `Via`, as the library tells it.
pub fn received_as(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_2 => HTTP2,
        http::Version::HTTP_10 => received(Version::Http10),
        _ => received(Version::Http11),
    }
}

/// How HTTP/2 stands in `Via`.
pub const HTTP2: &str = "2";

fn write_via(
    own: &str,
    version: &str,
    each: impl Fn(&mut dyn FnMut(&[u8], &[u8])),
    text: &mut Vec<u8>,
    fields: &mut impl Fields,
) {
    let joined = join("Via", each, text);
    push(text, format_args!("{version} {own}"));
    add("Via", joined, text, fields);
}

fn write_forwarded(
    forwarded: &Forwarded,
    client: Client,
    head: &impl Head,
    text: &mut Vec<u8>,
    fields: &mut impl Fields,
) {
    let trusted = |address: IpAddr| forwarded.trust.iter().any(|network| network.contains(address));
    let believed = client.is_peer || client.address.is_none_or(trusted);
    if !believed {
        fields.forget_client();
    }
    let address = client.address.map(|address| address.to_canonical());
    let proto = if client.secure { "https" } else { "http" };
    let host = head.authority().filter(|host| authority::parse(host).is_ok());
    let each = |visit: &mut dyn FnMut(&[u8], &[u8])| {
        if believed {
            head.for_each_field(visit);
        }
    };
    if matches!(forwarded.write, Write::XForwarded | Write::Both) {
        if let Some(address) = address {
            let joined = join("X-Forwarded-For", each, text);
            push(text, format_args!("{address}"));
            add("X-Forwarded-For", joined, text, fields);
        }
        // The first hop has seen what the client wanted.
        let has = |name: &str| believed && head.field(name).is_some();
        if !has("X-Forwarded-Proto") {
            fields.set("X-Forwarded-Proto", proto.as_bytes());
        }
        if let Some(host) = host
            && !has("X-Forwarded-Host")
        {
            fields.set("X-Forwarded-Host", host);
        }
    }
    if matches!(forwarded.write, Write::Forwarded | Write::Both) {
        let joined = join("Forwarded", each, text);
        match address {
            Some(IpAddr::V4(address)) => push(text, format_args!("for={address}")),
            Some(IpAddr::V6(address)) => push(text, format_args!("for=\"[{address}]\"")),
            None => text.extend_from_slice(b"for=unknown"),
        }
        if let Some(host) = host {
            // A colon or a bracket is no part of a token.
            let quote: &[u8] = if host.iter().any(|byte| b":[".contains(byte)) { b"\"" } else { b"" };
            [b";host=", quote, host, quote].iter().for_each(|part| text.extend_from_slice(part));
        }
        push(text, format_args!(";proto={proto}"));
        add("Forwarded", joined, text, fields);
    }
}

/// Whether a list could be joined.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Joined {
    /// It stands in the text, ready for another element.
    Whole,
    /// It is too long; the text is empty.
    TooLong,
}

/// Joins the lines of a list into an empty text.
fn join(list: &str, each: impl Fn(&mut dyn FnMut(&[u8], &[u8])), text: &mut Vec<u8>) -> Joined {
    text.clear();
    let mut joined = Joined::Whole;
    each(&mut |name, value| {
        if joined == Joined::TooLong || value.is_empty() || !name.eq_ignore_ascii_case(list.as_bytes()) {
            return;
        }
        if text.len() + value.len() > MAX_JOINED_BYTES {
            text.clear();
            joined = Joined::TooLong;
            return;
        }
        text.extend_from_slice(value);
        text.extend_from_slice(b", ");
    });
    joined
}

fn add(name: &str, joined: Joined, text: &[u8], fields: &mut impl Fields) {
    match joined {
        Joined::Whole => fields.set(name, text),
        Joined::TooLong => fields.append(name, text),
    }
}

fn push(text: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("writing to memory never fails");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ringmesh_model::network::Network;

    use super::*;

    /// A request as lists of fields.
    struct Request(&'static [u8], Vec<(&'static str, String)>);

    impl Head for Request {
        fn method(&self) -> &[u8] {
            self.0
        }
        fn target(&self) -> &[u8] {
            b"/"
        }
        fn path(&self) -> &[u8] {
            b"/"
        }
        fn authority(&self) -> Option<&[u8]> {
            self.field("host")
        }
        fn field(&self, name: &str) -> Option<&[u8]> {
            self.1.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_bytes())
        }
        fn for_each_field(&self, visit: &mut dyn FnMut(&[u8], &[u8])) {
            self.1.iter().for_each(|(name, value)| visit(name.as_bytes(), value.as_bytes()));
        }
    }

    /// A head after its changes, names in lower case.
    #[derive(Default)]
    struct Written(BTreeMap<String, Vec<String>>);

    impl Fields for Written {
        fn set(&mut self, name: &str, value: &[u8]) {
            self.0.remove(&name.to_ascii_lowercase());
            self.append(name, value);
        }
        fn append(&mut self, name: &str, value: &[u8]) {
            let value = String::from_utf8_lossy(value).into_owned();
            self.0.entry(name.to_ascii_lowercase()).or_default().push(value);
        }
        fn forget_client(&mut self) {
            self.0.retain(|name, _| !tells_of_client(name.as_bytes()));
        }
    }

    fn forwarded(write: Write) -> Hop {
        let trust = vec![Network::new("10.0.0.0".parse().unwrap(), 8).unwrap()];
        Hop { forwarded: Some(Forwarded { trust, write }), ..Hop::default() }
    }

    fn from(address: &str) -> Client {
        Client { address: address.parse().ok(), is_peer: false, secure: false }
    }

    /// What a request's fields become, without Host.
    fn written(hop: &Hop, client: Client, method: &'static [u8], came: &[(&'static str, &str)]) -> String {
        let mut fields: Vec<_> = vec![("Host", "shop:80".to_owned())];
        fields.extend(came.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let mut written = Written::default();
        fields.iter().for_each(|(name, value)| written.append(name, value.as_bytes()));
        write_request(hop, client, "1.1", &Request(method, fields), &mut Vec::new(), &mut written);
        written.0.remove("host");
        let lines =
            written.0.iter().flat_map(|(name, values)| values.iter().map(move |value| format!("{name}: {value}")));
        lines.collect::<Vec<_>>().join("\n")
    }

    const SPOOFED: [(&str, &str); 8] = [
        ("Forwarded", "for=1.1.1.1"),
        ("x-forwarded-for", "1.1.1.1"),
        ("X-FORWARDED-PROTO", "https"),
        ("X-Forwarded-Host", "bank"),
        ("X-Forwarded-Client-Cert", "By=me"),
        ("X_Forwarded_For", "1.1.1.1"),
        ("X-Real-IP", "1.1.1.1"),
        ("X-Forwarder", "a name like theirs"),
    ];

    #[test]
    fn what_strangers_say_of_the_client_is_left_out_and_written_anew() {
        let client = from("192.0.2.7");
        let kept = "x-forwarder: a name like theirs";
        let x = "x-forwarded-for: 192.0.2.7\nx-forwarded-host: shop:80\nx-forwarded-proto: http\n";
        let one = "forwarded: for=192.0.2.7;host=\"shop:80\";proto=http\n";
        assert_eq!(written(&forwarded(Write::XForwarded), client, b"GET", &SPOOFED), format!("{x}{kept}"));
        assert_eq!(written(&forwarded(Write::Forwarded), client, b"GET", &SPOOFED), format!("{one}{kept}"));
        assert_eq!(written(&forwarded(Write::Both), client, b"GET", &SPOOFED), format!("{one}{x}{kept}"));
        assert_eq!(written(&forwarded(Write::None), client, b"GET", &SPOOFED), kept);
    }

    #[test]
    fn what_trusted_hops_say_is_kept_and_added_to() {
        let came = [
            ("X-Forwarded-For", "192.0.2.7"),
            ("x-forwarded-for", "10.0.0.1"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "public"),
            ("Forwarded", "for=192.0.2.7;proto=https"),
        ];
        let expected = "forwarded: for=192.0.2.7;proto=https, for=10.9.9.9;host=\"shop:80\";proto=http\n\
                        x-forwarded-for: 192.0.2.7, 10.0.0.1, 10.9.9.9\nx-forwarded-host: public\nx-forwarded-proto: https";
        for client in [from("10.9.9.9"), from("::ffff:10.9.9.9")] {
            assert_eq!(written(&forwarded(Write::Both), client, b"GET", &came), expected);
        }
        let peer = Client { is_peer: true, secure: true, ..from("2001:db8::1") };
        let expected = "forwarded: for=\"[2001:db8::1]\";host=\"shop:80\";proto=https";
        assert_eq!(written(&forwarded(Write::Forwarded), peer, b"GET", &[]), expected);
        let local = Client { address: None, ..peer };
        let expected = "forwarded: for=unknown;host=\"shop:80\";proto=https\nx-forwarded-host: public\n\
                        x-forwarded-proto: https";
        assert_eq!(written(&forwarded(Write::Both), local, b"GET", &[("X-Forwarded-Host", "public")]), expected);
    }

    #[test]
    fn a_list_that_is_too_long_to_join_gets_a_line_of_its_own_behind_it() {
        let long = "192.0.2.7, ".repeat(100);
        let came = [("X-Forwarded-For", long.as_str())];
        let hop = forwarded(Write::XForwarded);
        assert!(
            written(&hop, from("10.9.9.9"), b"GET", &came)
                .starts_with(&format!("x-forwarded-for: {long}\nx-forwarded-for: 10.9.9.9\n"))
        );
        assert!(written(&hop, from("192.0.2.8"), b"GET", &came).starts_with("x-forwarded-for: 192.0.2.8\n"));
    }

    #[test]
    fn via_grows_by_our_name_and_a_request_that_has_it_is_in_a_loop() {
        let hop = Hop { via: Some("edge-1".into()), ..Hop::default() };
        let client = from("192.0.2.7");
        assert_eq!(written(&hop, client, b"GET", &[]), "via: 1.1 edge-1");
        let came = [("Via", "1.0 a, 2 b"), ("via", "1.1 c (edge-1)")];
        assert_eq!(written(&hop, client, b"GET", &came), "via: 1.0 a, 2 b, 1.1 c (edge-1), 1.1 edge-1");
        let admitted = |method, via: &str| admit(&hop, &Request(method, vec![("Via", via.to_owned())]));
        for (via, expected) in [
            ("1.1 edge-1", Err(Reason::LoopDetected)),
            ("1.1 a, HTTP/1.1 EDGE-1 (comment)", Err(Reason::LoopDetected)),
            ("1.1 a,1.1\tedge-1", Err(Reason::LoopDetected)),
            ("1.1 edge-10, 1.1 a (edge-1), edge-1", Ok(())),
            ("", Ok(())),
        ] {
            assert_eq!(admitted(b"GET", via), expected, "{via}");
            assert_eq!(admitted(b"OPTIONS", via), expected, "{via}");
        }
        assert_eq!(admit(&Hop::default(), &Request(b"GET", vec![("Via", "1.1 edge-1".into())])), Ok(()));
    }

    #[test]
    fn max_forwards_counts_down_for_the_methods_that_trace_a_way() {
        let hop = Hop::default();
        let client = from("192.0.2.7");
        let rest = |method, left: &str| written(&hop, client, method, &[("Max-Forwards", left)]);
        for method in [&b"OPTIONS"[..], b"TRACE"] {
            assert_eq!(rest(method, "10"), "max-forwards: 9");
            assert_eq!(rest(method, "99999999999999999999"), format!("max-forwards: {}", u32::MAX - 1));
            for other in ["-1", "ten", "", "1 0"] {
                assert_eq!(rest(method, other), format!("max-forwards: {other}"));
            }
        }
        assert_eq!(rest(b"GET", "10"), "max-forwards: 10");
        let admitted = |method, left: &str| admit(&hop, &Request(method, vec![("Max-Forwards", left.to_owned())]));
        assert_eq!(admitted(b"OPTIONS", "0"), Err(Reason::MaxForwards));
        assert_eq!(admitted(b"TRACE", "00"), Err(Reason::NotImplemented));
        assert_eq!(admitted(b"GET", "0"), Ok(()));
        assert_eq!(admitted(b"OPTIONS", "1"), Ok(()));
    }

    #[test]
    fn only_what_is_allowed_may_be_changed_to_and_connect_only_where_it_is_on() {
        let hop = Hop { upgrade: vec!["websocket".into(), "irc/6.9".into()], ..Hop::default() };
        let may = |list: &str| may_upgrade(&hop, list.split(',').filter(|one| !one.is_empty()).map(str::as_bytes));
        assert!(may("websocket") && may("WebSocket") && may("irc/6.9,websocket"));
        assert!(!may("") && !may("h2c") && !may("websocket,h2c") && !may("h2c,websocket") && !may("websockets"));
        let connect = Request(b"CONNECT", Vec::new());
        assert_eq!(admit(&hop, &connect), Err(Reason::NotImplemented));
        for on in [Connect::Forward, Connect::Terminate] {
            assert_eq!(admit(&Hop { connect: on, ..hop.clone() }, &connect), Ok(()));
        }
    }
}
