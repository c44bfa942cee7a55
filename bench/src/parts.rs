//! The parts of a request's path, each by itself: timed by `cargo bench`, counted under callgrind for the gate.
//!
//! A part is prepared once and then run many times. What hash maps cost depends on their random seeds, so such a part
//! goes through many keys, and small tables come in numbers: the mean is what stays.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};
use ringmesh_codec::http1::{Edits, RequestHead, ResponseHead};
use ringmesh_codec::{BodyLength, BodyScanner, Limits, Method};
use ringmesh_dataplane::balance::{self, Candidate, Draw, Tried};
use ringmesh_dataplane::loader::Loader;
use ringmesh_dataplane::outcome::Reason;
use ringmesh_dataplane::proxy::http1::Spans;
use ringmesh_dataplane::proxy::request::{self, Account};
use ringmesh_dataplane::route::{Rule, Table, Target};
use ringmesh_dataplane::telemetry::directory::Directory;
use ringmesh_dataplane::telemetry::layout;
use ringmesh_dataplane::telemetry::recorder::Series;
use ringmesh_dataplane::{policy, tls};
use ringmesh_model::delta::Delta;
use ringmesh_model::snapshot::{
    AccessLog, AllowRule, Balance, HostPattern, Identity, Key, Object, PathMatch, Policy, Protocol, RouteMatch,
    Snapshot,
};
use ringmesh_model::spiffe::SpiffeId;
use ringmesh_ring::memory::{Network, block_on};
use ringmesh_ring::shared_memory::SharedMemory;
use ringmesh_ring::{Buffer, Instant, Net, Output, Size, Slice, Stream};

use crate::http2::{self, Kind};
use crate::memory::{Between, REQUEST, RESPONSE, World};
use crate::snapshot::{self, other_host};

/// Runs a part so many times.
pub type Run = Box<dyn FnMut(u64)>;

/// One part.
pub struct Part {
    /// Stage and what it does there.
    pub name: &'static str,
    /// How often it is run for a count: a shorter and a longer run, whose difference is free of what begins and ends.
    pub runs: (u64, u64),
    /// By how much its count differs between runs of the same program, as a share.
    pub spread: f64,
    prepare: fn() -> anyhow::Result<Run>,
}

/// Enough for the mean over all keys.
const RUNS: (u64, u64) = (640, 1920);

/// For parts that are not on the path of a request and take long.
const FEW_RUNS: (u64, u64) = (4, 12);

/// A whole request, with what the client and the service do for it.
pub const REQUEST_WITH_ENDS: &str = "request/with-client-and-service";

/// What the client and the service do for it when nothing is between them.
pub const ENDS: &str = "request/client-and-service-alone";

/// All parts, in the order in which a request meets them.
pub const ALL: &[Part] = &[
    part("codec/parse-request-head", || Ok(parse_request_head())),
    part("codec/parse-and-forward-request-head", || Ok(forward_request_head())),
    part("codec/parse-frame-and-forward-response", || Ok(forward_response())),
    part("codec/frame-chunked-body-of-4KiB", || Ok(frame_chunked_body())),
    part("policy/10-rules-by-caller", || policy_by_caller(10)),
    part("policy/1000-rules-by-caller", || policy_by_caller(1000)),
    part("policy/10-rules-for-anybody", || Ok(policy_for_anybody(10))),
    part("policy/1000-rules-for-anybody", || Ok(policy_for_anybody(1000))),
    part("route/10-hosts", || Ok(route(10))),
    part("route/1000-hosts", || Ok(route(1000))),
    part("route/10000-hosts", || Ok(route(10_000))),
    part("balance/least-request-of-2", || Ok(balance(Balance::LeastRequest, 2))),
    part("balance/least-request-of-100", || Ok(balance(Balance::LeastRequest, 100))),
    part("balance/round-robin-over-2", || Ok(balance(Balance::RoundRobin, 2))),
    part("telemetry/one-request", telemetry),
    part("tables/commit-on-a-worker", commit),
    Part { runs: FEW_RUNS, ..part("tables/change-one-service-of-1000", change) },
    // Copies cost by where memory lies, and the crypto library's buffers lie elsewhere each time.
    Part { spread: 0.03, ..part("tls/record-of-1KiB", tls_record) },
    part("http2/a-request-alone", || http2_requests(Kind::Request, 1)),
    part("http2/16-requests-at-once", || http2_requests(Kind::Request, 16)),
    part("grpc/16-calls-at-once", || http2_requests(Kind::Call, 16)),
    part(REQUEST_WITH_ENDS, || whole_request(Between::Proxy)),
    part(ENDS, || whole_request(Between::Nothing)),
    part("tcp/round-trip-with-client-and-service", opaque_round_trip),
];

