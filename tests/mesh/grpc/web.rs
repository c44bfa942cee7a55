//! Browsers' calls in gRPC-Web, to services of gRPC: by bytes, and by the clients that browsers use.

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringmesh_tests::http2::message::grpc_frame;
use ringmesh_tests::http2::{self, Connection, Ends, Outgoing};
use ringmesh_tests::peers::{self, Refusing};
use ringmesh_tests::{Client, Message, Service, eventually, hold, on_both_drivers, ports};

use super::programs::{Grpcio, peers, script};
use crate::http2::proxy_by_http2;
use crate::support::{forwarding, pattern, ringmesh};

const ON: &str = "grpc_web = true\n";
const BINARY: &str = "application/grpc-web+proto";
const TEXT: &str = "application/grpc-web-text+proto";

/// Sends a POST by HTTP/1.1 and by HTTP/2, and what came back both times.
#[track_caller]
fn post(front: SocketAddr, path: &str, fields: &[(&str, &str)], body: &[u8]) -> [Message; 2] {
    let mut text = format!("POST {path} HTTP/1.1\r\nhost: app\r\ncontent-length: {}\r\n", body.len());
    fields.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
    let first = Client::connect(front).send(text + "\r\n").send(body).response_to("POST");
    let request = Outgoing::post("app", path, body).with("content-length", &body.len().to_string());
    let request = fields.iter().fold(request, |request, (name, value)| request.with(name, value));
    [first, Connection::connect(front).exchange(&request)]
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> Vec<u8> {
    let group = |three: &[u8]| {
        let bits = (0..3).fold(0_u32, |bits, at| bits << 8 | u32::from(three.get(at).copied().unwrap_or(0)));
        let text = |at: usize| if at > three.len() { b'=' } else { ALPHABET[(bits >> (18 - 6 * at) & 63) as usize] };
        [0, 1, 2, 3].map(text)
    };
    bytes.chunks(3).flat_map(group).collect()
}

/// The bytes of base64 that is padded anywhere between.
fn from_base64(text: &[u8]) -> Vec<u8> {
    let (fours, rest) = text.as_chunks::<4>();
    assert!(rest.is_empty(), "{} bytes", text.len());
    let decode = |four: &[u8; 4]| {
        let value = |byte: &u8| ALPHABET.iter().position(|known| known == byte).unwrap_or(0) as u32;
        let bits = four.iter().fold(0, |bits, byte| bits << 6 | value(byte));
        let padding = four.iter().filter(|byte| **byte == b'=').count();
        bits.to_be_bytes()[1..4 - padding].to_vec()
    };
    fours.iter().flat_map(decode).collect()
}

/// Trailers as the last message, in their order.
fn trailers(fields: &[(&str, &str)]) -> Vec<u8> {
    let text: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let mut message = grpc_frame(text.as_bytes());
    message[0] = 0x80;
    message
}

/// The body's bytes, and that its content type is that of this encoding.
#[track_caller]
fn bytes_of(answer: &Message, content_type: &str) -> Vec<u8> {
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert_eq!(answer.field("content-type"), Some(content_type), "{answer:?}");
    assert!(answer.trailers.is_empty(), "{answer:?}");
    if content_type == TEXT { from_base64(&answer.body) } else { answer.body.clone() }
}

#[test]
fn a_call_of_a_browser_becomes_grpc_and_its_trailers_come_back_as_the_last_message() {
    on_both_drivers(|driver| {
        let service = http2::service(|request| {
            let answer = Outgoing::grpc(request.body.get(5..).unwrap_or_default(), 0);
            answer.with("x-initial", "i").trailer("x-trailing-bin", "AwQF")
        });
        let (proxy, front) = proxy_by_http2(driver, &[service.address()], ON, "");
        for bytes in [0, 1, 2, 3, 1000, 16_384, 1_000_000] {
            let message = grpc_frame(&pattern(bytes));
            let expected = [&message[..], &trailers(&[("grpc-status", "0"), ("x-trailing-bin", "AwQF")])].concat();
            let text = base64(&message);
            // Padded after the prefix, and after each byte.
            let padded = [base64(&message[..5]), base64(&message[5..])].concat();
            let scattered: Vec<u8> = message.iter().take(1005).flat_map(|byte| base64(&[*byte])).collect();
            let mut sent = vec![(BINARY, message.clone()), (TEXT, text), (TEXT, padded)];
            if bytes <= 1000 {
                sent.push((TEXT, scattered));
            }
            for (content_type, body) in sent {
                for answer in post(front, "/svc/Echo", &[("content-type", content_type)], &body) {
                    assert!(bytes_of(&answer, content_type) == expected, "{content_type}, {bytes} bytes");
                    assert_eq!(answer.field("x-initial"), Some("i"));
                    let asked = service.last();
                    assert_eq!(asked.field("content-type"), Some("application/grpc+proto"));
                    assert_eq!((asked.field("te"), asked.field("content-length")), (Some("trailers"), None));
                    assert!(asked.body == message, "{content_type}, {bytes} bytes");
                }
            }
        }
        // The encoding of the response can be asked for.
        let fields = [("content-type", BINARY), ("accept", "application/grpc-web-text")];
        for answer in post(front, "/svc/Echo", &fields, &grpc_frame(b"a")) {
            assert!(bytes_of(&answer, TEXT).starts_with(&grpc_frame(b"a")));
        }
        let calls = proxy.metrics().sum("ringmesh_request_grpc_total", &[("grpc_status", "OK")]);
        assert_eq!(calls, service.requests().len() as u64, "all are counted as calls");
        proxy.wait_for_access("a call's status", |line| line["grpc_status"] == 0 && line["path"] == "/svc/Echo");
    });
}

#[test]
fn a_status_of_the_service_reaches_browsers_however_it_is_told() {
    on_both_drivers(|driver| {
        let service = http2::service(|request| {
            let answer = Outgoing::status(200).with("content-type", "application/grpc");
            match request.head.request().1 {
                "/svc/InTheHead" => answer.with("grpc-status", "5").with("grpc-message", "not%20here"),
                "/svc/Trailers" => answer.trailer("grpc-status", "9").trailer("grpc-message", "no"),
                "/svc/After" => Outgoing::grpc(b"some", 13).with("trailer", "grpc-status"),
                "/svc/Never" => answer.body(grpc_frame(b"some")),
                "/svc/NeverInTheHead" => answer,
                _ => {
                    Outgoing { body: b"no service".to_vec(), ..Outgoing::status(503) }.with("content-type", "text/html")
                }
            }
        });
        let (proxy, front) = proxy_by_http2(driver, &[service.address()], ON, "");
        for content_type in [BINARY, TEXT] {
            let call = |path: &str| post(front, path, &[("content-type", content_type)], b"");
            for answer in call("/svc/InTheHead") {
                assert_eq!(bytes_of(&answer, content_type), b"", "trailers alone stay so");
                assert_eq!(answer.field("grpc-status"), Some("5"));
                assert_eq!(answer.field("grpc-message"), Some("not%20here"));
            }
            for answer in call("/svc/Trailers") {
                let expected = trailers(&[("grpc-status", "9"), ("grpc-message", "no")]);
                assert_eq!(bytes_of(&answer, content_type), expected);
            }
            for answer in call("/svc/After") {
                let expected = [grpc_frame(b"some"), trailers(&[("grpc-status", "13")])].concat();
                assert_eq!(bytes_of(&answer, content_type), expected);
                assert_eq!(answer.field("trailer"), None, "there are none behind the body");
            }
            // Clients take a missing status for success.
            for answer in call("/svc/Never") {
                let told = [("grpc-status", "2"), ("grpc-message", "the response ended without a status")];
                let expected = [grpc_frame(b"some"), trailers(&told)].concat();
                assert_eq!(bytes_of(&answer, content_type), expected);
            }
            for answer in call("/svc/NeverInTheHead") {
                assert_eq!((bytes_of(&answer, content_type), answer.field("grpc-status")), (Vec::new(), Some("2")));
            }
            for answer in call("/svc/Html") {
                assert_eq!((answer.status(), answer.text().as_str()), (503, "no service"));
                assert_eq!(answer.field("content-type"), Some("text/html"), "what is no call's response stays");
            }
        }
        let counted = |status: &str| proxy.metrics().sum("ringmesh_request_grpc_total", &[("grpc_status", status)]);
        assert_eq!((counted("NOT_FOUND"), counted("FAILED_PRECONDITION"), counted("INTERNAL")), (4, 4, 4));
        assert_eq!(
            (counted("UNKNOWN"), counted("UNAVAILABLE")),
            (8, 4),
            "no status, and no gRPC, which callers take for that"
        );
    });
}

#[test]
fn an_answer_of_the_proxy_to_a_browsers_call_is_a_status() {
    on_both_drivers(|driver| {
        let (refusing, hanging) = (Refusing::new(), peers::hanging_server());
        for (address, status, reason) in
            [(refusing.address(), "14", "connect_failed"), (hanging.address(), "4", "request_timeout")]
        {
            let listener = format!("{ON}request_timeout = \"500ms\"\nmax_body = \"1KiB\"\n");
            let (proxy, front) = proxy_by_http2(driver, &[address], &listener, "");
            let check = |content_type: &str, body: &[u8], status: &str, reason: &str| {
                for answer in post(front, "/svc/Echo", &[("content-type", content_type)], body) {
                    assert_eq!(bytes_of(&answer, content_type), b"");
                    assert_eq!(answer.field("grpc-status"), Some(status), "{answer:?}");
                    assert_eq!(answer.field("x-ringmesh-reason"), Some(reason), "{answer:?}");
                    assert!(answer.field("grpc-message").is_some_and(|text| text.contains(reason)), "{answer:?}");
                }
            };
            check(BINARY, &grpc_frame(b"a"), status, reason);
            check(TEXT, &base64(&grpc_frame(b"a")), status, reason);
            check(BINARY, &grpc_frame(&pattern(2000)), "8", "body_too_large");
            assert!(proxy.metrics().sum("ringmesh_request_grpc_total", &[("grpc_status", "RESOURCE_EXHAUSTED")]) == 2);
            // Who asks for a page gets no status of a call.
            let [first, second] = post(front, "/", &[("content-type", "text/plain")], b"a");
            for answer in [first, second] {
                assert_ne!(answer.status(), 200);
                assert_eq!(answer.field("grpc-status"), None);
            }
        }
    });
}

#[test]
fn a_browser_says_how_long_it_waits() {
    on_both_drivers(|driver| {
        let service = http2::conversing(&[], |talk| talk.until_end());
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], ON, "");
        let begun = Instant::now();
        for answer in post(front, "/svc/Held", &[("content-type", TEXT), ("grpc-timeout", "300m")], b"") {
            assert_eq!((answer.status(), answer.field("grpc-status")), (200, Some("4")), "{answer:?}");
        }
        let taken = begun.elapsed();
        assert!(taken >= Duration::from_millis(550) && taken < Duration::from_secs(8), "{taken:?}");
    });
}

