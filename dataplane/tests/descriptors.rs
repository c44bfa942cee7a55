//! What is under way goes on when the process has no descriptors left. A binary of its own: the limit is the process's.

#[allow(dead_code, reason = "the other test binary uses the rest")]
mod world;

use ringmesh_ring::memory::block_on;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use world::{World, read_bytes, read_head, send};

/// More than what is spliced at once.
const BYTES: usize = 2 * 1024 * 1024;

#[test]
fn without_descriptors_for_a_pipe_bytes_are_copied() {
    let (http, opaque) = (World::new(), World::opaque());
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..before }).expect("a limit may be lowered");
    assert!(http.worker.take_pipe().is_err(), "no descriptor is left");
    let body = "x".repeat(BYTES);

    block_on(&http.net, async {
        http.net.set_capacity_bytes(8 * BYTES);
        let client = http.connect();
        send(&client, &http.net, b"GET / HTTP/1.1\r\nHost: s\r\n\r\n").await;
        let upstream = http.accept().await;
        read_head(&upstream, &http.net).await;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n");
        send(&upstream, &http.net, head.as_bytes()).await;
        send(&upstream, &http.net, body.as_bytes()).await;
        read_head(&client, &http.net).await;
        assert!(read_all(&client, &http.net).await == body);
    });
    block_on(&opaque.net, async {
        opaque.net.set_capacity_bytes(8 * BYTES);
        let client = opaque.connect();
        send(&client, &opaque.net, body.as_bytes()).await;
        let upstream = opaque.accept().await;
        assert!(read_all(&upstream, &opaque.net).await == body);
    });
    setrlimit(Resource::Nofile, before).expect("a limit may be put back");
}

async fn read_all(stream: &ringmesh_ring::memory::Stream, net: &ringmesh_ring::memory::Network) -> String {
    let mut text = String::new();
    while text.len() < BYTES {
        text.push_str(&read_bytes(stream, net, (BYTES - text.len()).min(4096)).await);
    }
    text
}
