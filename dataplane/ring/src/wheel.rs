//! A hierarchical timer wheel as a plain data structure: no clock, no waiting. Time is a tick number.
//!
//! Five levels of 64 slots: level 0 has a slot a tick, each further level a slot per 64 of the level below. Inserting,
//! moving and removing are O(1); an entry is moved down at most once per level. (Varghese and Lauck, 1987.)

const LEVELS: usize = 5;
const SLOTS: usize = 64;
const BITS: u32 = SLOTS.trailing_zeros();

/// The farthest an entry is placed ahead; one beyond that is placed here and placed again when its slot comes.
const MAX_AHEAD: u64 = 1 << (BITS * LEVELS as u32);

/// So many entries of a slot are looked at for the earliest. Few timers are what an idle worker has, which is not to wake up
/// for each level that one of them moves down; among many it is awake anyhow.
const MAX_LOOKED_AT: usize = 32;

const NONE: u32 = u32::MAX;

/// Names an entry as long as it is in the wheel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u32);

struct Node<T> {
    /// None while the node is on the free list.
    item: Option<T>,
    tick: u64,
    next: u32,
    previous: u32,
    level: u8,
    slot: u8,
}

/// Items ordered by tick, coarsely for far ones.
pub(crate) struct Wheel<T> {
    nodes: Vec<Node<T>>,
    free: u32,
    heads: [[u32; SLOTS]; LEVELS],
    /// A bit per slot that is not empty.
    occupied: [u64; LEVELS],
    /// Everything up to here has been taken out.
    now: u64,
}

impl<T> Wheel<T> {
    pub(crate) fn new(now: u64) -> Wheel<T> {
        let heads = [[NONE; SLOTS]; LEVELS];
        Wheel { nodes: Vec::new(), free: NONE, heads, occupied: [0; LEVELS], now }
    }

    pub(crate) fn insert(&mut self, tick: u64, item: T) -> Key {
        let index = self.allocate(item);
        self.link(index, tick);
        Key(index)
    }

    /// Changes the tick of an entry.
    pub(crate) fn reschedule(&mut self, key: Key, tick: u64) {
        self.unlink(key.0);
        self.link(key.0, tick);
    }

    pub(crate) fn remove(&mut self, key: Key) -> T {
        self.unlink(key.0);
        self.release(key.0)
    }

    /// The tick by which [`expire`](Wheel::expire) has something to do: that of the earliest entry, or sooner where many
    /// entries have to move down a level.
    pub(crate) fn next(&self) -> Option<u64> {
        let (start, level, slot) = self.next_slot()?;
        let (mut index, mut earliest) = (self.heads[level][slot], u64::MAX);
        for _ in 0..MAX_LOOKED_AT {
            if index == NONE {
                return Some(earliest.max(start));
            }
            let node = &self.nodes[index as usize];
            (earliest, index) = (earliest.min(node.tick), node.next);
        }
        Some(start)
    }

    /// Takes out every entry whose tick is at or before `now`.
    pub(crate) fn expire(&mut self, now: u64, mut fire: impl FnMut(T)) {
        while let Some((tick, level, slot)) = self.next_slot() {
            if tick > now {
                break;
            }
            self.now = tick;
            let mut index = std::mem::replace(&mut self.heads[level][slot], NONE);
            self.occupied[level] &= !(1 << slot);
            while index != NONE {
                let next = self.nodes[index as usize].next;
                if self.nodes[index as usize].tick <= now {
                    fire(self.release(index));
                } else {
                    let tick = self.nodes[index as usize].tick;
                    self.link(index, tick);
                }
                index = next;
            }
        }
        self.now = self.now.max(now);
    }

    /// The first slot in time that holds something: its tick, level and number.
    fn next_slot(&self) -> Option<(u64, usize, usize)> {
        // A lower level always comes first: its slots lie inside the current slot of the level above.
        (0..LEVELS).find_map(|level| {
            if self.occupied[level] == 0 {
                return None;
            }
            let shift = BITS * level as u32;
            let current = (self.now >> shift) as u32 & (SLOTS as u32 - 1);
            let ahead = self.occupied[level].rotate_right(current).trailing_zeros();
            let slot = (current + ahead) as usize & (SLOTS - 1);
            let round = 1u64 << (shift + BITS);
            let tick = (self.now & !(round - 1)) + ((slot as u64) << shift);
            // Only the top level wraps: there, a slot at or before the current one means the next round.
            let tick = if tick <= self.now { tick + round } else { tick };
            Some((tick, level, slot))
        })
    }

    fn link(&mut self, index: u32, tick: u64) {
        let tick = tick.max(self.now + 1);
        let placed = tick.min(self.now + MAX_AHEAD - 1);
        let differing = u64::BITS - (placed ^ self.now | (SLOTS as u64 - 1)).leading_zeros() - 1;
        let level = ((differing / BITS) as usize).min(LEVELS - 1);
        let slot = (placed >> (BITS * level as u32)) as usize & (SLOTS - 1);

        let head = self.heads[level][slot];
        let node = &mut self.nodes[index as usize];
        (node.tick, node.level, node.slot) = (tick, level as u8, slot as u8);
        (node.previous, node.next) = (NONE, head);
        if head != NONE {
            self.nodes[head as usize].previous = index;
        }
        self.heads[level][slot] = index;
        self.occupied[level] |= 1 << slot;
    }

