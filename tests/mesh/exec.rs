//! `ringmesh exec`: the command finds its proxy serving, has its streams and signals to itself, and takes it along when it
//! ends.

use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ringmesh_tests::process::{self, Role};
use ringmesh_tests::{Client, Driver, Proxy, Service, eventually, hold, on_both_drivers, peers, ports};
use rustix::process::Signal;

use crate::support::{RINGMESH, forwarding, ringmesh};

/// `ringmesh exec` on a proxy that was not started.
struct Exec {
    proxy: Proxy,
    front: SocketAddr,
    words: Vec<String>,
    launcher: Vec<&'static str>,
}

/// A running one, which is ended with the test.
struct Running {
    child: Child,
    /// Its leftovers end with it.
    exec: Exec,
}

impl Exec {
    /// Beside a proxy whose port `front` leads to this service.
    fn before(driver: Driver, app: SocketAddr) -> Self {
        let front = ports::free();
        let proxy = ringmesh(driver).config(forwarding(front, &[app], "", "")).prepare();
        Self { proxy, front, words: Vec::new(), launcher: Vec::new() }
    }

    fn options(mut self, words: &[&str]) -> Self {
        self.words.extend(words.iter().map(|word| (*word).to_owned()));
        self
    }

    fn launched_by(mut self, words: &[&'static str]) -> Self {
        self.launcher = words.to_vec();
        self
    }

    fn command(&self, command: &[&str]) -> Command {
        // Signals that our caller ignores, as shells do for what they start with `&`, would be ignored by the command too.
        let mut exec = Command::new("env");
        exec.arg("--default-signal").args(&self.launcher).arg(RINGMESH).arg("exec").arg("-c").arg(self.proxy.file());
        exec.arg("--runtime-dir").arg(self.proxy.runtime_directory());
        exec.args(&self.words).arg("--").args(command).current_dir(self.proxy.folder()).env_remove("RUST_LOG");
        // Files, since whoever is left over would keep a pipe open, and the test waiting.
        let open = |name| File::create(self.file(name)).unwrap();
        exec.stdin(Stdio::null()).stdout(open("out")).stderr(open("error"));
        exec
    }

    /// Runs a command to its end.
    fn run(&self, command: &[&str]) -> Said {
        let mut running = self.command(command).spawn().unwrap();
        self.said(&mut running)
    }

    /// What it said, and its exit code once it has ended.
    #[track_caller]
    fn said(&self, running: &mut Child) -> Said {
        let begun = Instant::now();
        let status = loop {
            match running.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if begun.elapsed() > Duration::from_secs(60) => break None,
                None => hold(Duration::from_millis(5)),
            }
        };
        let text = |name| fs::read_to_string(self.file(name)).unwrap();
        let said = Said { code: status.and_then(|status| status.code()), out: text("out"), error: text("error") };
        if status.is_none() {
            let _ = running.kill();
            let _ = running.wait();
            panic!("exec does not end: {said:?}");
        }
        said
    }

    /// Runs a shell's script to its end.
    fn script(&self, script: &str) -> Said {
        self.run(&["sh", "-c", script])
    }

    /// Starts a shell's script, and waits until it has said that it runs.
    fn start(self, script: &str) -> Running {
        let began = self.file("began");
        let script = format!("{script}\ntouch began\nwhile :; do sleep 0.02; done");
        let child = self.command(&["sh", "-c", &script]).spawn().unwrap();
        let running = Running { child, exec: self };
        eventually("the command runs", || began.exists().then_some(()));
        running
    }

    fn file(&self, name: &str) -> PathBuf {
        self.proxy.folder().join(name)
    }

    #[track_caller]
    fn assert_nothing_left(&self) {
        assert!(self.proxy.pids(Role::Run).is_empty() && self.proxy.dataplane_pids().is_empty());
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        process::signal(self.child.id(), signal);
    }

