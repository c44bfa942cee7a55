//! The sockets that listen: who takes them, and what becomes of those that are not wanted any more.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use ringmesh_model::snapshot::Name;
use ringmesh_ring::socket::refuse_newcomers;

use super::{Open, Plane, ToWorker};
use crate::places::Place;
use crate::tables::Tables;

/// How long clients that have begun to connect to a port that closes may take to finish that.
const LAST_CLIENTS: Duration = Duration::from_millis(200);

/// The sockets of one listener.
pub(super) struct Listening {
    pub(super) sockets: Vec<OwnedFd>,
    /// What the workers know it by.
    pub(super) place: Place,
}

impl Plane {
    /// Takes listening sockets in place of those of the same name, as soon as the next snapshot or change is live. What
    /// comes for a name before that adds up.
    pub fn add_sockets(&mut self, name: Name, sockets: impl IntoIterator<Item = OwnedFd>) {
        self.staged.entry(name).or_default().extend(sockets);
    }

    /// All listening sockets, by name.
    pub fn listeners(&self) -> impl Iterator<Item = (&Name, &[OwnedFd])> {
        self.listeners.iter().map(|(name, listening)| (name, &listening.sockets[..]))
    }

    /// Another control has come, which gives us all sockets that we do not have.
    pub fn forget_staged(&mut self) {
        self.staged.clear();
        self.deaf.clear();
    }

    /// Ports that these tables give up take no new clients from now on, and those that have begun to connect are accepted
    /// while the old tables still serve them: nobody is left in a backlog when it closes.
    pub(super) fn accept_the_last(&mut self, tables: &Tables) {
        let stays = |name: &Name, place: Place| {
            let found = tables.listeners.get(place.index as usize).and_then(Option::as_deref);
            found.is_some_and(|listener| listener.place == place && listener.config.name == *name)
        };
        let address = |sockets: &[OwnedFd]| rustix::net::getsockname(sockets.first()?).ok();
        let used: Vec<_> = self.staged.values().map(|sockets| address(sockets)).collect();
        let mut waits = false;
        for (name, listening) in &self.listeners {
            let replaced = self.staged.contains_key(name) || !stays(name, listening.place);
            // The same sockets may go on under another name.
            if !replaced || used.contains(&address(&listening.sockets)) {
                continue;
            }
            for socket in &listening.sockets {
                if let Err(error) = refuse_newcomers(socket) {
                    tracing::warn!(target: "loader", listener = name, "clients may be reset while its port closes: {error}");
                }
            }
            waits = true;
        }
        let until = Instant::now() + LAST_CLIENTS;
        while waits && Instant::now() < until {
            self.wait(until);
        }
    }

    /// Lets the workers accept where the tables say, and nowhere else. Where that fails, what listens goes on, and it is tried
    /// again, see [`Plane::listen_again`].
    pub(super) fn listen(&mut self, tables: &Tables) {
        let places: HashMap<&Name, Place> =
            tables.listeners.iter().flatten().map(|listener| (&listener.config.name, listener.place)).collect();
        let mut wanted = std::mem::take(&mut self.deaf);
        let known: Vec<Name> = wanted.keys().cloned().collect();
        wanted.extend(std::mem::take(&mut self.staged));
        let gone: Vec<Name> = self.listeners.keys().filter(|name| !places.contains_key(name)).cloned().collect();
        for name in gone {
            if let Some(Listening { place, .. }) = self.listeners.remove(&name) {
                self.unlisten(place, Open::EndIdle);
            }
        }
        for (name, sockets) in wanted {
            let Some(place) = places.get(&name).copied() else { continue };
            let was_deaf = known.contains(&name);
            // Duplicated first.
            match self.for_workers(&sockets) {
                Ok(duplicates) => {
                    if was_deaf {
                        tracing::info!(target: "loader", listener = name, "workers accept connections on it now");
                    }
                    if let Some(old) = self.listeners.insert(name, Listening { sockets, place }) {
                        self.unlisten(old.place, Open::Keep);
                    }
                    for (number, socket) in duplicates {
                        self.send(number, ToWorker::Listen(place, socket));
                    }
                }
                Err(error) => {
                    if !was_deaf {
                        tracing::error!(
                            target: "loader", listener = name,
                            "no worker accepts connections on it yet: {error}; raise the limit on descriptors (`ulimit -n`, \
                             LimitNOFILE= of systemd)"
                        );
                    }
                    self.deaf.insert(name, sockets);
                }
            }
        }
        self.loader.directory().set_deaf(self.deaf.len());
    }

    /// A socket for each worker: one of its own, or one that they share.
    fn for_workers(&self, sockets: &[OwnedFd]) -> io::Result<Vec<(usize, OwnedFd)>> {
        let of = |number: usize| sockets.get(number % sockets.len().max(1));
        let each = (0..self.workers.len()).filter_map(|number| of(number).map(|socket| (number, socket)));
        each.map(|(number, socket)| Ok((number, socket.try_clone()?))).collect()
    }

    /// Tries again to let the workers accept where there were no descriptors for it.
    pub fn listen_again(&mut self) {
        // A version that not all workers use yet listens once they do.
        if !self.deaf.is_empty() && self.partly.is_none() {
            let tables = self.loader.tables().clone();
            self.listen(&tables);
        }
    }

    fn unlisten(&mut self, place: Place, open: Open) {
        for number in 0..self.workers.len() {
            self.send(number, ToWorker::Unlisten(place, open));
        }
    }
}
