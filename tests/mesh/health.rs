//! Which endpoints serve, as probes find out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::http2::message::grpc_frame;
use ringmesh_tests::http2::{self, Connection, Outgoing};
use ringmesh_tests::peers::{self, Refusing};
use ringmesh_tests::service::ok;
use ringmesh_tests::{Client, Driver, Proxy, Service, eventually, hold, on_both_drivers, ports};

use crate::grpc::programs::Grpcio;
use crate::support::{DOMAIN, caller, forwarding, ringmesh, strict};

/// A check that comes often and decides at once.
const HASTY: &str = "interval = \"100ms\", healthy_after = 1, unhealthy_after = 1";

fn by_http() -> String {
    format!("health_check = {{ kind = \"http\", path = \"/healthy\", {HASTY} }}\n")
}

/// Answers `/healthy` with a status that can be changed, and everything else with its name.
fn named(name: &'static str, status: u16) -> (Service, Arc<AtomicU16>) {
    let says = Arc::new(AtomicU16::new(status));
    let told = says.clone();
    let service = Service::http(move |request| match request.head.request().1 {
        "/healthy" => format!("HTTP/1.1 {} Any\r\nContent-Length: 0\r\n\r\n", told.load(Ordering::SeqCst)),
        _ => ok(name),
    });
    (service, says)
}

fn proxy(driver: Driver, endpoints: &[SocketAddr], keys: &str) -> (Proxy, SocketAddr) {
    let front = ports::free();
    (ringmesh(driver).workers(4).config(forwarding(front, endpoints, "", keys)).start(), front)
}

/// Waits until so many endpoints are known to be healthy and unhealthy.
#[track_caller]
fn wait(proxy: &Proxy, healthy: u64, unhealthy: u64) {
    eventually("probes have found it out", || {
        let metrics = proxy.metrics();
        let sum = |word| metrics.sum("ringmesh_health_endpoints", &[("service", "app"), ("health", word)]);
        ((sum("healthy"), sum("unhealthy")) == (healthy, unhealthy)).then_some(())
    });
}

/// Who answers, of many requests over many connections, and so on all workers.
fn answering(front: SocketAddr) -> String {
    let mut names: Vec<String> = (0..40).map(|_| Client::connect(front).get("app", "/").text()).collect();
    names.sort();
    names.dedup();
    names.concat()
}

#[test]
fn an_endpoint_that_says_it_is_sick_gets_no_requests_until_it_is_well() {
    on_both_drivers(|driver| {
        for balance in ["round_robin", "least_request"] {
            let ((a, _), (b, says)) = (named("a", 200), named("b", 200));
            let keys = format!("balance = \"{balance}\"\n{}", by_http());
            let (proxy, front) = proxy(driver, &[a.address(), b.address()], &keys);
            wait(&proxy, 2, 0);
            assert_eq!(answering(front), "ab");
            says.store(503, Ordering::SeqCst);
            wait(&proxy, 1, 1);
            assert_eq!(answering(front), "a", "none of the workers uses it");
            let told = proxy.wait_for_log(&["the endpoint does not serve", "it answered 503"]);
            assert!(told.contains(&b.address().to_string()) && told.contains("\"well\":1"), "{told}");
            eventually("status shows it", || {
                let status = proxy.status();
                let endpoints = status["services"][0]["endpoints"].clone();
                (endpoints[0]["state"] == "up" && endpoints[1]["state"] == "unhealthy").then_some(())
            });
            says.store(204, Ordering::SeqCst);
            wait(&proxy, 2, 0);
            proxy.wait_for_log(&["the endpoint serves again"]);
            assert_eq!(answering(front), "ab");
            let probe = a.requests().into_iter().find(|request| request.head.request().1 == "/healthy").unwrap();
            assert_eq!((probe.field("host"), probe.field("user-agent")), (Some("app"), Some("ringmesh-health")));
            let results = |result| proxy.metrics().sum("ringmesh_health_probes_total", &[("result", result)]);
            assert!(results("passed") > 0 && results("failed") > 0);
        }
    });
}

#[test]
fn where_no_endpoint_is_healthy_all_are_used() {
    on_both_drivers(|driver| {
        let ((a, says), (b, _)) = (named("a", 500), named("b", 404));
        let (proxy, front) = proxy(driver, &[a.address(), b.address()], &by_http());
        wait(&proxy, 0, 2);
        assert_eq!(answering(front), "ab");
        proxy.wait_for_log(&["none of the service does, so that all are used"]);
        says.store(200, Ordering::SeqCst);
        wait(&proxy, 1, 1);
        assert_eq!(answering(front), "a");
    });
}

#[test]
fn a_data_plane_asks_once_however_many_workers_it_has() {
    on_both_drivers(|driver| {
        let (service, _) = named("a", 200);
        let (proxy, _front) = proxy(driver, &[service.address()], &by_http());
        wait(&proxy, 1, 0);
        let before = service.requests().len();
        hold(Duration::from_secs(2));
        let asked = service.requests().len() - before;
        // Every 90 to 110 ms, and some more on a machine that is busy.
        assert!((5..=24).contains(&asked), "{asked} probes in two seconds");
        assert!(service.accepted() <= 2, "one connection serves all: {}", service.accepted());
    });
}

