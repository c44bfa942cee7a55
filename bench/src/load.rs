//! One run of the load generator.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::contender::Bed;
use crate::process::on_cores;
use crate::scenario::{Kind, Load, Reuse, Security, Version};

const MIB: f64 = 1024.0 * 1024.0;

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Operations that succeeded; all of them did.
    pub operations: f64,
    /// How long they took together.
    pub seconds: f64,
    /// Latencies, where an operation has one.
    pub latency: Option<Latency>,
    /// Share of the time that the generator was on CPU.
    pub busy_share: f64,
    /// Whether it says that it was what limited the rate.
    pub was_bottleneck: bool,
    /// What its TLS handshakes agreed on: key exchange group and cipher suite.
    pub tls_parameters: Option<String>,
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// Half of the operations took no longer.
    pub p50: u64,
    /// 99 % took no longer.
    pub p99: u64,
    /// 99.9 % took no longer.
    pub p999: u64,
}

/// Sends load to an address for so long, from these cores.
///
/// # Errors
/// If it cannot be sent, or an operation fails: then there is nothing to compare.
pub fn run(bed: &Bed, load: &Load, address: SocketAddr, length: Duration, cores: &[usize]) -> anyhow::Result<Outcome> {
    let output = on_cores(cores, &command(bed, load, address, arrivals(load, length))?)?
        .output()
        .context("cannot start the load")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Ok(report) = serde_json::from_str::<Value>(&text) else {
        bail!("the load says: {text}{}", String::from_utf8_lossy(&output.stderr));
    };
    let total = &report["total"];
    let (requests, succeeded) = (number(&total["requests"])?, number(&total["succeeded"])?);
    if succeeded < requests || succeeded == 0.0 {
        bail!("{succeeded} of {requests} operations succeeded: {} {}", total["statuses"], total["failures"]);
    }
    let operations = match load.kind {
        Kind::Upload => number(&report["bytes_sent"])? / MIB,
        _ => succeeded,
    };
    let latency = &total["latency_us"];
    let latency = match load.kind {
        Kind::Upload => None,
        _ => Some(Latency {
            p50: number(&latency["p50"])? as u64,
            p99: number(&latency["p99"])? as u64,
            p999: number(&latency["p999"])? as u64,
        }),
    };
    Ok(Outcome {
        operations,
        seconds: number(&report["elapsed_seconds"])?,
        latency,
        busy_share: number(&report["busy_share"])?,
        was_bottleneck: report["generator_was_bottleneck"].as_bool().unwrap_or(false),
        tls_parameters: tls_parameters(&report),
    })
}

/// One operation.
///
/// # Errors
/// If it fails.
pub fn run_once(bed: &Bed, load: &Load, address: SocketAddr) -> anyhow::Result<()> {
    let mut words = words(bed, load, address)?;
    words.extend(["--closed", "--connections", "1", "--requests", "1", "--timeout", "2s"].map(str::to_owned));
    let output = on_cores(bed.load_cores(), &words)?.output().context("cannot start the load")?;
    if !output.status.success() {
        bail!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// How often and how long it is sent.
fn arrivals(load: &Load, length: Duration) -> Vec<String> {
    let mut words = match load.rate {
        Some(rate) => vec!["--rate".to_owned(), rate.to_string()],
        None => vec!["--closed".to_owned()],
    };
    words.extend(["--duration".to_owned(), format!("{}ms", length.as_millis())]);
    words
}

/// The command that sends this load as `arrivals` say.
///
/// # Errors
/// If there are no certificates.
pub fn command(bed: &Bed, load: &Load, address: SocketAddr, arrivals: Vec<String>) -> anyhow::Result<Vec<String>> {
    let mut words = words(bed, load, address)?;
    words.extend(["--connections".to_owned(), load.connections.to_string(), "--json".to_owned()]);
    words.extend(arrivals);
    Ok(words)
}

/// What is sent where, without how often.
fn words(bed: &Bed, load: &Load, address: SocketAddr) -> anyhow::Result<Vec<String>> {
    let security = load.security;
    let mut words = vec![bed.load_program().to_string_lossy().into_owned()];
    let scheme = if security == Security::Plain { "http" } else { "https" };
    match load.kind {
        Kind::Http | Kind::Idle => words.extend(["http".to_owned(), format!("{scheme}://{address}/items/17")]),
        Kind::Grpc => {
            words.extend(["grpc".to_owned(), format!("{scheme}://{address}/bench.Echo/Unary")]);
            words.extend(["--body".to_owned(), load.body_bytes.to_string()]);
        }
        Kind::WebSocket => {
            let scheme = if security == Security::Plain { "ws" } else { "wss" };
            words.extend(["websocket".to_owned(), format!("{scheme}://{address}/items/17")]);
            words.extend(["--bytes".to_owned(), load.body_bytes.to_string()]);
        }
        Kind::PingPong => words.extend(["tcp".to_owned(), address.to_string()]),
        Kind::Upload => words.extend(["tcp".to_owned(), address.to_string(), "--upload".to_owned()]),
    }
    if let Some(host) = load.host() {
        words.extend(["--host", host].map(str::to_owned));
    }
    if load.version == Version::H2 {
        if load.kind != Kind::Grpc {
            words.push("--http2".to_owned());
        }
        words.extend(["--streams".to_owned(), load.streams.to_string()]);
    }
    if load.reuse == Reuse::Never {
        words.push("--new-connections".to_owned());
    }
    if security != Security::Plain {
        let file = |name: &str| Ok::<_, anyhow::Error>(bed.certificates()?.join(name).to_string_lossy().into_owned());
        words.extend(["--cacert".to_owned(), file("near/bundle.pem")?]);
        words.extend(["--spiffe-id", "spiffe://bench.example/ns/default/sa/far", "--no-resumption"].map(str::to_owned));
        if let Some(groups) = &load.groups {
            words.extend(["--groups".to_owned(), groups.clone()]);
        }
        if security == Security::Mtls {
            words.extend(["--cert".to_owned(), file("near/svid.pem")?]);
            words.extend(["--key".to_owned(), file("near/svid.key")?]);
        }
    }
    Ok(words)
}

fn tls_parameters(report: &Value) -> Option<String> {
    let parameters = report["tls_parameters"].as_object().filter(|parameters| !parameters.is_empty())?;
    Some(parameters.keys().map(String::as_str).collect::<Vec<_>>().join(" and "))
}

fn number(value: &Value) -> anyhow::Result<f64> {
    value.as_f64().context("the load's report is of another version: a number is missing")
}
