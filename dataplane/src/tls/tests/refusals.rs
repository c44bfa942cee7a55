//! Who is refused, why, and what each side is told.

use rcgen::{CertificateParams, IsCa, SanType};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;

use super::super::testing::expire;
use super::*;
use crate::outcome::Reason;

/// A server that is sound meets the client: what does the server say, and what does the client's first read?
fn check_client(client: Arc<ClientConfig>, server: Arc<ServerConfig>, refused: &str, told: &str) {
    let net = Network::new(1);
    block_on(&net, async {
        let stop = stop_in(&net, 5);
        let (client, server) = shake(net.pair(), (client, server), &stop).await;
        assert_eq!(server.err().unwrap().label(), refused);
        // Its handshake was over first; what it sent meanwhile must not keep the alert from it.
        let (client, _) = client.unwrap();
        let _ = send(&client, b"GET / HTTP/1.1\r\n\r\n", &stop).await;
        match receive(&client, &stop).await {
            Err(ringmesh_ring::Error::Io(error)) => {
                let inside = Refused::inside(&error).unwrap();
                assert_eq!(inside.label(), "peer_alert");
                assert!(inside.to_string().contains(told), "`{inside}` lacks `{told}`");
            }
            other => panic!("{refused}: {other:?}"),
        }
    });
}

/// A client that is sound meets the server.
fn check_server(client: Arc<ClientConfig>, server: Arc<ServerConfig>, refused: &str, told: &str) {
    let net = Network::new(1);
    block_on(&net, async {
        let (client, server) = shake(net.pair(), (client, server), &stop_in(&net, 5)).await;
        assert_eq!(client.err().unwrap().label(), refused);
        let server = server.err().unwrap();
        assert_eq!(server.label(), "peer_alert", "{refused}");
        assert!(server.to_string().contains(told), "`{server}` lacks `{told}`");
    });
}

#[test]
fn a_certificate_that_grants_no_identity_is_refused_by_either_side_and_the_other_is_told() {
    let ca = Authority::new();
    let check = |identity: &Identity, refused: &str, told: &str| {
        check_client(client_unchecked(identity, PAY), server_unchecked(&ca.svid(PAY)), refused, told);
        check_server(client_unchecked(&ca.svid(WEB), PAY), server_unchecked(identity), refused, told);
    };
    let issue = |edit: fn(&mut CertificateParams)| ca.issue(PAY, edit);
    check(&issue(expire), "expired", "`CertificateExpired`");
    check(&issue(|c| c.not_before = rcgen::date_time_ymd(4000, 1, 1)), "not_yet_valid", "`CertificateExpired`");
    check(&issue(|c| c.subject_alt_names.clear()), "no_uri", "`CertificateUnknown`");
    check(&issue(|c| c.subject_alt_names.push(uri("spiffe://shop.example/b"))), "several_uris", "`CertificateUnknown`");
    check(&issue(|c| c.subject_alt_names = vec![uri("https://shop.example/b")]), "bad_spiffe_id", "our identity");
    check(&issue(|c| c.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)), "not_a_leaf", "our identity");
    check(&issue(|c| c.key_usages.push(rcgen::KeyUsagePurpose::KeyCertSign)), "not_a_leaf", "our identity");
    check(&ca.svid("spiffe://other.example/ns/default/sa/pay"), "wrong_trust_domain", "our identity");
    let stolen = Identity { key: Authority::new().svid(PAY).key, ..ca.svid(PAY) };
    check(&stolen, "bad_signature", "`DecryptError`");
    let foreign = Identity { bundle: ca.svid(PAY).bundle, ..Authority::new().svid(PAY) };
    check(&foreign, "unknown_issuer", "trust bundle");
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

#[test]
fn a_server_with_another_identity_than_expected_is_refused_by_name() {
    let ca = Authority::new();
    let (client, server) =
        (super::super::client(&ca.svid(WEB), &id(PAY), &[]), super::super::server(&ca.svid(WEB), DOMAIN, &[]));
    check_server(client.unwrap(), server.unwrap(), "wrong_identity", "`CertificateUnknown`");
}

#[test]
fn a_refused_client_that_only_writes_is_told_too() {
    let (ca, net) = (Authority::new(), Network::new(1));
    block_on(&net, async {
        let stop = stop_in(&net, 5);
        let configs = (client_unchecked(&ca.issue(WEB, expire), PAY), server_unchecked(&ca.svid(PAY)));
        let (client, server) = shake(net.pair(), configs, &stop).await;
        assert_eq!(server.err().unwrap().label(), "expired");
        match send(&client.unwrap().0, b"GET / HTTP/1.1\r\n\r\n", &stop).await {
            Err(ringmesh_ring::Error::Io(error)) => assert_eq!(Refused::inside(&error).unwrap().label(), "peer_alert"),
            other => panic!("{other:?}"),
        }
    });
}

#[derive(Debug)]
struct Nobody;

impl ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let ca = Authority::new();
    let mut client = ClientConfig::clone(&client_unchecked(&ca.svid(WEB), PAY));
    client.client_auth_cert_resolver = Arc::new(Nobody);
    check_client(Arc::new(client), server_unchecked(&ca.svid(PAY)), "no_certificate", "demands a client certificate");
}