#[test]
fn text_that_is_no_base64_is_refused() {
    on_both_drivers(|driver| {
        let service = http2::service(|_| Outgoing::grpc(b"", 0));
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], ON, "");
        for body in ["AAAA!AAA", "AAAAAA", "AAAAA", "AAAA=AAA", "AAA\r\nA", "AAAA\r\nAAAA", "AAAA\n "] {
            for answer in post(front, "/svc/Echo", &[("content-type", TEXT)], body.as_bytes()) {
                assert_eq!(answer.field("x-ringmesh-reason"), Some("bad_body"), "{body}: {answer:?}");
                assert_eq!((answer.status(), answer.field("grpc-status")), (200, Some("13")), "{body}: {answer:?}");
            }
        }
    });
}

#[test]
fn text_may_end_with_a_line_end_as_programs_write_it() {
    on_both_drivers(|driver| {
        let service = http2::service(|request| Outgoing::grpc(request.body.get(5..).unwrap_or_default(), 0));
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], ON, "");
        let message = grpc_frame(b"hello");
        let expected = [&message[..], &trailers(&[("grpc-status", "0")])].concat();
        for line_end in ["\n", "\r\n"] {
            let body = [&base64(&message), line_end.as_bytes()].concat();
            for answer in post(front, "/svc/Echo", &[("content-type", TEXT)], &body) {
                assert_eq!(bytes_of(&answer, TEXT), expected, "{line_end:?}");
                assert_eq!(service.last().body, message, "{line_end:?}");
            }
        }
    });
}

