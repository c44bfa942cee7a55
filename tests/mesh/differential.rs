//! Generated requests, sent to nginx and HAProxy once through Ringmesh and once straight: both must see the same requests
//! with the same bodies. Where they do not, Ringmesh has refused what the other takes, and nothing else: what it lets
//! through has one reading.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ringmesh_tests::service::ok;
use ringmesh_tests::{Program, Random, Service, on_both_drivers, ports};

use crate::support::ringmesh;

/// Cases on each driver, each with its own seed.
const CASES: u32 = 400;

/// How long a peer may be silent before it is taken to wait for more. A case that looks wrong is tried again with the second.
const PATIENCE: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(3)];

/// Stands in targets for what tells one try of one case from the others.
const TAG: &[u8] = b"@@@@@@@@";

/// One of these.
fn pick<'a>(random: &mut Random, list: &[&'a str]) -> &'a str {
    list[random.below(list.len())]
}

/// Fields that say how long the body is (with spaces but no tabs around the value, which RFC 9110 section 5.6.3 allows and
/// nginx does not take), most of them in a way that somebody reads differently. `N` is its length.
const LENGTHS: &[&str] = &[
    "Content-Length: N\r\n",
    "Content-Length: N\r\n",
    "Content-Length: N\r\n",
    "content-length:N\r\n",
    "Content-Length:   N  \r\n",
    "Content-Length: N\r\nContent-Length: N\r\n",
    "Content-Length: N\r\nContent-Length: 0\r\n",
    "Content-Length: N, N\r\n",
    "Content-Length: +N\r\n",
    "Content-Length: N_\r\n",
    "Content-Length: 0xN\r\n",
    "Content-Length : N\r\n",
    " Content-Length: N\r\n",
    "X: y\r\n Content-Length: N\r\n",
    "X: y\nContent-Length: N\r\n",
    "X: y\rContent-Length: N\r\n",
    "Content-Length: N\n",
    "Content_Length: N\r\n",
    "Content-Length: \0N\r\n",
    "Content-Length: N\r\nTransfer-Encoding: chunked\r\n",
    "Content-Length: 99999999999999999999\r\n",
    "Content-Length: 4294967296\r\n",
    "Content-Length: -1\r\n",
    "Content-Length:\r\n",
    "",
];

/// Fields that announce chunks, most of them in a way that somebody reads differently.
const CODINGS: &[&str] = &[
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\n",
    "transfer-encoding:Chunked\r\n",
    "Transfer-Encoding:   chunked \r\n",
    "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "Transfer-Encoding: identity, chunked\r\n",
    "Transfer-Encoding: chunked, identity\r\n",
    "Transfer-Encoding: xchunked\r\n",
    "Transfer-Encoding: \"chunked\"\r\n",
    "Transfer-Encoding: chunked;q=1\r\n",
    "Transfer-Encoding:\x0bchunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding\t: chunked\r\n",
    "Transfer-Encoding:\r\n chunked\r\n",
    "Transfer-Encoding:\n chunked\r\n",
    "X: y\nTransfer-Encoding: chunked\r\n",
    "Transfer_Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\n",
    "Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n",
];

/// Sizes of a chunk of `N` bytes.
const SIZES: &[&str] = &[
    "N",
    "N",
    "N",
    "N",
    "N",
    "0N",
    "000000N",
    "N;a=b",
    "N;a=\"b\"",
    "N ;a",
    "N ",
    " N",
    "0xN",
    "+N",
    "N;",
    "N;\x0b",
    "10000000000000000N",
    "N\t",
];

/// Ends of lines in chunk framing.
const LINE_ENDS: &[&str] =
    &["\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", "\r\r\n", "\n\n", "", "x\r\n"];

/// Ends of a chunked body.
const LASTS: &[&str] = &[
    "0\r\n\r\n",
    "0\r\n\r\n",
    "0\r\n\r\n",
    "00\r\n\r\n",
    "0;a=b\r\n\r\n",
    "0\r\nX-Sum: 1\r\n\r\n",
    "0\r\nContent-Length: 9\r\n\r\n",
    "0\n\n",
    "0\r\n\n",
    "0\r\nX: y\n\r\n",
    "0\r\nbad\r\n\r\n",
    "",
];

