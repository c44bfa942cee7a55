//! Requests a second as they change over time, and the language they are written in.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::limits::{MAX_RATE, MAX_RATE_PIECES};
use crate::syntax::{Cursor, Error};

const NUMBER: &str = "a number of requests a second, such as 500 or 2.5k";
const LENGTH: &str = "how long, such as 30s or 250ms";

/// Requests a second, as they change over time.
///
/// ```text
/// rate  = part { "," part }
/// part  = LEVEL [ "/" LENGTH ]            500/30s          a level; without a length it lasts to the end
///       | FROM ".." TO "/" LENGTH         100..5000/30s    a ramp
///       | "(" rate ")" "*" [ TIMES ]      (200/900ms,2000/100ms)*    again and again: bursts
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Rate {
    head: Curve,
    tail: Tail,
    /// Its end, if its last part has one.
    length: Option<Duration>,
}

/// What follows the last piece.
#[derive(Clone, Debug, PartialEq)]
enum Tail {
    Hold(f64),
    Repeat(Curve),
}

/// Pieces one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
struct Curve {
    pieces: Vec<Piece>,
    seconds: f64,
    requests: f64,
}

/// A level or a ramp, and where it begins.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Piece {
    from: f64,
    to: f64,
    seconds: f64,
    /// Seconds before it.
    after: f64,
    /// Requests before it.
    before: f64,
}

/// Requests are whole numbers, or sums of random ones; a piece's bounds are sums of products. What differs by less is
/// the same.
const SAME: f64 = 1e-6;

impl Rate {
    /// Always the same.
    pub fn constant(per_second: f64) -> Self {
        Self { head: Curve::default(), tail: Tail::Hold(per_second), length: None }
    }

    /// How long it says it takes; none if its last part has no end.
    pub fn length(&self) -> Option<Duration> {
        self.length
    }

    /// The same rate if it never changes.
    pub fn is_constant(&self) -> Option<f64> {
        match &self.tail {
            Tail::Hold(level) if self.head.pieces.is_empty() => Some(*level),
            _ => None,
        }
    }

    /// Requests a second at an instant, counted from the start.
    pub fn at(&self, instant: Duration) -> f64 {
        let seconds = instant.as_secs_f64();
        match &self.tail {
            _ if seconds < self.head.seconds => self.head.at(seconds),
            Tail::Hold(level) => *level,
            Tail::Repeat(curve) => curve.at((seconds - self.head.seconds) % curve.seconds),
        }
    }

    /// Seconds from the start until so many requests have been due, and the next one is. None: never.
    pub(super) fn when(&self, requests: f64) -> Option<f64> {
        if requests + SAME < self.head.requests {
            return Some(self.head.when(requests));
        }
        let left = (requests - self.head.requests).max(0.0);
        match &self.tail {
            Tail::Hold(level) if *level == 0.0 => None,
            Tail::Hold(level) => Some(self.head.seconds + left / level),
            Tail::Repeat(curve) => {
                let turns = ((left + SAME) / curve.requests).floor();
                let within = (left - turns * curve.requests).max(0.0);
                Some(self.head.seconds + turns * curve.seconds + curve.when(within))
            }
        }
    }

    /// The same with each ramp as so many even steps, its ends included.
    #[must_use]
    pub fn in_steps(&self, steps: u32) -> Self {
        let tail = match &self.tail {
            Tail::Hold(level) => Tail::Hold(*level),
            Tail::Repeat(curve) => Tail::Repeat(curve.in_steps(steps)),
        };
        Self { head: self.head.in_steps(steps), tail, length: self.length }
    }
}

impl Curve {
    fn push(&mut self, from: f64, to: f64, seconds: f64) {
        self.pieces.push(Piece { from, to, seconds, after: self.seconds, before: self.requests });
        self.seconds += seconds;
        self.requests += (from + to) / 2.0 * seconds;
    }

    fn append(&mut self, other: &Self) {
        other.pieces.iter().for_each(|piece| self.push(piece.from, piece.to, piece.seconds));
    }

    fn at(&self, seconds: f64) -> f64 {
        let index = self.pieces.partition_point(|piece| piece.after <= seconds).saturating_sub(1);
        self.pieces
            .get(index)
            .map_or(0.0, |piece| piece.from + (piece.to - piece.from) * (seconds - piece.after) / piece.seconds)
    }

    fn when(&self, requests: f64) -> f64 {
        let index = self.pieces.partition_point(|piece| piece.before <= requests + SAME).saturating_sub(1);
        self.pieces.get(index).map_or(0.0, |piece| piece.after + piece.when((requests - piece.before).max(0.0)))
    }

