//! Both sides of TLS against each other: in memory, and over sockets on every driver that works here.

mod data;
mod ends;
mod refusals;
mod sockets;

use std::sync::Arc;
use std::time::Duration;

use ringmesh_model::snapshot::{Identity, Mtls};
use ringmesh_model::spiffe::SpiffeId;
use ringmesh_ring::memory::{self, Network, block_on};
use ringmesh_ring::{Buffer, Net, Output, Size, Stop, Stream};
use rustls::{ClientConfig, ServerConfig};

use super::config::{Own, client_as, server_as};
use super::testing::{Authority, Tap, join};
use super::{Alpn, Peer, Refused, TlsStream, accept, accept_any_protocol, connect};

const DOMAIN: &str = "shop.example";
const WEB: &str = "spiffe://shop.example/ns/default/sa/web";
const PAY: &str = "spiffe://shop.example/ns/default/sa/pay";

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

/// Configs of a client and a server of one authority, who expect each other.
fn sound() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let ca = Authority::new();
    (super::client(&ca.svid(WEB), &id(PAY), &[]).unwrap(), super::server(&ca.svid(PAY), DOMAIN, &[]).unwrap())
}

/// A client's config without our own checks of it.
fn client_unchecked(identity: &Identity, peer: &str) -> Arc<ClientConfig> {
    client_as(Own::read(identity).unwrap(), DOMAIN, &id(peer), &[]).unwrap()
}

fn server_unchecked(identity: &Identity) -> Arc<ServerConfig> {
    server_as(Own::read(identity).unwrap(), DOMAIN, &[]).unwrap()
}

fn stop_in(net: &Network, seconds: u64) -> Stop {
    let stop = net.stop();
    stop.set_deadline(Some(net.now() + Duration::from_secs(seconds)));
    stop
}

type Side<S> = Result<(TlsStream<S>, Peer), Refused>;

async fn shake<S: Stream>(
    (near, far): (S, S),
    (client, server): (Arc<ClientConfig>, Arc<ServerConfig>),
    stop: &Stop,
) -> (Side<S>, Side<S>) {
    join(connect(near, client, stop), accept(far, server, stop)).await
}

type Pair<S> = (TlsStream<S>, TlsStream<S>);

/// An established connection over taps.
async fn established(net: &Network, configs: (Arc<ClientConfig>, Arc<ServerConfig>)) -> Pair<Tap<memory::Stream>> {
    let (near, far) = net.pair();
    let (client, server) = shake((Tap::on(near), Tap::on(far)), configs, &stop_in(net, 5)).await;
    (client.unwrap().0, server.unwrap().0)
}

async fn send(stream: &impl Stream, bytes: &[u8], stop: &Stop) -> Result<(), ringmesh_ring::Error> {
    let mut output = Output::new();
    output.push_bytes(bytes);
    stream.flush(&mut output, stop).await
}

/// Everything up to the end.
async fn receive_all(stream: &impl Stream, stop: &Stop) -> Result<Vec<u8>, ringmesh_ring::Error> {
    let (mut all, mut buffer) = (Vec::new(), Buffer::take(Size::Small));
    while stream.fill(&mut buffer, stop).await? > 0 {
        all.extend_from_slice(buffer.filled());
        buffer.clear();
    }
    Ok(all)
}

/// The next bytes, however many.
async fn receive(stream: &impl Stream, stop: &Stop) -> Result<Vec<u8>, ringmesh_ring::Error> {
    let mut buffer = Buffer::take(Size::Small);
    stream.fill(&mut buffer, stop).await?;
    Ok(buffer.filled().to_vec())
}

#[test]
fn both_sides_learn_who_the_other_is() {
    let net = Network::new(1);
    block_on(&net, async {
        let (client, server) = shake(net.pair(), sound(), &stop_in(&net, 5)).await;
        let (_, seen_by_client) = client.unwrap();
        let (_, seen_by_server) = server.unwrap();
        assert_eq!((seen_by_client.id.unwrap().as_str(), seen_by_server.id.unwrap().as_str()), (PAY, WEB));
        assert_eq!((seen_by_client.version, seen_by_client.group), ("TLSv1.3", "X25519MLKEM768"));
        assert_eq!(seen_by_client.cipher_suite, seen_by_server.cipher_suite);
    });
}

#[test]
fn what_a_peer_has_proved_ends_with_the_first_certificate_of_its_chain_and_names_its_root() {
    let second = |year| Duration::from_secs(rcgen::date_time_ymd(year, 1, 1).unix_timestamp() as u64 + 1);
    // The leaf's, or the intermediate's above it.
    for (intermediate, leaf, ends) in [(3000, 2900, 2900), (2950, 3000, 2950)] {
        let ca = Authority::whose_intermediate_ends_in(intermediate);
        let svid = |id| ca.issue(id, |params| params.not_after = rcgen::date_time_ymd(leaf, 1, 1));
        let (web, pay) = (svid(WEB), svid(PAY));
        let configs = (super::client(&web, &id(PAY), &[]).unwrap(), super::server(&pay, DOMAIN, &[]).unwrap());
        let net = Network::new(1);
        let (client, server) = block_on(&net, shake(net.pair(), configs, &stop_in(&net, 5)));
        let expected = super::Proof { ends: second(ends), anchor: super::Anchor::all(&web)[0] };
        assert_eq!((client.unwrap().1.proof, server.unwrap().1.proof), (Some(expected), Some(expected)));
    }
    let (one, other) = (Authority::new(), Authority::new());
    let anchors = |ca: &Authority| super::Anchor::all(&ca.svid(WEB));
    assert_eq!(anchors(&one), super::Anchor::all(&Identity { bundle: vec![one.renewed_root()], ..one.svid(WEB) }));
    assert_ne!(anchors(&one), anchors(&other), "another key under the same name");
}

