//! What is counted, logged and shown: equal to what clients saw, and never going back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringmesh_loadgen::load::{Entry, Expect, Reuse};
use ringmesh_loadgen::serve::Http;
use ringmesh_tests::certificates::Authority;
use ringmesh_tests::http2::{self, Connection, Ends};
use ringmesh_tests::peers::Refusing;
use ringmesh_tests::process;
use ringmesh_tests::{Client, DEADLINE, Driver, Metrics, Proxy, Service, eventually, hold, on_both_drivers, ports};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::load;
use crate::support::{DOMAIN, caller, forwarding, proxy_to, ringmesh, strict};

/// A proxy that routes `good` and `bad` to services and has nothing for any other host.
fn with_routes(driver: Driver, good: std::net::SocketAddr, bad: std::net::SocketAddr) -> (Proxy, std::net::SocketAddr) {
    let front = ports::free();
    let config = format!(
        "[[listener]]\nname = \"front\"\nbind = \"{front}\"\n\
         [[service]]\nname = \"good\"\nendpoints = [\"{good}\"]\n[[service]]\nname = \"bad\"\nendpoints = [\"{bad}\"]\n\
         [[route]]\nhosts = [\"good\"]\n[[route]]\nname = \"spoiled\"\nhosts = [\"bad\"]\n\
         [[route.rule]]\nname = \"all\"\nto = \"bad\"\n"
    );
    (ringmesh(driver).config(config).start(), front)
}

/// An entry whose every answer is counted, whatever it is.
fn any(host: &str, weight: u32) -> Entry {
    Entry { weight, expect: Expect::Any, ..Entry::get(host, "/") }
}

fn class(metrics: &Metrics, class: &str) -> u64 {
    metrics.sum("ringmesh_request_total", &[("class", class)])
}

/// Lines of the access log that found no room in a worker's ring, or that control could not write in time.
fn lines_dropped(proxy: &Proxy) -> u64 {
    let metrics = proxy.metrics();
    metrics.sum("ringmesh_worker_events_dropped_total", &[]) + metrics.sum("ringmesh_control_log_lines_lost_total", &[])
}

// ---- counts ----

#[test]
fn counts_equal_the_clients_own_for_every_request_that_was_answered() {
    on_both_drivers(|driver| {
        let (good, bad) = (load::service(), load::serve_http(Http { status: 500, ..Http::default() }));
        let (proxy, front) = with_routes(driver, good.address(), bad.address());
        let entries = || vec![any("good", 6), any("bad", 2), any("nowhere", 1)];
        let kept = load::steady(front, 1_000.0, 10, Reuse::KeepAlive, entries());
        let fresh = load::steady(front, 200.0, 10, Reuse::PerRequest, entries());
        hold(Duration::from_millis(1_500));
        let (kept, fresh) = (load::end(kept), load::end(fresh));
        for report in [&kept, &fresh] {
            load::assert_nothing_failed(report, 100);
        }
        let seen = |class: u16| kept.total.class(class) + fresh.total.class(class);
        let total = kept.total.answered() + fresh.total.answered();
        assert!(seen(2) > 0 && seen(4) > 0 && seen(5) > 0 && seen(2) + seen(4) + seen(5) == total, "{kept}\n{fresh}");

        // A request is counted when it has ended, which its client may see a moment earlier.
        proxy.wait_for_metric("ringmesh_request_total", &[], total);
        let metrics = proxy.metrics();
        for (name, expected) in [("none", 0), ("2xx", seen(2)), ("3xx", 0), ("4xx", seen(4)), ("5xx", seen(5))] {
            assert_eq!(class(&metrics, name), expected, "{name}");
        }
        let by_route = |labels: &[(&str, &str)]| metrics.sum("ringmesh_request_total", labels);
        assert_eq!(by_route(&[("route", "good"), ("service", "good"), ("class", "2xx")]), seen(2));
        assert_eq!(by_route(&[("route", "spoiled"), ("rule", "all"), ("service", "bad"), ("class", "5xx")]), seen(5));
        assert_eq!(by_route(&[("service", ""), ("class", "4xx")]), seen(4));
        let reasons = |reason: &str| metrics.sum("ringmesh_request_outcome_total", &[("reason", reason)]);
        assert_eq!((reasons("ok"), reasons("no_route")), (seen(2) + seen(5), seen(4)));
        assert_eq!(metrics.sum("ringmesh_request_duration_seconds_count", &[]), total);

        let connections = kept.connections + fresh.connections;
        proxy.wait_for_metric("ringmesh_listener_connections_closed_total", &[], connections);
        assert_eq!(proxy.metrics().sum("ringmesh_listener_connections_accepted_total", &[]), connections);
        eventually("every request has its line, or is counted as dropped", || {
            (proxy.access_log().len() as u64 + lines_dropped(&proxy) == total).then_some(())
        });
        let shown: u64 =
            proxy.json("/requests").as_array().unwrap().iter().map(|row| row["requests"].as_u64().unwrap()).sum();
        assert_eq!(shown, total);
    });
}

