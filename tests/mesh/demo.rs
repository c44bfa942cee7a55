//! `ringmesh demo`: the whole product from one command, and that its verdict can be trusted.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Far beyond what any demo here takes.
const LIMIT: Duration = Duration::from_secs(120);

fn ringmesh() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringmesh"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Processes whose command line names this folder, and that are none of the demo's own.
fn processes_of(folder: &Path) -> Vec<(u32, String)> {
    let name = folder.to_str().unwrap();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(name) && !line.contains(" demo ") {
            found.push((pid, line));
        }
    }
    found
}

fn is_alive(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !happened() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A demo in a folder of its own, whose shop is open.
struct Demo {
    child: Child,
    folder: tempfile::TempDir,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = ringmesh().arg("demo").arg("--dir").arg(folder.path()).args(arguments).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("Ctrl-C ends everything") {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "the demo ended before its shop was open");
        }
        // Its further lines must be read, or it would wait for us.
        thread::spawn(move || output.read_to_string(&mut String::new()));
        Self { child, folder }
    }

    fn process(&self, part: &str) -> u32 {
        let processes = processes_of(self.folder.path());
        let found = processes.iter().find(|(_, line)| line.contains(part));
        found.unwrap_or_else(|| panic!("no process {part} in {processes:?}")).0
    }

    fn signal(&self, name: &str, pid: u32) {
        assert!(Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap().success());
    }

    /// Its exit code and what it says is wrong. Nothing of it may be left.
    fn end(mut self) -> (i32, String) {
        let mut status = None;
        wait_for("the end of the demo", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let mut problems = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut problems).unwrap();
        assert_eq!(processes_of(self.folder.path()), [], "left behind; {problems}");
        (status.unwrap().code().unwrap_or(-1), problems)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Asked rather than killed, so that a failed test leaves no processes behind either.
        if self.child.try_wait().unwrap().is_none() {
            self.signal("TERM", self.child.id());
            let _status = self.child.wait();
        }
    }
}

fn check_unattended(driver: &str) {
    let output: Output =
        ringmesh().args(["demo", "--duration", "3s", "--rate", "100", "--json", "--driver", driver]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let summary: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}\n{said}", String::from_utf8_lossy(&output.stdout)));
    assert!(output.status.success(), "{summary:#}\n{said}");
    let number = |key: &str| summary[key].as_u64().unwrap_or_else(|| panic!("{key} in {summary:#}"));
    assert_eq!((number("requests"), number("failures")), (300, 0), "{summary:#}");
    // At the least one connection for each way through the mesh, and the one that is refused.
    assert!(number("hops") >= 4, "{summary:#}");
    assert_eq!(number("hops"), number("mutually_authenticated_hops"), "{summary:#}");
    assert_eq!((number("refused_calls"), number("forbidden_calls")), (3, 3), "{summary:#}");
    // 300 draws with a chance of 0.1: beyond these bounds once in ten million runs.
    let share = summary["share_per_version"]["v2"].as_f64().unwrap();
    assert!((0.02..0.21).contains(&share), "{summary:#}");
    let attempts = summary["plaintext_attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 4);
    for attempt in attempts {
        assert!(
            ["closed", "reset", "tls_alert", "told_tls"].contains(&attempt["result"].as_str().unwrap()),
            "{summary:#}"
        );
    }
    for processes in summary["processes"].as_object().unwrap().values() {
        let data_planes = processes["data_plane"].as_array().unwrap();
        assert_eq!(data_planes.len(), 1, "{summary:#}");
        for pid in [&processes["service"], &processes["control"], &data_planes[0]] {
            assert!(!is_alive(pid.as_u64().unwrap()), "process {pid} is left; {summary:#}");
        }
    }
}

#[test]
fn unattended_demo_is_as_it_must_be_on_the_best_driver() {
    check_unattended("auto");
}

#[test]
fn unattended_demo_is_as_it_must_be_on_epoll() {
    check_unattended("epoll");
}

#[test]
fn demo_ends_on_ctrl_c_with_all_its_processes() {
    let demo = Demo::start(&[]);
    assert_eq!(processes_of(demo.folder.path()).len(), 8, "a control and a data plane for each of four sidecars");
    demo.signal("INT", demo.child.id());
    assert_eq!(demo.end(), (0, String::new()));
}

#[test]
fn demo_fails_when_the_policy_refuses_nothing_any_more() {
    let demo = Demo::start(&["--duration", "6s"]);
    let file = demo.folder.path().join("payments-v1.toml");
    let config = fs::read_to_string(&file).unwrap();
    fs::write(&file, config.split_once("[[policy]]").unwrap().0).unwrap();
    let (code, problems) = demo.end();
    assert_eq!(code, 1);
    assert!(problems.contains("calls were refused that the policy forbids"), "{problems}");
}

#[test]
fn demo_fails_when_a_hop_goes_without_mutual_tls() {
    let demo = Demo::start(&["--duration", "6s"]);
    // Both ends give it up; between the two edits nobody gets through, afterwards everybody does.
    let change = |member: &str, from: &str, to: &str| {
        let file = demo.folder.path().join(format!("{member}.toml"));
        let config = fs::read_to_string(&file).unwrap();
        assert!(config.contains(from), "{config}");
        fs::write(&file, config.replace(from, to)).unwrap();
    };
    change("checkout", "mtls = \"strict\"\n", "");
    change("web", "peer = \"checkout\"\n", "");
    let (code, problems) = demo.end();
    assert_eq!(code, 1, "{problems}");
    assert!(problems.contains("web → checkout was not mutually authenticated"), "{problems}");
    assert!(problems.contains("without a handshake on record"), "{problems}");
    assert!(problems.contains("a plain connection to checkout"), "and a plain connection gets through: {problems}");
}

#[test]
fn demo_fails_when_a_service_dies() {
    let demo = Demo::start(&["--duration", "4s"]);
    // The service's command line names no folder; its sidecar's config names its port.
    let config = fs::read_to_string(demo.folder.path().join("payments-v2.toml")).unwrap();
    let service = config.split("name = \"local\"").last().unwrap();
    let port = service.split('"').find(|text| text.starts_with("127.0.0.1:")).unwrap();
    demo.signal("KILL", process_with(&format!("--bind={port}")));
    let (code, problems) = demo.end();
    assert_eq!(code, 1);
    assert!(problems.contains("payments-v2-service"), "{problems}");
    assert!(problems.contains("status 502"), "{problems}");
}

fn process_with(argument: &str) -> u32 {
    processes_of(Path::new(argument)).first().expect("it runs").0
}

#[test]
fn demo_whose_control_process_is_killed_says_so_and_leaves_nothing() {
    let demo = Demo::start(&["--duration", "4s"]);
    demo.signal("KILL", demo.process("run -c"));
    let (code, problems) = demo.end();
    assert_eq!(code, 1);
    assert!(problems.contains("ended instead of serving"), "{problems}");
    assert!(!problems.contains("requests failed"), "the data plane goes on without control: {problems}");
}

#[test]
fn demo_wants_a_folder_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mine"), "").unwrap();
    let output = ringmesh().args(["demo", "--duration", "1s", "--dir"]).arg(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is not empty"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
