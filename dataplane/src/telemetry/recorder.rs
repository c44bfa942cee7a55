//! The worker's side: a few plain moves for each thing counted, in memory that no other core writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use ringmesh_ring::shared_memory::Memory;

use super::layout::{self, BLOCK_WORDS, HISTOGRAM, MAX_SERIES, PAGE_WORDS};

/// The place of a series in the telemetry memory, and for which generation of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Series {
    /// Its place, below [`MAX_SERIES`].
    pub index: u32,
    /// Which series has the place; never 0.
    pub generation: u32,
}

/// Writes one worker's part of the telemetry memory.
pub struct Recorder {
    memory: Arc<Memory>,
    /// First word of this worker's part.
    base: usize,
}

impl Recorder {
    /// The recorder of worker number `worker`.
    ///
    /// # Panics
    /// If the memory has no part for that worker.
    pub fn new(memory: Arc<Memory>, worker: u16) -> Self {
        let base = layout::WORKERS + usize::from(worker) * layout::WORKER_WORDS;
        assert!(memory.words().len() >= base + layout::WORKER_WORDS, "the telemetry memory has a part for each worker");
        Self { memory, base }
    }

    /// All counters of a series, found once; None if its place counts for a later owner.
    #[inline]
    pub fn series(&self, series: Series) -> Option<Counters<'_>> {
        self.block(series).map(|block| Counters { block })
    }

    /// Adds `amount` to word `counter` of a series.
    pub fn add(&self, series: Series, counter: usize, amount: u64) {
        if let Some(block) = self.block(series) {
            add(&block[counter], amount);
        }
    }

    /// Takes `amount` from word `counter` of a series.
    pub fn sub(&self, series: Series, counter: usize, amount: u64) {
        if let Some(block) = self.block(series) {
            let word = &block[counter];
            word.store(word.load(Ordering::Relaxed).wrapping_sub(amount), Ordering::Relaxed);
        }
    }

    /// Adds one to word `counter` of a series and tells what all workers have there together. Of workers that do this at
    /// the same time at least one sees the others, so that a limit that is checked with it is never exceeded.
    pub fn add_and_sum(&self, series: Series, counter: usize) -> u64 {
        self.add(series, counter, 1);
        fence(Ordering::SeqCst);
        let words = self.memory.words();
        let workers = words[layout::header::WORKERS].load(Ordering::Relaxed) as usize;
        let bases = (0..workers).map(|worker| layout::WORKERS + worker * layout::WORKER_WORDS + PAGE_WORDS);
        bases
            .filter(|base| words[base + series.index as usize].load(Ordering::Relaxed) == u64::from(series.generation))
            .map(|base| {
                words[base + MAX_SERIES + series.index as usize * BLOCK_WORDS + counter].load(Ordering::Relaxed)
            })
            .sum()
    }

    /// Adds to a gauge of this worker.
    pub fn gauge_add(&self, gauge: usize, amount: u64) {
        add(&self.memory.words()[self.base + gauge], amount);
    }

    /// Takes from a gauge of this worker.
    pub fn gauge_sub(&self, gauge: usize, amount: u64) {
        let word = &self.memory.words()[self.base + gauge];
        word.store(word.load(Ordering::Relaxed).wrapping_sub(amount), Ordering::Relaxed);
    }

    /// Sets a gauge of this worker.
    pub fn gauge_set(&self, gauge: usize, value: u64) {
        self.memory.words()[self.base + gauge].store(value, Ordering::Relaxed);
    }

    /// A gauge of this worker.
    pub fn gauge(&self, gauge: usize) -> u64 {
        self.memory.words()[self.base + gauge].load(Ordering::Relaxed)
    }

    /// A gauge of another worker.
    pub fn gauge_of(&self, worker: u16, gauge: usize) -> u64 {
        let base = layout::WORKERS + usize::from(worker) * layout::WORKER_WORDS;
        self.memory.words()[base + gauge].load(Ordering::Relaxed)
    }

    /// The block of a series, cleared first if it still counts for an earlier owner of the place; None if it already
    /// counts for a later one.
    fn block(&self, series: Series) -> Option<&[AtomicU64]> {
        let words = self.memory.words();
        let index = series.index as usize;
        let mark = &words[self.base + PAGE_WORDS + index];
        let start = self.base + PAGE_WORDS + MAX_SERIES + index * BLOCK_WORDS;
        let block = &words[start..start + BLOCK_WORDS];
        let marked = mark.load(Ordering::Relaxed);
        if marked != u64::from(series.generation) {
            if marked > u64::from(series.generation) {
                return None;
            }
            clear(mark, block, series.generation);
        }
        Some(block)
    }
}

/// The counters of one series, on one worker.
pub struct Counters<'a> {
    block: &'a [AtomicU64],
}

impl Counters<'_> {
    /// Adds `amount` to word `counter`.
    #[inline]
    pub fn add(&self, counter: usize, amount: u64) {
        add(&self.block[counter], amount);
    }

    /// Counts `micros` in the histogram.
    #[inline]
    pub fn observe(&self, micros: u64) {
        add(&self.block[HISTOGRAM + layout::bucket(micros)], 1);
    }
}

/// Makes a block count for another owner. A reader that sees one of its new words also sees that the mark has changed.
#[cold]
fn clear(mark: &AtomicU64, block: &[AtomicU64], generation: u32) {
    mark.store(0, Ordering::Relaxed);
    fence(Ordering::Release);
    for word in block {
        word.store(0, Ordering::Relaxed);
    }
    mark.store(u64::from(generation), Ordering::Release);
}

/// Adds without a locked instruction: this thread is the only writer.
fn add(word: &AtomicU64, amount: u64) {
    word.store(word.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}
