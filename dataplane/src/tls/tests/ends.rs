//! How a connection ends or idles, and what may come beside data.

use ringmesh_ring::{Error, Idle};

use super::data::pattern;
use super::*;

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

/// The client says `bytes` and ends its side before the server has seen the end of the handshake.
fn check_early_end(bytes: &[u8]) {
    let net = Network::new(1);
    block_on(&net, async {
        let (near, far) = net.pair();
        let (client, server) = sound();
        let stop = stop_in(&net, 5);
        let speak_and_end = async {
            let (stream, _) = connect(near, client, &stop).await.unwrap();
            send(&stream, bytes, &stop).await.unwrap();
            stream.shutdown_write().unwrap();
            stream
        };
        let (client, accepted) = join(speak_and_end, accept(far, server, &stop)).await;
        let (server, _) = accepted.unwrap();
        assert_eq!(receive_all(&server, &stop).await.unwrap(), bytes);
        send(&server, b"answer", &stop).await.unwrap();
        assert_eq!(receive(&client, &stop).await.unwrap(), b"answer");
    });
}

#[test]
fn a_client_that_ends_its_side_together_with_its_last_flight_is_served() {
    check_early_end(b"");
    check_early_end(b"all that it has to say");
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
fn a_connection_that_breaks_within_a_message_is_closed_with_the_alert() {
    let net = Network::new(1);
    block_on(&net, async {
        let (client, server) = within_a_message(&net, 150, Some(&[0x17; 90])).await;
        let stop = stop_in(&net, 5);
        client.shutdown_write().unwrap();
        assert!(send(&client, b"bye", &stop).await.is_err());
        match receive(&server, &stop).await {
            Err(Error::Io(error)) => assert_eq!(Refused::inside(&error).unwrap().label(), "peer_alert"),
            other => panic!("{other:?}"),
        }
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