#[test]
fn probes_go_on_when_control_is_gone() {
    on_both_drivers(|driver| {
        let ((a, _), (b, says)) = (named("a", 200), named("b", 200));
        let (mut proxy, front) = proxy(driver, &[a.address(), b.address()], &by_http());
        wait(&proxy, 2, 0);
        proxy.kill_control();
        says.store(503, Ordering::SeqCst);
        eventually("the sick one is passed over", || (answering(front) == "a").then_some(()));
        says.store(200, Ordering::SeqCst);
        eventually("both are used", || (answering(front) == "ab").then_some(()));
        proxy.run_control();
        proxy.wait_until_ready();
        wait(&proxy, 2, 0);
    });
}

#[test]
fn an_endpoint_is_sick_after_so_many_probes_in_a_row_and_not_before() {
    on_both_drivers(|driver| {
        let ((a, _), (b, says)) = (named("a", 200), named("b", 200));
        let keys =
            "health_check = { kind = \"http\", path = \"/healthy\", interval = \"100ms\", unhealthy_after = 100 }\n";
        let (proxy, front) = proxy(driver, &[a.address(), b.address()], keys);
        wait(&proxy, 2, 0);
        says.store(503, Ordering::SeqCst);
        eventually("some probes fail", || {
            (proxy.metrics().sum("ringmesh_health_probes_total", &[("result", "failed")]) >= 5).then_some(())
        });
        wait(&proxy, 2, 0);
        assert_eq!(answering(front), "ab");
    });
}

#[test]
fn an_endpoint_that_refuses_hangs_or_talks_nonsense_is_sick() {
    on_both_drivers(|driver| {
        let (well, _) = named("a", 200);
        let (refusing, hanging, garbage) = (Refusing::new(), peers::hanging_server(), peers::garbage_server());
        for (address, why) in [
            (refusing.address(), "no connection (connect_failed)"),
            (hanging.address(), "no answer in time"),
            (garbage.address(), "cannot be understood"),
        ] {
            let keys =
                format!("health_check = {{ kind = \"http\", path = \"/healthy\", timeout = \"300ms\", {HASTY} }}\n");
            let (proxy, front) = proxy(driver, &[well.address(), address], &keys);
            wait(&proxy, 1, 1);
            assert_eq!(answering(front), "a");
            proxy.wait_for_log(&["the endpoint does not serve", why]);
        }
        // For these a connection is enough.
        let keys = format!("health_check = {{ kind = \"tcp\", {HASTY} }}\n");
        let (proxy, _front) = proxy(driver, &[hanging.address(), refusing.address(), garbage.address()], &keys);
        wait(&proxy, 2, 1);
    });
}

#[test]
fn status_host_and_version_of_http_are_as_the_check_says() {
    on_both_drivers(|driver| {
        let (gone, _) = named("a", 410);
        let keys = format!(
            "health_check = {{ kind = \"http\", path = \"/healthy\", host = \"shop.example:1\", status = 410, {HASTY} }}\n"
        );
        let (first, _front) = proxy(driver, &[gone.address()], &keys);
        wait(&first, 1, 0);
        assert_eq!(gone.last().field("host"), Some("shop.example:1"));
        let well = Arc::new(AtomicBool::new(true));
        let told = well.clone();
        let of_2 = http2::service(move |_| match told.load(Ordering::SeqCst) {
            true => Outgoing::ok("well"),
            false => Outgoing::status(500),
        });
        let (second, _front) = proxy(driver, &[of_2.address()], &format!("protocol = \"http2\"\n{}", by_http()));
        wait(&second, 1, 0);
        assert_eq!(of_2.last().head.request(), ("GET", "/healthy"));
        well.store(false, Ordering::SeqCst);
        wait(&second, 0, 1);
        well.store(true, Ordering::SeqCst);
        wait(&second, 1, 0);
        assert!(of_2.accepted() <= 2, "one connection serves all: {}", of_2.accepted());
    });
}

#[test]
fn a_check_that_an_edit_adds_begins_and_one_that_it_takes_away_is_forgotten() {
    on_both_drivers(|driver| {
        let ((a, _), (b, _)) = (named("a", 200), named("b", 503));
        let front = ports::free();
        let addresses = [a.address(), b.address()];
        let config = |keys: &str| forwarding(front, &addresses, "", keys);
        let mut proxy = ringmesh(driver).config(config("")).start();
        assert_eq!(answering(front), "ab");
        proxy.reconfigure(&config(&by_http()));
        wait(&proxy, 1, 1);
        assert_eq!(answering(front), "a");
        // What is known stays known.
        proxy.reconfigure(&config(&format!("balance = \"round_robin\"\n{}", by_http())));
        assert_eq!(answering(front), "a");
        proxy.reconfigure(&config(""));
        wait(&proxy, 0, 0);
        assert_eq!(answering(front), "ab");
        hold(Duration::from_millis(300));
        let asked = b.requests().iter().filter(|request| request.head.request().1 == "/healthy").count();
        hold(Duration::from_millis(500));
        let later = b.requests().iter().filter(|request| request.head.request().1 == "/healthy").count();
        assert_eq!(asked, later, "nobody asks any more");
    });
}

