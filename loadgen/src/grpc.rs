//! gRPC's framing, for both sides.

use bytes::{BufMut, Bytes, BytesMut};

/// The trailer that says how a call ended.
pub(crate) const STATUS: &str = "grpc-status";

/// Bytes before each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// A message with its prefix.
pub(crate) fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).expect("messages are bounded by the command line"));
    frame.put_slice(message);
    frame.freeze()
}

/// Counts messages in bytes as they come, without keeping them.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    prefix: [u8; PREFIX_BYTES],
    /// How much of the prefix is there.
    known: usize,
    /// Bytes missing of the message whose prefix is there.
    left: usize,
    count: u64,
}

impl Messages {
    pub(crate) fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.known < PREFIX_BYTES {
                let taken = bytes.len().min(PREFIX_BYTES - self.known);
                self.prefix[self.known..self.known + taken].copy_from_slice(&bytes[..taken]);
                self.known += taken;
                bytes = &bytes[taken..];
                if self.known < PREFIX_BYTES {
                    return;
                }
                let [_, length @ ..] = self.prefix;
                self.left = u32::from_be_bytes(length) as usize;
            }
            let taken = bytes.len().min(self.left);
            self.left -= taken;
            bytes = &bytes[taken..];
            if self.left == 0 {
                self.known = 0;
                self.count += 1;
            }
        }
    }

    /// Messages that are complete.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Whether no message is half there.
    pub(crate) fn whole(&self) -> bool {
        self.known == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_their_bytes_come() {
        let wire = [frame(b""), frame(b"a"), frame(&[7; 300])].concat();
        for step in 1..wire.len() {
            let mut messages = Messages::default();
            wire.chunks(step).for_each(|part| messages.take(part));
            assert_eq!((messages.count(), messages.whole()), (3, true), "{step}");
        }
        let mut messages = Messages::default();
        messages.take(&wire[..wire.len() - 1]);
        assert_eq!((messages.count(), messages.whole()), (2, false));
    }
}
