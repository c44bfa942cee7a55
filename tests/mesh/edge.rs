//! The edge: clients of everywhere, with ordinary TLS.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use ringmesh_tests::certificates::{Authority, Svid, Validity};
use ringmesh_tests::tls::{client_config, connect, connect_to};
use ringmesh_tests::{Client, Driver, Proxy, Service, eventually, on_both_drivers, ports};

use crate::support::{DOMAIN, ringmesh};

/// Writes a certificate and its key beside the config, as a renewing tool does: finished files are renamed into place.
pub(crate) fn write(folder: &Path, name: &str, certificate: &Svid) {
    for (file, text, mode) in
        [(format!("{name}.key"), &certificate.key, 0o600), (format!("{name}.pem"), &certificate.chain, 0o644)]
    {
        let new = folder.join(format!(".{file}.new"));
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(&new, folder.join(file)).unwrap();
    }
}

/// An edge whose port shows these certificates, named by their files.
pub(crate) fn edge(driver: Driver, app: SocketAddr, certificates: &[(&str, &Svid)], more: &str) -> (Proxy, SocketAddr) {
    let front = ports::free();
    let tables: Vec<String> = certificates
        .iter()
        .map(|(name, _)| format!("{{ certificate = \"{name}.pem\", key = \"{name}.key\" }}"))
        .collect();
    let config = format!(
        "[[listener]]\nname = \"front\"\nbind = \"{front}\"\ntls = [{}]\nservice = \"app\"\n\
         [[service]]\nname = \"app\"\nendpoints = [\"{app}\"]\n{more}",
        tables.join(", ")
    );
    let mut proxy = ringmesh(driver).config(config).prepare();
    for (name, certificate) in certificates {
        write(proxy.folder(), name, certificate);
    }
    proxy.run();
    (proxy, front)
}

/// The certificate that is shown to a client which asks for a name.
fn shown(front: SocketAddr, name: &'static str) -> Vec<u8> {
    let client = connect_to(front, name, &client_config(None)).unwrap();
    client.into_inner().conn.peer_certificates().unwrap()[0].to_vec()
}

#[test]
fn curl_reaches_a_service_over_tls_and_checks_whom_it_reached() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let (proxy, front) = edge(driver, app.address(), &[("shop", &authority.server(&["shop.example"]))], "");
        let root = proxy.folder().join("root.pem");
        fs::write(&root, authority.server(&["x.example"]).bundle).unwrap();
        let curl = |host: &str, options: &[&str]| {
            Command::new("curl")
                .args(["--silent", "--show-error", "--max-time", "10", "--cacert"])
                .arg(&root)
                .args(["--resolve", &format!("{host}:{}:127.0.0.1", front.port())])
                .args(options)
                .arg(format!("https://{host}:{}/", front.port()))
                .output()
                .unwrap()
        };
        let answer = curl("shop.example", &["--http1.1", "--write-out", " %{http_version} %{response_code}"]);
        assert_eq!(String::from_utf8_lossy(&answer.stdout), "hello 1.1 200");
        // A client that would rather speak HTTP/2 falls back.
        assert_eq!(curl("shop.example", &["--http2"]).stdout, b"hello");
        // It offers `http/1.0` alone.
        assert_eq!(curl("shop.example", &["--http1.0"]).stdout, b"hello");
        assert_eq!(curl("other.example", &[]).status.code(), Some(60), "curl says that the name is another");
        assert_eq!(curl("shop.example", &["--tls-max", "1.2"]).status.code(), Some(35), "TLS 1.2 is not spoken");
        proxy.wait_for_metric("ringmesh_tls_handshakes_total", &[("side", "inbound"), ("result", "ok")], 4);
    });
}

#[test]
fn the_certificate_of_the_asked_name_is_shown_and_the_first_one_to_everybody_else() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let (first, second, third) = (
            authority.server(&["shop.example"]),
            authority.server(&["pay.example", "*.pay.example"]),
            authority.server(&["eu.pay.example"]),
        );
        let (_proxy, front) = edge(driver, app.address(), &[("a", &first), ("b", &second), ("c", &third)], "");
        for (name, certificate) in [
            ("shop.example", &first),
            ("pay.example", &second),
            ("us.pay.example", &second),
            ("US.Pay.Example", &second),
            ("eu.pay.example", &third),
            ("a.b.pay.example", &first),
            ("unknown.example", &first),
            ("127.0.0.1", &first),
        ] {
            assert_eq!(shown(front, name), certificate.chain_der()[0].to_vec(), "{name}");
        }
    });
}

