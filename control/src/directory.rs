//! The runtime directory of one instance: where control and data plane find each other.
//!
//! `lock` is held (flock) by the control process and holds its process id; `control.sock` answers `ringmesh status` and
//! `ringmesh stop`; `data.sock` is where the data plane waits for the next control, and `data.pid` says which process
//! that is; `epoch` counts controls; `answers.json` holds the last answers of endpoint names.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::getuid;

/// Hex digits of the hash that names an instance.
const INSTANCE_DIGITS: usize = 12;

/// Longest path of a Unix socket, in bytes (`sun_path` less its closing zero).
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// The file whose lock says that a control is there.
const LOCK: &str = "lock";

/// The file that counts controls.
const EPOCH: &str = "epoch";

/// Longest name of a file in the directory.
const LONGEST_SOCKET: &str = "control.sock";

/// How long a held directory is asked for again: a control that was just killed holds it until the kernel has taken the
/// process apart.
const PATIENCE: Duration = Duration::from_millis(500);

/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(10);

/// Why a runtime directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another control runs this instance.
    #[error(
        "process {pid} already runs this instance ({directory}); stop it with `ringmesh stop`, or give this one another `[workload] instance`"
    )]
    Held {
        /// Its process id, as it wrote it down.
        pid: String,
        /// The directory.
        directory: String,
    },
    /// It belongs to somebody else.
    #[error("{directory} belongs to user {owner}, not to us; choose another with --runtime-dir")]
    Foreign {
        /// The directory.
        directory: String,
        /// Its owner.
        owner: u32,
    },
    /// The sockets' paths would be too long for the kernel.
    #[error(
        "{directory} is too long for the path of a socket (at most {max} bytes); choose a shorter one with --runtime-dir"
    )]
    TooLong {
        /// The directory.
        directory: String,
        /// Longest possible.
        max: usize,
    },
    /// The file system failed.
    #[error("{path}: {cause}; choose another directory with --runtime-dir, or make this one ours to write")]
    Io {
        /// Which file or directory.
        path: String,
        /// What the kernel says. Not its source, as which it would be told twice.
        cause: io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |cause| Error::Io { path, cause }
}

/// A runtime directory, whether or not it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// The directory at this path.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The directory of an instance.
    pub fn of(mesh: &str, workload: &str, instance: &str) -> Self {
        let mesh = if mesh.is_empty() { "mesh" } else { mesh };
        Self { path: base().join(format!("{mesh}-{workload}-{instance}")) }
    }

    /// The directory of the proxy that was last run with this config file.
    pub fn of_file(config: &Path) -> Option<Self> {
        let path = fs::read(note(config)).ok()?;
        Some(Self { path: PathBuf::from(OsString::from_vec(path)) }).filter(|directory| directory.path.is_dir())
    }

    /// All directories of this user in their usual place.
    pub fn all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir(base()) else { return Vec::new() };
        let mut all: Vec<Self> = entries
            .flatten()
            .map(|entry| Self { path: entry.path() })
            .filter(|directory| directory.path.join(LOCK).is_file())
            .collect();
        all.sort_by(|a, b| a.path.cmp(&b.path));
        all
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket that answers `status` and `stop`.
    pub fn control_socket(&self) -> PathBuf {
        self.path.join(LONGEST_SOCKET)
    }

    /// The socket where a data plane waits for the next control.
    pub fn data_socket(&self) -> PathBuf {
        self.path.join("data.sock")
    }

    /// Where the data plane's process id is noted, for the case that it does not answer.
    pub fn data_note(&self) -> PathBuf {
        self.path.join("data.pid")
    }

    /// Where the last answers of endpoint names are kept.
    pub fn answers(&self) -> PathBuf {
        self.path.join("answers.json")
    }

    /// Makes the directory if need be and takes it for this process.
    ///
    /// # Errors
    /// If another control holds it, it is not ours, its path is too long, or the file system fails.
    pub fn hold(self) -> Result<Held, Error> {
        let max = MAX_SOCKET_PATH_BYTES - LONGEST_SOCKET.len() - 1;
        if self.path.as_os_str().len() > max {
            return Err(Error::TooLong { directory: self.path.display().to_string(), max });
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(at(&self.path))?;
        // Who owns the folder around it could put another in its place.
        let around = self.path.parent().map(|path| if path.as_os_str().is_empty() { Path::new(".") } else { path });
        for path in around.into_iter().chain([self.path.as_path()]) {
            let folder = fs::metadata(path).map_err(at(path))?;
            let foreign = folder.uid() != getuid().as_raw() && (folder.uid() != 0 || path == self.path);
            if foreign {
                return Err(Error::Foreign { directory: path.display().to_string(), owner: folder.uid() });
            }
        }
        let lock = self.lock()?;
        Ok(Held { directory: self, _lock: lock })
    }

    fn lock(&self) -> Result<File, Error> {
        let path = self.path.join(LOCK);
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).clone();
        let patience = Instant::now() + PATIENCE;
        let mut file = loop {
            // Its last holder may have removed the folder just now.
            DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(at(&self.path))?;
            let mut file = options.open(&path).map_err(at(&path))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_at(&file, &path) => break file,
                // We hold a file that its last holder has removed: others would hold another one.
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < patience => thread::sleep(PAUSE),
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let mut pid = String::new();
                    let _ = file.read_to_string(&mut pid);
                    let pid = if pid.trim().is_empty() { "?".to_owned() } else { pid.trim().to_owned() };
                    return Err(Error::Held { pid, directory: self.path.display().to_string() });
                }
                Err(error) => return Err(at(&path)(error.into())),
            }
        };
        file.set_len(0).and_then(|()| file.rewind()).map_err(at(&path))?;
        writeln!(file, "{}", std::process::id()).map_err(at(&path))?;
        Ok(file)
    }
}

