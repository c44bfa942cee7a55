//! How many frames a peer may send that cost us work and do nothing for anybody. Each such frame costs credit; requests, bodies
//! and what the peer has to acknowledge earn it, and some comes back with time. Without credit the connection ends (RFC 9113
//! section 10.5).
//!
//! The library bounds what such frames make it hold; how often they come is for us to see.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use ringmesh_codec::http2::PREFACE;
use ringmesh_ring::clock::Instant;

use super::limits::{CREDIT_PER_SECOND, MAX_CREDIT};
use crate::proxy::allowance::{Allowance, MIN_EARNING_BYTES};

/// Bytes of a frame's header (RFC 9113 section 4.1).
const HEADER: usize = 9;

/// Credit for each request.
const REQUEST: u32 = 2;

/// Window updates that a frame with content may be answered by: for stream and connection each, also where the peer counts in
/// small steps. They may all come at once, so they are no part of the credit, which has a bound.
const SENT: u64 = 4;

/// Cost of a reset stream: the request was begun in vain.
const RESET: u32 = 6;

mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const PRIORITY: u8 = 2;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;
}

/// END_HEADERS of HEADERS and CONTINUATION; END_STREAM of DATA and HEADERS, the others of HEADERS.
mod flag {
    pub(super) const END_STREAM: u8 = 1;
    pub(super) const END_HEADERS: u8 = 4;
    pub(super) const PADDED: u8 = 8;
    pub(super) const PRIORITY: u8 = 32;
}

/// How a head begins with the commonest final statuses: by their place in the static table, from 200 to 500 (RFC 7541
/// appendix A). A status is the first field there is, and the only one of its name (RFC 9113 section 8.3).
const FINAL: std::ops::RangeInclusive<u8> = 0x88..=0x8e;

/// Follows the frames of one connection.
#[derive(Debug)]
pub struct Calm {
    /// What there is of a frame's header that comes in pieces.
    header: [u8; HEADER],
    /// Bytes of the frame's header that are there.
    have: usize,
    /// Bytes to skip: the rest of a frame, or of the preface.
    skip: usize,
    allowance: Allowance,
    /// For streams that a client resets.
    resets: Allowance,
    /// Whether its heads are requests, which are what we are there for; those of an endpoint answer ours.
    asks: bool,
    /// Window updates that the peer owes us for what we have sent; of an endpoint, heads too.
    owed: u64,
    in_head: bool,
    /// Heads so far, those of trailers among them.
    heads: u64,
    /// The newest stream of which a head has begun.
    newest: u32,
    /// Streams of which a head has begun.
    opened: u64,
    /// A stream may have been reset.
    reset: bool,
    /// The next byte is a response's first, if it is not that of trailers.
    in_status: bool,
    /// There was a head that may have been an interim one.
    interim: bool,
    /// Frames that have begun, as far as it matters.
    frames: u8,
}

impl Calm {
    /// For a client whose connection begins now, with its preface.
    pub fn of_client(now: Instant) -> Self {
        Self { skip: PREFACE.len(), asks: true, ..Self::of_endpoint(now) }
    }

    /// For an endpoint whose connection begins now.
    pub fn of_endpoint(now: Instant) -> Self {
        Self {
            header: [0; HEADER],
            have: 0,
            skip: 0,
            allowance: Allowance::new(MAX_CREDIT, CREDIT_PER_SECOND, now),
            resets: Allowance::new(MAX_CREDIT, CREDIT_PER_SECOND, now),
            asks: false,
            owed: 0,
            in_head: false,
            heads: 0,
            newest: 0,
            opened: 0,
            reset: false,
            in_status: false,
            interim: false,
            frames: 0,
        }
    }

    /// Looks at bytes that have come; whether the peer has credit left. The clock is only asked when it has not.
    pub fn look(&mut self, mut bytes: &[u8], now: impl Fn() -> Instant) -> bool {
        loop {
            if self.in_status
                && let Some(first) = bytes.first()
            {
                self.in_status = false;
                self.interim |= !FINAL.contains(first);
            }
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let header = match bytes.split_first_chunk() {
                // Nearly all are there whole.
                Some((header, rest)) if self.have == 0 => {
                    bytes = rest;
                    *header
                }
                _ => {
                    let taken = (HEADER - self.have).min(bytes.len());
                    self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
                    self.have += taken;
                    bytes = &bytes[taken..];
                    if self.have < HEADER {
                        return true;
                    }
                    self.have = 0;
                    self.header
                }
            };
            if !self.frame(header, &now) {
                return false;
            }
        }
    }

