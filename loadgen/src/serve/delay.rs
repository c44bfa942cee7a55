//! How long an answer takes: constant, drawn from a distribution, or as long as a stall lasts.

use std::str::FromStr;
use std::time::Duration;

use crate::unit;

/// How long an answer takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Delay {
    /// No time.
    #[default]
    None,
    /// Always this.
    Constant(Duration),
    /// Anything between the two, all equally likely.
    Uniform(Duration, Duration),
    /// Exponential with this mean: mostly short, sometimes long.
    Exponential(Duration),
    /// Nothing is answered in the first part of each period, as if the server collected garbage; otherwise at once.
    Stall {
        /// How long each lasts.
        length: Duration,
        /// From the beginning of one to that of the next, counted from the start of the machine's monotonic clock.
        every: Duration,
    },
}

/// Why a text is no delay.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// One of its durations is none.
    #[error(transparent)]
    Duration(#[from] unit::Error),
    /// A stall that is never over, or comes never.
    #[error("`{0}` is no stall; write stall:LENGTH/EVERY with a LENGTH shorter than EVERY, such as stall:100ms/1s")]
    Stall(String),
    /// The end comes before the beginning.
    #[error("`{0}` ends before it begins; write uniform:SHORTEST..LONGEST")]
    Range(String),
}

impl Delay {
    /// A delay for a random number from 0 to less than 1, at a moment on the machine's monotonic clock.
    pub fn draw(self, random: f64, now: Duration) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Constant(delay) => delay,
            Self::Uniform(from, to) => from + (to - from).mul_f64(random),
            Self::Exponential(mean) => mean.mul_f64(-(1.0 - random).ln()),
            Self::Stall { length, every } => {
                let within = now.as_nanos() % every.as_nanos().max(1);
                length.saturating_sub(Duration::from_nanos(u64::try_from(within).unwrap_or(u64::MAX)))
            }
        }
    }
}

/// Reads `5ms`, `uniform:1ms..5ms`, `exp:5ms`, `stall:100ms/1s`.
impl FromStr for Delay {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(range) = text.strip_prefix("uniform:") {
            let wrong = || Error::Range(text.to_owned());
            let (from, to) = range.split_once("..").ok_or_else(wrong)?;
            let (from, to) = (unit::duration(from)?, unit::duration(to)?);
            return if from <= to { Ok(Self::Uniform(from, to)) } else { Err(wrong()) };
        }
        if let Some(mean) = text.strip_prefix("exp:") {
            return Ok(Self::Exponential(unit::duration(mean)?));
        }
        if let Some(stall) = text.strip_prefix("stall:") {
            let wrong = || Error::Stall(text.to_owned());
            let (length, every) = stall.split_once('/').ok_or_else(wrong)?;
            let (length, every) = (unit::duration(length)?, unit::duration(every)?);
            return if length < every { Ok(Self::Stall { length, every }) } else { Err(wrong()) };
        }
        Ok(Self::Constant(unit::duration(text)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn delays_are_read_as_written() {
        assert_eq!("5ms".parse(), Ok(Delay::Constant(5 * MILLISECOND)));
        assert_eq!("uniform:1ms..5ms".parse(), Ok(Delay::Uniform(MILLISECOND, 5 * MILLISECOND)));
        assert_eq!("exp:5ms".parse(), Ok(Delay::Exponential(5 * MILLISECOND)));
        assert!("uniform:5ms..1ms".parse::<Delay>().is_err());
        assert!("uniform:5ms".parse::<Delay>().is_err());
        let stall = Delay::Stall { length: 100 * MILLISECOND, every: 1_000 * MILLISECOND };
        assert_eq!("stall:100ms/1s".parse(), Ok(stall));
        assert!("stall:1s/1s".parse::<Delay>().is_err());
        assert!("gauss:5ms".parse::<Delay>().is_err());
    }

    #[test]
    fn drawn_delays_follow_their_distribution() {
        let draws =
            |delay: Delay| (0..1_000).map(move |at| delay.draw(f64::from(at) / 1_000.0, Duration::ZERO).as_secs_f64());
        let mean = |delay| draws(delay).sum::<f64>() / 1_000.0;
        assert!((mean(Delay::Exponential(MILLISECOND)) - 0.001).abs() < 0.000_02);
        let uniform = Delay::Uniform(MILLISECOND, 3 * MILLISECOND);
        assert!((mean(uniform) - 0.002).abs() < 0.000_02);
        assert!(draws(uniform).all(|delay| (0.001..=0.003).contains(&delay)));
    }

    #[test]
    fn a_stall_lasts_until_its_end_and_is_over_then() {
        let stall = Delay::Stall { length: 100 * MILLISECOND, every: 1_000 * MILLISECOND };
        for (now, delay) in [(0, 100), (3_030, 70), (3_100, 0), (3_999, 0), (4_000, 100)] {
            assert_eq!(stall.draw(0.5, now * MILLISECOND), delay * MILLISECOND, "after {now} ms");
        }
    }
}
