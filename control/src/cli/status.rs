//! `ringmesh status`: what a proxy is doing.

use std::fmt::Write;
use std::io;

use anyhow::anyhow;

use super::place::{Place, ask, has_dataplane};
use super::{Failure, print};
use crate::log::may_colour;
use crate::state::{self, EndpointState, Phase, State};
use crate::supervisor::socket::{Answer, Question};

/// From which time before its end a certificate is shown as a problem: a quarter of the day that SVIDs live by default.
const SOON_SECONDS: u64 = 6 * 3600;

/// From which age on a data plane's last report means that it does not answer: each status asks for a new one.
const SILENCE_SECONDS: u64 = 3;

const AFTER_HELP: &str = "\
Examples:
  ringmesh status                            the only proxy that this user runs
  ringmesh status -c sidecar.toml
  ringmesh status -c sidecar.toml --json | jq .config.problems

Exit codes:
  0  control has answered
  1  no control is there, or it does not answer
  2  the command line is wrong, or several proxies run";

/// Shows processes, configuration, listeners, endpoints and certificates
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Args) -> Result<(), Failure> {
    let directory = arguments.place.find()?;
    let shown = directory.path().display();
    let Some((answer, _)) = ask(&directory, &Question::Status)? else {
        return Err(match has_dataplane(&directory) {
            true => anyhow!(
                "no control runs in {shown}, but its data plane does, with its last configuration; `ringmesh run` adopts it, \
                 `ringmesh stop` ends it"
            ),
            false => anyhow!("nothing runs in {shown}"),
        }
        .into());
    };
    let Answer::State(state) = answer else { return Err(anyhow!("control gives no state").into()) };
    if arguments.json {
        return print(&format!("{}\n", serde_json::to_string_pretty(&state)?));
    }
    let colour = if may_colour(&io::stdout()) { Colour::Some } else { Colour::None };
    print(&table(&state, state::now(), colour))
}

/// Whether what matters is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colour {
    Some,
    None,
}

impl Colour {
    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Self::Some => format!("\x1b[{code}m{text}\x1b[0m"),
            Self::None => text.to_owned(),
        }
    }

    fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    fn head(self, text: &str) -> String {
        self.paint("1", text)
    }
}

/// The state as people read it, at time `now`.
fn table(state: &State, now: u64, colour: Colour) -> String {
    let mut text = String::new();
    write_table(&mut text, state, now, colour).expect("a string takes everything");
    text
}

fn write_table(text: &mut String, state: &State, now: u64, colour: Colour) -> std::fmt::Result {
    let mesh = if state.mesh.is_empty() { String::new() } else { format!(" of {}", state.mesh) };
    writeln!(text, "{}{mesh}, instance {}", colour.head(&state.workload), state.instance)?;
    let control = &state.control;
    let age = ago(now, control.started_at);
    writeln!(
        text,
        "  control      pid {}, up {age}, epoch {}, version {}",
        control.pid, control.epoch, control.version
    )?;
    writeln!(text, "  data plane   {}", dataplane(state, now, colour))?;
    if let Some(reason) = &state.dataplane.driver_reason {
        writeln!(text, "               not the best driver: {reason}")?;
    }
    writeln!(text, "  config       {}", config(state, now, colour))?;
    for problem in &state.config.problems {
        writeln!(text, "               {}", colour.bad(problem))?;
    }
    if let Some(pending) = &state.config.pending {
        writeln!(text, "               {pending}")?;
    }
    if let Some(identity) = &state.identity {
        let expiry = match identity.expires_at.checked_sub(now) {
            None => colour.bad(&format!("expired {} ago", span(now - identity.expires_at))),
            Some(left) if left < SOON_SECONDS => colour.bad(&format!("expires in {}", span(left))),
            Some(left) => format!("expires in {}", span(left)),
        };
        writeln!(text, "  identity     {}, {expiry}", identity.id)?;
        if let Some(problem) = &identity.problem {
            writeln!(text, "               {}", colour.bad(problem))?;
        }
    }
    if let Some(admin) = &state.admin {
        writeln!(text, "  admin        {admin}")?;
    }
    if let Some(problem) = &state.admin_problem {
        writeln!(text, "  admin        {}", colour.bad(problem))?;
    }
    writeln!(text, "  directory    {}", state.runtime_directory)?;
    write_sections(text, state, now, colour)
}

