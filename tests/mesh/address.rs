//! Kinds of address: IPv4, IPv6 and both at once, and Unix sockets, as listener and as endpoint.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use ringmesh_tests::service::ok;
use ringmesh_tests::{Client, DEADLINE, Driver, Proxy, Service, eventually, on_both_drivers, ports};

use crate::support::{Program, forwarding, pattern, ringmesh};

/// A proxy with the socket `app.sock` in its folder, before a service.
fn behind_socket(driver: Driver, app: SocketAddr, listener_keys: &str) -> (Proxy, PathBuf) {
    let mut proxy = ringmesh(driver).prepare();
    let path = proxy.folder().join("app.sock");
    proxy.write(&at(&format!("unix:{}", path.display()), &app.to_string(), listener_keys));
    proxy.run();
    (proxy, path)
}

/// A config with one listener and one endpoint at these addresses.
fn at(bind: &str, endpoint: &str, listener_keys: &str) -> String {
    format!(
        "[[listener]]\nname = \"front\"\nbind = \"{bind}\"\nservice = \"app\"\n{listener_keys}\n\
         [[service]]\nname = \"app\"\nendpoints = [\"{endpoint}\"]\n"
    )
}

fn connect(path: &Path) -> io::Result<Client<UnixStream>> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(Client::over(stream))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[track_caller]
fn curl(words: &[&str]) -> String {
    let output = Command::new("curl").args(["--silent", "--show-error", "--max-time", "10"]).args(words).output();
    let output = output.expect("curl; Debian: apt-get install curl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The client's address in logs of a process of ours.
fn own_client() -> String {
    format!("unix:pid={},uid={}", std::process::id(), rustix::process::getuid().as_raw())
}

#[test]
fn curl_reaches_a_service_through_a_unix_socket_and_the_log_says_which_process_called() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (proxy, path) = behind_socket(driver, app.address(), "");
        assert_eq!(curl(&["--unix-socket", path.to_str().unwrap(), "http://app/"]), "hello");
        let line = proxy.wait_for_access("curl's", |line| line["reason"] == "ok");
        let client = line["client"].as_str().unwrap();
        let uid = rustix::process::getuid().as_raw();
        assert!(client.starts_with("unix:pid=") && client.ends_with(&format!(",uid={uid}")), "{line}");
        assert_eq!(connect(&path).unwrap().get("app", "/").text(), "hello");
        proxy.wait_for_access("ours", |line| line["client"] == own_client().as_str());
        assert_eq!(proxy.status()["listeners"][0]["bind"], format!("unix:{}", path.display()));
    });
}

#[test]
fn a_socket_without_a_file_is_listened_on_and_called() {
    on_both_drivers(|driver| {
        let app = Service::http(|request| ok(request.head.request().1));
        let front = ports::free();
        let name = format!("ringmesh-{}-{driver}", front.port());
        let config = at(&format!("unix:@{name}"), &app.address().to_string(), "")
            + &at(&front.to_string(), &format!("unix:@{name}"), "")
                .replace("\"front\"", "\"tcp\"")
                .replace("\"app\"", "\"abstract\"");
        let mut proxy = ringmesh(driver).config(config).start();
        assert_eq!(curl(&["--abstract-unix-socket", &name, "http://app/direct"]), "/direct");
        let mut client = Client::connect(front);
        assert_eq!(client.get("app", "/through").text(), "/through");
        let dataplane = proxy.dataplane_pid();
        proxy.kill_control();
        proxy.run();
        assert_eq!(proxy.dataplane_pid(), dataplane);
        assert_eq!(client.get("app", "/after").text(), "/after");
        assert_eq!(curl(&["--abstract-unix-socket", &name, "http://app/direct"]), "/direct");
        proxy.kill_dataplane();
        eventually("the next data plane serves it", || {
            let answer = Command::new("curl")
                .args(["--silent", "--max-time", "10", "--abstract-unix-socket"])
                .args([&name, "http://app/x"])
                .output();
            (answer.unwrap().stdout == b"/x").then_some(())
        });
    });
}

