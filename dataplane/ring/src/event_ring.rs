//! Records from one process to another through shared memory: one producer, one consumer, bounded, never waiting.
//!
//! When nobody drains it, records are dropped and counted. Neither side believes what the memory says beyond what it
//! can check: whatever the other process writes, nothing panics and nothing outside is read. Every word is accessed
//! atomically, so a race with a hostile process can only yield wrong records.
//!
//! Layout in words: 0 the head (words ever written), 8 the tail (words ever read), 16 records dropped, from 24 the
//! records: each its length in bytes, then its bytes in whole words.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::shared_memory::Memory;

const HEAD: usize = 0;
/// Apart from the head by a cache line: each is written by one side.
const TAIL: usize = 8;
const DROPPED: usize = 16;
const RECORDS: usize = 24;

const WORD_BYTES: usize = size_of::<u64>();

/// The memory is too small for a ring.
#[derive(Debug, thiserror::Error)]
#[error("{bytes} bytes are too few for an event ring")]
pub struct TooSmall {
    /// Its size.
    pub bytes: usize,
}

/// The smallest memory that holds `bytes` of records and their lengths.
pub const fn memory_bytes(bytes: usize) -> usize {
    RECORDS * WORD_BYTES + bytes.next_power_of_two()
}

/// Words for records: the largest power of two that fits.
fn capacity(memory: &Memory) -> Result<u64, TooSmall> {
    let words = memory.words().len().saturating_sub(RECORDS);
    match words.checked_ilog2() {
        Some(bits @ 3..) => Ok(1 << bits),
        _ => Err(TooSmall { bytes: memory.words().len() * WORD_BYTES }),
    }
}

fn words_of(record_bytes: u64) -> u64 {
    1 + record_bytes.div_ceil(WORD_BYTES as u64)
}

/// The writing end. There must be one at a time.
pub struct Producer {
    memory: Memory,
    capacity: u64,
    /// Ours, not the memory's: nobody else can move it.
    head: u64,
    dropped: u64,
}

impl Producer {
    /// Goes on where the memory says that the last producer stopped.
    ///
    /// # Errors
    /// [`TooSmall`].
    pub fn new(memory: Memory) -> Result<Producer, TooSmall> {
        let capacity = capacity(&memory)?;
        let head = memory.words()[HEAD].load(Ordering::Relaxed);
        let dropped = memory.words()[DROPPED].load(Ordering::Relaxed);
        Ok(Producer { memory, capacity, head, dropped })
    }

    /// Adds a record; false when there is no room, and it is counted as dropped.
    pub fn push(&mut self, record: &[u8]) -> bool {
        let needed = words_of(record.len() as u64);
        if needed > self.capacity - self.used() {
            self.dropped = self.dropped.wrapping_add(1);
            self.memory.words()[DROPPED].store(self.dropped, Ordering::Relaxed);
            return false;
        }
        self.put(self.head, record.len() as u64);
        let (words, rest) = record.as_chunks::<WORD_BYTES>();
        let mut at = self.head.wrapping_add(1);
        for word in words {
            self.put(at, u64::from_le_bytes(*word));
            at = at.wrapping_add(1);
        }
        if !rest.is_empty() {
            let mut last = [0; WORD_BYTES];
            last[..rest.len()].copy_from_slice(rest);
            self.put(at, u64::from_le_bytes(last));
        }
        self.head = self.head.wrapping_add(needed);
        self.memory.words()[HEAD].store(self.head, Ordering::Release);
        true
    }

    /// How much of the ring waits to be read, between 0 and 1.
    pub fn fraction_used(&self) -> f64 {
        self.used() as f64 / self.capacity as f64
    }

    /// Records dropped for want of room since the memory was made.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Words the consumer has not read; all of them when its tail makes no sense.
    fn used(&self) -> u64 {
        let tail = self.memory.words()[TAIL].load(Ordering::Acquire);
        self.head.wrapping_sub(tail).min(self.capacity)
    }

