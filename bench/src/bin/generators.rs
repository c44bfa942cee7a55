//! `ringmesh-load` beside wrk and h2load on capacity: what a request costs each of them, in turns, against the same server.
//! nginx alone on one core, the generator alone on the other.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result of a command line goes to standard output")]

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use ringmesh_bench::contender::free_address;
use ringmesh_bench::machine::Machine;
use ringmesh_bench::process::{Process, on_cores};
use ringmesh_bench::programs::{Build, of_system};
use ringmesh_bench::scenario;
use ringmesh_bench::statistics::{Interval, bootstrap, median};
use ringmesh_ring::affinity::allowed_cores;
use serde::Serialize;

/// Connections in HTTP/1.1, and in HTTP/2 with the streams of each.
const CONNECTIONS: &str = "32";
const H2_CONNECTIONS: &str = "4";
const H2_STREAMS: &str = "16";

/// What every turn is compared with.
const OWN: &str = "ringmesh-load";

/// Compares `ringmesh-load` with wrk and h2load on capacity, and writes bench/results/generators.md and .json.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Rounds; in each, all take their turn
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// How long a turn is, in whole seconds: h2load knows no others
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Take the programs as they were built
    #[arg(long)]
    no_build: bool,
    /// Print the table, and write nothing
    #[arg(long)]
    dry_run: bool,
}

/// What speaks, and which program speaks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Protocol {
    H1,
    H2,
}

#[derive(Clone, Copy)]
struct Generator {
    name: &'static str,
    protocol: Protocol,
}

const GENERATORS: [Generator; 5] = [
    Generator { name: OWN, protocol: Protocol::H1 },
    Generator { name: "wrk", protocol: Protocol::H1 },
    Generator { name: "h2load", protocol: Protocol::H1 },
    Generator { name: OWN, protocol: Protocol::H2 },
    Generator { name: "h2load", protocol: Protocol::H2 },
];

/// One turn.
#[derive(Clone, Copy, Debug, Serialize)]
struct Turn {
    requests: f64,
    /// Time on CPU of the generator, that of its start included.
    cpu_seconds: f64,
    seconds: f64,
}

/// All turns of one generator.
#[derive(Serialize)]
struct Record {
    generator: &'static str,
    protocol: Protocol,
    turns: Vec<Turn>,
    per_second: f64,
    cpu_us_per_request: f64,
    /// Its cost over that of `ringmesh-load`, round by round.
    cost_ratio: Option<Interval>,
}

#[derive(Serialize)]
struct Outcome {
    machine: Machine,
    versions: Vec<String>,
    command: String,
    records: Vec<Record>,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let build = Build::of_this_program()?;
    ensure!(
        build.profile() != "dev",
        "figures of the dev profile mean nothing: cargo run --release -p ringmesh-bench …"
    );
    if !cli.no_build {
        build.bring_up_to_date(&[])?;
    }
    let cores = allowed_cores();
    ensure!(cores.len() >= 2, "the server needs a core and the generator another; this process may use one");
    let machine = Machine::here();
    let server = Server::start(cores[0])?;
    let load = Load { program: build.program(OWN), core: cores[1], seconds: cli.seconds };

    let mut turns: Vec<Vec<Turn>> = vec![Vec::new(); GENERATORS.len()];
    for round in 0..cli.rounds {
        // Who comes first changes, so that nobody always follows the same one.
        for at in (0..GENERATORS.len()).map(|at| (at + round) % GENERATORS.len()) {
            turns[at].push(load.run(GENERATORS[at], &server)?);
        }
        eprint!("\rround {} of {}", round + 1, cli.rounds);
    }
    eprintln!();
    let outcome = Outcome {
        machine,
        versions: versions(&load.program)?,
        command: format!(
            "cargo run --release -p ringmesh-bench --bin ringmesh-bench-generators -- --rounds {} --seconds {}",
            cli.rounds, cli.seconds
        ),
        records: records(&turns),
    };
    let page = outcome.page();
    println!("{page}");
    if !cli.dry_run {
        let folder = scenario::folder().join("results");
        fs::write(folder.join("generators.md"), page)?;
        fs::write(folder.join("generators.json"), serde_json::to_string_pretty(&outcome)? + "\n")?;
    }
    Ok(())
}

/// How a turn is run.
struct Load {
    program: PathBuf,
    core: usize,
    seconds: u64,
}

