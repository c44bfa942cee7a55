//! `ringmesh intercept`: brings the connections of this network namespace to the proxy.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use ringmesh_model::config::{self, Config};
use ringmesh_model::resolve::{Answers, Credentials, resolve};

use super::{Failure, print};
use crate::intercept::{self, Rules, Shown};

const AFTER_HELP: &str = "\
Only TCP is intercepted, of IPv4 and IPv6, from the next connection on. What
is brought where, and what is left alone, is in the config: `intercept` of the
[[listener]]s, and [intercept]. The proxy's own connections and ports are
always left alone. The rules are nftables', in a table of their own; they
stay until --off or the end of the network namespace, whether the proxy runs
or not. Connections that are intercepted end with --off.

Examples:
  ringmesh intercept --on -c sidecar.toml             does nothing if it is on like that already
  ringmesh intercept --on -c sidecar.toml --dry-run   prints the rules
  ringmesh intercept --show                           connections by rule
  ringmesh intercept --off

Exit codes:
  0  it is as was asked for
  1  failed: no CAP_NET_ADMIN, no nftables, …; nothing has changed
  2  the command line or the config is wrong";

/// Brings the TCP connections of this network namespace to the proxy by themselves
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP, group(clap::ArgGroup::new("what").required(true).args(["on", "off", "show"])))]
pub(super) struct Args {
    /// From now on, as the config says
    #[arg(long, requires = "config")]
    on: bool,
    /// No more
    #[arg(long)]
    off: bool,
    /// Says whether it is on, and how often each rule was met
    #[arg(long)]
    show: bool,
    /// The config file that the proxy runs with
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Prints what would be told to `nft`, and changes nothing
    #[arg(long, conflicts_with = "show")]
    dry_run: bool,
}

pub(super) fn run(arguments: &Args) -> Result<(), Failure> {
    let rules = match &arguments.config {
        Some(file) if !arguments.off => Some(rules(file)?),
        _ => None,
    };
    match rules {
        Some(rules) if arguments.on && arguments.dry_run => print(&rules.to_string()),
        Some(rules) if arguments.on => {
            let changed = intercept::on(&rules)?;
            print(if changed { "on\n" } else { "on, as before\n" })
        }
        _ if arguments.off && arguments.dry_run => print(&intercept::off_script()),
        _ if arguments.off => {
            let were = intercept::off()?;
            print(if were { "off\n" } else { "off, as before\n" })
        }
        rules => match intercept::show()? {
            Some(shown) => print(&describe(&shown, rules.as_ref()).expect("a string takes everything")),
            None => print("off\n"),
        },
    }
}

fn rules(file: &Path) -> Result<Rules, Failure> {
    let config = config::read(file).map_err(|problems| Failure::Wrong(problems.to_string()))?;
    refuse_what_run_refuses(&config)?;
    Rules::of(&config).map_err(|none| Failure::Wrong(format!("{}: {none}", config.file)))
}

/// Rules for listeners that the proxy would not accept would lead nowhere. Whatever else is wrong is no concern here: the
/// identity, for one, may come later.
fn refuse_what_run_refuses(config: &Config) -> Result<(), Failure> {
    let Err(problems) = resolve(config, &Answers::new(), Credentials::default(), 0) else { return Ok(()) };
    let ours = problems.iter().filter(|problem| problem.field == "intercept");
    let lines: Vec<String> = ours.map(ToString::to_string).collect();
    if lines.is_empty() { Ok(()) } else { Err(Failure::Wrong(lines.join("\n"))) }
}

fn describe(shown: &Shown, wanted: Option<&Rules>) -> Result<String, std::fmt::Error> {
    let mut text = String::from("on");
    match wanted.map(|wanted| wanted.digest() == shown.digest) {
        Some(true) => text.push_str(", as the config says"),
        Some(false) => {
            text.push_str(", but not as the config says now; `ringmesh intercept --on` with it changes that")
        }
        None => {}
    }
    write!(text, "\n\n{:>11}  RULE\n", "CONNECTIONS")?;
    for (rule, connections) in &shown.rules {
        writeln!(text, "{connections:>11}  {rule}")?;
    }
    Ok(text)
}
