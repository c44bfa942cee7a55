//! TLS of both sides over real sockets, on every driver that this machine grants.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::net::SocketAddr;

use common::{Certificates, SERVER_ID, http, on_every_driver, run, serve, serve_tls};
use ringmesh_loadgen::Grant;
use ringmesh_loadgen::load::{self, BodyCheck, Entry, Exchange, Protocol, Reuse};
use ringmesh_loadgen::report::Failure;
use ringmesh_loadgen::serve::{Http, ResponseForm, Service};
use ringmesh_loadgen::tls::{Client, Expected, Groups, Resumption, Server, Trust};

fn over_tls(address: SocketAddr, entries: Vec<Entry>, requests: u64, tls: Client) -> load::Settings {
    load::Settings { tls: Some(tls), ..http(address, entries, requests) }
}

fn per_request(mut settings: load::Settings) -> load::Settings {
    if let Protocol::Http(http) = &mut settings.protocol {
        http.reuse = Reuse::PerRequest;
    }
    settings
}

#[test]
fn bodies_of_all_sizes_pass_both_ways_over_kept_connections() {
    let certificates = Certificates::new();
    on_every_driver(|grant| {
        let echo = Service::Http(Http { form: ResponseForm::Echo, ..Http::default() });
        let server = serve_tls(grant, echo, certificates.server());
        for bytes in [0, 1, 20_000, 1_000_000] {
            let entry = Entry { check: BodyCheck::Echo, ..Entry::post("shop", "/", bytes) };
            let report = run(grant, over_tls(server.address(), vec![entry], 12, certificates.client()));
            assert_eq!((report.total.succeeded, report.total.requests()), (12, 12), "{report}");
            assert_eq!((report.handshakes, report.handshake().len()), (4, 4), "{report}");
        }
    });
}

#[test]
fn answers_of_all_forms_are_read_to_their_end() {
    let certificates = Certificates::new();
    on_every_driver(|grant| {
        for form in [ResponseForm::Fixed, ResponseForm::Chunked, ResponseForm::UntilClose] {
            let service = Service::Http(Http { body_bytes: 300_000, form, ..Http::default() });
            let server = serve_tls(grant, service, certificates.server());
            let entry = Entry { check: BodyCheck::Length(300_000), ..Entry::get("shop", "/") };
            let report = run(grant, over_tls(server.address(), vec![entry], 8, certificates.client()));
            assert_eq!(report.total.succeeded, 8, "{form:?}: {report}");
        }
    });
}

#[test]
fn sessions_are_taken_up_again_only_where_both_sides_allow_it() {
    let certificates = Certificates::new();
    on_every_driver(|grant| {
        for (client, server) in [
            (Resumption::Allow, Resumption::Allow),
            (Resumption::Allow, Resumption::Forbid),
            (Resumption::Forbid, Resumption::Allow),
        ] {
            let allowed = client == Resumption::Allow && server == Resumption::Allow;
            let tls = Server::new(certificates.identity("server"), None, server).unwrap();
            let server = serve_tls(grant, Service::Http(Http::default()), tls);
            let name = Expected::Name("localhost".into());
            let client = Client::new(&certificates.trust(), &name, None, client).unwrap();
            let mut settings = per_request(over_tls(server.address(), vec![Entry::get("shop", "/")], 20, client));
            settings.connections = 1;
            let report = run(grant, settings);
            assert_eq!((report.total.succeeded, report.handshakes), (20, 20), "{report}");
            assert_eq!(report.resumed, if allowed { 19 } else { 0 }, "{report}");
        }
    });
}

#[test]
fn a_client_offers_the_groups_it_is_told_and_the_report_says_what_was_agreed_on() {
    let certificates = Certificates::new();
    on_every_driver(|grant| {
        let server = serve_tls(grant, Service::Http(Http::default()), certificates.server());
        for (groups, expected) in [("secp256r1,x25519", "secp256r1"), ("x25519", "X25519"), ("", "X25519MLKEM768")] {
            let groups = if groups.is_empty() { Groups::default() } else { groups.parse().unwrap() };
            let name = Expected::Name("localhost".into());
            let resumption = Resumption::Forbid;
            let client = Client::with_groups(&certificates.trust(), &name, None, resumption, groups).unwrap();
            let settings = per_request(over_tls(server.address(), vec![Entry::get("shop", "/")], 4, client));
            let report = run(grant, settings);
            let agreed = format!("{expected} TLS_AES_128_GCM_SHA256");
            assert_eq!(report.tls_parameters.get(&agreed), Some(&4), "{report}");
            assert!(report.to_string().contains(&agreed), "{report}");
        }
    });
}