    /// Whether a head has begun and not ended.
    pub fn is_in_head(&self) -> bool {
        self.in_head
    }

    /// Heads whose last frame has begun, those of trailers among them.
    pub fn heads(&self) -> u64 {
        self.heads
    }

    /// Streams that the peer has opened, if no frame has begun and not ended.
    pub fn opened(&self) -> Option<u64> {
        let is_between = self.skip == 0 && self.have == 0 && !self.in_head;
        is_between.then_some(self.opened)
    }

    /// Whether a stream may ever have been reset: by the peer, or by the library for one of the few frames that it may reset a
    /// stream for of which it has the request whole (a window too large, a stream that depends on itself, a second head).
    pub fn may_have_reset(&self) -> bool {
        self.reset
    }

    /// Whether an interim head may have come of an endpoint: what cannot be told from one at a glance counts.
    pub fn may_be_interim(&self) -> bool {
        self.interim
    }

    /// Whether the first frame has come whole: a peer's settings, when it keeps to the rules (RFC 9113 section 3.4).
    pub fn has_settings(&self) -> bool {
        self.frames > 1 || self.frames == 1 && self.skip == 0
    }

    /// The peer has something to acknowledge: a frame with so many bytes, which may become several.
    pub fn earn_for(&mut self, bytes: usize) {
        self.owed = self.owed.saturating_add((bytes as u64 / 4096 + 1) * SENT);
        // Calls that go on for long end by a reset.
        self.resets.earn(1);
    }