    fn in_steps(&self, steps: u32) -> Self {
        let mut curve = Self::default();
        for piece in &self.pieces {
            match piece.from == piece.to || steps < 2 {
                true => curve.push(piece.from, piece.to, piece.seconds),
                false => (0..steps).for_each(|step| {
                    let share = f64::from(step) / f64::from(steps - 1);
                    let level = piece.from + (piece.to - piece.from) * share;
                    curve.push(level, level, piece.seconds / f64::from(steps));
                }),
            }
        }
        curve
    }
}

impl Piece {
    /// Seconds into it until so many of its requests have been due.
    fn when(&self, requests: f64) -> f64 {
        // Requests are from·t + slope/2·t²; this form of the solution loses no digits where the slope is small.
        let slope = (self.to - self.from) / self.seconds;
        let root = (self.from * self.from + 2.0 * slope * requests).max(0.0).sqrt();
        if requests == 0.0 { 0.0 } else { (2.0 * requests / (self.from + root)).min(self.seconds) }
    }
}

impl FromStr for Rate {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut cursor = Cursor::new(text);
        let mut parts = Parts::default();
        parts.read(&mut cursor)?;
        if !cursor.is_at_end() {
            return Err(cursor.expected("a comma and another part, or the end"));
        }
        let rate = parts.into_rate();
        let nothing = match &rate.tail {
            Tail::Hold(level) => *level == 0.0 && rate.head.requests == 0.0,
            Tail::Repeat(curve) => curve.requests == 0.0,
        };
        if nothing {
            return Err(cursor.expected_at(0, "a rate that sends something"));
        }
        Ok(rate)
    }
}

/// What has been read.
#[derive(Default)]
struct Parts {
    curve: Curve,
    /// The last part, if it has no end.
    endless: Option<Tail>,
}

impl Parts {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Error> {
        loop {
            self.read_part(cursor)?;
            let after = cursor.at();
            if !cursor.take(",") {
                return Ok(());
            }
            if self.endless.is_some() {
                return Err(
                    cursor.expected_at(after, "the end: the part before has no length, so nothing can follow it")
                );
            }
        }
    }

