//! The shop as processes: a service and a sidecar for each member.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use ringmesh_loadgen::Driver;
use serde::Serialize;

use super::child::{self, Child};
use super::fetch::fetch;
use super::folder::Folder;
use super::shop::{CHARGE, DRAIN_SECONDS, HOPS, Member, Shop, TRUST_DOMAIN, spiffe_id};
use super::signals::Asked;
use super::{admin, ports};
use crate::identity::ca;

/// How often a part is asked whether it is up.
const TICK: Duration = Duration::from_millis(25);

/// How long all parts together may take to come up. Five times what they need on a slow machine.
const START_TIMEOUT: Duration = Duration::from_secs(25);

/// How often the shop is begun anew because somebody took one of its ports.
const MAX_PORT_CLASHES: u32 = 3;

/// How long the processes have to end, beyond the drain.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// What the kernel says of a port that is taken.
const PORT_TAKEN: [&str; 2] = ["in use", "EADDRINUSE"];

/// Why the shop did not come up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There are no free ports.
    #[error(transparent)]
    Ports(#[from] PortsError),
    /// The certificates could not be made.
    #[error("cannot make the shop's certificates")]
    Identity(#[from] ca::Error),
    /// A config file could not be written.
    #[error("cannot write {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// A process could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A process ended at once.
    #[error("{name} ended instead of serving ({status}); its log ends with:\n{log}")]
    Ended {
        /// Which.
        name: String,
        /// How.
        status: String,
        /// The end of its log.
        log: String,
    },
    /// A process does not serve.
    #[error("{name} did not come up within {} s; its log ends with:\n{log}", START_TIMEOUT.as_secs())]
    TooLate {
        /// Which.
        name: String,
        /// The end of its log.
        log: String,
    },
    /// All processes serve, but no request comes through.
    #[error("all processes are up, but the shop answers {answer}")]
    NotOpen {
        /// What it answers.
        answer: String,
    },
    /// Ctrl-C before it was up.
    #[error("ended before the shop was up")]
    Asked,
}

/// There are no free ports.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct PortsError(#[from] ports::Error);

/// A process could not be started.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StartError(#[from] child::Error);

/// The processes of one member, as the summary names them.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Processes {
    pub(super) service: u32,
    pub(super) control: u32,
    pub(super) data_plane: Vec<u32>,
}

/// All processes. Dropping it kills those that still run.
pub(super) struct Town {
    pub(super) shop: Shop,
    services: Vec<Child>,
    sidecars: Vec<Child>,
}

impl Town {
    /// Brings the shop up: when this returns, it answers.
    pub(super) fn start(folder: &Folder, driver: Driver, asked: &Asked) -> Result<Self, Error> {
        make_identities(folder)?;
        let mut clashes = 0;
        loop {
            match Self::try_start(folder, driver, asked) {
                Err(Error::Ended { log, .. })
                    if clashes < MAX_PORT_CLASHES && PORT_TAKEN.iter().any(|text| log.contains(text)) =>
                {
                    clashes += 1;
                }
                result => return result,
            }
        }
    }

    fn try_start(folder: &Folder, driver: Driver, asked: &Asked) -> Result<Self, Error> {
        let shop = Shop::new(folder.path(), driver).map_err(PortsError)?;
        for member in &shop.members {
            let path = shop.config_file(member);
            fs::write(&path, shop.config(member)).map_err(|source| Error::Write { path, source })?;
        }
        let mut town = Self { shop, services: Vec::new(), sidecars: Vec::new() };
        for member in &town.shop.members {
            let (service, sidecar) = commands(&town.shop, member, folder);
            town.services
                .push(Child::start(&format!("{}-service", member.name), &service, &folder.logs()).map_err(StartError)?);
            town.sidecars
                .push(Child::start(&format!("{}-sidecar", member.name), &sidecar, &folder.logs()).map_err(StartError)?);
        }
        let deadline = Instant::now() + START_TIMEOUT;
        for (index, member) in town.shop.members.iter().enumerate() {
            let ports = member.ports.clone();
            wait(&mut town.services[index], deadline, asked, || listens(ports.service))?;
            wait(&mut town.sidecars[index], deadline, asked, || admin::is_ready(ports.admin))?;
            town.sidecars[index].find_descendants();
        }
        town.wait_until_open(deadline, asked)?;
        Ok(town)
    }