    fn frame(&mut self, header: [u8; HEADER], now: &impl Fn() -> Instant) -> bool {
        let [high, middle, low, kind, flags, stream @ ..] = header;
        // Its first bit is reserved, and means nothing.
        let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
        self.skip = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let empty = self.skip == 0;
        self.frames = self.frames.saturating_add(1);
        if matches!(kind, kind::HEADERS | kind::CONTINUATION) {
            self.in_head = flags & flag::END_HEADERS == 0;
            self.heads += u64::from(!self.in_head);
        }
        self.reset |= match kind {
            kind::RST_STREAM | kind::PRIORITY => true,
            kind::WINDOW_UPDATE => stream != 0,
            kind::HEADERS => stream <= self.newest,
            _ => false,
        };
        if kind == kind::HEADERS && stream > self.newest {
            self.newest = stream;
            self.opened += 1;
        }
        // What ends the stream is none.
        if kind == kind::HEADERS && !self.asks && flags & flag::END_STREAM == 0 {
            let is_bare = !empty && flags & (flag::PADDED | flag::PRIORITY) == 0;
            self.in_status = is_bare;
            self.interim |= !is_bare;
        }
        match kind {
            kind::HEADERS if self.asks => {
                self.allowance.earn(REQUEST);
                self.resets.earn(REQUEST);
                true
            }
            kind::DATA if !empty || flags & flag::END_STREAM != 0 => {
                self.allowance.earn(1);
                self.resets.earn(u32::from(self.skip >= MIN_EARNING_BYTES));
                true
            }
            kind::RST_STREAM if self.asks => self.resets.pay(RESET, now),
            kind::RST_STREAM => self.allowance.pay(RESET, now),
            kind::SETTINGS => self.allowance.pay(RESET, now),
            kind::CONTINUATION if !empty => self.allowance.pay(1, now),
            kind::DATA | kind::CONTINUATION => self.allowance.pay(RESET, now),
            kind::WINDOW_UPDATE | kind::HEADERS if self.owed > 0 => {
                self.owed -= 1;
                true
            }
            // PRIORITY, PING, GOAWAY, more of WINDOW_UPDATE or heads than are owed, and what nobody knows.
            _ => self.allowance.pay(1, now),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PING: u8 = 6;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let mut frame = vec![(payload >> 16) as u8, (payload >> 8) as u8, payload as u8, kind, flags, 0, 0, 0, 1];
        frame.resize(HEADER + payload, 0xff);
        frame
    }

    fn calm() -> Calm {
        let mut calm = Calm::of_client(Instant::ZERO);
        assert!(calm.look(PREFACE, || Instant::ZERO));
        calm
    }

    /// How many of these frames in a row are taken, up to 100,000.
    fn taken(calm: &mut Calm, frames: &[Vec<u8>], now: Instant) -> usize {
        let count = (0..100_000).take_while(|_| frames.iter().all(|frame| calm.look(frame, || now))).count();
        // It does not look at the rest of what it refuses.
        calm.skip = 0;
        count
    }

    #[test]
    fn floods_end_and_requests_go_on() {
        type Row = (&'static str, Vec<Vec<u8>>, std::ops::Range<usize>);
        let byte = frame(kind::DATA, 0, 1);
        let bytes_and_resets =
            [vec![frame(kind::HEADERS, 4, 40)], vec![byte; 4], vec![frame(kind::RST_STREAM, 0, 4)]].concat();
        let table: [Row; 10] = [
            ("pings", vec![frame(PING, 0, 8)], 1_000..3_000),
            ("settings", vec![frame(kind::SETTINGS, 0, 0)], 100..1_000),
            ("rapid resets", vec![frame(kind::HEADERS, 5, 40), frame(kind::RST_STREAM, 0, 4)], 100..1_000),
            ("rapid resets of uploads", bytes_and_resets, 100..1_000),
            ("empty data", vec![frame(kind::DATA, 0, 0)], 100..1_000),
            ("empty continuations", vec![frame(kind::CONTINUATION, 0, 0)], 100..1_000),
            ("window updates", vec![frame(kind::WINDOW_UPDATE, 0, 4)], 1_000..3_000),
            ("unknown frames", vec![frame(200, 0, 0)], 1_000..3_000),
            ("requests", vec![frame(kind::HEADERS, 5, 40)], 100_000..100_001),
            (
                "uploads",
                vec![frame(kind::HEADERS, 4, 40), frame(kind::DATA, 0, 16_000), frame(kind::DATA, 1, 0)],
                100_000..100_001,
            ),
        ];
        for (name, frames, expected) in table {
            let found = taken(&mut calm(), &frames, Instant::ZERO);
            assert!(expected.contains(&found), "{name}: {found}");
        }
    }

    #[test]
    fn what_we_send_may_be_acknowledged_frame_by_frame_and_all_at_once() {
        let update = frame(kind::WINDOW_UPDATE, 0, 4);
        let mut calm = calm();
        for _ in 0..50_000 {
            calm.earn_for(1);
            assert!(calm.look(&update, || Instant::ZERO) && calm.look(&update, || Instant::ZERO));
        }
        (0..20_000).for_each(|_| calm.earn_for(1));
        assert!((0..40_000).all(|_| calm.look(&update, || Instant::ZERO)));
        // Nothing else is owed.
        assert!(taken(&mut calm, &[frame(PING, 0, 8)], Instant::ZERO) < 3_000);
    }

    #[test]
    fn calls_of_which_some_was_answered_may_end_by_a_reset() {
        let (head, byte) = (frame(kind::HEADERS, flag::END_HEADERS, 40), frame(kind::DATA, 0, 1));
        let mut calm = calm();
        for _ in 0..50_000 {
            assert!(calm.look(&head, || Instant::ZERO));
            for _message in 0..4 {
                assert!(calm.look(&byte, || Instant::ZERO));
                calm.earn_for(1);
            }
            assert!(calm.look(&frame(kind::RST_STREAM, 0, 4), || Instant::ZERO));
        }
    }

    #[test]
    fn an_endpoint_has_heads_for_its_requests_and_few_more() {
        let head = frame(kind::HEADERS, flag::END_HEADERS, 20);
        let mut calm = Calm::of_endpoint(Instant::ZERO);
        for _ in 0..50_000 {
            calm.earn_for(0);
            // An interim one, the final one, and trailers.
            assert!((0..3).all(|_| calm.look(&head, || Instant::ZERO)));
        }
        let mut flooding = Calm::of_endpoint(Instant::ZERO);
        flooding.earn_for(0);
        assert!((1_000..3_000).contains(&taken(&mut flooding, &[head], Instant::ZERO)));
    }

    #[test]
    fn a_head_that_may_be_interim_is_seen_however_its_bytes_arrive() {
        let head = |flags: u8, block: &[u8]| {
            let mut frame = frame(kind::HEADERS, flags, block.len());
            frame[HEADER..].copy_from_slice(block);
            frame
        };
        let (final_head, trailers) = (head(flag::END_HEADERS, &[0x88, 0x5f]), head(5, &[0x40, 0x0b]));
        let body = frame(kind::DATA, 0, 20);
        let ordinary = [final_head.clone(), body, trailers, head(5, &[0x8d])].concat();
        let table = [
            ("100 by its text", head(flag::END_HEADERS, b"\x48\x03100"), true),
            ("103 from the table", head(flag::END_HEADERS, &[0xbe]), true),
            ("the table's size", head(flag::END_HEADERS, &[0x3f, 0xe1, 0x1f, 0x88]), true),
            ("padding", head(flag::END_HEADERS | flag::PADDED, &[0x88, 0x88]), true),
            ("a priority", head(flag::END_HEADERS | flag::PRIORITY, &[0x88; 6]), true),
            ("nothing yet", head(0, &[]), true),
            ("500", head(flag::END_HEADERS, &[0x8e]), false),
            ("the end", head(5, b"\x48\x03201"), false),
        ];
        for (name, frame, expected) in table {
            let bytes = [&ordinary[..], &frame, &final_head].concat();
            for step in [1, 9, 10, 1_000] {
                let mut calm = Calm::of_endpoint(Instant::ZERO);
                assert!(bytes.chunks(step).all(|part| calm.look(part, || Instant::ZERO)), "{name}");
                assert_eq!(calm.may_be_interim(), expected, "{name} in steps of {step}");
            }
        }
    }

    #[test]
    fn the_first_frame_is_known_once_it_is_whole() {
        let bytes = [frame(kind::SETTINGS, 0, 12), frame(kind::SETTINGS, 1, 0)].concat();
        let mut calm = Calm::of_endpoint(Instant::ZERO);
        for (at, byte) in bytes.iter().enumerate() {
            assert_eq!(calm.has_settings(), at >= HEADER + 12, "{at}");
            calm.look(&[*byte], || Instant::ZERO);
        }
        assert!(calm.has_settings());
    }

    #[test]
    fn credit_comes_back_with_time() {
        let mut calm = calm();
        let first = taken(&mut calm, &[frame(PING, 0, 8)], Instant::ZERO);
        assert_eq!(taken(&mut calm, &[frame(PING, 0, 8)], Instant::ZERO), 0);
        let later = Instant::ZERO + Duration::from_secs(3);
        assert_eq!(taken(&mut calm, &[frame(PING, 0, 8)], later), 3 * CREDIT_PER_SECOND as usize);
        assert_eq!(taken(&mut calm, &[frame(PING, 0, 8)], later + Duration::from_secs(3_600)), first);
    }

    #[test]
    fn frames_are_found_however_their_bytes_arrive() {
        let mut bytes = PREFACE.to_vec();
        for round in 0..20 {
            bytes.extend(frame(kind::HEADERS, 0, 30 + round));
            bytes.extend(frame(kind::CONTINUATION, flag::END_HEADERS, round));
            bytes.extend(frame(PING, 0, 8));
        }
        bytes.extend(frame(kind::HEADERS, 0, 3));
        let mut whole = Calm::of_client(Instant::ZERO);
        assert!(whole.look(&bytes, || Instant::ZERO));
        assert!(whole.is_in_head());
        for step in [1, 2, 7, 9, 10, 33] {
            let mut calm = Calm::of_client(Instant::ZERO);
            assert!(bytes.chunks(step).all(|part| calm.look(part, || Instant::ZERO)));
            assert_eq!(
                (calm.allowance.left(), calm.is_in_head(), calm.heads()),
                (whole.allowance.left(), true, 20),
                "{step}"
            );
        }
    }
}
