//! What has been seen of an answer's body.

use super::entry::{BodyCheck, pattern_byte};

/// Compares a body with what it must be, part by part.
pub(super) struct Seen {
    check: BodyCheck,
    /// Bytes in the request's body.
    sent: u64,
    bytes: u64,
    differs: bool,
}

impl Seen {
    pub(super) fn new(check: BodyCheck, sent: u64) -> Self {
        Self { check, sent, bytes: 0, differs: false }
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        if self.check == BodyCheck::Echo {
            self.differs |= bytes.iter().zip(self.bytes..).any(|(byte, position)| *byte != pattern_byte(position));
        }
        self.bytes += bytes.len() as u64;
    }

    pub(super) fn is_right(&self) -> bool {
        match self.check {
            BodyCheck::None => true,
            BodyCheck::Length(bytes) => self.bytes == bytes,
            BodyCheck::Echo => !self.differs && self.bytes == self.sent,
        }
    }
}
