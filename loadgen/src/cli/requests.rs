//! Requests from a file: one JSON object a line.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use ringmesh_loadgen::load::{Entry, Expect};
use serde::Deserialize;

/// One request. What is left out is as for a request from the command line.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    path: String,
    #[serde(default = "get")]
    method: String,
    name: Option<String>,
    host: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<String>,
    #[serde(default)]
    body_bytes: u64,
    #[serde(default = "one")]
    weight: u32,
    expect: Option<u16>,
}

fn get() -> String {
    "GET".to_owned()
}

fn one() -> u32 {
    1
}

/// Reads the file.
pub(crate) fn read(path: &Path, host: &str) -> anyhow::Result<Vec<Entry>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read the requests `{}`", path.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            entry(line, host).with_context(|| {
                let example =
                    r#"{"method": "POST", "path": "/cart", "headers": {"x-a": "b"}, "body": "hello", "weight": 2}"#;
                format!("line {} of `{}` is no request; write one such as {example}", number + 1, path.display())
            })
        })
        .collect()
}

fn entry(line: &str, host: &str) -> anyhow::Result<Entry> {
    let line: Line = serde_json::from_str(line)?;
    let entry = Entry::get(line.host.as_deref().unwrap_or(host), &line.path);
    Ok(Entry {
        name: line.name.unwrap_or_else(|| format!("{} {}", line.method, line.path)),
        method: line.method,
        fields: line.headers.into_iter().collect(),
        body: line.body.map(Into::into),
        body_bytes: line.body_bytes,
        weight: line.weight,
        expect: line.expect.map_or(Expect::Success, Expect::Status),
        ..entry
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_sent() {
        let line = r#"{"method":"POST","path":"/a","headers":{"x":"y"},"body":"{{counter}}","weight":3,"expect":201}"#;
        let read = entry(line, "shop").expect("a request");
        assert_eq!((read.name.as_str(), read.host.as_str(), read.weight), ("POST /a", "shop", 3));
        assert_eq!((read.body.as_deref(), read.expect), (Some(&b"{{counter}}"[..]), Expect::Status(201)));
        let short = entry(r#"{"path":"/b"}"#, "shop").expect("a request");
        assert_eq!((short.method.as_str(), short.weight, short.expect), ("GET", 1, Expect::Success));
        assert!(entry(r#"{"path":"/b","wait":1}"#, "shop").is_err());
        assert!(entry("GET /b", "shop").is_err());
    }
}