#[test]
fn probes_prove_who_the_endpoint_is_and_say_that_they_are_nobodys() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let (app, _) = named("a", 200);
        let right = strict(driver, &authority, "app", app.address(), "", "");
        let wrong = strict(driver, &authority, "other", app.address(), "", "");
        let svid = authority.svid("web");
        for kind in ["kind = \"tcp\"", "kind = \"http\", path = \"/healthy\""] {
            let keys = format!("health_check = {{ {kind}, timeout = \"5s\", {HASTY} }}\n");
            let (proxy, front) = caller(driver, &svid, "web", "app", &[right.inbound, wrong.inbound], &keys);
            eventually("one is whom it should be", || {
                let metrics = proxy.metrics();
                let sum = |word| metrics.sum("ringmesh_health_endpoints", &[("health", word)]);
                ((sum("healthy"), sum("unhealthy")) == (1, 1)).then_some(())
            });
            proxy.wait_for_log(&["the endpoint does not serve", "no connection (upstream_identity)"]);
            assert_eq!(answering(front), "a");
        }
        // Whoever takes nobody without a PROXY header takes probes too.
        let behind = ports::free();
        let from = "proxy_protocol = { from = [\"127.0.0.0/8\"] }";
        let _there = ringmesh(driver).config(forwarding(behind, &[app.address()], from, "")).start();
        for version in ["v1", "v2"] {
            let keys = format!("proxy_protocol = \"{version}\"\n{}", by_http());
            let (proxy, _front) = proxy(driver, &[behind], &keys);
            wait(&proxy, 1, 0);
        }
    });
}

/// A service that is asked by gRPC.
fn by_grpc(service: &str) -> String {
    format!(
        "protocol = \"http2\"\nhealth_check = {{ kind = \"grpc\", service = \"{service}\", timeout = \"5s\", {HASTY} }}\n"
    )
}

/// The endpoints of many calls, by the access log.
fn called(proxy: &Proxy, front: SocketAddr) -> Vec<String> {
    let known = proxy.access_log().len();
    let mut client = Connection::connect(front);
    for _ in 0..30 {
        let call = Outgoing::post("app", "/svc/Unary", grpc_frame(b"ping"));
        let answer = client.exchange(&call.with("te", "trailers").with("content-type", "application/grpc"));
        assert_eq!(answer.trailers.iter().find(|(name, _)| name == "grpc-status").unwrap().1, "0");
    }
    let lines = eventually("all are logged", || {
        let log = proxy.access_log();
        (log.len() >= known + 30).then(|| log[known..].to_vec())
    });
    let mut endpoints: Vec<String> =
        lines.iter().map(|line| line["endpoint"].as_str().unwrap_or_default().to_owned()).collect();
    endpoints.sort();
    endpoints.dedup();
    endpoints
}

#[test]
fn a_grpc_server_that_is_not_serving_gets_no_calls_until_it_is() {
    on_both_drivers(|driver| {
        let (first, mut second) = (Grpcio::with_health(), Grpcio::with_health());
        let (proxy, front) = proxy(driver, &[first.address, second.address], &by_grpc("shop.Cart"));
        let mut both = vec![first.address.to_string(), second.address.to_string()];
        both.sort();
        wait(&proxy, 2, 0);
        assert_eq!(called(&proxy, front), both);
        for (status, why) in [
            ("NOT_SERVING", "it says NOT_SERVING"),
            ("UNKNOWN", "it says UNKNOWN"),
            ("SERVICE_UNKNOWN", "it says SERVICE_UNKNOWN"),
        ] {
            second.set_health("shop.Cart", status);
            wait(&proxy, 1, 1);
            proxy.wait_for_log(&["the endpoint does not serve", why]);
            assert_eq!(called(&proxy, front), [first.address.to_string()]);
            second.set_health("shop.Cart", "SERVING");
            wait(&proxy, 2, 0);
        }
        assert_eq!(called(&proxy, front), both);
        let (whole, _front) = proxy_of_one(driver, first.address, "");
        wait(&whole, 1, 0);
        let (unknown, _front) = proxy_of_one(driver, first.address, "shop.Unknown");
        wait(&unknown, 0, 1);
        unknown.wait_for_log(&["gRPC status 5: it does not know the service; is `service` right?"]);
    });
}

fn proxy_of_one(driver: Driver, address: SocketAddr, service: &str) -> (Proxy, SocketAddr) {
    proxy(driver, &[address], &by_grpc(service))
}

#[test]
fn a_grpc_server_without_a_health_service_is_told_of_with_what_to_do() {
    on_both_drivers(|driver| {
        let without = Grpcio::start();
        let (proxy, front) = proxy_of_one(driver, without.address, "");
        wait(&proxy, 0, 1);
        proxy.wait_for_log(&["gRPC status 12", "grpc.health.v1.Health; register that service there"]);
        assert_eq!(called(&proxy, front), [without.address.to_string()], "it is the only one, and so is used");
    });
}
