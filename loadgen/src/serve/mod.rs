//! The server side: what benches, tests and the demo call.

mod delay;
mod grpc;
mod http;
mod http2;
mod shop;
mod tcp;
mod websocket;

use std::cell::{Cell, OnceCell};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ringmesh_ring::Listener;
use ringmesh_ring::mailbox::Receiver;
use ringmesh_ring::net::{Address, Net, Sockets};
use ringmesh_ring::runtime;
use ringmesh_ring::setup::{self, Grant, Wish};
use ringmesh_ring::socket::{Accepted, raise_descriptor_limit};
use ringmesh_ring::stop::Stop;
use ringmesh_ring::{Buffer, Idle, Socket, Stream};

use self::http2::Spoken;
use crate::limits::MAX_SERVED_CONNECTIONS;
use crate::load::pattern_bytes;
use crate::message::Fault;
use crate::pace::Pacer;
use crate::thread::{Error, Worker, check_cores, core_of};
use crate::tls::{self, TlsStream};
use crate::transport::Transport;
use crate::wait::{First, first};

pub use delay::{Delay, Error as DelayError};
pub use grpc::Grpc;
pub use http::{Http, ResponseForm};
pub use shop::{Call, SERVED_BY, Shop};
pub use tcp::SINK_RECEIPT_BYTES;

/// How long accepting pauses when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long an idle connection is kept.
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// What to serve where.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen; port 0 takes a free one. A file that a dead server has left in place of a Unix socket is replaced.
    pub bind: Address,
    /// TLS, if any.
    pub tls: Option<tls::Server>,
    /// What to answer.
    pub service: Service,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// Threads, each with its own ring; they share the listener.
    pub threads: usize,
    /// The cores that threads are kept on, one after the other; none: the kernel chooses.
    pub cores: Vec<usize>,
    /// Which I/O driver.
    pub driver: Wish,
}

/// What is answered.
#[derive(Clone, Debug)]
pub enum Service {
    /// HTTP/1.1 and HTTP/2 answers of a given shape.
    Http(Http),
    /// gRPC.
    Grpc(Grpc),
    /// One of the demo's services.
    Shop(Shop),
    /// WebSocket: what came goes back.
    WebSocket,
    /// TCP: what came goes back.
    Echo,
    /// TCP: what came is counted; at its end the count goes back as a big-endian number of [`SINK_RECEIPT_BYTES`] bytes.
    Sink,
}

impl Settings {
    /// A service on an address, on one thread and the best driver.
    pub fn new(bind: SocketAddr, service: Service) -> Self {
        Self {
            bind: bind.into(),
            tls: None,
            service,
            idle_timeout: DEFAULT_IDLE_TIMEOUT,
            threads: 1,
            cores: Vec::new(),
            driver: Wish::Auto,
        }
    }
}

/// A server that is running. Dropping it ends the server without waiting.
pub struct Running {
    address: Address,
    workers: Vec<Worker<()>>,
}

/// Starts a server. It listens when this returns.
///
/// # Errors
/// If the address is not free, or the kernel grants neither driver nor threads.
pub fn start(settings: Settings) -> Result<Running, Error> {
    start_on(&setup::probe(settings.driver)?, settings)
}