    fn read_part(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Error> {
        if cursor.take("(") {
            return self.read_repeat(cursor);
        }
        let from = read_level(cursor)?;
        if cursor.take("..") {
            let to = read_level(cursor)?;
            if !cursor.take("/") {
                return Err(cursor.expected("`/` and how long the ramp takes, such as 100..5000/30s"));
            }
            return self.push(cursor, from, to);
        }
        if cursor.take("/") {
            return self.push(cursor, from, from);
        }
        self.endless = Some(Tail::Hold(from));
        Ok(())
    }

    fn read_repeat(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Error> {
        let mut inner = Self::default();
        inner.read(cursor)?;
        if inner.endless.is_some() {
            return Err(cursor.expected("`/` and how long: what is repeated must end"));
        }
        if !cursor.take(")") {
            return Err(cursor.expected("`,` and another part, or `)`"));
        }
        if !cursor.take("*") {
            return Err(cursor.expected("`*` and how often, or `*` alone for again and again"));
        }
        let times = cursor.at();
        match cursor.take_while(|letter| letter.is_ascii_digit()) {
            "" => self.endless = Some(Tail::Repeat(inner.curve)),
            digits => {
                let count: usize = digits.parse().unwrap_or(usize::MAX);
                if count == 0 || inner.curve.pieces.len().saturating_mul(count) > MAX_RATE_PIECES {
                    return Err(cursor.expected_at(times, format!("1 to {MAX_RATE_PIECES} parts altogether")));
                }
                (0..count).for_each(|_| self.curve.append(&inner.curve));
            }
        }
        Ok(())
    }

    fn push(&mut self, cursor: &mut Cursor<'_>, from: f64, to: f64) -> Result<(), Error> {
        let at = cursor.at();
        let length = cursor.take_duration(LENGTH)?;
        if length.is_zero() {
            return Err(cursor.expected_at(at, "a length above nothing"));
        }
        if self.curve.pieces.len() >= MAX_RATE_PIECES {
            return Err(cursor.expected_at(at, format!("no more than {MAX_RATE_PIECES} parts")));
        }
        self.curve.push(from, to, length.as_secs_f64());
        Ok(())
    }

    fn into_rate(self) -> Rate {
        match self.endless {
            Some(tail) => Rate { head: self.curve, tail, length: None },
            None => {
                let last = self.curve.pieces.last().map_or(0.0, |piece| piece.to);
                let length = Some(Duration::from_secs_f64(self.curve.seconds));
                Rate { head: self.curve, tail: Tail::Hold(last), length }
            }
        }
    }
}

fn read_level(cursor: &mut Cursor<'_>) -> Result<f64, Error> {
    let begin = cursor.at();
    let level = cursor.take_number(NUMBER)?;
    if level > MAX_RATE {
        return Err(cursor.expected_at(begin, format!("at most {MAX_RATE} requests a second")));
    }
    Ok(level)
}

/// As it would be written, ramps in steps as their steps.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |curve: &Curve| {
            let piece = |piece: &Piece| match piece.from == piece.to {
                true => format!("{}/{}s", piece.from, piece.seconds),
                false => format!("{}..{}/{}s", piece.from, piece.to, piece.seconds),
            };
            curve.pieces.iter().map(piece).collect::<Vec<_>>().join(",")
        };
        let mut parts = Vec::new();
        if !self.head.pieces.is_empty() {
            parts.push(show(&self.head));
        }
        match &self.tail {
            Tail::Hold(level) if self.length.is_none() => parts.push(level.to_string()),
            Tail::Hold(_) => {}
            Tail::Repeat(curve) => parts.push(format!("({})*", show(curve))),
        }
        f.write_str(&parts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> Rate {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn requests_are_due_when_the_rate_says() {
        let check = |text: &str, requests: f64, seconds: Option<f64>| {
            let found = rate(text).when(requests);
            let same = match (found, seconds) {
                (Some(found), Some(seconds)) => (found - seconds).abs() < 1e-9,
                (found, seconds) => found == seconds,
            };
            assert!(same, "{text}: {requests} requests after {found:?}, not {seconds:?}");
        };
        check("100", 250.0, Some(2.5));
        // A ramp from 100 to 300 in 10 s has 2,000 requests; after 5 s, 750 of them.
        check("100..300/10s", 750.0, Some(5.0));
        check("100..300/10s", 2_000.0, Some(10.0));
        check("0..100/10s", 0.0, Some(0.0));
        check("0..100/10s", 5.0, Some(1.0));
        check("100..0/10s", 495.0, Some(9.0));
        check("100/2s,200/3s", 200.0, Some(2.0));
        check("100/2s,200/3s", 400.0, Some(3.0));
        check("100/2s,0/1s,100", 200.0, Some(3.0));
        check("100/2s,0", 199.0, Some(1.99));
        check("100/2s,0", 200.0, None);
        check("(200/900ms,2000/100ms)*", 180.0, Some(0.9));
        check("(200/900ms,2000/100ms)*", 380.0 * 7.0 + 280.0, Some(7.95));
        check("(0/1s,100/1s)*", 100.0, Some(3.0));
        check("10/1s,(1/1s)*3,5", 13.0, Some(4.0));
    }

    #[test]
    fn a_rate_knows_its_level_and_its_length() {
        let ramp = rate("100..300/10s,50/1s");
        assert_eq!((ramp.at(Duration::from_secs(5)), ramp.at(Duration::from_secs(20))), (200.0, 50.0));
        assert_eq!((ramp.length(), rate("100/1s,5").length()), (Some(Duration::from_secs(11)), None));
        assert_eq!(rate("(200/900ms,2000/100ms)*").at(Duration::from_millis(4_950)), 2_000.0);
        assert_eq!((rate("2.5k").is_constant(), ramp.is_constant()), (Some(2_500.0), None));
    }

    #[test]
    fn a_ramp_in_steps_has_its_ends_and_even_steps() {
        let stepped = rate("100..500/10s,7").in_steps(5);
        assert_eq!(stepped.to_string(), "100/2s,200/2s,300/2s,400/2s,500/2s,7");
        assert_eq!(rate("(100..300/3s,5/1s)*").in_steps(3).to_string(), "(100/1s,200/1s,300/1s,5/1s)*");
    }

    #[test]
    fn what_is_wrong_with_a_rate_is_told_with_its_place() {
        let check = |text: &str, position: usize, expected: &str| {
            let error = text.parse::<Rate>().unwrap_err();
            assert!(error.position() == position && error.expected().contains(expected), "{text}: {error}");
        };
        check("", 0, "a number of requests");
        check("100..x/30s", 5, "a number of requests");
        check("100..500", 8, "how long the ramp takes");
        check("100/30", 4, "how long, such as 30s");
        check("100/0s", 4, "above nothing");
        check("100,200/1s", 3, "nothing can follow");
        check("(100/1s", 7, "`)`");
        check("(100/1s)", 8, "`*`");
        check("(100)*", 4, "must end");
        check("(1/1s)*99999999999999999999", 7, "parts altogether");
        check("(1/1s)*,5", 7, "nothing can follow");
        check("100 rps", 4, "the end");
        check("99M", 0, "at most");
        check("0", 0, "sends something");
        check("(0/1s)*", 0, "sends something");
    }

    #[test]
    fn an_error_shows_the_text_with_a_mark_under_the_place() {
        let error = "100..x/30s".parse::<Rate>().unwrap_err().to_string();
        let expected = "at character 6: found `x`, expected a number of requests a second, such as 500 or 2.5k
    100..x/30s
         ^";
        assert_eq!(error, expected);
    }
}
