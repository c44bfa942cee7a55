//! Peers of the own mesh that attack a listener with frames: they are cut and counted, or get no further than a bound; its
//! memory stays bounded, and others are served without a failure meanwhile.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::client::is_end;
use ringmesh_tests::mux::{self, Frame, Peer, close, credit, data, goaway, hello, kind, last, open, ping, reset};
use ringmesh_tests::process::{processor_time, resident_set_size};
use ringmesh_tests::service::ok;
use ringmesh_tests::tls::client_config_offering;
use ringmesh_tests::{DEADLINE, Driver, Proxy, Service, eventually, hold, on_both_drivers, on_both_drivers_at_once};
use rustls::ClientConfig;

use super::{Keys, MAX_ADDED_BYTES, far, outcome};
use crate::support::DOMAIN;

/// What an attack, with the good traffic beside it, may take of the proxy's processor time, in an unoptimised build too.
const MAX_PROCESSOR_TIME: Duration = Duration::from_secs(10);

/// Frames after which a flood must have been noticed.
const MAX_FRAMES: usize = 400_000;

/// Frames that are sent before the answers are looked at.
const BATCH: usize = 1_000;

/// What is answered to whoever asks for much, in bytes.
const MUCH: usize = 16 * 1024 * 1024;

/// A proxy that is attacked.
struct Victim {
    proxy: Proxy,
    port: Port,
    _app: Service,
}

/// Where it is, and who comes there.
struct Port {
    inbound: SocketAddr,
    attacker: Arc<ClientConfig>,
    bystander: Arc<ClientConfig>,
}

impl Port {
    fn connect(&self) -> Peer {
        Peer::connect(self.inbound, &self.attacker).expect("the attacker is of the mesh")
    }
}

impl Victim {
    #[track_caller]
    fn new(driver: Driver, inbound: &str) -> Self {
        let authority = Authority::new(DOMAIN);
        let app = Service::conversing(|talk| {
            while let Some(head) = talk.head()? {
                match head.request().1 {
                    "/stuck" => talk.stand_still(Duration::from_secs(5)),
                    "/large" => talk
                        .send([ok("").replace(": 0", &format!(": {MUCH}")).into_bytes(), vec![b'x'; MUCH]].concat())?,
                    _ => {
                        talk.rest_of(head)?;
                        talk.send(ok("good"))?;
                    }
                }
            }
            Ok(())
        });
        let (proxy, address) = far(driver, &authority, app.address(), Keys { inbound, ..Keys::default() });
        let config = |name| client_config_offering(Some(&authority.svid(name)), &[mux::NAME]);
        let port = Port { inbound: address, attacker: config("attacker"), bystander: config("bystander") };
        Self { proxy, port, _app: app }
    }

    /// Attacks, and sees what it costs and that others are served.
    #[track_caller]
    fn check<T: Send>(&self, what: &str, attack: impl FnOnce(&Port) -> T + Send) -> T {
        let (pid, port) = (self.proxy.dataplane_pid(), &self.port);
        let (before, time_before) = (resident_set_size(pid), processor_time(pid));
        let over = AtomicBool::new(false);
        let (result, most, (served, longest)) = thread::scope(|scope| {
            let watching = scope.spawn(|| {
                let mut most = 0;
                while !over.load(Ordering::Relaxed) {
                    most = resident_set_size(pid).max(most);
                    hold(Duration::from_millis(5));
                }
                most
            });
            let asking = scope.spawn(|| {
                let mut kept = Peer::greeted(port.inbound, &port.bystander);
                let (mut served, mut longest) = (0, Duration::ZERO);
                while !over.load(Ordering::Relaxed) || served < 3 {
                    let begun = Instant::now();
                    assert_eq!(kept.get("/good").expect("it is served").text(), "good");
                    longest = longest.max(begun.elapsed());
                    assert!(longest < DEADLINE / 2, "{what}: it waited for {longest:?}");
                    served += 1;
                    hold(Duration::from_millis(3));
                }
                assert_eq!(Peer::greeted(port.inbound, &port.bystander).get("/good").unwrap().text(), "good");
                (served, longest)
            });
            let result = scope.spawn(|| attack(port)).join();
            over.store(true, Ordering::Relaxed);
            (result.unwrap(), watching.join().unwrap(), asking.join().unwrap())
        });
        let (added, took) = (most.saturating_sub(before), processor_time(pid).saturating_sub(time_before));
        eprintln!(
            "{what}: {served} served beside it in {longest:?} at most, {} KiB more, {took:?} of processor time",
            added / 1024
        );
        assert!(added <= MAX_ADDED_BYTES, "{what}: {added} bytes more");
        assert!(took <= MAX_PROCESSOR_TIME, "{what}: {took:?} of processor time");
        assert_eq!(self.proxy.metrics().sum("ringmesh_worker_panics_total", &[]), 0, "{what}");
        result
    }

