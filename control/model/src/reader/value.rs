//! What single values say.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::Field;
use super::field::describe;
use crate::error::{Cause, Hint, Located};
use crate::nearest;
use crate::snapshot::Address;
use crate::spiffe::SpiffeId;
use crate::unit::{self, ByteSize};

pub(crate) fn within<T: Quantity>(field: &Field<'_>, value: T, min: T, max: T) -> Option<T> {
    if value < min || value > max {
        field.refuse(Cause::OutOfRange { found: value.show(), min: min.show(), max: max.show() });
        return None;
    }
    Some(value)
}

/// A value that a word in the file stands for.
pub(crate) trait Word: Copy + 'static {
    /// The words, and what they stand for.
    const WORDS: &'static [(&'static str, Self)];

    /// Words that others have for it, and how it is said here.
    const FOREIGN: &'static [(&'static str, &'static str)] = &[];
}

/// Reads one of the words.
pub(crate) fn word<T: Word>(field: &Field<'_>) -> Option<T> {
    let words = T::WORDS.iter().map(|(word, _)| *word);
    let Some(text) = field.text() else {
        field.refuse(Cause::WrongWordType { found: describe(field.value.get_ref()), words: words.collect() });
        return None;
    };
    let found = T::WORDS.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    if found.is_none() {
        let foreign = T::FOREIGN.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
        let hint = foreign.map_or_else(|| nearest::or_all(text, words), |(_, meaning)| Hint::Means(meaning));
        field.refuse(Cause::UnknownWord { found: text.to_owned(), hint });
    }
    found
}

/// What can be read from one value. Problems are noted.
pub(crate) trait FromField: Sized {
    /// Reads it.
    fn from_field(field: &Field<'_>) -> Option<Self>;
}

/// What has an order and can be printed as the file writes it.
pub(crate) trait Quantity: FromField + PartialOrd + Copy {
    /// What it looks like where it can be turned off, for messages.
    const EXAMPLE_OR_OFF: &'static str;

    /// As the file writes it.
    fn show(&self) -> String;
}

impl<T: FromField> FromField for Located<T> {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        Some(Self { value: T::from_field(field)?, place: field.place() })
    }
}

impl FromField for String {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        let text = field.expect_text("a string")?;
        if text.is_empty() {
            field.refuse(Cause::WrongText { expected: "some text", found: String::new() });
            return None;
        }
        Some(text.to_owned())
    }
}

impl FromField for SpiffeId {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        let text = field.expect_text("a SPIFFE ID such as \"spiffe://shop.example/ns/default/sa/web\"")?;
        text.parse().map_err(|error| field.refuse(Cause::SpiffeId(error))).ok()
    }
}

impl FromField for PathBuf {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        String::from_field(field).map(Self::from)
    }
}

impl FromField for bool {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        match field.value.get_ref() {
            DeValue::Boolean(value) => Some(*value),
            _ => {
                field.refuse_type("true or false");
                None
            }
        }
    }
}

/// Any whole number that somebody may write; the range comes after, so that a message can name both.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
pub(crate) struct Number(i128);

impl From<u32> for Number {
    fn from(number: u32) -> Self {
        Self(number.into())
    }
}

impl From<Number> for u32 {
    /// The nearest there is.
    fn from(number: Number) -> Self {
        let nearest = number.0.clamp(0, Self::MAX.into());
        Self::try_from(nearest).unwrap_or(Self::MAX)
    }
}

impl FromField for Number {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        let number = match field.value.get_ref() {
            DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        if number.is_none() {
            field.refuse_type("a whole number");
        }
        number.map(Self)
    }
}

impl Quantity for Number {
    const EXAMPLE_OR_OFF: &'static str = "a whole number or \"off\"";

    fn show(&self) -> String {
        self.0.to_string()
    }
}

impl FromField for Duration {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        let text = field.expect_text(unit::DURATION_EXAMPLE)?;
        unit::duration(text).map_err(|error| field.refuse(Cause::Duration { found: text.to_owned(), error })).ok()
    }
}

impl Quantity for Duration {
    const EXAMPLE_OR_OFF: &'static str = "a duration such as \"250ms\", or \"off\"";

    fn show(&self) -> String {
        unit::show(*self)
    }
}

impl FromField for ByteSize {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        let text = field.expect_text(unit::SIZE_EXAMPLE)?;
        unit::size(text).map_err(|error| field.refuse(Cause::Size { found: text.to_owned(), error })).ok()
    }
}

impl Quantity for ByteSize {
    const EXAMPLE_OR_OFF: &'static str = "a size such as \"64KiB\", or \"off\"";

    fn show(&self) -> String {
        self.to_string()
    }
}

/// What a listening address looks like, for messages.
const ADDRESS_EXAMPLE: &str = "an address such as \"127.0.0.1:8080\", \"[::1]:8080\" or \"unix:/run/shop.sock\"";

/// Prefix of the path of a Unix socket.
pub(crate) const UNIX: &str = "unix:";

impl FromField for Address {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        let text = field.expect_text(ADDRESS_EXAMPLE)?;
        if let Some(path) = text.strip_prefix(UNIX) {
            return unix(field, path).map(Self::Unix);
        }
        let address = text.parse::<SocketAddr>().ok();
        if address.is_none() {
            field.refuse(Cause::WrongText { expected: ADDRESS_EXAMPLE, found: text.to_owned() });
        }
        // No socket of IPv6 alone can be bound to an address of IPv4 in its mapped form.
        address.map(|address| Self::Ip(SocketAddr::new(address.ip().to_canonical(), address.port())))
    }
}

/// Longest path of a Unix socket, in bytes: `sun_path` has 108 with the closing NUL (unix(7)); of a name without a file,
/// with the NUL in front of it, for which `@` is written.
const MAX_UNIX_PATH_BYTES: usize = 107;

/// Reads the path of a Unix socket, or the name of one without a file.
pub(crate) fn unix(field: &Field<'_>, path: &str) -> Option<PathBuf> {
    let name = path.strip_prefix('@');
    if name.is_none() && !path.starts_with('/') {
        field.refuse(Cause::RelativePath(path.to_owned()));
        return None;
    }
    let bytes = name.unwrap_or(path).len();
    if bytes == 0 || bytes > MAX_UNIX_PATH_BYTES || path.contains('\0') {
        field.refuse(Cause::UnixPath { bytes, path: path.escape_default().to_string() });
        return None;
    }
    Some(path.into())
}
