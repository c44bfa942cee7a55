//! What a request is decided by: immutable, shared by all workers, replaced as a whole.

use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use foldhash::fast::FixedState;
use ringmesh_codec::limits::Limits;
use ringmesh_model::snapshot::{self, Mtls, Redirect, Settings};
use ringmesh_ring::net::Address;

use crate::health::Health;
use crate::listener::handshakes::Handshakes;
use crate::listener::sources::Sources;
use crate::pages::Pages;
use crate::permit::Limit;
use crate::places::Place;
use crate::telemetry::recorder::Series;
use crate::tls::Anchor;
use crate::{policy, route};

/// A map in a table. Only the config puts keys in, so nobody can choose ones that collide.
pub(crate) type Map<K, V> = HashMap<K, V, FixedState>;

/// One version of everything. A worker holds it by an `Rc` around an `Arc`: a request clones the `Rc`, so that no counter
/// is written that another core also writes.
#[derive(Default)]
pub struct Tables {
    /// The snapshot's version.
    pub version: u64,
    /// Settings of the process; None before the first snapshot.
    pub settings: Option<Arc<Settings>>,
    /// By the listener's place.
    pub listeners: Vec<Option<Arc<Listener>>>,
    /// By the service's place.
    pub services: Pages<Service>,
    /// The roots of the trust bundle.
    pub anchors: Arc<[Anchor]>,
}

/// The tables in use on a worker. Cloning it touches no memory of another core.
#[allow(
    clippy::redundant_allocation,
    reason = "the outer count is the worker's own, the inner one is shared by all cores"
)]
pub type Current = Rc<Arc<Tables>>;

/// A listener, ready for use.
pub struct Listener {
    /// Its place.
    pub place: Place,
    /// As configured.
    pub config: Arc<snapshot::Listener>,
    /// Counts its connections.
    pub series: Series,
    /// Counts requests that reach no service.
    pub unrouted: Series,
    /// Bounds of a request's head and of chunk framing.
    pub head_limits: Limits,
    /// Bounds of a response's head.
    pub response_limits: Limits,
    /// For mutual TLS; None: plain.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Who may call.
    pub policy: policy::Table,
    /// Where its requests go.
    pub target: Target,
    /// What browsers are told of HTTPS: the value of Strict-Transport-Security.
    pub hsts: Option<Box<str>>,
    /// Open connections by source, where they are limited.
    pub sources: Option<Arc<Sources>>,
    /// Handshakes under way.
    pub handshakes: Arc<Handshakes>,
    /// Where TLS goes that is passed on unopened; None: to the same service as all that is opaque.
    pub names: Option<route::Table>,
    /// Where opaque bytes go; None: nowhere.
    pub opaque: Option<route::Target>,
}

impl Listener {
    /// Whether connections of an earlier version of it may be none of its own, see
    /// [`Connection::belongs`](crate::proxy::connection::Connection::belongs).
    pub fn leaves_behind(&self, before: &Self) -> bool {
        let demands = |listener: &Self| (listener.config.mtls == Mtls::Strict, listener.tls.is_some());
        self.config.protocol != before.config.protocol || demands(self) > demands(before)
    }
}

/// Where a listener's requests go.
#[derive(Debug)]
pub enum Target {
    /// All of it to one service.
    Service(route::Target),
    /// To where these routes say.
    Routes(route::Table),
    /// Nowhere: clients are sent to HTTPS.
    Redirect(Redirect),
}

/// A service, ready for use.
pub struct Service {
    /// Its place.
    pub place: Place,
    /// As configured, but for the endpoints.
    pub config: Arc<snapshot::Service>,
    /// Counts its connections.
    pub series: Series,
    /// For mutual TLS; None: plain.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Most requests in flight.
    pub limit: Option<Limit>,
    /// Changes when connections made before may not be used any more: another own identity or expected peer.
    pub pool_key: u64,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Whether it can be reached.
    pub reach: Arc<crate::upstream::reach::Reach>,
}

impl Service {
    /// Whether a connection that begins with `preface` may be one that carries channels.
    #[inline]
    pub fn shares(&self, preface: Option<&[u8]>) -> bool {
        self.tls.is_some()
            && self.config.share_connections
            && preface.is_none()
            && self.config.destination == snapshot::Destination::Endpoints
    }
}

/// An endpoint, ready for use.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its place.
    pub place: Place,
    /// Where it listens.
    pub address: Address,
    /// The same as text, for logs.
    pub text: Box<str>,
    /// What probes have found. None: it is not asked.
    pub health: Option<Arc<Health>>,
}

impl Endpoint {
    /// Whether probes say that it does not serve.
    #[inline]
    pub fn is_unhealthy(&self) -> bool {
        self.health.as_ref().is_some_and(|health| health.is_unhealthy())
    }
}

impl Tables {
    /// The listener at a place, if that one is still there.
    pub fn listener(&self, place: Place) -> Option<&Listener> {
        self.listeners.get(place.index as usize)?.as_deref().filter(|listener| listener.place == place)
    }

    /// The service at an index that a route of these same tables names.
    pub fn service(&self, index: u32) -> Option<&Service> {
        self.services.get(index)
    }
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tables").field("version", &self.version).finish_non_exhaustive()
    }
}
