//! Where to send, and what, as people write it.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use ringmesh_loadgen::load::Target;
use ringmesh_loadgen::{ProxyHeader, ProxyVersion, tls};
use ringmesh_ring::net::Address;

use super::tls::ClientTlsArgs;

#[derive(Args)]
pub(crate) struct TargetArgs {
    /// A further target, as ADDRESS or 'ADDRESS WEIGHT'; may be given several times. The first has weight 1
    #[arg(long = "target", value_name = "ADDRESS", value_parser = weighted)]
    further: Vec<(String, u32)>,
    /// Connect to this Unix socket instead
    #[arg(long, value_name = "PATH")]
    unix_socket: Option<PathBuf>,
    /// Begin each connection with a PROXY protocol header
    #[arg(long, value_enum, value_name = "VERSION")]
    proxy_protocol: Option<Version>,
    /// The client's address in that header, if not the own
    #[arg(long, value_name = "ADDRESS", requires = "proxy_protocol")]
    proxy_source: Option<SocketAddr>,
    #[command(flatten)]
    tls: ClientTlsArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Version {
    /// A line of text
    V1,
    /// Binary
    V2,
}

/// Whether connections are TLS.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Security {
    Plain,
    Tls,
}

impl Security {
    fn port(self) -> u16 {
        match self {
            Self::Plain => 80,
            Self::Tls => 443,
        }
    }
}

/// Where a load goes.
pub(crate) struct Place {
    pub(crate) targets: Vec<Target>,
    pub(crate) tls: Option<tls::Client>,
    pub(crate) proxy_header: Option<ProxyHeader>,
}

impl TargetArgs {
    /// The place that is meant by an authority and these options.
    pub(crate) fn place(&self, authority: &str, security: Security) -> anyhow::Result<Place> {
        let first = match &self.unix_socket {
            Some(path) => Address::Unix(path.clone()),
            None => address(authority, security)?,
        };
        let mut targets = vec![Target::from(first)];
        for (text, weight) in &self.further {
            targets.push(Target { address: address(text, security)?, weight: *weight });
        }
        let tls = match security {
            Security::Plain if self.tls.are_given() => {
                bail!("options of TLS are given, but the connection is plain; write https:// (for tcp: --tls)")
            }
            Security::Plain => None,
            Security::Tls => Some(self.tls.client(host_of(authority))?),
        };
        let proxy_header = self.proxy_protocol.map(|version| ProxyHeader {
            version: match version {
                Version::V1 => ProxyVersion::V1,
                Version::V2 => ProxyVersion::V2,
            },
            source: self.proxy_source,
        });
        Ok(Place { targets, tls, proxy_header })
    }
}

/// Takes a URL apart: whether it is TLS, its authority, and its path with the query.
pub(crate) fn split_url(url: &str) -> anyhow::Result<(Security, String, String)> {
    let (security, rest) = match url.split_once("://") {
        Some(("http" | "ws" | "grpc", rest)) => (Security::Plain, rest),
        Some(("https" | "wss" | "grpcs", rest)) => (Security::Tls, rest),
        _ => bail!("`{url}` is no URL that can be loaded; write one such as http://127.0.0.1:8080/path or https://…"),
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.is_empty() {
        bail!("`{url}` names no host; write one such as http://127.0.0.1:8080/path");
    }
    Ok((security, authority.to_owned(), format!("/{path}")))
}

/// An address as it is written: `HOST:PORT`, `HOST`, or `unix:PATH`.
pub(crate) fn address(text: &str, security: Security) -> anyhow::Result<Address> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(Address::Unix(path.into()));
    }
    let host = host_of(text);
    let with_port = if host.len() == text.len() { format!("{text}:{}", security.port()) } else { text.to_owned() };
    let mut addresses = with_port.to_socket_addrs().with_context(|| format!("cannot resolve `{text}`"))?;
    addresses.next().map(Address::Ip).with_context(|| format!("`{text}` has no address"))
}

/// An authority without its port.
fn host_of(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(at) if !authority[at..].contains(']') => &authority[..at],
        _ => authority,
    }
}

fn weighted(text: &str) -> Result<(String, u32), String> {
    match text.split_whitespace().collect::<Vec<_>>()[..] {
        [address] => Ok((address.to_owned(), 1)),
        [address, weight] => {
            let weight = weight.parse().map_err(|_| format!("the weight `{weight}` is no whole number"))?;
            Ok((address.to_owned(), weight))
        }
        _ => Err("write ADDRESS, or ADDRESS and WEIGHT".to_owned()),
    }
}

pub(crate) fn field(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write NAME: VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_written() {
        let check = |text: &str, security, expected: &str| {
            assert_eq!(address(text, security).expect("an address").to_string(), expected, "{text}");
        };
        check("127.0.0.1", Security::Plain, "127.0.0.1:80");
        check("127.0.0.1", Security::Tls, "127.0.0.1:443");
        check("[::1]", Security::Plain, "[::1]:80");
        check("[::1]:8080", Security::Tls, "[::1]:8080");
        check("unix:/run/a:1", Security::Plain, "unix:/run/a:1");
        assert!(address("127.0.0.1:99999", Security::Plain).is_err());
        assert!(split_url("127.0.0.1/").is_err());
        assert!(split_url("http:///a").is_err());
        let (security, authority, path) = split_url("https://shop:1/a/b?c").expect("a URL");
        assert!(security == Security::Tls);
        assert_eq!((authority.as_str(), path.as_str()), ("shop:1", "/a/b?c"));
    }
}
