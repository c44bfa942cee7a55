//! `ringmesh ca`: an authority in a directory, SVIDs from it, and what a certificate says.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args as ClapArgs, Subcommand};
use ringmesh_model::spiffe::SpiffeId;
use ringmesh_model::unit;

use crate::identity::ca::{self, Authority};
use crate::identity::files::{self, CHAIN_FILE};
use crate::identity::{Certificate, Date, Kind};

/// Certificates for workloads, without an outside authority.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  ringmesh ca init ca --trust-domain shop.example
  ringmesh ca issue --ca ca --out /etc/ringmesh/checkout checkout
  ringmesh ca show /etc/ringmesh/checkout

SVIDs live for a day unless --ttl says otherwise: issue them from a timer. A running
proxy notices new files by itself, and open connections go on.")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a root and an intermediate in DIR, which must be empty or missing
    Init {
        /// Where the authority lives
        dir: PathBuf,
        /// Name of the trust domain that it vouches for
        #[arg(long, value_name = "NAME", default_value = ca::DEFAULT_TRUST_DOMAIN)]
        trust_domain: String,
    },
    /// Issue an SVID: svid.pem, svid.key and bundle.pem, replaced together if they exist
    Issue {
        /// The workload's name
        name: String,
        /// The authority's directory
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// Where the files go; `[workload] identity = { files = DIR }` reads them there
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// The workload's namespace
        #[arg(long, value_name = "NAME", default_value = "default")]
        namespace: String,
        /// How long it lives, such as 90m or 24h
        #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = unit::duration)]
        ttl: Duration,
    },
    /// Replace the intermediate; needs the root's key. SVIDs already issued go on
    Renew {
        /// The authority's directory
        dir: PathBuf,
    },
    /// Print what certificates say: of a PEM file, or of every .pem file in a directory
    Show {
        /// A PEM file, an authority's directory or an identity's
        path: PathBuf,
    },
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let done = carry_out(args.command, &mut io::stdout().lock());
    let reader_left = |error: &anyhow::Error| {
        error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    match done {
        // `| head` has seen enough.
        Err(error) if reader_left(&error) => Ok(()),
        done => done,
    }
}

fn carry_out(command: Command, out: &mut impl Write) -> anyhow::Result<()> {
    match command {
        Command::Init { dir, trust_domain } => {
            ca::init(&dir, &trust_domain)?;
            let shown = dir.display();
            writeln!(out, "made an authority for trust domain `{trust_domain}` in {shown}")?;
            writeln!(out, "keep {shown}/offline elsewhere: only `ringmesh ca renew` needs the key in it")?;
            writeln!(out, "next: ringmesh ca issue --ca {shown} --out DIR NAME")?;
        }
        Command::Issue { name, ca, out: directory, namespace, ttl } => {
            let authority = Authority::open(&ca)?;
            let id = SpiffeId::workload(authority.trust_domain(), &namespace, &name)
                .with_context(|| format!("`{namespace}` and `{name}` make no SPIFFE ID"))?;
            let issued = authority.issue(&directory, &id, ttl)?;
            writeln!(out, "issued {} until {} in {}", issued.id, issued.expires, directory.display())?;
        }
        Command::Renew { dir } => {
            ca::renew(&dir)?;
            writeln!(out, "made a new intermediate in {}", dir.display())?;
        }
        Command::Show { path } => show(&path, out)?,
    }
    Ok(())
}

/// Prints the certificates of a file, or of a directory's `.pem` files and whether they make an identity.
fn show(path: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    let found = fs::metadata(path);
    let found =
        found.with_context(|| format!("cannot read {}: name a PEM file, or a directory of them", path.display()))?;
    if !found.is_dir() {
        return show_file(path, out);
    }
    let mut names = pem_names(path).with_context(|| format!("cannot read {}", path.display()))?;
    names.sort();
    if names.is_empty() {
        anyhow::bail!("{} holds no .pem file; name an identity's directory, an authority's, or a file", path.display());
    }
    for name in &names {
        show_file(&path.join(name), out)?;
    }
    if names.iter().any(|name| name == CHAIN_FILE) {
        let identity = files::read(path)?;
        writeln!(out, "key, chain and bundle fit: {} can be used", identity.id)?;
    }
    Ok(())
}