    /// Its exit code, and what was said.
    #[track_caller]
    fn wait(&mut self) -> Said {
        self.exec.said(&mut self.child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    error: String,
}

#[test]
fn the_command_starts_when_its_proxy_serves_and_the_proxy_ends_with_it() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let exec = Exec::before(driver, app.address());
        // Once, without a second try: what comes too early fails.
        let said = exec.script(&format!("curl -sS --max-time 20 http://{}/; exit 7", exec.front));
        assert_eq!((said.code, said.out.as_str()), (Some(7), "hello"), "{said:?}");
        assert!(said.error.contains("\"status\":200"), "the access log goes to standard error: {}", said.error);
        exec.assert_nothing_left();
        assert!(Client::try_connect(exec.front).is_err());
        assert!(!exec.proxy.runtime_directory().join("control.sock").exists());
    });
}

#[test]
fn the_commands_streams_are_its_own() {
    let app = Service::saying("hello");
    let exec = Exec::before(Driver::Epoll, app.address());
    let mut child = exec.command(&["sh", "-c", "cat; echo end >&2"]).stdin(Stdio::piped()).spawn().unwrap();
    let bytes = "line\n".repeat(100_000);
    let (mut input, sent) = (child.stdin.take().unwrap(), bytes.clone());
    let writing = std::thread::spawn(move || input.write_all(sent.as_bytes()));
    let said = exec.said(&mut child);
    writing.join().unwrap().unwrap();
    assert_eq!(said.code, Some(0), "{}", said.error);
    assert!(said.out == bytes, "{} bytes instead of {}", said.out.len(), bytes.len());
    assert!(said.error.lines().any(|line| line == "end"), "{}", said.error);
}

#[test]
fn the_exit_code_is_the_commands_or_says_which_signal_has_killed_it_or_that_there_is_none() {
    let app = Service::saying("hello");
    let exec = Exec::before(Driver::Epoll, app.address());
    for (command, code, error) in [
        (&["true"][..], 0, ""),
        (&["sh", "-c", "exit 42"], 42, ""),
        (&["sh", "-c", "kill -KILL $$"], 128 + 9, ""),
        (&["./no-such-command"], 127, "ringmesh: `./no-such-command`: No such file or directory"),
        (&["./proxy.toml"], 126, "ringmesh: `./proxy.toml`: Permission denied"),
    ] {
        let said = exec.run(command);
        assert_eq!((said.code, said.out.as_str()), (Some(code), ""), "{command:?} {said:?}");
        assert!(said.error.contains(error), "{command:?} {said:?}");
        exec.assert_nothing_left();
    }
}

#[test]
fn a_proxy_that_cannot_start_is_told_with_the_reason_and_the_command_never_runs() {
    let app = Service::saying("hello");
    let exec = Exec::before(Driver::Epoll, app.address());
    let taken = std::net::TcpListener::bind(exec.front).unwrap();
    let refused = |exec: &Exec, reasons: &[&str]| {
        let said = exec.script("touch ran");
        assert_eq!((said.code, said.out.as_str()), (Some(125), ""), "{said:?}");
        for reason in reasons.iter().chain(&["ringmesh: so `sh` was not run"]) {
            assert!(said.error.contains(reason), "no `{reason}` in {}", said.error);
        }
        assert!(!exec.file("ran").exists());
        exec.assert_nothing_left();
    };
    refused(
        &exec,
        &[&format!("{} is in use by", exec.front), "the proxy does not start (exit code 1; its log says why)"],
    );
    drop(taken);

    exec.proxy.write("[[listener]]\nname = \"front\"\nbin = \"127.0.0.1:1\"\n");
    refused(&exec, &["unknown key `bin`; did you mean `bind`?"]);

    let late = Exec::before(Driver::Epoll, app.address()).options(&["--ready-timeout", "1ms"]);
    refused(&late, &["the proxy is not ready within 1ms"]);
}

#[test]
fn a_proxy_that_another_one_runs_already_is_not_taken_for_the_own() {
    let app = Service::saying("hello");
    let mut exec = Exec::before(Driver::Epoll, app.address());
    exec.proxy.run();
    let said = exec.script("touch ran");
    assert_eq!(said.code, Some(125), "{said:?}");
    assert!(said.error.contains("already runs this instance"), "{}", said.error);
    assert!(!exec.file("ran").exists());
    assert_eq!(Client::connect(exec.front).get("app", "/").text(), "hello", "the other one goes on");
}