/// Scrapes until it is told to stop. Gives back how many pages there were, and the last one.
fn scrape_all_the_while(proxy_admin: std::net::SocketAddr, ended: &AtomicBool) -> (u32, Metrics) {
    let mut before: Option<Metrics> = None;
    let mut pages = 0;
    while !ended.load(Ordering::SeqCst) {
        let page = Client::try_connect(proxy_admin).and_then(|mut client| {
            client.try_send("GET /metrics HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")?;
            client.try_response()
        });
        // There is nobody to answer while control is dead.
        let Ok(page) = page else { continue };
        assert_eq!(page.status(), 200);
        let now = Metrics::parse(&page.text());
        if now.find("ringmesh_worker_connections", &[]).next().is_none() {
            // A control that has no data plane yet shows itself alone: what is not there has not fallen. Whatever comes next
            // is compared with the last page that had it.
            continue;
        }
        if let Some(before) = &before {
            let mut fallen = now.fallen_since(before);
            // What a process counts of itself begins anew with it; totals of traffic may not.
            fallen.retain(|counter| !["ringmesh_control_", "process_"].iter().any(|own| counter.starts_with(own)));
            assert!(fallen.is_empty(), "page {pages}: {fallen:#?}");
        }
        before = Some(now);
        pages += 1;
        thread::sleep(Duration::from_millis(5));
    }
    (pages, before.expect("there were pages"))
}

#[test]
fn totals_never_fall_while_control_and_data_plane_are_killed_and_adopted() {
    on_both_drivers(|driver| {
        const CONNECTIONS: usize = 10;
        const DEATHS: u64 = 2;
        let (good, bad) = (load::service(), load::serve_http(Http { status: 500, ..Http::default() }));
        let (mut proxy, front) = with_routes(driver, good.address(), bad.address());
        let entries = vec![any("good", 6), any("bad", 2), any("nowhere", 1)];
        let running = load::steady(front, 500.0, CONNECTIONS, Reuse::KeepAlive, entries);
        let ended = AtomicBool::new(false);
        let admin = proxy.admin();
        let (report, pages, last) = thread::scope(|scope| {
            let scraping = scope.spawn(|| scrape_all_the_while(admin, &ended));
            for _ in 0..DEATHS {
                hold(Duration::from_millis(150));
                proxy.kill_control();
                proxy.run();
                hold(Duration::from_millis(150));
                proxy.kill_dataplane();
                proxy.wait_until_ready();
                // Both at once, in the order in which control cannot help.
                hold(Duration::from_millis(150));
                proxy.kill_control();
                proxy.run();
            }
            let report = load::end(running);
            hold(Duration::from_millis(200));
            ended.store(true, Ordering::SeqCst);
            let (pages, last) = scraping.join().unwrap();
            (report, pages, last)
        });
        assert!(pages >= 20, "{pages} pages prove nothing");
        // The difference is exactly what the killed data planes have cut: a request that they had counted and whose answer
        // never came, or one whose answer was on its way and is not counted.
        let counted = last.sum("ringmesh_request_total", &[]);
        let (answered, cut) = (report.total.answered(), report.total.requests() - report.total.answered());
        let open = DEATHS * CONNECTIONS as u64;
        assert!(cut <= open, "{report}\n{:?}", report.total.failures);
        assert!(
            counted + open >= answered && counted <= answered + cut,
            "{counted} counted, {answered} answered, {cut} cut"
        );
        eprintln!("{pages} pages; {counted} counted, {answered} answered, {cut} cut");
    });
}

// ---- formats ----

