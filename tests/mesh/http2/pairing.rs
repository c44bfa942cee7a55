//! Every pairing of versions: what a client sends is what the service gets, and back, whichever version each speaks, plain,
//! by mutual TLS, or, on the client's side, by TLS that proves the server alone.

use std::net::SocketAddr;

use ringmesh_tests::certificates::{Authority, Svid};
use ringmesh_tests::http2::transport::Transport;
use ringmesh_tests::http2::{self, Connection, Ended, Outgoing};
use ringmesh_tests::message::Fields;
use ringmesh_tests::service::chunks;
use ringmesh_tests::tls::{self, client_config_offering};
use ringmesh_tests::{Client, Message, Service, on_both_drivers, ports};

use crate::support::{DOMAIN, identity, pattern, ringmesh};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Plain,
    Edge,
    Mutual,
}

const VERSIONS: [Version; 2] = [Version::One, Version::Two];
/// Ways to the proxy, and from it to services, which have identities or none.
const WAYS_IN: [Over; 3] = [Over::Plain, Over::Edge, Over::Mutual];
const WAYS_OUT: [Over; 2] = [Over::Plain, Over::Mutual];

/// Whether a head tells how long its body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Told,
    Untold,
}

/// One side's part of an exchange.
#[derive(Clone, Debug)]
struct Part {
    fields: &'static [(&'static str, &'static str)],
    body: Vec<u8>,
    length: Length,
    trailers: &'static [(&'static str, &'static str)],
}

impl Part {
    const NOTHING: Self = Self { fields: &[], body: Vec::new(), length: Length::Untold, trailers: &[] };

    fn of(bytes: usize, length: Length) -> Self {
        Self { body: pattern(bytes), length, ..Self::NOTHING }
    }

    /// Its fields and trailers as HTTP/2 sends them, behind these.
    fn outgoing(&self, first: Outgoing) -> Outgoing {
        let mut message = first.body(self.body.clone());
        for (name, value) in self.fields {
            message = message.with(name, value);
        }
        if self.length == Length::Told {
            message = message.with("content-length", &self.body.len().to_string());
        }
        self.trailers.iter().fold(message, |message, (name, value)| message.trailer(name, value))
    }

    /// The same as HTTP/1.1 sends it.
    fn written(&self, start: &str) -> Vec<u8> {
        let mut text = format!("{start}\r\n");
        for (name, value) in self.fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        let has_body = !self.body.is_empty() || !self.trailers.is_empty();
        match (self.length, has_body) {
            (Length::Told, _) => text.push_str(&format!("content-length: {}\r\n\r\n", self.body.len())),
            (Length::Untold, true) => text.push_str("transfer-encoding: chunked\r\n\r\n"),
            (Length::Untold, false) => text.push_str("\r\n"),
        }
        let mut bytes = text.into_bytes();
        if self.length == Length::Told {
            bytes.extend_from_slice(&self.body);
        } else if has_body {
            let trailers: String = self.trailers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            chunks(&self.body, 7_000, &trailers, &mut bytes);
        }
        bytes
    }

    #[track_caller]
    fn check(&self, came: &Message, what: &str) {
        assert!(came.body == self.body, "{what}: {} bytes came, not {}", came.body.len(), self.body.len());
        for (name, value) in self.fields {
            assert_eq!(came.field(name), Some(*value), "{what}: {:?}", came.head);
        }
        let trailers: Vec<(&str, &str)> = http2::borrowed(&came.trailers);
        let trailers: Vec<_> = trailers.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect();
        let expected: Vec<_> = self.trailers.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        assert_eq!(trailers, expected, "{what}");
    }
}

