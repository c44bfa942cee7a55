//! When a head that arrives in pieces is worth parsing again.

use crate::limits::{Limits, MAX_HEAD_BYTES};

/// The bytes that a head may consist of.
pub(super) struct Window<'a> {
    pub(super) bytes: &'a [u8],
    /// More are not allowed: a head that does not end in them is too large.
    pub(super) is_full: bool,
}

/// How much of an unfinished head was seen. A head that comes byte by byte is not parsed from its start each time:
/// only when its blank line is there, or when it has doubled, so that garbage is found early. All parses together then
/// look at no more than three times the head's bytes, and the search at each byte once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    searched: usize,
    parsed: usize,
}

impl Progress {
    /// What to parse now, if it is worth while. `bytes` start where they did at the last call.
    pub(super) fn window<'a>(&mut self, bytes: &'a [u8], limits: &Limits) -> Option<Window<'a>> {
        let max_bytes = limits.max_head_bytes.min(MAX_HEAD_BYTES);
        let window = Window { bytes: &bytes[..bytes.len().min(max_bytes)], is_full: bytes.len() >= max_bytes };
        (self.is_worth_parsing(window.bytes) || window.is_full).then_some(window)
    }

    fn is_worth_parsing(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() < self.searched {
            *self = Self::default();
        }
        let worth = bytes.len() >= self.parsed * 2 || has_blank_line(bytes, self.searched);
        self.searched = bytes.len();
        if worth {
            self.parsed = bytes.len();
        }
        worth
    }
}

/// Whether an empty line ends at or after `from`; with a bare LF too, which the parser then refuses.
fn has_blank_line(bytes: &[u8], from: usize) -> bool {
    let mut start = from;
    while let Some(found) = bytes[start..].iter().position(|&byte| byte == b'\n') {
        let line_feed = start + found;
        let line = bytes[..line_feed].strip_suffix(b"\r").unwrap_or(&bytes[..line_feed]);
        if line.ends_with(b"\n") {
            return true;
        }
        start = line_feed + 1;
    }
    false
}
