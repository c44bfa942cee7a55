//! The folder that holds all that a demo makes.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// How many names are tried for a folder of our own.
const MAX_TRIES: u32 = 1_000;

/// Longest folder, in bytes, below which the sockets of a sidecar still find room in a socket's path (`sun_path`).
const MAX_SOCKET_FOLDER_BYTES: usize = 60;

/// The folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It holds something.
    #[error("{0} is not empty; the demo wants a folder of its own, which it makes if it is missing")]
    NotEmpty(PathBuf),
    /// The file system failed.
    #[error("cannot use the folder {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

/// Whether what a demo has made stays when it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It stays.
    Always,
    /// It stays if something went wrong.
    OnFailure,
}

/// The folder. Dropping it removes what need not stay.
pub(super) struct Folder {
    path: PathBuf,
    sockets: PathBuf,
    keep: Keep,
}

impl Folder {
    /// Makes it: the given one, or one of our own. A given one always stays.
    pub(super) fn make(given: Option<&Path>, keep: Keep) -> Result<Self, Error> {
        let (path, keep) = match given {
            Some(path) => (take(path)?, Keep::Always),
            None => (make_new("ringmesh-demo")?, keep),
        };
        for part in ["identity", "logs"] {
            private(&path.join(part))?;
        }
        let sockets = match path.as_os_str().len() {
            0..=MAX_SOCKET_FOLDER_BYTES => path.join("run"),
            _ => make_new("ringmesh-run")?,
        };
        if !sockets.exists() {
            private(&sockets)?;
        }
        Ok(Self { path, sockets, keep })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the processes' logs lie.
    pub(super) fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// The runtime directory of a sidecar.
    pub(super) fn runtime(&self, member: &str) -> PathBuf {
        self.sockets.join(member)
    }

    /// Something went wrong: what is in it may tell why.
    pub(super) fn keep(&mut self) {
        self.keep = Keep::Always;
    }

    /// Whether it will stay.
    pub(super) fn stays(&self) -> bool {
        self.keep == Keep::Always
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed stays; nothing depends on it.
        if !self.sockets.starts_with(&self.path) {
            let _stays = fs::remove_dir_all(&self.sockets);
        }
        if self.keep == Keep::OnFailure {
            let _stays = fs::remove_dir_all(&self.path);
        }
    }
}

/// A folder that the user named: absolute, since the config files name it.
fn take(path: &Path) -> Result<PathBuf, Error> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let path = fs::canonicalize(path).map_err(failed)?;
    if fs::read_dir(&path).map_err(failed)?.next().is_some() {
        return Err(Error::NotEmpty(path));
    }
    Ok(path)
}

/// A folder of our own, whose name nobody has taken.
fn make_new(name: &str) -> Result<PathBuf, Error> {
    let process = std::process::id();
    let mut number = 0;
    loop {
        let path = std::env::temp_dir().join(format!("{name}-{process}-{number}"));
        match private(&path) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists && number < MAX_TRIES => {
                number += 1;
            }
            made => return made.map(|()| path),
        }
    }
}

fn private(path: &Path) -> Result<(), Error> {
    DirBuilder::new().mode(0o700).create(path).map_err(|source| Error::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_own_folder_goes_unless_something_went_wrong() {
        let folder = Folder::make(None, Keep::OnFailure).unwrap();
        let path = folder.path().to_owned();
        assert!(path.join("logs").is_dir());
        drop(folder);
        assert!(!path.exists());

        let mut folder = Folder::make(None, Keep::OnFailure).unwrap();
        let path = folder.path().to_owned();
        folder.keep();
        drop(folder);
        assert!(path.exists());
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_given_folder_stays_and_must_be_empty() {
        let outer = tempfile::tempdir().unwrap();
        let given = outer.path().join("shop");
        drop(Folder::make(Some(&given), Keep::OnFailure).unwrap());
        assert!(given.is_dir());
        assert!(matches!(Folder::make(Some(&given), Keep::OnFailure), Err(Error::NotEmpty(_))));
    }

    #[test]
    fn sockets_of_a_long_folder_lie_elsewhere() {
        let outer = tempfile::tempdir().unwrap();
        let given = outer.path().join("a".repeat(80));
        let folder = Folder::make(Some(&given), Keep::Always).unwrap();
        let sockets = folder.runtime("web");
        assert!(sockets.as_os_str().len() < 80, "{sockets:?}");
        drop(folder);
        assert!(!sockets.parent().unwrap().exists());
    }
}
