//! Windows from end to end: who does not read stops who sends, and nobody else; the proxy holds no more than a bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringmesh_tests::http2::{self, Connection, Ends, Outgoing, code, setting};
use ringmesh_tests::process::resident_set_size;
use ringmesh_tests::service::ok;
use ringmesh_tests::{Client, Proxy, Service, hold, on_both_drivers, ports};

use super::proxy_by_http2;
use crate::support::{forwarding, pattern, ringmesh};

/// How much the proxy may hold of what cannot go on, on all streams of a test together.
const MAX_HELD_BYTES: u64 = 32 * 1024 * 1024;

/// What the kernel may hold for one TCP connection, in both of its buffers.
const MAX_KERNEL_BYTES: u64 = 12 * 1024 * 1024;

/// A service by HTTP/2 that sends without end what is asked for at `/endless`, as its windows allow, beside quick answers.
/// It counts what it has sent.
fn endless(sent: &Arc<AtomicU64>) -> Service {
    let sent = sent.clone();
    http2::conversing(&[], move |talk| {
        let chunk = pattern(16_384);
        let mut flows: Vec<u32> = Vec::new();
        loop {
            while let Some((stream, request)) = talk.waiting_request() {
                if request.head.request().1 == "/endless" {
                    talk.send_fields(stream, &[(":status", "200")], Ends::No)?;
                    flows.push(stream);
                } else {
                    talk.send_message(stream, &Outgoing::ok("quick"))?;
                }
            }
            flows.retain(|stream| talk.stream(*stream).reset.is_none());
            let mut has_room = false;
            for stream in &flows {
                let room = talk.room(*stream).min(chunk.len());
                if room > 0 {
                    talk.send_data(*stream, &chunk[..room], Ends::No)?;
                    sent.fetch_add(room as u64, Ordering::SeqCst);
                    has_room = true;
                }
            }
            if !has_room {
                talk.read()?;
            } else if !talk.read_for(Duration::from_millis(1))? {
                return Ok(());
            }
        }
    })
}

/// The same by HTTP/1.1: what is sent may lie in the kernel.
fn endless_by_1(sent: &Arc<AtomicU64>) -> Service {
    let sent = sent.clone();
    Service::conversing(move |talk| {
        let chunk = pattern(16_384);
        while let Some(request) = talk.request()? {
            if request.head.request().1 != "/endless" {
                talk.send(ok("quick"))?;
                continue;
            }
            talk.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")?;
            loop {
                talk.send(&chunk)?;
                sent.fetch_add(chunk.len() as u64, Ordering::SeqCst);
            }
        }
        Ok(())
    })
}

