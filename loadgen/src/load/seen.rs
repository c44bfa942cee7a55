//! What has been seen of an answer's body.

use bytes::Bytes;

use super::entry::{BodyCheck, pattern_byte};

/// Compares a body with what it must be, part by part.
pub(super) struct Seen {
    check: BodyCheck,
    /// Bytes in the request's body.
    sent: u64,
    /// That body, if it is not the pattern.
    body: Option<Bytes>,
    bytes: u64,
    differs: bool,
}

impl Seen {
    pub(super) fn new(check: BodyCheck, sent: u64, body: Option<&Bytes>) -> Self {
        // Counted again only where it is looked at.
        let body = body.filter(|_| check == BodyCheck::Echo).cloned();
        Self { check, sent, body, bytes: 0, differs: false }
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        if self.check == BodyCheck::Echo {
            self.differs |= match &self.body {
                None => bytes.iter().zip(self.bytes..).any(|(byte, position)| *byte != pattern_byte(position)),
                Some(body) => !body.get(self.bytes as usize..).is_some_and(|rest| rest.starts_with(bytes)),
            };
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