    /// Sees that an attack ends its connection, for this reason.
    #[track_caller]
    fn check_cut(&self, what: &str, reason: &str, attack: impl Fn(&mut Peer) -> io::Result<()> + Sync + Send) {
        let before = outcome(&self.proxy, reason);
        self.check(what, |port| {
            let mut peer = port.connect();
            peer.manners.answers = false;
            let sent = attack(&mut peer);
            let _ = peer.socket().set_read_timeout(Some(Duration::from_secs(10)));
            match (sent, peer.until_end()) {
                (_, Ok(_)) => {}
                (sent, Err(error)) => panic!("{what}: it was not cut: {error}, {sent:?}"),
            }
        });
        eventually(what, || (outcome(&self.proxy, reason) == before + 1).then_some(()));
    }
}

/// Sends batches until the other side ends. Whether it looks at what it is answered.
fn flood(peer: &mut Peer, reads: bool, mut batch: impl FnMut(&mut Peer) -> Vec<u8>) -> io::Result<()> {
    peer.manners = mux::Manners { answers: false, grants: false };
    peer.socket().set_write_timeout(Some(Duration::from_secs(5)))?;
    for _ in 0..MAX_FRAMES / BATCH {
        let bytes = batch(peer);
        peer.send(&bytes)?;
        if reads && !peer.read_for(Duration::from_millis(1))? {
            return Ok(());
        }
    }
    Ok(())
}

const GET: &str = "GET /good HTTP/1.1\r\nHost: app\r\n\r\n";

fn post(path: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: app\r\nContent-Length: 1000000000\r\n\r\n")
}

#[test]
fn who_breaks_a_rule_is_cut_and_counted() {
    type Breaks = fn() -> Vec<u8>;
    let garbage = || {
        let mut state = 0x9e37_79b9_u32;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_be_bytes()
        };
        (0..50_000).flat_map(|_| next()).collect::<Vec<u8>>()
    };
    let table: [(&str, Breaks); 27] = [
        ("a channel before the greeting", || open(1)),
        ("an optional frame before the greeting", || Frame::new(0x80, 0, []).bytes()),
        ("two greetings", || [hello(0), hello(0)].concat()),
        ("a greeting that is too short", || Frame::new(kind::HELLO, 0, [0; 3]).bytes()),
        ("a greeting of a channel", || Frame::new(kind::HELLO, 1, [0; 4]).bytes()),
        ("a number that goes down", || [hello(0), open(5), open(3)].concat()),
        ("a number that is used twice", || [hello(0), open(5), open(5)].concat()),
        ("a number that is used again", || [hello(0), open(5), close(5), open(5)].concat()),
        ("the highest number, and then another", || [hello(0), open(u32::MAX), open(1)].concat()),
        ("channel 0 opened", || [hello(0), open(0)].concat()),
        ("data of channel 0", || [hello(0), data(0, "x")].concat()),
        ("credit for channel 0", || [hello(0), credit(0, 1)].concat()),
        ("a reset of channel 0", || [hello(0), reset(0)].concat()),
        ("PING of a channel", || [hello(0), open(1), Frame::new(kind::PING, 1, [0; 8]).bytes()].concat()),
        ("GOAWAY of a channel", || [hello(0), open(1), Frame::new(kind::GOAWAY, 1, []).bytes()].concat()),
        ("data of a channel that was never opened", || [hello(0), data(7, GET)].concat()),
        ("an end of a channel that was never opened", || [hello(0), open(1), close(2)].concat()),
        ("credit beyond all numbers", || [hello(0), open(1), credit(1, u32::MAX)].concat()),
        ("credit beyond all numbers in two steps", || {
            [hello(0), open(1), credit(1, u32::MAX - 65_536), credit(1, 65_536)].concat()
        }),
        ("more data than a frame has", || {
            [hello(0), open(1), Frame::new(kind::DATA, 1, vec![b'x'; mux::MAX_DATA + 1]).bytes()].concat()
        }),
        ("a control frame of 64 KiB", || [hello(0), Frame::new(kind::PING, 0, vec![0; 65_535]).bytes()].concat()),
        ("data behind the end", || [hello(0), open(1), last(1, post("/stuck")), data(1, "x")].concat()),
        ("two ends", || [hello(0), open(1), last(1, post("/stuck")), last(1, "")].concat()),
        ("a kind that must be understood", || [hello(0), Frame::new(0x7f, 0, []).bytes()].concat()),
        ("another protocol", || b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()),
        ("more than the credit at once", || {
            // What is taken on the way to a service that takes nothing is granted anew.
            [hello(0), open(1), data(1, post("/stuck")), data(1, vec![b'x'; 24 * 1024 * 1024])].concat()
        }),
        ("a request of HTTP on the connection itself", || GET.into()),
    ];
    on_both_drivers(|driver| {
        let victim = Victim::new(driver, "");
        for (what, bytes) in table {
            victim.check_cut(what, "trunk_error", |peer| peer.send(bytes()));
        }
        victim.check_cut("garbage", "trunk_error", |peer| peer.send(garbage()));
        victim.check_cut("garbage behind the greeting", "trunk_error", |peer| {
            peer.send([hello(1), vec![9], garbage()].concat())
        });
    });
}

