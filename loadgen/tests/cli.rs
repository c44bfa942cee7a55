//! The command itself: what it prints, what it refuses, how it ends. And every example of loadgen/README.md.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Far beyond what any of these takes.
const LIMIT: Duration = Duration::from_secs(60);

fn command(words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringmesh-load"));
    command.args(words.split_whitespace());
    command
}

fn run(words: &str) -> Output {
    command(words).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A server, and where it listens. Ends with this.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(words: &str) -> Self {
        let mut child = command(&format!("serve {words} --bind 127.0.0.1:0")).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap().to_owned();
        Self { child, address }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn a_result_as_json_has_its_schema_version_and_what_others_read() {
    let server = Server::start("http --body 100");
    let output = run(&format!("http {} --rate 200 --duration 1s --warmup 200ms --json", server.url()));
    assert!(output.status.success(), "{}", stderr(&output));
    let result: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&result["schema"], &result["schema_version"]), (&"ringmesh-load".into(), &1.into()));
    assert_eq!((&result["total"]["requests"], &result["total"]["succeeded"]), (&200.into(), &200.into()));
    assert_eq!(result["total"]["classes"]["2xx"], 200);
    let latency = &result["total"]["latency_us"];
    let values: Vec<f64> =
        ["p50", "p90", "p99", "p999", "p9999", "max"].iter().map(|name| latency[name].as_f64().unwrap()).collect();
    assert!(values.is_sorted() && values[0] > 1.0, "{latency}");
    for share in ["busy_share", "waiting_share", "busiest_share"] {
        assert!((0.0..=2.0).contains(&result[share].as_f64().unwrap()), "{share}: {}", result[share]);
    }
    assert!(result["slices"]["done"].as_array().unwrap().len() >= 9);
}

#[test]
fn exit_codes_and_assertions_follow_the_result() {
    let good = Server::start("http");
    let bad = Server::start("http --errors 100%");
    let check = |server: &Server, asserts: &[&str], code: i32| {
        let mut command = command(&format!("http {} --closed -n 40", server.url()));
        for assert in asserts {
            command.args(["--assert", assert]);
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{asserts:?}: {}{}", stdout(&output), stderr(&output));
        output
    };
    check(&good, &[], 0);
    check(&bad, &[], 1);
    check(&good, &["errors=0", "requests=40", "p99<60s"], 0);
    check(&bad, &["status.500=40", "success<1%"], 0);
    let output = check(&bad, &["requests=40", "errors < 10%"], 3);
    assert!(stderr(&output).contains("assert requests=40: holds, measured 40"), "{}", stderr(&output));
    assert!(stderr(&output).contains("assert errors < 10%: DOES NOT HOLD, measured 100.000%"), "{}", stderr(&output));
}

#[test]
fn what_makes_no_sense_is_refused_with_what_would_be_right() {
    let check = |words: &[&str], code: i32, said: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_ringmesh-load")).args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}");
        assert!(stderr(&output).contains(said), "{words:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains('\x1b'), "colour where there is no terminal: {}", stderr(&output));
    };
    let url = "http://127.0.0.1:1/";
    check(&["http", url, "--rate", "100..x/30s"], 2, "    100..x/30s\n         ^");
    check(&["http", url, "--assert", "p99<5"], 2, "found `5`, expected a duration such as 5ms");
    check(&["http", url, "--cores", "4000"], 2, "core 4000 is not to be had: this process may use 0");
    check(&["http", url, "--cores", "a"], 2, "write one such as 0 or 0,2-3");
    check(&["http", url, "--until", "p99<5ms", "--between", "9..1"], 2, "write one such as 100..20k");
    check(&["http", url, "--closed", "--rate", "5"], 2, "cannot be used with");
    let until = ["http", url, "--until", "p99<5ms"];
    for more in [["--assert", "p99<5ms"], ["-n", "5"]] {
        check(&[&until[..], &more].concat(), 2, "cannot be used with");
    }
    for format in ["hdr", "prometheus"] {
        check(&[&until[..], &["--format", format]].concat(), 2, "is printed as `table` or `json`");
    }
    check(&["serve", "http", "--bind", "127.0.0.1:0", "--delay", "stall:1s/1s"], 2, "stall:100ms/1s");
}

#[test]
fn a_reader_who_has_seen_enough_is_no_failure() {
    let server = Server::start("http");
    for format in ["table", "json", "hdr", "prometheus"] {
        let words = format!("http {} --rate 100 --duration 300ms --format {format}", server.url());
        let mut child = command(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{format}: {}", stderr(&output));
    }
}

#[test]
fn more_connections_than_descriptors_are_refused_before_anything_is_sent() {
    let script = format!("ulimit -n 64; exec {} http http://127.0.0.1:1/ -c 100", env!("CARGO_BIN_EXE_ringmesh-load"));
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("100 connections need more descriptors than the 64"), "{}", stderr(&output));
}

