//! Text with placeholders, filled anew for each request:
//!
//! - `{{counter}}`: the number of the request, from 0, never twice in a load;
//! - `{{random}}`: a random number, `{{random:1..100}}` one from 1 to 100;
//! - `{{uuid}}`: a random UUID.

use std::fmt::Write;

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It begins a placeholder that does not end.
    #[error("`{{{{` is not followed by `}}}}` in `{0}`")]
    Open(String),
    /// It has a placeholder that there is not.
    #[error(
        "`{{{{{0}}}}}` is no placeholder; there are {{{{counter}}}}, {{{{random}}}}, {{{{random:1..100}}}} and {{{{uuid}}}}"
    )]
    Unknown(String),
}

/// A text with placeholders.
#[derive(Clone, Debug)]
pub(super) struct Template(Vec<Piece>);

#[derive(Clone, Debug)]
enum Piece {
    Text(String),
    Counter,
    Random { from: u64, to: u64 },
    Uuid,
}

/// What placeholders are filled with.
pub(super) struct Values<R> {
    /// The number of this request.
    pub(super) counter: u64,
    pub(super) random: R,
}

impl Template {
    /// # Errors
    /// If a placeholder is none.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once("{{") {
            let (name, after) = behind.split_once("}}").ok_or_else(|| Error::Open(text.to_owned()))?;
            pieces.push(Piece::Text(before.to_owned()));
            pieces.push(Piece::parse(name.trim()).ok_or_else(|| Error::Unknown(name.to_owned()))?);
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Self(pieces))
    }

    /// Whether there is nothing to fill.
    pub(super) fn is_plain(&self) -> bool {
        self.0.iter().all(|piece| matches!(piece, Piece::Text(_)))
    }

    pub(super) fn fill(&self, values: &Values<impl Fn() -> u64>) -> String {
        let mut text = String::new();
        for piece in &self.0 {
            let written = match piece {
                Piece::Text(part) => text.write_str(part),
                Piece::Counter => write!(text, "{}", values.counter),
                // The range may be all numbers there are.
                Piece::Random { from, to } => {
                    let span = u128::from(to - from) + 1;
                    let drawn = u128::from((values.random)()) % span;
                    write!(text, "{}", u128::from(*from) + drawn)
                }
                Piece::Uuid => {
                    let [high, low] = [(values.random)(), (values.random)()];
                    // Version 4 and the variant of RFC 9562 section 4.
                    let high = high & !0xf000 | 0x4000;
                    let low = low & !(3 << 62) | 2 << 62;
                    let (first, second, third) = (high >> 32, high >> 16 & 0xffff, high & 0xffff);
                    write!(
                        text,
                        "{first:08x}-{second:04x}-{third:04x}-{:04x}-{:012x}",
                        low >> 48,
                        low & 0xffff_ffff_ffff
                    )
                }
            };
            written.expect("a string takes everything");
        }
        text
    }
}

impl Piece {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "counter" => Some(Self::Counter),
            "random" => Some(Self::Random { from: 0, to: u64::MAX }),
            "uuid" => Some(Self::Uuid),
            _ => {
                let (from, to) = name.strip_prefix("random:")?.split_once("..")?;
                let (from, to) = (from.parse().ok()?, to.parse().ok()?);
                (from <= to).then_some(Self::Random { from, to })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str, random: u64) -> String {
        Template::parse(text).expect("a template").fill(&Values { counter: 7, random: || random })
    }

    #[test]
    fn placeholders_are_filled_and_the_rest_stays() {
        assert_eq!(filled(r#"{"a":{"b":"c"}}"#, 0), r#"{"a":{"b":"c"}}"#);
        assert_eq!(filled("/items/{{counter}}?x={{ counter }}", 0), "/items/7?x=7");
        assert_eq!(filled("{{random}}", u64::MAX), u64::MAX.to_string());
        for (random, expected) in [(0, "3"), (2, "5"), (3, "3"), (u64::MAX, "3")] {
            assert_eq!(filled("{{random:3..5}}", random), expected, "{random}");
        }
        assert_eq!(filled("{{uuid}}", u64::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(filled("{{uuid}}", 0), "00000000-0000-4000-8000-000000000000");
    }

    #[test]
    fn what_is_no_placeholder_is_named() {
        assert!(matches!(Template::parse("a{{b"), Err(Error::Open(_))));
        for text in ["{{}}", "{{count}}", "{{random:5..3}}", "{{random:a..b}}", "{{random:1}}"] {
            assert!(matches!(Template::parse(text), Err(Error::Unknown(_))), "{text}");
        }
        assert!(Template::parse("{{x}}").expect_err("none").to_string().starts_with("`{{x}}` is no placeholder"));
        assert!(Template::parse("/a{b}").expect("a template").is_plain());
    }
}