#[test]
fn floods_are_cut_and_counted_whether_their_answers_are_read_or_not() {
    on_both_drivers(|driver| {
        let victim = Victim::new(driver, "");
        let greeted = |reads: bool, begin: Vec<u8>, batch: fn(&mut Peer) -> Vec<u8>| {
            move |peer: &mut Peer| {
                peer.send([hello(0), begin.clone()].concat())?;
                flood(peer, reads, batch)
            }
        };
        for reads in [true, false] {
            let told = |what: &str| format!("{what}, answers {}", if reads { "read" } else { "not read" });
            victim.check_cut(&told("PING"), "flood", greeted(reads, Vec::new(), |_| ping().repeat(BATCH)));
            victim.check_cut(
                &told("PONG"),
                "flood",
                greeted(reads, Vec::new(), |_| Frame::new(kind::PONG, 0, [0; 8]).bytes().repeat(BATCH)),
            );
            victim.check_cut(
                &told("frames that are skipped"),
                "flood",
                greeted(reads, Vec::new(), |_| Frame::new(0x99, 3, [7; 20]).bytes().repeat(BATCH)),
            );
            victim.check_cut(
                &told("GOAWAY"),
                "flood",
                greeted(reads, [open(1), data(1, post("/stuck"))].concat(), |_| goaway().repeat(BATCH)),
            );
            victim.check_cut(
                &told("credit of a byte"),
                "flood",
                greeted(reads, open(1), |_| credit(1, 1).repeat(BATCH)),
            );
            victim.check_cut(&told("credit of none"), "flood", greeted(reads, open(1), |_| credit(1, 0).repeat(BATCH)));
            victim.check_cut(
                &told("empty data"),
                "flood",
                greeted(reads, open(1), |_| Frame::new(kind::DATA, 1, []).bytes().repeat(BATCH)),
            );
            victim.check_cut(
                &told("empty data of a channel that is over"),
                "flood",
                greeted(reads, [open(1), close(1)].concat(), |_| Frame::new(kind::DATA, 1, []).bytes().repeat(BATCH)),
            );
            victim.check_cut(
                &told("the end of a channel that is over"),
                "flood",
                greeted(reads, [open(1), close(1)].concat(), |_| close(1).repeat(BATCH)),
            );
            victim.check_cut(
                &told("channels without anything in them"),
                "flood",
                greeted(reads, Vec::new(), |peer| (0..BATCH).flat_map(|_| open(peer.next_channel())).collect()),
            );
            victim.check_cut(
                &told("channels that are reset at once"),
                "flood",
                greeted(reads, Vec::new(), |peer| {
                    let both = |channel| [open(channel), reset(channel)].concat();
                    (0..BATCH).flat_map(|_| both(peer.next_channel())).collect()
                }),
            );
            victim.check_cut(
                &told("requests that are reset at once"),
                "flood",
                greeted(reads, Vec::new(), |peer| {
                    let all = |channel| [open(channel), data(channel, GET), reset(channel)].concat();
                    (0..BATCH).flat_map(|_| all(peer.next_channel())).collect()
                }),
            );
        }
    });
}

