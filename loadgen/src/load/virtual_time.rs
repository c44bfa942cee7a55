//! The schedule under a virtual clock: real schedule, connections and counting, in a world without a kernel, where every
//! instant is known to the nanosecond.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;
use std::time::Duration;

use ringmesh_ring::memory::{Network, block_on};
use ringmesh_ring::net::{Address, Net};
use ringmesh_ring::{Buffer, Instant, Output, Size, Stop, Stream, runtime, yield_now};

use super::worker::{self, Answered, Due, Ended, Ready, Shared};
use super::{Connection, Entry, Prepared, Reuse, Settings};
use crate::arrival::Arrivals;
use crate::message;
use crate::pace::Pacer;
use crate::report::{Expected, Report};

const MILLISECOND: Duration = Duration::from_millis(1);

/// How long an answer takes outside of a stall.
const SERVICE: Duration = MILLISECOND;

/// The server answers nothing in the first part of each second.
const STALL: Duration = Duration::from_millis(100);

/// Polls after which everything that can move at one instant has moved.
const TURNS: usize = 40;

/// When a request was due, sent and answered, from the start of measuring (of the load, where it is the warm-up's).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    due: Duration,
    sent: Duration,
    answered: Duration,
}

/// When a request that is sent at an instant is answered.
fn answered(sent: Duration) -> Duration {
    let second = Duration::from_secs(sent.as_secs());
    sent.max(second + STALL) + SERVICE
}

/// Runs a load to its end, and says what its requests saw and what was reported.
fn run(settings: Settings) -> (Vec<Seen>, Report) {
    let network = Network::new(1);
    let world = network.clone();
    block_on(&network, async move {
        let pacer = Pacer::in_memory(&world);
        let start = world.now();
        runtime::spawn(serve(world.clone(), pacer.clone(), settings.targets[0].address.clone(), start));
        let report = Report::new(&settings, [], "memory".to_owned());
        let connections = settings.connections;
        let shared = Rc::new(Shared::new(world.clone(), pacer.clone(), 0, settings, report));
        let (seen, open) = (Rc::new(RefCell::new(Vec::new())), Rc::new(Cell::new(connections)));
        for _ in 0..connections {
            let (its, seen, open) = (shared.clone(), seen.clone(), open.clone());
            worker::spawn(&shared, move |ready| client(its, ready, seen, open, start));
        }
        turn().await;
        shared.start_at(start);
        while open.get() > 0 {
            turn().await;
            let Some(earliest) = pacer.earliest() else { continue };
            world.advance(earliest.saturating_since(world.now()));
            pacer.expire();
        }
        let mut report = shared.report.borrow().snapshot();
        report.finish();
        let mut seen = seen.take();
        seen.sort_unstable();
        (seen, report)
    })
}

async fn turn() {
    for _ in 0..TURNS {
        yield_now().await;
    }
}

async fn serve(network: Network, pacer: Rc<Pacer>, address: Address, start: Instant) {
    let listener = network.listen(address);
    loop {
        let stream = listener.accept().await;
        let (network, pacer) = (network.clone(), pacer.clone());
        runtime::spawn(async move {
            let (stop, mut output) = (Stop::new(), Output::new());
            let mut buffer = Buffer::take(Size::Small);
            while let Ok(head) = message::read_head(&stream, &mut buffer, &stop, message::parse_request).await {
                buffer.consume(head.length);
                pacer.until(start + answered(network.now().saturating_since(start))).await;
                output.push_bytes(b"HTTP/1.1 204 OK\r\n\r\n");
                stream.flush(&mut output, &stop).await.unwrap();
            }
        });
    }
}

async fn client(
    shared: Rc<Shared<Network>>,
    ready: Ready<Network>,
    seen: Rc<RefCell<Vec<Seen>>>,
    open: Rc<Cell<usize>>,
    start: Instant,
) {
    let request = Prepared::new(&Entry::get("shop", "/"), Reuse::KeepAlive);
    let (stop, mut output) = (shared.net.stop(), Output::new());
    let connection = Connection::open(&shared.net, &shared.settings.targets[0].address, &stop).await.unwrap();
    shared.begin(ready).await;
    while let Some(due) = shared.next().await {
        let begin = shared.net.now();
        shared.delayed(&due, begin);
        let answer = connection.exchange(&request, None, &mut output, &stop, |_| {}).await.unwrap();
        let outcome = Ok(Answered {
            status: Some(answer.status),
            expected: Expected::Yes,
            field: None,
            bytes_sent: request.bytes,
            bytes_received: answer.bytes,
        });
        shared.record(&due, &Ended { entry: 0, begin, outcome });
        let Due { at, .. } = due;
        let since = |instant: Instant| instant.saturating_since(start);
        seen.borrow_mut().push(Seen { due: since(at), sent: since(begin), answered: since(shared.net.now()) });
    }
    open.set(open.get() - 1);
}

