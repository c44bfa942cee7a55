//! The loader's side: gives series their places and writes down which series has which.
//!
//! A series that no table names any more is unused: it keeps its place for a while, so that its last counts are scraped
//! and a route that comes back goes on where it stopped. Then its place is free for another series, under the next
//! generation.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use ringmesh_ring::shared_memory::Memory;

use super::layout::{self, ENTRY_WORDS, Kind, MAX_LABEL_BYTES, MAX_SERIES, header};
use super::recorder::Series;

/// Most series that are unused at a time: 4 KiB a worker each. The one that is so for longest goes first.
pub const MAX_UNUSED: usize = 1024;

/// How long a series may be unused: at the first change of tables after that, its place is free. Prometheus looks back
/// five minutes.
pub const MAX_UNUSED_TIME: Duration = Duration::from_secs(15 * 60);

/// Which series has which place. One writer: the loader of the data plane that owns the memory.
pub struct Directory {
    memory: Arc<Memory>,
    workers: u16,
    places: HashMap<Key, Place>,
    /// Which series are unused, and since when: the oldest first.
    unused: BTreeMap<u64, (Instant, Key)>,
    /// Place of the next one in that order.
    next_unused: u64,
    /// Free places, each with the generation it had last.
    free: Vec<Series>,
    used: usize,
}

/// Kind and labels.
type Key = (Kind, String);

#[derive(Clone, Copy)]
struct Place {
    series: Series,
    /// Its key in [`Directory::unused`], if it is there.
    unused: Option<u64>,
}

/// Why the telemetry memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was made by another version.
    #[error("the telemetry memory has layout {found}, this version writes layout {}", layout::LAYOUT_VERSION)]
    Layout {
        /// The version found.
        found: u64,
    },
    /// It is too small for the workers.
    #[error("the telemetry memory has {found} bytes, {needed} are needed")]
    Size {
        /// Bytes there.
        found: usize,
        /// Bytes needed.
        needed: usize,
    },
}

impl Directory {
    /// Opens the memory for `workers` workers: a fresh one is laid out, one that an earlier data plane has left is taken
    /// over with its series, so that totals go on.
    ///
    /// # Errors
    /// If it is too small or laid out by another version.
    pub fn open(memory: Arc<Memory>, workers: u16) -> Result<Self, Error> {
        let words = memory.words();
        let needed = layout::memory_bytes(workers);
        if words.len() * 8 < needed {
            return Err(Error::Size { found: words.len() * 8, needed });
        }
        let fresh = words[header::MAGIC].load(Ordering::Relaxed) != layout::MAGIC;
        let found = words[header::LAYOUT].load(Ordering::Relaxed);
        if !fresh && found != layout::LAYOUT_VERSION {
            return Err(Error::Layout { found });
        }
        if fresh {
            words[header::LAYOUT].store(layout::LAYOUT_VERSION, Ordering::Relaxed);
            words[header::WORKERS].store(u64::from(workers), Ordering::Relaxed);
            words[header::SERIES].store(MAX_SERIES as u64, Ordering::Relaxed);
            words[header::MAGIC].store(layout::MAGIC, Ordering::Release);
        }
        words[header::STARTS].fetch_add(1, Ordering::Relaxed);
        let used = (words[header::USED].load(Ordering::Relaxed) as usize).min(MAX_SERIES);
        let mut directory = Self {
            memory: memory.clone(),
            workers,
            places: HashMap::new(),
            unused: BTreeMap::new(),
            next_unused: 0,
            free: Vec::new(),
            used,
        };
        for index in (0..used).rev() {
            match read_entry(|word| words[word].load(Ordering::Acquire), index) {
                Some((generation, kind, labels)) => {
                    let series = Series { index: index as u32, generation };
                    directory.places.insert((kind, labels), Place { series, unused: None });
                    forget_gauges(words, workers, kind, series);
                }
                None => directory.free.push(last_owner(words, workers, index)),
            }
        }
        for kind in Kind::ALL {
            directory.place(kind, &other(kind));
        }
        Ok(directory)
    }

