//! What is measured: one question each, a file in `bench/scenarios/`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;

/// One question, how it is asked, and who is asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its file's name.
    #[serde(skip)]
    pub name: String,
    /// What the figures answer.
    pub question: String,
    /// What is sent through.
    pub load: Load,
    /// Who is between load and service, in the order of the table.
    #[serde(rename = "contender")]
    pub contenders: Vec<Contender>,
}

/// What is sent through.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// What an operation is.
    pub kind: Kind,
    /// Connections.
    pub connections: usize,
    /// Bytes in an answer's body.
    #[serde(default)]
    pub body_bytes: u64,
    /// Operations a second, open loop; without it each connection goes on as soon as it has its answer.
    pub rate: Option<f64>,
    /// Threads of each contender.
    #[serde(default = "one")]
    pub workers: u16,
}

/// What an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An HTTP/1.1 GET on a kept connection.
    Http,
    /// 64 bytes there and back over TCP.
    PingPong,
    /// A MiB of many over TCP, one way.
    Upload,
    /// None: connections that do nothing.
    Idle,
}

/// Who is between load and service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contender {
    /// `ringmesh`, `haproxy`, `nginx`, with a variant after a dash; or `direct`, which is nobody.
    pub proxy: String,
    /// Its driver, if it is a Ringmesh.
    #[serde(default = "io_uring")]
    pub driver: String,
    /// Files in `bench/peers/`, a process each, the one nearest to the service first.
    #[serde(default)]
    pub configs: Vec<String>,
}

fn one() -> u16 {
    1
}

fn io_uring() -> String {
    "io_uring".to_owned()
}

impl Kind {
    /// What is counted.
    pub fn operation(self) -> &'static str {
        match self {
            Self::Http => "request",
            Self::PingPong => "round trip",
            Self::Upload => "MiB",
            Self::Idle => "connection",
        }
    }
}

/// Where this crate's files are.
pub fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All scenarios, or those named, in the order of their names.
///
/// # Errors
/// If a file cannot be read or understood, or a name is not known.
pub fn read(names: &[String]) -> anyhow::Result<Vec<Scenario>> {
    let all = read_all(&folder().join("scenarios"))?;
    if names.is_empty() {
        return Ok(all);
    }
    let known: Vec<&str> = all.iter().map(|scenario| scenario.name.as_str()).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("there is no scenario `{unknown}`; there are {}", known.join(", "));
    }
    Ok(all.into_iter().filter(|scenario| names.contains(&scenario.name)).collect())
}

fn read_all(folder: &Path) -> anyhow::Result<Vec<Scenario>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    files.iter().map(|file| read_one(file).with_context(|| format!("in {}", file.display()))).collect()
}

fn read_one(file: &Path) -> anyhow::Result<Scenario> {
    let mut scenario: Scenario = toml::from_str(&fs::read_to_string(file)?)?;
    scenario.name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(scenario)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_is_understood_and_its_configs_are_there() {
        let all = read(&[]).unwrap();
        assert!(all.iter().any(|scenario| scenario.name == "h1-plain"));
        for scenario in all {
            for config in scenario.contenders.iter().flat_map(|contender| &contender.configs) {
                assert!(folder().join("peers").join(config).is_file(), "{}: {config}", scenario.name);
            }
        }
    }

    #[test]
    fn an_unknown_name_is_an_error_that_lists_the_known_ones() {
        let error = read(&["h9".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("h9") && error.contains("h1-plain"), "{error}");
    }
}