#[test]
fn a_client_with_a_certificate_is_admitted_and_one_without_is_told_what_to_give() {
    let certificates = Certificates::new();
    on_every_driver(|grant| {
        let server = serve_tls(grant, Service::Http(Http::default()), certificates.strict_server());
        let entries = vec![Entry::get("shop", "/")];
        let known = certificates.client_with_identity();
        let report = run(grant, over_tls(server.address(), entries.clone(), 8, known));
        assert_eq!(report.total.succeeded, 8, "{report}");
        let report = run(grant, over_tls(server.address(), entries, 8, certificates.client()));
        assert_eq!(report.total.failure(Failure::Tls), 8, "{report}");
        check_explanation(&report, "give --cert and --key");
    });
}

fn check_explanation(report: &ringmesh_loadgen::report::Report, part: &str) {
    assert!(report.explanations.keys().any(|text| text.contains(part)), "`{part}` is not said:\n{report}");
}

#[test]
fn a_server_that_is_not_the_expected_one_gets_no_request() {
    let certificates = Certificates::new();
    let others = Certificates::new();
    let name = |name: &str| Expected::Name(name.into());
    let workload = |id: &str| Expected::SpiffeId { id: id.into(), name: "localhost".into() };
    let cases = [
        (certificates.trust(), name("localhost"), None),
        (certificates.trust(), workload(SERVER_ID), None),
        (Trust::Anyone, name("elsewhere"), None),
        (others.trust(), name("localhost"), Some("--cacert")),
        (others.trust(), workload(SERVER_ID), Some("--cacert")),
        (certificates.trust(), name("elsewhere"), Some("--sni")),
        (
            certificates.trust(),
            workload("spiffe://shop.example/other"),
            Some("`spiffe://shop.example/other` was expected"),
        ),
    ];
    on_every_driver(|grant| {
        let server = serve_tls(grant, Service::Http(Http::default()), certificates.server());
        for (trust, expected, explanation) in &cases {
            let tls = Client::new(trust, expected, None, Resumption::Allow).unwrap();
            let report = run(grant, over_tls(server.address(), vec![Entry::get("shop", "/")], 4, tls));
            match explanation {
                None => assert_eq!(report.total.succeeded, 4, "{report}"),
                Some(part) => {
                    assert_eq!(report.total.failure(Failure::Tls), 4, "{report}");
                    check_explanation(&report, part);
                }
            }
        }
    });
}

#[test]
fn tls_to_a_server_without_it_fails_and_says_so() {
    let certificates = Certificates::new();
    on_every_driver(|grant| {
        let server = serve(grant, Service::Http(Http::default()));
        let report = run(grant, over_tls(server.address(), vec![Entry::get("shop", "/")], 4, certificates.client()));
        assert_eq!(report.total.failure(Failure::Tls), 4, "{report}");
        check_explanation(&report, "does it speak TLS");
    });
}

#[test]
fn round_trips_and_uploads_pass_over_tls() {
    let certificates = Certificates::new();
    let tcp = |grant: &Grant, service, exchange| {
        let server = serve_tls(grant, service, certificates.strict_server());
        let settings = load::Settings {
            tls: Some(certificates.client_with_identity()),
            protocol: Protocol::Tcp(exchange),
            ..http(server.address(), Vec::new(), 8)
        };
        let report = run(grant, settings);
        assert_eq!(report.total.succeeded, 8, "{report}");
    };
    on_every_driver(|grant| {
        tcp(grant, Service::Echo, Exchange::PingPong { bytes: 64 });
        tcp(grant, Service::Echo, Exchange::PingPong { bytes: 10_000 });
        tcp(grant, Service::Sink, Exchange::Upload { bytes: Some(1_000_000) });
    });
}
