//! Durations and sizes as the file writes them: `"250ms"`, `"2s"`, `"64KiB"`. Strict: one whole number, one unit, nothing
//! else, so that every value has one spelling that all readers understand alike.

use std::fmt;
use std::time::Duration;

/// What a duration looks like, for messages.
pub const DURATION_EXAMPLE: &str = "a duration such as \"250ms\"";

/// What a size looks like, for messages.
pub const SIZE_EXAMPLE: &str = "a size such as \"64KiB\"";

/// Units of time, smallest first, in nanoseconds.
const DURATION_UNITS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3_600 * 1_000_000_000),
    ("d", 24 * 3_600 * 1_000_000_000),
];

/// Units of size, smallest first, in bytes.
const SIZE_UNITS: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// Spellings from elsewhere, with ours. A decimal kilobyte is refused too: half the world means 1024 by it.
const FOREIGN_UNITS: [(&str, &str); 26] = [
    ("sec", "s"),
    ("secs", "s"),
    ("second", "s"),
    ("seconds", "s"),
    ("S", "s"),
    ("min", "m"),
    ("mins", "m"),
    ("minute", "m"),
    ("minutes", "m"),
    ("hour", "h"),
    ("hours", "h"),
    ("day", "d"),
    ("days", "d"),
    ("msec", "ms"),
    ("millis", "ms"),
    ("µs", "us"),
    ("b", "B"),
    ("K", "KiB"),
    ("k", "KiB"),
    ("KB", "KiB"),
    ("kB", "KiB"),
    ("kb", "KiB"),
    ("M", "MiB"),
    ("MB", "MiB"),
    ("G", "GiB"),
    ("GB", "GiB"),
];

/// Why a text is no duration or size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It does not begin with a whole number.
    #[error("a whole number and then a unit are expected")]
    Number,
    /// It is a number alone.
    #[error("the unit is missing; one of {0}")]
    NoUnit(Units),
    /// The number has a fraction.
    #[error("fractions are not allowed; use a smaller unit")]
    Fraction,
    /// The unit is not known.
    #[error("unknown unit `{unit}`; {}", match nearest { Some(known) => format!("did you mean `{known}`?"), None => format!("one of {units}") })]
    Unit {
        /// As written.
        unit: String,
        /// The same unit as we spell it.
        nearest: Option<&'static str>,
        /// What is known.
        units: Units,
    },
    /// It exceeds 64 bits.
    #[error("the number is too large")]
    TooLarge,
}

/// Which units a value can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Units {
    /// Of time.
    Duration,
    /// Of size.
    Size,
}

impl Units {
    fn table(self) -> &'static [(&'static str, u64)] {
        match self {
            Self::Duration => &DURATION_UNITS,
            Self::Size => &SIZE_UNITS,
        }
    }
}

impl fmt::Display for Units {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.table().iter().map(|(name, _)| *name).collect();
        f.write_str(&names.join(", "))
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&write(self.0, Units::Size))
    }
}

/// Reads a duration.
///
/// # Errors
/// If it is anything but a whole number and a unit.
pub fn duration(text: &str) -> Result<Duration, Error> {
    read(text, Units::Duration).map(Duration::from_nanos)
}

/// Reads a size.
///
/// # Errors
/// If it is anything but a whole number and a unit.
pub fn size(text: &str) -> Result<ByteSize, Error> {
    read(text, Units::Size).map(ByteSize)
}

/// Writes a duration in the largest unit that keeps the number whole. [`duration`] reads it back.
pub fn show(duration: Duration) -> String {
    write(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), Units::Duration)
}

fn read(text: &str, units: Units) -> Result<u64, Error> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(Error::Number);
    }
    if unit.is_empty() {
        return Err(Error::NoUnit(units));
    }
    if unit.starts_with(['.', ',']) {
        return Err(Error::Fraction);
    }
    let Some((_, factor)) = units.table().iter().find(|(name, _)| *name == unit) else {
        return Err(unknown_unit(unit, units));
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(*factor)).ok_or(Error::TooLarge)
}

