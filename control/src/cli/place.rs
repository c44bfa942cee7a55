//! Which proxy `status` and `stop` mean.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;

use super::Failure;
use crate::directory::Directory;
use crate::supervisor;
use crate::supervisor::socket::{Answer, Question};

/// How long control may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Which proxy is meant: that of a config file, that of a runtime directory, or the only one there is
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// The config file that the proxy runs with
    #[arg(short, long, value_name = "FILE", conflicts_with = "runtime_dir")]
    config: Option<PathBuf>,
    /// Its runtime directory
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
}

impl Place {
    /// The runtime directory that is meant.
    pub(super) fn find(&self) -> Result<Directory, Failure> {
        match (&self.runtime_dir, &self.config) {
            (Some(path), _) => Ok(Directory::at(path.clone())),
            (None, Some(file)) => match Directory::of_file(file) {
                Some(directory) => Ok(directory),
                None => {
                    let config =
                        ringmesh_model::config::read(file).map_err(|wrong| Failure::Wrong(wrong.to_string()))?;
                    Ok(supervisor::directory_of(&config))
                }
            },
            (None, None) => only(Directory::all()),
        }
    }
}

/// The one directory where something runs.
fn only(all: Vec<Directory>) -> Result<Directory, Failure> {
    let mut alive: Vec<Directory> =
        all.into_iter().filter(|directory| has_control(directory) || has_dataplane(directory)).collect();
    match (alive.pop(), alive.as_slice()) {
        (None, _) => Err(anyhow!("no proxy of this user runs; name one with -c FILE or --runtime-dir DIR").into()),
        (Some(one), []) => Ok(one),
        (Some(last), others) => {
            let paths: Vec<String> =
                others.iter().chain([&last]).map(|one| format!("  --runtime-dir {}", one.path().display())).collect();
            Err(Failure::Wrong(format!(
                "ringmesh: several proxies run; name one with -c FILE, or one of\n{}",
                paths.join("\n")
            )))
        }
    }
}

/// Whether a control answers there. Not asked by the lock: trying it could make a control that is just starting fail.
fn has_control(directory: &Directory) -> bool {
    UnixStream::connect(directory.control_socket()).is_ok()
}

/// Whether a data plane waits there for a control.
pub(super) fn has_dataplane(directory: &Directory) -> bool {
    UnixStream::connect(directory.data_socket()).is_ok()
}

/// Asks control, and gives its first answer with what may follow. None: no control is there.
pub(super) fn ask(directory: &Directory, question: &Question) -> Result<Option<(Answer, Conversation)>, Failure> {
    let asked = || {
        let mut conversation = Conversation::begin(directory, question)?;
        Ok(conversation.next(None)?.map(|answer| (answer, conversation)))
    };
    match asked() {
        Ok(answered) => Ok(answered),
        // Also one that dies just now is none.
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            Err(anyhow!("control does not answer within {} s", ANSWER_TIMEOUT.as_secs()).into())
        }
        Err(error) => Err(anyhow!("{}: {error}", directory.control_socket().display()).into()),
    }
}

fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound};
    matches!(error.kind(), NotFound | ConnectionRefused | ConnectionReset | BrokenPipe)
}

/// Answers of control, one after the other.
pub(super) struct Conversation(BufReader<UnixStream>);

impl Conversation {
    fn begin(directory: &Directory, question: &Question) -> io::Result<Self> {
        let mut stream = UnixStream::connect(directory.control_socket())?;
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// The next answer, which may take `work` longer than an answer takes. None: control has ended the conversation.
    pub(super) fn next(&mut self, work: Option<Duration>) -> io::Result<Option<Answer>> {
        self.0.get_ref().set_read_timeout(Some(work.unwrap_or_default() + ANSWER_TIMEOUT))?;
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Ok(None),
            _ => Ok(Some(serde_json::from_str(&line)?)),
        }
    }
}