/// First lines.
const LINES: &[&str] = &[
    "M ~ HTTP/1.1\r\n",
    "M ~ HTTP/1.1\r\n",
    "M ~ HTTP/1.1\r\n",
    "M ~ HTTP/1.1\r\n",
    "M ~ HTTP/1.1\r\n",
    "\r\nM ~ HTTP/1.1\r\n",
    "M ~ HTTP/1.0\r\n",
    "M ~ HTTP/1.1\n",
    "M  ~ HTTP/1.1\r\n",
    "M ~  HTTP/1.1\r\n",
    "M\t~ HTTP/1.1\r\n",
    "M http://app.test~ HTTP/1.1\r\n",
    "M ~\r\n",
    "\n\r\nM ~ HTTP/1.1\r\n",
    "M ~ HTTP/1.1 \r\n",
];

/// Hosts.
const HOSTS: &[&str] = &[
    "Host: app.test\r\n",
    "Host: app.test\r\n",
    "Host: app.test\r\n",
    "Host: app.test\r\n",
    "Host: app.test\r\n",
    "Host: app.test\r\nHost: app.test\r\n",
    "Host: app.test\r\nHost: b\r\n",
    "",
    "Host: a b\r\n",
    "Host : app.test\r\n",
    "Host: app.test\n",
    "Host:\r\n app.test\r\n",
];

/// One request, whose target tells its number.
fn request(random: &mut Random, number: usize, out: &mut Vec<u8>) {
    let method = pick(random, &["POST", "POST", "PUT", "GET", "DELETE"]);
    let target = format!("/@@@@@@@@/{number}");
    // Most requests are odd in one place or none: a second oddity would hide behind the first.
    let odd = random.below(6);
    let choose = |random: &mut Random, place: usize, list: &'static [&'static str]| {
        if odd == place { pick(random, list) } else { list[0] }
    };
    let line = choose(random, 0, LINES).replace('M', method).replace('~', &target);
    out.extend_from_slice(line.as_bytes());
    out.extend_from_slice(choose(random, 1, HOSTS).as_bytes());
    // What may be taken for a request if it is no body.
    let content = match random.below(3) {
        0 => "hello".to_owned(),
        1 => "GET /@@@@@@@@/hidden HTTP/1.1\r\nHost: app.test\r\n\r\n".to_owned(),
        _ => "x".repeat(random.below(40)),
    };
    if random.below(2) == 0 {
        let fields = choose(random, 2, LENGTHS).replace('N', &content.len().to_string());
        out.extend_from_slice(fields.as_bytes());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(content.as_bytes());
        return;
    }
    out.extend_from_slice(choose(random, 2, CODINGS).as_bytes());
    out.extend_from_slice(b"\r\n");
    let sizes = choose(random, 3, SIZES);
    for chunk in content.as_bytes().chunks(1 + random.below(20)) {
        out.extend_from_slice(sizes.replace('N', &format!("{:x}", chunk.len())).as_bytes());
        out.extend_from_slice(choose(random, 4, LINE_ENDS).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(choose(random, 4, LINE_ENDS).as_bytes());
    }
    out.extend_from_slice(choose(random, 5, LASTS).as_bytes());
}

/// The bytes of one connection: a few requests, and one after which the connection ends if all went well.
fn case(seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = Vec::new();
    for number in 0..=random.below(3) {
        request(&mut random, number, &mut bytes);
    }
    bytes.extend_from_slice(b"GET /@@@@@@@@/end HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n");
    bytes
}

/// A request as a service has seen it: method, target, body.
type Seen = (String, String, Vec<u8>);

/// One peer with its service, and the ways to it.
struct Ways {
    name: &'static str,
    service: Service,
    straight: SocketAddr,
    through: SocketAddr,
    tries: AtomicU32,
}

