//! `control.sock`: where `ringmesh status` and `ringmesh stop` ask. One JSON request a connection, answers a line each.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::process::getuid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::state::{self, State};

/// Longest request, in bytes.
const MAX_REQUEST_BYTES: u64 = 4096;

/// How long a client may take to ask, and to read an answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the data plane may take to account for itself before the state is told without.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// What may be asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// What is it doing? Answered by [`Answer::State`].
    Status,
    /// End, with open requests finished. Answered by [`Answer::Stopping`], and by the end of the connection once all is
    /// done.
    Stop {
        /// Bound on finishing; None: the config's.
        timeout: Option<Duration>,
    },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Everything that is known.
    State(Box<State>),
    /// It ends within this time.
    Stopping {
        /// Bound on finishing.
        timeout: Duration,
    },
}

/// Asks the supervisor to end.
#[derive(Debug)]
pub(super) struct Stop {
    /// Bound on finishing; None: the config's.
    pub(super) timeout: Option<Duration>,
    /// Gets the bound that applies.
    pub(super) answer: oneshot::Sender<Duration>,
    /// Dropped at the end.
    pub(super) done: oneshot::Sender<()>,
}

/// Asks the supervisor. Clones ask the same one.
#[derive(Clone)]
pub(super) struct Requests {
    pub(super) stop: mpsc::Sender<Stop>,
    pub(super) refresh: mpsc::Sender<oneshot::Sender<()>>,
}

impl Requests {
    /// Waits until the data plane has accounted for itself, for at most a second.
    pub(super) async fn refresh(&self) {
        let (answer, answered) = oneshot::channel();
        if self.refresh.send(answer).await.is_ok() {
            let _ = timeout(REPORT_TIMEOUT, answered).await;
        }
    }
}

/// Listens at `path`, replacing what an earlier control has left there: the lock says that none is alive.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(path),
    }
}

/// Answers for ever.
pub(super) async fn serve(listener: UnixListener, state: state::Handle, requests: Requests) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (state, requests) = (state.clone(), requests.clone());
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, &state, &requests).await {
                        tracing::debug!(%error, "a client of the control socket was not answered");
                    }
                });
            }
            // Out of descriptors: they come back.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn answer(stream: UnixStream, state: &state::Handle, requests: &Requests) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    if uid != getuid().as_raw() && uid != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    timeout(CLIENT_TIMEOUT, BufReader::new(read.take(MAX_REQUEST_BYTES)).read_line(&mut line)).await??;
    match serde_json::from_str(&line)? {
        Question::Status => {
            requests.refresh().await;
            say(&mut write, &Answer::State(Box::new(state.get()))).await
        }
        Question::Stop { timeout } => {
            let (answer, answered) = oneshot::channel();
            let (done, all_done) = oneshot::channel();
            if requests.stop.send(Stop { timeout, answer, done }).await.is_err() {
                return Ok(());
            }
            if let Ok(timeout) = answered.await {
                say(&mut write, &Answer::Stopping { timeout }).await?;
            }
            let _ = all_done.await;
            Ok(())
        }
    }
}

async fn say(write: &mut (impl AsyncWriteExt + Unpin), answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    timeout(CLIENT_TIMEOUT, write.write_all(&line)).await?
}
