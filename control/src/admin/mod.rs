//! The admin pages: HTTP on loopback, for probes, scrapers and people. They are read only.
//!
//! They know no users, so what they show must be fit for everybody who reaches the port: [`config`] shows no secrets, and
//! nothing here changes anything. They live on control's thread, so [`limits`] bounds what a caller can take of it.

pub mod accept;
mod body;
pub mod config;
pub mod limits;
mod pages;
pub mod ready;
#[cfg(test)]
mod testing;

use std::future::Future;
use std::io;
use std::net::TcpListener as StdTcpListener;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::pin::{Pin, pin};
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ringmesh_model::snapshot::{Address, Snapshot};
use ringmesh_ring::socket::{Access, BindError, bind_group, bind_unix, local_path};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::state;
use crate::telemetry::Telemetry;

/// Brings the data plane's report in the state up to date.
pub type Refresh = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// What the pages show. Clones share it.
#[derive(Clone)]
pub struct Inputs {
    /// What control knows of itself, its config and its data plane.
    pub state: state::Handle,
    /// The configuration that is live; None before the first.
    pub live: watch::Receiver<Option<Arc<Snapshot>>>,
    /// What the data plane has counted and told.
    pub telemetry: Telemetry,
    /// Asks for a fresh report.
    pub refresh: Refresh,
}

/// Why there are no admin pages.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be had.
    #[error("[admin] bind: {0}")]
    Bind(#[from] BindError),
    /// The socket cannot be used.
    #[error("[admin] bind: {0}")]
    Io(#[from] io::Error),
}

/// The admin port of a control process, which may move or close when the config changes.
pub struct Port {
    inputs: Inputs,
    open: Option<Open>,
}

/// A port that is served until this is dropped.
struct Open {
    /// As the config has it.
    wanted: Address,
    /// As it is: the kernel chooses port 0.
    bound: Address,
    task: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Port {
    /// A port that is closed yet.
    pub fn new(inputs: Inputs) -> Self {
        Self { inputs, open: None }
    }

    /// Serves at this address from now on, and nowhere else; what is open at the old one ends. Inside a tokio runtime.
    ///
    /// # Errors
    /// If the address cannot be had; then the pages stay where they were.
    pub fn serve_at(&mut self, wanted: Option<&Address>) -> Result<(), Error> {
        let Some(wanted) = wanted else {
            self.open = None;
            return Ok(());
        };
        if self.open.as_ref().is_none_or(|open| open.wanted != *wanted) {
            let listener = Listener::bind(wanted)?;
            let bound = listener.address()?;
            let task = tokio::spawn(accept_all(listener, self.inputs.clone())).abort_handle();
            self.open = Some(Open { wanted: wanted.clone(), bound, task });
        }
        Ok(())
    }

    /// Where the pages are.
    pub fn address(&self) -> Option<&Address> {
        self.open.as_ref().map(|open| &open.bound)
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection of either kind.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Listener {
    fn bind(address: &Address) -> Result<Self, Error> {
        Ok(match address {
            Address::Ip(address) => {
                let descriptor = bind_group(*address, 1)?.pop().expect("a group of one has one");
                let listener = StdTcpListener::from(descriptor);
                listener.set_nonblocking(true)?;
                Self::Tcp(TcpListener::from_std(listener)?)
            }
            Address::Unix(path) => {
                let listener = StdUnixListener::from(bind_unix(path, &Access::default())?);
                listener.set_nonblocking(true)?;
                Self::Unix(UnixListener::from_std(listener)?)
            }
        })
    }

    fn address(&self) -> io::Result<Address> {
        Ok(match self {
            Self::Tcp(listener) => Address::Ip(listener.local_addr()?),
            Self::Unix(listener) => Address::Unix(local_path(listener).ok_or(io::ErrorKind::AddrNotAvailable)?),
        })
    }

    /// Droppable: nobody is lost.
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

/// Serves until it is dropped; open connections end with it.
async fn accept_all(listener: Listener, inputs: Inputs) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < limits::MAX_CONNECTIONS => match accepted {
                Ok(stream) => {
                    connections.spawn(serve(stream, inputs.clone()));
                }
                Err(error) => {
                    tracing::warn!(target: "ringmesh::admin", "cannot accept: {error}");
                    sleep(limits::ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Serves one connection for as long as it may last.
async fn serve(stream: Box<dyn Stream>, inputs: Inputs) {
    let service = service_fn(move |request| pages::answer(inputs.clone(), request));
    let mut protocol = http1::Builder::new();
    protocol.timer(TokioTimer::new()).header_read_timeout(limits::HEAD_TIMEOUT);
    protocol.max_headers(limits::MAX_FIELDS).max_buf_size(limits::MAX_HEAD_BYTES);
    let mut connection = pin!(protocol.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        ended = connection.as_mut() => return told(ended),
        () = sleep(limits::MAX_AGE) => connection.as_mut().graceful_shutdown(),
    }
    if let Ok(ended) = timeout(limits::GRACE, connection).await {
        told(ended);
    }
}

/// What a caller did wrong is for who looks closely.
fn told(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(target: "ringmesh::admin", "connection ended: {error}");
    }
}

#[cfg(test)]
mod tests;