impl Ways {
    /// What the service sees of bytes that are sent this way.
    fn send(&self, to: SocketAddr, case: &[u8], patience: Duration) -> Vec<Seen> {
        let number = self.tries.fetch_add(1, Ordering::SeqCst);
        let tag = format!("{number:08}");
        let mut bytes = case.to_vec();
        while let Some(at) = bytes.windows(TAG.len()).position(|window| window == TAG) {
            bytes[at..at + TAG.len()].copy_from_slice(tag.as_bytes());
        }
        let mut stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(patience)).unwrap();
        let _ = stream.write_all(&bytes);
        let mut buffer = [0; 4096];
        while let Ok(1..) = stream.read(&mut buffer) {}
        drop(stream);
        let is_ours = |target: &str| target.contains(&tag);
        let requests = self.service.requests();
        let own = requests.iter().filter(|request| is_ours(request.head.request().1));
        own.map(|request| {
            let (method, target) = request.head.request();
            let body = String::from_utf8_lossy(&request.body).replace(&tag, "@@@@@@@@").into_bytes();
            // HAProxy leaves an absolute target as it is.
            let target = target.replace("http://app.test", "").replace(&tag, "@@@@@@@@");
            (method.to_owned(), target, body)
        })
        .collect()
    }

    fn compare(&self, case: &[u8]) -> Result<Agreement, String> {
        let mut last = String::new();
        for patience in PATIENCE {
            let straight = self.send(self.straight, case, patience);
            let through = self.send(self.through, case, patience);
            if straight == through {
                return Ok(Agreement::Same);
            }
            if straight.starts_with(&through) {
                return Ok(Agreement::Refused);
            }
            last = format!("{}\nstraight {straight:?}\nthrough {through:?}", case.escape_ascii());
        }
        Err(format!("{}: {last}", self.name))
    }
}

/// How two ways compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Agreement {
    Same,
    /// Ringmesh has ended it where the other goes on.
    Refused,
}

#[test]
fn what_nginx_and_haproxy_see_through_the_proxy_is_what_they_see_without_it_or_it_was_refused() {
    let seeds = AtomicU32::new(1);
    on_both_drivers(|driver| {
        let service = || Service::http(|_| ok(""));
        let peer = |name, service: Service| {
            let (straight, through, tries) = (ports::free(), ports::free(), AtomicU32::new(0));
            Ways { name, service, straight, through, tries }
        };
        let ways = [peer("nginx", service()), peer("haproxy", service())];
        let [nginx, haproxy] = ways.each_ref().map(|way| (way.straight, way.service.address()));
        let _nginx = Program::nginx_http(
            nginx.0,
            &format!(
                "server {{ listen {}; location / {{ proxy_pass http://{}; proxy_http_version 1.1; }} }}",
                nginx.0, nginx.1
            ),
        );
        let _haproxy = Program::haproxy(
            haproxy.0,
            &format!("listen all\n  mode http\n  bind {}\n  server s {}\n", haproxy.0, haproxy.1),
        );
        let config: String = ways
            .iter()
            .map(|Ways { name, straight, through, .. }| {
                format!(
                    "[[listener]]\nname = \"{name}\"\nbind = \"{through}\"\nservice = \"{name}\"\n\
                     [[service]]\nname = \"{name}\"\nendpoints = [\"{straight}\"]\n"
                )
            })
            .collect();
        let _proxy = ringmesh(driver).config(config).without_access_log().start();
        let first = seeds.fetch_add(CASES, Ordering::SeqCst);
        let (next, ways) = (AtomicU32::new(first), Arc::new(ways));
        let (counted, wrong) = (Mutex::new([[0_u32; 2]; 2]), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::SeqCst);
                        if seed >= first + CASES {
                            return;
                        }
                        let case = case(seed.into());
                        for (number, way) in ways.iter().enumerate() {
                            match way.compare(&case) {
                                Ok(agreement) => counted.lock().unwrap()[number][agreement as usize] += 1,
                                Err(told) => wrong.lock().unwrap().push(format!("seed {seed}, {told}")),
                            }
                        }
                    }
                });
            }
        });
        let counted = counted.into_inner().unwrap();
        for (way, [same, refused]) in ways.iter().zip(counted) {
            eprintln!("{}: {same} cases alike, {refused} that only Ringmesh refuses", way.name);
            assert!(same > CASES / 4 && refused > CASES / 20, "the cases prove something");
        }
        let wrong = wrong.into_inner().unwrap();
        assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n\n"));
    });
}