#[test]
fn what_nobody_asked_to_bridge_passes_as_it_is() {
    on_both_drivers(|driver| {
        let of_2 = http2::service(|request| {
            let content_type = request.field("content-type").unwrap_or_default().to_owned();
            Outgoing::ok(request.body.clone()).with("content-type", &content_type)
        });
        let of_1 = Service::echo();
        let front = ports::free();
        let by_1 = ringmesh(driver).config(forwarding(front, &[of_1.address()], ON, "")).start();
        let (by_2, other) = proxy_by_http2(driver, &[of_2.address()], "", "");
        let text = base64(&grpc_frame(b"hello"));
        // A service of HTTP/1, which can only speak gRPC-Web itself; and a listener that says nothing.
        for (service, front) in [(&of_1, front), (&of_2, other)] {
            for answer in post(front, "/svc/Echo", &[("content-type", TEXT)], &text) {
                assert_eq!((answer.status(), &answer.body), (200, &text));
                assert_eq!(service.last().field("content-type"), Some(TEXT));
            }
        }
        drop(by_2);
        // Only a POST is a call.
        let (_proxy, bridging) = proxy_by_http2(driver, &[of_2.address()], ON, "");
        let mut client = Connection::connect(bridging);
        let preflight = Outgoing::request("OPTIONS", "app", "/svc/Echo").with("content-type", BINARY);
        assert_eq!(client.exchange(&preflight).status(), 200);
        assert_eq!(of_2.last().field("content-type"), Some(BINARY));
        assert_eq!(by_1.metrics().sum("ringmesh_worker_panics_total", &[]), 0);
    });
}

