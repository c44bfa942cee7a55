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

/// A conversation with control. None: no control is there.
pub(super) fn ask(directory: &Directory, question: &Question) -> Result<Option<Conversation>, Failure> {
    let stream = match UnixStream::connect(directory.control_socket()) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(anyhow!("{}: {error}", directory.control_socket().display()).into()),
    };
    let mut line = serde_json::to_vec(question)?;
    line.push(b'\n');
    (&stream).write_all(&line)?;
    Ok(Some(Conversation(BufReader::new(stream))))
}

/// What control answers.
pub(super) struct Conversation(BufReader<UnixStream>);

impl Conversation {
    /// The next answer. None: it has ended the conversation.
    pub(super) fn next(&mut self, timeout: Option<Duration>) -> Result<Option<Answer>, Failure> {
        let timeout = timeout.unwrap_or_default() + ANSWER_TIMEOUT;
        self.0.get_ref().set_read_timeout(Some(timeout))?;
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(serde_json::from_str(&line).map_err(|error| {
                anyhow!("the answer of control cannot be read ({error}); is it of another version?")
            })?)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(anyhow!("control does not answer within {} s", timeout.as_secs()).into())
            }
            Err(error) => Err(error.into()),
        }
    }
}