    fn put(&self, at: u64, word: u64) {
        record_word(&self.memory, self.capacity, at).store(word, Ordering::Relaxed);
    }
}

/// The reading end. There must be one at a time.
pub struct Consumer {
    memory: Memory,
    capacity: u64,
    /// Ours, not the memory's: nobody else can move it.
    tail: u64,
}

impl Consumer {
    /// Goes on where the memory says that the last consumer stopped.
    ///
    /// # Errors
    /// [`TooSmall`].
    pub fn new(memory: Memory) -> Result<Consumer, TooSmall> {
        let capacity = capacity(&memory)?;
        let tail = memory.words()[TAIL].load(Ordering::Relaxed);
        Ok(Consumer { memory, capacity, tail })
    }

    /// Takes the oldest record into `record`, replacing what is there; false when there is none. When the memory's
    /// content makes no sense, everything in it is skipped.
    pub fn pop(&mut self, record: &mut Vec<u8>) -> bool {
        record.clear();
        let head = self.memory.words()[HEAD].load(Ordering::Acquire);
        let available = head.wrapping_sub(self.tail);
        if available == 0 {
            return false;
        }
        let bytes = self.get(self.tail);
        let believable = available <= self.capacity && bytes <= self.capacity * WORD_BYTES as u64;
        if !believable || words_of(bytes) > available {
            self.move_tail(head);
            return false;
        }
        let words = words_of(bytes);
        record.reserve((words - 1) as usize * WORD_BYTES);
        for offset in 1..words {
            record.extend_from_slice(&self.get(self.tail.wrapping_add(offset)).to_le_bytes());
        }
        record.truncate(bytes as usize);
        self.move_tail(self.tail.wrapping_add(words));
        true
    }

    /// How much of the ring waits to be read, between 0 and 1.
    pub fn fraction_used(&self) -> f64 {
        let head = self.memory.words()[HEAD].load(Ordering::Relaxed);
        head.wrapping_sub(self.tail).min(self.capacity) as f64 / self.capacity as f64
    }

    /// Records that the producer says it has dropped since the memory was made.
    pub fn dropped(&self) -> u64 {
        self.memory.words()[DROPPED].load(Ordering::Relaxed)
    }

    fn move_tail(&mut self, tail: u64) {
        self.tail = tail;
        self.memory.words()[TAIL].store(tail, Ordering::Release);
    }

    fn get(&self, at: u64) -> u64 {
        record_word(&self.memory, self.capacity, at).load(Ordering::Relaxed)
    }
}