/// Waits until nothing moves any more, and gives how much has.
fn at_rest(moved: impl Fn() -> u64, most: u64) -> u64 {
    let (mut last, mut since) = (moved(), Instant::now());
    while since.elapsed() < Duration::from_secs(1) {
        hold(Duration::from_millis(20));
        let now = moved();
        assert!(now <= most, "{now} bytes were taken from the sender though nobody reads them");
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

/// The proxy holds no more than it may, compared with before.
#[track_caller]
fn assert_bounded(proxy: &Proxy, before: u64) {
    let after = resident_set_size(proxy.dataplane_pid());
    assert!(after <= before + MAX_HELD_BYTES, "from {before} to {after} bytes");
}

#[test]
fn a_client_that_does_not_read_is_sent_no_more_than_its_windows_and_the_other_streams_go_on() {
    const SLOW: usize = 8;
    on_both_drivers(|driver| {
        for is_two in [true, false] {
            let sent: Arc<AtomicU64> = Arc::default();
            let (service, keys, most) = match is_two {
                true => (endless(&sent), "protocol = \"http2\"", MAX_HELD_BYTES),
                false => (endless_by_1(&sent), "", MAX_HELD_BYTES + SLOW as u64 * MAX_KERNEL_BYTES),
            };
            let front = ports::free();
            let keys = format!("{keys}\nidle_timeout = \"60s\"");
            let listener = "min_transfer_rate = \"off\"";
            let proxy = ringmesh(driver).config(forwarding(front, &[service.address()], listener, &keys)).start();
            let mut client = Connection::connect(front);
            assert_eq!(client.get("app", "/quick").text(), "quick");
            let before = resident_set_size(proxy.dataplane_pid());
            client.manners.grants = false;
            client.grant_connection(1 << 30).unwrap();
            let slow: Vec<u32> = (0..SLOW).map(|_| client.request(&Outgoing::get("app", "/endless"))).collect();
            for stream in &slow {
                client.until(|end| (end.body_bytes(*stream) == 65_535).then_some(())).unwrap();
            }
            at_rest(|| sent.load(Ordering::SeqCst), most);
            assert_bounded(&proxy, before);
            for _ in 0..50 {
                assert_eq!(client.get("app", "/quick").text(), "quick", "beside slow ones");
            }
            for stream in &slow {
                assert_eq!(client.body_bytes(*stream), 65_535, "no more than the window");
            }
            // Who reads on gets on.
            for stream in &slow {
                client.grant(*stream, 1_000_000).unwrap();
                client.until(|end| (end.body_bytes(*stream) == 1_065_535).then_some(())).unwrap();
                let body = client.take(*stream, 1).unwrap();
                let at = body.iter().zip(pattern(16_384).iter().cycle()).position(|(came, sent)| came != sent);
                // Parts are cut where windows end, so only the first part is known.
                assert!(at.is_none_or(|at| at >= 16_384), "byte {at:?} differs");
                client.reset(*stream, code::CANCEL).unwrap();
            }
            assert_eq!(client.get("app", "/quick").text(), "quick");
            assert_bounded(&proxy, before);
        }
    });
}

#[test]
fn a_client_of_http_1_that_does_not_read_is_not_read_for_and_the_other_streams_upstream_go_on() {
    on_both_drivers(|driver| {
        let sent: Arc<AtomicU64> = Arc::default();
        let service = endless(&sent);
        let (proxy, front) = proxy_by_http2(driver, &[service.address()], "min_transfer_rate = \"off\"\n", "");
        let mut quick = Client::connect(front);
        assert_eq!(quick.get("app", "/quick").text(), "quick");
        let before = resident_set_size(proxy.dataplane_pid());
        let mut slow: Vec<Client> = (0..4).map(|_| Client::connect(front)).collect();
        for client in &mut slow {
            client.send("GET /endless HTTP/1.1\r\nHost: app\r\n\r\n");
            assert_eq!(client.head().status(), 200);
        }
        at_rest(|| sent.load(Ordering::SeqCst), MAX_HELD_BYTES + 4 * MAX_KERNEL_BYTES);
        assert_bounded(&proxy, before);
        for _ in 0..50 {
            assert_eq!(quick.get("app", "/quick").text(), "quick");
            assert_eq!(Client::connect(front).get("app", "/quick").text(), "quick");
        }
    });
}

/// Sends on a stream as its window allows until that has been shut for a while, and gives how much it was.
fn push(client: &mut Connection, stream: u32, most: u64) -> u64 {
    let chunk = pattern(16_384);
    let (mut sent, mut since) = (0, Instant::now());
    while since.elapsed() < Duration::from_millis(700) {
        let room = client.room(stream).min(chunk.len());
        if room > 0 {
            client.send_data(stream, &chunk[..room], Ends::No).unwrap();
            (sent, since) = (sent + room as u64, Instant::now());
            assert!(sent <= most, "{sent} bytes were taken though the service does not read");
        }
        if room == 0 {
            assert!(client.read_for(Duration::from_millis(20)).unwrap(), "the connection lives");
        }
    }
    sent
}

#[test]
fn a_service_that_does_not_read_stops_its_client_and_the_other_streams_go_on() {
    const SLOW: usize = 3;
    on_both_drivers(|driver| {
        let released = Arc::new(AtomicBool::new(false));
        let go = released.clone();
        let two = http2::conversing(&[], |talk| {
            talk.manners.grants = false;
            talk.grant_connection(1 << 30)?;
            while let Some((stream, _)) = talk.next_request()? {
                talk.send_message(stream, &Outgoing::ok("quick"))?;
            }
            Ok(())
        });
        let one = Service::conversing(move |talk| {
            while let Some(head) = talk.head()? {
                while head.request().1 == "/stuck" && !go.load(Ordering::SeqCst) {
                    hold(Duration::from_millis(10));
                }
                talk.rest_of(head)?;
                talk.send(ok("quick"))?;
            }
            Ok(())
        });
        for (service, keys, most) in [
            (&two, "protocol = \"http2\"", MAX_HELD_BYTES / SLOW as u64),
            (&one, "", MAX_HELD_BYTES / SLOW as u64 + MAX_KERNEL_BYTES),
        ] {
            let front = ports::free();
            let listener = "min_transfer_rate = \"off\"";
            let proxy = ringmesh(driver).config(forwarding(front, &[service.address()], listener, keys)).start();
            let mut client = Connection::connect(front);
            let quick = Outgoing::post("app", "/quick", "a few bytes");
            assert_eq!(client.exchange(&quick).text(), "quick");
            let before = resident_set_size(proxy.dataplane_pid());
            for _ in 0..SLOW {
                let stuck = client.begin(&Outgoing::post("app", "/stuck", ""));
                push(&mut client, stuck, most);
            }
            assert_bounded(&proxy, before);
            for _ in 0..50 {
                assert_eq!(client.exchange(&quick).text(), "quick", "beside stuck ones");
            }
        }
        released.store(true, Ordering::SeqCst);
    });
}

#[test]
fn settings_that_change_while_streams_are_open_take_effect_on_them() {
    on_both_drivers(|driver| {
        let sent: Arc<AtomicU64> = Arc::default();
        let service = endless(&sent);
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "min_transfer_rate = \"off\"\n", "");
        let mut client = Connection::connect_with(front, &[(setting::INITIAL_WINDOW_SIZE, 1_000)]);
        client.until(|end| (end.acknowledged == 1).then_some(())).unwrap();
        client.manners.grants = false;
        client.grant_connection(1 << 20).unwrap();
        let stream = client.request(&Outgoing::get("app", "/endless"));
        client.until(|end| (end.body_bytes(stream) == 1_000).then_some(())).unwrap();
        // Larger: more comes at once.
        client.send_settings(&[(setting::INITIAL_WINDOW_SIZE, 5_000)]).unwrap();
        client.until(|end| (end.body_bytes(stream) == 5_000).then_some(())).unwrap();
        // Smaller: the window is below zero until as much is granted.
        client.send_settings(&[(setting::INITIAL_WINDOW_SIZE, 2_000)]).unwrap();
        client.until(|end| (end.acknowledged == 3).then_some(())).unwrap();
        client.grant(stream, 3_000).unwrap();
        client.ping().unwrap();
        assert!(client.read_for(Duration::from_millis(200)).unwrap());
        assert_eq!(client.body_bytes(stream), 5_000);
        client.grant(stream, 10).unwrap();
        client.until(|end| (end.body_bytes(stream) == 5_010).then_some(())).unwrap();
    });
}

#[test]
fn bytes_go_both_ways_at_the_same_time_on_one_stream() {
    on_both_drivers(|driver| {
        let service = http2::conversing(&[], |talk| {
            let Some((stream, _)) = talk.next_head()? else { return Ok(()) };
            talk.send_fields(stream, &[(":status", "200")], Ends::No)?;
            loop {
                let part = talk.take(stream, 1)?;
                let ended = talk.stream(stream).ended;
                talk.send_data(stream, &part, if ended { Ends::Yes } else { Ends::No })?;
                if ended {
                    return talk.until_end();
                }
            }
        });
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut client = Connection::connect(front);
        let stream = client.begin(&Outgoing::post("app", "/", ""));
        assert_eq!(client.head(stream).status(), 200, "the answer begins before the request ends");
        for bytes in [1, 10, 1_000, 100_000] {
            let sent = pattern(bytes);
            client.send_data(stream, &sent, Ends::No).unwrap();
            assert!(client.take(stream, bytes).unwrap() == sent, "{bytes} bytes");
        }
        client.send_data(stream, &[], Ends::Yes).unwrap();
        assert!(client.response(stream).body.is_empty());
    });
}