fn pem_names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".pem") && !name.starts_with('.') {
            names.push(name);
        }
    }
    Ok(names)
}

fn show_file(file: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    let certificates = files::certificates(file)?;
    for (position, certificate) in (1..).zip(&certificates) {
        writeln!(out, "{}, certificate {position} of {}", file.display(), certificates.len())?;
        show_certificate(certificate, out)?;
    }
    Ok(())
}

fn show_certificate(certificate: &Certificate, out: &mut impl Write) -> io::Result<()> {
    let kind = match certificate.kind {
        Kind::Authority => "authority",
        Kind::Leaf => "workload",
    };
    let id = match certificate.uris.as_slice() {
        [] => "none".to_owned(),
        uris => uris.join(", "),
    };
    let or_none = |name: &str| if name.is_empty() { "none".to_owned() } else { name.to_owned() };
    writeln!(out, "  id       {id}")?;
    writeln!(out, "  kind     {kind}")?;
    writeln!(out, "  subject  {}", or_none(&certificate.subject))?;
    writeln!(out, "  issuer   {}", or_none(&certificate.issuer))?;
    writeln!(out, "  serial   {}", certificate.serial)?;
    writeln!(
        out,
        "  valid    {} to {}{}",
        certificate.not_before,
        certificate.not_after,
        state(certificate, Date::now())
    )
}

/// What a reader of the dates should notice at once.
fn state(certificate: &Certificate, now: Date) -> &'static str {
    if certificate.not_after < now {
        " (expired)"
    } else if now < certificate.not_before {
        " (not valid yet)"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        ca: Args,
    }

    /// What `ringmesh ca` prints for a command line, or its error.
    fn said(line: &str) -> Result<String, String> {
        let cli = Cli::try_parse_from(format!("ca {line}").split(' ')).map_err(|error| error.to_string())?;
        let mut out = Vec::new();
        carry_out(cli.ca.command, &mut out).map_err(|error| format!("{error:#}"))?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn an_authority_is_made_and_issues_and_both_are_shown() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().display();
        let made = said(&format!("init {at}/ca --trust-domain shop.example")).unwrap();
        assert!(made.starts_with("made an authority for trust domain `shop.example`"), "{made}");
        let issued = said(&format!("issue --ca {at}/ca --out {at}/web --namespace shop web --ttl 90m")).unwrap();
        assert!(issued.starts_with("issued spiffe://shop.example/ns/shop/sa/web until "), "{issued}");
        let shown = said(&format!("show {at}/web")).unwrap();
        for line in [
            &*format!("{at}/bundle.pem, certificate 1 of 1").replace("/bundle", "/web/bundle"),
            &*format!("{at}/web/svid.pem, certificate 2 of 2"),
            "  id       spiffe://shop.example/ns/shop/sa/web",
            "  issuer   CN=Ringmesh intermediate, O=shop.example",
            "  id       spiffe://shop.example",
            "key, chain and bundle fit: spiffe://shop.example/ns/shop/sa/web can be used",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "`{line}` is missing in\n{shown}");
        }
        said(&format!("renew {at}/ca")).unwrap();
        let authority = said(&format!("show {at}/ca")).unwrap();
        assert!(
            authority.contains("intermediate.pem, certificate 1 of 1") && authority.contains("root.pem"),
            "{authority}"
        );
    }

    #[test]
    fn wrong_requests_say_what_to_try() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().display().to_string();
        let check = |line: &str, expected: &str| {
            let error = said(&line.replace("DIR", &at)).unwrap_err().replace(&at, "DIR");
            assert!(error.contains(expected), "{error}");
        };
        said(&format!("init {at}/ca")).unwrap();
        check("init DIR/ca", "DIR/ca is not empty");
        check("issue --ca DIR/none --out DIR/web web", "run: ringmesh ca init DIR/none");
        check("issue --ca DIR/ca --out DIR/web a/b", "`default` and `a/b` make no SPIFFE ID");
        check("issue --ca DIR/ca --out DIR/web web --ttl 1w", "unknown unit `w`");
        check("show DIR", "DIR holds no .pem file");
        check("show DIR/nothing.pem", "cannot read DIR/nothing.pem: name a PEM file");
    }
}
