//! What a contender costs that has nothing to do, and what a connection costs on which nothing is done.

use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::contender::{Bed, Running};
use crate::process::on_cores;
use crate::scenario::{Contender, Load, Scenario};
use crate::turn::{Lengths, Observation};
use crate::{load, machine, service};

/// Runs one turn: at rest, then with connections at rest that have had one request each. The warm-up is how long a
/// contender may take to come to rest.
///
/// # Errors
/// If something does not start, or a request fails.
pub fn run(bed: &Bed, scenario: &Scenario, contender: &Contender, lengths: Lengths) -> anyhow::Result<Observation> {
    ringmesh_ring::socket::raise_descriptor_limit();
    let load = &scenario.load;
    let folder = bed.new_folder()?;
    let (_service, address) = service::start(bed, load, contender, folder.path())?;
    let running = bed.start(contender, load, address, bed.all_cores(), folder.path())?;
    std::thread::sleep(lengths.warm_up);

    let (began, before) = (Instant::now(), running.usage());
    std::thread::sleep(lengths.measured);
    let at_rest = running.usage();
    let seconds = began.elapsed().as_secs_f64();
    let kernel_at_rest = machine::kernel_kib();

    let held = Held::open(bed, load, &running)?;
    std::thread::sleep(lengths.warm_up + GIVE_BACK);
    let connected = running.usage();
    let kernel_connected = machine::kernel_kib();
    drop(held);
    let per_connection = |after: u64, before: u64| Some((after as f64 - before as f64) / load.connections as f64);
    let is_somebody = !running.is_direct();
    Ok(Observation {
        proxy: contender.proxy.clone(),
        start_ms: is_somebody.then(|| running.start().as_secs_f64() * 1e3),
        start_pss_kib: at_rest.pss_kib,
        rss_kib: connected.rss_kib,
        pss_kib: connected.pss_kib,
        wake_ups_per_s: is_somebody.then(|| (at_rest.wake_ups - before.wake_ups) as f64 / seconds),
        kib_per_connection: is_somebody.then(|| per_connection(connected.pss_kib, at_rest.pss_kib)).flatten(),
        kernel_kib_per_connection: per_connection(kernel_connected, kernel_at_rest),
        ..Observation::default()
    })
}

/// Connections that are kept.
enum Held {
    /// By this process.
    Here { _streams: Vec<TcpStream> },
    /// By load generators, which go on with a few requests a second over all of them.
    ByLoads(Vec<Child>),
}

impl Held {
    fn open(bed: &Bed, load: &Load, running: &Running) -> anyhow::Result<Self> {
        if !load.speaks_plainly() {
            return Self::open_by_load(bed, load, running);
        }
        let mut streams = Vec::with_capacity(load.connections);
        for _ in 0..load.connections {
            let mut stream = TcpStream::connect(running.address())?;
            stream.set_read_timeout(Some(service::START_TIMEOUT))?;
            service::request(&mut stream, load.host().unwrap_or("app"))?;
            streams.push(stream);
        }
        Ok(Self::Here { _streams: streams })
    }

    /// In small groups: a thousand handshakes at once leave a heap full of holes, which is no connection's memory.
    fn open_by_load(bed: &Bed, load: &Load, running: &Running) -> anyhow::Result<Self> {
        let before = running.usage().cpu;
        // Each connection keeps a later request in view, or the load would close it as no longer needed.
        let (first, later) = (GROUP as f64 / FIRST_REQUESTS.as_secs_f64(), GROUP as f64 / LATER.as_secs_f64() * 2.0);
        let rate = format!("{first}/{}s,{later}/{}s", FIRST_REQUESTS.as_secs(), LATER.as_secs());
        let group = Load { connections: GROUP, ..load.clone() };
        let words = load::command(bed, &group, running.address(), vec!["--rate".to_owned(), rate])?;
        let mut held = Vec::new();
        let until = Instant::now() + service::START_TIMEOUT;
        for opened in (GROUP..=load.connections).step_by(GROUP) {
            let mut command = on_cores(bed.all_cores(), &words)?;
            held.push(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("cannot start the load")?);
            while machine::established(running.address()) < opened {
                if Instant::now() > until {
                    drop(Self::ByLoads(held));
                    bail!("{} connections do not come about", load.connections);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        std::thread::sleep(FIRST_REQUESTS);
        let held = Self::ByLoads(held);
        ensure!(running.is_direct() || running.usage().cpu > before, "the connections went past the contender");
        Ok(held)
    }
}

/// Connections of one load generator.
const GROUP: usize = 25;

/// How long a contender may keep what many handshakes at once have needed.
const GIVE_BACK: Duration = Duration::from_secs(3);

/// How long the load goes on at most, with two further requests on each connection.
const LATER: Duration = Duration::from_secs(120);

/// In which time each connection has its request.
const FIRST_REQUESTS: Duration = Duration::from_secs(1);

impl Drop for Held {
    fn drop(&mut self) {
        if let Self::ByLoads(children) = self {
            for child in children {
                // It has no state that would be lost.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
