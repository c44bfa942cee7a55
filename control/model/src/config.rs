//! The config file as typed values. References between objects are still names here; [`crate::resolve`] follows them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use toml::de::DeTable;

use crate::admin::{self, Admin};
use crate::edge;
use crate::error::{Cause, Located, Problem, Problems};
use crate::health;
use crate::hop;
use crate::intercept::{self, Intercept};
use crate::listener::{self, CertificateFiles, Listener};
use crate::log::{self, Log};
use crate::mesh::{self, Mesh};
use crate::policy::{self, Policy};
use crate::reader::{Keys, Section, Source};
use crate::route::{self, Route};
use crate::runtime::{self, Role, Runtime};
use crate::service::{self, EndpointAddress, HostPort, Service};
use crate::snapshot::Address;
use crate::unit::ByteSize;
use crate::workload::{self, IdentitySource, Workload};

/// Largest file that is read. 10,000 services of 20 endpoints are about 10 MiB; the bound keeps a wrong path, such as that of
/// a log or a device, from filling the memory.
pub const MAX_FILE: ByteSize = ByteSize(64 << 20);

/// Keys at the top.
pub const KEYS: Keys = Keys {
    path: "",
    header: "the top of the file",
    names: &["mesh", "workload", "runtime", "admin", "log", "intercept", "listener", "service", "route", "policy"],
};

/// Every kind of table with its keys: all that the parser knows.
pub const SECTIONS: &[&Keys] = &[
    &KEYS,
    &mesh::KEYS,
    &workload::KEYS,
    &workload::IDENTITY_KEYS,
    &runtime::KEYS,
    &log::KEYS,
    &listener::KEYS,
    &listener::TLS_KEYS,
    &listener::PERMISSIONS_KEYS,
    &listener::PROXY_PROTOCOL_KEYS,
    &edge::REDIRECT_KEYS,
    &edge::HSTS_KEYS,
    &hop::FORWARDED_KEYS,
    &admin::KEYS,
    &intercept::KEYS,
    &service::KEYS,
    &service::ENDPOINT_KEYS,
    &health::KEYS,
    &route::KEYS,
    &route::RULE_KEYS,
    &route::MATCH_KEYS,
    &route::TO_KEYS,
    &policy::KEYS,
    &policy::ALLOW_KEYS,
];

/// A config file. Two are equal if they say the same, whatever the file's name, order of keys, comments and line breaks.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file, as it was named to us; only for messages.
    pub file: String,
    /// `[mesh]`.
    pub mesh: Mesh,
    /// `[workload]`.
    pub workload: Workload,
    /// `[runtime]`.
    pub runtime: Runtime,
    /// `[admin]`.
    pub admin: Admin,
    /// `[log]`.
    pub log: Log,
    /// `[intercept]`.
    pub intercept: Intercept,
    /// `[[listener]]`, in the order of the file.
    pub listeners: Vec<Listener>,
    /// `[[service]]`, in the order of the file.
    pub services: Vec<Service>,
    /// `[[route]]`, in the order of the file.
    pub routes: Vec<Route>,
    /// `[[policy]]`, in the order of the file.
    pub policies: Vec<Policy>,
}

impl PartialEq for Config {
    fn eq(&self, other: &Self) -> bool {
        // Taken apart, so that a new field cannot be forgotten.
        let Self { file: _, mesh, workload, runtime, admin, log, intercept, listeners, services, routes, policies } =
            self;
        *mesh == other.mesh
            && *workload == other.workload
            && *runtime == other.runtime
            && *admin == other.admin
            && *log == other.log
            && *intercept == other.intercept
            && *listeners == other.listeners
            && *services == other.services
            && *routes == other.routes
            && *policies == other.policies
    }
}

/// Reads a config file.
///
/// # Errors
/// If it cannot be read, is no TOML, or says what [`parse`] refuses.
pub fn read(path: &Path) -> Result<Config, Problems> {
    let file = path.display().to_string();
    match load(path) {
        Ok(text) => parse(&text, &file),
        Err((line, cause)) => {
            let place = line.map(|line| crate::error::Place { line, column: 1 });
            let (key, subject, field) = Default::default();
            Err(Problems::new(vec![Problem { file, place, key, subject, field, cause }]))
        }
    }
}