#[test]
fn signals_reach_the_command_which_decides_and_the_proxy_serves_it_until_its_end() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        for launcher in [&[][..], &["unshare", "-pf", "--kill-child"]] {
            let exec = Exec::before(driver, app.address()).launched_by(launcher);
            let front = exec.front;
            let mut running = exec.start(&format!(
                "for s in HUP INT QUIT USR1 USR2 WINCH; do trap \"echo $s; touch $s\" $s; done\n\
                 trap 'curl -sS --max-time 20 http://{front}/; exit 9' TERM"
            ));
            // Through the parent of the command: that is exec, also where a launcher stands above it.
            let exec_pid = match launcher {
                [] => running.child.id(),
                _ => eventually("exec is below the launcher", || child_of(running.child.id())),
            };
            let signals = [
                ("HUP", Signal::HUP),
                ("INT", Signal::INT),
                ("QUIT", Signal::QUIT),
                ("USR1", Signal::USR1),
                ("USR2", Signal::USR2),
                ("WINCH", Signal::WINCH),
            ];
            for (name, signal) in signals {
                process::signal(exec_pid, signal);
                let mark = running.exec.file(name);
                eventually(&format!("the command has got SIG{name}"), || mark.exists().then_some(()));
            }
            process::signal(exec_pid, Signal::TERM);
            let said = running.wait();
            assert_eq!(said.code, Some(9), "{said:?}");
            assert_eq!(said.out, "HUP\nINT\nQUIT\nUSR1\nUSR2\nWINCH\nhello", "each once, and a proxy to the end");
            running.exec.assert_nothing_left();
        }
    });
}

#[test]
fn what_the_caller_ignores_is_ignored_by_the_command_too() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        for (launcher, out) in [(&["env", "--ignore-signal=INT"][..], "lives\n"), (&[], "")] {
            let exec = Exec::before(driver, app.address()).launched_by(launcher);
            let said = exec.script("kill -INT $$; echo lives");
            assert_eq!(said.out, out, "{said:?}");
        }
    });
}

/// The only child of a process.
fn child_of(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

#[test]
fn keys_of_the_terminal_reach_the_command_once() {
    let app = Service::saying("hello");
    let exec = Exec::before(Driver::Epoll, app.address());
    // A terminal of its own, on which python types.
    let program = "\
import os, pty, sys, time
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
said = b''
deadline = time.monotonic() + 30
while b'ready' not in said and time.monotonic() < deadline:
    said += os.read(terminal, 1024)
os.write(terminal, b'\\x03')
try:
    while time.monotonic() < deadline:
        more = os.read(terminal, 1024)
        if not more: break
        said += more
except OSError:
    pass
print(said.count(b'interrupted'), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";
    // No shell, which would take two for one while it waits.
    let counting = "\
import signal, time
count = 0
def interrupted(*_):
    global count
    count += 1
    print('interrupted', flush=True)
signal.signal(signal.SIGINT, interrupted)
print('ready', flush=True)
end = time.monotonic() + 1.5
while time.monotonic() < end: time.sleep(0.05)
raise SystemExit(count)
";
    let inner = exec.command(&["python3", "-c", counting]);
    let mut typing = Command::new("python3");
    typing.args(["-c", program]).arg(inner.get_program()).args(inner.get_args()).current_dir(exec.proxy.folder());
    let output = typing.output().unwrap();
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(said, "1 1\n", "{error}");
}

#[test]
fn a_control_that_dies_is_started_again_and_the_command_notices_nothing() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let mut running = Exec::before(driver, app.address()).start("trap 'exit 3' TERM");
        let dataplane = running.exec.proxy.dataplane_pid();
        let control = running.exec.proxy.pids(Role::Run)[0];
        process::kill(control);
        let next = eventually("another control runs", || {
            running.exec.proxy.pids(Role::Run).into_iter().find(|pid| *pid != control)
        });
        running.exec.proxy.wait_until_ready();
        assert_eq!(running.exec.proxy.dataplane_pid(), dataplane, "adopted, not replaced");
        assert_eq!(Client::connect(running.exec.front).get("app", "/").text(), "hello");
        assert_ne!(next, control);
        running.signal(Signal::TERM);
        assert_eq!(running.wait().code, Some(3));
        running.exec.assert_nothing_left();
    });
}