fn write_sections(text: &mut String, state: &State, now: u64, colour: Colour) -> std::fmt::Result {
    let listener = |one: &state::Listener| {
        let tls = match one.tls_expires_at {
            Some(expires_at) if expires_at < now => colour.bad(&format!("expired {} ago", span(now - expires_at))),
            Some(expires_at) => format!("expires in {}", span(expires_at - now)),
            None if one.mtls == "strict" => "mutual".to_owned(),
            None => "off".to_owned(),
        };
        let problem = one.problem.as_ref().map_or(String::new(), |problem| colour.bad(problem));
        vec![one.name.clone(), one.bind.clone(), one.protocol.clone(), tls, one.sockets.to_string(), problem]
    };
    let listeners = state.listeners.iter().map(listener).collect();
    section(text, ["LISTENER", "BIND", "PROTOCOL", "TLS", "SOCKETS", "PROBLEM"], listeners, colour)?;
    let services = state.services.iter().flat_map(service_rows).collect();
    section(text, ["SERVICE", "ENDPOINT", "STATE", "IN FLIGHT", "IDLE", "FAILURES"], services, colour)?;
    let workers = state.dataplane.report.iter().flat_map(|report| &report.workers).enumerate();
    let worker = |(core, one): (usize, &ringmesh_model::wire::WorkerReport)| {
        if one.silent {
            return [core.to_string(), one.version.to_string(), "does not answer".to_owned()].to_vec();
        }
        [core as u64, one.version, one.connections, one.in_flight, one.panics].map(|number| number.to_string()).to_vec()
    };
    section(text, ["CORE", "VERSION", "CONNECTIONS", "IN FLIGHT", "PANICS"], workers.map(worker).collect(), colour)?;
    let name = |one: &state::NameAnswer| {
        let age = one.answered_at.map_or("never".to_owned(), |at| format!("{} ago", ago(now, at)));
        let addresses = if one.addresses.is_empty() { "-".to_owned() } else { one.addresses.join(" ") };
        vec![one.name.clone(), addresses, age, one.error.clone().unwrap_or_default()]
    };
    section(text, ["NAME", "ADDRESSES", "ANSWERED", "PROBLEM"], state.names.iter().map(name).collect(), colour)
}

fn dataplane(state: &State, now: u64, colour: Colour) -> String {
    let dataplane = &state.dataplane;
    let phase = match dataplane.phase {
        Phase::Running => colour.good(dataplane.phase.as_str()),
        Phase::Starting | Phase::Draining => dataplane.phase.as_str().to_owned(),
        Phase::Restarting | Phase::Unreachable => colour.bad(dataplane.phase.as_str()),
    };
    let mut parts = Vec::new();
    parts.extend(dataplane.pid.map(|pid| format!("pid {pid}")));
    parts.push(phase);
    parts.extend(dataplane.report.as_ref().map(|report| format!("up {}", span(report.uptime_seconds))));
    parts.extend(dataplane.driver.clone());
    parts.push(format!("{} workers", dataplane.workers));
    if let Some(silence) = dataplane.report_at.and_then(|at| now.checked_sub(at)).filter(|age| *age >= SILENCE_SECONDS)
    {
        parts.push(colour.bad(&format!("has said nothing for {}", span(silence))));
    }
    if dataplane.adopted {
        parts.push("adopted".to_owned());
    }
    if let Some(how) = &dataplane.last_exit {
        parts.push(format!("started {} times, the last one {how}", dataplane.starts));
    }
    parts.join(", ")
}

fn config(state: &State, now: u64, colour: Colour) -> String {
    let config = &state.config;
    let (live, cores) = state.live_cores();
    let cores = format!("version {} live on {live} of {cores} cores", config.version);
    let cores = if live > 0 { colour.good(&cores) } else { cores };
    let since = config.live_at.map_or(String::new(), |at| format!(" for {}", ago(now, at)));
    let problems = match config.problems.len() {
        0 => String::new(),
        count => {
            let problems = if count == 1 { "problem" } else { "problems" };
            let told = format!("{count} {problems} in the file as it is now; the last good one goes on");
            format!(", {}", colour.bad(&told))
        }
    };
    format!("{}, {cores}{since}{problems}", config.file)
}