const fn part(name: &'static str, prepare: fn() -> anyhow::Result<Run>) -> Part {
    Part { name, runs: RUNS, spread: 0.0, prepare }
}

/// The part of this name.
///
/// # Errors
/// If there is none.
pub fn find(name: &str) -> anyhow::Result<&'static Part> {
    ALL.iter().find(|part| part.name == name).with_context(|| format!("there is no part `{name}`"))
}

impl Part {
    /// Prepares it, and runs it once, so that everything has its size.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn prepare(&self) -> anyhow::Result<Run> {
        let mut run = (self.prepare)()?;
        run(1);
        Ok(run)
    }
}

fn repeat(mut one: impl FnMut() + 'static) -> Run {
    Box::new(move |count| (0..count).for_each(|_| one()))
}

fn received(bytes: &[u8]) -> Slice {
    let mut buffer = Buffer::take(Size::Small);
    buffer.extend_from_slice(bytes).expect("it fits");
    buffer.slice(0..bytes.len())
}

fn parse_request_head() -> Run {
    let (bytes, limits, mut head) = (received(REQUEST), Limits::default(), RequestHead::default());
    repeat(move || {
        head.clear();
        head.parse(black_box(&bytes), &limits).expect("it is well-formed");
    })
}

fn forward_request_head() -> Run {
    let (bytes, limits, mut head) = (received(REQUEST), Limits::default(), RequestHead::default());
    let (mut edits, mut output) = (Edits::default(), Output::new());
    repeat(move || {
        head.clear();
        head.parse(black_box(&bytes), &limits).expect("it is well-formed");
        edits.clear();
        head.write(&bytes, &edits, &mut Spans { head: &bytes, output: &mut output });
        output.clear();
    })
}

fn forward_response() -> Run {
    let (bytes, limits, mut head) = (received(RESPONSE), Limits::default(), ResponseHead::default());
    let (mut edits, mut output) = (Edits::default(), Output::new());
    repeat(move || {
        head.clear();
        head.parse(black_box(&bytes), &limits).expect("it is well-formed");
        edits.clear();
        head.write(&bytes, &edits, &mut Spans { head: &bytes, output: &mut output });
        let mut body = BodyScanner::new(head.framing(Method::Get), &limits);
        let scan = body.scan(&bytes[head.len()..]).expect("it is well-formed");
        output.push(bytes.slice(head.len()..head.len() + scan.consumed));
        output.clear();
    })
}

fn frame_chunked_body() -> Run {
    let chunk = [b"200\r\n".as_slice(), &[b'x'; 0x200], b"\r\n"].concat();
    let body = [chunk.repeat(8), b"0\r\n\r\n".to_vec()].concat();
    let limits = Limits::default();
    repeat(move || {
        let mut scanner = BodyScanner::new(BodyLength::Chunked, &limits);
        let scan = scanner.scan(black_box(&body)).expect("it is well-formed");
        assert_eq!(scan.consumed, body.len());
    })
}

/// Goes through all pairs of a table and a key, over and over.
fn in_turn<T: 'static, K: 'static>(tables: Vec<T>, keys: Vec<K>, one: impl Fn(&T, &K) + 'static) -> Run {
    let mut turn = 0;
    repeat(move || {
        one(&tables[turn / keys.len() % tables.len()], &keys[turn % keys.len()]);
        turn += 1;
    })
}

/// Keys that one table is asked for at most.
const MAX_KEYS: usize = 64;

/// As many tables as are needed for the mean.
fn several<T>(size: usize, make: impl Fn() -> T) -> Vec<T> {
    (0..(640 / size).max(1)).map(|_| make()).collect()
}

fn route(hosts: usize) -> Run {
    let rule = Rule {
        route: "route".into(),
        name: "0".into(),
        matches: RouteMatch::default(),
        to: vec![Target { service: 0, weight: 1, series: Series { index: 0, generation: 1 } }],
        total_weight: 1,
        timeout: None,
    };
    let tables = several(hosts, || {
        let mut table = Table::default();
        (0..hosts).for_each(|n| table.add(&HostPattern::Exact(other_host(n)), rule.clone()));
        table
    });
    // Names of the same length everywhere, so that figures of tables compare.
    let keys = (0..hosts).rev().take(MAX_KEYS.min(hosts)).map(|n| {
        let bytes = format!("GET /items/17 HTTP/1.1\r\nHost: {}\r\n\r\n", other_host(n)).into_bytes();
        let mut head = RequestHead::default();
        head.parse(&bytes, &Limits::default()).expect("it is well-formed");
        (head, bytes)
    });
    in_turn(tables, keys.collect(), |table: &Table, (head, bytes)| {
        let rule =
            table.find(&head.view(black_box(bytes)), black_box(Some(head.path(bytes)))).expect("the host is routed");
        black_box(rule.pick(|| 7).service);
    })
}