/// Starts a server on a driver that was granted before; `settings.driver` does not count.
///
/// # Errors
/// If the address is not free, or threads are not to be had.
pub fn start_on(grant: &Grant, mut settings: Settings) -> Result<Running, Error> {
    if settings.threads == 0 {
        return Err(Error::Settings("a server has at least one thread"));
    }
    check_cores(&settings.cores)?;
    raise_descriptor_limit();
    let bind = |source| Error::Bind { address: settings.bind.to_string(), source };
    let (listener, address) = listen(&settings.bind).map_err(bind)?;
    settings.tls = settings.tls.map(|tls| tls.offering(settings.service.protocols()));
    let workers = (0..settings.threads)
        .map(|index| {
            let descriptor = listener.try_clone()?;
            let settings = settings.clone();
            let core = core_of(&settings.cores, index);
            Worker::start(format!("serve-{index}"), core, grant.clone(), move |asked| {
                serve(descriptor, settings, asked)
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(Running { address, workers })
}

/// Listens, without blocking.
fn listen(address: &Address) -> io::Result<(OwnedFd, Address)> {
    match address {
        Address::Ip(address) => {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener.into(), address.into()))
        }
        Address::Unix(path) => {
            let is_dead = UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
            if is_dead {
                std::fs::remove_file(path)?;
            }
            let listener = UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            Ok((listener.into(), address.clone()))
        }
    }
}

impl Service {
    /// What is offered by ALPN.
    fn protocols(&self) -> &'static [&'static [u8]] {
        match self {
            Self::Http(_) => &[tls::HTTP2, tls::HTTP1],
            Self::Grpc(_) => &[tls::HTTP2],
            Self::Shop(_) | Self::WebSocket => &[tls::HTTP1],
            Self::Echo | Self::Sink => &[],
        }
    }
}

impl Running {
    /// Where it listens.
    pub fn listening(&self) -> &Address {
        &self.address
    }

    /// Where it listens.
    ///
    /// # Panics
    /// If that is a Unix socket.
    pub fn address(&self) -> SocketAddr {
        match &self.address {
            Address::Ip(address) => *address,
            Address::Unix(path) => panic!("the server listens on the Unix socket {}", path.display()),
        }
    }

    /// Whether all threads have ended.
    pub fn is_finished(&self) -> bool {
        self.workers.iter().all(Worker::is_finished)
    }

    /// Closes the listener and every connection.
    pub fn end(&mut self) {
        self.workers.iter_mut().for_each(Worker::end);
    }

    /// Waits for the end, which only [`Self::end`] or an error brings.
    ///
    /// # Errors
    /// If a thread could not start its ring, or panicked.
    pub fn wait(mut self) -> Result<(), Error> {
        std::mem::take(&mut self.workers).into_iter().try_for_each(Worker::join)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
        if let Address::Unix(path) = &self.address {
            // Somebody else may have taken it away already.
            let _gone = std::fs::remove_file(path);
        }
    }
}

/// What the connections of one thread share.
struct Shared {
    net: Sockets,
    settings: Settings,
    pacer: Rc<Pacer>,
    /// For the nested calls of a shop service.
    calls: shop::Pool,
    open: Cell<usize>,
    /// The body of every answer, made with the first.
    body: OnceCell<Bytes>,
}

/// One thread: accepts until it is asked to end.
async fn serve(descriptor: OwnedFd, settings: Settings, asked: Receiver<()>) -> Result<(), Error> {
    let listener = Listener::from_fd(descriptor)?;
    // Answers are whole when they are sent; waiting for more would only delay them.
    listener.set_client_options(None);
    let net = Sockets;
    let pacer = Pacer::start()?;
    let shared = Rc::new(Shared {
        net,
        settings,
        pacer,
        calls: shop::Pool::default(),
        open: Cell::new(0),
        body: OnceCell::new(),
    });
    loop {
        match first(asked.ready(), listener.readable()).await {
            First::One(_) => return Ok(()),
            First::Other(ready) => ready?,
        }
        while shared.open.get() < MAX_SERVED_CONNECTIONS {
            match listener.accept() {
                Ok(Some((client, _))) => connection(&shared, client),
                Ok(None) => break,
                Err(error) => {
                    // Out of descriptors, or the client is gone already: others are served on.
                    tracing::warn!(%error, "a connection could not be accepted");
                    runtime::sleep_until(shared.net.now() + ACCEPT_PAUSE).await;
                    break;
                }
            }
        }
    }
}

/// Serves one connection in its own task.
fn connection(shared: &Rc<Shared>, client: Accepted) {
    let Ok(stream) = Socket::accepted(client) else { return };
    let open = Open::new(shared);
    let stop = shared.net.stop();
    runtime::spawn(async move {
        let shared = &open.0;
        let Some(tls) = &shared.settings.tls else { return shared.serve(Transport::Plain(stream), &stop).await };
        shared.begin_idle(&stop);
        let Ok(session) = tls.session() else { return };
        match TlsStream::open(stream, session, &stop).await {
            Ok(stream) => shared.serve(Transport::Tls(stream), &stop).await,
            Err(error) => tracing::debug!(%error, "no TLS with a client"),
        }
    });
}

/// Counts a connection as open while it lives, also when its task panics.
struct Open(Rc<Shared>);

impl Open {
    fn new(shared: &Rc<Shared>) -> Self {
        shared.open.set(shared.open.get() + 1);
        Self(shared.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

impl Shared {
    async fn serve(self: &Rc<Self>, stream: Transport, stop: &Stop) {
        match &self.settings.service {
            Service::Http(http) => {
                self.begin_idle(stop);
                let mut arrived = Buffer::hollow();
                match http2::sniff(&stream, &mut arrived, stop).await {
                    Some(Spoken::Http1) => http::serve(self, http, &stream, arrived, stop).await,
                    Some(Spoken::Http2) => http2::serve(self, &stream, arrived, stop).await,
                    None => {}
                }
            }
            Service::Grpc(_) => {
                self.begin_idle(stop);
                http2::serve(self, &stream, Buffer::hollow(), stop).await;
            }
            Service::Shop(shop) => shop::serve(self, shop, &stream, stop).await,
            Service::WebSocket => websocket::serve(self, &stream, stop).await,
            Service::Echo => tcp::echo(self, &stream, stop).await,
            Service::Sink => tcp::sink(self, &stream, stop).await,
        }
    }

    /// The body of an answer, shared by all of this thread.
    fn body(&self, bytes: u64) -> Bytes {
        self.body.get_or_init(|| pattern_bytes(bytes)).clone()
    }

    /// The deadline of a wait for a client's next bytes.
    fn begin_idle(&self, stop: &Stop) {
        stop.set_deadline(Some(self.net.now() + self.settings.idle_timeout));
    }

    /// Waits, unless the client leaves meanwhile.
    async fn wait<S: Stream>(&self, stream: &S, stop: &Stop, delay: Duration) -> Result<(), Fault> {
        let due = self.net.now() + delay;
        let mut client = Client::Silent;
        loop {
            let leaves = async {
                match client {
                    Client::Silent => drop(stream.readable().await),
                    // Its next request is there already, and with it all that its socket can tell.
                    Client::Sends => std::future::pending().await,
                }
            };
            match first(self.pacer.until(due), first(stop.stopped(), leaves)).await {
                First::One(_) => return Ok(()),
                First::Other(First::One(_)) => return Err(Fault::Ended),
                First::Other(First::Other(())) => match stream.check_idle() {
                    Ok(Idle::Open) => {}
                    Ok(Idle::Data) => client = Client::Sends,
                    Ok(Idle::Closed) | Err(_) => return Err(Fault::Ended),
                },
            }
        }
    }

    /// How long the next answer takes.
    fn draw(&self, delay: Delay) -> Duration {
        delay.draw(uniform(self.net.random()), Duration::from_nanos(self.net.now().as_nanos()))
    }

    /// True in this share of the cases.
    fn chance(&self, share: f64) -> bool {
        share > 0.0 && uniform(self.net.random()) < share
    }
}

/// What a client does while it waits for its answer.
enum Client {
    Silent,
    Sends,
}

/// A random number as one from 0 to less than 1.
fn uniform(random: u64) -> f64 {
    // 53 bits are what a float holds.
    (random >> 11) as f64 / (1_u64 << 53) as f64
}