#[test]
fn renewed_certificates_are_shown_to_new_clients_and_broken_ones_are_told_and_not_used() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let before = authority.server(&["shop.example"]);
        let (proxy, front) = edge(driver, app.address(), &[("shop", &before)], "");
        let mut open = connect(front, &client_config(None)).unwrap();
        assert_eq!(open.get("shop.example", "/").text(), "hello");
        let renewed = authority.server(&["shop.example"]);
        write(proxy.folder(), "shop", &renewed);
        eventually("the renewed certificate is shown", || {
            (shown(front, "shop.example") == renewed.chain_der()[0].to_vec()).then_some(())
        });
        assert_eq!(open.get("shop.example", "/").text(), "hello", "the open connection goes on");

        let broken = [
            Svid { key: authority.server(&["x.example"]).key, ..renewed.clone() },
            Svid { chain: "not PEM\n".to_owned(), ..renewed.clone() },
            authority.leaf(&[], Validity::Expired),
        ];
        for files in &broken {
            write(proxy.folder(), "shop", files);
            let problem = eventually("the problem is shown", || {
                proxy.status()["config"]["problems"][0].as_str().map(str::to_owned)
            });
            assert!(problem.contains("shop."), "the file is named: {problem}");
            assert_eq!(shown(front, "shop.example"), renewed.chain_der()[0].to_vec());
            write(proxy.folder(), "shop", &renewed);
            eventually("the problem is gone", || {
                proxy.status()["config"]["problems"].as_array().unwrap().is_empty().then_some(())
            });
        }
        assert_eq!(open.get("shop.example", "/").text(), "hello");
    });
}

#[test]
fn one_certificate_that_has_ended_keeps_no_other_from_being_shown_from_the_start_on() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let (good, ended) = (authority.server(&["shop.example"]), authority.leaf(&[], Validity::Expired));
        let (proxy, front) = edge(driver, app.address(), &[("shop", &good), ("old", &ended)], "");
        let mut client = connect(front, &client_config(None)).unwrap();
        assert_eq!(client.get("shop.example", "/").text(), "hello");
        assert_eq!(shown(front, "shop.example"), good.chain_der()[0].to_vec());
        let problems = || proxy.status()["config"]["problems"].to_string();
        assert!(problems().contains("old.pem expired at"), "{}", problems());
        let file = proxy.file();
        let checked = proxy.command(&["check", file.to_str().unwrap()]);
        let error = String::from_utf8_lossy(&checked.stderr);
        assert_eq!(checked.status.code(), Some(1), "{error}");
        assert!(error.contains("old.pem expired at") && error.contains("issue a new one"), "{error}");

        write(proxy.folder(), "old", &authority.server(&["old.example"]));
        eventually("the problem is gone", || (problems() == "[]").then_some(()));
        assert_eq!(proxy.command(&["check", file.to_str().unwrap()]).status.code(), Some(0));
    });
}

#[test]
fn who_speaks_no_tls_or_another_protocol_is_refused_with_a_cause_and_others_are_served() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let (proxy, front) = edge(driver, app.address(), &[("shop", &authority.server(&["shop.example"]))], "");
        let mut open = connect(front, &client_config(None)).unwrap();
        assert_eq!(open.get("shop.example", "/").text(), "hello");
        let mut plain = Client::connect(front);
        assert_eq!(plain.send("GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n").response().status(), 400);
        proxy.wait_for_metric("ringmesh_tls_handshakes_total", &[("side", "inbound"), ("result", "plain_http")], 1);
        Client::connect(front).send("HELO shop.example\r\n").expect_end();
        proxy.wait_for_metric("ringmesh_tls_handshakes_total", &[("side", "inbound"), ("result", "not_tls")], 1);
        let mut config = Arc::unwrap_or_clone(client_config(None));
        config.alpn_protocols = vec![b"h3".to_vec()];
        let refused = connect(front, &Arc::new(config)).err().expect("nobody speaks that").to_string();
        assert!(refused.contains("NoApplicationProtocol"), "{refused}");
        assert_eq!(open.get("shop.example", "/").text(), "hello");
    });
}

#[test]
fn a_client_at_the_edge_has_no_identity_and_a_listener_that_begins_to_demand_one_serves_it_no_more() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let shop = authority.server(&["shop.example"]);
        let mesh = format!(
            "[mesh]\ntrust_domain = \"{DOMAIN}\"\n[workload]\nname = \"edge\"\nidentity = {{ files = \"svid\" }}\n"
        );
        let front = ports::free();
        let config = |kind: &str| {
            format!(
                "{mesh}[[listener]]\nname = \"front\"\nbind = \"{front}\"\n{kind}\nservice = \"app\"\n\
                 [[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n",
                app.address()
            )
        };
        let tls = "tls = { certificate = \"shop.pem\", key = \"shop.key\" }";
        let mut proxy = ringmesh(driver).config(config(tls)).prepare();
        write(proxy.folder(), "shop", &shop);
        authority.svid("edge").write(&proxy.folder().join("svid"));
        proxy.run();

        // Not even one that shows an SVID is anybody: nobody asked for it.
        let svid = client_config(Some(&authority.svid("web")));
        let mut open = connect(front, &svid).unwrap();
        assert_eq!(open.get("shop.example", "/").text(), "hello");
        let access = proxy.wait_for_access("the request", |line| line["path"] == "/");
        assert!(access["peer"].is_null(), "{access}");

        proxy.reconfigure(&config("mtls = \"strict\""));
        // The connection without an identity is closed, and does not wait for a request.
        open.expect_end();
        assert_eq!(connect(front, &svid).unwrap().get("shop.example", "/").text(), "hello");
    });
}
