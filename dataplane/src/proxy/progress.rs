//! How far a request's body has come, as the response's side sees it, and what is waited for meanwhile.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::cell::Cell;
use std::time::Duration;

use ringmesh_codec::http1::RequestHead;
use ringmesh_ring::clock::Instant;

use crate::outcome::Reason;
use crate::proxy::deadline::{Deadlines, Part};
use crate::proxy::pace::GRACE;

/// A client that waits longer than this for a response is watched, so that its going away ends the request upstream.
/// Shorter ones are not worth a system call.
const WATCH_AFTER: Duration = Duration::from_millis(100);

/// How passing the request's body on failed.
pub(super) enum Uploading {
    /// By the client's doing.
    Client(Reason),
    /// The endpoint takes no more. It may have answered all the same.
    Upstream,
}

/// How much of a request's body was passed on, as the response's side sees it.
pub struct Uploaded {
    pub(super) progress: Cell<Progress>,
    /// Whether the client may wait for a `100` before it sends anything.
    pub(super) awaits_continue: Cell<bool>,
}

/// See [`Uploaded`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// There is more, and each wait for it has a deadline.
    Underway,
    /// All of it.
    Whole,
    /// There is more, which never will be passed on.
    Cut,
}

impl Uploaded {
    /// There is no body, or it was passed on already.
    pub const fn whole() -> Self {
        Self { progress: Cell::new(Progress::Whole), awaits_continue: Cell::new(false) }
    }

    /// There is one.
    pub const fn underway(awaits_continue: bool) -> Self {
        Self { progress: Cell::new(Progress::Underway), awaits_continue: Cell::new(awaits_continue) }
    }

    /// Whether all of it was passed on.
    pub fn is_whole(&self) -> bool {
        self.progress.get() == Progress::Whole
    }

    /// The client was told to go on: from now on it keeps us waiting, if its body is waited for.
    pub(super) fn may_go_on(&self, deadlines: &Deadlines<'_>, now: Instant) {
        if self.awaits_continue.take() && self.progress.get() == Progress::Underway {
            deadlines.set(Part::Forth, now + GRACE.min(deadlines.idle()), Reason::ClientSendsSlowly);
        }
    }
}

/// Watches a client while the response is awaited: when it goes away, the request ends. Not while its request is still
/// being read, because then its going away is noticed there.
pub struct Watch {
    /// Whether there is a connection to watch; a stream of HTTP/2 hears of its end.
    watches: bool,
    /// One that said that it sends no more may end its side, and so may one that has sent a body: simple clients tell its
    /// end in that way too. Only a reset says then that nobody waits.
    pub(super) may_half_close: bool,
    /// What of the response is being waited for.
    pub(super) awaiting: Cell<Awaiting>,
    /// Whether the response's deadline is the moment from which the client is watched, not the longest silence.
    pub(super) due: Cell<bool>,
}

/// See [`Watch`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaiting {
    Nothing,
    Head,
    Body,
}

impl Watch {
    /// Watches the client of a request.
    pub(super) fn new(request: &RequestHead) -> Self {
        let may_half_close = !request.persistent() || !request.framing().is_empty();
        Self { watches: true, may_half_close, awaiting: Cell::new(Awaiting::Nothing), due: Cell::new(false) }
    }

    /// Watches nobody.
    pub const fn nobody() -> Self {
        Self { watches: false, may_half_close: false, awaiting: Cell::new(Awaiting::Nothing), due: Cell::new(false) }
    }

    /// The endpoint is waited for. It may be silent while the request is still being passed on. After that the watch begins
    /// in a while, if the head is not there by then.
    pub(super) fn wait(&self, awaiting: Awaiting, uploaded: &Uploaded, deadlines: &Deadlines<'_>, now: Instant) {
        self.awaiting.set(awaiting);
        match (uploaded.progress.get(), awaiting) {
            (Progress::Underway, _) => deadlines.forget(Part::Back),
            (Progress::Whole, Awaiting::Head) if self.watches => {
                self.due.set(true);
                deadlines.set(Part::Back, now + WATCH_AFTER.min(deadlines.idle()), Reason::UpstreamSilent);
            }
            _ => deadlines.for_silence(Part::Back, now, Reason::UpstreamSilent),
        }
    }

    pub(super) fn request_ended(&self, uploaded: &Uploaded, deadlines: &Deadlines<'_>, now: Instant) {
        match self.awaiting.get() {
            Awaiting::Nothing => {}
            awaiting => self.wait(awaiting, uploaded, deadlines, now),
        }
    }
}
