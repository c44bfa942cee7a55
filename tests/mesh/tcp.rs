//! Opaque bytes through the proxy, plain and through mutual TLS between two sidecars: every byte, every end, every reset.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::client::{is_end, reset};
use ringmesh_tests::peers::Refusing;
use ringmesh_tests::trace::Trace;
use ringmesh_tests::{Client, DEADLINE, Driver, Proxy, Service, eventually, hold, on_both_drivers, ports};

use crate::support::{DOMAIN, identity, pattern, ringmesh};

/// How the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Through one proxy, in the clear.
    Plain,
    /// Through two proxies, with mutual TLS between them.
    Mesh,
}

/// The proxies between a client and a service.
struct Path {
    /// Where the client connects.
    front: SocketAddr,
    /// From the client to the service.
    proxies: Vec<Proxy>,
}

impl Path {
    fn connect(&self) -> Client {
        Client::connect(self.front)
    }

    /// Waits until each proxy has seen so many connections end for this reason.
    #[track_caller]
    fn wait_for_reason(&self, reason: &str, count: u64) {
        for proxy in &self.proxies {
            proxy.wait_for_metric("ringmesh_listener_connections_outcome_total", &[("reason", reason)], count);
        }
    }
}

/// A way to a service, with further keys for its first listener.
#[track_caller]
fn path(driver: Driver, way: Way, app: SocketAddr, listener_keys: &str) -> Path {
    let front = ports::free();
    let opaque = |name: &str, bind: SocketAddr, keys: &str| {
        format!("[[listener]]\nname = \"{name}\"\nbind = \"{bind}\"\nprotocol = \"tcp\"\nservice = \"app\"\n{keys}\n")
    };
    let service = |address: SocketAddr| format!("[[service]]\nname = \"app\"\nendpoints = [\"{address}\"]\n");
    if way == Way::Plain {
        let config = opaque("front", front, listener_keys) + &service(app);
        return Path { front, proxies: vec![ringmesh(driver).config(config).start()] };
    }
    let (authority, inbound) = (Authority::new(DOMAIN), ports::free());
    let sidecar = |workload: &str, config: String| {
        let mut proxy = ringmesh(driver).config(identity(workload) + &config).prepare();
        authority.svid(workload).write(&proxy.folder().join("svid"));
        proxy.run();
        proxy
    };
    let there = sidecar("there", opaque("inbound", inbound, "mtls = \"strict\"") + &service(app));
    let to_there = service(inbound) + "peer = \"there\"\n";
    let here = sidecar("here", opaque("front", front, listener_keys) + &to_there);
    Path { front, proxies: vec![here, there] }
}

/// Runs a test on both drivers, plain and through the mesh.
fn on_every_way(test: impl Fn(Driver, Way)) {
    on_both_drivers(|driver| {
        for way in [Way::Plain, Way::Mesh] {
            eprintln!("=== {way:?}");
            test(driver, way);
        }
    });
}

// ---- bytes and ends ----

#[test]
fn bytes_go_both_ways_at_once_and_come_whole_and_in_order() {
    on_every_way(|driver, way| {
        let app = Service::sockets(|mut stream| {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count) = stream.read(&mut buffer) {
                if count == 0 || stream.write_all(&buffer[..count]).is_err() {
                    return;
                }
            }
        });
        let path = path(driver, way, app.address(), "");
        for bytes in [1, 1_000, 16_384, 100_000, 16_000_000] {
            let mut client = path.connect();
            let mut writer = client.socket().try_clone().unwrap();
            let writing = thread::spawn(move || {
                writer.write_all(&pattern(bytes)).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let back = client.rest().unwrap_or_else(|error| panic!("{way:?}, {bytes} bytes: {error}"));
            writing.join().unwrap();
            assert!(back == pattern(bytes), "{way:?}: of {bytes} bytes {} came back, or others", back.len());
        }
        path.wait_for_reason("ok", 5);
    });
}

#[test]
fn small_messages_go_to_and_fro_without_waiting_for_more() {
    on_every_way(|driver, way| {
        let app = Service::conversing(|talk| {
            loop {
                let ping = talk.exactly(4)?;
                talk.send(ping)?;
            }
        });
        let path = path(driver, way, app.address(), "");
        let mut client = path.connect();
        let begun = Instant::now();
        for number in 0..500_u32 {
            assert_eq!(client.send(number.to_be_bytes()).exactly(4).unwrap(), number.to_be_bytes());
        }
        // 40 ms each, if a small message waited for an acknowledgement (Nagle).
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?} for 500 round trips", begun.elapsed());
    });
}

