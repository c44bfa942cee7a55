//! The whole data plane inside this process, over real sockets and the real link, on both drivers.
#![allow(clippy::unwrap_used, reason = "a test ends where its own world is broken")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use ringmesh_dataplane::filter::{Filter, Make, Verdict};
use ringmesh_dataplane::telemetry::{Reader, layout};
use ringmesh_dataplane::{Running, Start, start};
use ringmesh_model::snapshot::*;
use ringmesh_model::wire::{Driver, Pin, Runtime, ToControl, ToDataPlane, WIRE_VERSION};
use ringmesh_ring::shared_memory::SharedMemory;
use ringmesh_ring::socket::bind_group;

const WORKERS: u16 = 2;

struct Plane {
    running: Option<Running>,
    telemetry: SharedMemory,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

fn listener(name: &str, bind: SocketAddr, protocol: Protocol, service: &str) -> Listener {
    Listener {
        name: name.into(),
        bind: Address::Ip(bind),
        ipv6_only: false,
        permissions: Default::default(),
        protocol,
        intercept: None,
        mtls: Mtls::Off,
        tls: Vec::new(),
        proxy_protocol: None,
        target: ListenerTarget::Service(service.into()),
        edge: Default::default(),
        limits: ListenerLimits {
            max_header_bytes: 32 * 1024,
            max_headers: 100,
            max_streams: 100,
            max_connections: 1000,
            header_timeout: Duration::from_secs(5),
            min_transfer_rate: NonZeroU32::new(240),
            idle_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(5),
            detect_timeout: Duration::from_secs(5),
            request_timeout: Some(Duration::from_secs(10)),
            tcp_keepalive: None,
            opaque: OpaqueLimits {
                idle_timeout: Duration::from_secs(30),
                min_transfer_rate: NonZeroU32::new(240),
                max_duration: None,
            },
        },
        hop: Hop::default(),
    }
}

fn service(name: &str, endpoints: &[SocketAddr], protocol: Protocol) -> Service {
    Service {
        name: name.into(),
        protocol,
        peer: None,
        proxy_protocol: None,
        destination: Destination::Endpoints,
        mark: None,
        endpoints: endpoints.iter().map(|at| Endpoint { address: Address::Ip(*at), zone: None }).collect(),
        balance: Balance::LeastRequest,
        connect_timeout: Duration::from_secs(2),
        connect_retries: 2,
        idle_timeout: Duration::from_secs(30),
        max_in_flight: None,
        max_idle_per_endpoint: 100,
        share_connections: true,
        tcp_keepalive: None,
        health_check: None,
    }
}

impl Plane {
    fn start(driver: Driver, protocol: Protocol, endpoints: &[SocketAddr]) -> Self {
        Self::start_with(driver, protocol, endpoints, Vec::new())
    }

    fn start_with(driver: Driver, protocol: Protocol, endpoints: &[SocketAddr], filters: Vec<Make>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let running = start(Start { filters }).unwrap();
        let telemetry = SharedMemory::create("telemetry", layout::memory_bytes(WORKERS)).unwrap();
        let events = SharedMemory::create("events", layout::event_memory_bytes(WORKERS)).unwrap();
        let nudge: OwnedFd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let adoption: OwnedFd = UnixListener::bind(folder.path().join("data.sock")).unwrap().into();
        let sockets = bind_group("127.0.0.1:0".parse().unwrap(), usize::from(WORKERS)).unwrap();
        let address = TcpListener::from(sockets[0].try_clone().unwrap()).local_addr().unwrap();

        let link = &running.link;
        link.send(&ToDataPlane::Hello { wire: WIRE_VERSION, epoch: 1 }, &[]).unwrap();
        assert!(matches!(link.receive().unwrap().0, ToControl::Welcome { started: None, .. }));
        let runtime = Runtime { driver, workers: WORKERS, pin: Pin::None };
        let descriptors = [telemetry.fd(), events.fd(), nudge.as_fd(), adoption.as_fd()];
        link.send(&ToDataPlane::Start { runtime }, &descriptors).unwrap();
        assert!(matches!(link.receive().unwrap().0, ToControl::Started { .. }));
        let descriptors: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        link.send(&ToDataPlane::Listeners { counts: vec![("in".into(), WORKERS)] }, &descriptors).unwrap();
        let settings = Settings {
            trust_domain: "test".into(),
            workload: "test".into(),
            access_log: AccessLog::On,
            log_level: Level::Info,
            drain_timeout: Duration::from_secs(5),
        };
        let objects = BTreeMap::from([
            (Key::Settings, Object::Settings(settings.into())),
            (Key::Listener("in".into()), Object::Listener(listener("in", address, protocol, "s").into())),
            (Key::Service("s".into()), Object::Service(service("s", endpoints, protocol).into())),
        ]);
        link.send(&ToDataPlane::Snapshot(Snapshot { version: 1, objects }), &[]).unwrap();
        let answer = link.receive().unwrap().0;
        assert!(matches!(answer, ToControl::Live { version: 1 }), "{answer:?}");
        Self { running: Some(running), telemetry, address, _folder: folder }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    fn requests(&self) -> u64 {
        let reader = Reader::open(self.telemetry.map_reader().unwrap()).unwrap();
        let series = reader.series();
        let requests = series.iter().filter(|series| series.kind == layout::Kind::Request);
        requests
            .map(|series| series.counters[layout::request::CLASS..layout::request::CLASS + 6].iter().sum::<u64>())
            .sum()
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        let Some(running) = self.running.take() else { return };
        running.link.send(&ToDataPlane::Drain { timeout: Duration::from_secs(2) }, &[]).unwrap();
        let answer = running.link.receive::<ToControl>().map(|(answer, _)| answer);
        if !std::thread::panicking() {
            assert!(matches!(answer, Ok(ToControl::Drained { .. })), "{answer:?}");
            running.thread.join().unwrap().unwrap();
        }
    }
}

/// A server that answers each request on a connection with what `answer` makes of it.
fn server(answer: fn(&str, &mut TcpStream)) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream, answer));
        }
    });
    address
}

