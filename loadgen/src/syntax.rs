//! Small languages on the command line: a cursor over the text, and errors that show where it went wrong.

use std::fmt;
use std::time::Duration;

use crate::unit;

/// Why a text cannot be read: what was expected, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    text: String,
    at: usize,
    expected: String,
}

impl Error {
    /// Where it went wrong, as the number of characters before.
    pub fn position(&self) -> usize {
        self.text[..self.at].chars().count()
    }

    /// What would have been right there.
    pub fn expected(&self) -> &str {
        &self.expected
    }
}

/// The text with a mark under the place.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = match self.text[self.at..].chars().next() {
            Some(letter) => format!("`{letter}`"),
            None => "the end".to_owned(),
        };
        let position = self.position();
        writeln!(f, "at character {}: found {found}, expected {}", position + 1, self.expected)?;
        write!(f, "    {}\n    {:position$}^", self.text, "")
    }
}

impl std::error::Error for Error {}

/// A place in a text.
pub(crate) struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn is_at_end(&mut self) -> bool {
        self.skip_blanks();
        self.at == self.text.len()
    }

    /// An error here.
    pub(crate) fn expected(&self, what: impl Into<String>) -> Error {
        self.expected_at(self.at, what)
    }

    /// An error at an earlier place.
    pub(crate) fn expected_at(&self, at: usize, what: impl Into<String>) -> Error {
        Error { text: self.text.to_owned(), at, expected: what.into() }
    }

    /// Takes a symbol, if it is next.
    pub(crate) fn take(&mut self, symbol: &str) -> bool {
        self.skip_blanks();
        let found = self.text[self.at..].starts_with(symbol);
        if found {
            self.at += symbol.len();
        }
        found
    }

    /// Takes letters and what else belongs to them.
    pub(crate) fn take_while(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        self.skip_blanks();
        let rest = &self.text[self.at..];
        let end = rest.find(|letter| !belongs(letter)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// Takes a number such as `12`, `0.5` or `2k`; `..` after it is not a part of it.
    pub(crate) fn take_number(&mut self, what: &str) -> Result<f64, Error> {
        self.skip_blanks();
        let begin = self.at;
        let bytes = self.text.as_bytes();
        let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
        while is_digit(self.at) || (bytes.get(self.at) == Some(&b'.') && is_digit(self.at + 1) && self.at > begin) {
            self.at += 1;
        }
        let number: f64 = self.text[begin..self.at].parse().map_err(|_| self.expected_at(begin, what))?;
        let factor = match bytes.get(self.at) {
            Some(b'k') => 1e3,
            Some(b'M') => 1e6,
            _ => return Ok(number),
        };
        self.at += 1;
        Ok(number * factor)
    }

    /// Takes a duration such as `30s` or `250ms`.
    pub(crate) fn take_duration(&mut self, what: &str) -> Result<Duration, Error> {
        self.skip_blanks();
        let begin = self.at;
        let word = self.take_while(|letter| letter.is_ascii_alphanumeric() || letter == '.' || letter == 'µ');
        unit::duration(word).map_err(|_| self.expected_at(begin, what))
    }

    fn skip_blanks(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }
}