/// What every page must be, beyond lines that can be read: one type a family, no sample twice, histograms that add up.
fn check_page(page: &str) {
    let metrics = Metrics::parse(page);
    let types: BTreeMap<&str, &str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| line.split_once(' ').expect("a family and its type"))
        .collect();
    assert_eq!(types.len(), page.lines().filter(|line| line.starts_with("# TYPE ")).count(), "a family has one type");
    assert_eq!(types.len(), page.lines().filter(|line| line.starts_with("# HELP ")).count(), "and one line of help");
    let mut seen = std::collections::BTreeSet::new();
    for sample in &metrics.samples {
        assert!(seen.insert((&sample.name, &sample.labels)), "twice: {sample}");
        assert!(sample.name.starts_with("ringmesh_") || sample.name.starts_with("process_"), "{sample}");
        let family = ["", "_total", "_info", "_bucket", "_count", "_sum", "_created"]
            .iter()
            .find_map(|end| types.get(sample.name.strip_suffix(end)?));
        assert!(family.is_some(), "a sample of no family: {sample}");
    }
    for count in metrics.samples.iter().filter(|sample| sample.name.ends_with("_duration_seconds_count")) {
        let bucket = count.name.replace("_count", "_bucket");
        let same = |sample: &&ringmesh_tests::metrics::Sample| {
            sample.name == bucket && count.labels.iter().all(|(label, value)| sample.labels.get(label) == Some(value))
        };
        let buckets: Vec<f64> = metrics.samples.iter().filter(same).map(|sample| sample.value).collect();
        assert!(buckets.windows(2).all(|pair| pair[0] <= pair[1]), "{count}: {buckets:?}");
        assert_eq!(buckets.last(), Some(&count.value), "{count}");
    }
}

#[test]
fn metrics_are_read_by_a_strict_reader_in_both_formats_with_the_same_numbers() {
    on_both_drivers(check_both_formats);
}

fn check_both_formats(driver: Driver) {
    let app = Service::saying("hello");
    let (proxy, front) = proxy_to(driver, &[app.address()]);
    let mut client = Client::connect(front);
    (0..25).for_each(|_| assert_eq!(client.get("app", "/").status(), 200));
    proxy.wait_for_metric("ringmesh_request_total", &[], 25);

    let page = |accept: &str| {
        let mut admin = Client::connect(proxy.admin());
        admin.send(format!("GET /metrics HTTP/1.1\r\nHost: admin\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"));
        admin.response()
    };
    let text = page("text/plain");
    assert!(text.field("content-type").unwrap().starts_with("text/plain; version=0.0.4"), "{:?}", text.head);
    check_page(&text.text());
    let open = page("application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    assert!(open.field("content-type").unwrap().starts_with("application/openmetrics-text; version=1.0.0"));
    let open = open.text();
    check_page(open.strip_suffix("# EOF\n").expect("OpenMetrics has an end"));

    let samples = |page: &str| -> Vec<(String, u64)> {
        let metrics = Metrics::parse(page);
        let requests = metrics.samples.iter().filter(|sample| sample.name.starts_with("ringmesh_request"));
        requests.map(|sample| (format!("{} {:?}", sample.name, sample.labels), (sample.value * 1e6) as u64)).collect()
    };
    assert_eq!(samples(&text.text()), samples(&open));
    assert!(samples(&open).len() > 20);
}

// ---- the access log ----

/// The keys of a line, in order.
fn keys(line: &Value) -> Vec<&str> {
    line.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn a_line_of_the_access_log_says_who_asked_what_and_what_came_of_it() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::echo();
        let policy =
            "[[policy]]\nname = \"shop\"\nlistener = \"inbound\"\n[[policy.allow]]\nname = \"web\"\nfrom = [\"web\"]\n";
        let there = strict(driver, &authority, "app", app.address(), "", policy);
        let (here, outbound) = caller(driver, &authority.svid("web"), "web", "app", &[there.inbound], "");
        let mut client = Client::connect(outbound);
        client.send("POST /pay?card=secret HTTP/1.1\r\nHost: there:80\r\nContent-Length: 5\r\n\r\nhello");
        assert_eq!(client.response().text(), "hello");
        let own = client.socket().local_addr().unwrap().to_string();

        let mut line = there.proxy.wait_for_access("of the request", |line| line["path"] == "/pay");
        let time = line["time"].as_str().unwrap().to_owned();
        assert!(
            time.len() == "2026-01-01T00:00:00.000000Z".len() && time.ends_with('Z') && &time[10..11] == "T",
            "{time}"
        );
        let seconds = line["duration_seconds"].as_f64().unwrap();
        assert!((0.0..30.0).contains(&seconds), "{line}");
        assert!(line["client"].as_str().unwrap().starts_with("127.0.0.1:"));
        for key in ["time", "duration_seconds", "client"] {
            line[key] = json!(key);
        }
        let expected = json!({
            "time": "time", "event": "request", "listener": "inbound", "client": "client", "peer": authority.id("web"),
            "method": "POST", "authority": "there:80", "path": "/pay", "decided_by": "shop/web", "service": "app",
            "endpoint": app.address().to_string(), "attempts": 1, "status": 200, "reason": "ok",
            "duration_seconds": "duration_seconds", "request_bytes": 5, "response_bytes": 5,
        });
        assert_eq!(line, expected);
        let line = here.wait_for_access("of the same request", |line| line["path"] == "/pay");
        assert_eq!(
            (&line["client"], &line["listener"], &line["service"]),
            (&json!(own), &json!("outbound"), &json!("there"))
        );
        assert!(!keys(&line).contains(&"peer"), "a plain client has proven no identity: {line}");
        let text = std::fs::read_to_string(there.proxy.folder().join("access.log")).unwrap();
        assert!(!text.contains("secret"), "queries may hold secrets");
    });
}

