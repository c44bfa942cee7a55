//! The fuzz targets' entries on their corpus and on seeded changes of it, so that what they check is checked with every
//! run of the tests and without a fuzzer.

#[allow(unreachable_pub, reason = "the same file is the library of the fuzz targets")]
#[path = "../fuzz/src/entries.rs"]
mod entries;
#[allow(unreachable_pub, reason = "the same file is a module of the mesh tests' harness")]
#[path = "../../../tests/src/random.rs"]
mod random;

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use random::Random;

/// Changed inputs of each entry.
const INPUTS: u32 = 40_000;

/// Longest input, in bytes.
const MAX_BYTES: usize = 512;

/// What peers put where it does not belong.
const WORDS: [&[u8]; 24] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"chunked",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: b\r\n",
    b"HTTP/1.0",
    b"Connection: close, x\r\n",
    b"%2f",
    b"%2e",
    b"..",
    b"/",
    b"7fffffffffffffff",
    b"\x80",
    b"\"",
];

/// Changes an input in a few places.
fn change(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len() + 1);
        match random.below(6) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            2 if at < bytes.len() => drop(bytes.remove(at)),
            3 => {
                let other = &corpus[random.below(corpus.len())];
                bytes.truncate(at);
                bytes.extend_from_slice(&other[random.below(other.len() + 1)..]);
            }
            4 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            _ => drop(bytes.splice(at..at, WORDS[random.below(WORDS.len())].iter().copied())),
        }
    }
    bytes.truncate(MAX_BYTES);
    bytes
}

fn run(name: &str, entry: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> =
        fs::read_dir(&folder).expect("the corpus is there").map(|file| file.expect("it can be read").path()).collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).expect("it can be read")).collect();
    assert!(corpus.len() >= 5, "{} has seeds", folder.display());
    let check = |told: &dyn Fn() -> String, input: &[u8]| {
        if panic::catch_unwind(AssertUnwindSafe(|| entry(input))).is_err() {
            panic!("{name}, {}: {}", told(), input.escape_ascii());
        }
    };
    for (file, input) in files.iter().zip(&corpus) {
        check(&|| file.display().to_string(), input);
    }
    for seed in 0..INPUTS {
        let input = change(&mut Random(seed.into()), &corpus);
        check(&|| format!("seed {seed}"), &input);
    }
}

#[test]
fn request_heads_hold_what_is_said_of_them() {
    run("request_head", entries::request_head);
}

#[test]
fn response_heads_hold_what_is_said_of_them() {
    run("response_head", entries::response_head);
}

#[test]
fn chunked_bodies_hold_what_is_said_of_them() {
    run("chunked_body", entries::chunked_body);
}

#[test]
fn paths_hold_what_is_said_of_them() {
    run("normalize", entries::normalize);
}

#[test]
fn frames_of_shared_connections_hold_what_is_said_of_them() {
    run("mux_frames", entries::mux_frames);
}

#[test]
fn framing_fields_hold_what_is_said_of_them() {
    run("framing_pairs", entries::framing_pairs);
}

#[test]
fn bodies_of_grpc_web_hold_what_is_said_of_them() {
    run("grpc_web", entries::grpc_web);
}

#[test]
fn client_hellos_hold_what_is_said_of_them() {
    run("client_hello", entries::client_hello);
}

#[test]
fn proxy_headers_hold_what_is_said_of_them() {
    run("proxy_header", entries::proxy_header);
}

#[test]
fn first_bytes_hold_what_is_said_of_them() {
    run("sniff", entries::sniff);
}
