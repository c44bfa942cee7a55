//! What is shown while the demo runs: a live table on a terminal, a line now and then elsewhere.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringmesh_loadgen::report::Report;
use ringmesh_loadgen::unit::show_duration;

use super::hops::Compared;
use super::meter::{Meter, Reading};
use super::plaintext::Attempt;
use super::shop::{CHARGE, HOPS, Hop, SPLIT, Shop};

/// How often a line is written where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// What is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// A table that renews itself, or lines if standard output is no terminal.
    Live,
    /// Nothing.
    Nothing,
}

/// How it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Table,
    Lines,
    Nothing,
}

/// What there is to show.
pub(super) struct State<'a> {
    pub(super) load: &'a Report,
    pub(super) refused: &'a Report,
    pub(super) meter: &'a Meter,
    pub(super) hops: &'a [Compared],
    pub(super) attempts: &'a [Attempt],
    pub(super) deaths: &'a [String],
}

/// Standard output, while the demo runs.
pub(super) struct Screen {
    style: Style,
    colour: bool,
    /// Text that stays the same: what to try.
    help: String,
    front_door: String,
    next_line: Instant,
}

impl Screen {
    pub(super) fn new(show: Show) -> Self {
        let terminal = io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let style = match (show, terminal) {
            (Show::Nothing, _) => Style::Nothing,
            (Show::Live, true) => Style::Table,
            (Show::Live, false) => Style::Lines,
        };
        let colour = style == Style::Table && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { style, colour, help: String::new(), front_door: String::new(), next_line: Instant::now() }
    }

    /// The processes are being started.
    pub(super) fn starting(&mut self, folder: &Path) -> io::Result<()> {
        self.say(&format!("Starting a shop of four services with a sidecar each; files in {}\n", folder.display()))
    }

    /// The shop is up.
    pub(super) fn open(&mut self, shop: &Shop, folder: &Path) -> io::Result<()> {
        self.help = help(shop, folder);
        self.front_door = shop.front_door.to_string();
        match self.style {
            Style::Table => write(b"\x1b[2J"),
            Style::Lines => write(self.help.as_bytes()),
            Style::Nothing => Ok(()),
        }
    }

    /// Shows the present state.
    pub(super) fn draw(&mut self, state: &State<'_>) -> io::Result<()> {
        match self.style {
            Style::Nothing => Ok(()),
            Style::Table => {
                let mut frame = String::from("\x1b[?7l\x1b[H");
                for line in self.table(state).lines().chain(self.help.lines()) {
                    // Lines longer than the terminal is wide are cut, not wrapped.
                    frame.push_str(line);
                    frame.push_str("\x1b[K\r\n");
                }
                frame.push_str("\x1b[J\x1b[?7h");
                write(frame.as_bytes())
            }
            Style::Lines if Instant::now() >= self.next_line => {
                self.next_line = Instant::now() + LINE_INTERVAL;
                write(line(state).as_bytes())
            }
            Style::Lines => Ok(()),
        }
    }

    /// The processes are being ended.
    pub(super) fn ending(&mut self) -> io::Result<()> {
        self.say("\nEnding the shop …\n\n")
    }

