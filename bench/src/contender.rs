//! Starting one who is between load and service, by its written configuration.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::process::{Process, Usage};
use crate::programs::{self, Build};
use crate::scenario::{self, Contender, Load};
use crate::service::{self, START_TIMEOUT};
use crate::template::{self, Values};

/// Where everything of one run lies: programs, cores, certificates.
pub struct Bed {
    /// The load generator's.
    build: Build,
    /// The product's.
    product: Build,
    folder: tempfile::TempDir,
    cores: Vec<usize>,
}

/// A contender at work. Dropped, it ends.
pub struct Running {
    processes: Vec<Process>,
    address: SocketAddr,
    start: Duration,
}

impl Bed {
    /// A bed for the load generator of `build` and the `product`, which may be built in another way.
    ///
    /// # Errors
    /// If the machine has too few cores, or there is no place for files.
    pub fn new(build: Build, product: Build) -> anyhow::Result<Self> {
        let cores = ringmesh_ring::affinity::allowed_cores();
        if cores.len() < 2 {
            bail!("side by side needs two cores: one for the proxy alone, one for load and service");
        }
        let folder = tempfile::Builder::new().prefix("ringmesh-bench-").tempdir()?;
        Ok(Self { build, product, folder, cores })
    }

    /// The core that a contender has alone.
    pub fn proxy_core(&self) -> usize {
        self.cores[0]
    }

    /// Where load and service run.
    pub fn load_cores(&self) -> &[usize] {
        &self.cores[1..2]
    }

    /// All cores, for what does nothing.
    pub fn all_cores(&self) -> &[usize] {
        &self.cores
    }

    /// The load generator, which is the service too.
    pub fn load_program(&self) -> PathBuf {
        self.build.program("ringmesh-load")
    }

    /// A new empty folder.
    ///
    /// # Errors
    /// If there is no place for it.
    pub fn new_folder(&self) -> anyhow::Result<tempfile::TempDir> {
        Ok(tempfile::Builder::new().tempdir_in(self.folder.path())?)
    }

