//! Network namespaces: machines of a test's own, joined by virtual cables. Nothing of the real machine's network is touched,
//! and all of it goes when the threads and processes in it have ended.
//!
//! A namespace belongs to a thread here. What that thread starts (threads, processes, sockets) is in it too, so the rest of
//! the harness needs to know nothing of it.

use std::panic::resume_unwind;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use rustix::thread::{UnshareFlags, gettid};

/// What has to be installed and granted.
const NEEDED: &str = "these tests need root, and: apt-get install -y iproute2 nftables";

/// Another machine.
pub struct Machine {
    jobs: Sender<Box<dyn FnOnce() + Send>>,
    thread: i32,
}

/// Runs a test on a machine that has no network but its own loopback.
///
/// # Panics
/// If the test does, or there can be no such machine.
pub fn alone<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let run = || {
        enter_own();
        test()
    };
    thread::scope(|scope| scope.spawn(run).join().unwrap_or_else(|panic| resume_unwind(panic)))
}

/// Another machine with these addresses, on one cable with this one, which gets those.
///
/// # Panics
/// If there can be no such machine.
#[track_caller]
pub fn neighbour(own: &[&str], others: &[&str]) -> Machine {
    let machine = Machine::new();
    let thread = machine.thread.to_string();
    ip(&["link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", &thread]);
    let others: Vec<String> = others.iter().map(|address| (*address).to_owned()).collect();
    machine.run(move || configure(&others));
    configure(own);
    machine
}

fn configure(addresses: &[impl AsRef<str>]) {
    for address in addresses {
        // Without the search for another that has it, which takes seconds with IPv6.
        ip(&["address", "add", address.as_ref(), "dev", "cable", "nodad"]);
    }
    ip(&["link", "set", "cable", "up"]);
}

impl Machine {
    fn new() -> Self {
        let (jobs, next) = channel::<Box<dyn FnOnce() + Send>>();
        let (told, thread) = channel();
        thread::spawn(move || {
            enter_own();
            let _ = told.send(gettid().as_raw_nonzero().get());
            next.into_iter().for_each(|job| job());
        });
        Self { jobs, thread: thread.recv().expect("the thread says when it is there") }
    }

    /// Does something there.
    ///
    /// # Panics
    /// If it does.
    #[track_caller]
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (told, done) = channel();
        let job = move || drop(told.send(job()));
        self.jobs.send(Box::new(job)).expect("the machine runs");
        done.recv().expect("what was done there succeeded")
    }
}

fn enter_own() {
    #[expect(deprecated, reason = "unsound for a table of descriptors alone; its successor is unsafe")]
    let entered = rustix::thread::unshare(UnshareFlags::NEWNET);
    if let Err(error) = entered {
        panic!("no network namespace: {error}; {NEEDED}");
    }
    ip(&["link", "set", "lo", "up"]);
}

/// Runs `ip`.
#[track_caller]
fn ip(words: &[&str]) {
    match Command::new("ip").args(words).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!("ip {}: {}; {NEEDED}", words.join(" "), String::from_utf8_lossy(&output.stderr)),
        Err(error) => panic!("ip: {error}; {NEEDED}"),
    }
}
