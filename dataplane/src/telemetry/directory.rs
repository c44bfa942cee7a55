//! The loader's side: gives series their places and writes down which series has which.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringmesh_ring::shared_memory::Memory;

use super::layout::{self, ENTRY_WORDS, Kind, MAX_LABEL_BYTES, MAX_SERIES, header};
use super::recorder::Series;

/// Which series has which place. One writer: the loader of the data plane that owns the memory.
pub struct Directory {
    memory: Arc<Memory>,
    places: HashMap<(Kind, String), Series>,
    used: usize,
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
        let mut places = HashMap::new();
        for index in 0..used {
            if let Some((generation, kind, labels)) = read_entry(|word| words[word].load(Ordering::Acquire), index) {
                places.insert((kind, labels), Series { index: index as u32, generation });
            }
        }
        for series in places.iter().filter(|((kind, _), _)| *kind == Kind::Listener).map(|(_, series)| series) {
            close_all(words, workers, *series);
        }
        let mut directory = Self { memory, places, used };
        for kind in Kind::ALL {
            let labels = vec!["other"; kind.labels().len()];
            directory.place(kind, &labels);
        }
        Ok(directory)
    }

    /// The place of a series; the one of `other` if there is none left.
    pub fn place(&mut self, kind: Kind, labels: &[&str]) -> Series {
        let mut text = labels.join("\0");
        truncate(&mut text, MAX_LABEL_BYTES);
        if let Some(series) = self.places.get(&(kind, text.clone())) {
            return *series;
        }
        if self.used == MAX_SERIES {
            let other = vec!["other"; kind.labels().len()].join("\0");
            return self.places[&(kind, other)];
        }
        let series = Series { index: self.used as u32, generation: 1 };
        write_entry(self.memory.words(), series, kind, &text);
        self.used += 1;
        self.memory.words()[header::USED].store(self.used as u64, Ordering::Release);
        self.places.insert((kind, text), series);
        series
    }

    /// Writes down which version all workers use.
    pub fn set_version(&self, version: u64) {
        self.memory.words()[header::VERSION].store(version, Ordering::Relaxed);
    }

    /// The memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }
}

/// What an earlier data plane had open is closed. No worker runs yet, so nobody else writes there.
fn close_all(words: &[AtomicU64], workers: u16, series: Series) {
    for worker in 0..usize::from(workers) {
        let base = layout::WORKERS + worker * layout::WORKER_WORDS + layout::PAGE_WORDS;
        if words[base + series.index as usize].load(Ordering::Relaxed) == u64::from(series.generation) {
            let block = base + MAX_SERIES + series.index as usize * layout::BLOCK_WORDS;
            words[block + layout::listener::OPEN].store(0, Ordering::Relaxed);
        }
    }
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
    entry[0].store(0, Ordering::Release);
    entry[1].store(kind as u64 | (labels.len() as u64) << 8, Ordering::Relaxed);
    for (word, chunk) in entry[2..].iter().zip(labels.as_bytes().chunks(8)) {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
    }
    entry[0].store(u64::from(series.generation), Ordering::Release);
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
    Some((generation, kind, String::from_utf8(bytes).ok()?))
}
