//! What the sidecars' admin pages say.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use serde::Deserialize;

use super::fetch::fetch;

/// A page could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// No answer.
    #[error("no answer from the admin page: {0}")]
    Io(#[from] io::Error),
    /// Another answer than 200.
    #[error("the admin page answers {0}")]
    Status(u16),
    /// The answer is not what it should be.
    #[error("the admin page makes no sense: {0}")]
    Content(String),
}

/// One handshake, as a sidecar recorded it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct Handshake {
    /// `inbound` or `outbound`.
    pub(super) direction: String,
    /// Listener or service.
    pub(super) name: String,
    /// SPIFFE ID of the other end.
    pub(super) peer: Option<String>,
    /// Version of TLS.
    pub(super) tls: Option<String>,
    /// Cipher suite.
    pub(super) cipher: Option<String>,
    /// Own end of the connection.
    pub(super) local: String,
    /// Its other end.
    pub(super) remote: String,
    /// Why there was no connection.
    #[serde(default)]
    pub(super) refused: Option<String>,
    /// When; tells apart connections that had the same ports one after the other.
    #[serde(default)]
    pub(super) time: Option<String>,
}

/// One sample of a metrics page.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) value: f64,
}

/// Whether the sidecar takes requests.
pub(super) fn is_ready(admin: SocketAddr) -> bool {
    get(admin, "/ready").is_ok()
}

/// Its handshakes.
pub(super) fn handshakes(admin: SocketAddr) -> Result<Vec<Handshake>, Error> {
    let page = get(admin, "/handshakes")?;
    // Either the list itself, or an object that holds it beside the counts.
    let mut page: serde_json::Value = serde_json::from_str(&page).map_err(content)?;
    if let Some(records) = page.get_mut("records") {
        page = records.take();
    }
    serde_json::from_value(page).map_err(content)
}

/// Its metrics.
pub(super) fn metrics(admin: SocketAddr) -> Result<Vec<Sample>, Error> {
    Ok(get(admin, "/metrics")?.lines().filter_map(sample).collect())
}

fn content(error: serde_json::Error) -> Error {
    Error::Content(error.to_string())
}

/// One page.
fn get(admin: SocketAddr, path: &str) -> Result<String, Error> {
    let answer = fetch(admin, "GET", "admin", path)?;
    if answer.status == 200 { Ok(answer.body) } else { Err(Error::Status(answer.status)) }
}

/// A line of the Prometheus text format: `name{label="value",…} number`.
fn sample(line: &str) -> Option<Sample> {
    if line.starts_with('#') {
        return None;
    }
    let (series, value) = match line.rfind('}') {
        Some(end) => (&line[..=end], &line[end + 1..]),
        None => line.split_once(' ')?,
    };
    let value = value.split_whitespace().next()?.parse().ok()?;
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    Some(Sample { name: name.to_owned(), labels: labels_of(labels), value })
}

/// `a="b",c="d"}` as a map. Names in the shop need no escapes.
fn labels_of(text: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut rest = text.trim_end_matches('}');
    while let Some((name, after)) = rest.split_once("=\"") {
        let Some((value, after)) = after.split_once('"') else { break };
        labels.insert(name.trim_start_matches(',').to_owned(), value.to_owned());
        rest = after;
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_labels() {
        let read = sample(r#"ringmesh_requests_total{service="a",class="2xx"} 12"#).unwrap();
        assert_eq!((read.name.as_str(), read.value), ("ringmesh_requests_total", 12.0));
        assert_eq!(read.labels["service"], "a");
        assert_eq!(read.labels["class"], "2xx");
        let plain = sample("up 1").unwrap();
        assert_eq!((plain.name.as_str(), plain.labels.len(), plain.value), ("up", 0, 1.0));
        assert_eq!(sample("# HELP up x"), None);
        assert_eq!(sample(""), None);
    }
}
