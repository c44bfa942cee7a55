//! Ending well: idle connections close at once, busy ones after their response, all of them by a deadline.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use ringmesh_ring::clock::Instant;
use ringmesh_ring::stop::{Reason, Stop};

use crate::standing::{Cause, Standing};
use crate::tls::Anchor;

/// All open connections of a worker.
#[derive(Default)]
pub struct Registry {
    entries: RefCell<Entries>,
}

#[derive(Default)]
struct Entries {
    slots: Vec<Option<Entry>>,
    free: Vec<u32>,
}

struct Entry {
    stop: Stop,
    idle: bool,
    listener: u32,
    standing: Option<Rc<Standing>>,
}

/// A connection's entry; gone when dropped.
pub struct Registered {
    registry: Rc<Registry>,
    index: Cell<u32>,
}

impl Registry {
    /// Enters a connection of the listener at a place's index. It is busy until it says that it waits: handshakes and
    /// opaque connections have no moment at which they could end without a loss.
    pub fn add(self: &Rc<Self>, stop: Stop, listener: u32) -> Registered {
        let mut entries = self.entries.borrow_mut();
        let entry = Some(Entry { stop, idle: false, listener, standing: None });
        let index = match entries.free.pop() {
            Some(index) => {
                entries.slots[index as usize] = entry;
                index
            }
            None => {
                entries.slots.push(entry);
                entries.slots.len() as u32 - 1
            }
        };
        Registered { registry: self.clone(), index: Cell::new(index) }
    }

    /// Number of connections.
    pub fn count(&self) -> usize {
        let entries = self.entries.borrow();
        entries.slots.len() - entries.free.len()
    }

    /// Stops the idle ones.
    pub fn stop_idle(&self) {
        self.stop(|entry| entry.idle);
    }

    /// Stops the idle ones of one listener, by its place's index.
    pub fn stop_idle_of(&self, listener: u32) {
        self.stop(|entry| entry.idle && entry.listener == listener);
    }

    /// Stops all.
    pub fn stop_all(&self) {
        self.end_all(Reason::Drain);
    }

    /// Stops all for a reason.
    pub fn end_all(&self, reason: Reason) {
        self.stop_for(reason, |_| true);
    }

    /// Looks how the peers of its connections stand, see [`Standing::look`]: where that holds no more, idle ones are stopped, and
    /// the others when [`Standing::cut_at`] says so. `tell` hears of each peer's connection of which that has just come out. When to look
    /// next.
    pub fn look(
        &self,
        now: Instant,
        grace: Duration,
        anchors: Option<&[Anchor]>,
        tell: &mut impl FnMut(&Standing, Cause),
    ) -> Instant {
        let mut next = Instant::FAR_FUTURE;
        let mut stops = Vec::new();
        for entry in self.entries.borrow().slots.iter().flatten() {
            let Some(standing) = &entry.standing else { continue };
            let (cause, look_next) = standing.look(now, anchors);
            next = next.min(look_next);
            if let Some(cause) = cause {
                tell(standing, cause);
            }
            if standing.holds() {
                continue;
            }
            let end = standing.cut_at(grace);
            if entry.idle || end <= now {
                stops.push(entry.stop.clone());
            }
            if !entry.idle {
                // One that has to end is looked for again: it may have missed the word.
                next = next.min(end);
            }
        }
        // Stopping wakes tasks, and these may come back here.
        for stop in stops {
            stop.trigger(Reason::Drain);
        }
        next
    }

    /// Wakes all that wait for their stop, although it does not come.
    pub fn wake_all(&self) {
        self.stops(|_| true).iter().for_each(Stop::wake);
    }

    fn stop(&self, wanted: impl Fn(&Entry) -> bool) {
        self.stop_for(Reason::Drain, wanted);
    }

    fn stop_for(&self, reason: Reason, wanted: impl Fn(&Entry) -> bool) {
        self.stops(wanted).iter().for_each(|stop| stop.trigger(reason));
    }

    /// Collected first: stopping wakes tasks, and these may come back here.
    fn stops(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<Stop> {
        let entries = self.entries.borrow();
        entries.slots.iter().flatten().filter(|entry| wanted(entry)).map(|entry| entry.stop.clone()).collect()
    }
}

impl Registered {
    /// Says how its peer stands, who has proved who it is.
    pub fn set_standing(&self, standing: Option<&Rc<Standing>>) {
        if let Some(entry) = &mut self.registry.entries.borrow_mut().slots[self.index.get() as usize] {
            entry.standing = standing.cloned();
        }
    }

    /// Says whether the connection waits for a request.
    pub fn set_idle(&self, idle: bool) {
        if let Some(entry) = &mut self.registry.entries.borrow_mut().slots[self.index.get() as usize] {
            entry.idle = idle;
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut entries = self.registry.entries.borrow_mut();
        let index = self.index.get();
        entries.slots[index as usize] = None;
        entries.free.push(index);
    }
}