    /// The folder with the identities `near` and `far` of one authority; made when first asked for.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn certificates(&self) -> anyhow::Result<PathBuf> {
        let folder = self.folder.path().join("certificates");
        if folder.is_dir() {
            return Ok(folder);
        }
        fs::create_dir(&folder)?;
        self.run_ringmesh(&folder, &["ca", "init", "ca", "--trust-domain", "bench.example"])?;
        for name in ["near", "far"] {
            self.run_ringmesh(&folder, &["ca", "issue", "--ca", "ca", "--out", name, name])?;
            // HAProxy wants chain and key in one file.
            let read = |file| fs::read_to_string(folder.join(name).join(file));
            fs::write(folder.join(name).join("both.pem"), read("svid.pem")? + &read("svid.key")?)?;
        }
        Ok(folder)
    }

    fn run_ringmesh(&self, folder: &Path, words: &[&str]) -> anyhow::Result<()> {
        let output = Command::new(self.product.program("ringmesh")).args(words).current_dir(folder).output()?;
        if !output.status.success() {
            bail!("ringmesh {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Starts a contender in front of a service, on these cores, and waits until an operation succeeds through it.
    ///
    /// # Errors
    /// If it does not come to that.
    pub fn start(
        &self,
        contender: &Contender,
        load: &Load,
        service: SocketAddr,
        cores: &[usize],
        folder: &Path,
    ) -> anyhow::Result<Running> {
        let began = Instant::now();
        let mut running = Running { processes: Vec::new(), address: service, start: Duration::ZERO };
        for config in &contender.configs {
            let (process, address) = self.start_process(contender, config, load, running.address, cores, folder)?;
            running.processes.push(process);
            running.address = address;
        }
        let until = Instant::now() + START_TIMEOUT;
        while let Err(error) = self.try_once(load, &running) {
            running.processes.iter_mut().try_for_each(Process::check)?;
            if Instant::now() > until {
                let log = running.processes.last().map(Process::log_tail).unwrap_or_default();
                bail!("nothing comes through {}: {error:#}; its log:\n{log}", contender.proxy);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        running.start = began.elapsed();
        Ok(running)
    }

    /// Whether one operation succeeds.
    fn try_once(&self, load: &Load, running: &Running) -> anyhow::Result<()> {
        if load.speaks_plainly() {
            return Ok(service::try_once(load, running.address())?);
        }
        // Nothing listens yet, mostly: that is found out faster here.
        TcpStream::connect(running.address())?;
        crate::load::run_once(self, load, running.address())
    }

    fn start_process(
        &self,
        contender: &Contender,
        config: &str,
        load: &Load,
        service: SocketAddr,
        cores: &[usize],
        folder: &Path,
    ) -> anyhow::Result<(Process, SocketAddr)> {
        let listen = free_address()?;
        let own_folder = folder.join(config.replace('.', "-"));
        fs::create_dir(&own_folder).with_context(|| format!("cannot make {}", own_folder.display()))?;
        let template = fs::read_to_string(scenario::folder().join("peers").join(config))?;
        let certificates = if template.contains("@certificates@") { self.certificates()? } else { PathBuf::new() };
        let values = Values {
            names: vec![
                ("listen", listen.to_string()),
                ("listen_address", listen.ip().to_string()),
                ("listen_port", listen.port().to_string()),
                ("service", service.to_string()),
                ("service_address", service.ip().to_string()),
                ("service_port", service.port().to_string()),
                ("admin", free_address()?.to_string()),
                ("workers", load.workers.to_string()),
                ("method", load.method().to_owned()),
                ("driver", contender.driver.clone()),
                ("folder", own_folder.to_string_lossy().into_owned()),
                ("certificates", certificates.to_string_lossy().into_owned()),
            ],
            words: contender.all_words(load),
            services: load.services,
        };
        let text = template::fill(&template, &values).with_context(|| format!("in bench/peers/{config}"))?;
        let file = own_folder.join(config);
        fs::write(&file, &text)?;
        let command = self.command(contender, &file, &own_folder, &text, load.workers)?;
        Ok((Process::start(cores, &contender.proxy, &command, &own_folder.join("log"))?, listen))
    }

    fn command(
        &self,
        contender: &Contender,
        file: &Path,
        folder: &Path,
        text: &str,
        workers: u16,
    ) -> anyhow::Result<Vec<String>> {
        let (program, words): (PathBuf, &[&str]) = match contender.program() {
            "ringmesh" => (self.product.program("ringmesh"), &["run", "-c", "@file@", "--runtime-dir", "@folder@/run"]),
            "haproxy" => (programs::of_system("haproxy")?, &["-db", "-f", "@file@"]),
            "nginx" => {
                if text.contains("stream {") {
                    programs::check_nginx_stream()?;
                }
                (programs::of_system("nginx")?, &["-p", "@folder@", "-e", "stderr", "-c", "@file@"])
            }
            // Nobody takes its place while it runs, and it is given its threads here instead of in its configuration.
            "envoy" => (
                programs::envoy()?,
                &["-c", "@file@", "--concurrency", "@workers@", "--disable-hot-restart", "--log-level", "error"],
            ),
            "nghttpx" => (programs::of_system("nghttpx")?, &["--conf=@file@"]),
            other => bail!("nobody knows how to start `{other}`"),
        };
        let fill = |word: &&str| {
            word.replace("@file@", &file.to_string_lossy())
                .replace("@folder@", &folder.to_string_lossy())
                .replace("@workers@", &workers.to_string())
        };
        Ok(std::iter::once(program.to_string_lossy().into_owned()).chain(words.iter().map(fill)).collect())
    }

    /// What it says it is.
    ///
    /// # Errors
    /// If it is missing.
    pub fn version(&self, contender: &Contender) -> anyhow::Result<String> {
        let (program, word) = match contender.program() {
            "ringmesh" => (self.product.program("ringmesh"), "--version"),
            "haproxy" => (programs::of_system("haproxy")?, "-v"),
            "nginx" => (programs::of_system("nginx")?, "-v"),
            "envoy" => (programs::envoy()?, "--version"),
            "nghttpx" => (programs::of_system("nghttpx")?, "--version"),
            _ => return Ok(String::new()),
        };
        let output = Command::new(&program).arg(word).output().with_context(|| format!("{}", program.display()))?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let is_version = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit());
        let words = text.split([' ', '/', '\n']);
        let version = words.filter(|word| word.contains('.')).find(is_version).unwrap_or_default();
        Ok(match contender.program() {
            "ringmesh" if !self.product.is_packaged() => format!("{version} ({} build)", self.product.profile()),
            _ => version.to_owned(),
        })
    }
}

impl Contender {
    /// The program: its name without a variant.
    pub fn program(&self) -> &str {
        self.proxy.split('-').next().unwrap_or_default()
    }

    /// The words that hold in its configuration.
    fn all_words(&self, load: &Load) -> Vec<String> {
        let mut words = [load.words(), self.words.clone()].concat();
        if !words.iter().any(|word| word == "log") {
            words.push("quiet".to_owned());
        }
        words
    }

    /// Whether it stands for nothing in between.
    pub fn is_nobody(&self) -> bool {
        self.program() == "direct"
    }
}

impl Running {
    /// Where the load goes.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From starting it to the first operation that came through.
    pub fn start(&self) -> Duration {
        self.start
    }

    /// The time on CPU of each thread of its processes.
    pub fn threads(&self) -> Vec<(String, Duration)> {
        self.processes.iter().flat_map(Process::threads).collect()
    }

    /// What all of its processes have used. Nothing, if there are none.
    pub fn usage(&self) -> Usage {
        self.processes.iter().map(Process::usage).fold(Usage::default(), |sum, one| Usage {
            cpu: sum.cpu + one.cpu,
            processes: sum.processes + one.processes,
            wake_ups: sum.wake_ups + one.wake_ups,
            rss_kib: sum.rss_kib + one.rss_kib,
            pss_kib: sum.pss_kib + one.pss_kib,
        })
    }

    /// What its processes have to say after something went wrong.
    pub fn last_words(&mut self) -> String {
        let words = |process: &mut Process| match process.check() {
            Ok(()) => process.log_tail(),
            Err(ended) => ended.to_string(),
        };
        self.processes.iter_mut().map(words).collect::<Vec<_>>().join("\n")
    }

    /// Whether there is anybody at all.
    pub fn is_direct(&self) -> bool {
        self.processes.is_empty()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The one nearest to the clients first, so that none loses its service while it works.
        while self.processes.pop().is_some() {}
    }
}

/// A free port of loopback, below the range from which the kernel takes them for outgoing connections, so that no client
/// gets one of ours.
///
/// # Errors
/// If there is none.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 22_000;
    let start = (std::process::id().wrapping_mul(211) % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (u32::from(start) + u32::from(step)).rem_euclid(u32::from(COUNT)) as u16;
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        }
    }
    bail!("no port between {FIRST} and {} is free", FIRST + COUNT);
}