#[test]
fn a_line_of_the_access_log_names_the_reason_of_a_failure() {
    on_both_drivers(|driver| {
        let (refusing, silent) = (Refusing::new(), ringmesh_tests::peers::hanging_server());
        let (proxy, front) = with_routes(driver, refusing.address(), silent.address());
        let mut client = Client::connect(front);
        assert_eq!(client.get("good", "/a").status(), 503);
        assert_eq!(client.get("nowhere", "/b").status(), 404);
        client.send("GET /c HTTP/1.1\r\nHost: bad\r\n\r\n");
        eventually("the service has it", || (silent.open() == 1).then_some(()));
        client.reset();
        let mut garbage = Client::connect(front);
        garbage.send("GET /d HTTP/1.1\r\nNo host\r\n\r\n");
        assert_eq!(garbage.response().status(), 400);

        let line = |path: &str| proxy.wait_for_access(path, |line| line["path"] == path);
        let refused = line("/a");
        // Of one endpoint there is no other to try.
        assert_eq!((&refused["status"], &refused["reason"]), (&json!(503), &json!("connect_failed")), "{refused}");
        let nowhere = line("/b");
        assert_eq!((&nowhere["status"], &nowhere["reason"]), (&json!(404), &json!("no_route")), "{nowhere}");
        assert!(!keys(&nowhere).contains(&"service"), "{nowhere}");
        let aborted = line("/c");
        assert_eq!((&aborted["reason"], &aborted["route"]), (&json!("client_aborted"), &json!("spoiled")), "{aborted}");
        assert!(!keys(&aborted).contains(&"status"), "nobody was given a status: {aborted}");
        let unreadable = proxy.wait_for_access("of garbage", |line| line["reason"] == "bad_request");
        assert_eq!(unreadable["status"], 400, "{unreadable}");
    });
}

#[test]
fn a_line_of_the_access_log_sums_up_an_opaque_connection() {
    on_both_drivers(|driver| {
        let app = Service::conversing(|talk| {
            let bytes = talk.exactly(6)?;
            talk.send([&bytes[..], b" and back"].concat())
        });
        let front = ports::free();
        let config = format!(
            "[[listener]]\nname = \"bytes\"\nbind = \"{front}\"\nprotocol = \"tcp\"\nservice = \"app\"\n\
             [[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n",
            app.address()
        );
        let proxy = ringmesh(driver).config(config).start();
        let mut client = Client::connect(front);
        assert_eq!(client.send("going ").exactly(15).unwrap(), b"going  and back");
        client.half_close();
        client.expect_end();
        let mut line = proxy.wait_for_access("of the connection", |line| line["event"] == "connection");
        // Both end it, and either may be the first.
        assert!(line["ended_by"] == "client" || line["ended_by"] == "endpoint", "{line}");
        for key in ["time", "duration_seconds", "ended_by"] {
            line[key] = json!(key);
        }
        let expected = json!({
            "time": "time", "event": "connection", "ended_by": "ended_by", "ended_how": "end", "listener": "bytes",
            "client": client.socket().local_addr().unwrap().to_string(), "decided_by": "default", "service": "app",
            "endpoint": app.address().to_string(), "reason": "ok", "duration_seconds": "duration_seconds",
            "received_bytes": 6, "sent_bytes": 15,
        });
        assert_eq!(line, expected);
        let metrics = proxy.metrics();
        let bytes = |name: &str| metrics.sum(name, &[("listener", "bytes")]);
        assert_eq!(bytes("ringmesh_listener_received_bytes_total"), 6);
        assert_eq!(bytes("ringmesh_listener_sent_bytes_total"), 15);
    });
}