fn unknown_unit(unit: &str, units: Units) -> Error {
    let known = |ours: &str| units.table().iter().any(|(name, _)| *name == ours);
    let nearest =
        FOREIGN_UNITS.iter().find(|(theirs, ours)| *theirs == unit.trim() && known(ours)).map(|(_, ours)| *ours);
    let spaced = units.table().iter().find(|(name, _)| *name == unit.trim()).map(|(name, _)| *name);
    Error::Unit { unit: unit.to_owned(), nearest: nearest.or(spaced), units }
}

fn write(value: u64, units: Units) -> String {
    let fits = |(_, factor): &&(&str, u64)| value != 0 && value.is_multiple_of(*factor);
    let table = units.table();
    let (name, factor) = table.iter().rev().find(fits).unwrap_or(match units {
        Units::Duration => &DURATION_UNITS[3],
        Units::Size => &SIZE_UNITS[0],
    });
    format!("{}{name}", value / factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_duration(text: &str, expected: Result<u64, &str>) {
        let found = duration(text).map(|value| u64::try_from(value.as_nanos()).unwrap()).map_err(|e| e.to_string());
        assert_eq!(found, expected.map_err(str::to_owned), "{text:?}");
    }

    fn check_size(text: &str, expected: Result<u64, &str>) {
        assert_eq!(
            size(text).map(|size| size.0).map_err(|e| e.to_string()),
            expected.map_err(str::to_owned),
            "{text:?}"
        );
    }

    #[test]
    fn durations_are_a_whole_number_and_a_unit() {
        check_duration("250ms", Ok(250_000_000));
        check_duration("2s", Ok(2_000_000_000));
        check_duration("0s", Ok(0));
        check_duration("5m", Ok(300_000_000_000));
        check_duration("1h", Ok(3_600_000_000_000));
        check_duration("7us", Ok(7_000));
        check_duration("", Err("a whole number and then a unit are expected"));
        check_duration("-1s", Err("a whole number and then a unit are expected"));
        check_duration("s", Err("a whole number and then a unit are expected"));
        check_duration("250", Err("the unit is missing; one of ns, us, ms, s, m, h, d"));
        check_duration("1.5s", Err("fractions are not allowed; use a smaller unit"));
        check_duration("2 s", Err("unknown unit ` s`; did you mean `s`?"));
        check_duration("2sec", Err("unknown unit `sec`; did you mean `s`?"));
        check_duration("1m30s", Err("unknown unit `m30s`; one of ns, us, ms, s, m, h, d"));
        check_duration("1d", Ok(86_400_000_000_000));
        check_duration("1y", Err("unknown unit `y`; one of ns, us, ms, s, m, h, d"));
        check_duration("99999999999999999999s", Err("the number is too large"));
        check_duration("18446744073709551615h", Err("the number is too large"));
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        check_size("64KiB", Ok(65_536));
        check_size("1MiB", Ok(1 << 20));
        check_size("17B", Ok(17));
        check_size("64KB", Err("unknown unit `KB`; did you mean `KiB`?"));
        check_size("64k", Err("unknown unit `k`; did you mean `KiB`?"));
        check_size("64", Err("the unit is missing; one of B, KiB, MiB, GiB"));
        check_size("64s", Err("unknown unit `s`; one of B, KiB, MiB, GiB"));
    }

    #[test]
    fn what_is_written_is_read_back() {
        for text in ["1ns", "1500us", "250ms", "2s", "90s", "5m", "1h", "365d", "0s"] {
            assert_eq!(show(duration(text).unwrap()), text);
        }
        for text in ["0B", "17B", "32KiB", "3MiB", "1GiB"] {
            assert_eq!(size(text).unwrap().to_string(), text);
        }
    }
}
