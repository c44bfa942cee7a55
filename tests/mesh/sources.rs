//! Limits by source: who has many connections keeps nobody else out.

use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::tls::{client_config, over};
use ringmesh_tests::{Client, DEADLINE, Driver, Proxy, Service, eventually, on_both_drivers, ports};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

use crate::support::{forwarding, ringmesh};

const MAX: usize = 5;

/// A proxy of four workers before a service, with these keys.
fn limited(driver: Driver, app: &Service, keys: &str) -> (Proxy, SocketAddr) {
    let front = ports::free();
    let keys = format!("max_connections_per_source = {MAX}\n{keys}");
    (ringmesh(driver).workers(4).config(forwarding(front, &[app.address()], &keys, "")).start(), front)
}

/// A connection from 127.0.0.`source`.
fn from(source: u8, to: SocketAddr) -> TcpStream {
    let own = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, source), 0);
    let socket: OwnedFd = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &own).unwrap();
    connect(&socket, &to).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Whether a connection is served; else it was reset.
fn is_served(client: &mut Client) -> bool {
    let sent = client.try_send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
    sent.and_then(|()| client.try_response()).is_ok_and(|answer| answer.status() == 200)
}

/// Whether a connection on which nothing has come was reset.
fn is_reset(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    stream.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

fn wait_for_refusals(proxy: &Proxy, count: u64) {
    proxy.wait_for_metric("ringmesh_listener_connections_outcome_total", &[("reason", "source_limit")], count);
}

#[test]
fn a_source_has_as_many_connections_as_it_may_over_all_workers_and_its_neighbour_as_many_again() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (proxy, front) = limited(driver, &app, "");
        let mut served: Vec<Client> = Vec::new();
        let mut refused = 0;
        for _ in 0..4 * MAX {
            let mut client = Client::over(from(1, front));
            match is_served(&mut client) {
                true => served.push(client),
                false => refused += 1,
            }
        }
        assert_eq!((served.len(), refused), (MAX, 3 * MAX));
        wait_for_refusals(&proxy, refused as u64);
        assert!(proxy.log().contains("source_limit"), "who was refused is told");
        let mut neighbour: Vec<Client> = (0..MAX).map(|_| Client::over(from(2, front))).collect();
        assert!(neighbour.iter_mut().all(is_served));
        assert!(!is_served(&mut Client::over(from(2, front))));
        // Who has been served goes on being so, and a place that is given up is taken again.
        assert!(served.iter_mut().all(is_served));
        served.pop();
        served.push(eventually("the place is free", || {
            let mut client = Client::over(from(1, front));
            is_served(&mut client).then_some(client)
        }));
        assert!(!is_served(&mut Client::over(from(1, front))));
    });
}

#[test]
fn who_is_beyond_the_limit_is_reset_before_a_handshake_and_on_opaque_ports_too() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let front = ports::free();
        let keys =
            format!("max_connections_per_source = {MAX}\ntls = {{ certificate = \"shop.pem\", key = \"shop.key\" }}\n");
        let mut proxy = ringmesh(driver).config(forwarding(front, &[app.address()], &keys, "")).prepare();
        crate::edge::write(proxy.folder(), "shop", &Authority::new("x.example").server(&["shop.example"]));
        proxy.run();
        // They do not even begin a handshake, and count all the same. Which of them is the one too many, workers decide.
        let mut silent: Vec<TcpStream> = (0..=MAX).map(|_| from(1, front)).collect();
        let refused = eventually("one is reset", || silent.iter_mut().position(is_reset));
        silent.remove(refused);
        wait_for_refusals(&proxy, 1);
        assert!(!silent.iter_mut().any(is_reset), "the others stay");
        let mut neighbour = over(from(2, front), "shop.example", &client_config(None)).unwrap();
        assert_eq!(neighbour.get("shop.example", "/").text(), "hello");
        drop(silent);

        let raw = Service::sockets(|mut socket| {
            let _ = socket.read(&mut [0]);
        });
        let (proxy, front) = limited(driver, &raw, "protocol = \"tcp\"");
        let open: Vec<TcpStream> = (0..MAX).map(|_| from(1, front)).collect();
        eventually("all are passed on", || (raw.open() == MAX).then_some(()));
        assert_eq!(from(1, front).read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        wait_for_refusals(&proxy, 1);
        drop(open);
    });
}