    /// The place of a series; the one of `other` if there is none left.
    pub fn place(&mut self, kind: Kind, labels: &[&str]) -> Series {
        let key = key(kind, labels);
        if let Some(place) = self.places.get_mut(&key) {
            if let Some(number) = place.unused.take() {
                self.unused.remove(&number);
            }
            return place.series;
        }
        let Some(series) = self.take() else { return self.places[&self::key(kind, &other(kind))].series };
        write_entry(self.memory.words(), series, kind, &key.1);
        self.places.insert(key, Place { series, unused: None });
        self.write_sizes();
        series
    }

    /// A place that has no owner, for the next one.
    fn take(&mut self) -> Option<Series> {
        if self.free.is_empty() && self.used < MAX_SERIES {
            self.used += 1;
            return Some(Series { index: self.used as u32 - 1, generation: 1 });
        }
        if self.free.is_empty() {
            self.free_one();
        }
        let last = self.free.pop()?;
        Some(Series { index: last.index, generation: last.generation + 1 })
    }

    /// Says which series the newest tables name, by index. The others are unused from `now` on, if they are not already;
    /// those that have been so for too long, or are too many, lose their places.
    ///
    /// Requests that began with older tables may still count for a series that loses its place here: the recorder knows
    /// by the generation and drops it.
    pub fn set_in_use(&mut self, in_use: &[bool], now: Instant) {
        for (key, place) in &mut self.places {
            let named = in_use.get(place.series.index as usize).copied().unwrap_or(false);
            if !named && !is_other(key) && place.unused.is_none() {
                place.unused = Some(self.next_unused);
                self.unused.insert(self.next_unused, (now, key.clone()));
                self.next_unused += 1;
            }
        }
        self.expire(now);
    }

    /// Takes their places from the series that have been unused for too long, or are too many.
    pub fn expire(&mut self, now: Instant) {
        while let Some((_, (since, _))) = self.unused.first_key_value()
            && (self.unused.len() > MAX_UNUSED || now.saturating_duration_since(*since) > MAX_UNUSED_TIME)
            && self.free_one()
        {}
        self.write_sizes();
    }

    /// Frees the place that is unused for longest; false if there is none. A listener with open connections is not
    /// unused: they count against its limit should it come back.
    fn free_one(&mut self) -> bool {
        let words = self.memory.words();
        let idle = |key: &Key| key.0 != Kind::Listener || open(words, self.workers, self.places[key].series) == 0;
        let found = self.unused.iter().find(|(_, (_, key))| idle(key)).map(|(number, _)| *number);
        let Some((_, key)) = found.and_then(|number| self.unused.remove(&number)) else { return false };
        let Some(place) = self.places.remove(&key) else { return false };
        erase_entry(words, place.series);
        // The last generation of a place has no successor: nobody could tell them apart.
        if place.series.generation < u32::MAX {
            self.free.push(place.series);
        }
        true
    }

    fn write_sizes(&self) {
        let words = self.memory.words();
        words[header::TAKEN].store(self.places.len() as u64, Ordering::Relaxed);
        words[header::USED].store(self.used as u64, Ordering::Release);
    }

    /// Writes down which version all workers use.
    pub fn set_version(&self, version: u64) {
        self.memory.words()[header::VERSION].store(version, Ordering::Relaxed);
    }

    /// Writes down how many listeners no worker accepts on.
    pub fn set_deaf(&self, count: usize) {
        self.memory.words()[header::DEAF].store(count as u64, Ordering::Relaxed);
    }

    /// The memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }
}

fn other(kind: Kind) -> Vec<&'static str> {
    vec!["other"; kind.labels().len()]
}

fn is_other((kind, labels): &Key) -> bool {
    labels.split('\0').eq(other(*kind))
}

fn key(kind: Kind, labels: &[&str]) -> Key {
    let mut text = labels.join("\0");
    truncate(&mut text, MAX_LABEL_BYTES);
    (kind, text)
}

/// First word of each worker's marks.
fn marks(workers: u16) -> impl Iterator<Item = usize> {
    (0..usize::from(workers)).map(|worker| layout::WORKERS + worker * layout::WORKER_WORDS + layout::PAGE_WORDS)
}

