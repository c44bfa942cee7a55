//! What is measured: one question each, a file in `bench/scenarios/`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;

/// One question, how it is asked, and who is asked.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its file's name, and after a dash that of the case.
    pub name: String,
    /// Its file's name.
    pub family: String,
    /// What the figures answer.
    pub question: String,
    /// Whether it belongs to the table that every run has; others are run by name.
    pub in_table: bool,
    /// What is sent through.
    pub load: Load,
    /// Who is between load and service, in the order of the table.
    pub contenders: Vec<Contender>,
}

/// A scenario as it is written: one, or one for each case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    question: String,
    #[serde(default = "yes")]
    in_table: bool,
    load: toml::Table,
    /// What differs in the load, by the name of the case.
    #[serde(default)]
    case: Vec<toml::Table>,
    contender: Vec<Contender>,
}

/// What is sent through.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// What an operation is.
    pub kind: Kind,
    /// Which HTTP.
    #[serde(default)]
    pub version: Version,
    /// What protects the clients' connections.
    #[serde(default)]
    pub security: Security,
    /// Key exchange groups that clients offer; without it those that today's clients do.
    pub groups: Option<String>,
    /// Connections.
    pub connections: usize,
    /// Requests at once on each, in HTTP/2.
    #[serde(default = "one_stream")]
    pub streams: usize,
    /// How often a connection is used.
    #[serde(default)]
    pub reuse: Reuse,
    /// Bytes in an answer's body, or in a message.
    #[serde(default)]
    pub body_bytes: u64,
    /// Operations a second, open loop; without it each connection goes on as soon as it has its answer.
    pub rate: Option<f64>,
    /// Threads of each contender. With several nobody is pinned: there are not cores enough to be alone.
    #[serde(default = "one")]
    pub workers: u16,
    /// Services that are configured beside each other, by host; without it one service gets everything.
    #[serde(default)]
    pub services: usize,
}

/// What an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A GET.
    Http,
    /// A unary call of gRPC, whose message comes back.
    Grpc,
    /// A message there and back over WebSocket.
    #[serde(rename = "websocket")]
    WebSocket,
    /// 64 bytes there and back over TCP.
    PingPong,
    /// A MiB of many over TCP, one way.
    Upload,
    /// None: connections that do nothing.
    Idle,
}

/// Which HTTP is spoken, on both sides of a contender where it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Version {
    /// HTTP/1.1.
    #[default]
    H1,
    /// HTTP/2; without TLS with prior knowledge.
    H2,
}

/// What protects connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Security {
    /// Nothing.
    #[default]
    Plain,
    /// TLS 1.3; the server has a certificate.
    Tls,
    /// TLS 1.3; both have one.
    Mtls,
}

/// How often a connection is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reuse {
    /// It is kept.
    #[default]
    Keep,
    /// Each operation makes its own, with a full handshake where there is one.
    Never,
}

/// Who is between load and service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contender {
    /// `ringmesh`, `haproxy`, `nginx`, `envoy`, `nghttpx`, with a variant after a dash; or `direct`, which is nobody.
    pub proxy: String,
    /// Its driver, if it is a Ringmesh.
    #[serde(default = "io_uring")]
    pub driver: String,
    /// Files in `bench/peers/`, a process each, the one nearest to the service first.
    #[serde(default)]
    pub configs: Vec<String>,
    /// Words that hold in its configuration beside those of the load.
    #[serde(default = "with_policy")]
    pub words: Vec<String>,
    /// What it cannot do yet; then it has no figures, and the record says this.
    pub lacks: Option<String>,
}

fn yes() -> bool {
    true
}

fn one() -> u16 {
    1
}

fn one_stream() -> usize {
    1
}

fn io_uring() -> String {
    "io_uring".to_owned()
}

fn with_policy() -> Vec<String> {
    vec!["policy".to_owned()]
}

impl Kind {
    /// What is counted.
    pub fn operation(self) -> &'static str {
        match self {
            Self::Http => "request",
            Self::Grpc => "call",
            Self::WebSocket => "message",
            Self::PingPong => "round trip",
            Self::Upload => "MiB",
            Self::Idle => "connection",
        }
    }
}

impl Security {
    /// As configurations and scenarios write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Tls => "tls",
            Self::Mtls => "mtls",
        }
    }
}