#[test]
fn no_more_handshakes_are_under_way_than_may_be_and_those_that_are_over_do_not_count() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let front = ports::free();
        let keys = format!(
            "max_handshakes = {MAX}\nhandshake_timeout = \"60s\"\ntls = {{ certificate = \"shop.pem\", key = \"shop.key\" }}\n"
        );
        let mut proxy = ringmesh(driver).config(forwarding(front, &[app.address()], &keys, "")).prepare();
        crate::edge::write(proxy.folder(), "shop", &Authority::new("x.example").server(&["shop.example"]));
        proxy.run();
        let tls = client_config(None);
        let shake = || over(from(1, front), "shop.example", &tls);
        let mut done: Vec<_> = (0..2 * MAX).map(|_| shake().unwrap()).collect();
        let mut silent: Vec<TcpStream> = (0..=MAX).map(|_| from(2, front)).collect();
        let refused = eventually("one is reset", || silent.iter_mut().position(is_reset));
        silent.remove(refused);
        let count = |count| {
            let labels = [("reason", "handshake_limit")];
            proxy.wait_for_metric("ringmesh_listener_connections_outcome_total", &labels, count);
        };
        count(1);
        assert!(shake().is_err());
        count(2);
        for client in &mut done {
            assert_eq!(client.get("shop.example", "/").text(), "hello");
        }
        // Who goes away makes room.
        silent.pop();
        let mut next = eventually("there is room", || shake().ok());
        assert_eq!(next.get("shop.example", "/").text(), "hello");
    });
}

#[test]
fn whoever_a_believed_proxy_names_is_the_source_and_one_of_ipv6_has_a_whole_network() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (proxy, front) = limited(driver, &app, "proxy_protocol = { from = [\"127.0.0.1\"], others = \"serve\" }");
        let naming = |family: &str, client: &str, own: &str| {
            let mut connection = Client::connect(front);
            connection.send(format!("PROXY {family} {client} {own} 40000 443\r\n"));
            is_served(&mut connection).then_some(connection)
        };
        let v4 = |client: &str| naming("TCP4", client, "198.51.100.1");
        let v6 = |client: &str| naming("TCP6", client, "2001:db8::1");
        let mut open: Vec<Client> = (0..MAX).map(|_| v4("192.0.2.7").expect("within the limit")).collect();
        assert!(v4("192.0.2.7").is_none());
        open.extend(v4("192.0.2.8"));
        assert_eq!(open.len(), MAX + 1, "another client of the same proxy");
        let network = |number: usize| format!("2001:db8:0:1::{number:x}");
        open.extend((1..=MAX).map(|number| v6(&network(number)).expect("within the limit")));
        assert!(v6(&network(1000)).is_none(), "another address of the same customer");
        open.extend(v6("2001:db8:0:2::1"));
        assert_eq!(open.len(), 2 * MAX + 2, "another customer");
        wait_for_refusals(&proxy, 2);
        // Whose header is not believed is who it is.
        let mut itself = Client::over(from(2, front));
        assert!(is_served(&mut itself));
    });
}

#[test]
fn a_crowd_of_one_source_never_has_more_connections_than_it_may() {
    on_both_drivers(|driver| {
        let raw = Service::sockets(|mut socket| {
            let _ = socket.read(&mut [0]);
        });
        let (proxy, front) = limited(driver, &raw, "protocol = \"tcp\"");
        let crowd = |_| thread::spawn(move || (0..10).map(|_| from(1, front)).collect::<Vec<_>>());
        let crowd: Vec<_> = (0..8).map(crowd).collect();
        let kept: Vec<_> = crowd.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        wait_for_refusals(&proxy, (kept.len() - MAX) as u64);
        eventually("the others are passed on", || (raw.open() == MAX).then_some(()));
        assert_eq!(raw.accepted(), MAX, "nobody was let in who went away again");
        drop(kept);
        eventually("all places are free again", || {
            let open: Vec<_> = (0..MAX).map(|_| from(1, front)).collect();
            let taken = raw.open() == MAX;
            drop(open);
            taken.then_some(())
        });
    });
}

#[test]
fn an_edited_limit_is_true_of_those_who_are_connected_already() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (mut proxy, front) = limited(driver, &app, "");
        let mut open: Vec<Client> = (0..MAX).map(|_| Client::over(from(1, front))).collect();
        assert!(open.iter_mut().all(is_served));
        let config = |limit: &str| {
            let keys = format!("max_connections_per_source = {limit}\n");
            forwarding(front, &[app.address()], &keys, "")
        };
        proxy.reconfigure(&config("6"));
        open.push(Client::over(from(1, front)));
        assert!(open.iter_mut().all(is_served));
        assert!(!is_served(&mut Client::over(from(1, front))));
        proxy.reconfigure(&config("\"off\""));
        open.push(Client::over(from(1, front)));
        assert!(open.iter_mut().all(is_served));
    });
}
