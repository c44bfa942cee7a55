//! What each stage costs a request, in nanoseconds: `cargo bench -p ringmesh-bench`, or with a word such as `route` for
//! those with it in their names.

use std::hint::black_box;
use std::ops::Range;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringmesh_bench::memory::{self, REQUEST, RESPONSE, World};
use ringmesh_bench::snapshot::{HOST, other_host};
use ringmesh_codec::http1::{Edits, RequestHead, ResponseHead, Sink};
use ringmesh_codec::{BodyScanner, Limits, Method};
use ringmesh_dataplane::balance::{self, Candidate, Tried};
use ringmesh_dataplane::outcome::Reason;
use ringmesh_dataplane::policy;
use ringmesh_dataplane::proxy::request::{self, Account};
use ringmesh_dataplane::route::{Rule, Table, Target};
use ringmesh_dataplane::telemetry::recorder::Series;
use ringmesh_model::snapshot::{AllowRule, Balance, HostPattern, PathMatch, Policy, RouteMatch};
use ringmesh_model::spiffe::SpiffeId;
use ringmesh_ring::{Buffer, Instant, Output, Size, Slice};

criterion_group!(benches, codec, routes, policies, balancing, telemetry, whole_request);
criterion_main!(benches);

/// Sends a head on from where it lies, as the proxy does.
struct Spans<'a> {
    head: &'a Slice,
    output: &'a mut Output,
}

impl Sink for Spans<'_> {
    fn original(&mut self, range: Range<usize>) {
        self.output.push(self.head.slice(range));
    }

    fn inserted(&mut self, text: &[u8]) {
        self.output.push_bytes(text);
    }
}

fn received(bytes: &[u8]) -> Slice {
    let mut buffer = Buffer::take(Size::Small);
    buffer.extend_from_slice(bytes).expect("it fits");
    buffer.slice(0..bytes.len())
}

fn codec(c: &mut Criterion) {
    let limits = Limits::default();
    let (mut edits, mut output) = (Edits::default(), Output::new());
    let mut group = c.benchmark_group("codec");

    let (bytes, mut head) = (received(REQUEST), RequestHead::default());
    group.throughput(Throughput::Bytes(REQUEST.len() as u64));
    group.bench_function("request head: parse", |b| {
        b.iter(|| {
            head.clear();
            head.parse(black_box(&bytes), &limits).is_ok()
        });
    });
    group.bench_function("request head: parse and forward", |b| {
        b.iter(|| {
            head.clear();
            head.parse(black_box(&bytes), &limits).expect("it is well-formed");
            edits.clear();
            head.write(&bytes, &edits, &mut Spans { head: &bytes, output: &mut output });
            output.clear();
        });
    });

    let (bytes, mut head) = (received(RESPONSE), ResponseHead::default());
    group.throughput(Throughput::Bytes(RESPONSE.len() as u64));
    group.bench_function("response: parse, frame and forward", |b| {
        b.iter(|| {
            head.clear();
            head.parse(black_box(&bytes), &limits).expect("it is well-formed");
            edits.clear();
            head.write(&bytes, &edits, &mut Spans { head: &bytes, output: &mut output });
            let mut body = BodyScanner::new(head.framing(Method::Get), &limits);
            let scan = body.scan(&bytes[head.len()..]).expect("it is well-formed");
            output.push(bytes.slice(head.len()..head.len() + scan.consumed));
            output.clear();
        });
    });
    group.finish();
}

fn routes(c: &mut Criterion) {
    let series = Series { index: 0, generation: 1 };
    let rule = Rule {
        route: "route".into(),
        name: "0".into(),
        matches: RouteMatch::default(),
        to: vec![Target { service: 0, weight: 1, series }],
        total_weight: 1,
        timeout: None,
    };
    let mut head = RequestHead::default();
    head.parse(REQUEST, &Limits::default()).expect("it is well-formed");
    let mut group = c.benchmark_group("route");
    for hosts in [10, 1_000, 10_000] {
        let mut table = Table::default();
        for host in std::iter::once(HOST.to_owned()).chain((1..hosts).map(other_host)) {
            table.add(&HostPattern::Exact(host), rule.clone());
        }
        group.bench_function(BenchmarkId::new("hosts", hosts), |b| {
            b.iter(|| table.find(&head.view(black_box(REQUEST))).map(|rule| rule.pick(7).service));
        });
    }
    group.finish();
}

fn policies(c: &mut Criterion) {
    let caller = |n: usize| SpiffeId::workload("bench.example", "default", &format!("caller-{n}")).expect("a name");
    let rule = |n: usize, from: Vec<SpiffeId>| AllowRule {
        name: n.to_string(),
        from,
        methods: vec!["GET".into()],
        paths: vec![PathMatch::Prefix(format!("/items/{n}"))],
    };
    let table = |allow| {
        let policy = Policy { name: "p".into(), listener: "front".into(), allow };
        policy::Table::new(std::iter::once(&policy))
    };
    let mut group = c.benchmark_group("policy");
    for rules in [10, 1_000] {
        let last = rules - 1;
        let (caller_id, path) = (caller(last), format!("/items/{last}"));
        let by_identity = table((0..rules).map(|n| rule(n, vec![caller(n)])).collect());
        group.bench_function(BenchmarkId::new("rules of one caller each", rules), |b| {
            b.iter(|| by_identity.authorize(black_box(Some(&caller_id)), b"GET", path.as_bytes()));
        });
        let anybody = table((0..rules).map(|n| rule(n, Vec::new())).collect());
        group.bench_function(BenchmarkId::new("rules for anybody, the last one allows", rules), |b| {
            b.iter(|| anybody.authorize(black_box(None), b"GET", path.as_bytes()));
        });
    }
    group.finish();
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

fn balancing(c: &mut Criterion) {
    let mut group = c.benchmark_group("balance");
    for count in [2usize, 100] {
        let endpoints: Vec<Endpoint> = (0..count as u32).map(|n| Endpoint(n % 7)).collect();
        for (balance, name) in [(Balance::LeastRequest, "least request of"), (Balance::RoundRobin, "round robin over")]
        {
            group.bench_function(BenchmarkId::new(name, count), |b| {
                let (mut turn, tried) = (0u64, Tried::default());
                b.iter(|| {
                    turn += 1;
                    let random = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    balance::pick(balance, count, |index| endpoints[index], &tried, Instant::ZERO, turn, random)
                });
            });
        }
    }
    group.finish();
}

fn telemetry(c: &mut Criterion) {
    let world = World::new(1).expect("memory");
    let tables = world.worker.tables();
    let connection = world.connection();
    let listener = tables.listener(connection.listener).expect("the only listener");
    let account = Account { status: 200, attempts: 1, request_bytes: 0, response_bytes: 100 };
    c.bench_function("telemetry/one request", |b| {
        b.iter(|| request::refused(&world.worker, &connection, &tables, listener, black_box(&account), Reason::Ok));
    });
}

fn whole_request(c: &mut Criterion) {
    let mut group = c.benchmark_group("request");
    for hosts in [1, 10_000] {
        let world = World::new(hosts).expect("memory");
        group.bench_function(BenchmarkId::new("in memory, client and service included, hosts", hosts), |b| {
            b.iter_custom(|count| memory::time(&world, count));
        });
    }
    group.finish();
}