#[test]
fn where_it_is_found_out_what_is_spoken_no_protocol_keeps_a_client_out() {
    let ca = Authority::new();
    let server = super::server(&ca.svid(PAY), DOMAIN, &[Alpn::Http2, Alpn::Http1]).unwrap();
    let offers: [(&[&str], Option<Alpn>); 5] = [
        (&[], None),
        (&["postgresql", "h3"], None),
        (&["h2"], Some(Alpn::Http2)),
        (&["http/1.1", "h2"], Some(Alpn::Http2)),
        (&["postgresql", "http/1.1"], Some(Alpn::Http1)),
    ];
    for (offered, agreed) in offers {
        let mut client = ClientConfig::clone(&super::client(&ca.svid(WEB), &id(PAY), &[]).unwrap());
        client.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        let client = Arc::new(client);
        // Byte by byte, in parts, and all at once.
        for bytes in [1, 100, 100_000] {
            let net = Network::new(1);
            net.set_chunk_bytes(bytes);
            block_on(&net, async {
                let ((near, far), stop) = (net.pair(), stop_in(&net, 5));
                let mut parting = None;
                let accepted = accept_any_protocol(far, server.clone(), Mtls::Strict, &stop, &mut parting);
                let (connected, accepted) = join(connect(near, client.clone(), &stop), accepted).await;
                let (near, (far, seen)) = (connected.unwrap().0, accepted.unwrap());
                assert_eq!((seen.alpn, seen.id.unwrap().as_str()), (agreed, WEB), "{offered:?}");
                let (sent, received) = join(send(&near, b"opaque", &stop), receive(&far, &stop)).await;
                sent.unwrap();
                assert!(b"opaque".starts_with(&received.unwrap()), "{offered:?}");
            });
        }
        // Elsewhere, what is offered must be known.
        let net = Network::new(1);
        let (_, accepted) = block_on(&net, shake(net.pair(), (client, server.clone()), &stop_in(&net, 5)));
        assert_eq!(accepted.is_err(), agreed.is_none() && !offered.is_empty(), "{offered:?}");
    }
}

/// Connects twice with the same configs: neither time may be a resumption.
fn check_full((client, server): (Arc<ClientConfig>, Arc<ServerConfig>)) {
    let net = Network::new(1);
    for _ in 0..2 {
        let configs = (client.clone(), server.clone());
        let (client, server) = block_on(&net, established(&net, configs));
        // Whatever tickets there are have been taken by then.
        assert_eq!(client.check_idle().unwrap(), ringmesh_ring::Idle::Open);
        for stream in [client, server] {
            let kind = stream.shared.state.borrow().session.common().handshake_kind();
            assert_eq!(kind, Some(rustls::HandshakeKind::Full));
        }
    }
}

#[test]
fn every_connection_is_a_full_handshake_whatever_the_other_side_offers() {
    let (client, server) = sound();
    let mut wanting = ClientConfig::clone(&client);
    wanting.resumption = rustls::client::Resumption::in_memory_sessions(8);
    check_full((Arc::new(wanting), server.clone()));
    let mut giving = ServerConfig::clone(&server);
    giving.send_tls13_tickets = 2;
    giving.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    check_full((client, Arc::new(giving)));
}

#[test]
fn handshake_survives_bytes_that_come_one_by_one() {
    let net = Network::new(1);
    net.set_chunk_bytes(1);
    block_on(&net, established(&net, sound()));
}

#[test]
fn an_idle_connection_holds_no_buffer_and_little_else() {
    let net = Network::new(1);
    block_on(&net, async {
        let (client, server) = established(&net, sound()).await;
        let stop = stop_in(&net, 5);
        send(&client, b"ping", &stop).await.unwrap();
        assert_eq!(receive(&server, &stop).await.unwrap(), b"ping");
        for stream in [&client, &server] {
            let state = stream.shared.state.borrow();
            assert_eq!(state.reading.buffer_bytes(), 0);
            assert_eq!(state.pending.capacity(), 0);
        }
    });
    assert_eq!(size_of::<TlsStream<memory::Stream>>(), size_of::<usize>());
    // rustls' own struct is 1,088 bytes of it.
    let bytes = size_of::<super::shared::State>();
    assert!((1_088..=1_224).contains(&bytes), "{bytes} bytes");
}