#[test]
fn a_rate_beyond_the_machine_ends_in_time_and_says_so() {
    let server = Server::start("http");
    let started = Instant::now();
    let output = run(&format!("http {} --rate 9M --duration 500ms --cores 0 --json", server.url()));
    assert!(started.elapsed() < LIMIT / 2, "{:?}", started.elapsed());
    let result: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let (requests, unsent) = (result["requests"].as_u64().unwrap(), result["unsent"].as_u64().unwrap());
    assert_eq!((requests + unsent, &result["threads"]), (4_500_000, &1.into()), "{}", result["warnings"]);
    assert!(result["warnings"].to_string().contains("requests were due but never sent"), "{}", result["warnings"]);
}

#[test]
fn an_interrupt_ends_the_load_soon_and_prints_what_there_is() {
    // Every other request is never answered, so that open ones would keep it for ten seconds.
    let server = Server::start("http --hangs 20%");
    let started = Instant::now();
    let words = format!("http {} --rate 500 -c 50 --duration 60s --timeout 30s --json", server.url());
    let child = command(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1_000));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(started.elapsed() < LIMIT / 2, "{:?}", started.elapsed());
    let result: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(result["total"]["succeeded"].as_u64().unwrap() > 0, "{result}");
}

#[test]
fn a_search_finds_the_rate_that_a_server_carries() {
    // Four connections with answers of 10 ms carry less than 400 a second.
    let server = Server::start("http --delay 10ms");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("search.json");
    let output = Command::new(env!("CARGO_BIN_EXE_ringmesh-load"))
        .args(["http", &server.url(), "-c", "4", "--until", "p90<300ms", "--between", "10..10k"])
        .args(["-d", "500ms", "--at-most", "40s", "--json", "--save"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(std::fs::read_to_string(&file).expect("it was saved"), stdout(&output));
    let result: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let held = result["held"].as_f64().unwrap();
    assert!((20.0..=400.0).contains(&held), "{held}: {}", result["tries"]);
    assert!(result["broke"].as_f64().unwrap() > held);
}

#[test]
fn two_results_are_compared_and_foreign_ones_refused() {
    let (fast, slow) = (Server::start("http"), Server::start("http --delay 20ms"));
    let folder = tempfile::tempdir().unwrap();
    let save = |name: &str, server: &Server| {
        let file = folder.path().join(name).to_str().unwrap().to_owned();
        let output = run(&format!("http {} --rate 200 --duration 1500ms -c 20 --save {file}", server.url()));
        assert!(stdout(&output).contains("p99.99"), "{}", stdout(&output));
        file
    };
    let (a, b) = (save("a.json", &fast), save("b.json", &slow));
    let compare = |a: &str, b: &str, more: &str| run(&format!("compare {a} {b} {more}"));
    let same = compare(&a, &a, "--fail-if-worse");
    assert!(same.status.success() && !stdout(&same).contains("worse"), "{}", stdout(&same));
    let worse = compare(&a, &b, "--json --fail-if-worse");
    assert_eq!(worse.status.code(), Some(3), "{}", stdout(&worse));
    let rows: Value = serde_json::from_str(&stdout(&worse)).unwrap();
    let median = rows["rows"].as_array().unwrap().iter().find(|row| row["measure"] == "p50").unwrap();
    assert_eq!(median["verdict"], "worse", "{median}");

    let text = fs::read_to_string(&a).unwrap();
    let other = folder.path().join("other.json");
    fs::write(&other, text.replace("\"schema_version\":1", "\"schema_version\":99")).unwrap();
    let refused = compare(&a, other.to_str().unwrap(), "");
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        stderr(&refused).contains("schema version 99, and this ringmesh-load reads version 1"),
        "{}",
        stderr(&refused)
    );
    fs::write(&other, "{}").unwrap();
    assert!(stderr(&compare(&a, other.to_str().unwrap(), "")).contains("is no result of ringmesh-load"));
}

#[test]
fn an_hdr_log_and_prometheus_text_are_what_their_readers_expect() {
    let server = Server::start("http");
    let words = |format: &str| format!("http {} --rate 200 --duration 500ms --format {format}", server.url());
    let log = stdout(&run(&words("hdr")));
    let mut counted = 0;
    for entry in hdrhistogram::serialization::interval_log::IntervalLogIterator::new(log.as_bytes()) {
        if let hdrhistogram::serialization::interval_log::LogEntry::Interval(interval) = entry.unwrap() {
            let bytes =
                base64::Engine::decode(&base64::engine::general_purpose::STANDARD, interval.encoded_histogram());
            let mut deserializer = hdrhistogram::serialization::Deserializer::new();
            counted += deserializer.deserialize::<u64, _>(&mut &bytes.unwrap()[..]).unwrap().len();
        }
    }
    assert_eq!(counted, 100, "{log}");
    let text = stdout(&run(&words("prometheus")));
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("ringmesh_load_") && value.parse::<f64>().is_ok(), "{line}");
    }
    assert!(text.contains("ringmesh_load_answers{status=\"200\"} 100\n"), "{text}");
}

