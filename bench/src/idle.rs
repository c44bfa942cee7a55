//! What a contender costs that has nothing to do, and what a connection costs on which nothing is done.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::contender::Bed;
use crate::scenario::{Contender, Scenario};
use crate::service;
use crate::turn::{Lengths, Observation};

/// How long a contender may take to come to rest.
const SETTLE: Duration = Duration::from_secs(2);

/// Runs one turn: at rest, then with connections at rest that have had one request each.
///
/// # Errors
/// If something does not start, or a request fails.
pub fn run(bed: &Bed, scenario: &Scenario, contender: &Contender, lengths: Lengths) -> anyhow::Result<Observation> {
    ringmesh_ring::socket::raise_descriptor_limit();
    let load = &scenario.load;
    let folder = bed.new_folder()?;
    let (_service, address) =
        service::start(&bed.load_program(), load.kind, load.body_bytes, bed.load_cores(), folder.path())?;
    let running = bed.start(contender, load.kind, load.workers, address, bed.all_cores(), folder.path())?;
    std::thread::sleep(SETTLE);

    let (began, before) = (Instant::now(), running.usage());
    std::thread::sleep(lengths.measured);
    let at_rest = running.usage();
    let seconds = began.elapsed().as_secs_f64();

    let mut connections = Vec::with_capacity(load.connections);
    for _ in 0..load.connections {
        let mut stream = TcpStream::connect(running.address())?;
        stream.set_read_timeout(Some(service::START_TIMEOUT))?;
        service::request(&mut stream)?;
        connections.push(stream);
    }
    std::thread::sleep(SETTLE);
    let connected = running.usage();
    drop(connections);
    Ok(Observation {
        proxy: contender.proxy.clone(),
        rss_kib: at_rest.rss_kib,
        pss_kib: at_rest.pss_kib,
        wake_ups_per_s: Some((at_rest.wake_ups - before.wake_ups) as f64 / seconds),
        kib_per_connection: Some((connected.pss_kib as f64 - at_rest.pss_kib as f64) / load.connections as f64),
        ..Observation::default()
    })
}
