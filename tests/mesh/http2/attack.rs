//! Clients and services that attack with frames: they are cut, or get no further than a bound; the proxy's memory stays
//! bounded, and others are served without a failure meanwhile.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringmesh_tests::client::is_end;
use ringmesh_tests::http2::{self, Connection, Ended, Ends, Frame, Outgoing, code, flag, frame, hpack, setting};
use ringmesh_tests::process::{processor_time, resident_set_size};
use ringmesh_tests::{Client, Proxy, hold, on_both_drivers, ports};

use super::{assert_reason, proxy_by_http2};
use crate::support::{forwarding, ringmesh};

/// What an attack may add to the proxy's memory.
const MAX_ADDED_BYTES: u64 = 48 * 1024 * 1024;

/// What an attack, with the good traffic beside it, may take of the proxy's processor time. Without optimisation it is a tenth of a
/// second, and most of one where slow readers are served for a minute.
const MAX_PROCESSOR_TIME: Duration = Duration::from_secs(5);

/// Frames after which an attack must have been noticed.
const MAX_FRAMES: usize = 200_000;

/// Frames that are sent before the answers are looked at.
const BATCH: usize = 500;

/// Attackers at the same time.
pub(super) const ATTACKERS: usize = 3;

pub(super) const REQUEST: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/x"), (":authority", "app")];
const POST: [(&str, &str); 4] = [(":method", "POST"), (":scheme", "http"), (":path", "/x"), (":authority", "app")];

/// How an attack ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The connection was ended, with these codes of goodbyes before.
    Cut(Option<u32>),
    /// All was sent.
    Sent,
}

/// Whether an attacker looks at what it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    Yes,
    No,
}

/// Sends batches until the other side ends, or the last one was sent.
fn attack(client: &mut Connection, reads: Reads, mut batch: impl FnMut(&mut Connection) -> Vec<u8>) -> End {
    client.manners.answers = false;
    client.socket().set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    for _ in 0..MAX_FRAMES / BATCH {
        let bytes = batch(client);
        let sent = client.send_bytes(&bytes);
        let reading = match (reads, sent.is_err()) {
            (Reads::Yes, _) | (_, true) => client.read_for(Duration::from_millis(1)),
            (Reads::No, false) => Ok(true),
        };
        let is_over = |result: &io::Result<bool>| match result {
            Ok(open) => !open,
            Err(error) => is_end(error),
        };
        if sent.is_err() || is_over(&reading) || !client.goodbyes.is_empty() {
            // Whoever does not read is stopped by the kernel; its connection may be open yet.
            let _ = client.until_end();
            return End::Cut(client.goodbyes.last().map(|goodbye| goodbye.1));
        }
        reading.unwrap();
    }
    // What was sent may lie in the kernel.
    match client.read_for(Duration::from_secs(5)) {
        Ok(true) if client.goodbyes.is_empty() => End::Sent,
        _ => End::Cut(client.goodbyes.last().map(|goodbye| goodbye.1)),
    }
}

/// Repeats a frame.
fn repeated(frame: &Frame) -> Vec<u8> {
    frame.bytes().repeat(BATCH)
}

/// Requests that each begin a stream of their own, with what follows each.
fn streams(client: &mut Connection, fields: &[(&str, &str)], ends: Ends, then: impl Fn(u32) -> Vec<Frame>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..BATCH {
        let stream = client.next_id();
        let head = Frame::headers(stream, hpack::block(fields));
        bytes.extend((if ends == Ends::Yes { head.ending() } else { head }).bytes());
        then(stream).iter().for_each(|frame| bytes.extend(frame.bytes()));
    }
    bytes
}

/// Asks on a connection of its own, and is always answered well and soon.
fn bystander(front: SocketAddr) -> (Arc<AtomicBool>, thread::JoinHandle<u32>) {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let asking = thread::spawn(move || {
        let mut client = Connection::connect(front);
        let mut fresh = 0;
        while !stopped.load(Ordering::Relaxed) || fresh < 3 {
            let begun = Instant::now();
            assert_eq!(client.get("app", "/good").text(), "GET /good 0");
            assert_eq!(Client::connect(front).get("app", "/good").text(), "GET /good 0");
            assert!(begun.elapsed() < Duration::from_secs(5), "the bystander waited for {:?}", begun.elapsed());
            fresh += 1;
            hold(Duration::from_millis(5));
        }
        fresh
    });
    (stop, asking)
}

