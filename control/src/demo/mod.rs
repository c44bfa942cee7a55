//! `ringmesh demo`: a small shop whose services talk only through Ringmesh.
//!
//! ```text
//! customers → front door │ web │ ═mTLS═> │ checkout │ ═mTLS═> │ payments v1 │ 90 %
//!                         sidecar          sidecar    ═mTLS═> │ payments v2 │ 10 %
//! ```
//!
//! Every service is a process with a sidecar of its own. The demo lays the shop out (`shop`), starts the processes (`town`),
//! sends load from its own process, watches what the sidecars say of themselves (`meter`, `hops`), shows it (`screen`), and
//! sums it up (`summary`).

// How the shop is laid out and brought up.
mod shop;
mod ports;
mod folder;
mod town;
mod child;
mod signals;
pub mod service;

// What is seen of it.
mod fetch;
mod admin;
mod meter;
mod hops;
mod plaintext;

// What is told.
mod screen;
mod summary;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ringmesh_loadgen::Driver;
use ringmesh_loadgen::arrival::Arrivals;
use ringmesh_loadgen::load::{self, Entry, Expect, Protocol};
use ringmesh_loadgen::report::Report;
use ringmesh_loadgen::serve::SERVED_BY;

use self::folder::Folder;
pub use self::folder::Keep;
use self::hops::Records;
use self::meter::Meter;
use self::screen::Screen;
pub use self::screen::Show;
use self::shop::{CHARGE, Shop};
use self::signals::Asked;
pub use self::summary::Summary;
use self::town::Town;

/// Requests a second if nothing else is asked for.
pub const DEFAULT_RATE: f64 = 300.0;

/// Connections of the customers.
const CONNECTIONS: usize = 16;

/// How long a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Calls a second that the policy must refuse.
const REFUSED_PER_SECOND: f64 = 1.0;

/// How often the sidecars are asked.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How often a request to end is looked for.
const TICK: Duration = Duration::from_millis(50);

/// How long the sidecars may take to tell of the last handshakes.
const RECORDS_TIMEOUT: Duration = Duration::from_secs(5);

/// What is asked of a demo.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long it runs. None: until somebody asks for the end.
    pub duration: Option<Duration>,
    /// Requests a second at the front door.
    pub rate: f64,
    /// The I/O driver of all its parts.
    pub driver: Driver,
    /// Where its files go. None: a new folder of its own.
    pub directory: Option<PathBuf>,
    /// Whether they stay.
    pub keep: Keep,
    /// What is shown meanwhile.
    pub show: Show,
}

