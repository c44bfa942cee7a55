//! Opaque bytes through the proxy, plain and through mutual TLS between two sidecars: every byte, every end, every reset.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
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