fn caller(n: usize) -> anyhow::Result<SpiffeId> {
    Ok(SpiffeId::workload("bench.example", "default", &format!("caller-{n}"))?)
}

fn policy_table(allow: Vec<AllowRule>) -> policy::Table {
    let policy = Policy { name: "p".into(), listener: "front".into(), allow };
    policy::Table::new(std::iter::once(&policy))
}

fn allow(n: usize, from: Vec<SpiffeId>) -> AllowRule {
    let paths = vec![PathMatch::Prefix(format!("/items/{n}"))];
    AllowRule { name: n.to_string(), from, methods: vec!["GET".into()], paths }
}

fn policy_by_caller(rules: usize) -> anyhow::Result<Run> {
    let callers: Vec<SpiffeId> = (0..rules).map(caller).collect::<anyhow::Result<_>>()?;
    let tables = several(rules, || {
        let rules = callers.iter().enumerate().map(|(n, caller)| allow(n, vec![caller.clone()]));
        policy_table(rules.collect())
    });
    let keys = callers.iter().cloned().enumerate().take(MAX_KEYS).map(|(n, caller)| (caller, format!("/items/{n}")));
    Ok(in_turn(tables, keys.collect(), |table, (caller, path)| {
        let decision = table.authorize(black_box(Some(caller)), b"GET", Some(path.as_bytes()));
        assert!(matches!(decision, policy::Decision::Allow(_)));
    }))
}

/// The last rule is the one that allows: all are looked at.
fn policy_for_anybody(rules: usize) -> Run {
    let table = policy_table((0..rules).map(|n| allow(n, Vec::new())).collect());
    let path = format!("/items/{}", rules - 1);
    repeat(move || {
        let decision = table.authorize(black_box(None), b"GET", Some(path.as_bytes()));
        assert!(matches!(decision, policy::Decision::Allow(_)));
    })
}

/// An endpoint with some requests in flight.
#[derive(Clone, Copy)]
struct Endpoint(u32);

impl Candidate for Endpoint {
    fn in_flight(&self) -> u32 {
        self.0
    }

    fn avoided_until(&self) -> Option<Instant> {
        None
    }
}

fn balance(balance: Balance, count: usize) -> Run {
    let endpoints: Vec<Endpoint> = (0..count as u32).map(|n| Endpoint(n % 7)).collect();
    let (mut turn, tried) = (0u64, Tried::default());
    repeat(move || {
        turn += 1;
        let random = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let draw = || Draw { now: Instant::ZERO, turn, random };
        black_box(balance::pick(balance, count, |index| endpoints[index], &tried, draw));
    })
}

fn telemetry() -> anyhow::Result<Run> {
    let world = World::new(1)?;
    let tables = world.worker.tables();
    let connection = world.connection();
    let account = Account { status: 200, attempts: 1, grpc_status: None, request_bytes: 0, response_bytes: 100 };
    Ok(repeat(move || {
        let listener = tables.listener(connection.listener).expect("the only listener");
        request::refused(&world.worker, &connection, &tables, listener, black_box(&account), Reason::Ok);
    }))
}

/// Tables of 1,000 services, and what makes them.
fn loader() -> anyhow::Result<(Loader, Snapshot)> {
    let memory = Arc::new(SharedMemory::create("telemetry", layout::memory_bytes(1))?.map_writer()?);
    let bind: SocketAddr = "127.0.0.1:1".parse().expect("an address");
    let mut snapshot = snapshot::snapshot(bind, bind, 1, AccessLog::Off);
    for n in 1..1000 {
        let name = format!("service-{n}");
        let service = snapshot::service(&name, bind);
        snapshot.objects.insert(Key::Service(name), Object::Service(service.into()));
    }
    let mut loader = Loader::new(Directory::open(memory, 1)?, 1);
    loader.load(snapshot.clone())?;
    Ok((loader, snapshot))
}

