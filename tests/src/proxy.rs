//! `ringmesh run` as a test sees it: its config, its two processes, its pages and its logs.

use std::cell::OnceCell;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::driver::Driver;
use crate::message::Message;
use crate::metrics::Metrics;
use crate::ports;
use crate::process::{self, Role};
use crate::wait::{DEADLINE, eventually, within};

/// Lines of the log that a failing test shows.
const TAIL_LINES: usize = 40;

/// What a proxy is started with.
#[derive(Clone)]
pub struct Builder {
    binary: PathBuf,
    driver: Driver,
    workers: u16,
    drain_timeout: &'static str,
    level: &'static str,
    access: bool,
    launcher: Vec<String>,
    runtime_base: Option<PathBuf>,
    text: String,
}

impl Builder {
    /// A proxy by this binary on this driver, with two workers, an access log, and nothing to serve yet.
    pub fn new(binary: &str, driver: Driver) -> Self {
        Self {
            binary: binary.into(),
            driver,
            workers: 2,
            drain_timeout: "5s",
            level: "info",
            access: true,
            launcher: Vec::new(),
            runtime_base: None,
            text: String::new(),
        }
    }

    /// Its config, but for `[runtime]`, `[admin]` and `[log]`. Paths in it are relative to its folder.
    pub fn config(mut self, text: impl Into<String>) -> Self {
        self.text = text.into();
        self
    }

    /// How many workers.
    pub fn workers(mut self, workers: u16) -> Self {
        self.workers = workers;
        self
    }

    /// `[runtime] drain_timeout`
    pub fn drain_timeout(mut self, timeout: &'static str) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// `[log] level`
    pub fn level(mut self, level: &'static str) -> Self {
        self.level = level;
        self
    }

    /// Without a line for each request.
    pub fn without_access_log(mut self) -> Self {
        self.access = false;
        self
    }

    /// Through another program, such as `unshare -pf`.
    pub fn launched_by(mut self, words: &[&str]) -> Self {
        self.launcher = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// With its runtime directory where it goes by itself, below this folder instead of `/run`.
    pub fn runtime_base(mut self, folder: &Path) -> Self {
        self.runtime_base = Some(folder.to_owned());
        self
    }

    /// Lays out the folder without starting anything.
    ///
    /// # Panics
    /// If there is no place for it.
    pub fn prepare(self) -> Proxy {
        let folder = tempfile::Builder::new().prefix("ringmesh-").tempdir().expect("a temporary folder");
        let proxy = Proxy { builder: self, folder, admin: ports::free(), control: None, directory: OnceCell::new() };
        proxy.write(&proxy.builder.text);
        proxy
    }

    /// Starts it and waits until it serves as configured.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn start(self) -> Proxy {
        let mut proxy = self.prepare();
        proxy.run();
        proxy
    }
}

/// A proxy with its two processes. Dropped, it leaves none.
pub struct Proxy {
    builder: Builder,
    folder: TempDir,
    admin: SocketAddr,
    control: Option<Child>,
    directory: OnceCell<PathBuf>,
}

impl Proxy {
    // ---- files ----

    /// Its folder: the config, identities, logs.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its config file.
    pub fn file(&self) -> PathBuf {
        self.folder().join("proxy.toml")
    }

    /// Below which its runtime directory goes by itself; never the machine's own.
    fn runtime_base(&self) -> &Path {
        self.builder.runtime_base.as_deref().unwrap_or(self.folder())
    }

    /// Its runtime directory. One that goes where it goes by itself is known only once control has answered.
    pub fn runtime_directory(&self) -> PathBuf {
        if self.builder.runtime_base.is_none() {
            return self.folder().join("run");
        }
        if let Some(known) = self.directory.get() {
            return known.clone();
        }
        let status = self.try_page("/status").ok().and_then(|page| serde_json::from_slice::<Value>(&page.body).ok());
        match status.as_ref().and_then(|status| status["runtime_directory"].as_str()) {
            Some(path) => self.directory.get_or_init(|| path.into()).clone(),
            None => PathBuf::new(),
        }
    }

    /// Replaces the config in one step.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, text: &str) {
        let Builder { driver, workers, drain_timeout, level, access, .. } = &self.builder;
        let admin = self.admin;
        let whole = format!(
            "[runtime]\ndriver = \"{driver}\"\nworkers = {workers}\ndrain_timeout = \"{drain_timeout}\"\n\
             [log]\nlevel = \"{level}\"\naccess = {access}\n[admin]\nbind = \"{admin}\"\n\n{text}"
        );
        let new = self.folder().join(".proxy.toml.new");
        fs::write(&new, whole).expect("the folder is ours");
        fs::rename(new, self.file()).expect("the folder is ours");
    }