/// An exchange, named by its path.
#[derive(Clone, Debug)]
struct Case {
    path: &'static str,
    method: &'static str,
    asked: Part,
    interim: Option<(u16, &'static [(&'static str, &'static str)])>,
    status: u16,
    answered: Part,
}

const TRAILERS: &[(&str, &str)] = &[("x-checksum", "abc"), ("grpc-status", "0")];

fn cases() -> Vec<Case> {
    use Length::{Told, Untold};
    let get = |path, answered| Case { path, method: "GET", asked: Part::NOTHING, interim: None, status: 200, answered };
    let post = |path, asked, answered| Case { method: "POST", asked, ..get(path, answered) };
    let empty = || Part::of(0, Told);
    vec![
        get("/nothing", empty()),
        get("/told", Part::of(10, Told)),
        get("/untold", Part::of(10, Untold)),
        get("/large", Part::of(300_000, Told)),
        get("/large-untold", Part::of(300_000, Untold)),
        get("/fields", Part { fields: &[("x-one", "1"), ("set-cookie", "a=b; Path=/")], ..Part::of(3, Told) }),
        get("/trailers", Part { trailers: TRAILERS, ..Part::of(100_000, Untold) }),
        post("/post", Part::of(10, Told), Part::of(10, Told)),
        post("/post-untold", Part::of(10, Untold), Part::of(10, Untold)),
        post("/post-empty", empty(), empty()),
        post("/post-large", Part::of(300_000, Told), Part::of(300_000, Told)),
        post("/post-large-untold", Part::of(300_000, Untold), Part::of(300_000, Untold)),
        post("/post-trailers", Part { trailers: TRAILERS, ..Part::of(70_000, Untold) }, Part::of(1, Told)),
        post(
            "/fields-of-post?query=%20&x",
            Part { fields: &[("cookie", "a=b; c=d"), ("x-two", "2")], ..empty() },
            empty(),
        ),
        Case { method: "PUT", ..post("/put", Part::of(1, Told), empty()) },
        Case { method: "DELETE", ..get("/delete", empty()) },
        Case { method: "OPTIONS", ..get("/options", empty()) },
        Case { method: "PROPFIND", ..get("/another-method", empty()) },
        Case { status: 204, ..get("/no-content", Part::NOTHING) },
        Case { status: 304, ..get("/not-modified", Part { fields: &[("etag", "\"x\"")], ..Part::NOTHING }) },
        Case { status: 404, ..get("/missing", Part::of(9, Told)) },
        Case { status: 503, ..get("/busy", Part { fields: &[("retry-after", "1")], ..Part::of(9, Untold) }) },
        Case { interim: Some((103, &[("link", "</a.css>; rel=preload")])), ..get("/early-hints", Part::of(5, Told)) },
    ]
}

fn case_of(request: &Message) -> Case {
    let path = request.head.request().1;
    cases().into_iter().find(|case| case.path == path).unwrap_or_else(|| panic!("nobody asks for {path}"))
}

fn answer_by_1(request: &Message) -> Vec<u8> {
    let case = case_of(request);
    let mut bytes = Vec::new();
    if let Some((status, fields)) = case.interim {
        bytes.extend(Part { fields, ..Part::NOTHING }.written(&format!("HTTP/1.1 {status} Interim")));
    }
    bytes.extend(case.answered.written(&format!("HTTP/1.1 {} Whatever", case.status)));
    bytes
}

fn answer_by_2(request: &Message) -> Outgoing {
    let case = case_of(request);
    let answer = case.answered.outgoing(Outgoing::status(case.status));
    match case.interim {
        Some((status, fields)) => answer.after(status, fields),
        None => answer,
    }
}

/// A service that knows the cases.
fn endpoint(version: Version, over: Over, svid: &Svid) -> Service {
    match (version, over) {
        (Version::One, Over::Plain) => Service::http(answer_by_1),
        (Version::One, Over::Mutual) => tls::service(svid, answer_by_1),
        (Version::Two, Over::Plain) => http2::service(answer_by_2),
        (Version::Two, Over::Mutual) => http2::tls_service(svid, answer_by_2),
        (_, Over::Edge) => unreachable!("none of the ways out"),
    }
}

/// A client of either version.
enum Caller {
    One(Client<Box<dyn Transport>>),
    Two(Box<Connection>),
}

impl Caller {
    fn connect(version: Version, over: Over, front: SocketAddr, svid: &Svid) -> Self {
        let shown = (over == Over::Mutual).then_some(svid);
        match (version, over) {
            (Version::One, Over::Plain) => {
                let stream: Box<dyn Transport> = Box::new(Client::connect(front).into_inner());
                Self::One(Client::over(stream))
            }
            (Version::One, _) => {
                let config = client_config_offering(shown, &[b"http/1.1"]);
                let stream: Box<dyn Transport> = Box::new(tls::connect(front, &config).unwrap().into_inner());
                assert_eq!(stream.protocol(), Some(&b"http/1.1"[..]));
                Self::One(Client::over(stream))
            }
            (Version::Two, Over::Plain) => Self::Two(Box::new(Connection::connect(front))),
            (Version::Two, _) => {
                let config = client_config_offering(shown, &[b"h2", b"http/1.1"]);
                Self::Two(Box::new(Connection::connect_tls(front, &config).unwrap()))
            }
        }
    }

