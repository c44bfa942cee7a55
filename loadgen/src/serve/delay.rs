//! How long an answer takes: constant, or drawn from a distribution.

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
}

/// Why a text is no delay.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// One of its durations is none.
    #[error(transparent)]
    Duration(#[from] unit::Error),
    /// The end comes before the beginning.
    #[error("`{0}` ends before it begins; write uniform:SHORTEST..LONGEST")]
    Range(String),
}

impl Delay {
    /// A delay for a random number from 0 to less than 1.
    pub fn draw(self, random: f64) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Constant(delay) => delay,
            Self::Uniform(from, to) => from + (to - from).mul_f64(random),
            Self::Exponential(mean) => mean.mul_f64(-(1.0 - random).ln()),
        }
    }
}

/// Reads `5ms`, `uniform:1ms..5ms`, `exp:5ms`.
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
        assert!("gauss:5ms".parse::<Delay>().is_err());
    }

    #[test]
    fn drawn_delays_follow_their_distribution() {
        let draws = |delay: Delay| (0..1_000).map(move |at| delay.draw(f64::from(at) / 1_000.0).as_secs_f64());
        let mean = |delay| draws(delay).sum::<f64>() / 1_000.0;
        assert!((mean(Delay::Exponential(MILLISECOND)) - 0.001).abs() < 0.000_02);
        let uniform = Delay::Uniform(MILLISECOND, 3 * MILLISECOND);
        assert!((mean(uniform) - 0.002).abs() < 0.000_02);
        assert!(draws(uniform).all(|delay| (0.001..=0.003).contains(&delay)));
    }
}
