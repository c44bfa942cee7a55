//! Binding ports and paths: nothing is shared by accident, and the owner is named.
#![allow(clippy::unwrap_used, reason = "a panic is a test's report")]

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use ringmesh_ring::socket::{
    Access, BindError, Families, bind_group, bind_group_of, bind_unix, local_path, raise_descriptor_limit,
};

fn address_of(listener: &OwnedFd) -> SocketAddr {
    socket2::SockRef::from(listener).local_addr().unwrap().as_socket().unwrap()
}

#[test]
fn group_shares_one_port_and_the_kernel_spreads_clients() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let group = bind_group(address.parse().unwrap(), 4).unwrap();
        let port = address_of(&group[0]);
        assert!(group.iter().all(|member| address_of(member) == port));
        let clients: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(port).unwrap()).collect();
        let mut served = 0;
        for member in group {
            let member = TcpListener::from(member);
            let mine = std::iter::from_fn(|| member.accept().ok()).count();
            assert!(mine > 10, "a member had {mine} of {} clients", clients.len());
            served += mine;
        }
        assert_eq!(served, clients.len());
    }
}

#[test]
fn busy_port_is_refused_and_its_owner_named() {
    let check = |taken: SocketAddr| match bind_group(taken, 2) {
        Err(BindError::InUse { address, owner }) => {
            assert_eq!((address, owner.map(|owner| owner.pid)), (taken, Some(std::process::id())));
        }
        other => panic!("{other:?}"),
    };
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    check(plain.local_addr().unwrap());
    let group = bind_group("127.0.0.1:0".parse().unwrap(), 2).unwrap();
    check(address_of(&group[0]));
    let message = bind_group(address_of(&group[0]), 1).unwrap_err().to_string();
    assert!(message.contains("in use by `") && message.contains(&std::process::id().to_string()), "{message}");
}

#[test]
fn address_that_is_not_ours_is_an_error_with_its_name() {
    let message = bind_group("192.0.2.1:1".parse().unwrap(), 1).unwrap_err().to_string();
    assert!(message.starts_with("cannot listen on 192.0.2.1:1: "), "{message}");
    assert!(message.ends_with("; no interface here has this address"), "{message}");
}

#[test]
fn unix_path_is_bound_unless_somebody_uses_it() {
    let directory = std::env::temp_dir().join(format!("ringmesh-bind-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("socket");

    let listener = bind_unix(&path, &Access::default()).unwrap();
    UnixStream::connect(&path).unwrap();
    let message = bind_unix(&path, &Access::default()).unwrap_err().to_string();
    assert!(
        message.contains("is in use by `") && message.contains(&format!("pid {}", std::process::id())),
        "{message}"
    );
    // Nobody listens any more, but the file is still there.
    drop(listener);
    let listener = bind_unix(&path, &Access::default()).unwrap();
    UnixStream::connect(&path).unwrap();
    drop(listener);

    let file = directory.join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(bind_unix(&file, &Access::default()), Err(BindError::NotASocket { .. })));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_path_has_its_mode_before_anybody_can_connect_and_says_what_is_wrong_with_it() {
    let directory = std::env::temp_dir().join(format!("ringmesh-access-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("socket");
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    for wanted in [0o600, 0o660, 0o666, 0o777] {
        let listener = bind_unix(&path, &Access { mode: Some(wanted), ..Access::default() }).unwrap();
        assert_eq!(mode(), wanted, "whatever the umask is");
        assert_eq!(local_path(&listener).as_deref(), Some(&*path));
    }
    let nowhere = directory.join("no/such/socket");
    let message = bind_unix(&nowhere, &Access::default()).unwrap_err().to_string();
    assert_eq!(
        message,
        format!(
            "cannot listen on {}: the folder {} does not exist; create it",
            nowhere.display(),
            nowhere.parent().unwrap().display()
        )
    );
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_name_without_a_file_is_bound_once_and_free_again_afterwards() {
    let name = std::path::PathBuf::from(format!("@ringmesh-bind-{}", std::process::id()));
    let listener = bind_unix(&name, &Access::default()).unwrap();
    assert_eq!(local_path(&listener), Some(name.clone()));
    assert!(matches!(bind_unix(&name, &Access::default()), Err(BindError::PathInUse { .. })));
    drop(listener);
    drop(bind_unix(&name, &Access::default()).unwrap());
}

#[test]
fn ip_version_4_comes_to_the_unspecified_address_of_version_6_unless_it_is_kept_out() {
    let from_4 = |group: &[OwnedFd]| TcpStream::connect(("127.0.0.1", address_of(&group[0]).port())).is_ok();
    let from_6 = |group: &[OwnedFd]| TcpStream::connect(("::1", address_of(&group[0]).port())).is_ok();
    let all = "[::]:0".parse().unwrap();
    let both = bind_group(all, 2).unwrap();
    assert!(from_4(&both) && from_6(&both));
    let own = bind_group_of(all, 2, Families::Own).unwrap();
    assert!(!from_4(&own) && from_6(&own));
    let port = address_of(&own[0]).port();
    let four = bind_group(([0, 0, 0, 0], port).into(), 1).expect("IPv4's port is free beside it");
    assert!(from_4(&four));
    let four = bind_group("127.0.0.1:0".parse().unwrap(), 1).unwrap();
    let taken = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, address_of(&four[0]).port()));
    assert!(matches!(bind_group(taken, 1), Err(BindError::InUse { owner: Some(_), .. })));
}

#[test]
fn descriptor_limit_is_raised_to_the_hard_one() {
    let limit = raise_descriptor_limit();
    assert_eq!(limit.soft, limit.hard);
}
