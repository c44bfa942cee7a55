//! Counts what a worker allocates for steady plain HTTP/1.1 requests on kept connections, which must be nothing: the real
//! data plane in this process, over real sockets, on both drivers, with and without an access log, and where each head gets
//! fields about the client and `Via`.
//!
//! Its allocator counts by thread.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result of a command line goes to standard output")]

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::ensure;
use ringmesh_bench::plane::Plane;
use ringmesh_bench::snapshot::HOST;
use ringmesh_dataplane::filter::{Filter, Verdict};
use ringmesh_loadgen::load::{self, Entry};
use ringmesh_loadgen::serve::{self, ResponseForm, Service};
use ringmesh_model::hop::{Forwarded, Write};
use ringmesh_model::snapshot::{AccessLog, Hop};
use ringmesh_model::wire::Driver;
use ringmesh_ring::allocator::{Counting, Counts, counts};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Requests that warm up: every connection is made, every buffer and table has its size, the timer's too, which learns its
/// own from the first deadlines that pass, a tenth of a second after the first requests.
const WARM_UP: u64 = 30_000;

/// Requests that are looked at, in one stretch.
const REQUESTS: u64 = 10_000;

/// Stretches, of which the best counts: a list that grows once, when others on the machine let more come at once than ever before,
/// is not what a request costs, and that shows in each.
const STRETCHES: usize = 3;

/// Requests that follow, so that no connection ends while others are still looked at.
const COOL_DOWN: u64 = 1000;

/// Kept connections.
const CONNECTIONS: usize = 32;

fn main() -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for (driver, name) in [(Driver::IoUring, "io_uring"), (Driver::Epoll, "epoll")] {
        let silent = Hop::default();
        let telling = Hop {
            forwarded: Some(Forwarded { trust: Vec::new(), write: Write::Both }),
            via: Some("bench".into()),
            ..Hop::default()
        };
        for (access_log, hop) in [(AccessLog::Off, &silent), (AccessLog::On, &silent), (AccessLog::Off, &telling)] {
            let log = match (access_log, &hop.via) {
                (AccessLog::On, _) => "on",
                (AccessLog::Off, None) => "off",
                (AccessLog::Off, Some(_)) => "off, heads changed",
            };
            match count(driver, access_log, hop.clone()) {
                Ok((driver, Counts { allocations, bytes })) => {
                    println!(
                        "{driver}, access log {log}: {allocations} allocations, {bytes} bytes in {REQUESTS} requests"
                    );
                    if allocations > 0 {
                        code = ExitCode::FAILURE;
                    }
                }
                Err(error) => {
                    eprintln!("{name}, access log {log}: {error:#}");
                    code = ExitCode::FAILURE;
                }
            }
        }
    }
    code
}

/// What the worker had allocated at certain requests. Only its own thread writes.
#[derive(Default)]
struct Marks {
    seen: AtomicU64,
    /// Before the first stretch and after each.
    counted: [[AtomicU64; 2]; STRETCHES + 1],
}

/// Runs on the worker at each request, behind the policy.
struct Observer(Arc<Marks>);

impl Filter for Observer {
    fn request(&self, _method: &[u8], _path: &[u8]) -> Verdict {
        let seen = self.0.seen.load(Ordering::Relaxed);
        let stretch = seen.checked_sub(WARM_UP).filter(|looked_at| looked_at.is_multiple_of(REQUESTS));
        let mark = stretch.and_then(|looked_at| self.0.counted.get((looked_at / REQUESTS) as usize));
        if let Some([allocations, bytes]) = mark {
            let counts = counts();
            allocations.store(counts.allocations, Ordering::Relaxed);
            bytes.store(counts.bytes, Ordering::Relaxed);
        }
        self.0.seen.store(seen + 1, Ordering::Relaxed);
        Verdict::Continue
    }
}

fn count(driver: Driver, access_log: AccessLog, hop: Hop) -> anyhow::Result<(String, Counts)> {
    let marks = Arc::new(Marks::default());
    let observed = marks.clone();
    let filters: Vec<ringmesh_dataplane::filter::Make> =
        vec![Arc::new(move || Box::new(Observer(observed.clone())) as Box<dyn Filter>)];
    let answers = serve::Http { body_bytes: 100, form: ResponseForm::Fixed, ..serve::Http::default() };
    let mut service =
        serve::start(serve::Settings::new(SocketAddr::from(([127, 0, 0, 1], 0)), Service::Http(answers)))?;
    let plane = Plane::start(driver, service.address(), access_log, hop, filters)?;
    let wanted = WARM_UP + STRETCHES as u64 * REQUESTS + COOL_DOWN;
    let load = load::Settings {
        connections: CONNECTIONS,
        requests: Some(wanted),
        duration: None,
        ..load::Settings::http(plane.address().into(), vec![Entry::get(HOST, "/items/17")])
    };
    let report = load::run(load)?;
    ensure!(report.total.succeeded == wanted, "requests failed:\n{report}");
    ensure!(marks.seen.load(Ordering::Relaxed) == wanted, "requests went past the filter");
    let driver = plane.driver().to_owned();
    plane.end()?;
    service.end();
    let counted = marks.counted.each_ref().map(|mark| mark.each_ref().map(|count| count.load(Ordering::Relaxed)));
    let stretches = counted.windows(2).map(|marks| [0, 1].map(|which| marks[1][which] - marks[0][which]));
    let [allocations, bytes] = stretches.min().unwrap_or_default();
    Ok((driver, Counts { allocations, bytes }))
}