fn settings(rate: &str, connections: usize) -> Settings {
    let address: std::net::SocketAddr = "10.0.0.1:80".parse().unwrap();
    Settings {
        connections,
        arrivals: Arrivals::Open { rate: rate.parse().unwrap(), spacing: crate::arrival::Spacing::Even },
        duration: Some(Duration::from_secs(3)),
        ..Settings::http(address.into(), vec![Entry::get("shop", "/")])
    }
}

/// The same load, computed: each request goes to the connection that is free first.
fn computed(due: impl Iterator<Item = Duration>, connections: usize) -> Vec<Seen> {
    let mut free: BinaryHeap<_> = (0..connections).map(|_| Reverse(Duration::ZERO)).collect();
    due.map(|due| {
        let Reverse(at) = free.pop().unwrap();
        let sent = due.max(at);
        free.push(Reverse(answered(sent)));
        Seen { due, sent, answered: answered(sent) }
    })
    .collect()
}

#[test]
fn every_request_is_sent_at_its_instant_and_counted_from_it() {
    // Enough connections for all that wait; a few; and one that is never free in time.
    for (connections, rate) in [(200, 1_000_u32), (7, 1_000), (1, 500)] {
        let (seen, report) = run(settings(&rate.to_string(), connections));
        let due = (0..rate * 3).map(|number| Duration::from_secs(1) * number / rate);
        let expected: Vec<_> = computed(due, connections);
        // Those that no connection was free for before the end are never sent.
        let sent = expected.iter().filter(|one| one.sent < Duration::from_secs(3)).count();
        assert_eq!(seen.len(), sent, "{connections} connections");
        assert_eq!(seen[..], expected[..sent], "{connections} connections");
        assert_eq!((report.total.succeeded, report.unsent), (sent as u64, u64::from(rate) * 3 - sent as u64));

        let mut latencies: Vec<_> = seen.iter().map(|one| one.answered - one.due).collect();
        latencies.sort_unstable();
        for share in [0.5_f64, 0.9, 0.95, 0.99, 0.999, 1.0] {
            let rank = (share * latencies.len() as f64).ceil() as usize - 1;
            let (exact, found) = (latencies[rank].as_secs_f64(), report.total.quantile(share).as_secs_f64());
            assert!((found / exact - 1.0).abs() < 0.001, "{connections} connections, {share}: {found}, not {exact}");
        }
        assert_eq!(report.delay().max(), 1, "the generator itself is never late when time does not pass");
    }
}

#[test]
fn a_ramp_sends_each_request_when_the_area_under_it_has_grown_by_one() {
    let (seen, _) = run(settings("0..1000/2s,0/500ms,100", 300));
    let mut expected: Vec<f64> = (0..1_000).map(|number| 2.0 * (f64::from(number) / 1_000.0).sqrt()).collect();
    expected.extend((0..50).map(|number| 2.5 + f64::from(number) / 100.0));
    assert_eq!(seen.len(), expected.len());
    for (one, expected) in seen.iter().zip(expected) {
        assert!((one.due.as_secs_f64() - expected).abs() < 1e-9, "{one:?}: {expected}");
        assert_eq!(one.sent, one.due);
    }
}

#[test]
fn warm_up_requests_are_sent_and_not_counted() {
    let warm_up = Duration::from_millis(1_500);
    let (seen, report) = run(Settings { warm_up, duration: Some(Duration::from_secs(1)), ..settings("100", 50) });
    assert_eq!((seen.len(), report.total.requests()), (250, 100));
    // Of those counted, the ten due within the one stall wait for its end.
    let waiting = seen.iter().filter(|one| one.due >= warm_up && one.answered - one.due > SERVICE).count();
    assert_eq!((waiting, report.total.latency().count_between(2_000_000, u64::MAX)), (10, 10));
    let bounded = Settings { warm_up, requests: Some(30), ..settings("100", 50) };
    assert_eq!(run(bounded).1.total.requests(), 30);
}

#[test]
fn a_closed_loop_hides_the_stall_that_an_open_one_shows() {
    let (_, open) = run(settings("1000", 10));
    let (_, closed) = run(Settings { arrivals: Arrivals::Closed, ..settings("1000", 10) });
    // A tenth of the users come within the stall; of ten connections each is caught in it once a second.
    assert!(open.total.quantile(0.95) > 40 * MILLISECOND, "{open}");
    assert!(closed.total.quantile(0.99) <= 2 * MILLISECOND, "{closed}");
}