// ---- pages ----

#[test]
fn readiness_follows_the_data_plane_and_liveness_does_not() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (mut proxy, front) = proxy_to(driver, &[app.address()]);
        let said = |path: &str| {
            let page = proxy.page(path);
            (page.status(), page.text())
        };
        assert_eq!(said("/ready"), (200, "ready\n".to_owned()));
        assert_eq!(said("/live"), (200, "live\n".to_owned()));
        assert_eq!(said("/elsewhere").0, 404);
        let mut admin = Client::connect(proxy.admin());
        admin.send("POST /metrics HTTP/1.1\r\nHost: admin\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(admin.response().status(), 405);

        // A data plane that is held commits nothing, so an edit does not become live.
        let pid = proxy.dataplane_pid();
        process::signal(pid, Signal::STOP);
        let file = std::fs::read_to_string(proxy.file()).unwrap();
        let edited =
            file.split_once("\n\n").unwrap().1.replace("service = \"app\"", "service = \"app\"\nidle_timeout = \"1m\"");
        proxy.write(&edited);
        let missing = eventually("the edit waits for the data plane", || {
            let page = proxy.page("/ready");
            (page.status() == 503).then(|| page.text())
        });
        assert!(missing.starts_with("not ready: "), "{missing}");
        assert_eq!(proxy.page("/live").status(), 200);
        process::signal(pid, Signal::CONT);
        proxy.wait_until_ready();
        assert_eq!(Client::connect(front).get("app", "/").text(), "hello");
    });
}

#[test]
fn config_and_status_and_handshakes_show_what_is_in_effect_and_no_secrets() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let there = strict(driver, &authority, "app", app.address(), "max_connections = 77", "");
        let (here, outbound) = caller(driver, &authority.svid("web"), "web", "app", &[there.inbound], "");
        assert_eq!(Client::connect(outbound).get("there", "/").text(), "hello");

        let config = there.proxy.json("/config");
        assert_eq!(config["listener"][0]["max_connections"], 77, "{config}");
        assert_eq!(config["service"][0]["name"], "app", "{config}");
        let secrets = std::fs::read_to_string(there.proxy.folder().join("svid/svid.key")).unwrap();
        let secret = secrets.lines().nth(1).unwrap();
        for path in ["/config", "/status", "/handshakes", "/handshakes/counts", "/metrics", "/requests", "/"] {
            let page = there.proxy.page(path);
            assert_eq!(page.status(), 200, "{path}");
            let text = page.text();
            assert!(!text.contains(secret) && !text.contains("PRIVATE"), "{path} shows the key:\n{text}");
        }

        let status = here.status();
        let running = if driver == Driver::Epoll { "epoll" } else { "io_uring" };
        assert!(status["dataplane"]["driver"].as_str().unwrap().starts_with(running), "{status}");
        let workers = status["dataplane"]["report"]["workers"].as_array().unwrap();
        assert_eq!(workers.iter().map(|worker| &worker["version"]).collect::<Vec<_>>(), [&json!(1), &json!(1)]);
        assert_eq!(status["config"]["live_version"], 1);
        assert_eq!(status["services"][0]["endpoints"][0]["state"], "up", "{status}");
        let expires = status["identity"]["expires_at"].as_u64().unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert!((now + 23 * 3600..now + 25 * 3600).contains(&expires), "{status}");

        let newest = |proxy: &Proxy| {
            eventually("a handshake is on record", || proxy.json("/handshakes").as_array().unwrap().last().cloned())
        };
        let (inbound, outbound) = (newest(&there.proxy), newest(&here));
        assert_eq!((&inbound["direction"], &inbound["peer"]), (&json!("inbound"), &json!(authority.id("web"))));
        assert_eq!((&outbound["direction"], &outbound["peer"]), (&json!("outbound"), &json!(authority.id("app"))));
        assert_eq!((&inbound["tls"], &inbound["cipher"]), (&outbound["tls"], &outbound["cipher"]));
        assert_eq!(
            (&inbound["local"], &inbound["remote"]),
            (&outbound["remote"], &outbound["local"]),
            "one connection"
        );
        assert_eq!((&inbound["refused"], &outbound["refused"]), (&Value::Null, &Value::Null));
    });
}