#[test]
fn opaque_bytes_go_whole_from_a_unix_socket_to_another() {
    on_both_drivers(|driver| {
        let mut proxy = ringmesh(driver).prepare();
        let (front, back) = (proxy.folder().join("front.sock"), proxy.folder().join("back.sock"));
        let listener = UnixListener::bind(&back).unwrap();
        let echo = std::thread::spawn(move || {
            for _ in 0..3 {
                let (mut stream, _) = listener.accept().unwrap();
                std::thread::spawn(move || {
                    let mut copy = stream.try_clone().unwrap();
                    let _ = io::copy(&mut copy, &mut stream);
                    let _ = stream.shutdown(std::net::Shutdown::Write);
                });
            }
        });
        let address = |path: &Path| format!("unix:{}", path.display());
        proxy.write(&at(&address(&front), &address(&back), "protocol = \"tcp\""));
        proxy.run();
        for bytes in [1, 100_000, 8_000_000] {
            let mut stream = UnixStream::connect(&front).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let mut writer = stream.try_clone().unwrap();
            let writing = std::thread::spawn(move || {
                writer.write_all(&pattern(bytes)).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut back = Vec::new();
            stream.read_to_end(&mut back).unwrap();
            writing.join().unwrap();
            assert!(back == pattern(bytes), "of {bytes} bytes {} came back, or others", back.len());
        }
        echo.join().unwrap();
        let line = proxy.wait_for_access("the connections", |line| line["reason"] == "ok");
        assert_eq!(line["client"], own_client().as_str());
        assert_eq!(line["endpoint"], address(&back).as_str());
    });
}

#[test]
fn an_endpoint_on_a_unix_socket_that_comes_and_goes_is_found_again() {
    on_both_drivers(|driver| {
        let mut proxy = ringmesh(driver).prepare();
        let (front, back) = (ports::free(), proxy.folder().join("back.sock"));
        let config = at(&front.to_string(), &format!("unix:{}", back.display()), "");
        proxy.write(&config);
        proxy.run();
        assert_eq!(Client::connect(front).get("app", "/").status(), 503, "nobody listens there yet");
        let serve = |text: &'static str| {
            let _ = fs::remove_file(&back);
            let listener = UnixListener::bind(&back).unwrap();
            std::thread::spawn(move || {
                let (stream, _) = listener.accept().unwrap();
                drop(listener);
                let mut client = Client::over(stream);
                client.try_head().unwrap();
                client.try_send(ok(text)).unwrap();
            })
        };
        for text in ["first", "second"] {
            let server = serve(text);
            eventually("it is found", || {
                let answer = Client::connect(front).get("app", "/");
                (answer.status() == 200).then(|| assert_eq!(answer.text(), text))
            });
            server.join().unwrap();
        }
    });
}

#[test]
fn who_may_connect_is_as_the_config_says_from_the_first_moment_and_after_an_edit() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (mut proxy, path) = behind_socket(driver, app.address(), "permissions = { mode = \"0600\" }");
        assert_eq!(mode(&path), 0o600);
        assert!(fs::metadata(&path).unwrap().file_type().is_socket());
        let inode = fs::metadata(&path).unwrap().ino();
        let config = |keys: &str| at(&format!("unix:{}", path.display()), &app.address().to_string(), keys);
        let gid = rustix::process::getgid().as_raw();
        proxy.reconfigure(&config(&format!("permissions = {{ mode = \"0666\", group = \"{gid}\" }}")));
        assert_eq!(mode(&path), 0o666);
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "it is the same socket");
        proxy.kill_control();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        proxy.run();
        assert_eq!(mode(&path), 0o666, "the next control sees to it");
        assert_eq!(connect(&path).unwrap().get("app", "/").text(), "hello");

        proxy.write(&config("permissions = { owner = \"nobody-of-that-name\" }"));
        let line = proxy.wait_for_log(&["nobody-of-that-name"]);
        assert!(line.contains("listener `front`: there is no user") && line.contains("/etc/passwd"), "{line}");
        assert_eq!(mode(&path), 0o666);
    });
}

