//! Where configuration comes from besides the command line: files that change, and names that resolve.

pub mod file;
pub mod dns;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringmesh_model::config::{self, Config};
use ringmesh_model::error::Problems;
use ringmesh_model::resolve::{self, Credentials, resolve};
use ringmesh_model::snapshot::Snapshot;
use ringmesh_model::workload::IdentitySource;

use self::dns::{Answers, Names};
use crate::{identity, machine};

/// What the files say together; all of it fits.
#[derive(Clone)]
pub struct Files {
    /// The config.
    pub config: Arc<Config>,
    /// The SVID, if the config names one, and the listeners' certificates.
    pub credentials: Credentials,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The config file is wrong.
    #[error(transparent)]
    Config(#[from] Problems),
    /// The SVID is.
    #[error("{file}:{line}: [workload]: `identity`: {source}")]
    Identity {
        /// The config file.
        file: String,
        /// The line that names it.
        line: u32,
        /// What is wrong.
        source: identity::Error,
    },
    /// A listener's certificate is.
    #[error("{file}:{line}: `tls`: {source}")]
    Certificate {
        /// The config file.
        file: String,
        /// The line that names it.
        line: u32,
        /// What is wrong.
        source: identity::Error,
    },
}

impl Error {
    /// What is wrong, a line each.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Config(problems) => problems.iter().map(ToString::to_string).collect(),
            Self::Identity { .. } | Self::Certificate { .. } => vec![self.to_string()],
        }
    }
}

impl Files {
    /// Reads a config file and what it names, and sees that all of it fits together.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn read(file: &Path) -> Result<(Self, Option<Error>), Error> {
        Self::of(config::read(file)?)
    }

    /// Reads what a config names, and sees that all of it fits together. A listener's certificate that has ended is a fault, given
    /// back beside, and no reason to serve nobody.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn of(config: Config) -> Result<(Self, Option<Error>), Error> {
        Self::with(config, None)
    }

    /// Like [`Self::read`]; an SVID or a certificate that cannot be used now is no reason to refuse the config while that of
    /// `before` still is: it is a fault of its own, given back beside.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn read_after(file: &Path, before: &Self) -> Result<(Self, Option<Error>), Error> {
        Self::with(config::read(file)?, Some(before))
    }

    fn with(config: Config, before: Option<&Self>) -> Result<(Self, Option<Error>), Error> {
        let mut fault = None;
        let mut credentials = Credentials::default();
        if let Some(named) = &config.workload.identity {
            let IdentitySource::Files(folder) = &named.value;
            let same = before.filter(|before| before.config.identity_folder() == Some(folder));
            let known = same.and_then(|before| before.credentials.identity.clone());
            let wrong = |source| Error::Identity { file: config.file.clone(), line: named.place.line, source };
            credentials.identity = Some(or_known(identity::files::read(folder).map_err(wrong), known, &mut fault)?);
        }
        for files in config.certificates() {
            let known = before.and_then(|before| before.credentials.certificates.get(&files.value).cloned());
            let wrong = |source| Error::Certificate { file: config.file.clone(), line: files.place.line, source };
            let certificate = match identity::files::read_certificate(files) {
                Ok((certificate, None)) => certificate,
                Ok((certificate, Some(ended))) => {
                    fault.get_or_insert(wrong(ended));
                    known.unwrap_or(certificate)
                }
                Err(error) => or_known(Err(wrong(error)), known, &mut fault)?,
            };
            credentials.certificates.insert(files.value.clone(), certificate);
        }
        if config.listeners.iter().any(|listener| listener.intercept.is_some()) {
            credentials.marking = machine::marking();
        }
        let files = Self { config: Arc::new(config), credentials };
        files.resolve(&resolve::Answers::new())?;
        Ok((files, fault))
    }

    /// The snapshot that they make, with what DNS answered.
    ///
    /// # Errors
    /// What does not fit together.
    pub fn resolve(&self, answers: &resolve::Answers) -> Result<Snapshot, Problems> {
        resolve(&self.config, answers, self.credentials.clone(), 0)
    }

    /// Everything that is to be watched for changes.
    pub fn paths(&self, file: &Path) -> Vec<PathBuf> {
        let folder = self.config.identity_folder();
        let names = [identity::files::CHAIN_FILE, identity::files::KEY_FILE, identity::files::BUNDLE_FILE];
        let identity = folder.into_iter().flat_map(|folder| names.map(|name| folder.join(name)));
        let certificates = self.config.certificates().flat_map(|files| [&files.certificate, &files.key]).cloned();
        std::iter::once(file.to_owned()).chain(identity).chain(certificates).collect()
    }

    /// The hosts that DNS has to resolve.
    pub fn hosts(&self) -> BTreeSet<String> {
        self.config.names().into_iter().map(|name| name.host).collect()
    }

    /// What DNS answered, as the model wants it.
    pub fn answers(&self, names: &Names) -> resolve::Answers {
        endpoints(&self.config, names.answers())
    }
}

/// What was read, or what is known of before with the fault noted.
fn or_known<T>(read: Result<T, Error>, known: Option<T>, fault: &mut Option<Error>) -> Result<T, Error> {
    match (read, known) {
        (Err(error), Some(known)) => {
            fault.get_or_insert(error);
            Ok(known)
        }
        (read, _) => read,
    }
}

/// The addresses of each endpoint name of `config`. A name that never resolved is left out.
fn endpoints(config: &Config, answers: &Answers) -> resolve::Answers {
    let addresses = |host: &str, port| {
        let answer = answers.get(host).filter(|answer| !answer.addresses.is_empty())?;
        Some(answer.addresses.iter().map(|address| SocketAddr::new(*address, port)).collect())
    };
    config.names().into_iter().filter_map(|name| Some((name.clone(), addresses(&name.host, name.port)?))).collect()
}
