//! Finding the data plane that an earlier control has left, and taking it over.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use ringmesh_model::snapshot::Name;
use ringmesh_model::wire::{self, Runtime, ToControl, ToDataPlane, WIRE_VERSION};
use rustix::process::getuid;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::process::Process;
use crate::directory::Directory;
use crate::link::{self, Event, Link};

/// How long a data plane may take to answer. Its loader may be preparing a large snapshot just then.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Descriptors of a `Welcome` before the listeners': telemetry memory, event memory, event notification.
const MEMORY_DESCRIPTORS: usize = 3;

/// Why a data plane that is there cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// It does not answer. It may go on serving with what it has.
    #[error("a data plane is there, but does not answer; `ringmesh stop` ends it")]
    Silent,
    /// Somebody else answers.
    #[error("the data plane's socket is answered by a process of user {uid}, not ours")]
    Foreign {
        /// Whose process.
        uid: u32,
    },
    /// What it calls its process id is another process to us.
    #[error("the data plane is process {pid} of another PID namespace; give this proxy a --runtime-dir of its own")]
    Elsewhere {
        /// Its process id, there.
        pid: u32,
    },
    /// A message that does not belong here.
    #[error("the data plane does not welcome us: {0}")]
    Unexpected(String),
    /// The link broke.
    #[error(transparent)]
    Link(#[from] link::Error),
    /// The kernel refuses.
    #[error("the data plane cannot be reached: {0}")]
    Io(#[from] io::Error),
}

/// The memory that outlives data planes.
pub(super) struct Memory {
    pub(super) telemetry: OwnedFd,
    pub(super) events: OwnedFd,
    pub(super) notification: OwnedFd,
}

/// Listening sockets by listener.
pub(super) type Sockets = Vec<(Name, Vec<OwnedFd>)>;

/// A data plane that was taken over.
pub(super) struct Adopted {
    pub(super) link: Link,
    pub(super) process: Process,
    pub(super) runtime: Runtime,
    pub(super) memory: Memory,
    pub(super) listeners: Sockets,
    pub(super) version: u64,
}

/// What was found.
pub(super) enum Found {
    /// No data plane runs.
    Nobody,
    /// One that is ours now.
    Adopted(Box<Adopted>),
    /// One that speaks another version of our messages. Its listeners, as far as they could be understood.
    OtherVersion(Link, Sockets),
}

/// Looks for a data plane and takes it over. May be dropped at any time.
pub(super) async fn find(directory: &Directory, epoch: u64) -> Result<Found, Error> {
    match timeout(ANSWER_TIMEOUT, meet(directory, epoch)).await {
        Ok(found) => found,
        Err(_) => Err(Error::Silent),
    }
}

async fn meet(directory: &Directory, epoch: u64) -> Result<Found, Error> {
    let Some(mut link) = connect(directory).await? else { return Ok(Found::Nobody) };
    link.send(&ToDataPlane::Hello { wire: WIRE_VERSION, epoch }, Vec::new());
    let mut listeners = Vec::new();
    let answer = loop {
        match link.receive().await {
            Event::Message(ToControl::Listeners { counts }, descriptors) => {
                take_sockets(&mut listeners, &counts, descriptors)?;
            }
            answer => break answer,
        }
    };
    match answer {
        Event::Message(ToControl::Welcome { wire, pid, started, listeners: counts, version }, mut descriptors) => {
            let memory = take_memory(&mut descriptors);
            take_sockets(&mut listeners, &counts, descriptors)?;
            if wire != WIRE_VERSION {
                return Ok(Found::OtherVersion(link, listeners));
            }
            let (Some(runtime), Some(memory)) = (started, memory) else {
                return Err(Error::Unexpected("it was never started".to_owned()));
            };
            let process = Process::adopt(pid)?;
            if std::fs::read(directory.data_note()).is_ok_and(|note| note != process.note().as_bytes()) {
                return Err(Error::Elsewhere { pid });
            }
            vouch(&mut link).await?;
            Ok(Found::Adopted(Box::new(Adopted { link, process, runtime, memory, listeners, version })))
        }
        Event::Message(other, _) => Err(Error::Unexpected(format!("{other:?}"))),
        // It died between our connecting and its answer.
        Event::Ended(link::Error::Closed) => Ok(Found::Nobody),
        // What it says cannot be understood: it speaks another version.
        Event::Ended(link::Error::Malformed(_)) => match connect(directory).await? {
            Some(link) => {
                link.send(&ToDataPlane::Hello { wire: WIRE_VERSION, epoch: epoch + 1 }, Vec::new());
                Ok(Found::OtherVersion(link, Vec::new()))
            }
            None => Ok(Found::Nobody),
        },
        Event::Ended(error) => Err(error.into()),
    }
}

/// Connects to the socket where a data plane waits. None if nobody does.
pub(super) async fn connect(directory: &Directory) -> Result<Option<Link>, Error> {
    let stream = match UnixStream::connect(directory.data_socket()).await {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let uid = stream.peer_cred()?.uid();
    if uid != getuid().as_raw() {
        return Err(Error::Foreign { uid });
    }
    Ok(Some(Link::new(stream.into_std()?)?))
}

/// Sees that the process still runs, after its id was turned into a descriptor: who answers now has not died before.
async fn vouch(link: &mut Link) -> Result<(), Error> {
    link.send(&ToDataPlane::Report, Vec::new());
    loop {
        match link.receive().await {
            Event::Message(ToControl::Report(_), _) => return Ok(()),
            Event::Message(..) => {}
            Event::Ended(error) => return Err(error.into()),
        }
    }
}

/// The memory, whose descriptors are the first of a `Welcome`. None: it was never started.
fn take_memory(descriptors: &mut Vec<OwnedFd>) -> Option<Memory> {
    if descriptors.len() < MEMORY_DESCRIPTORS {
        return None;
    }
    let mut first = descriptors.drain(..MEMORY_DESCRIPTORS);
    let mut next = || first.next().expect("counted above");
    Some(Memory { telemetry: next(), events: next(), notification: next() })
}

/// Whose socket is whose.
fn take_sockets(all: &mut Sockets, counts: &[(Name, u16)], descriptors: Vec<OwnedFd>) -> Result<(), Error> {
    let announced = counts.iter().map(|(_, count)| usize::from(*count)).sum::<usize>();
    if descriptors.len() != announced {
        return Err(link::Error::Descriptors { announced, found: descriptors.len() }.into());
    }
    let mut rest = descriptors.into_iter();
    for (name, count) in counts {
        wire::add_up(all, name.clone(), rest.by_ref().take(usize::from(*count)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::net::UnixListener;
    use std::thread::{self, JoinHandle};

    use ringmesh_dataplane::link::Link as Blocking;
    use ringmesh_model::wire::{Driver, Pin, Report};

    use super::*;

    /// A data plane that answers `Hello` so; what it hears afterwards.
    fn dataplane(directory: &Directory, answer: ToControl, descriptors: Vec<OwnedFd>) -> JoinHandle<Vec<ToDataPlane>> {
        let listener = UnixListener::bind(directory.data_socket()).expect("a free path");
        thread::spawn(move || {
            let (stream, _) = listener.accept().expect("control connects");
            let link = Blocking::new(stream).expect("a link");
            let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
            let mut heard = Vec::new();
            while let Ok((message, _)) = link.receive::<ToDataPlane>() {
                let sent = match &message {
                    ToDataPlane::Hello { .. } => link.send(&answer, &borrowed),
                    ToDataPlane::Report => link.send(&ToControl::Report(Report::default()), &[]),
                    _ => Ok(()),
                };
                sent.expect("control reads");
                heard.push(message);
            }
            heard
        })
    }

    fn welcome(wire: u32, listeners: Vec<(Name, u16)>) -> ToControl {
        let runtime = Runtime { driver: Driver::Auto, workers: 2, pin: Pin::None };
        ToControl::Welcome { wire, pid: std::process::id(), started: Some(runtime), listeners, version: 7 }
    }

    #[tokio::test]
    async fn a_data_plane_of_our_version_is_adopted_with_what_it_has() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let directory = Directory::at(folder.path().to_owned());
        let heard = dataplane(&directory, welcome(WIRE_VERSION, vec![("a".into(), 2)]), descriptors(5));
        let Ok(Found::Adopted(adopted)) = find(&directory, 4).await else { panic!("it is there") };
        assert_eq!((adopted.version, adopted.runtime.workers), (7, 2));
        assert_eq!(adopted.listeners.iter().map(|(_, sockets)| sockets.len()).collect::<Vec<_>>(), [2]);
        drop(adopted);
        // Its connection is closed by tasks, so this thread must not wait for that.
        let heard = tokio::task::spawn_blocking(|| heard.join().expect("no panic")).await.expect("no panic");
        assert!(matches!(heard[0], ToDataPlane::Hello { epoch: 4, .. }));
    }

    #[tokio::test]
    async fn a_data_plane_of_another_version_is_not_adopted_but_its_sockets_are_taken() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let directory = Directory::at(folder.path().to_owned());
        let _heard = dataplane(&directory, welcome(WIRE_VERSION + 1, vec![("a".into(), 1)]), descriptors(4));
        let Ok(Found::OtherVersion(_, listeners)) = find(&directory, 4).await else { panic!("another version") };
        assert_eq!(listeners.len(), 1);
    }

    #[tokio::test]
    async fn a_data_plane_that_says_what_we_do_not_know_is_of_another_version() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let directory = Directory::at(folder.path().to_owned());
        let listener = UnixListener::bind(directory.data_socket()).expect("a free path");
        thread::spawn(move || {
            use std::io::Write;
            for stream in listener.incoming().take(2) {
                // One byte, a variant that nobody has yet.
                let _ = stream.expect("control connects").write_all(&[1, 0, 0, 0, 0, 0, 0, 0, 100]);
            }
        });
        let Ok(Found::OtherVersion(_, listeners)) = find(&directory, 4).await else { panic!("another version") };
        assert!(listeners.is_empty());
    }

    #[tokio::test]
    async fn a_data_plane_whose_process_id_is_anothers_here_is_left_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let directory = Directory::at(folder.path().to_owned());
        std::fs::write(directory.data_note(), "1 1").expect("written");
        let _heard = dataplane(&directory, welcome(WIRE_VERSION, Vec::new()), descriptors(3));
        assert!(matches!(find(&directory, 4).await, Err(Error::Elsewhere { .. })));
    }

    #[tokio::test]
    async fn nobody_is_found_where_nobody_listens() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let directory = Directory::at(folder.path().to_owned());
        assert!(matches!(find(&directory, 1).await, Ok(Found::Nobody)));
        drop(UnixListener::bind(directory.data_socket()).expect("a free path"));
        assert!(matches!(find(&directory, 1).await, Ok(Found::Nobody)), "a file that a dead one has left");
    }

    fn descriptors(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| std::fs::File::open("/dev/null").expect("it exists").into()).collect()
    }

    #[test]
    fn descriptors_are_sorted_as_their_frames_say() {
        let mut first = descriptors(6);
        assert!(take_memory(&mut first).is_some());
        let mut all = Sockets::new();
        take_sockets(&mut all, &[("a".to_owned(), 2), ("b".to_owned(), 1)], first).expect("as many as announced");
        take_sockets(&mut all, &[("b".to_owned(), 3)], descriptors(3)).expect("as many as announced");
        let found: Vec<(&str, usize)> = all.iter().map(|(name, fds)| (name.as_str(), fds.len())).collect();
        assert_eq!(found, [("a", 2), ("b", 4)]);
    }

    #[test]
    fn a_frame_with_descriptors_missing_is_refused() {
        assert!(take_sockets(&mut Sockets::new(), &[("a".to_owned(), 2)], descriptors(1)).is_err());
        assert!(take_memory(&mut Vec::new()).is_none(), "never started");
    }
}
