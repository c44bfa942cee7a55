//! The admin pages: HTTP on loopback, for probes, scrapers and people. They are read only.
//!
//! They know no users, so what they show must be fit for everybody who reaches the port: [`config`] shows no secrets, and
//! nothing here changes anything. They live on control's thread, so [`limits`] bounds what a caller can take of it.

pub mod accept;
pub mod config;
pub mod limits;
mod pages;
pub mod ready;
#[cfg(test)]
mod testing;

use std::io;
use std::net::TcpListener as StdTcpListener;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::pin::pin;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ringmesh_model::snapshot::{Address, Snapshot};
use ringmesh_ring::socket::{BindError, bind_group, bind_unix};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

use crate::state;
use crate::telemetry::Telemetry;

/// What the pages show. Clones share it.
#[derive(Clone)]
pub struct Inputs {
    /// What control knows of itself, its config and its data plane.
    pub state: state::Handle,
    /// The configuration that is wanted; None before the first.
    pub snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    /// What the data plane has counted and told.
    pub telemetry: Telemetry,
    /// Asks for a fresh report of the data plane in `state`; answered once it is there.
    pub refresh: mpsc::Sender<oneshot::Sender<()>>,
}

impl Inputs {
    /// Waits for a fresh report, but not long: the one before will do.
    async fn refresh(&self) {
        let (done, fresh) = oneshot::channel();
        if self.refresh.try_send(done).is_ok() {
            let _ = timeout(limits::REPORT_TIMEOUT, fresh).await;
        }
    }
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

/// The admin port.
pub struct Server {
    listener: Listener,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Server {
    /// Binds the port. Inside a tokio runtime.
    ///
    /// # Errors
    /// If the address cannot be had.
    pub fn bind(address: &Address) -> Result<Self, Error> {
        let listener = match address {
            Address::Ip(address) => {
                let descriptor = bind_group(*address, 1)?.pop().expect("a group of one has one");
                let listener = StdTcpListener::from(descriptor);
                listener.set_nonblocking(true)?;
                Listener::Tcp(TcpListener::from_std(listener)?)
            }
            Address::Unix(path) => {
                let listener = StdUnixListener::from(bind_unix(path)?);
                listener.set_nonblocking(true)?;
                Listener::Unix(UnixListener::from_std(listener)?)
            }
        };
        Ok(Self { listener })
    }

    /// Where it is, with the port that the kernel chose if none was given.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn address(&self) -> io::Result<Address> {
        Ok(match &self.listener {
            Listener::Tcp(listener) => Address::Ip(listener.local_addr()?),
            Listener::Unix(listener) => {
                let address = listener.local_addr()?;
                Address::Unix(address.as_pathname().ok_or(io::ErrorKind::AddrNotAvailable)?.to_owned())
            }
        })
    }

    /// Serves until it is dropped; open connections end with it.
    pub async fn run(self, inputs: Inputs) {
        LocalSet::new().run_until(self.accept_all(inputs)).await;
    }

    async fn accept_all(self, inputs: Inputs) {
        let places = Arc::new(Semaphore::new(limits::MAX_CONNECTIONS));
        loop {
            let place = Arc::clone(&places).acquire_owned().await.expect("nobody closes it");
            match self.listener.accept().await {
                Ok(stream) => {
                    let served = serve(stream, inputs.clone());
                    spawn_local(async move {
                        served.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(target: "admin", "cannot accept: {error}");
                    sleep(limits::ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// A connection of either kind.
trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
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
        tracing::debug!(target: "admin", "connection ended: {error}");
    }
}

#[cfg(test)]
mod tests;