fn serve(mut stream: TcpStream, answer: fn(&str, &mut TcpStream)) {
    let mut bytes = Vec::new();
    loop {
        while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head: Vec<u8> = bytes.drain(..end + 4).collect();
            answer(&String::from_utf8(head).unwrap(), &mut stream);
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer) {
            Ok(count) if count > 0 => bytes.extend_from_slice(&buffer[..count]),
            _ => return,
        }
    }
}

fn read_response(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes).unwrap();
    let length =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    (head, body)
}

fn on_both_drivers(test: impl Fn(Driver)) {
    for driver in [Driver::IoUring, Driver::Epoll] {
        test(driver);
    }
}

#[test]
fn a_request_is_passed_on_and_its_response_comes_back() {
    on_both_drivers(|driver| {
        let upstream = server(|head, stream| {
            let line = head.lines().next().unwrap().to_owned();
            let response = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{line}", line.len());
            stream.write_all(response.as_bytes()).unwrap();
        });
        let plane = Plane::start(driver, Protocol::Http, &[upstream]);
        let mut client = plane.connect();
        for number in 0..100 {
            client.write_all(format!("GET /{number} HTTP/1.1\r\nHost: s\r\n\r\n").as_bytes()).unwrap();
            let (head, body) = read_response(&mut client);
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            assert_eq!(String::from_utf8(body).unwrap(), format!("GET /{number} HTTP/1.1"));
        }
        // A request is counted once its response has been sent, which the client may see earlier.
        let until = Instant::now() + Duration::from_secs(5);
        while plane.requests() < 100 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(plane.requests(), 100);
    });
}

#[test]
fn an_endpoint_that_refuses_is_answered_for() {
    on_both_drivers(|driver| {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let plane = Plane::start(driver, Protocol::Http, &[closed]);
        let mut client = plane.connect();
        for _ in 0..3 {
            write!(client, "GET / HTTP/1.1\r\nHost: s\r\n\r\n").unwrap();
            let (head, _) = read_response(&mut client);
            assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
            assert!(head.contains("x-ringmesh-reason: connect_failed"), "{head}");
        }
    });
}

/// Holds up its worker, as any long task would.
struct Hold;

impl Filter for Hold {
    fn request(&self, _method: &[u8], path: &[u8]) -> Verdict {
        if path == b"/hold" {
            std::thread::sleep(Duration::from_millis(100));
        }
        Verdict::Continue
    }
}

/// After 100 ms the proxy stops waiting for a moment, to look whether the client is still there.
#[test]
fn a_response_that_comes_when_the_client_is_looked_after_is_not_lost() {
    on_both_drivers(|driver| {
        let upstream = server(|head, stream| {
            if head.starts_with("GET /slow ") {
                std::thread::sleep(Duration::from_millis(90));
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
        });
        let hold: Make = std::sync::Arc::new(|| Box::new(Hold));
        let plane = Plane::start_with(driver, Protocol::Http, &[upstream], vec![hold]);
        let mut slow: Vec<_> = (0..8).map(|_| plane.connect()).collect();
        let mut holding: Vec<_> = (0..4).map(|_| plane.connect()).collect();
        for _ in 0..3 {
            let send = |clients: &mut Vec<TcpStream>, path: &str| {
                for client in clients {
                    write!(client, "GET {path} HTTP/1.1\r\nHost: s\r\n\r\n").unwrap();
                }
            };
            send(&mut slow, "/slow");
            std::thread::sleep(Duration::from_millis(50));
            send(&mut holding, "/hold");
            for client in slow.iter_mut().chain(&mut holding) {
                let (head, _) = read_response(client);
                assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            }
        }
    });
}

#[test]
fn a_body_goes_up_while_the_response_comes_down() {
    on_both_drivers(|driver| {
        let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = upstream.local_addr().unwrap();
        let bytes = 3 * 1024 * 1024;
        std::thread::spawn(move || {
            let (mut stream, _) = upstream.accept().unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n").unwrap();
            let mut left = bytes;
            let mut buffer = [0; 65536];
            while left > 0 {
                let count = stream.read(&mut buffer).unwrap();
                stream.write_all(&buffer[..count]).unwrap();
                left -= count;
            }
        });
        let plane = Plane::start(driver, Protocol::Http, &[address]);
        let mut client = plane.connect();
        let mut writer = client.try_clone().unwrap();
        let body: Vec<u8> = (0..bytes).map(|index| (index % 251) as u8).collect();
        let sent = body.clone();
        let writing = std::thread::spawn(move || {
            write!(writer, "POST / HTTP/1.1\r\nHost: s\r\ncontent-length: {}\r\n\r\n", sent.len()).unwrap();
            writer.write_all(&sent).unwrap();
        });
        let (head, echoed) = read_response(&mut client);
        writing.join().unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(echoed == body, "the body came back as it went");
    });
}

#[test]
fn opaque_bytes_go_both_ways_and_ends_are_passed_on() {
    on_both_drivers(|driver| {
        let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = upstream.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = upstream.accept().unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            stream.write_all(&received).unwrap();
        });
        let plane = Plane::start(driver, Protocol::Tcp, &[address]);
        let mut client = plane.connect();
        let sent: Vec<u8> = (0..20_000_000).map(|index| (index % 253) as u8).collect();
        client.write_all(&sent).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
    });
}