/// Why there was no demo.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No folder for its files.
    #[error(transparent)]
    Folder(#[from] folder::Error),
    /// The shop did not come up.
    #[error("the shop did not come up (its files are in {folder})", folder = .folder.display())]
    Town {
        /// Why.
        source: Box<town::Error>,
        /// Where to look further.
        folder: PathBuf,
    },
    /// Ctrl-C before it was up.
    #[error("ended before the shop was up")]
    Asked,
    /// No load.
    #[error("cannot send load")]
    Load(#[from] load::Error),
    /// Signals cannot be listened to, or nothing can be shown.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Runs the demo from the first certificate to the last process.
///
/// # Errors
/// If the shop does not come up, or no load can be sent. What goes wrong afterwards is in the summary.
pub fn run(options: &Options) -> Result<Summary, Error> {
    let asked = Asked::listen()?;
    let mut folder = Folder::make(options.directory.as_deref(), options.keep)?;
    let mut screen = Screen::new(options.show);
    screen.starting(folder.path())?;
    let town = Town::start(&folder, options.driver, &asked).map_err(|source| match source {
        town::Error::Asked => Error::Asked,
        source => {
            folder.keep();
            Error::Town { source: Box::new(source), folder: folder.path().to_owned() }
        }
    })?;
    let summary = observe(options, town, &asked, &mut screen, folder.path())?;
    // Who watches may have broken it on purpose, or ended it at once.
    if options.duration.is_some() && !summary.problems().is_empty() {
        folder.keep();
    }
    Ok(summary.with_folder(folder.path(), folder.stays()))
}

/// Sends load, watches, and ends everything.
fn observe(
    options: &Options,
    mut town: Town,
    asked: &Asked,
    screen: &mut Screen,
    folder: &Path,
) -> Result<Summary, Error> {
    let attempts = plaintext_attempts(&town.shop);
    let mut customers = load::start(customers(&town.shop, options))?;
    let mut intruder = load::start(intruder(&town.shop, options))?;
    let mut watch = Watch::default();
    let mut deaths = Vec::new();

    screen.open(&town.shop, folder)?;
    let mut next_poll = Instant::now();
    while !asked.is_asked() && !customers.is_finished() {
        if Instant::now() >= next_poll {
            next_poll = Instant::now() + POLL_INTERVAL;
            let load = customers.progress();
            watch.poll(&mut town, &load);
            if let Err(death) = town.check_alive()
                && deaths.is_empty()
            {
                deaths.push(death.to_string());
            }
            let compared = watch.records.compare(&town.shop);
            screen.draw(&screen::State {
                load: &load,
                refused: &intruder.progress(),
                meter: &watch.meter,
                hops: &compared,
                attempts: &attempts,
                deaths: &deaths,
            })?;
        }
        thread::sleep(TICK);
    }

    // Once more: an edit may have opened a port meanwhile.
    let attempts =
        attempts.into_iter().zip(plaintext_attempts(&town.shop)).map(|(first, last)| first.worse(last)).collect();
    customers.end();
    intruder.end();
    let (customers, intruder) = (customers.wait()?, intruder.wait()?);
    let hops = watch.compare_when_told(&mut town);
    let processes = town.processes();
    screen.ending()?;
    let mut problems = deaths;
    problems.extend(town.end());
    Ok(Summary::new(&customers, &intruder, hops, attempts, processes, problems))
}

/// The customers: open loop at the front door.
fn customers(shop: &Shop, options: &Options) -> load::Settings {
    let mut settings = load::Settings {
        arrivals: Arrivals::constant(options.rate),
        connections: CONNECTIONS,
        duration: options.duration,
        timeout: REQUEST_TIMEOUT,
        driver: options.driver.into(),
        ..load::Settings::http(shop.front_door.into(), vec![Entry::get("shop", "/")])
    };
    if let Protocol::Http(http) = &mut settings.protocol {
        http.count_field = Some(SERVED_BY.to_owned());
    }
    settings
}

/// Somebody on web's host who calls payments, which is checkout's right alone.
fn intruder(shop: &Shop, options: &Options) -> load::Settings {
    let (method, path) = CHARGE;
    let entry = Entry { method: method.to_owned(), expect: Expect::Status(403), ..Entry::get("payments", path) };
    load::Settings {
        arrivals: Arrivals::constant(REFUSED_PER_SECOND),
        connections: 1,
        duration: options.duration,
        timeout: REQUEST_TIMEOUT,
        driver: options.driver.into(),
        ..load::Settings::http(shop.member("web").ports.outbound.into(), vec![entry])
    }
}

/// One plain connection to each inbound port, all at once.
fn plaintext_attempts(shop: &Shop) -> Vec<plaintext::Attempt> {
    thread::scope(|scope| {
        let attempts: Vec<_> = shop
            .members
            .iter()
            .map(|member| scope.spawn(|| plaintext::attempt(member.name, member.ports.inbound)))
            .collect();
        attempts.into_iter().map(|attempt| attempt.join().expect("an attempt does not panic")).collect()
    })
}

/// What the sidecars have told.
#[derive(Default)]
struct Watch {
    meter: Meter,
    records: Records,
}

impl Watch {
    /// Asks all sidecars. One that does not answer just now is asked again next time.
    fn poll(&mut self, town: &mut Town, load: &Report) {
        self.meter.take_customers(Instant::now(), &load.total);
        self.ask(town);
    }

    fn ask(&mut self, town: &mut Town) {
        let mut pages = BTreeMap::new();
        for member in &town.shop.members {
            if let Ok(page) = admin::metrics(member.ports.admin) {
                pages.insert(member.name, page);
            }
        }
        self.meter.take(Instant::now(), &pages);
        for member in &town.shop.members {
            if let Ok(page) = admin::handshakes(member.ports.admin) {
                self.records.add(member.name, page);
            }
        }
        town.find_descendants();
    }

    /// Compares both ends of all hops; records travel through control, and the last ones may still be on their way.
    fn compare_when_told(&mut self, town: &mut Town) -> Vec<hops::Compared> {
        let deadline = Instant::now() + RECORDS_TIMEOUT;
        loop {
            self.ask(town);
            let compared = self.records.compare_all(&town.shop, |hop| self.meter.opened(hop));
            let all = compared.iter().all(|hop| hop.connections > 0 && hop.faults.is_empty());
            if all || Instant::now() >= deadline {
                return compared;
            }
            thread::sleep(TICK);
        }
    }
}
