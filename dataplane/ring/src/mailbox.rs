//! Messages between threads: one bounded queue per sender, and one descriptor that says something is there.
//!
//! The only way threads of the data plane speak to each other. Never on the request path.

use std::cell::OnceCell;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ThreadId;

use monoio::net::UnixStream;
use rtrb::{Consumer, Producer, PushError, RingBuffer};
use rustix::event::{EventfdFlags, eventfd};

use crate::fair::waitable;

/// The mailbox has no room. The message comes back.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the mailbox is full")]
pub struct Full<T>(pub T);

impl<T> std::fmt::Debug for Full<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Full")
    }
}

/// Makes a mailbox for messages from `senders` threads, each with room for `capacity` messages.
///
/// # Errors
/// When descriptors are exhausted.
pub fn mailbox<T: Send>(senders: usize, capacity: usize) -> io::Result<(Vec<Sender<T>>, Receiver<T>)> {
    let bell = Arc::new(Bell {
        descriptor: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        rung: AtomicBool::new(false),
    });
    let (senders, queues) = (0..senders)
        .map(|_| {
            let (producer, consumer) = RingBuffer::new(capacity);
            (Sender { queue: producer, bell: bell.clone() }, consumer)
        })
        .unzip();
    Ok((senders, Receiver { queues, next: 0, bell, waiter: ThreadBound::default() }))
}

/// What a sender rings when the receiver may be asleep.
struct Bell {
    descriptor: OwnedFd,
    /// Set by the first sender after the receiver looked, so that the others need no system call.
    rung: AtomicBool,
}

impl Bell {
    fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // The counter cannot overflow: between two writes lies a silencing.
            let _ = rustix::io::write(&self.descriptor, &1u64.to_ne_bytes());
        }
    }

    /// After this, whatever a sender has put before its last ring is visible, and the next message rings again.
    fn silence(&self) {
        let _ = rustix::io::read(&self.descriptor, &mut [0; 8]);
        self.rung.swap(false, Ordering::AcqRel);
    }
}

/// One thread's way into a mailbox.
pub struct Sender<T> {
    queue: Producer<T>,
    bell: Arc<Bell>,
}

impl<T> Sender<T> {
    /// Puts a message in, and wakes the receiver if it sleeps.
    ///
    /// # Errors
    /// [`Full`], with the message, when the receiver is that far behind.
    pub fn send(&mut self, message: T) -> Result<(), Full<T>> {
        self.queue.push(message).map_err(|PushError::Full(message)| Full(message))?;
        self.bell.ring();
        Ok(())
    }

    /// Whether the receiver is gone, so that nobody will read what is sent.
    pub fn is_abandoned(&self) -> bool {
        self.queue.is_abandoned()
    }
}

/// The reading end of a mailbox. Can be moved to the thread that is to read it.
pub struct Receiver<T> {
    queues: Vec<Consumer<T>>,
    /// The queue to look into first, so that none starves.
    next: usize,
    bell: Arc<Bell>,
    waiter: ThreadBound<UnixStream>,
}

impl<T> Receiver<T> {
    /// Takes a message, if there is one. Messages of one sender come in order; senders take turns.
    pub fn try_recv(&mut self) -> Option<T> {
        self.pop().or_else(|| {
            self.bell.silence();
            self.pop()
        })
    }

    fn pop(&mut self) -> Option<T> {
        let (count, first) = (self.queues.len(), self.next);
        (0..count).map(|offset| (first + offset) % count).find_map(|index| {
            let message = self.queues[index].pop().ok()?;
            self.next = (index + 1) % count;
            Some(message)
        })
    }

    /// Waits, on a worker, until there may be a message. May be dropped at any time.
    ///
    /// # Errors
    /// When descriptors are exhausted.
    ///
    /// # Panics
    /// On another thread than the first that waited.
    pub async fn ready(&self) -> io::Result<()> {
        if self.has_message() {
            return Ok(());
        }
        self.bell.silence();
        if self.has_message() {
            return Ok(());
        }
        let bell = &self.bell;
        let waiter = self.waiter.get_or_try_init(|| waitable(bell.descriptor.try_clone()?))?;
        waiter.readable(false).await
    }

    fn has_message(&self) -> bool {
        self.queues.iter().any(|queue| !queue.is_empty())
    }

    /// Whether all senders are gone and their messages read.
    pub fn is_abandoned(&self) -> bool {
        self.queues.iter().all(|queue| queue.is_abandoned() && queue.is_empty())
    }

    /// Readable (level-triggered) while there may be a message that [`try_recv`](Receiver::try_recv) has not been asked
    /// for: for `poll(2)` on a thread that is no worker. Call `try_recv` until it says none.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.bell.descriptor.as_fd()
    }
}

/// A value that never leaves the thread it was made on, inside one that may.
struct ThreadBound<T>(OnceCell<(ThreadId, ManuallyDrop<T>)>);

// SAFETY: the value inside is made, used and dropped on one thread only: `get_or_try_init` and `drop` compare threads,
// and touch no value of another one.
unsafe impl<T> Send for ThreadBound<T> {}

impl<T> Default for ThreadBound<T> {
    fn default() -> Self {
        ThreadBound(OnceCell::new())
    }
}

impl<T> ThreadBound<T> {
    fn get_or_try_init<E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        let here = std::thread::current().id();
        if self.0.get().is_none() {
            let made = make()?;
            self.0.set((here, ManuallyDrop::new(made))).unwrap_or_else(|_| unreachable!("it was empty just above"));
        }
        let (thread, value) = self.0.get().expect("put there just above");
        assert_eq!(*thread, here, "a mailbox is waited for on one thread");
        Ok(value)
    }
}

impl<T> Drop for ThreadBound<T> {
    fn drop(&mut self) {
        // Dropped on another thread it is leaked: rare, small, and the only sound thing to do.
        if let Some((thread, value)) = self.0.take()
            && thread == std::thread::current().id()
        {
            drop(ManuallyDrop::into_inner(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_one_sender_come_in_order_and_senders_take_turns() {
        let (mut senders, mut receiver) = mailbox(2, 8).unwrap();
        for n in 0..3 {
            senders[0].send(n).unwrap();
            senders[1].send(10 + n).unwrap();
        }
        let received: Vec<i32> = std::iter::from_fn(|| receiver.try_recv()).collect();
        assert_eq!(received, [0, 10, 1, 11, 2, 12]);
    }

    #[test]
    fn full_mailbox_gives_the_message_back() {
        let (mut senders, mut receiver) = mailbox(1, 1).unwrap();
        senders[0].send("first").unwrap();
        assert!(matches!(senders[0].send("second"), Err(Full("second"))));
        assert_eq!(receiver.try_recv(), Some("first"));
        senders[0].send("third").unwrap();
    }

    #[test]
    fn descriptor_is_readable_only_while_there_are_messages() {
        let readable = |receiver: &Receiver<i32>| {
            let descriptor = receiver.descriptor();
            let mut poll = [rustix::event::PollFd::new(&descriptor, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut poll, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
        };
        let (mut senders, mut receiver) = mailbox(1, 4).unwrap();
        assert!(!readable(&receiver));
        for _ in 0..3 {
            senders[0].send(1).unwrap();
            senders[0].send(2).unwrap();
            assert!(readable(&receiver));
            while receiver.try_recv().is_some() {}
            assert!(!readable(&receiver));
        }
    }

    #[test]
    fn abandoned_ends_are_noticed() {
        let (senders, receiver) = mailbox::<i32>(2, 4).unwrap();
        assert!(!receiver.is_abandoned());
        drop(senders);
        assert!(receiver.is_abandoned());
    }
}