/// The file's text, or the line if one is to blame and the cause.
fn load(path: &Path) -> Result<String, (Option<u32>, Cause)> {
    let whole = |error: io::Error| (None, Cause::Unreadable(error));
    let mut bytes = Vec::new();
    File::open(path).map_err(whole)?.take(MAX_FILE.0 + 1).read_to_end(&mut bytes).map_err(whole)?;
    if bytes.len() as u64 > MAX_FILE.0 {
        return Err((None, Cause::TooLarge(MAX_FILE)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
        (u32::try_from(line).ok(), Cause::NotUtf8)
    })
}

/// Reads a config from its text. `file` is named in messages, and paths in the text are relative to its folder.
///
/// # Errors
/// All that is wrong with it, with file, line and key. References between objects are not followed yet.
pub fn parse(text: &str, file: &str) -> Result<Config, Problems> {
    let source = Source::new(file, text);
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let place = error.span().map(|span| source.place(span.start));
        source.note(place, Cause::Syntax(error.message().to_owned()));
    }
    // What the parser makes of a broken file would only add noise.
    let config = errors.is_empty().then(|| interpret(&source, table.get_ref(), file));
    source.finish()?;
    Ok(config.expect("a syntax error is a problem, with which `finish` fails"))
}

/// Makes a config of a table; what is wrong is noted in `source`, and then the config is not to be used.
fn interpret(source: &Source<'_>, table: &DeTable<'_>, file: &str) -> Config {
    let top = Section::root(source, table, &KEYS);
    let folder = Path::new(file).parent().unwrap_or(Path::new(""));
    Config {
        file: file.to_owned(),
        mesh: top.table(&mesh::KEYS).map(|section| Mesh::read(&section)).unwrap_or_default(),
        workload: top.table(&workload::KEYS).map(|section| Workload::read(&section, folder)).unwrap_or_default(),
        runtime: top.table(&runtime::KEYS).map(|section| Runtime::read(&section)).unwrap_or_default(),
        admin: top.table(&admin::KEYS).map(|section| Admin::read(&section)).unwrap_or_default(),
        log: top.table(&log::KEYS).map(|section| Log::read(&section)).unwrap_or_default(),
        intercept: top.table(&intercept::KEYS).map(|section| Intercept::read(&section)).unwrap_or_default(),
        listeners: top
            .tables(&listener::KEYS, "")
            .iter()
            .filter_map(|section| Listener::read(section, folder))
            .collect(),
        services: fitted(top.tables(&service::KEYS, "").iter().filter_map(Service::read).collect()),
        routes: fitted(top.tables(&route::KEYS, "hosts").iter().filter_map(Route::read).collect()),
        policies: top.tables(&policy::KEYS, "").iter().filter_map(Policy::read).collect(),
    }
}

/// Long lists are kept as long as the config is; they grow by doubling.
fn fitted<T>(mut list: Vec<T>) -> Vec<T> {
    list.shrink_to_fit();
    list
}

impl Config {
    /// The endpoints' names that DNS has to resolve.
    pub fn names(&self) -> BTreeSet<HostPort> {
        let endpoints = self.services.iter().flat_map(|service| &service.endpoints);
        endpoints
            .filter_map(|endpoint| match &endpoint.address {
                EndpointAddress::Name(name) => Some(name.clone()),
                EndpointAddress::At(_) => None,
            })
            .collect()
    }

    /// What the proxy is there for. It is a sidecar if it has something to do with an application on its own machine: it
    /// listens on loopback or a Unix socket (the application's way out), or calls something there (the application itself).
    pub fn role(&self) -> Role {
        let listens = self.listeners.iter().any(|listener| is_local(&listener.bind));
        let calls =
            self.services.iter().flat_map(|service| &service.endpoints).any(|endpoint| match &endpoint.address {
                EndpointAddress::At(address) => is_local(address),
                EndpointAddress::Name(name) => name.host == "localhost",
            });
        if listens || calls { Role::Sidecar } else { Role::Edge }
    }

    /// The certificates that listeners show, each with the line that names it.
    pub fn certificates(&self) -> impl Iterator<Item = &Located<CertificateFiles>> {
        self.listeners.iter().flat_map(|listener| &listener.tls)
    }

    /// The folder that the SVID is read from, if the config names one.
    pub fn identity_folder(&self) -> Option<&Path> {
        self.workload.identity.as_ref().map(|identity| match &identity.value {
            IdentitySource::Files(folder) => folder.as_path(),
        })
    }
}

fn is_local(address: &Address) -> bool {
    match address {
        Address::Ip(address) => address.ip().is_loopback(),
        Address::Unix(_) => true,
    }
}