#[test]
fn who_asks_and_takes_no_answers_owes_a_bound() {
    on_both_drivers(|driver| {
        let victim = Victim::new(driver, "");
        // As slowly as no flood is, for as long as it takes to fill what lies between.
        victim.check_cut("PING now and then, and nothing read", "flood", |peer| {
            peer.send(hello(0))?;
            peer.socket().set_write_timeout(Some(Duration::from_secs(5)))?;
            (0..2_000).try_for_each(|_| {
                hold(Duration::from_millis(60));
                peer.send(ping().repeat(450))
            })
        });
    });
}

#[test]
fn requests_in_great_numbers_that_nobody_waits_for_are_served_a_few_at_a_time() {
    on_both_drivers(|driver| {
        let victim = Victim::new(driver, "max_streams = 20\n");
        victim.check("requests whose channels are closed at once", |port| {
            let mut peer = port.connect();
            peer.send(hello(0)).unwrap();
            peer.manners = mux::Manners { answers: false, grants: false };
            for _ in 0..40 {
                let bytes: Vec<u8> = (0..500)
                    .flat_map(|_| {
                        let channel = peer.next_channel();
                        [
                            open(channel),
                            data(channel, post("/stuck")),
                            data(channel, vec![b'x'; 30_000]),
                            close(channel),
                        ]
                        .concat()
                    })
                    .collect();
                if peer.send(&bytes).is_err() || !peer.read_for(Duration::from_millis(5)).unwrap_or(false) {
                    return;
                }
            }
        });
        eventually("nothing is left", || {
            (victim.proxy.metrics().sum("ringmesh_worker_requests_in_flight", &[]) == 0).then_some(())
        });
    });
}

#[test]
fn who_says_nothing_is_let_go_in_time() {
    on_both_drivers_at_once(|driver| {
        let victim = Victim::new(driver, "idle_timeout = \"2s\"\nheader_timeout = \"1s\"\n");
        let half = Frame::new(kind::PING, 0, [0; 8]).bytes()[..11].to_vec();
        let silences: [(&str, Vec<u8>); 7] = [
            ("no greeting", Vec::new()),
            ("half a greeting", hello(0)[..5].to_vec()),
            ("a greeting and no more", hello(0)),
            ("half a frame", [hello(0), half].concat()),
            ("half a frame of data", [hello(0), open(1), data(1, GET)[..20].to_vec()].concat()),
            ("a channel without a request", [hello(0), open(1)].concat()),
            ("a request without its body", [hello(0), open(1), data(1, post("/stuck"))].concat()),
        ];
        victim.check("silence", |port| {
            thread::scope(|scope| {
                for (what, bytes) in &silences {
                    scope.spawn(move || {
                        let mut peer = port.connect();
                        peer.manners.answers = false;
                        peer.send(bytes).unwrap();
                        let took = peer.until_end().unwrap_or_else(|error| panic!("{what}: {error}"));
                        eprintln!("{what}: {took:?}");
                        assert!(took < Duration::from_secs(20), "{what}: {took:?}");
                    });
                }
            });
        });
    });
}

#[test]
fn bytes_that_come_one_by_one_cost_what_they_are() {
    on_both_drivers(|driver| {
        let victim = Victim::new(driver, "");
        victim.check("frames of a byte, which nobody takes", |port| {
            let mut peer = port.connect();
            peer.send(hello(0)).unwrap();
            let channels: Vec<u32> = (0..80).map(|_| peer.ask(post("/stuck")).unwrap()).collect();
            // As much as each may send ahead, but for its head.
            for _ in 0..20 {
                for channel in &channels {
                    let one = data(*channel, "x");
                    if peer.send(one.repeat(1_000)).is_err() {
                        return;
                    }
                }
            }
            assert!(peer.read_for(Duration::from_millis(100)).unwrap(), "it has kept to the rules");
        });
    });
}

