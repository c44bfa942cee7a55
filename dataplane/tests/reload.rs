//! What a change of the config leaves as it is.
#![allow(clippy::unwrap_used, reason = "a test ends where its own world is broken")]
#![allow(dead_code, reason = "each test binary uses a part of the world")]

mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ringmesh_model::snapshot::{Certificate, Key, Listener, Object, Protocol};
use world::World;

type Objects = BTreeMap<Key, Object>;

fn certificate(name: &str) -> Certificate {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    Certificate {
        names: vec![name.to_owned()],
        chain: vec![made.cert.der().to_vec()],
        key: made.signing_key.serialize_der(),
        expires: u64::MAX,
    }
}

fn listener(objects: &mut Objects) -> &mut Listener {
    match objects.get_mut(&Key::Listener("in".into())) {
        Some(Object::Listener(listener)) => Arc::make_mut(listener),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_edge_listener_reads_its_keys_anew_only_when_its_certificates_or_its_protocol_change() {
    let world = World::with(|listener| listener.tls = vec![certificate("a.example")]);
    let tls = || world.worker.tables().listeners[0].as_ref().unwrap().tls.clone().unwrap();
    let stays = |edit: fn(&mut Objects)| {
        let before = tls();
        world.reload(edit);
        Arc::ptr_eq(&before, &tls())
    };
    assert!(stays(|objects| {
        let Some(Object::Route(route)) = objects.get_mut(&Key::Route("s".into())) else { panic!("no route") };
        Arc::make_mut(route).rules[0].timeout = Some(Duration::from_secs(1));
    }));
    assert!(stays(|objects| {
        let Some(Object::Settings(settings)) = objects.get_mut(&Key::Settings) else { panic!("no settings") };
        Arc::make_mut(settings).drain_timeout = Duration::from_secs(1);
    }));
    assert!(stays(|objects| listener(objects).limits.max_headers = 7));
    assert!(!stays(|objects| listener(objects).tls = vec![certificate("a.example")]), "renewed");
    assert!(!stays(|objects| listener(objects).tls.push(certificate("b.example"))), "one more");
    assert!(!stays(|objects| listener(objects).protocol = Protocol::Tcp), "ALPN follows the protocol");
}