    fn unlink(&mut self, index: u32) {
        let Node { next, previous, level, slot, .. } = self.nodes[index as usize];
        let (level, slot) = (level as usize, slot as usize);
        match previous {
            NONE => self.heads[level][slot] = next,
            _ => self.nodes[previous as usize].next = next,
        }
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
        if self.heads[level][slot] == NONE {
            self.occupied[level] &= !(1 << slot);
        }
    }

    fn allocate(&mut self, item: T) -> u32 {
        if self.free == NONE {
            self.nodes.push(Node { item: Some(item), tick: 0, next: NONE, previous: NONE, level: 0, slot: 0 });
            return u32::try_from(self.nodes.len() - 1).expect("fewer timers than connections fit in memory");
        }
        let index = self.free;
        let node = &mut self.nodes[index as usize];
        self.free = node.next;
        node.item = Some(item);
        index
    }

    fn release(&mut self, index: u32) -> T {
        let node = &mut self.nodes[index as usize];
        node.next = self.free;
        self.free = index;
        node.item.take().expect("a key is used only while its entry is in the wheel")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expired(wheel: &mut Wheel<u64>, now: u64) -> Vec<u64> {
        let mut fired = Vec::new();
        wheel.expire(now, |item| fired.push(item));
        fired.sort_unstable();
        fired
    }

    #[test]
    fn entries_expire_at_their_tick_and_not_before() {
        for start in [0, 1, 63, 64, 4095, 4096, 1 << 30, (1 << 30) - 1, (1 << 36) + 17] {
            for ahead in [1, 2, 63, 64, 65, 4095, 4096, 4097, 262_143, 262_144, 1 << 24, (1 << 30) - 1, 1 << 31] {
                let mut wheel = Wheel::new(start);
                wheel.insert(start + ahead, 7);
                assert_eq!(expired(&mut wheel, start + ahead - 1), [], "start {start} ahead {ahead}");
                assert_eq!(expired(&mut wheel, start + ahead), [7], "start {start} ahead {ahead}");
                assert_eq!(wheel.next(), None);
            }
        }
    }

    #[test]
    fn few_entries_cost_a_wake_up_each_and_many_one_a_level_at_most() {
        for entries in [1, 3, MAX_LOOKED_AT as u64, 1_000] {
            let mut wheel = Wheel::new(100);
            // The later ones lie farther away than the wheel reaches at once.
            let ticks: Vec<u64> = (0..entries).map(|entry| 100_000 + 7 * entry).chain([MAX_AHEAD + 500]).collect();
            ticks.iter().for_each(|tick| _ = wheel.insert(*tick, *tick));
            let (mut wakes, mut fired) = (0, Vec::new());
            while let Some(next) = wheel.next() {
                let due = expired(&mut wheel, next);
                assert!(due.iter().all(|tick| *tick == next), "{due:?} at {next}");
                fired.extend(due);
                wakes += 1;
            }
            assert_eq!(fired, ticks);
            let moves = if entries < MAX_LOOKED_AT as u64 { 0 } else { ticks.len() * LEVELS };
            assert!(wakes <= ticks.len() + moves, "{wakes} wake-ups for {entries} entries");
        }
    }

    #[test]
    fn past_ticks_expire_with_the_next_tick() {
        let mut wheel = Wheel::new(1000);
        wheel.insert(3, 1);
        assert_eq!(expired(&mut wheel, 1001), [1]);
    }

    #[test]
    fn random_walk_agrees_with_a_sorted_list() {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        let (mut wheel, mut model, mut now) = (Wheel::new(5), Vec::<(Key, u64, u64)>::new(), 5);
        for id in 0..20_000 {
            let spread = 1 << (1 + random(22));
            match random(4) {
                0 | 1 => {
                    let tick = now + 1 + random(spread);
                    model.push((wheel.insert(tick, id), tick, id));
                }
                2 if !model.is_empty() => {
                    let index = random(model.len() as u64) as usize;
                    if random(2) == 0 {
                        let (key, _, id) = model.swap_remove(index);
                        assert_eq!(wheel.remove(key), id);
                    } else {
                        model[index].1 = now + 1 + random(spread);
                        wheel.reschedule(model[index].0, model[index].1);
                    }
                }
                _ => {
                    now += random(spread);
                    let mut due: Vec<u64> = model.iter().filter(|entry| entry.1 <= now).map(|entry| entry.2).collect();
                    due.sort_unstable();
                    model.retain(|entry| entry.1 > now);
                    assert_eq!(expired(&mut wheel, now), due);
                    assert!(wheel.next().unwrap_or(u64::MAX) > now);
                }
            }
        }
    }
}
