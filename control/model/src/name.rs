//! Names of objects.

use std::fmt;

use crate::error::{Cause, Located};
use crate::reader::{Field, FromField};

/// Longest name, in bytes: that of a DNS name, after which most are called.
pub const MAX_NAME_BYTES: usize = 253;

/// What a name may hold, for messages.
const EXPECTED: &str = "a name of at most 253 letters, digits, `.`, `-`, `_`, `/` and `*`";

/// A name that can stand in a metric's label, a log line and a table without quotes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Name(String);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Name {
    /// The text of a name, at its place.
    pub(crate) fn unwrap(name: Located<Self>) -> Located<String> {
        Located { value: name.value.0, place: name.place }
    }
}

impl FromField for Name {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        let text = field.expect_text("a name")?;
        if !is_name(text) {
            field.refuse(Cause::WrongText { expected: EXPECTED, found: text.to_owned() });
            return None;
        }
        Some(Self(text.to_owned()))
    }
}

fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '/' | '*');
    !text.is_empty() && text.len() <= MAX_NAME_BYTES && text.chars().all(allowed)
}