#[test]
fn who_takes_none_of_what_it_asks_for_costs_its_windows() {
    on_both_drivers(|driver| {
        let victim = Victim::new(driver, "");
        victim.check("large answers without credit", |port| {
            let mut peer = port.connect();
            peer.manners.grants = false;
            peer.send(hello(0)).unwrap();
            for _ in 0..90 {
                peer.ask("GET /large HTTP/1.1\r\nHost: app\r\n\r\n").unwrap();
            }
            let filled =
                |peer: &mut Peer| Some(peer.channels.get(&1)?.bytes.len() >= mux::FIRST_WINDOW).filter(|all| *all);
            peer.until(filled).unwrap();
            assert!(peer.read_for(Duration::from_secs(2)).unwrap());
            let most = peer.channels.values().map(|channel| channel.bytes.len()).max();
            assert_eq!(most, Some(mux::FIRST_WINDOW));
            // It may go on whenever it likes.
            peer.send(credit(1, 1_000)).unwrap();
            peer.until(|peer| (peer.channels[&1].bytes.len() == mux::FIRST_WINDOW + 1_000).then_some(())).unwrap();
        });
        victim.check("large answers with all the credit there is, and nothing read", |port| {
            let mut peer = port.connect();
            peer.send(hello(0)).unwrap();
            for _ in 0..90 {
                let channel = peer.ask("GET /large HTTP/1.1\r\nHost: app\r\n\r\n").unwrap();
                peer.send(credit(channel, u32::MAX - 65_536)).unwrap();
            }
            hold(Duration::from_secs(2));
            assert!(peer.takes.is_none(), "nothing was read");
        });
    });
}

#[test]
fn many_who_break_off_at_a_slow_service_do_not_end_the_trunk_of_the_others() {
    on_both_drivers(|driver| {
        let victim = Victim::new(driver, "");
        victim.check("a slow service whose callers give up", |port| {
            let mut peer = Peer::greeted(port.inbound, &port.attacker);
            let begun = Instant::now();
            let mut count = 0;
            while begun.elapsed() < Duration::from_secs(8) {
                let channels: Vec<u32> =
                    (0..10).map(|_| peer.ask("GET /stuck HTTP/1.1\r\nHost: app\r\n\r\n").unwrap()).collect();
                assert!(peer.read_for(Duration::from_millis(15)).unwrap(), "{count} in {:?}", begun.elapsed());
                channels.into_iter().for_each(|channel| peer.send(reset(channel)).unwrap());
                count += 10;
            }
            eprintln!("{count} given up");
            assert!(count > 800);
            assert_eq!(peer.get("/good").unwrap().text(), "good");
            assert!(begun.elapsed() < DEADLINE, "it does not wait for those that were given up");
        });
    });
}

#[test]
fn a_peer_that_goes_in_the_middle_of_everything_leaves_nothing() {
    on_both_drivers(|driver| {
        let victim = Victim::new(driver, "");
        victim.check("connections that are cut", |port| {
            for round in 0..20_usize {
                let mut peer = Peer::greeted(port.inbound, &port.attacker);
                for channel in 0..20 {
                    let asked = if channel % 2 == 0 {
                        peer.ask(post("/stuck"))
                    } else {
                        peer.ask("GET /large HTTP/1.1\r\nHost: app\r\n\r\n")
                    };
                    asked.unwrap();
                }
                match peer.read_for(Duration::from_millis(round as u64 * 2)) {
                    Ok(open) => assert!(open),
                    Err(error) => assert!(is_end(&error), "{error}"),
                }
                peer.cut();
            }
        });
        eventually("nothing is left", || {
            let metrics = victim.proxy.metrics();
            let left = metrics.sum("ringmesh_worker_requests_in_flight", &[]);
            (left == 0).then_some(())
        });
        eventually("no connection is left", || {
            (victim.proxy.metrics().sum("ringmesh_worker_connections", &[]) == 0).then_some(())
        });
    });
}