#[test]
fn a_path_that_cannot_be_bound_is_named_with_its_cause() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let check = |path: &Path, causes: &[&str]| {
            let mut proxy = ringmesh(driver)
                .config(at(&format!("unix:{}", path.display()), &app.address().to_string(), ""))
                .prepare();
            proxy.run_control();
            assert_eq!(proxy.wait(DEADLINE).code(), Some(1));
            let mut words = vec!["listener `front`", path.to_str().unwrap()];
            words.extend(causes);
            proxy.wait_for_log(&words);
            assert!(proxy.dataplane_pids().is_empty());
        };
        let folder = tempfile::tempdir().unwrap();
        check(&folder.path().join("no/such.sock"), &["no/such.sock: the folder", "does not exist; create it"]);
        let file = folder.path().join("file");
        fs::write(&file, "precious").unwrap();
        check(&file, &["exists and is not a socket; remove it or choose another path"]);
        assert_eq!(fs::read(&file).unwrap(), b"precious");
        let live = folder.path().join("live.sock");
        let _other = UnixListener::bind(&live).unwrap();
        check(&live, &["is in use by `", &format!("pid {}", std::process::id())]);
        assert!(UnixStream::connect(&live).is_ok(), "and goes on listening");
    });
}

#[test]
fn a_folder_without_permission_is_named() {
    // Root may write everywhere, and so another user has to try.
    let as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
    let as_nobody: &[&str] = if rustix::process::getuid().is_root() { &as_nobody } else { &[] };
    on_both_drivers(|driver| {
        let forbidden = tempfile::tempdir().unwrap();
        fs::set_permissions(forbidden.path(), fs::Permissions::from_mode(0o555)).unwrap();
        let config = at(&format!("unix:{}/app.sock", forbidden.path().display()), "127.0.0.1:1", "");
        let program = Program::new().for_everybody();
        let mut proxy = program.builder(driver).config(config).launched_by(as_nobody).prepare();
        fs::set_permissions(proxy.folder(), fs::Permissions::from_mode(0o777)).unwrap();
        proxy.run_control();
        assert_eq!(proxy.wait(DEADLINE).code(), Some(1));
        proxy.wait_for_log(&["listener `front`", "app.sock", "no permission", "must be able to write to"]);
    });
}

#[test]
fn what_is_left_of_a_socket_is_replaced_and_nothing_is_left_at_the_end() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (mut proxy, path) = behind_socket(driver, app.address(), "");
        let mut client = connect(&path).unwrap();
        assert_eq!(client.get("app", "/").text(), "hello");
        // The data plane alone: who connects meanwhile waits for the next one.
        proxy.kill_dataplane();
        assert_eq!(connect(&path).unwrap().get("app", "/").text(), "hello");
        // Both: the file stays, and is replaced.
        proxy.kill_control();
        proxy.kill_dataplane();
        // On io_uring the kernel takes the socket apart a little later than its process: the next one waits for that.
        proxy.run();
        assert_eq!(connect(&path).unwrap().get("app", "/").text(), "hello");
        // An edit takes it away, and another brings it back.
        let front = ports::free();
        let socket = at(&format!("unix:{}", path.display()), &app.address().to_string(), "");
        proxy.reconfigure(&forwarding(front, &[app.address()], "", ""));
        eventually("its file is gone", || (!path.exists()).then_some(()));
        proxy.reconfigure(&socket);
        assert_eq!(connect(&path).unwrap().get("app", "/").text(), "hello");
        proxy.signal(rustix::process::Signal::TERM);
        assert_eq!(proxy.wait(DEADLINE).code(), Some(0));
        assert!(!path.exists());
    });
}

#[test]
fn a_proxy_on_a_unix_socket_names_its_client_by_a_header() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (proxy, path) = behind_socket(driver, app.address(), "proxy_protocol = { from = [\"unix\"] }");
        let mut client = connect(&path).unwrap();
        client.send("PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n");
        assert_eq!(client.get("app", "/").text(), "hello");
        proxy.wait_for_access("the client's", |line| line["client"] == "192.0.2.7:56324");
        let mut client = connect(&path).unwrap();
        client.send("PROXY UNKNOWN\r\n");
        assert_eq!(client.get("app", "/").text(), "hello");
        proxy.wait_for_access("ours", |line| line["client"] == own_client().as_str());
        let mut client = connect(&path).unwrap();
        client.send("GET / HTTP/1.1\r\n\r\n").expect_end();
        proxy.wait_for_log(&["proxy_header", &own_client()]);
    });
}

