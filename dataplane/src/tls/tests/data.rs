//! An established connection: data, records, ends.

use std::cell::Cell;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{CipherSuiteCommon, SupportedCipherSuite, Tls13CipherSuite};

use super::super::limits::{MAX_RECORD_BYTES, RECORD_OVERHEAD_BYTES};
use super::super::session::record_length;
use super::*;
use ringmesh_ring::{Error, Idle, Pipe};

/// Bytes that differ everywhere.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// Sends in pieces of `piece` bytes, then ends.
async fn send_all(stream: &impl Stream, bytes: &[u8], piece: usize, stop: &Stop) {
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

fn records(mut bytes: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    while let Some(length) = record_length(bytes) {
        found.push(length - RECORD_OVERHEAD_BYTES);
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
    check_records(&[&[1; 65_536]], &[&[FULL, FULL, FULL, 16_296, 88]]);
}

#[test]
fn an_end_without_close_notify_is_a_truncation() {
    let net = Network::new(1);
    block_on(&net, async {
        let (client, server) = established(&net, sound()).await;
        let stop = stop_in(&net, 5);
        send(&client, b"half a mess", &stop).await.unwrap();
        drop(client);
        assert_eq!(receive(&server, &stop).await.unwrap(), b"half a mess");
        for _ in 0..2 {
            match receive(&server, &stop).await {
                Err(Error::Io(error)) => assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof),
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn half_close_ends_one_direction_only_and_waits_for_room_in_the_background() {
    let net = Network::new(1);
    block_on(&net, async {
        let (client, server) = established(&net, sound()).await;
        let stop = stop_in(&net, 5);
        send(&client, &pattern(1_000), &stop).await.unwrap();
        net.set_capacity_bytes(1_000);
        client.shutdown_write().unwrap();
        client.shutdown_write().unwrap();
        assert!(send(&client, b"more", &stop).await.is_err(), "nothing may follow close_notify");
        assert!(receive_all(&server, &stop).await.unwrap() == pattern(1_000));
        send(&server, b"answer", &stop).await.unwrap();
        server.shutdown_write().unwrap();
        assert_eq!(receive_all(&client, &stop).await.unwrap(), b"answer");
    });
}

#[test]
fn bytes_changed_on_the_way_end_the_connection_and_the_peer_is_told() {
    let net = Network::new(1);
    block_on(&net, async {
        let (client, server) = established(&net, sound()).await;
        let stop = stop_in(&net, 5);
        let mut forged = Output::new();
        forged.push_bytes(&[&[0x17, 3, 3, 0, 40][..], &[0; 40]].concat());
        client.shared.inner.flush(&mut forged, &stop).await.unwrap();
        for _ in 0..2 {
            match receive(&server, &stop).await {
                Err(Error::Io(error)) => assert_eq!(Refused::inside(&error).unwrap().label(), "protocol"),
                other => panic!("{other:?}"),
            }
        }
        assert!(send(&server, b"answer", &stop).await.is_err());
        match receive(&client, &stop).await {
            Err(Error::Io(error)) => {
                assert!(Refused::inside(&error).unwrap().to_string().contains("BadRecordMac"), "{error}");
            }
            other => panic!("{other:?}"),
        }
    });
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
    let configs = (client_as(web, DOMAIN, &id(PAY)).unwrap(), server_as(pay, DOMAIN).unwrap());
    block_on(&net, async {
        let pair = established(&net, configs).await;
        exchange(&pair, 1_048_576, 65_536, &stop_in(&net, 60)).await;
    });
}

/// A server that, other than ours, sends tickets: some 200 bytes each, in records of at most 64.
fn with_tickets((client, server): (Arc<ClientConfig>, Arc<ServerConfig>)) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let mut server = ServerConfig::clone(&server);
    server.send_tls13_tickets = 4;
    server.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    server.max_fragment_size = Some(64);
    (client, Arc::new(server))
}

#[test]
fn a_peers_tickets_are_no_data() {
    let net = Network::new(1);
    block_on(&net, async {
        let (client, server) = established(&net, with_tickets(sound())).await;
        assert_eq!(client.check_idle().unwrap(), Idle::Open);
        let stop = stop_in(&net, 5);
        send(&server, b"data", &stop).await.unwrap();
        assert_eq!(receive(&client, &stop).await.unwrap(), b"data");
    });
}

#[test]
fn a_message_in_fragments_disturbs_neither_reader_nor_writer() {
    for piece in [1, 5, 64, 70, 86, 87, 200] {
        let net = Network::new(1);
        block_on(&net, async {
            let stop = stop_in(&net, 60);
            let (client, server) = established(&net, with_tickets(sound())).await;
            send(&server, b"behind", &stop).await.unwrap();
            let (mut waiting, mut plain) = (Buffer::take(Size::Small), Buffer::take(Size::Small));
            client.shared.inner.try_fill(&mut waiting).unwrap().unwrap();
            let mut sent = 0;
            for part in waiting.filled().chunks(piece) {
                assert!(plain.is_empty());
                // A receive that is under way, done, and decoded, with a write in between.
                let mut input = client.shared.lend().unwrap();
                input.extend_from_slice(part).unwrap();
                send(&client, b"?", &stop).await.unwrap();
                client.shared.give_back(input, Some(part.len()));
                send(&client, b"?", &stop).await.unwrap();
                let _ = client.try_fill(&mut plain).unwrap();
                send(&client, b"?", &stop).await.unwrap();
                sent += 3;
            }
            assert_eq!(plain.filled(), b"behind", "pieces of {piece}");
            client.shutdown_write().unwrap();
            assert_eq!(receive_all(&server, &stop).await.unwrap().len(), sent);
        });
    }
}

/// A client that has got `bytes` of tickets, and then what `then` gives.
async fn within_a_message(net: &Network, bytes: usize, then: Option<&[u8]>) -> Pair<Tap<memory::Stream>> {
    let (client, server) = established(net, with_tickets(sound())).await;
    let (mut waiting, mut plain) = (Buffer::take(Size::Small), Buffer::take(Size::Small));
    client.shared.inner.try_fill(&mut waiting).unwrap().unwrap();
    let mut input = client.shared.lend().unwrap();
    input.extend_from_slice(&waiting.filled()[..bytes]).unwrap();
    client.shared.give_back(input, Some(bytes));
    assert_eq!(client.try_fill(&mut plain).unwrap(), None);
    let mut input = client.shared.lend().unwrap();
    input.extend_from_slice(then.unwrap_or_default()).unwrap();
    client.shared.give_back(input, Some(then.map_or(0, <[u8]>::len)));
    assert!(client.try_fill(&mut plain).is_err());
    (client, server)
}

#[test]
fn a_connection_that_ends_within_a_message_can_still_be_written_to() {
    let net = Network::new(1);
    block_on(&net, async {
        let (client, server) = within_a_message(&net, 150, None).await;
        let stop = stop_in(&net, 5);
        send(&client, b"bye", &stop).await.unwrap();
        client.shutdown_write().unwrap();
        assert_eq!(receive_all(&server, &stop).await.unwrap(), b"bye");
    });
}

#[test]
fn a_connection_that_breaks_within_a_message_can_be_closed() {
    let net = Network::new(1);
    block_on(&net, async {
        let (client, server) = within_a_message(&net, 150, Some(&[0x17; 90])).await;
        let stop = stop_in(&net, 5);
        assert!(send(&client, b"bye", &stop).await.is_err());
        client.shutdown_write().unwrap();
        assert!(receive_all(&server, &stop).await.is_err());
    });
}

#[test]
fn garbage_after_our_own_end_is_an_error_like_any_other() {
    let net = Network::new(1);
    block_on(&net, async {
        let (client, server) = established(&net, sound()).await;
        let stop = stop_in(&net, 5);
        client.shutdown_write().unwrap();
        let mut forged = Output::new();
        forged.push_bytes(&[&[0x17, 3, 3, 0, 40][..], &[0; 40]].concat());
        server.shared.inner.flush(&mut forged, &stop).await.unwrap();
        assert!(receive(&client, &stop).await.is_err());
    });
}

#[test]
fn idle_says_what_waits() {
    let net = Network::new(1);
    block_on(&net, async {
        let (client, server) = established(&net, sound()).await;
        let stop = stop_in(&net, 5);
        assert_eq!(client.check_idle().unwrap(), Idle::Open);
        send(&server, b"unasked", &stop).await.unwrap();
        assert_eq!(client.check_idle().unwrap(), Idle::Data);
        assert_eq!(client.check_idle().unwrap(), Idle::Data);
        client.readable().await.unwrap();
        assert_eq!(receive(&client, &stop).await.unwrap(), b"unasked");
        assert_eq!(client.try_fill(&mut Buffer::take(Size::Small)).unwrap(), None);
        server.shutdown_write().unwrap();
        assert_eq!(client.check_idle().unwrap(), Idle::Closed);
        assert_eq!(client.check_idle().unwrap(), Idle::Closed);
        assert_eq!(client.try_fill(&mut Buffer::take(Size::Small)).unwrap(), Some(0));
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