    /// All parts are up; the shop is open when a customer is served.
    fn wait_until_open(&mut self, deadline: Instant, asked: &Asked) -> Result<(), Error> {
        loop {
            let answer = match fetch(self.shop.front_door, "GET", "shop", "/") {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => format!("{} {}", answer.status, answer.body.trim()),
                Err(error) => error.to_string(),
            };
            self.check_alive()?;
            if asked.is_asked() {
                return Err(Error::Asked);
            }
            if Instant::now() >= deadline {
                return Err(Error::NotOpen { answer });
            }
            thread::sleep(TICK);
        }
    }

    /// # Errors
    /// Names a process that has ended.
    pub(super) fn check_alive(&mut self) -> Result<(), Error> {
        self.children().try_for_each(|child| match child.ended() {
            None => Ok(()),
            Some(status) => Err(ended(child, status)),
        })
    }

    /// Notes data planes that were started meanwhile.
    pub(super) fn find_descendants(&mut self) {
        self.sidecars.iter_mut().for_each(Child::find_descendants);
    }

    /// Which processes there are.
    pub(super) fn processes(&self) -> BTreeMap<&'static str, Processes> {
        let members = self.shop.members.iter().zip(self.services.iter().zip(&self.sidecars));
        members
            .map(|(member, (service, sidecar))| {
                let processes = Processes {
                    service: service.id(),
                    control: sidecar.id(),
                    data_plane: sidecar.descendants().collect(),
                };
                (member.name, processes)
            })
            .collect()
    }

    /// Ends all processes: sidecars first, so that none of them misses its service. Says what did not end well.
    pub(super) fn end(mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        for children in [&mut self.sidecars, &mut self.services] {
            let deadline = Instant::now() + Duration::from_secs(DRAIN_SECONDS) + END_TIMEOUT;
            children.iter_mut().for_each(Child::ask_to_end);
            wrong.extend(children.iter_mut().filter_map(|child| child.wait(deadline).err()));
        }
        wrong
    }

    fn children(&mut self) -> impl Iterator<Item = &mut Child> {
        self.services.iter_mut().chain(&mut self.sidecars)
    }
}

/// An authority of the shop's own, and an SVID for each workload.
fn make_identities(folder: &Folder) -> Result<(), Error> {
    let authority = folder.path().join("ca");
    ca::init(&authority, TRUST_DOMAIN)?;
    let authority = ca::Authority::open(&authority)?;
    for workload in ["web", "checkout", "payments"] {
        let out = folder.path().join("identity").join(workload);
        authority.issue(&out, &spiffe_id(workload), ca::DEFAULT_TTL)?;
    }
    Ok(())
}

/// The arguments of a member's service and of its sidecar.
fn commands(shop: &Shop, member: &Member, folder: &Folder) -> (Vec<String>, Vec<String>) {
    let mut service = vec![
        "demo-service".to_owned(),
        format!("--name={}", member.workload),
        format!("--shop-version={}", member.version),
        format!("--bind={}", member.ports.service),
        format!("--driver={}", shop.driver.name()),
    ];
    // web asks checkout, and checkout asks payments; whatever version that is, is the mesh's choice.
    let called = HOPS.iter().find(|hop| hop.from == member.name);
    if let Some(hop) = called {
        let (method, path) = if hop.service == "payments" { CHARGE } else { ("GET", "/cart") };
        service.push(format!("--call={},{method},{path},{}", hop.service, member.ports.outbound));
    }
    let sidecar = vec![
        "run".to_owned(),
        "-c".to_owned(),
        shop.config_file(member).display().to_string(),
        "--runtime-dir".to_owned(),
        folder.runtime(member.name).display().to_string(),
    ];
    (service, sidecar)
}

/// Waits until a process serves.
fn wait(child: &mut Child, deadline: Instant, asked: &Asked, serves: impl Fn() -> bool) -> Result<(), Error> {
    loop {
        // First whether it still runs: the port could be another's.
        if let Some(status) = child.ended() {
            return Err(ended(child, status));
        }
        if serves() {
            return Ok(());
        }
        if asked.is_asked() {
            return Err(Error::Asked);
        }
        if Instant::now() >= deadline {
            return Err(Error::TooLate { name: child.name.clone(), log: child.log_tail() });
        }
        thread::sleep(TICK);
    }
}

fn ended(child: &Child, status: std::process::ExitStatus) -> Error {
    Error::Ended { name: child.name.clone(), status: status.to_string(), log: child.log_tail() }
}

fn listens(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, TICK * 10).is_ok()
}