/// A runtime directory that this process holds until it ends.
#[derive(Debug)]
pub struct Held {
    directory: Directory,
    _lock: File,
}

impl std::ops::Deref for Held {
    type Target = Directory;

    fn deref(&self) -> &Directory {
        &self.directory
    }
}

impl Held {
    /// The epoch of this control: higher than that of every one before.
    ///
    /// # Errors
    /// If it cannot be written down.
    pub fn next_epoch(&self) -> Result<u64, Error> {
        let path = self.path.join(EPOCH);
        let last: u64 = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let next = last + 1;
        self.replace(&path, next.to_string().as_bytes())?;
        Ok(next)
    }

    /// Replaces a file in the directory, so that a reader sees the old content or the new.
    ///
    /// # Errors
    /// If the file system fails.
    pub fn replace(&self, path: &Path, content: &[u8]) -> Result<(), Error> {
        let new = path.with_extension("new");
        fs::write(&new, content).map_err(at(&new))?;
        fs::rename(&new, path).map_err(at(path))
    }

    /// Writes down that this file's proxy lives here, so that [`Directory::of_file`] finds it even when the file is broken or
    /// says something else by then.
    ///
    /// # Errors
    /// If the file system fails.
    pub fn remember(&self, config: &Path) -> Result<(), Error> {
        let note = note(config);
        let folder = note.parent().expect("a note lies in a folder");
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at(folder))?;
        let path = fs::canonicalize(&self.path).map_err(at(&self.path))?;
        self.replace(&note, path.as_os_str().as_bytes())
    }

    /// Removes everything, once no data plane is alive any more; of a folder that somebody else chose only what is in it.
    pub fn remove(self) {
        let files =
            [self.control_socket(), self.data_socket(), self.data_note(), self.answers(), self.path.join(EPOCH)];
        for path in files {
            let _ = fs::remove_file(path);
        }
        // While it is held: whoever waits for it looks whether it is still there.
        let _ = fs::remove_file(self.path.join(LOCK));
        if self.path.parent() == Some(&base()) {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Whether an open file is the one at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    let same = |open: fs::Metadata, named: fs::Metadata| open.dev() == named.dev() && open.ino() == named.ino();
    file.metadata().ok().zip(fs::metadata(path).ok()).is_some_and(|(open, named)| same(open, named))
}

/// Where runtime directories are: what the user's session says, else the system's place if we may write there, else a
/// folder of our own in /tmp.
fn base() -> PathBuf {
    let uid = getuid().as_raw();
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(session) if Path::new(&session).is_absolute() => PathBuf::from(session).join("ringmesh"),
        _ if uid == 0 && Path::new("/run").is_dir() => PathBuf::from("/run/ringmesh"),
        _ => PathBuf::from(format!("/tmp/ringmesh-{uid}")),
    }
}

/// Where it is written down which directory a config file's proxy has.
fn note(config: &Path) -> PathBuf {
    base().join(".files").join(default_instance(config))
}

/// The instance of a config file that names none: two files are two instances.
pub fn default_instance(config: &Path) -> String {
    let canonical = fs::canonicalize(config).unwrap_or_else(|_| config.to_owned());
    let digits = format!("{:016x}", fnv1a(canonical.as_os_str().as_bytes()));
    digits[..INSTANCE_DIGITS].to_owned()
}

/// FNV-1a. Not the standard library's hash, which may differ from one compiler to the next: then an upgraded control would
/// look for its data plane elsewhere.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_control_is_told_who_holds_the_directory() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let directory = Directory::at(folder.path().join("one"));
        let held = directory.clone().hold().expect("nobody holds it");
        let error = directory.clone().hold().expect_err("it is held");
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(held);
        directory.hold().expect("it is free again");
    }

    #[test]
    fn a_directory_that_was_removed_can_be_held_again() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let directory = Directory::at(folder.path().join("one"));
        let held = directory.clone().hold().expect("free");
        held.next_epoch().expect("an epoch");
        let waiting = thread::spawn({
            let directory = directory.clone();
            move || directory.hold().map(|held| is_at(&held._lock, &held.path.join(LOCK)))
        });
        held.remove();
        assert!(waiting.join().expect("no panic").expect("free"), "what is held is what others find");
        assert_eq!(directory.hold().expect("free").next_epoch().expect("an epoch"), 1);
    }

    #[test]
    fn epochs_rise_over_restarts() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let directory = Directory::at(folder.path().join("one"));
        let first = directory.clone().hold().expect("free").next_epoch().expect("an epoch");
        let second = directory.hold().expect("free").next_epoch().expect("an epoch");
        assert_eq!((first, second), (1, 2));
    }

    #[test]
    fn two_files_are_two_instances_and_one_file_is_one() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (a, b) = (folder.path().join("a.toml"), folder.path().join("b.toml"));
        fs::write(&a, "").expect("written");
        fs::write(&b, "").expect("written");
        assert_ne!(default_instance(&a), default_instance(&b));
        assert_eq!(default_instance(&a), default_instance(&folder.path().join(".").join("a.toml")));
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let error = Directory::at(folder.path().join("x".repeat(120))).hold().expect_err("too long");
        assert!(matches!(error, Error::TooLong { .. }));
    }
}
