//! What is to be sent to a mailbox that is full just now. Nothing is lost, and the order stays.

use std::collections::VecDeque;

use ringmesh_ring::mailbox::{Full, Sender};

/// A way into a mailbox. What has no room waits here, so the bound of the mailbox becomes the bound of what its sender
/// makes: the loader makes one message of a kind that repeats until it is answered, and a worker only answers.
pub struct Outbox<T> {
    sender: Sender<T>,
    waiting: VecDeque<T>,
}

impl<T> Outbox<T> {
    /// Sends by `sender`.
    pub fn new(sender: Sender<T>) -> Self {
        Self { sender, waiting: VecDeque::new() }
    }

    /// Sends a message, or lets it wait behind those that wait already.
    pub fn send(&mut self, message: T) {
        self.waiting.push_back(message);
        self.flush();
    }

    /// Sends a message if there is room and nothing waits.
    ///
    /// # Errors
    /// [`Full`], with the message.
    pub fn try_send(&mut self, message: T) -> Result<(), Full<T>> {
        if self.flush() { self.sender.send(message) } else { Err(Full(message)) }
    }

    /// Sends what waits, as far as there is room. Whether nothing is left.
    pub fn flush(&mut self) -> bool {
        while let Some(message) = self.waiting.pop_front() {
            if let Err(Full(message)) = self.sender.send(message) {
                self.waiting.push_front(message);
                return false;
            }
        }
        true
    }

    /// Whether something waits.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use ringmesh_ring::mailbox::mailbox;

    use super::*;

    #[test]
    fn what_a_full_mailbox_does_not_take_arrives_later_in_order() {
        let (senders, mut receiver) = mailbox(1, 4).expect("descriptors are there");
        let mut outbox = Outbox::new(senders.into_iter().next().expect("one sender"));
        (0..10).for_each(|number| outbox.send(number));
        assert!(outbox.is_waiting());
        assert!(outbox.try_send(99).is_err(), "it may not overtake those that wait");
        let mut received = Vec::new();
        while received.len() < 10 {
            received.extend(std::iter::from_fn(|| receiver.try_recv()));
            outbox.flush();
        }
        assert_eq!(received, (0..10).collect::<Vec<_>>());
        assert!(!outbox.is_waiting() && outbox.try_send(10).is_ok());
    }
}
