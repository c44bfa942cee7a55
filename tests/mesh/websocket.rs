//! The conformance suite of WebSocket through the proxy: the cases of the Autobahn suite, run by `kosoku`, against a server of the
//! library `websockets`. What the server does with a case must not depend on what lies between.
//!
//! The suite's own runner, PyPI's `autobahntestsuite`, is for Python 2, which Debian has no more.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::{Driver, Program, Proxy, eventually, on_both_drivers_at_once, ports};
use serde_json::Value;

use crate::support::{DOMAIN, caller, forwarding, ringmesh, strict};

/// The versions that the tests were made with: of the library, and of the suite.
const PACKAGES: [&str; 2] = ["websockets==15.0.1", "kosoku==0.1.0"];

/// A Python with the library and the suite, in the target folder.
pub(crate) fn python() -> &'static Path {
    static PYTHON: LazyLock<PathBuf> = LazyLock::new(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(PACKAGES.join("-").replace("==", "-"));
        let (python, done) = (folder.join("bin/python3"), folder.join("complete"));
        if !done.exists() {
            let run = |program: &Path, words: &[&str]| {
                let output =
                    Command::new(program).args(words).output().unwrap_or_else(|error| panic!("{program:?}: {error}"));
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success(), "{program:?} {words:?}: {said}\ntry: apt-get install python3-venv");
            };
            run(Path::new("python3"), &["-m", "venv", "--clear", folder.to_str().unwrap()]);
            run(
                &python,
                &[&["-m", "pip", "install", "--quiet", "--disable-pip-version-check"], &PACKAGES[..]].concat(),
            );
            std::fs::write(done, "").unwrap();
        }
        python
    });
    &PYTHON
}

/// What uses the library, on both sides.
pub(crate) fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/mesh/websocket.py")
}

/// A server that sends every message back. Dropped, it ends.
pub(crate) struct Echo {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Echo {
    pub(crate) fn start() -> Self {
        let address = ports::free();
        let child = Command::new(python()).arg(script()).args(["serve", &address.to_string()]).spawn().unwrap();
        let echo = Self { child, address };
        eventually("the server listens", || std::net::TcpStream::connect(address).ok());
        echo
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Cases that are not run: those of compression, of which each has a thousand messages and which look the same to a proxy, and
/// of 4 MiB in ever larger pieces. Of both, a few are.
const WITHOUT: [&str; 6] = ["12.*", "13.*", "9.3.*", "9.4.*", "9.5.*", "9.6.*"];
const WITH: [&str; 8] = ["12.1.1", "12.1.9", "12.3.3", "13.3.1", "9.3.4", "9.4.9", "9.5.6", "9.6.3"];

/// How many are.
const CASES: usize = 279;

/// Cases that the server itself fails: it answers a close that comes in the middle of a message by a code of its own.
const FAILED_BY_THE_SERVER: [&str; 1] = ["7.1.5"];

/// What came of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The server kept to the rules. Whether it did so at once or later depends on when the parts of a message come.
    Well,
    /// There is no right or wrong.
    Told,
    Failed,
}

impl Verdict {
    fn of(told: &Value) -> Self {
        let [conversation, end] = ["behavior", "behaviorClose"].map(|word| told[word].as_str().unwrap_or_default());
        match (conversation, end) {
            ("OK" | "NON-STRICT", "OK") => Self::Well,
            ("INFORMATIONAL", "OK" | "INFORMATIONAL") => Self::Told,
            _ => Self::Failed,
        }
    }
}

type Verdicts = BTreeMap<String, Verdict>;

/// Runs the suite against a server at this address.
#[track_caller]
fn suite(address: SocketAddr) -> Verdicts {
    let mut verdicts = Verdicts::new();
    let without = WITHOUT.iter().flat_map(|case| ["--exclude", case]);
    let with = WITH.iter().flat_map(|case| ["--include", case]);
    for chosen in [without.collect::<Vec<_>>(), with.collect()] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(python().with_file_name("kosoku"));
        command.arg(address.to_string()).args(["--parallelism", "8", "--outdir"]).arg(folder.path()).args(chosen);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = || [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
        let index =
            std::fs::read(folder.path().join("index.json")).unwrap_or_else(|error| panic!("{error}: {}", said()));
        let index: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_slice(&index).unwrap();
        verdicts.extend(index.into_values().flatten().map(|(case, told)| (case, Verdict::of(&told))));
    }
    verdicts
}

/// The proxies between the suite and the server.
struct Route {
    name: &'static str,
    front: SocketAddr,
    _proxies: Vec<Proxy>,
    _neighbours: Vec<Program>,
}

/// Through one proxy and through two, by HTTP/1.1 and HTTP/2, in plain and by mutual TLS; and with HAProxy on both sides, which
/// speaks HTTP/2 with the proxy.
fn routes(driver: Driver, app: SocketAddr) -> Vec<Route> {
    let one = ports::free();
    let plain = Route {
        name: "HTTP/1.1",
        front: one,
        _proxies: vec![ringmesh(driver).config(forwarding(one, &[app], "", "")).start()],
        _neighbours: Vec::new(),
    };
    let mut routes = vec![plain];
    let authority = Authority::new(DOMAIN);
    for (name, keys) in [("HTTP/1.1 in mutual TLS", ""), ("HTTP/2 in mutual TLS", "protocol = \"http2\"\n")] {
        let there = strict(driver, &authority, "there", app, "", "");
        let (here, front) = caller(driver, &authority.svid("here"), "here", "there", &[there.inbound], keys);
        routes.push(Route { name, front, _proxies: vec![here, there.proxy], _neighbours: Vec::new() });
    }
    let (first, front, last) = (ports::free(), ports::free(), ports::free());
    let behind = Program::haproxy(
        last,
        &format!("listen last\n  mode http\n  bind {last} proto h2\n  timeout tunnel 60s\n  server app {app}"),
    );
    let proxy = ringmesh(driver).config(forwarding(front, &[last], "", "protocol = \"http2\"\n")).start();
    let before = Program::haproxy(
        first,
        &format!(
            "listen first\n  mode http\n  bind {first}\n  timeout tunnel 60s\n  server proxy {front} proto h2 ws h2"
        ),
    );
    routes.push(Route {
        name: "HTTP/2 with HAProxy on both sides",
        front: first,
        _proxies: vec![proxy],
        _neighbours: vec![before, behind],
    });
    routes
}

#[test]
fn the_conformance_suite_has_the_same_verdicts_through_every_kind_of_connection() {
    let echo = Echo::start();
    let direct = suite(echo.address);
    assert_eq!(direct.len(), CASES, "{:?}", direct.keys());
    let failed: Vec<_> =
        direct.iter().filter(|(_, verdict)| **verdict == Verdict::Failed).map(|(case, _)| case).collect();
    assert_eq!(failed, FAILED_BY_THE_SERVER, "without a proxy");
    on_both_drivers_at_once(|driver| {
        for route in routes(driver, echo.address) {
            let begun = std::time::Instant::now();
            let found = suite(route.front);
            eprintln!("{driver}: {}: {} cases after {:?}", route.name, found.len(), begun.elapsed());
            let differ = |case: &&String| found.get(*case) != direct.get(*case);
            let differing: Vec<_> =
                direct.keys().filter(differ).map(|case| (case, &direct[case], found.get(case))).collect();
            assert!(differing.is_empty(), "{}: {differing:?}", route.name);
            assert_eq!(found.len(), CASES);
        }
    });
}
