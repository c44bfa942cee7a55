//! The same over real sockets, on every driver and flag set that works here.

use std::cell::Cell;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use ringmesh_ring::setup::probe_all;
use ringmesh_ring::{Instant, Sockets, run, spawn, yield_now};

use super::super::limits::MAX_HANDSHAKE_STEPS_PER_TURN;
use super::*;
use ringmesh_ring::Socket;

fn on_every_driver(test: impl AsyncFn()) {
    for grant in probe_all() {
        println!("{}", grant.driver);
        run(&grant, test()).unwrap();
    }
}

fn pair() -> (Socket, Socket) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    let socket = |stream: TcpStream| Socket::from_fd(OwnedFd::from(stream)).unwrap();
    (socket(near), socket(far))
}

fn soon() -> Stop {
    let stop = Sockets.stop();
    stop.set_deadline(Some(Instant::now() + Duration::from_secs(60)));
    stop
}

#[test]
fn data_passes_both_ways_over_sockets() {
    on_every_driver(async || {
        let stop = soon();
        let (client, server) = shake(pair(), sound(), &stop).await;
        let (client, server) = (client.unwrap(), server.unwrap());
        assert_eq!((client.1.id.unwrap().as_str(), server.1.id.unwrap().as_str()), (PAY, WEB));
        data::exchange(&(client.0, server.0), 1_048_576, 65_536, &stop).await;
    });
}

#[test]
fn a_refused_client_is_told_over_sockets() {
    on_every_driver(async || {
        let (ca, stop) = (Authority::new(), soon());
        let expired = ca.issue(WEB, super::super::testing::expire);
        let configs = (client_unchecked(&expired, PAY), server_unchecked(&ca.svid(PAY)));
        let (client, server) = shake(pair(), configs, &stop).await;
        assert_eq!(server.err().unwrap().label(), "expired");
        let (client, _) = client.unwrap();
        let _ = send(&client, b"GET / HTTP/1.1\r\n\r\n", &stop).await;
        match receive(&client, &stop).await {
            Err(ringmesh_ring::Error::Io(error)) => assert_eq!(Refused::inside(&error).unwrap().label(), "peer_alert"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_silent_client_is_refused_at_the_deadline_over_sockets() {
    on_every_driver(async || {
        let (_near, far) = pair();
        let stop = Sockets.stop();
        stop.set_deadline(Some(Instant::now() + Duration::from_millis(50)));
        assert_eq!(accept(far, sound().1, &stop).await.err().unwrap().label(), "deadline");
    });
}

#[test]
fn close_notify_finds_its_way_past_a_full_socket() {
    on_every_driver(async || {
        let stop = soon();
        let (client, server) = shake(pair(), sound(), &stop).await;
        let (client, server) = (client.unwrap().0, server.unwrap().0);
        let write = async {
            for _ in 0..200 {
                send(&client, &[7; 60_000], &stop).await.unwrap();
            }
            client.shutdown_write().unwrap();
            drop(client);
        };
        let (received, ()) = join(receive_all(&server, &stop), write).await;
        assert_eq!(received.unwrap().len(), 200 * 60_000);
    });
}

#[test]
fn a_storm_of_handshakes_leaves_room_for_others() {
    const HANDSHAKES: u32 = 64;
    on_every_driver(async || {
        let (open, configs) = (Rc::new(Cell::new(HANDSHAKES)), sound());
        for _ in 0..HANDSHAKES {
            let (open, configs) = (open.clone(), configs.clone());
            spawn(async move {
                let (client, server) = shake(pair(), configs, &soon()).await;
                assert!(client.is_ok() && server.is_ok());
                open.set(open.get() - 1);
            });
        }
        let ((near, far), stop, mut trips) = (pair(), soon(), 0);
        while open.get() > 0 {
            send(&near, b"?", &stop).await.unwrap();
            receive(&far, &stop).await.unwrap();
            send(&far, b"!", &stop).await.unwrap();
            receive(&near, &stop).await.unwrap();
            yield_now().await;
            trips += 1;
        }
        // Four steps a handshake; a trip, its sends and receives, takes a handful of turns.
        let turns = 4 * HANDSHAKES / MAX_HANDSHAKE_STEPS_PER_TURN;
        assert!(trips >= turns / 10, "{trips} round trips in at least {turns} turns");
    });
}