/// What a server makes of bytes that are no handshake of ours, and what it answers.
fn check_bytes(bytes: &[u8], refused: &str, answered: &[u8]) {
    let net = Network::new(1);
    block_on(&net, async {
        let (near, far) = net.pair();
        let stop = stop_in(&net, 5);
        send(&near, bytes, &stop).await.unwrap();
        let begun = net.now();
        let error = accept(far, sound().1, &stop).await.err().unwrap();
        assert_eq!(error.label(), refused, "{error}");
        assert_eq!(begun, net.now(), "refused at once, without waiting for more");
        assert_eq!(receive_all(&near, &stop).await.unwrap(), answered);
    });
}

#[test]
fn bytes_that_are_no_tls_1_3_handshake_are_refused_at_once() {
    let alert = |code: u8| [0x15, 3, 3, 0, 2, 2, code];
    check_bytes(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "plain_http", &Reason::PlainToTlsPort.last_answer());
    check_bytes(b"HELO a\r\n", "not_tls", b"");
    check_bytes(b"\0", "not_tls", b"");
    check_bytes(&[0x16, 0xff, 0xff, 0xff, 0xff], "protocol", &alert(50));
    check_bytes(&[0x16, 3, 1, 0, 5, 99, 0, 0, 1, 0], "protocol", &alert(10));
    check_bytes(&[0x16, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff], "protocol", b"");
    check_bytes(&tls_1_2_client_hello(), "incompatible", &alert(70));
}

/// RFC 5246 section 7.4.1.2, with one suite and one group.
fn tls_1_2_client_hello() -> Vec<u8> {
    let extensions: &[u8] = &[0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3, 0, 11, 0, 2, 1, 0];
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0, 0, extensions.len() as u8]);
    hello.extend(extensions);
    let mut record = vec![0x16, 3, 1, 0, hello.len() as u8 + 4, 1, 0, 0, hello.len() as u8];
    record.extend(hello);
    record
}

#[test]
fn a_server_that_answers_in_plain_text_is_refused() {
    let net = Network::new(1);
    block_on(&net, async {
        let (near, far) = net.pair();
        let stop = stop_in(&net, 5);
        send(&far, b"HTTP/1.1 400 Bad Request\r\n\r\n", &stop).await.unwrap();
        assert_eq!(connect(near, sound().0, &stop).await.err().unwrap().label(), "not_tls");
    });
}

#[test]
fn a_silent_or_slow_peer_is_refused_at_the_deadline() {
    let net = Network::new(1);
    block_on(&net, async {
        for bytes in [&[][..], &[0x16, 3, 1, 2, 0, 1]] {
            let (near, far) = net.pair();
            let stop = stop_in(&net, 5);
            send(&near, bytes, &stop).await.unwrap();
            assert_eq!(accept(far, sound().1, &stop).await.err().unwrap().label(), "deadline");
        }
        let (near, _far) = net.pair();
        let stop = stop_in(&net, 5);
        assert_eq!(connect(near, sound().0, &stop).await.err().unwrap().label(), "deadline");
    });
}

#[test]
fn a_peer_that_leaves_during_the_handshake_is_named() {
    let net = Network::new(1);
    block_on(&net, async {
        let (near, far) = net.pair();
        let stop = stop_in(&net, 5);
        near.shutdown_write().unwrap();
        assert_eq!(accept(far, sound().1, &stop).await.err().unwrap().label(), "closed");
    });
}

#[test]
fn a_handshake_message_without_end_is_refused() {
    let net = Network::new(1);
    block_on(&net, async {
        let (near, far) = net.pair();
        let stop = stop_in(&net, 5);
        let flood = async {
            // A ClientHello of 65,535 bytes in records of 16, whose headers do not fit beside it.
            let record = [&[0x16, 3, 1, 0, 16, 1, 0, 0xff, 0xff][..], &[0; 12]].concat();
            let further = [&[0x16, 3, 1, 0, 16][..], &[0; 16]].concat();
            let _ = send(&near, &record, &stop).await;
            while send(&near, &further, &stop).await.is_ok() {}
        };
        let (error, ()) = join(async { accept(far, sound().1, &stop).await.err().unwrap() }, flood).await;
        assert_eq!(error.label(), "too_large");
    });
}

/// The bytes of a sound ClientHello, from a server that never answers.
async fn client_hello(net: &Network) -> Vec<u8> {
    let (near, _far) = net.pair();
    let near = Tap::on(near);
    let sends = near.sends.clone();
    assert!(connect(near, sound().0, &stop_in(net, 1)).await.is_err());
    sends.take().concat()
}

#[test]
fn a_damaged_client_hello_is_refused_whatever_the_damage() {
    let net = Network::new(7);
    block_on(&net, async {
        let (sound_hello, server) = (client_hello(&net).await, sound().1);
        for round in 0..400 {
            let random = |below: usize| net.random() as usize % below;
            let mut message = sound_hello[5..].to_vec();
            for _ in 0..random(4) {
                let at = random(message.len());
                message[at] ^= 1 << random(8);
            }
            message.truncate(message.len() - random(2) * random(message.len()));
            // In records of its own choice, and something else behind.
            let mut bytes = Vec::new();
            for part in message.chunks(1 + random(message.len())) {
                bytes.extend([0x16, 3, 1, (part.len() >> 8) as u8, part.len() as u8]);
                bytes.extend(part);
            }
            bytes.extend((0..random(40)).map(|_| net.random() as u8));
            net.set_chunk_bytes(1 + random(bytes.len()));
            let ((near, far), stop) = (net.pair(), stop_in(&net, 1));
            send(&near, &bytes, &stop).await.unwrap();
            let refused = accept(far, server.clone(), &stop).await.err();
            assert!(refused.is_some(), "round {round}");
        }
    });
}