#[test]
fn messages_of_a_stream_reach_a_browser_one_by_one_and_its_going_away_ends_the_call() {
    on_both_drivers(|driver| {
        let (step, steps) = crossing();
        let service = http2::conversing(&[], move |talk| {
            while let Some((stream, _)) = talk.next_head()? {
                talk.send_fields(stream, &[(":status", "200"), ("content-type", "application/grpc")], Ends::No)?;
                while talk.stream(stream).reset.is_none() {
                    if steps.try_recv().is_ok() {
                        talk.send_data(stream, &grpc_frame(b"ab"), Ends::No)?;
                    }
                    talk.read_for(Duration::from_millis(5))?;
                }
            }
            Ok(())
        });
        for content_type in [BINARY, TEXT] {
            let (proxy, front) = proxy_by_http2(driver, &[service.address()], ON, "");
            let mut client = Connection::connect(front);
            let stream = client.request(&Outgoing::post("app", "/svc/Stream", b"").with("content-type", content_type));
            let expected = match content_type {
                TEXT => base64(&grpc_frame(b"ab")),
                _ => grpc_frame(b"ab"),
            };
            for _ in 0..5 {
                step.send(()).unwrap();
                assert_eq!(client.take(stream, expected.len()).unwrap(), expected);
            }
            drop(client);
            proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "client_aborted")], 1);
            eventually("nothing is left", || {
                (proxy.metrics().sum("ringmesh_worker_requests_in_flight", &[]) == 0).then_some(())
            });

            let mut client = Client::connect(front);
            client.send(format!(
                "POST /svc/Stream HTTP/1.1\r\nhost: app\r\ncontent-type: {content_type}\r\ncontent-length: 0\r\n\r\n"
            ));
            step.send(()).unwrap();
            assert_eq!(client.head().status(), 200);
            for number in 0..5 {
                let mut came = Vec::new();
                while came.len() < expected.len() {
                    let size = String::from_utf8(until_line(&mut client)).unwrap();
                    came.extend(client.exactly(usize::from_str_radix(&size, 16).unwrap()).unwrap());
                    client.exactly(2).unwrap();
                }
                assert_eq!(came, expected);
                if number < 4 {
                    step.send(()).unwrap();
                }
            }
            drop(client);
            proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "client_aborted")], 2);
        }
    });
}

/// A channel whose far end may be used by all conversations of a service.
fn crossing() -> (std::sync::mpsc::Sender<()>, Steps) {
    let (sender, receiver) = std::sync::mpsc::channel();
    (sender, Steps(std::sync::Mutex::new(receiver)))
}

