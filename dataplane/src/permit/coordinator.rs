//! The side that lends: it asks workers for what they have and moves permits to where they are wanted.

use std::collections::HashMap;

use super::{Limit, ToCoordinator, ToWorker, Trade};
use crate::pages::Change;
use crate::places::Place;
use crate::tables::Service;

/// Knows who was lent what. One of them a data plane, on the loader's thread.
pub struct Coordinator {
    /// Which workers still work.
    present: Vec<bool>,
    books: HashMap<Place, Book>,
}

/// What the coordinator knows of one service.
struct Book {
    place: Place,
    change: u64,
    max: u32,
    /// Whether workers have no leases but a number that they share.
    shared: bool,
    /// Whether everything in flight is known to be within the limit: only then anything is lent.
    counted: bool,
    /// Lent to nobody.
    held: u32,
    /// Lent to each worker; while it counts, what that has in flight.
    lent: Vec<u32>,
    /// Workers that wait, with how much they want.
    wants: Vec<(u16, u32)>,
    /// Which workers have not answered a recall or count yet.
    awaited: Vec<bool>,
}

impl Coordinator {
    /// A coordinator of so many workers.
    pub fn new(workers: u16) -> Self {
        Self { present: vec![true; usize::from(workers)], books: HashMap::new() }
    }

    /// Takes what new tables change, before any worker does.
    pub fn change<'a>(&mut self, changes: impl Iterator<Item = Change<'a, Service>>) {
        for (old, new) in changes {
            let new = new.and_then(|new| Some((new.place, new.limit.as_ref()?)));
            if let Some(old) = old {
                let stays =
                    |book: &Book| new.is_some_and(|(place, limit)| (place, limit.change) == (book.place, book.change));
                if !self.books.get(&old.place).is_some_and(stays) {
                    self.books.remove(&old.place);
                }
            }
            if let Some((place, limit)) = new {
                let workers = self.present.len();
                self.books.entry(place).or_insert_with(|| Book::new(place, limit, workers));
            }
        }
    }

    /// Takes a worker's message; `send` passes messages on to workers.
    pub fn receive(&mut self, worker: u16, message: ToCoordinator, mut send: impl FnMut(u16, ToWorker)) {
        let (ToCoordinator::Want(trade) | ToCoordinator::Returned(trade) | ToCoordinator::InFlight(trade)) = message;
        let Some(book) = self.books.get_mut(&trade.place).filter(|book| book.change == trade.change) else {
            // Of before a change. A worker that waits is told that there is nothing, in case the change never reaches it.
            if let ToCoordinator::Want(_) = message {
                send(worker, ToWorker::Grant(Trade { amount: 0, ..trade }));
            }
            return;
        };
        let number = usize::from(worker);
        match message {
            ToCoordinator::Want(_) => {
                book.wants.push((worker, trade.amount));
                if book.held == 0 && !book.waits() {
                    book.ask(&self.present, &mut send);
                }
            }
            ToCoordinator::Returned(_) => {
                book.lent[number] -= trade.amount;
                book.held += trade.amount;
                book.awaited[number] = false;
            }
            ToCoordinator::InFlight(_) => {
                book.lent[number] = trade.amount;
                book.awaited[number] = false;
            }
        }
        book.settle(&self.present, &mut send);
    }

    /// A worker has ended, and all of its requests with it: what it was lent is there for others, and nobody waits for its
    /// answers.
    pub fn leave(&mut self, worker: u16, mut send: impl FnMut(u16, ToWorker)) {
        let number = usize::from(worker);
        self.present[number] = false;
        for book in self.books.values_mut() {
            let lent = std::mem::take(&mut book.lent[number]);
            if book.counted {
                book.held += lent;
            }
            book.awaited[number] = false;
            book.wants.retain(|(wants, _)| *wants != worker);
            book.settle(&self.present, &mut send);
        }
    }
}

impl Book {
    fn new(place: Place, limit: &Limit, workers: usize) -> Self {
        Self {
            place,
            change: limit.change,
            max: limit.max,
            shared: limit.shared.is_some(),
            counted: false,
            held: 0,
            lent: vec![0; workers],
            wants: Vec::new(),
            awaited: vec![false; workers],
        }
    }

    fn trade(&self, amount: u32) -> Trade {
        Trade { place: self.place, change: self.change, amount }
    }

    /// Whether a recall or count is under way.
    fn waits(&self) -> bool {
        self.awaited.contains(&true)
    }

    /// Begins a count, or recalls from all who do not want more themselves.
    fn ask(&mut self, present: &[bool], send: &mut impl FnMut(u16, ToWorker)) {
        let message = if self.counted { ToWorker::Recall(self.trade(0)) } else { ToWorker::Count(self.trade(0)) };
        for (worker, number) in (0..).zip(0..present.len()).filter(|(_, number)| present[*number]) {
            if self.counted && (self.shared || self.wants.iter().any(|(wants, _)| *wants == worker)) {
                continue;
            }
            self.awaited[number] = true;
            send(worker, message);
        }
    }

    /// Lends what is there to those who wait; once all have answered the others are told that there is nothing.
    fn settle(&mut self, present: &[bool], send: &mut impl FnMut(u16, ToWorker)) {
        if !self.counted && !self.wants.is_empty() && !self.waits() {
            self.end_count(present, send);
        }
        while let Some((worker, amount)) = self.wants.first().copied() {
            if self.held == 0 && self.waits() {
                break;
            }
            self.wants.remove(0);
            let amount = amount.min(self.held);
            self.held -= amount;
            self.lent[usize::from(worker)] += amount;
            send(worker, ToWorker::Grant(self.trade(amount)));
        }
        debug_assert!(
            !self.counted || self.shared || self.held + self.lent.iter().sum::<u32>() == self.max,
            "permits are neither lost nor made"
        );
    }

    /// All have said what they have in flight. If that is less than the limit, each is lent what it has and an even share
    /// of the rest; if not, nothing is, and the next who wants some begins another count.
    fn end_count(&mut self, present: &[bool], send: &mut impl FnMut(u16, ToWorker)) {
        if self.shared {
            self.counted = true;
            return;
        }
        let in_flight = self.lent.iter().fold(0_u32, |sum, lent| sum.saturating_add(*lent));
        let Some(free) = self.max.checked_sub(in_flight).filter(|free| *free > 0) else { return };
        self.counted = true;
        self.held = free;
        let even = free / present.iter().filter(|present| **present).count().max(1) as u32;
        for (worker, number) in (0..).zip(0..present.len()).filter(|(_, number)| present[*number]) {
            let wanted = self.wants.iter().position(|(wants, _)| *wants == worker);
            let wanted = wanted.map_or(0, |index| self.wants.remove(index).1);
            let share = if even > 0 { even } else { wanted.min(self.held) };
            self.held -= share;
            self.lent[number] += share;
            if self.lent[number] > 0 || wanted > 0 {
                send(worker, ToWorker::Grant(self.trade(self.lent[number])));
            }
        }
    }
}
