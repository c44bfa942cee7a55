//! Durations, sizes and shares as people write them: `250ms`, `64KiB`, `10%`.

use std::time::Duration;

/// Why a text is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a duration.
    #[error("`{0}` is no duration; write a number with its unit, such as 250ms, 10s or 2m")]
    Duration(String),
    /// Not a size.
    #[error("`{0}` is no size; write a number of bytes, or one with a unit such as 64KiB or 1MiB")]
    Size(String),
    /// Not a share.
    #[error("`{0}` is no share; write a number from 0 to 1, or a percentage such as 10%")]
    Share(String),
}

/// Reads `250ms`, `1.5s`, `2m`, `1h`, `50us`.
///
/// # Errors
/// If the number or the unit is missing or wrong.
pub fn duration(text: &str) -> Result<Duration, Error> {
    let wrong = || Error::Duration(text.to_owned());
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let seconds = match unit {
        "us" | "µs" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

/// Reads `100`, `64KiB`, `1MiB`, `1GiB`, `5kB`.
///
/// # Errors
/// If the number or the unit is wrong.
pub fn size(text: &str) -> Result<u64, Error> {
    let wrong = || Error::Size(text.to_owned());
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let factor = match unit {
        "" | "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(wrong()),
    };
    let bytes = number * factor;
    // Beyond 2^53 a float no longer counts single bytes.
    if (0.0..=9e15).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
}

/// Reads `0.1` or `10%`.
///
/// # Errors
/// If it is not between nothing and all.
pub fn share(text: &str) -> Result<f64, Error> {
    let wrong = || Error::Share(text.to_owned());
    let share = match split(text).ok_or_else(wrong)? {
        (number, "%") => number / 100.0,
        (number, "") => number,
        _ => return Err(wrong()),
    };
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(wrong()) }
}

/// Number and unit of a text.
fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let number = text[..end].parse().ok()?;
    Some((number, text[end..].trim()))
}

/// A duration for people, with three digits that matter.
pub fn show_duration(duration: Duration) -> String {
    let microseconds = duration.as_secs_f64() * 1e6;
    let (value, unit) = match microseconds {
        value if value < 1e3 => (value, "µs"),
        value if value < 1e6 => (value / 1e3, "ms"),
        value => (value / 1e6, "s"),
    };
    let digits = match value {
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// A number of bytes for people.
pub fn show_bytes(bytes: u64) -> String {
    let value = bytes as f64;
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.1} KiB", value / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", value / 1_048_576.0),
        _ => format!("{:.2} GiB", value / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_take_a_number_and_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2 m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("50us"), Ok(Duration::from_micros(50)));
        for wrong in ["", "s", "5", "5 parsecs", "-1s", "1e300h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_and_shares_refuse_what_they_cannot_mean() {
        assert_eq!(size("64KiB"), Ok(65536));
        assert_eq!(size("100"), Ok(100));
        assert_eq!(share("10%"), Ok(0.1));
        assert_eq!(share("0.25"), Ok(0.25));
        for wrong in ["", "KiB", "1 TiB", "-5"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "110%", "1.1", "x"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shown_values_keep_three_digits() {
        assert_eq!(show_duration(Duration::from_nanos(1234)), "1.23 µs");
        assert_eq!(show_duration(Duration::from_micros(45_678)), "45.7 ms");
        assert_eq!(show_duration(Duration::from_secs(123)), "123 s");
        assert_eq!(show_bytes(1536), "1.5 KiB");
    }
}
