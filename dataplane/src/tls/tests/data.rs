//! An established connection: data and records.

use std::cell::Cell;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{CipherSuiteCommon, SupportedCipherSuite, Tls13CipherSuite};

use super::super::limits::MAX_RECORD_BYTES;
use super::super::session::record_length;
use super::*;
use ringmesh_ring::Pipe;

/// Bytes that differ everywhere.
pub(super) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// Sends in pieces of `piece` bytes, then ends.
pub(super) async fn send_all(stream: &impl Stream, bytes: &[u8], piece: usize, stop: &Stop) {
    for part in bytes.chunks(piece) {
        send(stream, part, stop).await.unwrap();
    }
    stream.shutdown_write().unwrap();
}

/// Both sides send `length` bytes to each other at once.
pub(super) async fn exchange<S: Stream>((client, server): &Pair<S>, length: usize, piece: usize, stop: &Stop) {
    let bytes = pattern(length);
    let side = async |stream: &TlsStream<S>| {
        let (received, ()) = join(receive_all(stream, stop), send_all(stream, &bytes, piece, stop)).await;
        assert!(received.unwrap() == bytes, "pieces of {piece}");
    };
    join(side(client), side(server)).await;
}

#[test]
fn data_passes_both_ways_at_once_wherever_boundaries_fall() {
    for (chunk, piece, capacity) in
        [(usize::MAX, 65_536, 65_536), (7, 1_000_000, 999), (16_400, 16_384, 40_000), (1_461, 777, 5_000), (1, 100, 3)]
    {
        let net = Network::new(1);
        block_on(&net, async {
            let pair = established(&net, sound()).await;
            net.set_chunk_bytes(chunk);
            net.set_capacity_bytes(capacity);
            let length = if chunk < 10 { 100_000 } else { 1_048_576 };
            exchange(&pair, length, piece, &stop_in(&net, 60)).await;
        });
    }
}

#[test]
fn a_reader_with_little_room_gets_every_byte() {
    let net = Network::new(1);
    block_on(&net, async {
        let (client, server) = established(&net, sound()).await;
        let (stop, bytes) = (stop_in(&net, 60), pattern(50_000));
        let (all, room) = (Cell::new(Vec::new()), Cell::new(1));
        let read = async {
            loop {
                let mut buffer = Buffer::take(Size::Small);
                let taken = buffer.spare() - room.get();
                buffer.commit(taken);
                buffer.consume(taken - 1);
                buffer.slice(0..1);
                let before = buffer.len();
                server.readable().await.unwrap();
                match server.fill(&mut buffer, &stop).await.unwrap() {
                    0 => break,
                    added => {
                        let mut so_far = all.take();
                        so_far.extend_from_slice(&buffer.filled()[before..before + added]);
                        all.set(so_far);
                    }
                }
                room.set(room.get() % 5_000 + 333);
            }
        };
        join(read, send_all(&client, &bytes, 20_000, &stop)).await;
        assert!(all.take() == bytes);
    });
}

/// How `pieces`, flushed together, leave: the sends, and the plaintext bytes of each one's records.
fn check_records(pieces: &[&[u8]], expected: &[&[usize]]) {
    let net = Network::new(1);
    block_on(&net, async {
        let (client, server) = established(&net, sound()).await;
        let (stop, sends) = (stop_in(&net, 60), client.shared.inner.sends.clone());
        sends.borrow_mut().clear();
        net.set_capacity_bytes(1 << 20);
        let mut output = Output::new();
        for piece in pieces {
            let mut buffer = Buffer::take(Size::Large);
            buffer.extend_from_slice(piece).unwrap();
            output.push(buffer.slice(0..buffer.len()));
        }
        client.flush(&mut output, &stop).await.unwrap();
        let found: Vec<_> = sends.borrow().iter().map(|bytes| records(bytes)).collect();
        assert_eq!(found, expected);
        client.shutdown_write().unwrap();
        assert!(receive_all(&server, &stop).await.unwrap() == pieces.concat());
    });
}

/// The plaintext of TLS 1.3's records: all but header, content type and tag.
fn records(mut bytes: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    while let Some(length) = record_length(bytes) {
        found.push(length - 22);
        bytes = &bytes[length..];
    }
    found
}

#[test]
fn what_is_flushed_together_leaves_in_one_send_and_as_few_records_as_can_be() {
    const FULL: usize = MAX_RECORD_BYTES;
    check_records(&[b"HTTP/1.1 200 OK\r\n", b"content-length: 5\r\n\r\n", b"hello"], &[&[43]]);
    check_records(&[&[1; 200], &[2; 16_000]], &[&[16_200]]);
    check_records(&[&[1; 200], &[2; 16_184]], &[&[FULL]]);
    check_records(&[&[1; 16_385]], &[&[FULL, 1]]);
    check_records(&[&[1; 65_536]], &[&[FULL, FULL, FULL, 16_289, 95]]);
}

/// Suites whose keys are used up after a few records.
fn short_lived_keys() -> Arc<CryptoProvider> {
    let suites = aws_lc_rs::ALL_CIPHER_SUITES.iter().filter_map(|suite| {
        let suite = suite.tls13()?;
        let common = CipherSuiteCommon {
            suite: suite.common.suite,
            hash_provider: suite.common.hash_provider,
            confidentiality_limit: 5,
        };
        let short = Tls13CipherSuite { common, ..*suite };
        Some(SupportedCipherSuite::Tls13(Box::leak(Box::new(short))))
    });
    Arc::new(CryptoProvider { cipher_suites: suites.collect(), ..aws_lc_rs::default_provider() })
}

#[test]
fn keys_are_renewed_under_way_in_both_directions() {
    let net = Network::new(1);
    let ca = Authority::new();
    let (mut web, mut pay) = (Own::read(&ca.svid(WEB)).unwrap(), Own::read(&ca.svid(PAY)).unwrap());
    (web.provider, pay.provider) = (short_lived_keys(), short_lived_keys());
    let configs = (client_as(web, DOMAIN, &id(PAY), &[]).unwrap(), server_as(pay, DOMAIN, &[]).unwrap());
    block_on(&net, async {
        let pair = established(&net, configs).await;
        exchange(&pair, 1_048_576, 65_536, &stop_in(&net, 60)).await;
    });
}

#[test]
fn splicing_copies_no_more_than_asked() {
    let net = Network::new(1);
    block_on(&net, async {
        let ((client, server), (onward, end)) = (established(&net, sound()).await, established(&net, sound()).await);
        let (stop, bytes) = (stop_in(&net, 60), pattern(100_000));
        let relay = async {
            let mut pipe = Pipe::new().unwrap();
            for max in (1..).map(|step| step * 1_001 % 70_000 + 1) {
                let moved = server.splice_to(&onward, &mut pipe, max, &stop).await.unwrap();
                assert!(moved <= max);
                if moved == 0 {
                    return onward.shutdown_write().unwrap();
                }
            }
        };
        let ((), (received, ())) =
            join(send_all(&client, &bytes, 30_000, &stop), join(receive_all(&end, &stop), relay)).await;
        assert!(received.unwrap() == bytes);
    });
}
