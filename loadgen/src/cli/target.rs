//! Where to send, and what, as people write it.

use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, bail};

pub(crate) fn split_url(url: &str) -> anyhow::Result<(String, String)> {
    let Some(rest) = url.strip_prefix("http://") else {
        bail!("`{url}` is no plain HTTP URL; write one such as http://127.0.0.1:8080/path");
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.is_empty() {
        bail!("`{url}` names no host; write one such as http://127.0.0.1:8080/path");
    }
    Ok((authority.to_owned(), format!("/{path}")))
}

pub(crate) fn resolve(authority: &str) -> anyhow::Result<SocketAddr> {
    let with_port = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
    let mut addresses = with_port.to_socket_addrs().with_context(|| format!("cannot resolve `{authority}`"))?;
    addresses.next().with_context(|| format!("`{authority}` has no address"))
}

pub(crate) fn field(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write NAME: VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}
