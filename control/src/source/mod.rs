//! Where configuration comes from besides the command line: files that change, and names that resolve.

pub mod file;
pub mod dns;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringmesh_model::config::{self, Config};
use ringmesh_model::error::Problems;
use ringmesh_model::resolve::{self, resolve};
use ringmesh_model::snapshot::{Identity, Snapshot};
use ringmesh_model::workload::IdentitySource;

use self::dns::{Answers, Names};
use crate::identity;

/// What the files say together; all of it fits.
#[derive(Clone)]
pub struct Files {
    /// The config.
    pub config: Arc<Config>,
    /// The SVID, if the config names one.
    pub identity: Option<Identity>,
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
}

impl Error {
    /// What is wrong, a line each.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Config(problems) => problems.iter().map(ToString::to_string).collect(),
            Self::Identity { .. } => vec![self.to_string()],
        }
    }
}

impl Files {
    /// Reads a config file and what it names, and sees that all of it fits together.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn read(file: &Path) -> Result<Self, Error> {
        Self::of(config::read(file)?)
    }

    /// Reads what a config names, and sees that all of it fits together.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn of(config: Config) -> Result<Self, Error> {
        let identity = match &config.workload.identity {
            Some(named) => {
                let IdentitySource::Files(folder) = &named.value;
                let wrong = |source| Error::Identity { file: config.file.clone(), line: named.place.line, source };
                Some(identity::files::read(folder).map_err(wrong)?)
            }
            None => None,
        };
        let files = Self { config: Arc::new(config), identity };
        files.resolve(&resolve::Answers::new())?;
        Ok(files)
    }

    /// Like [`Self::read`]; an SVID that cannot be used now is no reason to refuse the config while the one of `before`
    /// still is: it is a fault of its own, given back beside.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn read_after(file: &Path, before: &Self) -> Result<(Self, Option<Error>), Error> {
        let config = config::read(file)?;
        let same_folder = config.identity_folder() == before.config.identity_folder();
        match Self::of(config.clone()) {
            Err(fault @ Error::Identity { .. }) if same_folder => {
                let files = Self { config: Arc::new(config), identity: before.identity.clone() };
                files.resolve(&resolve::Answers::new())?;
                Ok((files, Some(fault)))
            }
            done => Ok((done?, None)),
        }
    }

    /// The snapshot that they make, with what DNS answered.
    ///
    /// # Errors
    /// What does not fit together.
    pub fn resolve(&self, answers: &resolve::Answers) -> Result<Snapshot, Problems> {
        resolve(&self.config, answers, self.identity.clone(), 0)
    }

    /// Everything that is to be watched for changes.
    pub fn paths(&self, file: &Path) -> Vec<PathBuf> {
        let folder = self.config.identity_folder();
        let names = [identity::files::CHAIN_FILE, identity::files::KEY_FILE, identity::files::BUNDLE_FILE];
        let identity = folder.into_iter().flat_map(|folder| names.map(|name| folder.join(name)));
        std::iter::once(file.to_owned()).chain(identity).collect()
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

/// The addresses of each endpoint name of `config`. A name that never resolved is left out.
fn endpoints(config: &Config, answers: &Answers) -> resolve::Answers {
    let addresses = |host: &str, port| {
        let answer = answers.get(host).filter(|answer| !answer.addresses.is_empty())?;
        Some(answer.addresses.iter().map(|address| SocketAddr::new(*address, port)).collect())
    };
    config.names().into_iter().filter_map(|name| Some((name.clone(), addresses(&name.host, name.port)?))).collect()
}
