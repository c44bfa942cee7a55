//! Things by the index of their place, in pages that versions of the tables share: a change costs what it changes, and
//! what has changed between two versions is found without looking at the rest.

use std::fmt;
use std::sync::Arc;

/// Things in one page: few enough to copy for a change of one, many enough that ten thousand are under two hundred pages.
const PAGE: usize = 64;

/// An immutable list with holes. Cloning it shares all pages; setting one thing then copies only that thing's page.
pub struct Pages<T>(Vec<Arc<Page<T>>>);

type Page<T> = [Option<Arc<T>>; PAGE];

/// What is at one index before and after a change.
pub type Change<'a, T> = (Option<&'a T>, Option<&'a T>);

impl<T> Pages<T> {
    /// What is at an index.
    pub fn get(&self, index: u32) -> Option<&T> {
        let index = index as usize;
        self.0.get(index / PAGE)?[index % PAGE].as_deref()
    }

    /// Puts something at an index, or nothing.
    pub fn set(&mut self, index: u32, thing: Option<Arc<T>>) {
        let index = index as usize;
        while self.0.len() <= index / PAGE {
            self.0.push(Arc::new([const { None }; PAGE]));
        }
        Arc::make_mut(&mut self.0[index / PAGE])[index % PAGE] = thing;
    }

    /// All things, in the order of their indexes.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flat_map(|page| page.iter()).filter_map(Option::as_deref)
    }

    /// What differs from an earlier version. A thing is another one if it was set anew, even to an equal one.
    pub fn changed_since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = Change<'a, T>> {
        (0..self.0.len().max(before.0.len()))
            .map(|number| (before.0.get(number), self.0.get(number)))
            .filter(|(old, new)| old.map(Arc::as_ptr) != new.map(Arc::as_ptr))
            .flat_map(|(old, new)| {
                (0..PAGE)
                    .map(move |slot| (old.and_then(|old| old[slot].as_ref()), new.and_then(|new| new[slot].as_ref())))
            })
            .filter(|(old, new)| old.map(Arc::as_ptr) != new.map(Arc::as_ptr))
            .map(|(old, new)| (old.map(|old| &**old), new.map(|new| &**new)))
    }
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Clone for Pages<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: fmt::Debug> fmt::Debug for Pages<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(things: &[(u32, u32)]) -> Pages<u32> {
        let mut pages = Pages::default();
        things.iter().for_each(|(index, thing)| pages.set(*index, Some(Arc::new(*thing))));
        pages
    }

    #[test]
    fn a_version_differs_from_the_one_before_by_what_was_set_and_leaves_that_one_as_it_was() {
        let before = pages(&[(0, 10), (63, 11), (64, 12), (1000, 13)]);
        let mut after = before.clone();
        assert_eq!(after.changed_since(&before).count(), 0);
        after.set(63, None);
        after.set(64, Some(Arc::new(20)));
        after.set(2000, Some(Arc::new(21)));
        let changes: Vec<_> = after.changed_since(&before).collect();
        assert_eq!(changes, [(Some(&11), None), (Some(&12), Some(&20)), (None, Some(&21))]);
        let back: Vec<_> = before.changed_since(&after).collect();
        assert_eq!(back, [(None, Some(&11)), (Some(&20), Some(&12)), (Some(&21), None)]);
        assert_eq!(before.iter().collect::<Vec<_>>(), [&10, &11, &12, &13]);
        assert_eq!(after.iter().collect::<Vec<_>>(), [&10, &20, &13, &21]);
        assert_eq!((after.get(63), after.get(1000), after.get(5000)), (None, Some(&13), None));
    }

    #[test]
    fn a_change_shares_the_pages_that_it_does_not_touch() {
        let before = pages(&(0..1000).map(|index| (index, index)).collect::<Vec<_>>());
        let mut after = before.clone();
        after.set(500, None);
        let shared = before.0.iter().zip(&after.0).filter(|(old, new)| Arc::ptr_eq(old, new)).count();
        assert_eq!((before.0.len(), shared), (16, 15));
    }
}
