//! A real browser at the edge: Chromium reads a page through the proxy by HTTP/2, and tells what it has seen.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::service::{Talk, ok};
use ringmesh_tests::{Message, Service, on_both_drivers, ports, wait, websocket};
use serde_json::Value;

use crate::edge;
use crate::support::{DOMAIN, ringmesh};

/// Longest time from the browser's start to what it tells; most of it is its start, on a machine with other work.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks for all that pages ask for, and tells how it went.
const PAGE: &str = r#"<!doctype html><title>page</title><script type="module">
const told = {};
const step = async (name, look) => {
    try { told[name] = await look(); } catch (error) { told[name] = "failed: " + error; }
};
const navigation = performance.getEntriesByType("navigation")[0];
told.location = location.href;
told.protocol = navigation.nextHopProtocol;
await step("post", async () => {
    const body = "0123456789".repeat(100000);
    const answer = await fetch("/echo", { method: "POST", body });
    return [answer.status, await answer.text() === body];
});
await step("missing", async () => (await fetch("/missing")).status);
await step("many", async () => {
    const all = [...Array(50).keys()].map(async number => (await (await fetch("/many/" + number)).text()));
    return (await Promise.all(all)).join() === [...Array(50).keys()].map(number => "/many/" + number).join();
});
await step("events", () => new Promise((resolve, reject) => {
    const seen = [], source = new EventSource("/events");
    source.onerror = reject;
    source.onmessage = event => {
        seen.push(event.data);
        // The next one is sent once this one was seen.
        fetch("/seen/" + event.data);
        if (seen.length === 5) { source.close(); resolve(seen); }
    };
}));
await step("socket", () => new Promise((resolve, reject) => {
    const seen = [], socket = new WebSocket("wss://" + location.host + "/chat", ["echo", "other"]);
    socket.onerror = () => reject("no WebSocket");
    socket.onopen = () => ["one", "two", "x".repeat(100)].forEach(word => socket.send(word));
    socket.onmessage = event => {
        seen.push(event.data);
        if (seen.length === 3) socket.close(4321, "enough");
    };
    socket.onclose = event => resolve([...seen, event.code, event.wasClean, socket.protocol]);
}));
told.protocols = [...new Set(performance.getEntriesByType("resource").map(entry => entry.nextHopProtocol))];
await fetch("/told", { method: "POST", body: JSON.stringify(told) });
</script>"#;

/// What requests tell each other.
#[derive(Default)]
struct Board {
    state: Mutex<(usize, Option<Value>)>,
    changed: Condvar,
}

impl Board {
    fn change(&self, change: impl FnOnce(&mut (usize, Option<Value>))) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    /// False: it took too long.
    fn wait(&self, patience: Duration, fits: impl Fn(&(usize, Option<Value>)) -> bool) -> bool {
        let state = self.state.lock().unwrap();
        let (state, _) = self.changed.wait_timeout_while(state, patience, |state| !fits(state)).unwrap();
        fits(&state)
    }
}

fn answer(content: &str, kind: &str) -> String {
    ok(content).replacen("\r\n", &format!("\r\nContent-Type: {kind}\r\n"), 1)
}

/// The application behind the edge.
fn application(board: Arc<Board>) -> Service {
    Service::conversing(move |talk| {
        while let Some(request) = talk.request()? {
            let path = request.head.request().1.to_owned();
            match path.as_str() {
                "/" => talk.send(answer(PAGE, "text/html"))?,
                "/echo" => talk.send(answer(&request.text(), "text/plain"))?,
                "/events" => return events(talk, &board),
                "/chat" => return chat(talk, &request),
                "/told" => {
                    let told = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
                    board.change(|state| state.1 = Some(told));
                    talk.send(ok("thanks"))?;
                }
                _ if path.starts_with("/many/") => talk.send(ok(&path))?,
                _ if path.starts_with("/seen/") => {
                    board.change(|state| state.0 += 1);
                    talk.send(ok("thanks"))?;
                }
                _ => talk.send("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?,
            }
        }
        Ok(())
    })
}

/// One after the other, each when the one before was seen.
fn events(talk: &mut Talk, board: &Board) -> io::Result<()> {
    talk.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    for number in 0..5 {
        if !board.wait(wait::DEADLINE, |state| state.0 >= number) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let event = format!("data: event-{number}\n\n");
        talk.send(format!("{:x}\r\n{event}\r\n", event.len()))?;
    }
    talk.rest().map(drop)
}

/// Sends each message back (RFC 6455), up to the one that closes.
fn chat(talk: &mut Talk, request: &Message) -> io::Result<()> {
    let accept = websocket::accept(request.field("sec-websocket-key").unwrap_or_default());
    talk.send(format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: echo\r\n\r\n"
    ))?;
    loop {
        let head = talk.exactly(2)?;
        let (masked, length) = (head[1] & 0x80 != 0, usize::from(head[1] & 0x7f));
        assert!(masked && length < 126, "a short message of a client: {head:?}");
        let mask = talk.exactly(4)?;
        let payload = talk.exactly(length)?;
        let payload: Vec<u8> = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        talk.send([&[head[0], length as u8][..], &payload].concat())?;
        if head[0] & 0x0f == 8 {
            return talk.rest().map(drop);
        }
    }
}