/// Attacks, and sees how that ends and what it costs.
#[track_caller]
pub(super) fn check(
    what: &str,
    proxy: &Proxy,
    front: SocketAddr,
    attack: impl Fn(&mut Connection) -> End + Sync,
) -> Vec<End> {
    let mut warm = Connection::connect(front);
    assert_eq!(warm.get("app", "/good").text(), "GET /good 0");
    let pid = proxy.dataplane_pid();
    let (before, time_before) = (resident_set_size(pid), processor_time(pid));
    let (stop, asking) = bystander(front);
    let (over, watched) = (AtomicBool::new(false), &attack);
    let (ends, most) = thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Ordering::Relaxed) {
                most = resident_set_size(pid).max(most);
                hold(Duration::from_millis(5));
            }
            most
        });
        let attackers: Vec<_> =
            (0..ATTACKERS).map(|_| scope.spawn(move || watched(&mut Connection::connect(front)))).collect();
        let ends: Vec<End> = attackers.into_iter().map(|attacker| attacker.join().unwrap()).collect();
        over.store(true, Ordering::Relaxed);
        (ends, watching.join().unwrap())
    });
    stop.store(true, Ordering::Relaxed);
    let served = asking.join().unwrap();
    let (added, took) = (most.saturating_sub(before), processor_time(pid).saturating_sub(time_before));
    eprintln!("{what}: {ends:?}, {served} served beside it, {} KiB more, {took:?} of processor time", added / 1024);
    assert!(added <= MAX_ADDED_BYTES, "{what}: {added} bytes more");
    assert!(took <= MAX_PROCESSOR_TIME, "{what}: {took:?} of processor time");
    assert_eq!(warm.get("app", "/good").text(), "GET /good 0", "{what}");
    assert_eq!(proxy.metrics().sum("ringmesh_worker_panics_total", &[]), 0, "{what}");
    ends
}

/// A flood: every attacker is told to calm down, and it is counted.
#[track_caller]
fn check_calmed(what: &str, reads: Reads, batch: impl Fn(&mut Connection) -> Vec<u8> + Sync) {
    check_flood(what, reads, &[code::ENHANCE_YOUR_CALM], |_| Ok(()), batch);
}