#[test]
fn control_counts_on_while_nobody_reads_and_requests_never_wait_for_it() {
    on_both_drivers(|driver| {
        let app = load::service();
        let (proxy, front) = proxy_to(driver, &[app.address()]);
        // Nobody drains the access log's rings now; 256 KiB of a worker hold about a thousand lines.
        process::signal(proxy.control_pid(), Signal::STOP);
        let begun = Instant::now();
        let load = load::steady(front, 4_000.0, 20, Reuse::KeepAlive, vec![Entry::get("app", "/")]);
        hold(Duration::from_millis(2_000));
        let report = load::end(load);
        let held = begun.elapsed();
        process::signal(proxy.control_pid(), Signal::CONT);
        load::assert_nothing_failed(&report, 1_000);
        proxy.wait_for_metric("ringmesh_request_total", &[("class", "2xx")], report.total.answered());
        let mut last = (0, 0);
        let begun = Instant::now();
        while last.0 + last.1 != report.total.answered() {
            assert!(
                begun.elapsed() < DEADLINE,
                "of {} requests {last:?} have a line or are dropped",
                report.total.answered()
            );
            last = (proxy.access_log().len() as u64, lines_dropped(&proxy));
        }
        eprintln!("{} requests in {held:?} while control was held", report.total.answered());
    });
}

#[test]
fn the_log_has_the_proxys_own_lines_and_none_of_its_libraries() {
    on_both_drivers(|driver| {
        let app = http2::service(http2::service::shown);
        let front = ports::free();
        // Names, HTTP/2 on both sides, an edit: all that libraries would speak of.
        let config = |name: &str| {
            format!(
                "[[listener]]\nname = \"{name}\"\nbind = \"{front}\"\nservice = \"app\"\n\
                 [[service]]\nname = \"app\"\nprotocol = \"http2\"\nendpoints = [\"localhost:{}\"]\n\
                 [[service]]\nname = \"gone\"\nendpoints = [\"nobody.invalid:80\"]\n",
                app.address().port()
            )
        };
        let mut proxy = ringmesh(driver).level("trace").config(config("one")).start();
        let mut client = Connection::connect(front);
        for _ in 0..10 {
            assert_eq!(client.get("app", "/x").text(), "GET /x 0");
        }
        drop(client);
        proxy.reconfigure(&config("two"));
        let log = proxy.log();
        let targets: BTreeSet<String> = log
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .filter(|line| line["level"] == "DEBUG" || line["level"] == "TRACE")
            .map(|line| line["target"].as_str().unwrap_or_default().split("::").next().unwrap().to_owned())
            .collect();
        let packages = include_str!("../../Cargo.lock").lines().filter_map(|line| line.strip_prefix("name = \""));
        let packages: BTreeSet<String> = packages.map(|name| name.trim_end_matches('"').replace('-', "_")).collect();
        let of_libraries: Vec<_> =
            targets.intersection(&packages).filter(|name| !name.starts_with("ringmesh")).collect();
        assert!(of_libraries.is_empty(), "{of_libraries:?} of {targets:?}");
    });
}

#[test]
fn a_head_of_http_2_that_breaks_a_rule_is_told_with_the_rule() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let front = ports::free();
        let proxy = ringmesh(driver).config(forwarding(front, &[app.address()], "max_headers = 8\n", "")).start();
        let mut client = Connection::connect(front);
        let from = client.socket().local_addr().unwrap().to_string();
        let good = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "app")];
        let and = |fields: &[(&'static str, &'static str)]| [&good[..], fields].concat();
        let heads = [
            (and(&[("host", "other")]), 400, "bad_request", "malformed host"),
            (and(&[("host", "app"), ("host", "app")]), 400, "bad_request", "several Host fields"),
            (and(&[("content_length", "1")]), 400, "bad_request", "malformed field name"),
            (and(&[("expect", "wonders")]), 417, "expectation_failed", "unknown expectation"),
            (and(&[("a", "b"); 9]), 431, "header_too_large", "too many fields"),
            (good[..3].to_vec(), 400, "bad_request", "Host is missing"),
            (vec![good[0], good[1], (":path", "*"), good[3]], 400, "bad_request", "malformed request target"),
            (
                vec![(":method", "CONNECT"), (":authority", "app:1"), ("content-length", "0")],
                400,
                "bad_request",
                "CONNECT with a body",
            ),
        ];
        for (fields, status, ..) in &heads {
            let stream = client.open(fields, Ends::Yes);
            assert_eq!(client.response(stream).status(), *status, "{fields:?}");
        }
        for (_, _, reason, rule) in &heads {
            let reason = format!("\"reason\":\"{reason}\"");
            proxy.wait_for_log(&[&format!("request refused: {rule}"), "\"INFO\"", "front", &from, &reason]);
        }
        assert_eq!(client.get("app", "/").text(), "hello");
        assert_eq!(proxy.log().matches("request refused").count(), heads.len(), "each once");
    });
}