/// Chromium with a home of its own. Dropped, it ends.
struct Chromium {
    child: Child,
    home: tempfile::TempDir,
}

impl Chromium {
    /// Opens a page. It trusts this root, and finds `shop.example` at these addresses.
    fn open(url: &str, root: &str, plain: SocketAddr, secure: SocketAddr) -> Self {
        let home = tempfile::Builder::new().prefix("ringmesh-").tempdir().unwrap();
        trust(home.path(), root);
        let rules = format!("MAP shop.example:80 {plain}, MAP shop.example:443 {secure}, MAP * ~NOTFOUND");
        let log = fs::File::create(home.path().join("log")).unwrap();
        let mut command = Command::new("chromium");
        // Containers allow no sandbox, and this one sees our page alone. It would make secure addresses of plain ones before
        // it asks, and the redirect is to be seen.
        command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        command.args(["--disable-features=HttpsUpgrades,HttpsFirstBalancedModeAutoEnable", "--enable-logging=stderr"]);
        command.arg(format!("--user-data-dir={}", home.path().join("profile").display()));
        command.arg(format!("--host-resolver-rules={rules}")).arg(url);
        command.env("HOME", home.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("chromium: {error}; apt-get install chromium"));
        Self { child, home }
    }
}

/// Puts a root among those that a user trusts.
fn trust(home: &Path, root: &str) {
    let folder = home.join(".pki/nssdb");
    fs::create_dir_all(&folder).unwrap();
    let file = home.join("root.pem");
    fs::write(&file, root).unwrap();
    let certutil = |words: &[&str]| {
        let mut command = Command::new("certutil");
        command.arg("-d").arg(format!("sql:{}", folder.display())).args(words);
        let output =
            command.output().unwrap_or_else(|error| panic!("certutil: {error}; apt-get install libnss3-tools"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    certutil(&["-N", "--empty-password"]);
    certutil(&["-A", "-n", "root", "-t", "C,,", "-i", file.to_str().unwrap()]);
}

impl Drop for Chromium {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
            eprintln!("--- the browser's log:\n{log}");
        }
    }
}

#[test]
fn chromium_loads_posts_listens_and_talks_over_one_edge_by_http_2() {
    on_both_drivers(|driver| {
        let board = Arc::new(Board::default());
        let service = application(board.clone());
        let authority = Authority::new(DOMAIN);
        let certificate = authority.server(&["shop.example"]);
        let (plain, secure) = (ports::free(), ports::free());
        let config = format!(
            "[[listener]]\nname = \"plain\"\nbind = \"{plain}\"\nredirect = \"https\"\n\
             [[listener]]\nname = \"edge\"\nbind = \"{secure}\"\nservice = \"app\"\n\
             tls = {{ certificate = \"shop.pem\", key = \"shop.key\" }}\n\
             [[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n",
            service.address()
        );
        let mut proxy = ringmesh(driver).config(config).prepare();
        edge::write(proxy.folder(), "shop", &certificate);
        proxy.run();
        let _browser = Chromium::open("http://shop.example/", &certificate.bundle, plain, secure);
        let is_there = board.wait(PATIENCE, |state| state.1.is_some());
        assert!(is_there, "the page tells nothing");
        let told = board.state.lock().unwrap().1.clone().unwrap();
        let expected = serde_json::json!({
            "location": "https://shop.example/",
            "protocol": "h2",
            "post": [200, true],
            "missing": 404,
            "many": true,
            "events": ["event-0", "event-1", "event-2", "event-3", "event-4"],
            "socket": ["one", "two", "x".repeat(100), 4321, true, "echo"],
            "protocols": ["h2"],
        });
        assert_eq!(told, expected);
        proxy.wait_for_access("the redirect", |line| line["listener"] == "plain" && line["status"] == 308);
        // The WebSocket is a stream of the connection that there was.
        let line = proxy.wait_for_access("the WebSocket", |line| line["path"] == "/chat");
        assert_eq!((&line["status"], &line["reason"]), (&200.into(), &"ok".into()), "{line}");
        proxy.wait_for_metric("ringmesh_tls_handshakes_total", &[("side", "inbound"), ("result", "ok")], 1);
    });
}