impl Load {
    /// The words that hold in every contender's configuration.
    pub fn words(&self) -> Vec<String> {
        let services = if self.services > 0 { "many" } else { "one" };
        let version = if self.version == Version::H2 { "h2" } else { "h1" };
        let content = match self.kind {
            Kind::Grpc => "grpc",
            Kind::WebSocket => "websocket",
            _ => "http",
        };
        [self.security.word(), services, version, content].map(str::to_owned).to_vec()
    }

    /// The method of its requests.
    pub fn method(&self) -> &'static str {
        if self.kind == Kind::Grpc { "POST" } else { "GET" }
    }

    /// Whether a bare connection is enough to speak to it.
    pub fn speaks_plainly(&self) -> bool {
        self.security == Security::Plain && self.version == Version::H1
    }

    /// The host that is asked for.
    pub fn host(&self) -> Option<&'static str> {
        (self.services > 0).then_some("s0.bench.example")
    }
}

/// Where this crate's files are.
pub fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The scenarios of the table; or those named, by their own name or their file's, in the order of their names.
///
/// # Errors
/// If a file cannot be read or understood, or a name is not known.
pub fn read(names: &[String]) -> anyhow::Result<Vec<Scenario>> {
    let all = all()?;
    if names.is_empty() {
        return Ok(all.into_iter().filter(|scenario| scenario.in_table).collect());
    }
    let is_named = |scenario: &Scenario, name: &String| *name == scenario.name || *name == scenario.family;
    if let Some(unknown) = names.iter().find(|name| !all.iter().any(|scenario| is_named(scenario, name))) {
        let known: Vec<&str> = all.iter().map(|scenario| scenario.name.as_str()).collect();
        bail!("there is no scenario `{unknown}`; there are {}", known.join(", "));
    }
    Ok(all.into_iter().filter(|scenario| names.iter().any(|name| is_named(scenario, name))).collect())
}

/// All scenarios, also those that are not in the table.
///
/// # Errors
/// If a file cannot be read or understood.
pub fn all() -> anyhow::Result<Vec<Scenario>> {
    read_all(&folder().join("scenarios"))
}

fn read_all(folder: &Path) -> anyhow::Result<Vec<Scenario>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    let read = |file: &PathBuf| read_one(file).with_context(|| format!("in {}", file.display()));
    Ok(files.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn read_one(file: &Path) -> anyhow::Result<Vec<Scenario>> {
    let written: Written = toml::from_str(&fs::read_to_string(file)?)?;
    let family = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let scenario = |name: String, load: toml::Table| -> anyhow::Result<Scenario> {
        Ok(Scenario {
            name,
            family: family.clone(),
            question: written.question.clone(),
            in_table: written.in_table,
            load: load.try_into()?,
            contenders: written.contender.clone(),
        })
    };
    if written.case.is_empty() {
        return Ok(vec![scenario(family.clone(), written.load.clone())?]);
    }
    let of_case = |case: &toml::Table| {
        let mut load = written.load.clone();
        load.extend(case.clone());
        let name = load.remove("name");
        let name = name.as_ref().and_then(toml::Value::as_str).context("each case has a name")?;
        scenario(format!("{family}-{name}"), load)
    };
    written.case.iter().map(of_case).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_is_understood_and_its_configs_are_there() {
        let all = all().unwrap();
        assert!(all.iter().any(|scenario| scenario.name == "h1-plain"));
        for scenario in all {
            for config in scenario.contenders.iter().flat_map(|contender| &contender.configs) {
                assert!(folder().join("peers").join(config).is_file(), "{}: {config}", scenario.name);
            }
        }
    }

    #[test]
    fn a_file_with_cases_is_a_scenario_for_each() {
        let bodies = read(&["body".to_owned()]).unwrap();
        assert!(bodies.len() > 3 && bodies.iter().all(|one| one.name.starts_with("body-") && !one.in_table));
        assert!(bodies.windows(2).all(|pair| pair[0].load.body_bytes < pair[1].load.body_bytes));
        assert_eq!(read(&[bodies[0].name.clone()]).unwrap().len(), 1);
    }

    #[test]
    fn an_unknown_name_is_an_error_that_lists_the_known_ones() {
        let error = read(&["h9".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("h9") && error.contains("h1-plain"), "{error}");
    }
}
