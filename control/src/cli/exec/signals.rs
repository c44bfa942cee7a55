//! The signals that `ringmesh exec` passes on, and who has sent them.

use std::fs;
use std::io;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use rustix::process::Signal;
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::origin::WithOrigin;
use signal_hook::low_level::siginfo::Cause;

/// What the command could handle and means no fault of ours. Container images ask for their end by other signals than
/// SIGTERM too: nginx by SIGQUIT, httpd by SIGWINCH, HAProxy by SIGUSR1.
const PASSED_ON: [Signal; 7] =
    [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP, Signal::USR1, Signal::USR2, Signal::WINCH];

/// What the main thread is told.
pub(super) enum Received {
    /// A child has ended.
    Child,
    /// A signal for the command.
    Signal(Sent),
}

/// A signal.
pub(super) struct Sent {
    pub(super) number: Signal,
    /// Whether the kernel has sent it because of a key or the window: then all of our group have it.
    pub(super) from_terminal: bool,
}

impl Sent {
    /// Whether it would end a process that does not handle it.
    pub(super) fn asks_to_end(&self) -> bool {
        self.number != Signal::WINCH
    }
}

/// Listens in a thread of its own, from now on.
pub(super) fn listen() -> io::Result<Receiver<Received>> {
    let ignored = ignored();
    let wanted = PASSED_ON.into_iter().filter(|signal| ignored & (1 << (signal.as_raw() - 1)) == 0);
    let numbers: Vec<i32> = wanted.chain([Signal::CHILD]).map(Signal::as_raw).collect();
    let mut signals = SignalsInfo::<WithOrigin>::new(numbers)?;
    let (sender, receiver) = channel();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for origin in &mut signals {
            let received = match PASSED_ON.into_iter().find(|signal| signal.as_raw() == origin.signal) {
                None => Received::Child,
                Some(number) => {
                    let by_key = matches!(number, Signal::INT | Signal::QUIT | Signal::WINCH);
                    Received::Signal(Sent { number, from_terminal: by_key && origin.cause == Cause::Kernel })
                }
            };
            if sender.send(received).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

/// What we were started to ignore, as by `nohup`, as bits from signal 1 on (proc_pid_status(5)): the command inherits that,
/// and would not if we listened.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