/// The word at a position that counts on for ever; the capacity is a power of two that fits the memory.
fn record_word(memory: &Memory, capacity: u64, at: u64) -> &AtomicU64 {
    &memory.words()[RECORDS + (at & (capacity - 1)) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared_memory::SharedMemory;

    fn ring(record_bytes: usize) -> (SharedMemory, Producer, Consumer) {
        let memory = SharedMemory::create("test", memory_bytes(record_bytes)).unwrap();
        let producer = Producer::new(memory.map_writer().unwrap()).unwrap();
        let consumer = Consumer::new(memory.map_writer().unwrap()).unwrap();
        (memory, producer, consumer)
    }

    #[test]
    fn records_of_all_lengths_arrive_in_order_around_the_end() {
        let (_memory, mut producer, mut consumer) = ring(256);
        let mut record = Vec::new();
        for round in 0..1000usize {
            let sent: Vec<u8> = (0..round % 97).map(|n| (n + round) as u8).collect();
            assert!(producer.push(&sent));
            assert!(producer.push(b"next"));
            assert!(consumer.pop(&mut record));
            assert_eq!(record, sent);
            assert!(consumer.pop(&mut record));
            assert_eq!(record, b"next");
            assert!(!consumer.pop(&mut record));
        }
    }

    #[test]
    fn full_ring_drops_and_counts() {
        let (_memory, mut producer, mut consumer) = ring(64);
        let pushed = (0..20).filter(|_| producer.push(b"12345678")).count();
        assert_eq!((pushed, producer.dropped(), consumer.dropped()), (4, 16, 16));
        assert_eq!(producer.fraction_used(), 1.0);
        let mut record = Vec::new();
        assert!(consumer.pop(&mut record));
        assert_eq!(consumer.fraction_used(), 0.75);
        assert!(producer.push(b"87654321"));
        assert!(!producer.push(&[0; 1000]));
    }

    #[test]
    fn successors_go_on_where_their_predecessors_stopped() {
        let (memory, mut producer, mut consumer) = ring(64);
        let mut record = Vec::new();
        assert!(producer.push(b"one") && producer.push(b"two") && consumer.pop(&mut record));
        let mut producer = Producer::new(memory.map_writer().unwrap()).unwrap();
        let mut consumer = Consumer::new(memory.map_writer().unwrap()).unwrap();
        assert!(producer.push(b"three"));
        assert!(consumer.pop(&mut record) && record == b"two");
        assert!(consumer.pop(&mut record) && record == b"three");
    }

    #[test]
    fn hostile_content_neither_panics_nor_reads_outside() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            match seed % 5 {
                0 => seed,
                1 => seed % 64,
                2 => u64::MAX - seed % 3,
                3 => 1 << (seed % 64),
                _ => 0,
            }
        };
        let (memory, mut producer, mut consumer) = ring(256);
        let words = memory.map_writer().unwrap();
        let mut record = Vec::new();
        for _ in 0..100_000 {
            let index = random() as usize % words.words().len();
            words.words()[index].store(random(), Ordering::Relaxed);
            producer.push(b"some record");
            consumer.pop(&mut record);
            assert!(record.len() <= 256);
        }
        // Once the hostile writer is gone, the ring recovers.
        while consumer.pop(&mut record) {}
        for index in [HEAD, TAIL] {
            words.words()[index].store(0, Ordering::Relaxed);
        }
        let mut producer = Producer::new(memory.map_writer().unwrap()).unwrap();
        let mut consumer = Consumer::new(memory.map_writer().unwrap()).unwrap();
        assert!(producer.push(b"fine") && consumer.pop(&mut record) && record == b"fine");
    }

    #[test]
    fn records_and_heads_that_make_no_sense_are_skipped() {
        let check = |corrupt: fn(&Memory)| {
            let (memory, mut producer, mut consumer) = ring(256);
            let mut record = Vec::new();
            assert!(producer.push(b"12345678"));
            corrupt(&memory.map_writer().unwrap());
            assert!(!consumer.pop(&mut record) && record.is_empty());
            // All of it is skipped, and the consumer says so.
            assert_eq!(consumer.fraction_used(), 0.0);
        };
        fn store(memory: &Memory, index: usize, word: u64) {
            memory.words()[index].store(word, Ordering::Relaxed);
        }
        check(|memory| store(memory, RECORDS, 9));
        check(|memory| store(memory, RECORDS, u64::MAX));
        check(|memory| store(memory, HEAD, 256 / 8 + 1));
        check(|memory| store(memory, HEAD, u64::MAX));
    }

    #[test]
    fn memory_too_small_is_refused() {
        let memory = SharedMemory::create("test", 25 * WORD_BYTES).unwrap();
        assert!(Producer::new(memory.map_writer().unwrap()).is_err());
        assert!(Consumer::new(memory.map_writer().unwrap()).is_err());
    }

    #[test]
    fn records_cross_threads_while_both_run() {
        let (_memory, mut producer, mut consumer) = ring(1024);
        let writer = std::thread::spawn(move || {
            let mut next = 0u64;
            while next < 100_000 {
                if producer.push(&next.to_le_bytes()) {
                    next += 1;
                } else {
                    std::thread::yield_now();
                }
            }
        });
        let (mut expected, mut record) = (0u64, Vec::new());
        while expected < 100_000 {
            if consumer.pop(&mut record) {
                assert_eq!(record, expected.to_le_bytes());
                expected += 1;
            } else {
                std::thread::yield_now();
            }
        }
        writer.join().unwrap();
    }
}
