//! gRPC's words inside of HTTP/2: timeouts, statuses, messages (gRPC over HTTP2, `PROTOCOL-HTTP2.md` of gRPC).

use std::fmt::Write;
use std::time::Duration;

/// Number of gRPC's statuses; they count from 0.
pub const STATUSES: usize = 17;

/// The status of a call that ended without one, or with a number that is none: `UNKNOWN`.
pub const UNKNOWN: u8 = 2;

/// Whether a content type is that of gRPC: `application/grpc`, with `+proto` or another format, or with parameters. Its
/// bridge to browsers, `application/grpc-web`, is another one.
pub fn is_grpc(content_type: &[u8]) -> bool {
    after_name(content_type).is_some()
}

/// What the messages are, as a content type of gRPC says it: `+proto` and the like, or nothing.
pub fn format(content_type: &[u8]) -> Option<&[u8]> {
    after_name(content_type)?.split(|byte| matches!(byte, b';' | b' ')).next()
}

fn after_name(content_type: &[u8]) -> Option<&[u8]> {
    const NAME: &[u8] = b"application/grpc";
    let (name, rest) = content_type.split_at_checked(NAME.len())?;
    (name.eq_ignore_ascii_case(NAME) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))).then_some(rest)
}

/// Reads `grpc-timeout`: at most eight digits and a unit. None if it is anything else.
pub fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Writes `grpc-timeout` in the finest unit that eight digits can hold, rounded down: a server never waits longer than its
/// caller.
pub fn write_timeout(timeout: Duration) -> String {
    const MAX: u64 = 99_999_999;
    const UNITS: [(&str, u64); 5] =
        [("n", 1), ("u", 1_000), ("m", 1_000_000), ("S", 1_000_000_000), ("M", 60_000_000_000)];
    // What does not fit is more than five hundred years.
    let found = u64::try_from(timeout.as_nanos())
        .ok()
        .and_then(|nanos| UNITS.into_iter().map(|(unit, size)| (nanos / size, unit)).find(|(count, _)| *count <= MAX));
    let (count, unit) = found.unwrap_or(((timeout.as_secs() / 3_600).min(MAX), "H"));
    format!("{count}{unit}")
}

/// Reads `grpc-status`. A number that gRPC does not know counts as [`UNKNOWN`].
pub fn parse_status(value: &[u8]) -> u8 {
    let number = match value {
        [digit @ b'0'..=b'9'] => digit - b'0',
        [b'1', digit @ b'0'..=b'9'] => 10 + (digit - b'0'),
        _ => UNKNOWN,
    };
    if usize::from(number) < STATUSES { number } else { UNKNOWN }
}

/// The status that an HTTP status means: as [`status_without`], but by meaning where that table leaves it to us, or says less: 408
/// and 504 are deadlines, 413 and 431 are exhausted limits.
pub fn status_of_http(status: u16) -> u8 {
    match status {
        408 | 504 => 4,
        413 | 431 => 8,
        501 => 12,
        500 | 505 => 13,
        other => status_without(other),
    }
}

/// What callers make of an answer without a gRPC status, such as that of a gateway before the service: gRPC's
/// `http-grpc-status-mapping.md`.
pub fn status_without(http: u16) -> u8 {
    match http {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => UNKNOWN,
    }
}

/// Writes a message for `grpc-message`: percent-encoded but for printable ASCII.
pub fn write_message(message: &str) -> String {
    let mut written = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => written.push(char::from(byte)),
            _ => write!(written, "%{byte:02X}").expect("a string takes all"),
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let check =
            |text: &str, expected: Option<Duration>| assert_eq!(parse_timeout(text.as_bytes()), expected, "{text}");
        check("1H", Some(Duration::from_secs(3600)));
        check("2M", Some(Duration::from_secs(120)));
        check("3S", Some(Duration::from_secs(3)));
        check("99999999m", Some(Duration::from_millis(99_999_999)));
        check("5u", Some(Duration::from_micros(5)));
        check("0n", Some(Duration::ZERO));
        for text in ["", "S", "1", "1s", "-1S", "1.5S", "999999999n", " 1S", "1S "] {
            check(text, None);
        }
    }

    #[test]
    fn a_timeout_that_is_written_is_never_longer_and_hardly_shorter() {
        let mut timeout = Duration::from_nanos(1);
        while timeout < Duration::from_secs(10 * 365 * 24 * 3600) {
            let read = parse_timeout(write_timeout(timeout).as_bytes()).expect("what is written can be read");
            assert!(read <= timeout, "{timeout:?}");
            assert!(timeout - read <= timeout / 10_000, "{timeout:?} became {read:?}");
            timeout = timeout * 3 / 2 + Duration::from_nanos(7);
        }
        assert_eq!(write_timeout(Duration::MAX), "99999999H");
    }

    #[test]
    fn content_types_of_grpc_are_known() {
        for yes in
            ["application/grpc", "application/grpc+proto", "Application/gRPC;charset=utf-8", "application/grpc ; a"]
        {
            assert!(is_grpc(yes.as_bytes()), "{yes}");
        }
        for no in ["", "application/json", "application/grpc-web", "application/grpc-web+proto", "application/grpcish"]
        {
            assert!(!is_grpc(no.as_bytes()), "{no}");
        }
    }

    #[test]
    fn a_content_type_tells_what_the_messages_are() {
        for (text, expected) in [
            ("application/grpc", Some("")),
            ("application/grpc+proto", Some("+proto")),
            ("application/grpc+json;charset=utf-8", Some("+json")),
            ("application/grpc; a", Some("")),
            ("application/grpc-web+proto", None),
        ] {
            assert_eq!(format(text.as_bytes()), expected.map(str::as_bytes), "{text}");
        }
    }

    #[test]
    fn statuses_and_messages() {
        for (text, expected) in [("0", 0), ("14", 14), ("16", 16), ("17", 2), ("99", 2), ("", 2), ("-1", 2), ("007", 2)]
        {
            assert_eq!(parse_status(text.as_bytes()), expected, "{text}");
        }
        let without = [200, 400, 401, 403, 404, 429, 500, 502, 503, 504].map(status_without);
        assert_eq!(without, [2, 13, 16, 7, 12, 14, 2, 14, 14, 14]);
        assert_eq!(write_message("no endpoint: 50% \u{e9}\n"), "no endpoint: 50%25 %C3%A9%0A");
    }
}