#[test]
fn the_end_of_one_direction_is_passed_on_while_the_other_goes_on() {
    on_every_way(|driver, way| {
        // The service ends its direction first, then reads; or reads to the end first, then answers.
        let app = Service::conversing(|talk| {
            let order = talk.exactly(1)?;
            if order == b"w" {
                talk.send(pattern(300_000))?;
                talk.socket().shutdown(Shutdown::Write)?;
                let all = talk.rest()?;
                assert_eq!(all.len(), 200_000);
                return Ok(());
            }
            let all = talk.rest()?;
            talk.send(format!("{} bytes came", all.len()))
        });
        let path = path(driver, way, app.address(), "");
        let mut client = path.connect();
        client.send("r").send(pattern(100_000)).half_close();
        assert_eq!(client.rest().unwrap(), b"100000 bytes came", "{way:?}: the client has ended first");

        let mut client = path.connect();
        client.send("w");
        assert!(client.rest().unwrap() == pattern(300_000), "{way:?}: the service has ended first");
        client.send(pattern(200_000));
        client.half_close();
        path.wait_for_reason("ok", 2);
        eventually("the service has read to the end", || (app.open() == 0).then_some(()));
    });
}

/// How a service's read ended, told to the test.
fn telling() -> (Service, mpsc::Receiver<io::Result<Vec<u8>>>) {
    let (tells, told) = mpsc::channel();
    let app = Service::conversing(move |talk| {
        let end = talk.rest();
        let _ = tells.send(end);
        Ok(())
    });
    (app, told)
}

#[test]
fn a_reset_by_the_client_reaches_the_service_as_a_reset() {
    on_every_way(|driver, way| {
        let (app, told) = telling();
        let path = path(driver, way, app.address(), "");
        for bytes in [0, 10, 100_000] {
            let mut client = path.connect();
            client.send(pattern(bytes));
            eventually("the service is connected", || (app.open() == 1).then_some(()));
            client.reset();
            let end = told.recv_timeout(DEADLINE).expect("the service learns of it");
            let error = end.expect_err("no orderly end");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{way:?} after {bytes} bytes");
            eventually("the service's connection is closed", || (app.open() == 0).then_some(()));
        }
        path.proxies[0].wait_for_metric(
            "ringmesh_listener_connections_outcome_total",
            &[("reason", "client_aborted")],
            3,
        );
    });
}

#[test]
fn a_reset_by_the_service_reaches_the_client_as_a_reset() {
    on_every_way(|driver, way| {
        let app = Service::sockets(|mut stream| {
            let _ = stream.read(&mut [0; 10]);
            reset(stream);
        });
        let path = path(driver, way, app.address(), "");
        for _ in 0..3 {
            let mut client = path.connect();
            client.send("0123456789");
            let error = client.rest().expect_err("no orderly end");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{way:?}");
        }
        path.wait_for_reason("upstream_reset", 3);
    });
}

/// What these lines of the access log say of how connections ended. A line may be written after it was counted.
#[track_caller]
fn check_told(path: &Path, which: Range<usize>, ended_by: &str, ended_how: &str) {
    let lines = eventually("the access log's lines", || {
        let lines = path.proxies[0].access_log();
        (lines.len() >= which.end).then_some(lines)
    });
    for line in &lines[which] {
        assert_eq!((&line["ended_by"], &line["ended_how"]), (&ended_by.into(), &ended_how.into()), "{line}");
    }
}