fn service_rows(service: &state::Service) -> Vec<Vec<String>> {
    if service.endpoints.is_empty() {
        return vec![vec![service.name.clone(), "none".to_owned()]];
    }
    let row = |endpoint: &state::Endpoint| {
        let state = if endpoint.state == EndpointState::Unknown { "-" } else { endpoint.state.as_str() };
        let numbers =
            [endpoint.in_flight, endpoint.idle, endpoint.consecutive_failures].map(|number| number.to_string());
        [service.name.clone(), endpoint.address.clone(), state.to_owned()].into_iter().chain(numbers).collect()
    };
    service.endpoints.iter().map(row).collect()
}

/// A table with aligned columns; nothing if it has no rows.
fn section<const N: usize>(
    text: &mut String,
    heads: [&str; N],
    rows: Vec<Vec<String>>,
    colour: Colour,
) -> std::fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([heads[column].len()]).max().unwrap_or_default()
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(widths).map(|(cell, width)| format!("{cell:<width$}  "));
        padded.collect::<String>().trim_end().to_owned()
    };
    writeln!(text, "\n{}", colour.head(&line(&mut heads.into_iter())))?;
    for row in &rows {
        let shown = line(&mut row.iter().map(String::as_str));
        let sick = [EndpointState::Failing, EndpointState::Unhealthy].map(EndpointState::as_str);
        let failing = row.get(2).is_some_and(|cell| sick.contains(&cell.as_str()));
        writeln!(text, "{}", if failing { colour.bad(&shown) } else { shown })?;
    }
    Ok(())
}

fn ago(now: u64, then: u64) -> String {
    span(now.saturating_sub(then))
}

/// A time span in its largest unit, or two.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use ringmesh_model::wire::{Report, WorkerReport};

    use super::*;

    fn state() -> State {
        let mut state = State { workload: "checkout".into(), ..State::default() };
        state.config.file = "/etc/sidecar.toml".into();
        state.config.version = 2;
        state.dataplane.phase = Phase::Running;
        state.dataplane.workers = 2;
        let workers = [2, 1].map(|version| WorkerReport { version, ..WorkerReport::default() }).to_vec();
        state.dataplane.report = Some(Report { workers, ..Report::default() });
        let failing =
            state::Endpoint { address: "10.0.0.7:80".into(), state: EndpointState::Failing, ..Default::default() };
        state.listeners =
            ["in", "out"].map(|name| state::Listener { name: name.into(), ..Default::default() }).to_vec();
        state.listeners[1].problem = Some("not accepted on".into());
        state.services = vec![state::Service { name: "payments".into(), peer: None, endpoints: vec![failing] }];
        state
    }

    #[test]
    fn the_table_says_on_how_many_cores_the_version_is_live() {
        let text = table(&state(), 100, Colour::None);
        assert!(text.contains("version 2 live on 1 of 2 cores"), "{text}");
        assert!(text.contains("payments  10.0.0.7:80  failing"), "{text}");
        let listeners: Vec<&str> =
            text.lines().filter(|line| line.starts_with("in ") || line.starts_with("out ")).collect();
        assert!(listeners[1].ends_with("0        not accepted on") && listeners[0].ends_with(" 0"), "{text}");
        assert!(!text.contains('\x1b'), "no colour was asked for: {text}");
    }

    #[test]
    fn a_broken_edit_and_an_expired_certificate_are_shown() {
        let mut state = state();
        state.config.problems = vec!["sidecar.toml:3: unknown key `lisstener`".into()];
        state.identity = Some(state::Identity { id: "spiffe://a/b".into(), expires_at: 40, problem: None });
        let text = table(&state, 100, Colour::Some);
        assert!(text.contains("\x1b[31msidecar.toml:3: unknown key `lisstener`\x1b[0m"), "{text}");
        assert!(text.contains("expired 1m0s ago"), "{text}");
    }

    #[test]
    fn spans_are_short() {
        let shown: Vec<String> = [5, 65, 3700, 90_000].into_iter().map(span).collect();
        assert_eq!(shown, ["5s", "1m5s", "1h1m", "1d1h"]);
    }
}