impl Load {
    fn run(&self, generator: Generator, server: &Server) -> anyhow::Result<Turn> {
        let command = self.command(generator, server)?;
        // The shell says what its children have used, to the millisecond.
        let mut words = vec!["bash".to_owned(), "-c".to_owned(), "\"$@\" && times".to_owned(), "bash".to_owned()];
        words.extend(command);
        let output = on_cores(&[self.core], &words)?.output().context("cannot start bash")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let said = || format!("{} says: {text}{}", generator.name, String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), said());
        let requests = requests(generator, &text).with_context(said)?;
        let cpu_seconds = children_seconds(&text).with_context(said)?;
        Ok(Turn { requests, cpu_seconds, seconds: self.seconds as f64 })
    }

    fn command(&self, generator: Generator, server: &Server) -> anyhow::Result<Vec<String>> {
        let seconds = self.seconds.to_string();
        let url = match generator.protocol {
            Protocol::H1 => format!("http://{}/", server.h1),
            Protocol::H2 => format!("http://{}/", server.h2),
        };
        let own = self.program.to_string_lossy().into_owned();
        let of_system = |name| of_system(name).map(|program| program.to_string_lossy().into_owned());
        let length = format!("{seconds}s");
        Ok(match (generator.name, generator.protocol) {
            (OWN, Protocol::H1) => words(&own, &["http", &url, "--closed", "-c", CONNECTIONS, "-d", &length, "--json"]),
            (OWN, Protocol::H2) => words(
                &own,
                &[
                    "http",
                    &url,
                    "--http2",
                    "--streams",
                    H2_STREAMS,
                    "--closed",
                    "-c",
                    H2_CONNECTIONS,
                    "-d",
                    &length,
                    "--json",
                ],
            ),
            ("wrk", _) => words(&of_system("wrk")?, &["-t1", "-c", CONNECTIONS, "-d", &length, &url]),
            (_, Protocol::H1) => {
                words(&of_system("h2load")?, &["--h1", "-t1", "-c", CONNECTIONS, "-D", &seconds, &url])
            }
            (_, Protocol::H2) => {
                words(&of_system("h2load")?, &["-t1", "-c", H2_CONNECTIONS, "-m", H2_STREAMS, "-D", &seconds, &url])
            }
        })
    }
}

fn words(program: &str, arguments: &[&str]) -> Vec<String> {
    std::iter::once(program).chain(arguments.iter().copied()).map(str::to_owned).collect()
}

/// How many requests succeeded. None: not all did, or the text is another.
fn requests(generator: Generator, text: &str) -> Option<f64> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    match generator.name {
        OWN => {
            let total = &serde_json::from_str::<serde_json::Value>(text.lines().next()?).ok()?["total"];
            let (requests, succeeded) = (total["requests"].as_f64()?, total["succeeded"].as_f64()?);
            (requests == succeeded && requests > 0.0).then_some(requests)
        }
        "wrk" if text.contains("Non-2xx") || text.contains("Socket errors") => None,
        "wrk" => number(text.lines().find_map(|line| line.split_once(" requests in "))?.0),
        _ => {
            // requests: 10 total, 10 started, 10 done, 10 succeeded, 0 failed, 0 errored, 0 timeout
            let line = text.lines().find(|line| line.starts_with("requests: "))?;
            let of = |word| number(line.split(", ").find_map(|part| part.strip_suffix(word))?);
            (of(" failed")? == 0.0 && of(" errored")? == 0.0).then(|| of(" succeeded"))?
        }
    }
}

/// The time on CPU of the shell's children: the last line of `times`, such as `0m0.170s 0m0.749s`.
fn children_seconds(text: &str) -> Option<f64> {
    let seconds = |word: &str| {
        let (minutes, seconds) = word.strip_suffix('s')?.split_once('m')?;
        Some(minutes.parse::<f64>().ok()? * 60.0 + seconds.parse::<f64>().ok()?)
    };
    text.trim_end().lines().last()?.split_whitespace().map(seconds).sum()
}

fn records(turns: &[Vec<Turn>]) -> Vec<Record> {
    let cost = |turn: &Turn| turn.cpu_seconds * 1e6 / turn.requests;
    let own = |protocol| GENERATORS.iter().position(|one| one.name == OWN && one.protocol == protocol);
    let record = |(generator, turns_of): (&Generator, &Vec<Turn>)| {
        let values = |value: &dyn Fn(&Turn) -> f64| turns_of.iter().map(value).collect::<Vec<_>>();
        let ratios: Vec<f64> = own(generator.protocol).map_or_else(Vec::new, |own| {
            turns_of.iter().zip(&turns[own]).map(|(theirs, ours)| cost(theirs) / cost(ours)).collect()
        });
        Record {
            generator: generator.name,
            protocol: generator.protocol,
            turns: turns_of.clone(),
            per_second: median(&values(&|turn| turn.requests / turn.seconds)).unwrap_or(0.0),
            cpu_us_per_request: median(&values(&cost)).unwrap_or(0.0),
            cost_ratio: bootstrap(&ratios),
        }
    };
    GENERATORS.iter().zip(turns).map(record).collect()
}