/// A word of a series, of each worker that has counted something in it.
fn word_of_all(words: &[AtomicU64], workers: u16, series: Series, word: usize) -> impl Iterator<Item = &AtomicU64> {
    let index = series.index as usize;
    marks(workers)
        .filter(move |base| words[base + index].load(Ordering::Relaxed) == u64::from(series.generation))
        .map(move |base| &words[base + MAX_SERIES + index * layout::BLOCK_WORDS + word])
}

/// Open connections of a listener.
fn open(words: &[AtomicU64], workers: u16, series: Series) -> u64 {
    let open = word_of_all(words, workers, series, layout::listener::OPEN);
    open.fold(0, |sum, word| sum.wrapping_add(word.load(Ordering::Relaxed)))
}

/// What an earlier data plane had open is closed, and what its probes have found is not known any more. No worker runs yet, so
/// nobody else writes there.
fn forget_gauges(words: &[AtomicU64], workers: u16, kind: Kind, series: Series) {
    let gauges: &[usize] = match kind {
        Kind::Listener => &[layout::listener::OPEN],
        Kind::Service => &[layout::service::HEALTHY, layout::service::UNHEALTHY],
        Kind::Request => &[],
    };
    let words = gauges.iter().flat_map(|gauge| word_of_all(words, workers, series, *gauge));
    words.for_each(|word| word.store(0, Ordering::Relaxed));
}

/// The last owner of a place that has none: also if the data plane ended while it gave the place away.
fn last_owner(words: &[AtomicU64], workers: u16, index: usize) -> Series {
    let written = words[layout::DIRECTORY + index * ENTRY_WORDS].load(Ordering::Relaxed);
    let marked = marks(workers).map(|base| words[base + index].load(Ordering::Relaxed));
    let last = marked.chain([written]).filter_map(|generation| u32::try_from(generation).ok()).max().unwrap_or(0);
    Series { index: index as u32, generation: last.min(u32::MAX - 1) }
}

/// Cuts at a character's boundary.
fn truncate(text: &mut String, max: usize) {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

fn write_entry(words: &[AtomicU64], series: Series, kind: Kind, labels: &str) {
    let entry = &words[layout::DIRECTORY + series.index as usize * ENTRY_WORDS..][..ENTRY_WORDS];
    entry[0].store(0, Ordering::Relaxed);
    fence(Ordering::Release);
    entry[1].store(kind as u64 | (labels.len() as u64) << 8, Ordering::Relaxed);
    for (word, chunk) in entry[2..].iter().zip(labels.as_bytes().chunks(8)) {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
    }
    entry[0].store(u64::from(series.generation), Ordering::Release);
}

/// The place has no owner now. Its generation stays, for the next one to go on from.
fn erase_entry(words: &[AtomicU64], series: Series) {
    let entry = &words[layout::DIRECTORY + series.index as usize * ENTRY_WORDS..][..2];
    entry[1].store(0, Ordering::Release);
}

/// The generation, kind and labels of an entry, if it is in use and readable.
pub(super) fn read_entry(load: impl Fn(usize) -> u64, index: usize) -> Option<(u32, Kind, String)> {
    let entry = |word| load(layout::DIRECTORY + index * ENTRY_WORDS + word);
    let generation = u32::try_from(entry(0)).ok().filter(|generation| *generation != 0)?;
    let shape = entry(1);
    let kind = Kind::from_number(shape & 0xff)?;
    let length = usize::try_from(shape >> 8).ok().filter(|length| *length <= MAX_LABEL_BYTES)?;
    let mut bytes = Vec::with_capacity(MAX_LABEL_BYTES);
    for word in 2..2 + length.div_ceil(8) {
        bytes.extend_from_slice(&entry(word).to_le_bytes());
    }
    bytes.truncate(length);
    fence(Ordering::Acquire);
    if entry(0) != u64::from(generation) || entry(1) != shape {
        return None; // It was given to another owner meanwhile.
    }
    Some((generation, kind, String::from_utf8(bytes).ok()?))
}
