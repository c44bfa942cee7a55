//! Ending a data plane whose control is gone.

use std::time::Duration;

use ringmesh_model::wire::{ToControl, ToDataPlane, WIRE_VERSION};
use tokio::time::timeout;

use super::adopt;
use super::process::Process;
use crate::directory::Directory;
use crate::link::{self, Event};

/// What a data plane may take longer than its drain.
const GRACE: Duration = Duration::from_secs(5);

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// There was none.
    Nobody,
    /// It has ended.
    Drained {
        /// Requests that were cut.
        cut: u64,
    },
    /// It did not answer, and was killed.
    Killed,
}

/// Tells the data plane of `directory` to finish within `bound`, and waits for its end.
///
/// # Errors
/// If a control has the directory, or the data plane neither ends nor can be killed.
pub fn stop(directory: Directory, bound: Duration) -> anyhow::Result<Ended> {
    if !directory.path().is_dir() {
        return Ok(Ended::Nobody);
    }
    // Held, so that no control adopts it just now.
    let directory = directory.hold()?;
    let epoch = directory.next_epoch()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let Some(mut link) = adopt::connect(&directory).await? else { return Ok(Ended::Nobody) };
        link.send(&ToDataPlane::Hello { wire: WIRE_VERSION, epoch }, Vec::new());
        link.send(&ToDataPlane::Drain { timeout: bound }, Vec::new());
        let mut cut = 0;
        let ended = timeout(bound + GRACE, async {
            loop {
                match link.receive().await {
                    Event::Message(ToControl::Drained { cut: some }, _) => cut = some,
                    Event::Message(..) => {}
                    Event::Ended(error) => return error,
                }
            }
        });
        match ended.await {
            Ok(link::Error::Closed | link::Error::Malformed(_)) => {
                directory.remove();
                Ok(Ended::Drained { cut })
            }
            Ok(error) => Err(error.into()),
            Err(_) => {
                let Some(mut process) = Process::noted(&directory.data_note()) else {
                    anyhow::bail!("the data plane has not ended within {} s", (bound + GRACE).as_secs());
                };
                process.kill();
                timeout(GRACE, process.ended()).await?;
                directory.remove();
                Ok(Ended::Killed)
            }
        }
    })
}