impl Outcome {
    fn page(&self) -> String {
        let machine = &self.machine;
        let mut page = format!(
            "# Load generators on capacity\n\nnginx alone on one core, the generator alone on another, all in turns; \
             HTTP/1.1 on {CONNECTIONS} kept connections, HTTP/2 (h2c) on {H2_CONNECTIONS} with {H2_STREAMS} streams each. \
             The cost is the generator's own time on CPU. Where requests a second differ, it is the core that limits \
             them: nginx's, unless the generator is the slower of the two.\n\n\
             | | | requests/s | CPU µs per request | cost over ringmesh-load (95 % interval) |\n\
             | --- | --- | ---: | ---: | ---: |\n"
        );
        for record in &self.records {
            let ratio = match record.cost_ratio {
                _ if record.generator == OWN => "1".to_owned(),
                Some(Interval { median, low, high }) => format!("{median:.2} ({low:.2} to {high:.2})"),
                None => "-".to_owned(),
            };
            let protocol = if record.protocol == Protocol::H1 { "HTTP/1.1" } else { "HTTP/2" };
            let Record { generator, per_second, cpu_us_per_request, .. } = record;
            // Writing to a string cannot fail.
            let _ok =
                writeln!(page, "| {protocol} | {generator} | {per_second:.0} | {cpu_us_per_request:.2} | {ratio} |");
        }
        let modified = if machine.modified { ", modified" } else { "" };
        let _ok = writeln!(
            page,
            "\n{} rounds of {} s. {}; {} cores; Linux {}; load average before: {:.1}; commit {}{modified}; {}.\n\n{}",
            self.records.first().map_or(0, |record| record.turns.len()),
            self.records.first().and_then(|record| record.turns.first()).map_or(0.0, |turn| turn.seconds),
            machine.cpu,
            machine.cores,
            machine.kernel,
            machine.load_average,
            machine.commit,
            self.versions.join(", "),
            format_args!("```sh\n{}\n```", self.command),
        );
        page
    }
}

/// What takes part, in the words of each.
fn versions(own: &Path) -> anyhow::Result<Vec<String>> {
    let says = |program: &Path, word: &str| {
        let output = std::process::Command::new(program).arg(word).output().context("cannot ask for a version")?;
        let text = [output.stdout, output.stderr].concat();
        anyhow::Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned())
    };
    // wrk tells its own only with its usage, behind the name.
    let wrk = says(&of_system("wrk")?, "-v")?;
    let wrk = wrk.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    Ok(vec![says(own, "--version")?, wrk, says(&of_system("h2load")?, "--version")?, says(&of_system("nginx")?, "-v")?])
}

/// nginx with one worker and an answer of a hundred bytes.
struct Server {
    _process: Process,
    _folder: tempfile::TempDir,
    h1: SocketAddr,
    h2: SocketAddr,
}

impl Server {
    fn start(core: usize) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (h1, h2) = (free_address()?, free_address()?);
        let config = format!(
            "daemon off; worker_processes 1; error_log stderr error; pid {folder}/pid;
             events {{ worker_connections 1024; }}
             http {{
               access_log off; keepalive_requests 1000000000; tcp_nodelay on;
               server {{ listen {h1} backlog=1024; location / {{ return 200 \"{body}\"; }} }}
               server {{ listen {h2} http2 backlog=1024; location / {{ return 200 \"{body}\"; }} }}
             }}\n",
            folder = folder.path().display(),
            body = "x".repeat(100),
        );
        let file = folder.path().join("nginx.conf");
        fs::write(&file, config)?;
        let nginx = of_system("nginx")?.to_string_lossy().into_owned();
        let command = words(&nginx, &["-p", &folder.path().to_string_lossy(), "-c", &file.to_string_lossy()]);
        let mut process = Process::start(&[core], "nginx", &command, &folder.path().join("log"))?;
        let until = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(h1).is_err() {
            process.check()?;
            if Instant::now() > until {
                bail!("nginx does not start: {}", process.log_tail());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { _process: process, _folder: folder, h1, h2 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_generator_says_is_read_and_failures_are_none() {
        let check = |name, text: &str, expected: Option<f64>| {
            assert_eq!(requests(Generator { name, protocol: Protocol::H1 }, text), expected, "{text}");
        };
        check("wrk", "  1 threads and 32 connections\n  58317 requests in 2.04s, 7.79MB read\n", Some(58_317.0));
        check("wrk", "  Socket errors: connect 1\n  5 requests in 2.04s, 7.79MB read\n", None);
        let h2load = "requests: 10 total, 12 started, 10 done, 10 succeeded, 0 failed, 0 errored, 0 timeout";
        check("h2load", h2load, Some(10.0));
        check("h2load", &h2load.replace("0 failed", "1 failed"), None);
        check(OWN, "{\"total\":{\"requests\":7,\"succeeded\":7}}\n0m0.1s 0m0.2s", Some(7.0));
        check(OWN, "{\"total\":{\"requests\":7,\"succeeded\":6}}", None);
        assert_eq!(children_seconds("x\n0m0.000s 0m0.002s\n1m0.250s 0m0.750s\n"), Some(61.0));
    }
}
