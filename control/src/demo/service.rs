//! One of the demo's services, as its own process: `ringmesh demo-service`.

use std::net::SocketAddr;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use ringmesh_loadgen::Driver;
use ringmesh_loadgen::serve::{self, Call, Delay, Service, Shop};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::signals::Asked;

/// How often a request to end is looked for. It has no other work between requests.
const TICK: Duration = Duration::from_millis(100);

/// A call that the service makes before it answers, written as `SERVICE,METHOD,PATH,ADDRESS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallArgument {
    service: String,
    method: String,
    path: String,
    via: SocketAddr,
}

/// A text is no call.
#[derive(Debug, thiserror::Error)]
#[error("write SERVICE,METHOD,PATH,ADDRESS")]
pub struct NoCall;

impl FromStr for CallArgument {
    type Err = NoCall;

    fn from_str(text: &str) -> Result<Self, NoCall> {
        match text.split(',').collect::<Vec<_>>()[..] {
            [service, method, path, via] => Ok(Self {
                service: service.to_owned(),
                method: method.to_owned(),
                path: path.to_owned(),
                via: via.parse().map_err(|_| NoCall)?,
            }),
            _ => Err(NoCall),
        }
    }
}

/// Serves until it is asked to end, or the demo that started it is gone.
///
/// # Errors
/// If the address is not free, or the kernel grants neither driver nor threads.
pub fn run(
    name: String,
    version: String,
    bind: SocketAddr,
    calls: Vec<CallArgument>,
    driver: Driver,
) -> anyhow::Result<()> {
    // A demo that was killed cannot end its services.
    set_parent_process_death_signal(Some(Signal::TERM))?;
    let asked = Asked::listen()?;
    let calls = calls.into_iter().map(|call| Call {
        service: call.service,
        method: call.method,
        path: call.path,
        via: call.via,
    });
    let shop = Shop { name, version, calls: calls.collect(), delay: Delay::None };
    let settings = serve::Settings { driver: driver.into(), ..serve::Settings::new(bind, Service::Shop(shop)) };
    let mut running = serve::start(settings)?;
    while !asked.is_asked() && !running.is_finished() {
        thread::sleep(TICK);
    }
    running.end();
    Ok(running.wait()?)
}