    /// Asks, and gives interim answers and the answer.
    #[track_caller]
    fn exchange(&mut self, case: &Case, what: &str) -> (Vec<Fields>, Message) {
        match self {
            Self::One(client) => {
                let start =
                    format!("{} {} HTTP/1.1\r\nhost: app\r\nte: trailers\r\nconnection: te", case.method, case.path);
                client.send(case.asked.written(&start));
                let mut interim = Vec::new();
                loop {
                    let head = client.try_head().unwrap_or_else(|error| panic!("{what}: {error}"));
                    if head.status() >= 200 {
                        let answer = client.body_of(head, case.method);
                        return (interim, answer.unwrap_or_else(|error| panic!("{what}: {error}")));
                    }
                    interim.push([vec![(":status".to_owned(), head.status().to_string())], head.fields].concat());
                }
            }
            Self::Two(client) => {
                let request = Outgoing::request(case.method, "app", case.path).with("te", "trailers");
                let stream = client.request(&case.asked.outgoing(request));
                match client.ended(stream) {
                    Ok(Ended::Answer(answer)) => (client.stream(stream).interim.clone(), answer),
                    other => panic!("{what}: {other:?}"),
                }
            }
        }
    }
}

#[track_caller]
fn check(caller: &mut Caller, service: &Service, case: &Case, what: &str) {
    let (interim, answer) = caller.exchange(case, what);
    assert_eq!(answer.status(), case.status, "{what}: {answer:?}");
    case.answered.check(&answer, what);
    let statuses: Vec<_> = interim.iter().map(|fields| fields[0].1.clone()).collect();
    let expected: Vec<_> = case.interim.iter().map(|(status, _)| status.to_string()).collect();
    assert_eq!(statuses, expected, "{what}");
    for (fields, (_, sent)) in interim.iter().zip(&case.interim) {
        for (name, value) in *sent {
            let came = fields.iter().find(|(came, _)| came.eq_ignore_ascii_case(name));
            assert_eq!(came.map(|(_, value)| value.as_str()), Some(*value), "{what}");
        }
    }
    let got = service.last();
    assert_eq!(got.head.request(), (case.method, case.path), "{what}");
    assert_eq!(got.field(":authority").or(got.field("host")), Some("app"), "{what}: {:?}", got.head);
    case.asked.check(&got, what);
    if case.asked.length == Length::Told {
        assert_eq!(got.field("content-length"), Some(case.asked.body.len().to_string().as_str()), "{what}");
    }
    if case.answered.length == Length::Told {
        assert_eq!(answer.field("content-length"), Some(case.answered.body.len().to_string().as_str()), "{what}");
    }
}

#[test]
fn every_pairing_of_versions_plain_with_tls_and_with_mutual_tls_carries_every_kind_of_exchange() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let (caller, app) = (authority.svid("caller"), authority.svid("app"));
        let mut config = identity("web");
        let mut pairings = Vec::new();
        for version in VERSIONS {
            for over in WAYS_OUT {
                let service = endpoint(version, over, &app);
                let name = format!("by-{version:?}-{over:?}").to_lowercase();
                let peer = if over == Over::Mutual { "peer = \"app\"\n" } else { "" };
                let protocol = if version == Version::Two { "http2" } else { "http" };
                let address = service.address();
                let mut fronts = Vec::new();
                for inbound in WAYS_IN {
                    let front = ports::free();
                    let keys = match inbound {
                        Over::Plain => "",
                        Over::Edge => "tls = { certificate = \"edge/svid.pem\", key = \"edge/svid.key\" }\n",
                        Over::Mutual => "mtls = \"strict\"\n",
                    };
                    config.push_str(&format!(
                        "[[listener]]\nname = \"{name}-{inbound:?}\"\nbind = \"{front}\"\nservice = \"{name}\"\n{keys}"
                    ));
                    fronts.push((inbound, front));
                }
                let endpoints = format!(
                    "[[service]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\n{peer}endpoints = [\"{address}\"]\n"
                );
                config.push_str(&endpoints);
                pairings.push((name, service, fronts));
            }
        }
        let mut proxy = ringmesh(driver).config(config).prepare();
        authority.svid("web").write(&proxy.folder().join("svid"));
        authority.server(&["shop.example"]).write(&proxy.folder().join("edge"));
        proxy.run();
        let mut exchanges = 0;
        for (name, service, fronts) in &pairings {
            for (inbound, front) in fronts {
                for version in VERSIONS {
                    // All on one connection: what one exchange leaves behind would break the next.
                    let mut client = Caller::connect(version, *inbound, *front, &caller);
                    for case in cases() {
                        let what = format!("{version:?} over {inbound:?}, {name}, {} {}", case.method, case.path);
                        check(&mut client, service, &case, &what);
                        exchanges += 1;
                    }
                }
            }
            assert!(service.accepted() <= 2, "{name}: each worker uses its connection again");
        }
        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "ok")], exchanges);
    });
}

#[test]
fn an_answer_to_head_has_a_length_and_no_body_in_every_pairing() {
    on_both_drivers(|driver| {
        let one = Service::http(|_| "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
        let two = http2::service(|_| Outgoing::status(200).with("content-length", "1000"));
        for (service, protocol) in [(&one, "http"), (&two, "http2")] {
            let front = ports::free();
            let keys = format!("protocol = \"{protocol}\"\n");
            let config = crate::support::forwarding(front, &[service.address()], "", &keys);
            let _proxy = ringmesh(driver).config(config).start();
            let mut client = Client::connect(front);
            for _ in 0..3 {
                let answer = client.send("HEAD / HTTP/1.1\r\nHost: app\r\n\r\n").response_to("HEAD");
                assert_eq!((answer.status(), answer.field("content-length")), (200, Some("1000")), "by {protocol}");
            }
            let mut client = Connection::connect(front);
            for _ in 0..3 {
                let answer = client.exchange(&Outgoing::request("HEAD", "app", "/"));
                assert_eq!((answer.status(), answer.field("content-length")), (200, Some("1000")), "by {protocol}");
                assert!(answer.body.is_empty());
            }
        }
    });
}