#[test]
fn a_ramp_shows_how_it_went_over_time() {
    let server = Server::start("http");
    let text = stdout(&run(&format!("http {} --rate 50..500/2s", server.url())));
    let rows = text.lines().skip_while(|line| !line.contains("until")).skip(1);
    let rates: Vec<f64> =
        rows.map_while(|line| line.split_whitespace().nth(2)).map_while(|word| word.parse().ok()).collect();
    assert!(rates.len() >= 5 && rates[4] > 2.0 * rates[0], "{rates:?}\n{text}");
    let text = stdout(&run(&format!("http {} --rate 50 --duration 1s", server.url())));
    assert!(!text.contains("until"), "{text}");
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&run(&format!("completions {shell}")));
        assert!(script.contains("compare") && script.contains("warmup"), "{shell}");
    }
}

/// A line of the page as it is run here: shorter, and somewhere else. None: the run itself proves it.
fn adapted(line: &str) -> Option<String> {
    let line = line.split(" #").next().unwrap_or(line).trim();
    if line.is_empty() || line.starts_with("cargo ") {
        return None;
    }
    let line = line.replace("/30s", "/300ms");
    let is_load = ["http ", "tcp ", "grpc "].iter().any(|word| line.starts_with(&format!("ringmesh-load {word}")));
    let has_length = line.contains("--duration") || line.contains(" -d ") || line.contains("/300ms");
    // Before a redirection.
    let (load, redirection) = line.split_once(" > ").unwrap_or((&line, ""));
    let mut load = load.replace("-d 30s", "-d 300ms").replace("--duration 5s", "--duration 500ms");
    if is_load && !has_length {
        // `compare` needs a second at least.
        load.push_str(if line.contains(".json") { " -d 1500ms" } else { " -d 300ms" });
    }
    Some(if redirection.is_empty() { load } else { format!("{load} > {redirection}") })
}

#[test]
fn every_example_of_the_page_does_what_it_says() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let mut script = String::from("set -e\ntrap 'kill $(jobs -p)' EXIT\n");
    let mut examples = 0;
    let mut inside = false;
    for line in page.lines() {
        if line.starts_with("```") {
            inside = line == "```sh";
            continue;
        }
        let Some(line) = inside.then(|| adapted(line)).flatten() else { continue };
        examples += 1;
        match line.strip_suffix('&') {
            // It is there when it says so.
            Some(server) => script.push_str(&format!(
                "{server} > server.out &\nuntil grep -q listening server.out; do sleep 0.02; done\nrm server.out\n"
            )),
            None => script.push_str(&format!("{line} || {{ code=$?; echo \"exit $code: $0\" >&2; exit $code; }}\n")),
        }
    }
    assert!(examples >= 20, "{examples} examples");

    // The page's ports may be taken here.
    let (http, stall, echo, grpc) = (port(), port(), port(), port());
    for (theirs, ours) in [("8080", http), ("8081", stall), ("9000", echo), ("50051", grpc)] {
        script = script.replace(&format!("127.0.0.1:{theirs}"), &format!("127.0.0.1:{ours}"));
    }
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_ringmesh-load"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let output = Command::new("timeout")
        .args(["120", "bash", "-xc", &script])
        .env("PATH", path)
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}\n{}", stdout(&output), stderr(&output));
    for file in ["before.json", "after.json", "load.hlog", "load.prom"] {
        assert!(fs::metadata(folder.path().join(file)).unwrap().len() > 100, "{file}");
    }
}

fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn every_exit_code_of_the_help_is_on_the_page_and_the_other_way_round() {
    let help = stdout(&run("--help"));
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    for code in [0, 1, 2, 3, 130] {
        assert!(help.contains(&format!("\n  {code:<5}")) && page.contains(&format!("| {code} |")), "{code}");
    }
}