    /// `[log] level` from the next config on.
    pub fn set_level(&mut self, level: &'static str) {
        self.builder.level = level;
    }

    /// Replaces the config and waits until it is live on all workers.
    ///
    /// # Panics
    /// If it is refused, or does not become live.
    #[track_caller]
    pub fn reconfigure(&mut self, text: &str) {
        let before = self.status();
        let count =
            |status: &Value| [&status["config"]["reloads"], &status["config"]["refused_reloads"]].map(Value::as_u64);
        self.builder.text = text.to_owned();
        self.write(text);
        let status =
            eventually("the edit is noticed", || Some(self.status()).filter(|status| count(status) != count(&before)));
        assert_eq!(status["config"]["problems"].as_array().map(Vec::len), Some(0), "{}", status["config"]);
        self.wait_until_ready();
    }

    // ---- processes ----

    /// Starts control, and waits until all is served as configured.
    ///
    /// # Panics
    /// If it does not come to that.
    #[track_caller]
    pub fn run(&mut self) {
        self.run_control();
        self.wait_until_ready();
    }

    /// Starts control.
    ///
    /// # Panics
    /// If there is no such binary.
    pub fn run_control(&mut self) {
        let child = self.spawn_control();
        self.control = Some(child);
    }

    /// Starts a control that is somebody else's to end.
    ///
    /// # Panics
    /// If there is no such binary.
    pub fn spawn_control(&self) -> Child {
        let mut words = self.builder.launcher.iter();
        let mut command = match words.next() {
            Some(launcher) => {
                let mut command = Command::new(launcher);
                command.args(words).arg(&self.builder.binary);
                command
            }
            None => Command::new(&self.builder.binary),
        };
        let append = |name: &str| -> File {
            let path = self.folder().join(name);
            OpenOptions::new().create(true).append(true).open(path).expect("the folder is ours")
        };
        command.arg("run").arg("-c").arg(self.file());
        if self.builder.runtime_base.is_none() {
            command.arg("--runtime-dir").arg(self.runtime_directory());
        }
        command.env("XDG_RUNTIME_DIR", self.runtime_base());
        command.args(["--log-format", "json"]).env_remove("RUST_LOG").env("RUST_BACKTRACE", "1");
        command.stdin(Stdio::null()).stdout(append("access.log")).stderr(append("log"));
        command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.builder.binary.display()))
    }

    /// Waits until `/ready` says so.
    ///
    /// # Panics
    /// If it does not, or control has ended.
    #[track_caller]
    pub fn wait_until_ready(&mut self) {
        let begun = std::time::Instant::now();
        loop {
            let ready = self.try_page("/ready");
            match &ready {
                Ok(page) if page.status() == 200 => {
                    // Known from now on, also when control is gone.
                    self.runtime_directory();
                    return;
                }
                _ => {}
            }
            if let Some(ended) = self.control.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                panic!("control ended, {ended}; its log:\n{}", self.tail());
            }
            let last = ready.map_or_else(|error| error.to_string(), |page| page.text());
            assert!(begun.elapsed() < DEADLINE, "not ready within {DEADLINE:?}: {last}; the log:\n{}", self.tail());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The id of the control process (of init, if it runs below one).
    ///
    /// # Panics
    /// If it was not started.
    pub fn control_pid(&self) -> u32 {
        self.control.as_ref().expect("control was started").id()
    }

    /// The id of the living data plane process.
    ///
    /// # Panics
    /// If there is not exactly one.
    #[track_caller]
    pub fn dataplane_pid(&self) -> u32 {
        let found = self.dataplane_pids();
        assert_eq!(found.len(), 1, "one data plane lives: {found:?}");
        found[0]
    }

    /// The ids of all living data plane processes.
    pub fn dataplane_pids(&self) -> Vec<u32> {
        self.pids(Role::Dataplane)
    }

    /// The ids of all living processes of this role.
    pub fn pids(&self, role: Role) -> Vec<u32> {
        let all = process::of_proxy(&self.file(), &self.runtime_directory());
        all.into_iter().filter(|(_, found)| *found == role).map(|(pid, _)| pid).collect()
    }

    /// Ends control at once, and waits until it is gone.
    ///
    /// # Panics
    /// If it was not started.
    pub fn kill_control(&mut self) {
        let mut control = self.control.take().expect("control was started");
        let _ = control.kill();
        let _ = control.wait();
    }

    /// Ends the data plane at once, and waits until it is gone.
    ///
    /// # Panics
    /// If there is not exactly one.
    #[track_caller]
    pub fn kill_dataplane(&self) -> u32 {
        let pid = self.dataplane_pid();
        process::kill(pid);
        eventually("the data plane is gone", || (!process::lives(pid)).then_some(()));
        pid
    }

    /// Sends a signal to control.
    pub fn signal(&self, signal: Signal) {
        process::signal(self.control_pid(), signal);
    }

    /// Waits for control to end by itself.
    ///
    /// # Panics
    /// If it does not within `deadline`.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let control = self.control.as_mut().expect("control was started");
        let status = within(deadline, "control ends", || control.try_wait().expect("it is our child"));
        self.control = None;
        status
    }

    /// Runs another command of the binary.
    ///
    /// # Panics
    /// If there is no such binary.
    pub fn command(&self, words: &[&str]) -> Output {
        let mut command = Command::new(&self.builder.binary);
        command.args(words).current_dir(self.folder()).stdin(Stdio::null());
        command.env("XDG_RUNTIME_DIR", self.runtime_base()).env_remove("RUST_LOG");
        command.output().unwrap_or_else(|error| panic!("{}: {error}", self.builder.binary.display()))
    }

    // ---- what it shows ----

    /// Where its pages are.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// A page.
    ///
    /// # Errors
    /// If control does not answer.
    pub fn try_page(&self, path: &str) -> io::Result<Message> {
        let mut client = Client::try_connect(self.admin)?;
        client.try_send(format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n"))?;
        client.try_response()
    }

    /// A page.
    ///
    /// # Panics
    /// If control does not answer.
    #[track_caller]
    pub fn page(&self, path: &str) -> Message {
        match self.try_page(path) {
            Ok(page) => page,
            Err(error) => panic!("no page {path}: {error}"),
        }
    }

    /// A page of JSON.
    ///
    /// # Panics
    /// If control does not answer with 200 and JSON.
    #[track_caller]
    pub fn json(&self, path: &str) -> Value {
        let page = self.page(path);
        assert_eq!(page.status(), 200, "{path}: {}", page.text());
        serde_json::from_slice(&page.body).unwrap_or_else(|error| panic!("{path}: {error}: {}", page.text()))
    }

    /// What `ringmesh status --json` prints too.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.json("/status")
    }

    /// The metrics.
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&self.page("/metrics").text())
    }

    /// Waits until a sum of metrics is what it should be; counts follow a moment after what is counted.
    ///
    /// # Panics
    /// If it does not become so.
    #[track_caller]
    pub fn wait_for_metric(&self, name: &str, labels: &[(&str, &str)], expected: u64) {
        let mut last = 0;
        let begun = std::time::Instant::now();
        loop {
            let metrics = self.metrics();
            last = metrics.sum(name, labels).max(last);
            if last == expected {
                return;
            }
            if begun.elapsed() > DEADLINE {
                let all: Vec<String> =
                    metrics.find(name, &[]).filter(|one| one.value > 0.0).map(ToString::to_string).collect();
                panic!("{name} {labels:?} is {last}, expected {expected}; all of it: {all:#?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The log of both processes.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder().join("log")).unwrap_or_default()
    }

    /// Waits until a line of the log holds all these words, and gives it.
    ///
    /// # Panics
    /// If none comes.
    #[track_caller]
    pub fn wait_for_log(&self, words: &[&str]) -> String {
        eventually(&format!("a log line with {words:?}"), || {
            self.log().lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
        })
    }

    /// The access log, a line an entry.
    ///
    /// # Panics
    /// If a line is no JSON.
    pub fn access_log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.folder().join("access.log")).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }

    /// Waits for an access log line.
    ///
    /// # Panics
    /// If none comes.
    #[track_caller]
    pub fn wait_for_access(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("an access log line: {what}"), || self.access_log().into_iter().find(|line| fits(line)))
    }

    fn tail(&self) -> String {
        last_lines(&self.log())
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let config = fs::read_to_string(self.file()).unwrap_or_default();
            let access = fs::read_to_string(self.folder().join("access.log")).unwrap_or_default();
            eprintln!("--- {config}\n--- its log:\n{}\n--- its access log:\n{}", self.tail(), last_lines(&access));
        }
        if let Some(mut control) = self.control.take() {
            let _ = control.kill();
            let _ = control.wait();
        }
        // Whoever is left: the data plane, and controls that the test has started beside ours.
        let begun = std::time::Instant::now();
        loop {
            let left = process::of_proxy(&self.file(), &self.runtime_directory());
            if left.is_empty() || begun.elapsed() > DEADLINE {
                return;
            }
            left.iter().for_each(|(pid, _)| process::kill(*pid));
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