fn commit() -> anyhow::Result<Run> {
    let (world, (mut loader, mut snapshot)) = (World::new(1)?, loader()?);
    let one = loader.tables().clone();
    snapshot.version += 1;
    let other = loader.load(snapshot)?;
    let mut turn = false;
    Ok(repeat(move || {
        turn = !turn;
        drop(world.worker.commit(if turn { other.clone() } else { one.clone() }));
    }))
}

/// What the loader does for it; a worker gets a pointer.
fn change() -> anyhow::Result<Run> {
    let (mut loader, snapshot) = loader()?;
    let mut version = snapshot.version;
    Ok(repeat(move || {
        version += 1;
        let port = 1000 + (version % 2) as u16;
        let service = snapshot::service("service-7", SocketAddr::from(([10, 0, 0, 1], port)));
        let put = vec![(Key::Service("service-7".into()), Object::Service(service.into()))];
        loader.apply(&Delta { version, put, remove: Vec::new() }).expect("it is sound");
    }))
}

/// Sealed on one side, opened on the other.
fn tls_record() -> anyhow::Result<Run> {
    let (near, far) = identities()?;
    let (client, server) = (tls::client(&near, &far.id, &[])?, tls::server(&far, far.id.trust_domain(), &[])?);
    let net = Network::new(1);
    let (from, to) = net.pair();
    let (sender, receiver) = block_on(&net, async {
        let stop = net.stop();
        let accepted = std::rc::Rc::new(std::cell::Cell::new(None));
        let (kept, far_stop) = (accepted.clone(), net.stop());
        ringmesh_ring::spawn(async move { kept.set(tls::accept(to, server, &far_stop).await.ok()) });
        let (sender, _peer) = tls::connect(from, client, &stop).await?;
        // The server is done when it has read the client's last flight, and says so by nothing but its first byte.
        let mut receiver = None;
        while receiver.is_none() {
            ringmesh_ring::sleep_until(net.now() + std::time::Duration::from_millis(1)).await;
            receiver = accepted.take();
        }
        anyhow::Ok((sender, receiver.context("the loop ends with one")?.0))
    })?;
    let (payload, mut output) = (received(&[b'x'; 1024]), Output::new());
    Ok(Box::new(move |count| {
        block_on(&net, async {
            let stop = net.stop();
            let mut buffer = Buffer::take(Size::Small);
            for _ in 0..count {
                output.push(payload.clone());
                sender.flush(&mut output, &stop).await.expect("the connection is kept");
                buffer.clear();
                while buffer.len() < payload.len() {
                    receiver.fill(&mut buffer, &stop).await.expect("the connection is kept");
                }
            }
        });
    }))
}

/// Two workloads of one authority.
fn identities() -> anyhow::Result<(Identity, Identity)> {
    let mut root = CertificateParams::default();
    root.distinguished_name.push(DnType::CommonName, "root");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate()?)?;
    let issue = |name: &str| -> anyhow::Result<Identity> {
        let id = SpiffeId::workload("bench.example", "default", name)?;
        let mut leaf = CertificateParams::default();
        leaf.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        Ok(Identity {
            chain: vec![leaf.signed_by(&key, &root)?.der().to_vec()],
            key: key.serialize_der(),
            bundle: vec![root.der().to_vec()],
            expires: u64::MAX,
            id,
        })
    };
    Ok((issue("near")?, issue("far")?))
}

fn whole_request(between: Between) -> anyhow::Result<Run> {
    let world = World::new(1)?;
    Ok(Box::new(move |count| {
        world.run(between, 0, count, || ());
    }))
}

fn http2_requests(kind: Kind, at_once: usize) -> anyhow::Result<Run> {
    let world = match kind {
        Kind::Request => World::with(1, Protocol::Http2)?,
        Kind::Call => World::of_calls()?,
    };
    Ok(Box::new(move |count| http2::run(&world, kind, at_once, count)))
}

/// The bytes of a request and its answer on a connection whose bytes are not looked at.
fn opaque_round_trip() -> anyhow::Result<Run> {
    let world = World::opaque()?;
    Ok(Box::new(move |count| {
        world.run(Between::Proxy, 0, count, || ());
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_can_be_run_and_has_a_name_of_its_own() {
        let names: std::collections::HashSet<&str> = ALL.iter().map(|part| part.name).collect();
        assert_eq!(names.len(), ALL.len());
        for part in ALL {
            let mut run = part.prepare().unwrap_or_else(|error| panic!("{}: {error:#}", part.name));
            run(2);
        }
    }
}
