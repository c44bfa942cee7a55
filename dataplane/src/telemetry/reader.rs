//! Control's side: reads what the workers count, at any time, also after they are gone.

use std::sync::atomic::{Ordering, fence};

use ringmesh_ring::shared_memory::ReadMemory;

use super::directory::{self, read_entry};
use super::layout::{self, BLOCK_WORDS, BUCKETS, HISTOGRAM, Kind, MAX_SERIES, PAGE_WORDS, header};

/// Reads telemetry memory. Never trusts what it finds: the writer is another process.
pub struct Reader {
    memory: ReadMemory,
    workers: u16,
}

/// One series, summed over the workers.
#[derive(Clone, Debug)]
pub struct Counts {
    /// What it counts.
    pub kind: Kind,
    /// Values of the kind's labels, in order.
    pub labels: Vec<String>,
    /// The block's words up to the histogram; see [`layout::request`], [`layout::listener`], [`layout::service`].
    pub counters: Vec<u64>,
    /// Buckets of the histogram; see [`layout::bucket_start`].
    pub histogram: Vec<u64>,
}

impl Reader {
    /// Opens memory that a data plane has laid out.
    ///
    /// # Errors
    /// If it is laid out by another version, or not yet, or too small for its workers.
    pub fn open(memory: ReadMemory) -> Result<Self, directory::Error> {
        let words = memory.words();
        if words.len() < PAGE_WORDS {
            return Err(directory::Error::Size { found: words.len() * 8, needed: PAGE_WORDS * 8 });
        }
        let found = words[header::LAYOUT].load();
        if words[header::MAGIC].load() != layout::MAGIC || found != layout::LAYOUT_VERSION {
            return Err(directory::Error::Layout { found });
        }
        let workers = u16::try_from(words[header::WORKERS].load()).unwrap_or(u16::MAX);
        let needed = layout::memory_bytes(workers);
        if words.len() * 8 < needed {
            return Err(directory::Error::Size { found: words.len() * 8, needed });
        }
        Ok(Self { memory, workers })
    }

    /// Number of workers.
    pub fn workers(&self) -> u16 {
        self.workers
    }

    /// A word of the header.
    pub fn header(&self, word: usize) -> u64 {
        self.memory.words()[word].load()
    }

    /// A gauge of one worker.
    pub fn gauge(&self, worker: u16, gauge: usize) -> u64 {
        assert!(worker < self.workers && gauge < PAGE_WORDS, "a worker's gauge");
        self.memory.words()[layout::WORKERS + usize::from(worker) * layout::WORKER_WORDS + gauge].load()
    }

    /// All series that have counted something.
    pub fn series(&self) -> Vec<Counts> {
        self.each_series().collect()
    }

    /// The same, one after the other: a series takes 4 KiB, and there may be many thousand.
    pub fn each_series(&self) -> impl Iterator<Item = Counts> {
        let words = self.memory.words();
        let used = (words[header::USED].load() as usize).min(MAX_SERIES);
        fence(Ordering::Acquire);
        (0..used).filter_map(|index| self.counts(index))
    }

    /// The series at a place, if it has counted something.
    fn counts(&self, index: usize) -> Option<Counts> {
        let words = self.memory.words();
        let mut sum: Option<Vec<u64>> = None;
        let mut read = [0; BLOCK_WORDS];
        let mut generation = None;
        for worker in 0..usize::from(self.workers) {
            let base = layout::WORKERS + worker * layout::WORKER_WORDS + PAGE_WORDS;
            let mark = words[base + index].load();
            fence(Ordering::Acquire);
            if mark == 0 {
                continue;
            }
            let expected = generation.get_or_insert_with(|| read_entry(|word| words[word].load(), index));
            if expected.as_ref().is_none_or(|(generation, ..)| u64::from(*generation) != mark) {
                continue;
            }
            let block = &words[base + MAX_SERIES + index * BLOCK_WORDS..][..BLOCK_WORDS];
            read.iter_mut().zip(block).for_each(|(read, word)| *read = word.load());
            fence(Ordering::Acquire);
            if words[base + index].load() != mark {
                continue; // The place was given to another series meanwhile.
            }
            let sum = sum.get_or_insert_with(|| vec![0; BLOCK_WORDS]);
            sum.iter_mut().zip(read).for_each(|(total, count)| *total = total.wrapping_add(count));
        }
        let mut counters = sum?;
        let (_, kind, labels) = generation??;
        let histogram = counters.split_off(HISTOGRAM);
        debug_assert_eq!(histogram.len(), BUCKETS);
        Some(Counts { kind, labels: split(&labels), counters, histogram })
    }
}

fn split(labels: &str) -> Vec<String> {
    labels.split('\0').map(str::to_owned).collect()
}

/// The value below which a share `quantile` (0 to 1) of a histogram lies, in microseconds; None if it is empty. Exact to
/// the width of a bucket, 1/16.
pub fn quantile(histogram: &[u64], quantile: f64) -> Option<u64> {
    let total = histogram.iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
    if total == 0 {
        return None;
    }
    let rank = ((total as f64 * quantile).ceil() as u64).clamp(1, total);
    let mut seen = 0_u64;
    for (index, count) in histogram.iter().enumerate() {
        seen = seen.saturating_add(*count);
        if seen >= rank {
            let next =
                if index + 1 < histogram.len() { layout::bucket_start(index + 1) } else { layout::bucket_start(index) };
            return Some((layout::bucket_start(index) + next) / 2);
        }
    }
    None
}