#[track_caller]
fn check_flood(
    what: &str,
    reads: Reads,
    codes: &[u32],
    begin: impl Fn(&mut Connection) -> io::Result<()> + Sync,
    batch: impl Fn(&mut Connection) -> Vec<u8> + Sync,
) {
    on_both_drivers(|driver| {
        let service = http2::service(http2::service::shown);
        let (proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let ends = check(what, &proxy, front, |client| {
            begin(client).unwrap();
            attack(client, reads, &batch)
        });
        for end in ends {
            match (end, reads) {
                (End::Cut(Some(told)), _) => assert!(codes.contains(&told), "{what}: {told}"),
                // What it was told may be lost behind what it did not read.
                (End::Cut(None), Reads::No) => {}
                end => panic!("{what}: {end:?}"),
            }
        }
        let rested = || proxy.metrics().sum("ringmesh_worker_requests_in_flight", &[]) == 0;
        ringmesh_tests::eventually("nothing is left", || rested().then_some(()));
    });
}

#[test]
fn rapid_resets_are_calmed() {
    check_calmed("HEADERS and RST_STREAM", Reads::Yes, |client| {
        streams(client, &REQUEST, Ends::Yes, |stream| vec![Frame::reset(stream, code::CANCEL)])
    });
}

#[test]
fn rapid_resets_of_requests_that_have_not_ended_are_calmed() {
    check_calmed("HEADERS that go on and RST_STREAM", Reads::Yes, |client| {
        streams(client, &POST, Ends::No, |stream| vec![Frame::data(stream, "x"), Frame::reset(stream, code::CANCEL)])
    });
}

#[test]
fn streams_that_make_the_proxy_reset_them_are_calmed() {
    let codes = [code::ENHANCE_YOUR_CALM, code::PROTOCOL_ERROR];
    let nothing =
        |client: &mut Connection| streams(client, &REQUEST, Ends::Yes, |stream| vec![Frame::window_update(stream, 0)]);
    check_flood("WINDOW_UPDATE of nothing", Reads::Yes, &codes, |_| Ok(()), nothing);
    check_calmed("a stream's window that overflows", Reads::Yes, |client| {
        streams(client, &REQUEST, Ends::Yes, |stream| vec![Frame::window_update(stream, frame::MAX_WINDOW)])
    });
    check_calmed("heads that break a rule", Reads::Yes, |client| {
        streams(client, &[(":method", "GET")], Ends::Yes, |_| Vec::new())
    });
}

#[test]
fn data_behind_the_end_of_a_stream_gets_nobody_far() {
    let codes = [code::ENHANCE_YOUR_CALM, code::STREAM_CLOSED, code::PROTOCOL_ERROR];
    let batch = |client: &mut Connection| streams(client, &REQUEST, Ends::Yes, |stream| vec![Frame::data(stream, "x")]);
    check_flood("DATA behind the end", Reads::Yes, &codes, |_| Ok(()), batch);
}

#[test]
fn a_head_that_goes_on_and_on_is_cut() {
    let codes = [code::ENHANCE_YOUR_CALM, code::PROTOCOL_ERROR, code::COMPRESSION_ERROR];
    let open = |client: &mut Connection| {
        let stream = client.next_id();
        client.send(&Frame::headers(stream, hpack::block(&REQUEST)).without(flag::END_HEADERS))
    };
    let part = hpack::block(&[("x-some-field", "with some value")]);
    check_flood("CONTINUATION", Reads::Yes, &codes, open, |_| repeated(&Frame::continuation(1, part.clone())));
    check_flood("empty CONTINUATION", Reads::Yes, &codes, open, |_| repeated(&Frame::continuation(1, "")));
    let large = hpack::block(&[("x-some-field", &"x".repeat(16_000))]);
    check_flood("large CONTINUATION", Reads::Yes, &codes, open, |_| {
        Frame::continuation(1, large.clone()).bytes().repeat(50)
    });
}

#[test]
fn floods_of_settings_are_calmed_whether_the_answers_are_read_or_not() {
    for reads in [Reads::Yes, Reads::No] {
        check_calmed("SETTINGS", reads, |_| repeated(&Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 70_000)])));
        check_calmed("empty SETTINGS", reads, |_| repeated(&Frame::settings(&[])));
    }
}

#[test]
fn floods_of_pings_are_calmed_whether_the_answers_are_read_or_not() {
    for reads in [Reads::Yes, Reads::No] {
        check_calmed("PING", reads, |_| repeated(&Frame::ping(*b"the same")));
    }
}

#[test]
fn floods_of_empty_data_are_calmed() {
    check_flood(
        "empty DATA",
        Reads::Yes,
        &[code::ENHANCE_YOUR_CALM],
        |client| {
            let stream = client.next_id();
            client.send_fields(stream, &POST, Ends::No)
        },
        |_| repeated(&Frame::data(1, "")),
    );
}

#[test]
fn floods_of_priorities_and_of_frames_that_nobody_knows_are_calmed() {
    check_calmed("PRIORITY", Reads::Yes, |_| repeated(&Frame::priority(1, 3, 16)));
    check_calmed("unknown frames", Reads::Yes, |_| repeated(&Frame::new(0xee, 0, 0, "x")));
}

#[test]
fn floods_of_window_updates_are_calmed() {
    check_calmed("WINDOW_UPDATE by 1", Reads::Yes, |_| repeated(&Frame::window_update(0, 1)));
}

