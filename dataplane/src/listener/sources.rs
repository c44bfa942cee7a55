//! How many connections each source has on one listener, over all workers. It is asked when a connection comes and told when
//! one goes, never for a request, and only where a limit is set: so exact counts under locks cost less than they save.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Parts that are locked one by one, so that workers seldom meet.
const PARTS: usize = 16;

/// An empty part keeps room for so many sources.
const KEPT: usize = 64;

/// Who connects: an IPv4 address, or the network of an IPv6 address that one customer has to choose from (RFC 6177).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// An address.
    V4([u8; 4]),
    /// The upper 64 bits of an address.
    V6([u8; 8]),
}

impl Source {
    /// The source that an address belongs to.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// Open connections by source: one entry for each source that has any, so that the listener's `max_connections` bounds it.
#[derive(Debug, Default)]
pub struct Sources {
    /// Keyed by a random number, since clients choose their addresses.
    hasher: RandomState,
    parts: [Mutex<HashMap<Source, u32>>; PARTS],
}

impl Sources {
    /// Counts a connection for as long as the result lives. None: the source has `max` already.
    pub fn admit(self: &Arc<Self>, source: Source, max: NonZeroU32) -> Option<Box<Held>> {
        let mut part = self.part(source);
        match part.entry(source) {
            Entry::Occupied(entry) if *entry.get() >= max.get() => return None,
            Entry::Occupied(mut entry) => *entry.get_mut() += 1,
            Entry::Vacant(entry) => drop(entry.insert(1)),
        }
        Some(Box::new(Held { sources: self.clone(), source }))
    }

    fn part(&self, source: Source) -> MutexGuard<'_, HashMap<Source, u32>> {
        let part = self.hasher.hash_one(source) as usize % PARTS;
        // What a panic has left there is whole: nothing in here unwinds half-way.
        self.parts[part].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that counts.
pub struct Held {
    sources: Arc<Sources>,
    source: Source,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut part = self.sources.part(self.source);
        if let Entry::Occupied(mut entry) = part.entry(self.source) {
            match entry.get() {
                0 | 1 => drop(entry.remove()),
                more => *entry.get_mut() = more - 1,
            }
        }
        if part.is_empty() && part.capacity() > KEPT {
            *part = HashMap::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn source(text: &str) -> Source {
        Source::of(text.parse().unwrap())
    }

    const fn max(max: u32) -> NonZeroU32 {
        NonZeroU32::new(max).expect("it is not 0")
    }

    #[test]
    fn a_source_is_an_address_of_ipv4_or_a_network_of_ipv6() {
        assert_ne!(source("10.0.0.1"), source("10.0.0.2"));
        assert_eq!(source("10.0.0.1"), source("::ffff:10.0.0.1"));
        assert_eq!(source("2001:db8:0:1::1"), source("2001:db8:0:1:ffff::2"));
        assert_ne!(source("2001:db8:0:1::1"), source("2001:db8:0:2::1"));
    }

    #[test]
    fn never_more_than_the_limit_are_admitted_and_others_do_not_notice() {
        let sources = Arc::new(Sources::default());
        let (one, other) = (source("10.0.0.1"), source("10.0.0.2"));
        let first = sources.admit(one, max(2)).unwrap();
        let _second = sources.admit(one, max(2)).unwrap();
        assert!(sources.admit(one, max(2)).is_none());
        assert!(sources.admit(other, max(1)).is_some());
        drop(first);
        let _third = sources.admit(one, max(2)).unwrap();
        assert!(sources.admit(one, max(2)).is_none());
        // A limit that was lowered admits nobody until enough have gone.
        assert!(sources.admit(one, max(1)).is_none());
    }

    #[test]
    fn many_workers_at_once_never_admit_more_than_the_limit() {
        let sources = Arc::new(Sources::default());
        let admitted: usize = thread::scope(|scope| {
            let worker = || (0..1000).filter_map(|_| sources.admit(source("10.0.0.1"), max(100))).collect::<Vec<_>>();
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
            let held: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
            held.iter().map(Vec::len).sum()
        });
        assert_eq!(admitted, 100);
    }

    #[test]
    fn nothing_is_kept_of_sources_that_have_gone() {
        let sources = Arc::new(Sources::default());
        let all: Vec<_> =
            (0..100_000_u32).map(|number| sources.admit(Source::V4(number.to_be_bytes()), max(1))).collect();
        assert!(all.iter().all(Option::is_some));
        drop(all);
        for part in &sources.parts {
            let part = part.lock().unwrap();
            assert_eq!((part.len(), part.capacity() <= KEPT), (0, true));
        }
    }
}