#[test]
fn a_reset_in_the_middle_of_much_reaches_the_other_side_as_a_reset() {
    on_both_drivers(|driver| {
        let read_some = |mut stream: &TcpStream, bytes: usize| {
            let mut buffer = vec![0; 64 * 1024];
            let mut left = bytes;
            while left > 0 {
                left = left.saturating_sub(stream.read(&mut buffer).unwrap());
            }
        };
        let write_on = |mut stream: &TcpStream| {
            let block = pattern(64 * 1024);
            loop {
                if let Err(error) = stream.write_all(&block) {
                    return error.kind();
                }
            }
        };
        let is_reset = |kind| matches!(kind, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
        // The service resets under an upload, or while it sends; the client likewise.
        let (tells, told) = mpsc::channel();
        let app = Service::sockets(move |mut stream| {
            let mut order = [0];
            stream.read_exact(&mut order).unwrap();
            match &order {
                b"r" => {
                    read_some(&stream, 5_000_000);
                    reset(stream);
                }
                b"w" => {
                    let _ = tells.send(write_on(&stream));
                }
                _ => {
                    stream.write_all(&pattern(5_000_000)).unwrap();
                    reset(stream);
                }
            }
        });
        let path = path(driver, Way::Plain, app.address(), "");
        for _ in 0..10 {
            let mut client = path.connect();
            client.send("r");
            assert!(is_reset(write_on(client.socket())));
            // Nothing that looks like an end in order comes after it, or before.
            let end = client.socket().read(&mut [0; 10]).map_err(|error| error.kind());
            assert!(!matches!(end, Ok(1..)), "{end:?}");
        }
        path.wait_for_reason("upstream_reset", 10);
        check_told(&path, 0..10, "endpoint", "reset");
        for _ in 0..10 {
            let mut client = path.connect();
            client.send("s");
            // What was under way may be lost with the reset, but never is it an end.
            let error = client.rest().expect_err("no orderly end");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        path.wait_for_reason("upstream_reset", 20);
        check_told(&path, 10..20, "endpoint", "reset");
        for _ in 0..10 {
            let mut client = path.connect();
            client.send("w");
            read_some(client.socket(), 5_000_000);
            client.reset();
            assert!(is_reset(told.recv_timeout(DEADLINE).expect("the service learns of it")));
        }
        path.wait_for_reason("client_aborted", 10);
        check_told(&path, 20..30, "client", "reset");
        eventually("the service's connections are closed", || (app.open() == 0).then_some(()));
    });
}

/// Writes until nobody takes any more.
fn write_until_stuck(mut stream: &TcpStream) {
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let block = pattern(64 * 1024);
    loop {
        match stream.write_all(&block) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_reset_is_no_end_also_where_a_write_was_told_of_it_and_the_read_was_not() {
    on_both_drivers(|driver| {
        let (tells, told) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let released = std::sync::Mutex::new(released);
        let app = Service::sockets(move |mut stream| {
            let mut order = [0];
            stream.read_exact(&mut order).unwrap();
            if &order == b"r" {
                // The proxy waits to write to it.
                let _ = released.lock().unwrap().recv_timeout(DEADLINE);
                reset(stream);
            } else {
                write_until_stuck(&stream);
                let _ = tells.send(None);
                let end = stream.read(&mut [0; 10]);
                let _ = tells.send(Some(end.map_err(|error| error.kind())));
            }
        });
        let path = path(driver, Way::Plain, app.address(), "");
        for _ in 0..5 {
            let mut client = path.connect();
            client.send("r");
            write_until_stuck(client.socket());
            release.send(()).unwrap();
            let end = client.socket().read(&mut [0; 10]).map_err(|error| error.kind());
            assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
            let mut client = path.connect();
            client.send("w");
            assert_eq!(told.recv_timeout(DEADLINE).unwrap(), None);
            client.reset();
            assert_eq!(told.recv_timeout(DEADLINE).unwrap(), Some(Err(io::ErrorKind::ConnectionReset)));
        }
        path.wait_for_reason("upstream_reset", 5);
        path.wait_for_reason("client_aborted", 5);
    });
}

#[test]
fn the_access_log_says_who_ended_a_connection_and_how() {
    on_both_drivers(|driver| {
        let app = Service::conversing(|talk| {
            if talk.exactly(1)? == b"w" {
                talk.socket().shutdown(Shutdown::Write)?;
            }
            talk.rest().map(drop)
        });
        let path = path(driver, Way::Plain, app.address(), "idle_timeout = \"300ms\"");
        let mut client = path.connect();
        client.send("r").half_close();
        client.expect_end();
        check_told(&path, 0..1, "client", "end");
        let mut client = path.connect();
        client.send("w");
        client.expect_end();
        client.half_close();
        check_told(&path, 1..2, "endpoint", "end");
        let mut silent = path.connect();
        silent.send("r");
        silent.expect_end();
        check_told(&path, 2..3, "proxy", "limit");
    });
}

#[test]
fn a_busy_connection_is_ended_when_its_time_is_over() {
    on_both_drivers(|driver| {
        let app = Service::conversing(|talk| {
            loop {
                let ping = talk.exactly(4)?;
                talk.send(ping)?;
            }
        });
        let path = path(driver, Way::Plain, app.address(), "max_connection_duration = \"600ms\"");
        let begun = Instant::now();
        let mut client = path.connect();
        let error = loop {
            if let Err(error) = client.try_send("ping").and_then(|()| client.exactly(4)) {
                break error;
            }
            assert!(begun.elapsed() < DEADLINE, "it goes on and on");
            hold(Duration::from_millis(20));
        };
        let took = begun.elapsed();
        assert!(is_end(&error), "{error}");
        assert!(took >= Duration::from_millis(590) && took < Duration::from_secs(5), "{took:?}");
        path.wait_for_reason("max_duration", 1);
        check_told(&path, 0..1, "proxy", "limit");
    });
}

#[test]
fn who_takes_nothing_of_what_waits_for_it_is_ended_with_its_reason() {
    on_both_drivers(|driver| {
        let app = Service::conversing(|talk| {
            let block = pattern(1_000_000);
            loop {
                talk.send(&block)?;
            }
        });
        // So much a second that the wait is little more than the grace.
        let path = path(driver, Way::Plain, app.address(), "min_transfer_rate = \"1MiB\"");
        let begun = Instant::now();
        let client = path.connect();
        path.wait_for_reason("client_reads_slowly", 1);
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(5) && took < Duration::from_secs(15), "{took:?}");
        check_told(&path, 0..1, "proxy", "limit");
        eventually("the service's connection is closed", || (app.open() == 0).then_some(()));
        drop(client);
    });
}

/// Seconds until the kernel asks for a peer by itself: of our own ends of connections from or to this port.
fn keepalive_seconds(local: Option<u16>, remote: Option<u16>) -> Vec<u64> {
    let hex = |port: u16| format!(":{port:04X}");
    let fits = |word: &str, port: Option<u16>| port.is_none_or(|port| word.ends_with(&hex(port)));
    let lines = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let timers = lines.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        const ESTABLISHED: &str = "01";
        let ours = fits(words[1], local) && fits(words[2], remote) && words[3] == ESTABLISHED;
        let (kind, when) = words[5].split_once(':')?;
        // In hundredths of a second; kind 2 is keep-alive, 0 none at all.
        ours.then(|| if kind == "02" { u64::from_str_radix(when, 16).unwrap().div_ceil(100) } else { 0 })
    });
    timers.collect()
}

#[test]
fn the_kernel_asks_both_sides_whether_they_are_still_there_as_often_as_configured() {
    on_both_drivers(|driver| {
        let app = Service::conversing(|talk| talk.rest().map(drop));
        let front = ports::free();
        let config = |listener: &str, service: &str| {
            format!(
                "[[listener]]\nname = \"front\"\nbind = \"{front}\"\nprotocol = \"tcp\"\nservice = \"app\"\n{listener}\n\
                 [[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n{service}\n",
                app.address()
            )
        };
        let mut proxy = ringmesh(driver).config(config("", "")).start();
        let check = |expected: [u64; 2]| {
            let _clients: Vec<Client> = (0..5).map(|_| Client::connect(front)).collect();
            eventually("all are connected", || (app.open() == 5).then_some(()));
            let sides = [(Some(front.port()), None), (None, Some(app.address().port()))];
            for ((local, remote), expected) in sides.into_iter().zip(expected) {
                let found = keepalive_seconds(local, remote);
                // It has run for a moment already.
                let right = |seconds: &u64| (expected.saturating_sub(5)..=expected).contains(seconds);
                assert!(found.len() == 5 && found.iter().all(right), "{found:?}, expected {expected}");
            }
        };
        check([60, 60]);
        eventually("all are closed", || (app.open() == 0).then_some(()));
        proxy.reconfigure(&config("tcp_keepalive = \"20s\"", "tcp_keepalive = \"off\""));
        check([20, 0]);
        eventually("all are closed", || (app.open() == 0).then_some(()));
        proxy.reconfigure(&config("tcp_keepalive = \"off\"", "tcp_keepalive = \"2h\""));
        check([0, 7200]);
    });
}

#[test]
fn a_service_that_does_not_accept_ends_the_connection_at_once() {
    on_every_way(|driver, way| {
        let refusing = Refusing::new();
        let path = path(driver, way, refusing.address(), "");
        let begun = Instant::now();
        match Client::try_connect(path.front) {
            Ok(mut client) => {
                let _ = client.try_send("hello");
                client.expect_end();
            }
            // The end may come while we still connect.
            Err(error) => assert!(is_end(&error), "{error}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        let last = path.proxies.last().unwrap();
        last.wait_for_metric("ringmesh_listener_connections_outcome_total", &[("reason", "connect_failed")], 1);
    });
}

// ---- silence ----

#[test]
fn a_connection_silent_in_both_directions_is_ended_and_one_busy_in_one_is_not() {
    const IDLE: Duration = Duration::from_millis(700);
    on_every_way(|driver, way| {
        let (app, told) = telling();
        let path = path(driver, way, app.address(), "idle_timeout = \"700ms\"");
        let mut silent = path.connect();
        silent.send("a word");
        let begun = Instant::now();
        let mut busy = path.connect();
        let talking = thread::spawn(move || {
            // Longer than the timeout; never silent for as long, and nothing ever comes back.
            let until = Instant::now() + IDLE * 3;
            while Instant::now() < until {
                busy.send("x");
                hold(IDLE / 7);
            }
            busy
        });
        let error = silent.rest().err();
        let silence = begun.elapsed();
        assert!(error.is_none_or(|error| is_end(&error)), "{way:?}");
        // The wheel is coarse, so it may come a little later; earlier it must not.
        assert!(silence >= IDLE - Duration::from_millis(50) && silence < IDLE * 5, "{way:?}: ended after {silence:?}");
        let first = told.recv_timeout(DEADLINE).expect("the service learns of it");
        assert!(first.is_err() || first.unwrap() == b"a word");
        let mut busy = talking.join().unwrap();
        assert_eq!(app.open(), 1, "{way:?}: the busy one has lived on");
        busy.send("still here");
        let error = busy.rest().err();
        assert!(error.is_none_or(|error| is_end(&error)));
        path.proxies[0].wait_for_metric(
            "ringmesh_listener_connections_outcome_total",
            &[("reason", "idle_timeout")],
            2,
        );
    });
}

// ---- bulk ----

const GIB: u64 = 1024 * 1024 * 1024;

/// What `splice` and all calls that copy have moved.
#[derive(Debug)]
struct Moved {
    splices: u64,
    spliced: u64,
    copied: u64,
}

/// Traces the data plane while `transfer` runs.
fn traced(proxy: &Proxy, transfer: impl FnOnce()) -> Moved {
    const COPYING: [&str; 12] = [
        "read", "readv", "pread64", "recvfrom", "recvmsg", "recvmmsg", "write", "writev", "pwrite64", "sendto",
        "sendmsg", "sendmmsg",
    ];
    let trace = Trace::attach(proxy.dataplane_pid(), &[&["splice"][..], &COPYING].concat());
    transfer();
    let calls = trace.end();
    let splice = calls.get("splice").copied().unwrap_or_default();
    let copied = COPYING.iter().filter_map(|name| calls.get(*name)).map(|calls| calls.sum).sum();
    Moved { splices: splice.count, spliced: splice.sum, copied }
}

/// Sends a GiB of the pattern, and ends its direction.
fn send_a_gib(mut stream: &TcpStream) -> io::Result<()> {
    // Each block begins where the pattern begins.
    let block = pattern(251 * 4096);
    let mut left = GIB as usize;
    while left > 0 {
        let count = left.min(block.len());
        stream.write_all(&block[..count])?;
        left -= count;
    }
    stream.shutdown(Shutdown::Write)
}

/// Reads to the end, and sees that it is the pattern.
fn receive_all(mut stream: &TcpStream) -> io::Result<u64> {
    let mut buffer = vec![0; 1024 * 1024];
    let expected = pattern(buffer.len() + 251);
    let mut received = 0_u64;
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => return Ok(received),
            Ok(count) => count,
            // Not begun again by the kernel, because there is a deadline.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let begin = (received % 251) as usize;
        if buffer[..count] != expected[begin..begin + count] {
            return Err(io::Error::other(format!("other bytes than were sent, after {received}")));
        }
        received += count as u64;
    }
}

#[test]
fn a_gib_of_opaque_bytes_is_spliced_and_neither_read_nor_written() {
    on_both_drivers(|driver| {
        let (tells, told) = mpsc::channel();
        let app = Service::sockets(move |stream| {
            let result = receive_all(&stream);
            let sent = if matches!(result, Ok(0)) { send_a_gib(&stream) } else { Ok(()) };
            let _ = tells.send(result.and_then(|count| sent.map(|()| count)));
        });
        let path = path(driver, Way::Plain, app.address(), "");
        let upload = || {
            let client = path.connect();
            send_a_gib(client.socket()).unwrap();
            assert_eq!(told.recv_timeout(DEADLINE * 4).unwrap().unwrap(), GIB);
        };
        let download = || {
            let client = path.connect();
            client.half_close();
            assert_eq!(receive_all(client.socket()).unwrap(), GIB);
        };
        let directions: [(&str, &dyn Fn()); 2] = [("to the service", &upload), ("to the client", &download)];
        for (direction, transfer) in directions {
            let begun = Instant::now();
            let moved = traced(&path.proxies[0], transfer);
            eprintln!("a GiB {direction} in {:?} (traced): {moved:?}", begun.elapsed());
            // Into the pipe and out of it, but for what is read before it is known to be much.
            assert!(moved.spliced >= 2 * GIB - GIB / 50, "{direction}: {moved:?}");
            assert!(moved.spliced <= 2 * GIB, "{direction}: {moved:?}");
            assert!(moved.copied < GIB / 100, "{direction}: {moved:?}");
            // Large pieces: a system call for every few KiB would cost more than copying.
            assert!(moved.splices < 2 * GIB / (16 * 1024), "{direction}: {moved:?}");
        }
    });
}

#[test]
fn a_response_of_a_gib_is_spliced_and_neither_read_nor_written() {
    on_both_drivers(|driver| {
        let app = Service::conversing(|talk| {
            while talk.request()?.is_some() {
                talk.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {GIB}\r\n\r\n"))?;
                send_a_gib(talk.socket())?;
            }
            Ok(())
        });
        let (proxy, front) = crate::support::proxy_to(driver, &[app.address()]);
        let moved = traced(&proxy, || {
            let mut client = Client::connect(front);
            client.send("GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n");
            let head = client.head();
            assert_eq!(head.field("content-length"), Some(GIB.to_string().as_str()));
            // That its bytes are the right ones is another test's concern; the first came with the head.
            assert!(receive_to_the_end(&client.into_inner()) >= GIB - 64 * 1024);
        });
        eprintln!("a response of a GiB: {moved:?}");
        assert!(moved.spliced >= 2 * GIB - GIB / 50 && moved.copied < GIB / 100, "{moved:?}");
    });
}

/// How much comes, whatever it is.
fn receive_to_the_end(mut stream: &TcpStream) -> u64 {
    let mut buffer = vec![0; 1024 * 1024];
    let mut received = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return received,
            Ok(count) => received += count as u64,
            // Not begun again by the kernel, because there is a deadline.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("after {received} bytes: {error}"),
        }
    }
}
