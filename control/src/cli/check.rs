//! `ringmesh check`: what is wrong with a config, and what the machine grants.

use std::fmt::Write;
use std::path::PathBuf;

use ringmesh_model::resolve;
use ringmesh_model::runtime::Role;
use ringmesh_model::snapshot::{Address, Mtls, Object};
use ringmesh_model::wire::Pin;
use ringmesh_ring::setup;
use ringmesh_ring::socket::owner_of_port;
use rustix::process::{Resource, getrlimit};

use super::{Failure, print};
use crate::identity::Date;
use crate::machine;
use crate::source::Files;

const AFTER_HELP: &str = "\
Prints all that is wrong, with file, line and key, or a short summary.
Nothing is bound or started.

Examples:
  ringmesh check sidecar.toml
  ringmesh check sidecar.toml && ringmesh run -c sidecar.toml

Exit codes:
  0  the config can be used
  1  the file is right, but the machine does not grant what it demands, or a
     listener's certificate has ended
  2  the config is wrong";

/// Says what is wrong with a config, or sums it up, with what this machine grants
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// The config file
    file: PathBuf,
}

pub(super) fn run(arguments: &Args) -> Result<(), Failure> {
    let (files, fault) = Files::read(&arguments.file).map_err(|error| Failure::Wrong(error.to_string()))?;
    let mut text = String::new();
    describe(&files, &mut text).expect("a string takes everything");
    let driver = setup::probe(machine::wish(files.config.runtime.driver));
    let machine = describe_machine(&files, driver.as_ref().ok());
    print(&text)?;
    print(&machine)?;
    driver?;
    fault.map_or(Ok(()), |fault| Err(fault.into()))
}

fn describe(files: &Files, text: &mut String) -> std::fmt::Result {
    let config = &files.config;
    writeln!(text, "{}: good", config.file)?;
    let Ok(snapshot) = files.resolve(&resolve::Answers::new()) else { return Ok(()) };
    let workload = &config.workload.name;
    match &files.credentials.identity {
        Some(identity) => {
            writeln!(text, "  workload    {workload}, {}, until {}", identity.id, Date(identity.expires.cast_signed()))?
        }
        None => writeln!(text, "  workload    {workload}, no identity")?,
    }
    let (mut listeners, mut services, mut endpoints, mut routes, mut rules, mut policies) = (Vec::new(), 0, 0, 0, 0, 0);
    for object in snapshot.objects.values() {
        match object {
            Object::Listener(listener) => {
                let tls = match listener.tls_expires() {
                    _ if listener.mtls == Mtls::Strict => ", mtls strict".to_owned(),
                    Some(expires) => format!(", tls until {}", Date(expires.cast_signed())),
                    None => String::new(),
                };
                listeners.push(format!("{} on {}{tls}", listener.name, listener.bind));
            }
            Object::Service(_) => services += 1,
            Object::Route(route) => {
                routes += 1;
                rules += route.rules.len();
            }
            Object::Policy(_) => policies += 1,
            Object::Settings(_) | Object::Identity(_) => {}
        }
    }
    for service in &config.services {
        endpoints += service.endpoints.len();
    }
    writeln!(text, "  listeners   {}", if listeners.is_empty() { "none".to_owned() } else { listeners.join("; ") })?;
    writeln!(text, "  services    {services} with {endpoints} endpoints")?;
    let names = config.names();
    if !names.is_empty() {
        writeln!(text, "  names       {} to resolve", names.len())?;
    }
    writeln!(text, "  routes      {routes} with {rules} rules")?;
    writeln!(text, "  policies    {policies}")
}

/// What the machine grants a proxy with this config.
fn describe_machine(files: &Files, grant: Option<&setup::Grant>) -> String {
    let machine = machine::look();
    let role = files.config.role();
    let runtime = files.config.runtime.decide(role, machine);
    let mut lines = vec!["machine".to_owned()];
    lines.push(match grant {
        Some(setup::Grant { driver, reason: None }) => format!("driver      {driver}"),
        Some(setup::Grant { driver, reason: Some(reason) }) => format!("driver      {driver}, because {reason}"),
        None => "driver      what the config demands is denied".to_owned(),
    });
    let role = match role {
        Role::Sidecar => "sidecar",
        Role::Edge => "edge",
    };
    let quota = machine
        .quota_millicores
        .map_or("no CPU quota".to_owned(), |quota| format!("a CPU quota of {:.1} cores", f64::from(quota) / 1000.0));
    let pin = match runtime.pin {
        Pin::Cores => "each on a core of its own",
        Pin::None => "not pinned",
    };
    lines.push(format!(
        "workers     {}, {pin} ({role}; {} allowed cores, {quota})",
        runtime.workers, machine.allowed_cores
    ));
    if let Some(Address::Ip(address)) = files.config.admin.bind.as_deref()
        && let Some(owner) = owner_of_port(*address)
    {
        let means = if files.config.admin.named { "it does not start" } else { "it runs without admin pages" };
        lines.push(format!(
            "admin       {address} is in use by {owner}; unless that is this proxy itself, {means}: give [admin] bind another address, or \"off\""
        ));
    }
    let descriptors = getrlimit(Resource::Nofile);
    lines.push(format!(
        "descriptors {} (soft), {} (hard, which is used)",
        limit(descriptors.current),
        limit(descriptors.maximum)
    ));
    let locked = getrlimit(Resource::Memlock);
    let kib = |bytes: Option<u64>| bytes.map_or("unlimited".to_owned(), |bytes| format!("{} KiB", bytes / 1024));
    lines.push(format!("locked      {} (soft), {} (hard) of memory", kib(locked.current), kib(locked.maximum)));
    lines.join("\n  ") + "\n"
}

fn limit(limit: Option<u64>) -> String {
    limit.map_or("unlimited".to_owned(), |limit| limit.to_string())
}