    fn say(&self, text: &str) -> io::Result<()> {
        if self.style == Style::Nothing { Ok(()) } else { write(text.as_bytes()) }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn table(&self, state: &State<'_>) -> String {
        let mut text = String::new();
        let total = &state.load.total;
        let title = self.paint("1", "Ringmesh demo: web → checkout → payments, every hop mutual TLS");
        line_to(
            &mut text,
            &format!("{title}   {} requests, {:.0} s", total.requests(), state.load.elapsed.as_secs_f64()),
        );
        line_to(&mut text, "");
        let header = format!(
            "{:<24}{:>8}{:>10}{:>10}{:>10}{:>8}  {}",
            "route", "req/s", "success", "p50", "p99", "share", "caller"
        );
        line_to(&mut text, &self.paint("2", &header));
        let customers = "customers (plain edge, no hop)";
        line_to(&mut text, &self.row("front door → web", state.meter.read_customers(), None, customers));
        for (hop, compared) in HOPS.iter().zip(state.hops).take(HOPS.len() - 1) {
            let caller = compared.caller.as_deref().unwrap_or("");
            line_to(&mut text, &self.row(&route(hop), state.meter.read(hop), share(state.meter, hop), caller));
        }
        line_to(&mut text, "");
        let (connections, authenticated) = sum(state.hops);
        let all = connections == authenticated;
        let fact = |good: bool, text: String| if good { self.paint("32", &text) } else { self.paint("31", &text) };
        line_to(
            &mut text,
            &fact(all, format!("mutual TLS   {authenticated} of {connections} connections, checked from both ends")),
        );
        let refused = state.attempts.iter().filter(|attempt| attempt.was_refused()).count();
        let ports = state.attempts.len();
        line_to(
            &mut text,
            &fact(
                refused == ports,
                format!("plaintext    {refused} of {ports} inbound ports refused a plain connection"),
            ),
        );
        let calls = &state.refused.total;
        let good = calls.succeeded == calls.requests();
        let policy = format!(
            "policy       {} of {} calls refused: web → payments is forbidden",
            calls.succeeded,
            calls.requests()
        );
        line_to(&mut text, &fact(good, policy));
        for death in state.deaths {
            line_to(&mut text, &fact(false, death.lines().next().unwrap_or_default().to_owned()));
        }
        text
    }

    fn row(&self, route: &str, reading: Option<Reading>, share: Option<f64>, caller: &str) -> String {
        let Some(reading) = reading else { return format!("{route:<24}{:>8}", "…") };
        let success = format!("{:>9.2}%", reading.success_rate * 100.0);
        let success = self.paint(if reading.success_rate < 1.0 { "31" } else { "32" }, &success);
        let share = share.map(|share| format!("{:.1}%", share * 100.0)).unwrap_or_default();
        format!(
            "{route:<24}{:>8.1}{success}{:>10}{:>10}{share:>8}  {caller}",
            reading.per_second,
            show_duration(reading.p50),
            show_duration(reading.p99),
        )
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.style == Style::Table {
            // Lines wrap again, whatever was interrupted.
            let _gone = write(b"\x1b[?7h");
        }
    }
}

/// One line, where there is no terminal.
fn line(state: &State<'_>) -> String {
    let mut text = String::new();
    let total = &state.load.total;
    let write = write!(
        text,
        "{:>4.0} s  {} requests  {:.0}/s  success {:.2}%  p50 {}  p99 {}",
        state.load.elapsed.as_secs_f64(),
        total.requests(),
        state.load.rate(),
        total.success_rate() * 100.0,
        show_duration(total.quantile(0.5)),
        show_duration(total.quantile(0.99)),
    );
    write.expect(STRING);
    for (hop, (version, _)) in payments().zip(SPLIT) {
        if let Some(share) = share(state.meter, hop) {
            write!(text, "  {version} {:.1}%", share * 100.0).expect(STRING);
        }
    }
    let (connections, authenticated) = sum(state.hops);
    let refused = state.refused.total.succeeded;
    writeln!(text, "  mTLS {authenticated}/{connections}  refused calls {refused}").expect(STRING);
    text
}

/// The hops to the versions of payments, in their order.
fn payments() -> impl Iterator<Item = &'static Hop> {
    HOPS.iter().filter(|hop| hop.from == "checkout")
}

/// What part of checkout's calls takes this hop.
fn share(meter: &Meter, hop: &Hop) -> Option<f64> {
    if hop.from != "checkout" {
        return None;
    }
    let all: f64 = payments().filter_map(|hop| meter.read(hop)).map(|reading| reading.per_second).sum();
    let own = meter.read(hop)?.per_second;
    if all > 0.0 { Some(own / all) } else { None }
}

fn route(hop: &Hop) -> String {
    let to = match hop.to.strip_prefix("payments-") {
        Some(version) => format!("payments {version}"),
        None => hop.to.to_owned(),
    };
    format!("{} → {to}", hop.from)
}

fn sum(hops: &[Compared]) -> (usize, usize) {
    hops.iter().fold((0, 0), |sum, hop| (sum.0 + hop.connections, sum.1 + hop.authenticated))
}

fn help(shop: &Shop, folder: &Path) -> String {
    let file = |member: &str| -> PathBuf { shop.config_file(shop.member(member)) };
    let split = file("checkout");
    let ((_, one), (_, two)) = (SPLIT[0], SPLIT[1]);
    let (method, path) = CHARGE;
    format!(
        "\nEvery sidecar's TOML file, certificates and logs are in {folder}\n\
         \n\
         Three things to try in another terminal:\n\
         \x20 a customer's call       curl http://{front}/\n\
         \x20 an edit of the split    sed -i 's/weight = {one}/weight = 50/; s/weight = {two}/weight = 50/' {split}\n\
         \x20 a call that is refused  curl -i -X {method} -H 'Host: payments' http://{outbound}{path}\n\
         \n\
         Ctrl-C ends everything.\n",
        folder = folder.display(),
        front = shop.front_door,
        split = split.display(),
        outbound = shop.member("web").ports.outbound,
    )
}

fn line_to(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// Why writing to text does not fail.
const STRING: &str = "a String takes whatever is written to it";

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // Whoever read it has seen enough; the demo itself goes on.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