#[test]
fn an_endpoint_is_told_that_a_unix_client_has_no_address() {
    on_both_drivers(|driver| {
        let app = Service::conversing(|talk| {
            let line = talk.exactly(b"PROXY UNKNOWN\r\n".len())?;
            assert_eq!(line, b"PROXY UNKNOWN\r\n");
            while talk.request()?.is_some() {
                talk.send(ok("hello"))?;
            }
            Ok(())
        });
        let mut proxy = ringmesh(driver).prepare();
        let path = proxy.folder().join("app.sock");
        let config =
            at(&format!("unix:{}", path.display()), &app.address().to_string(), "") + "proxy_protocol = \"v1\"\n";
        proxy.write(&config);
        proxy.run();
        assert_eq!(connect(&path).unwrap().get("app", "/").text(), "hello");
    });
}

#[test]
fn the_port_of_all_addresses_is_reached_by_both_versions_of_ip_unless_it_is_kept_to_one() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let port = ports::free().port();
        let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let four = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let six = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        let both = forwarding(all, &[app.address()], "", "");
        let mut proxy = ringmesh(driver).config(&both).start();
        for to in [four, six] {
            let mut client = Client::connect(to);
            let own = client.socket().local_addr().unwrap().to_string();
            assert_eq!(client.get("app", "/").text(), "hello");
            proxy.wait_for_access("its client", |line| line["client"] == own.as_str());
        }
        proxy.reconfigure(&forwarding(all, &[app.address()], "ipv6_only = true", ""));
        assert_eq!(Client::connect(six).get("app", "/").text(), "hello");
        eventually("IPv4's port is closed", || Client::try_connect(four).is_err().then_some(()));
        proxy.reconfigure(&both);
        assert_eq!(Client::connect(four).get("app", "/").text(), "hello");
        let dataplane = proxy.dataplane_pid();
        proxy.kill_control();
        proxy.run();
        assert_eq!(proxy.dataplane_pid(), dataplane);
        for to in [four, six] {
            assert_eq!(Client::connect(to).get("app", "/").text(), "hello", "{to} after an adoption");
        }
    });
}

#[test]
fn a_service_has_endpoints_of_all_kinds_at_once() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let six = std::net::TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap();
        let front = ports::free();
        let mut proxy = ringmesh(driver).prepare();
        let path = proxy.folder().join("inner.sock");
        let config = format!(
            "[[listener]]\nname = \"front\"\nbind = \"{front}\"\nservice = \"all\"\n\
             [[service]]\nname = \"all\"\nbalance = \"round_robin\"\n\
             endpoints = [\"{app}\", \"{six}\", \"unix:{inner}\", \"localhost:{port}\"]\n\
             [[listener]]\nname = \"six\"\nbind = \"{six}\"\nservice = \"app\"\n\
             [[listener]]\nname = \"unix\"\nbind = \"unix:{inner}\"\nservice = \"app\"\n\
             [[service]]\nname = \"app\"\nendpoints = [\"{app}\"]\n",
            app = app.address(),
            inner = path.display(),
            port = app.address().port(),
        );
        proxy.write(&config);
        proxy.run();
        let mut client = Client::connect(front);
        for _ in 0..40 {
            assert_eq!(client.get("app", "/").text(), "hello");
        }
        let inner = format!("unix:{}", path.display());
        for endpoint in [app.address().to_string(), six.to_string(), inner] {
            proxy.wait_for_access(&endpoint, |line| line["service"] == "all" && line["endpoint"] == endpoint.as_str());
        }
        let status = proxy.status();
        let names: Vec<&str> =
            status["names"].as_array().unwrap().iter().map(|name| name["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["localhost"], "an address is no name");
    });
}