#[test]
fn a_few_bytes_that_unfold_to_many_are_refused() {
    on_both_drivers(|driver| {
        let service = http2::service(http2::service::shown);
        let (proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let ends = check("references to one large field", &proxy, front, |client| {
            let mut block = hpack::block(&REQUEST);
            hpack::indexed_literal(b"x-bomb", "x".repeat(4_000).as_bytes(), &mut block);
            let first = block.clone();
            (0..12_000).for_each(|_| hpack::reference(hpack::NEWEST, &mut block));
            let mut refused = 0;
            for _ in 0..20 {
                let stream = client.next_id();
                let sent = client.send_block(stream, &block, Ends::Yes).and_then(|()| client.ended(stream));
                match sent {
                    Ok(Ended::Answer(answer)) => assert_eq!(answer.status(), 431, "{answer:?}"),
                    Ok(Ended::Reset(_)) => {}
                    Ok(Ended::GoAway(told)) => return End::Cut(Some(told)),
                    _ => return End::Cut(client.goodbyes.last().map(|goodbye| goodbye.1)),
                }
                refused += 1;
            }
            assert_eq!(refused, 20);
            assert!(first.len() < 5_000);
            End::Sent
        });
        for end in ends {
            assert!(end == End::Sent || matches!(end, End::Cut(Some(_))), "{end:?}");
        }
        let seen = service.requests();
        assert!(seen.iter().all(|request| request.field("x-bomb").is_none()), "none of it arrived");
    });
}

/// Services that attack whoever asks them.
#[test]
fn a_service_that_floods_is_a_502_and_costs_a_bound() {
    type Flood = fn(u32) -> Vec<u8>;
    let floods: [(&str, Flood); 6] = [
        ("PING", |_| repeated(&Frame::ping(*b"the same"))),
        ("SETTINGS", |_| repeated(&Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 70_000)]))),
        ("CONTINUATION", |stream| {
            let part = hpack::block(&[("x-some-field", "with some value")]);
            let mut bytes =
                Frame::headers(stream, hpack::block(&[(":status", "200")])).without(flag::END_HEADERS).bytes();
            bytes.extend(Frame::continuation(stream, part).bytes().repeat(MAX_FRAMES));
            bytes
        }),
        ("empty DATA", |stream| {
            let mut bytes = Frame::headers(stream, hpack::block(&[(":status", "200")])).bytes();
            bytes.extend(Frame::data(stream, "").bytes().repeat(MAX_FRAMES));
            bytes
        }),
        ("interim answers", |stream| Frame::headers(stream, hpack::block(&[(":status", "103")])).bytes().repeat(BATCH)),
        ("a head that unfolds", |stream| {
            let mut block = hpack::block(&[(":status", "200")]);
            hpack::indexed_literal(b"x-bomb", "x".repeat(4_000).as_bytes(), &mut block);
            (0..12_000).for_each(|_| hpack::reference(hpack::NEWEST, &mut block));
            Frame::headers(stream, block).ending().bytes()
        }),
    ];
    on_both_drivers(|driver| {
        for (what, flood) in floods {
            let bad = http2::conversing(&[], move |talk| {
                talk.manners.answers = false;
                while let Some((stream, _)) = talk.next_request()? {
                    talk.send_bytes(&flood(stream))?;
                    for _ in 0..MAX_FRAMES / BATCH {
                        if what == "a head that unfolds" || !talk.read_for(Duration::from_millis(1))? {
                            break;
                        }
                        if ["PING", "SETTINGS", "interim answers"].contains(&what) {
                            talk.send_bytes(&flood(stream))?;
                        }
                    }
                }
                Ok(())
            });
            let good = http2::service(http2::service::shown);
            let front = ports::free();
            let config = format!(
                "{}[[service]]\nname = \"bad\"\nprotocol = \"http2\"\nendpoints = [\"{}\"]\n\
                 [[route]]\nhosts = [\"app\"]\n[[route]]\nhosts = [\"bad\"]\n",
                forwarding(front, &[good.address()], "request_timeout = \"20s\"", "protocol = \"http2\"")
                    .replace("service = \"app\"\n", ""),
                bad.address(),
            );
            let proxy = ringmesh(driver).config(config).start();
            check(what, &proxy, front, |client| {
                for _ in 0..3 {
                    let stream = client.request(&Outgoing::get("bad", "/x"));
                    match client.ended(stream).unwrap() {
                        Ended::Answer(answer) => assert_reason(&answer, 502, "upstream_garbage"),
                        Ended::Reset(_) => assert_eq!(what, "empty DATA", "an answer had begun"),
                        other => panic!("{what}: {other:?}"),
                    }
                }
                End::Sent
            });
            assert!(good.requests().iter().all(|request| request.head.request().1 == "/good"));
        }
    });
}