#[test]
fn a_message_that_cannot_be_read_is_told_with_who_wrote_it_and_what_is_wrong() {
    on_both_drivers(|driver| {
        let good = Service::saying("good");
        let bad = Service::http(|_| "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx");
        let (proxy, front) = with_routes(driver, good.address(), bad.address());

        let mut client = Client::connect(front);
        let from = client.socket().local_addr().unwrap().to_string();
        assert_eq!(client.send("GET / HTTP/1.1\r\nHost: good\r\nHost: bad\r\n\r\n").response().status(), 400);
        proxy.wait_for_log(&["request refused: several Host fields", "\"INFO\"", "front", &from]);

        let endpoint = bad.address().to_string();
        assert_eq!(Client::connect(front).get("bad", "/").status(), 502);
        let hint =
            "the endpoint's answer cannot be understood: it is no HTTP/1.1, or breaks its rules; does it speak HTTP/2";
        proxy.wait_for_log(&[hint, "\"WARN\"", "\"bad\"", &endpoint]);

        // What begins HTTP/2 is no broken request, and what is read well is not told.
        assert_eq!(Connection::connect(front).get("good", "/").status(), 200);
        assert_eq!(Client::connect(front).get("good", "/").status(), 200);
        assert_eq!(proxy.log().matches("request refused").count(), 1);
        assert_eq!(proxy.log().matches("cannot be understood").count(), 1);
    });
}

#[test]
fn what_both_processes_take_is_on_the_page_under_prometheus_own_names() {
    let app = Service::saying("hello");
    let (proxy, front) = proxy_to(Driver::Auto, &[app.address()]);
    let mut clients: Vec<Client> = (0..50).map(|_| Client::connect(front)).collect();
    for client in &mut clients {
        assert_eq!(client.get("app", "/").text(), "hello");
    }
    let value = |metrics: &Metrics, name: &str, process: &str| {
        let found: Vec<f64> = metrics.find(name, &[("process", process)]).map(|sample| sample.value).collect();
        assert_eq!(found.len(), 1, "{name} of {process}");
        found[0]
    };
    let metrics = proxy.metrics();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    for (name, pid) in [("control", proxy.control_pid()), ("dataplane", proxy.dataplane_pid())] {
        let of = |metric: &str| value(&metrics, metric, name);
        let cpu = process::processor_time(pid).as_secs_f64();
        assert!((0.0..=cpu).contains(&of("process_cpu_seconds_total")), "{name}: {cpu}");
        let resident = process::resident_set_size(pid) as f64;
        let told = of("process_resident_memory_bytes");
        assert!(told > resident / 2.0 && told < resident * 2.0, "{name}: {told}, {resident}");
        assert!(of("process_virtual_memory_bytes") > told, "{name}");
        let open = process::descriptors(pid) as f64;
        assert!((of("process_open_fds") - open).abs() < 20.0, "{name}: {open}");
        assert!(of("process_max_fds") >= open, "{name}");
        let started = of("process_start_time_seconds");
        assert!(started > now - 60.0 && started < now + 2.0, "{name}: {started}, {now}");
    }
    assert!(value(&metrics, "process_open_fds", "dataplane") >= 50.0, "a descriptor a connection at least");
    // Of one that is gone, its numbers go too; they come back with the next one.
    proxy.kill_dataplane();
    let started = value(&metrics, "process_start_time_seconds", "dataplane");
    eventually("the next one is on the page", || {
        let metrics = proxy.metrics();
        metrics
            .find("process_start_time_seconds", &[("process", "dataplane")])
            .any(|new| new.value > started)
            .then_some(())
    });
}
