//! What a proxy costs that has nothing to do: memory, wake-ups, and what each idle connection adds.

use std::time::Duration;

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::process::{self, Role};
use ringmesh_tests::tls::{client_config, connect};
use ringmesh_tests::{Client, Driver, Proxy, Service, hold, on_both_drivers, ports};

use crate::support::{DOMAIN, Program, forwarding, identity};

const MIB: u64 = 1024 * 1024;

/// All processes of a proxy.
fn pids(proxy: &Proxy) -> Vec<u32> {
    [Role::Run, Role::Dataplane].iter().flat_map(|role| proxy.pids(*role)).collect()
}

/// Proportional set sizes of control and data plane.
fn sizes(proxy: &Proxy) -> Vec<u64> {
    pids(proxy).into_iter().map(process::proportional_set_size).collect()
}

/// A sidecar with mutual TLS on both sides, whose ports have both been used: its own inbound port, and an outbound one that
/// leads there.
fn sidecar(program: &Program, driver: Driver, app: &Service) -> Proxy {
    let authority = Authority::new(DOMAIN);
    let (inbound, outbound) = (ports::free(), ports::free());
    let config = format!(
        "{}[[listener]]\nname = \"inbound\"\nbind = \"{inbound}\"\nmtls = \"strict\"\nservice = \"app\"\n\
         [[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n\
         [[listener]]\nname = \"outbound\"\nbind = \"{outbound}\"\nservice = \"self\"\n\
         [[service]]\nname = \"self\"\npeer = \"web\"\nendpoints = [\"{inbound}\"]\n",
        identity("web"),
        app.address()
    );
    let mut proxy = program.builder(driver).config(config).prepare();
    authority.svid("web").write(&proxy.folder().join("svid"));
    proxy.run();
    assert_eq!(Client::connect(outbound).get("app", "/").text(), "hello");
    proxy
}

#[test]
fn an_idle_sidecar_with_two_workers_takes_less_than_25_mib_and_wakes_up_at_most_five_times_a_second() {
    const WATCHED: Duration = Duration::from_secs(10);
    const WAKE_UPS: u64 = 5 * WATCHED.as_secs();
    let app = Service::saying("hello");
    let programs = Driver::ALL.map(|driver| (driver, Program::new()));
    let sidecars = programs.each_ref().map(|(driver, program)| (driver, sidecar(program, *driver, &app)));
    // Whatever it still had to do.
    hold(Duration::from_secs(2));
    let threads =
        |proxy: &Proxy| -> Vec<(String, u64)> { pids(proxy).into_iter().flat_map(process::threads).collect() };
    let before = sidecars.each_ref().map(|(_, proxy)| threads(proxy));
    hold(WATCHED);
    for ((driver, proxy), before) in sidecars.iter().zip(before) {
        let woken: Vec<(String, u64)> =
            threads(proxy).into_iter().zip(before).map(|((name, after), (_, before))| (name, after - before)).collect();
        let sum: u64 = woken.iter().map(|(_, times)| times).sum();
        let sizes = sizes(proxy);
        let mib: Vec<f64> = sizes.iter().map(|size| *size as f64 / MIB as f64).collect();
        eprintln!(
            "idle on {driver}: PSS of control and data plane {mib:.1?} MiB; {:.1} wake-ups a second: {woken:?}",
            sum as f64 / WATCHED.as_secs_f64()
        );
        assert_eq!(sizes.len(), 2, "control and data plane");
        assert!(sum <= WAKE_UPS, "{driver}: {sum} wake-ups in {WATCHED:?}: {woken:?}");
        assert!(sizes.iter().sum::<u64>() < 25 * MIB, "{driver}: {mib:.1?} MiB");
    }
}

/// How much larger the data plane has become by each of so many connections, in bytes.
fn cost_of_each(proxy: &Proxy, connections: usize, before: u64) -> f64 {
    let after = process::proportional_set_size(proxy.dataplane_pid());
    after.saturating_sub(before) as f64 / connections as f64
}

#[test]
fn an_idle_connection_that_has_been_used_holds_no_buffer() {
    const CONNECTIONS: usize = 1_000;
    on_both_drivers(|driver| {
        let program = Program::new();
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let (front, inbound) = (ports::free(), ports::free());
        let config = format!(
            "{}{}[[listener]]\nname = \"inbound\"\nbind = \"{inbound}\"\nmtls = \"strict\"\nservice = \"app\"\n",
            identity("web"),
            forwarding(front, &[app.address()], "", "")
        );
        let mut proxy = program.builder(driver).without_access_log().config(config).prepare();
        authority.svid("web").write(&proxy.folder().join("svid"));
        proxy.run();
        let svid = client_config(Some(&authority.svid("caller")));
        let size = || process::proportional_set_size(proxy.dataplane_pid());

        // What is made once is not a connection's cost.
        assert_eq!(Client::connect(front).get("app", "/").text(), "hello");
        assert_eq!(connect(inbound, &svid).unwrap().get("app", "/").text(), "hello");
        let before = size();
        let plain: Vec<Client> = (0..CONNECTIONS)
            .map(|_| {
                let mut client = Client::connect(front);
                assert_eq!(client.get("app", "/").text(), "hello");
                client
            })
            .collect();
        let each_plain = cost_of_each(&proxy, CONNECTIONS, before);
        drop(plain);

        let before = size();
        let secured: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                let mut client = connect(inbound, &svid).unwrap();
                assert_eq!(client.get("app", "/").text(), "hello");
                client
            })
            .collect();
        let each_secured = cost_of_each(&proxy, CONNECTIONS, before);
        drop(secured);
        eprintln!(
            "on {driver}: an idle connection takes {:.2} KiB in the clear, {:.2} KiB with mutual TLS",
            each_plain / 1024.0,
            each_secured / 1024.0
        );
        // A buffer is 16 KiB.
        assert!(each_plain < 4.0 * 1024.0, "{driver}: {each_plain} bytes in the clear");
        assert!(each_secured < 16.0 * 1024.0, "{driver}: {each_secured} bytes with mutual TLS");
    });
}
