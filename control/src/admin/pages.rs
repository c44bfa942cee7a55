//! The pages: which there are, what each says, and what happens to requests for others.

use std::convert::Infallible;
use std::io::{self, Write};

use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde::Serialize;

use super::body::Body;
use super::{Inputs, accept, config, ready};
use crate::telemetry::{prometheus, summary};

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";

/// A page's path, and what it is in a line.
struct Page {
    path: &'static str,
    what: &'static str,
}

const PAGES: [Page; 8] = [
    Page { path: "/metrics", what: "counts and durations, as Prometheus text or OpenMetrics" },
    Page { path: "/ready", what: "200 if traffic is served as configured, else 503 and what is missing" },
    Page { path: "/live", what: "200 while the control process runs" },
    Page { path: "/status", what: "processes, config, endpoints and certificate as JSON; as `ringmesh status --json`" },
    Page { path: "/config", what: "the config in effect as JSON, with defaults and resolved names, without secrets" },
    Page { path: "/requests", what: "requests by route and service as JSON, with reasons and quantiles" },
    Page { path: "/handshakes", what: "the newest handshakes as JSON, one by one" },
    Page { path: "/handshakes/counts", what: "all handshakes as JSON, counted by who met whom" },
];

/// What other proxies call these pages.
const FOREIGN_PATHS: [(&str, &str); 14] = [
    ("/stats/prometheus", "/metrics"),
    ("/stats", "/metrics"),
    ("/healthz/ready", "/ready"),
    ("/readyz", "/ready"),
    ("/readiness", "/ready"),
    ("/health", "/ready"),
    ("/healthz", "/live"),
    ("/livez", "/live"),
    ("/liveness", "/live"),
    ("/ping", "/live"),
    ("/config_dump", "/config"),
    ("/server_info", "/status"),
    ("/clusters", "/status"),
    ("/certs", "/handshakes"),
];

type Answer = Response<Body>;

/// Answers one request.
pub(super) async fn answer(inputs: Inputs, request: Request<Incoming>) -> Result<Answer, Infallible> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "these pages are read by GET or HEAD\n".to_owned());
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(answer);
    }
    Ok(match request.uri().path() {
        "/" => index(&inputs),
        "/metrics" => metrics(inputs, request.headers()).await,
        "/ready" => is_ready(&inputs),
        "/live" => text(StatusCode::OK, "live\n".to_owned()),
        "/status" => status(inputs).await,
        "/config" => in_effect(&inputs).await,
        "/requests" => json(move || summary::requests(&inputs.telemetry.totals())).await,
        "/handshakes" => json(move || inputs.telemetry.events.handshakes()).await,
        "/handshakes/counts" => json(move || inputs.telemetry.events.handshake_counts()).await,
        other => not_found(other),
    })
}

async fn metrics(inputs: Inputs, headers: &HeaderMap) -> Answer {
    let wishes: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = accept::format(&wishes.join(","));
    let write =
        move |page: &mut dyn Write| prometheus::write(&inputs.telemetry.scrape(inputs.state.get()), format, page);
    let mut answer = written(format.media_type(), write).await;
    answer.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    answer
}

fn is_ready(inputs: &Inputs) -> Answer {
    let missing = inputs.state.read(ready::missing);
    if missing.is_empty() {
        return text(StatusCode::OK, "ready\n".to_owned());
    }
    text(StatusCode::SERVICE_UNAVAILABLE, missing.iter().map(|line| format!("not ready: {line}\n")).collect())
}

async fn status(inputs: Inputs) -> Answer {
    (inputs.refresh)().await;
    json(move || inputs.state.get()).await
}

async fn in_effect(inputs: &Inputs) -> Answer {
    let live = inputs.live.borrow().clone();
    match live {
        Some(snapshot) => json(move || config::show(&snapshot)).await,
        None => text(StatusCode::SERVICE_UNAVAILABLE, "no config is live yet\n".to_owned()),
    }
}

fn index(inputs: &Inputs) -> Answer {
    let (mesh, workload) = inputs.state.read(|state| (state.mesh.clone(), state.workload.clone()));
    let row = |page: &Page| format!("<tr><td><a href=\"{0}\">{0}</a><td>{1}\n", page.path, html(page.what));
    let page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>ringmesh: {workload}</title>\n\
         <h1>ringmesh: {workload}</h1>\n<p>Mesh {mesh}, version {version}\n<table>\n{rows}</table>\n",
        workload = html(&workload),
        mesh = html(&mesh),
        version = env!("CARGO_PKG_VERSION"),
        rows = PAGES.iter().map(row).collect::<String>(),
    );
    let mut answer = page_of(StatusCode::OK, HTML, Bytes::from(page).into());
    answer.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'"));
    answer
}

fn not_found(path: &str) -> Answer {
    let mut page = match nearest(path) {
        Some(meant) => format!("no such page; did you mean {meant}?\n\n"),
        None => "no such page; there are:\n\n".to_owned(),
    };
    page.extend(PAGES.iter().map(|page| format!("{:<20} {}\n", page.path, page.what)));
    text(StatusCode::NOT_FOUND, page)
}

/// The page that was meant: another proxy's name for it, or ours in other letters or with more after it.
fn nearest(path: &str) -> Option<&'static str> {
    let path = path.trim_end_matches('/').to_ascii_lowercase();
    if let Some((_, ours)) = FOREIGN_PATHS.iter().find(|(theirs, _)| *theirs == path) {
        return Some(ours);
    }
    let begins = |page: &&Page| path.starts_with(page.path) || (path.len() > 2 && page.path.starts_with(&path));
    PAGES.iter().find(|page| page.path == path).or_else(|| PAGES.iter().find(begins)).map(|page| page.path)
}

/// What `look` finds, which may take as long as writing it down.
async fn json<T: Serialize>(look: impl FnOnce() -> T + Send + 'static) -> Answer {
    let write = move |page: &mut dyn Write| {
        serde_json::to_writer_pretty(&mut *page, &look())?;
        page.write_all(b"\n")
    };
    written(JSON, write).await
}

/// A page that may be long.
async fn written(
    media_type: &'static str,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
) -> Answer {
    match Body::written(write).await {
        Ok(body) => page_of(StatusCode::OK, media_type, body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn text(status: StatusCode, page: String) -> Answer {
    page_of(status, TEXT, Bytes::from(page).into())
}

/// Every page is of this moment, and is what its type says.
fn page_of(status: StatusCode, media_type: &'static str, page: Body) -> Answer {
    let mut answer = Response::new(page);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_nearly_a_page_is_told_which() {
        for (path, expected) in [
            ("/Metrics", Some("/metrics")),
            ("/metrics/", Some("/metrics")),
            ("/metrics/x", Some("/metrics")),
            ("/metr", Some("/metrics")),
            ("/healthz/ready", Some("/ready")),
            ("/config_dump", Some("/config")),
            ("/handshakes/x", Some("/handshakes")),
            ("/", None),
            ("/m", None),
            ("/wp-login.php", None),
            ("", None),
        ] {
            assert_eq!(nearest(path), expected, "{path}");
        }
    }

    #[test]
    fn foreign_paths_lead_to_pages_that_are_there() {
        for (theirs, ours) in FOREIGN_PATHS {
            assert!(PAGES.iter().any(|page| page.path == ours), "{ours}");
            assert!(PAGES.iter().all(|page| page.path != theirs), "{theirs}");
        }
    }
}
