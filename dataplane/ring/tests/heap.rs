//! The heap of a program with workers as its global allocator: threads that come and go, and give each other what they
//! have allocated.

use std::alloc::Layout;
use std::cell::RefCell;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use ringmesh_ring::heap::Heap;
use ringmesh_ring::memory::{Network, block_on};
use ringmesh_ring::reclaim;

#[global_allocator]
static HEAP: Heap = Heap;

const THREADS: usize = 6;
const STEPS: usize = 20_000;
/// Generations of threads, one after the other in each place.
const LIVES: usize = 3;

/// Bytes of any size and alignment, which say whose they are.
struct Block {
    at: *mut u8,
    layout: Layout,
    mark: u8,
}

// SAFETY: it owns its bytes, as a box would.
unsafe impl Send for Block {}

impl Block {
    fn new(random: &mut Random) -> Self {
        let layout = random.layout();
        let zeroed = random.below(4) == 0;
        let allocate = if zeroed { std::alloc::alloc_zeroed } else { std::alloc::alloc };
        // SAFETY: the size is not zero.
        let at = unsafe { allocate(layout) };
        assert!(!at.is_null() && at.addr() % layout.align() == 0, "{layout:?}");
        let mut block = Self { at, layout, mark: 0 };
        if zeroed {
            block.check(layout.size());
        }
        block.fill(random.below(256) as u8);
        block
    }

    fn fill(&mut self, mark: u8) {
        self.mark = mark;
        // SAFETY: so many bytes are ours.
        unsafe { self.at.write_bytes(mark, self.layout.size()) };
    }

    /// Whether the first bytes are what was written.
    fn check(&self, count: usize) {
        // SAFETY: so many bytes are ours at least, and were written.
        let bytes = unsafe { std::slice::from_raw_parts(self.at, count) };
        assert!(bytes.iter().all(|byte| *byte == self.mark), "somebody else has written into {:?}", self.layout);
    }

    fn resize(&mut self, random: &mut Random) {
        self.check(self.layout.size());
        let bytes = random.layout().size();
        // SAFETY: it was allocated with this layout, and the size is neither zero nor large.
        let at = unsafe { std::alloc::realloc(self.at, self.layout, bytes) };
        assert!(!at.is_null() && at.addr() % self.layout.align() == 0, "{:?}", self.layout);
        let kept = self.layout.size().min(bytes);
        self.at = at;
        self.layout = Layout::from_size_align(bytes, self.layout.align()).expect("it is small");
        self.check(kept);
        self.fill(random.below(256) as u8);
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.check(self.layout.size());
        // SAFETY: it was allocated with this layout, and nobody else has it.
        unsafe { std::alloc::dealloc(self.at, self.layout) };
    }
}

/// Numbers from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }

    /// Mostly such as there are lists for, and those just beside.
    fn layout(&mut self) -> Layout {
        let bytes = match self.below(4) {
            0 => 1 + self.below(64),
            1 => 1000 + self.below(50),
            2 => 1 + self.below(1024),
            _ => 1 + self.below(20_000),
        };
        Layout::from_size_align(bytes, 1 << self.below(8)).expect("it is small")
    }
}

thread_local! {
    /// What a thread frees only while it ends.
    static LAST: RefCell<Vec<Block>> = const { RefCell::new(Vec::new()) };
}

/// Allocates, moves, frees and gives away for a while; what it holds at the end is freed as the thread ends.
fn live(mut random: Random, others: &[Sender<Block>], mine: &Receiver<Block>) {
    let mut held: Vec<Block> = Vec::new();
    for _ in 0..STEPS {
        match random.below(9) {
            0..=2 => held.push(Block::new(&mut random)),
            3 | 4 if !held.is_empty() => {
                let one = random.below(held.len());
                held[one].resize(&mut random);
            }
            5 if !held.is_empty() => {
                let one = random.below(held.len());
                // One that has ended takes nothing: it comes back with the error.
                drop(others[random.below(others.len())].send(held.swap_remove(one)));
            }
            6 if !held.is_empty() => drop(held.swap_remove(random.below(held.len()))),
            7 => drop(mine.try_recv()),
            8 if random.below(500) == 0 => reclaim::free_unused(),
            _ => {}
        }
        while held.len() > 200 {
            held.swap_remove(random.below(200));
        }
    }
    LAST.with_borrow_mut(|last| last.append(&mut held));
}

#[test]
fn blocks_stay_whole_whoever_frees_them_and_whichever_threads_end() {
    let seed = 20_261_130;
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| channel::<Block>()).unzip();
    let places: Vec<_> = receivers
        .into_iter()
        .enumerate()
        .map(|(number, mut mine)| {
            let others = senders.clone();
            thread::spawn(move || {
                for life in 0..LIVES {
                    let (others, random) = (others.clone(), Random(seed + (number * LIVES + life) as u64));
                    // Each life is a thread of its own; two of three are workers, as far as the heap knows.
                    let lived = thread::spawn(move || {
                        match number % 3 {
                            0 => live(random, &others, &mine),
                            _ => block_on(&Network::new(1), async { live(random, &others, &mine) }),
                        }
                        mine
                    });
                    mine = lived.join().expect("its blocks stay whole");
                }
            })
        })
        .collect();
    drop(senders);
    places.into_iter().for_each(|place| place.join().expect("all its lives end well"));
}
