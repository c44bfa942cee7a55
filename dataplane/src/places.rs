//! Dense numbers for named things, so that what changes per request can lie in an array on each core.
//!
//! A place is used again once its owner is gone; the generation tells the owners apart, so that a late reference to the
//! old one never reaches the new one.

use std::collections::HashMap;
use std::hash::Hash;

/// The number of a thing and which owner of that number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Index into arrays; as small as the number of things at a time allows.
    pub index: u32,
    /// Counts the owners of the index; never 0.
    pub generation: u32,
}

/// Gives places by name.
#[derive(Debug)]
pub struct Places<K> {
    taken: HashMap<K, Place>,
    /// The generation that each index was last given with.
    generations: Vec<u32>,
    free: Vec<u32>,
}

impl<K: Eq + Hash + Clone> Default for Places<K> {
    fn default() -> Self {
        Self { taken: HashMap::new(), generations: Vec::new(), free: Vec::new() }
    }
}

impl<K: Eq + Hash + Clone> Places<K> {
    /// The place of `name`; a new one if it has none.
    pub fn of(&mut self, name: &K) -> Place {
        if let Some(place) = self.taken.get(name) {
            return *place;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.generations.push(0);
            self.generations.len() as u32 - 1
        });
        let generation = &mut self.generations[index as usize];
        *generation = generation.wrapping_add(1).max(1);
        let place = Place { index, generation: *generation };
        self.taken.insert(name.clone(), place);
        place
    }

    /// The place of `name`, if it has one.
    pub fn get(&self, name: &K) -> Option<Place> {
        self.taken.get(name).copied()
    }

    /// Gives up the place of `name`.
    pub fn remove(&mut self, name: &K) {
        self.free.extend(self.taken.remove(name).map(|place| place.index));
    }

    /// Gives up all places but those that `keep` wants.
    pub fn retain(&mut self, keep: impl Fn(&K, Place) -> bool) {
        let free = &mut self.free;
        self.taken.retain(|name, place| {
            let stays = keep(name, *place);
            if !stays {
                free.push(place.index);
            }
            stays
        });
    }

    /// How long an array indexed by these places must be.
    pub fn capacity(&self) -> usize {
        self.generations.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_used_again_has_another_generation() {
        let mut places = Places::default();
        let first = places.of(&"a");
        assert_eq!(places.of(&"a"), first);
        assert_ne!(places.of(&"b").index, first.index);
        places.remove(&"a");
        assert_eq!(places.get(&"a"), None);
        let again = places.of(&"c");
        assert_eq!(again.index, first.index);
        assert_ne!(again.generation, first.generation);
        assert_eq!(places.capacity(), 2);
        places.retain(|name, _| *name == "b");
        assert_eq!(places.of(&"d").index, again.index);
    }
}