#[test]
fn what_a_command_leaves_open_holds_up_its_end_no_longer_than_it_may() {
    on_both_drivers(|driver| {
        let app = peers::hanging_server();
        for (open, options, at_most) in [
            // A kept connection without a request is nothing to wait for.
            ("", &[][..], Duration::from_secs(4)),
            ("GET / HTTP/1.1\r\nHost: app\r\n\r\n", &["--drain-timeout", "1s"], Duration::from_secs(8)),
        ] {
            let mut running = Exec::before(driver, app.address()).options(options).start("trap 'exit 0' TERM");
            let mut client = Client::connect(running.exec.front);
            client.send(open);
            if !open.is_empty() {
                eventually("the request is with the service", || (app.open() == 1).then_some(()));
            }
            let begun = Instant::now();
            running.signal(Signal::TERM);
            assert_eq!(running.wait().code, Some(0));
            assert!(begun.elapsed() < at_most, "{open:?} took {:?}", begun.elapsed());
            running.exec.assert_nothing_left();
        }
        // Who asks once more does not wait at all.
        let mut running =
            Exec::before(driver, app.address()).options(&["--drain-timeout", "120s"]).start("trap 'exit 5' TERM");
        let mut client = Client::connect(running.exec.front);
        client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
        eventually("the request is with the service", || (app.open() == 1).then_some(()));
        running.signal(Signal::TERM);
        eventually("it drains", || Client::try_connect(running.exec.front).is_err().then_some(()));
        running.signal(Signal::TERM);
        assert_eq!(running.wait().code, Some(5), "at once, not after 120 s");
        running.exec.assert_nothing_left();
    });
}

#[test]
fn a_control_that_hangs_is_killed_at_the_end_with_its_data_plane() {
    let app = Service::saying("hello");
    let exec = Exec::before(Driver::Epoll, app.address()).options(&["--drain-timeout", "100ms"]);
    let mut running = exec.start("trap 'exit 6' TERM");
    process::signal(running.exec.proxy.pids(Role::Run)[0], Signal::STOP);
    running.signal(Signal::TERM);
    let said = running.wait();
    assert_eq!(said.code, Some(6), "{said:?}");
    eventually("nothing is left", || running.exec.proxy.dataplane_pids().is_empty().then_some(()));
}

#[test]
fn a_proxy_whose_runtime_directory_was_swept_away_ends_with_the_command() {
    let app = Service::saying("hello");
    for cut in [false, true] {
        let exec = Exec::before(Driver::Epoll, app.address()).options(&["--drain-timeout", "500ms"]);
        let mut running = exec.start("trap 'exit 6' TERM");
        // What is open when the time is over is cut.
        let mut client = Client::connect(running.exec.front);
        if cut {
            client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 9\r\n\r\nhalf");
        }
        fs::remove_dir_all(running.exec.proxy.runtime_directory()).unwrap();
        running.signal(Signal::TERM);
        let said = running.wait();
        assert_eq!(said.code, Some(6), "{said:?}");
        assert!(!said.error.contains("has not ended in time"), "{said:?}");
        eventually("nothing is left", || running.exec.proxy.dataplane_pids().is_empty().then_some(()));
    }
}

#[test]
fn asked_to_end_before_the_proxy_is_ready_the_command_never_runs() {
    let app = Service::saying("hello");
    let exec = Exec::before(Driver::Epoll, app.address());
    let child = exec.command(&["touch", "ran"]).spawn().unwrap();
    let mut running = Running { child, exec };
    // Its handlers are there a moment after it runs; control is its first child.
    eventually("control runs", || child_of(running.child.id()));
    running.signal(Signal::TERM);
    let said = running.wait();
    assert!(matches!(said.code, Some(0 | 143)), "the command ran to its end before the signal, or never: {said:?}");
    assert_eq!(running.exec.file("ran").exists(), said.code == Some(0));
    running.exec.assert_nothing_left();
}