struct Steps(std::sync::Mutex<std::sync::mpsc::Receiver<()>>);

impl Steps {
    fn try_recv(&self) -> Result<(), std::sync::mpsc::TryRecvError> {
        self.0.lock().unwrap().try_recv()
    }
}

fn until_line(client: &mut Client) -> Vec<u8> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.extend(client.exactly(1).unwrap());
    }
    line.truncate(line.len() - 2);
    line
}

#[test]
fn a_browser_that_does_not_read_stops_the_service() {
    const MOST: u64 = 16 * 1024 * 1024;
    on_both_drivers(|driver| {
        for content_type in [BINARY, TEXT] {
            let sent: Arc<AtomicU64> = Arc::default();
            let counted = sent.clone();
            let service = http2::conversing(&[], move |talk| {
                let Some((stream, _)) = talk.next_head()? else { return Ok(()) };
                talk.send_fields(stream, &[(":status", "200"), ("content-type", "application/grpc")], Ends::No)?;
                let chunk = grpc_frame(&pattern(10_000));
                loop {
                    let room = talk.room(stream).min(chunk.len());
                    if room > 0 {
                        talk.send_data(stream, &chunk[..room], Ends::No)?;
                        counted.fetch_add(room as u64, Ordering::SeqCst);
                    } else {
                        talk.read()?;
                    }
                }
            });
            let listener = format!("{ON}min_transfer_rate = \"off\"\n");
            let (_proxy, front) = proxy_by_http2(driver, &[service.address()], &listener, "");
            let mut client = Connection::connect(front);
            client.manners.grants = false;
            let stream = client.request(&Outgoing::post("app", "/svc/Stream", b"").with("content-type", content_type));
            client.until(|end| (end.body_bytes(stream) == 65_535).then_some(())).unwrap();
            let (mut last, mut since) = (0, Instant::now());
            while since.elapsed() < Duration::from_millis(500) {
                hold(Duration::from_millis(20));
                let now = sent.load(Ordering::SeqCst);
                assert!(now < MOST, "{now} bytes");
                if now != last {
                    (last, since) = (now, Instant::now());
                }
            }
            client.grant(stream, 100_000).unwrap();
            client.grant_connection(100_000).unwrap();
            client.until(|end| (end.body_bytes(stream) == 165_535).then_some(())).unwrap();
        }
    });
}

/// Calls by grpc-web and connect-web, under node.
#[track_caller]
fn browse(address: SocketAddr, words: &[&str]) {
    let modules = peers().join("node_modules");
    assert!(
        modules.join("grpc-web").exists() && modules.join("@connectrpc/connect-web").exists(),
        "clients of gRPC-Web are needed: run ./tests/run once, or install what it installs with npm in {}",
        peers().display()
    );
    let mut command = Command::new("node");
    command.env("NODE_PATH", modules).arg(script("web.js")).arg(format!("http://{address}")).args(words);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let said = String::from_utf8_lossy(&stdout);
    assert!(status.success() && said.contains("all well"), "{said}{}", String::from_utf8_lossy(&stderr));
}

#[test]
fn grpc_web_and_connect_web_call_grpcio_with_streams_deadlines_cancellation_statuses_and_metadata() {
    on_both_drivers(|driver| {
        let mut service = Grpcio::start();
        let (proxy, front) = proxy_by_http2(driver, &[service.address], ON, "");
        browse(front, &[]);
        // One by its deadline, one by its caller.
        service.wait_for_cancelled();
        service.wait_for_cancelled();
        assert_eq!(proxy.metrics().sum("ringmesh_worker_panics_total", &[]), 0);
        eventually("nothing is left", || {
            (proxy.metrics().sum("ringmesh_worker_requests_in_flight", &[]) == 0).then_some(())
        });
    });
}

#[test]
fn grpc_web_and_connect_web_understand_what_the_proxy_answers_itself() {
    on_both_drivers(|driver| {
        let refusing = Refusing::new();
        let (_proxy, front) = proxy_by_http2(driver, &[refusing.address()], ON, "");
        browse(front, &["refused"]);
    });
}
