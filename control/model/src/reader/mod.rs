//! Reads TOML with an eye on the person who wrote it: every problem is noted with its line and key, and reading goes on, so
//! that one look shows them all.
//!
//! A `Section` is a table with the [`Keys`] it may have. Keys that are not in that list are refused when the section is
//! opened; asking for a key that is not in it is a bug. So the lists are what the parser knows, and the test of
//! `configs/reference.toml` reads the same lists.

mod field;
mod value;

use std::cell::RefCell;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub(crate) use self::field::Field;
use self::field::{Subject, join, problem};
pub(crate) use self::value::{FromField, Number, Quantity, UNIX, Word, unix, within, word};
use crate::error::{Cause, Hint, Place, Problem, Problems};
use crate::nearest;

/// The keys of one kind of table.
#[derive(Debug)]
pub struct Keys {
    /// The path from the top without positions, such as `route.rule`; empty for the top.
    pub path: &'static str,
    /// How the file writes it, such as `[[route.rule]]`.
    pub header: &'static str,
    /// The keys.
    pub names: &'static [&'static str],
}

/// The text being read, and what was wrong with it so far.
pub(crate) struct Source<'a> {
    file: &'a str,
    text: &'a str,
    /// Offset of each line's first byte.
    lines: Vec<usize>,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(file: &'a str, text: &'a str) -> Self {
        let starts = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(starts).collect();
        Self { file, text, lines, problems: RefCell::default() }
    }

    /// Where the byte at `offset` stands.
    pub(crate) fn place(&self, offset: usize) -> Place {
        let line = self.lines.partition_point(|start| *start <= offset);
        let before = self.text.get(self.lines[line - 1]..offset).unwrap_or_default();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Place { line: count(line), column: count(before.chars().count() + 1) }
    }

    /// Notes a problem of the file as a whole.
    pub(crate) fn note(&self, place: Option<Place>, cause: Cause) {
        self.push(Problem {
            file: self.file.to_owned(),
            place,
            key: String::new(),
            subject: String::new(),
            field: String::new(),
            cause,
        });
    }

    /// The problems, if there are any.
    pub(crate) fn finish(self) -> Result<(), Problems> {
        match self.problems.into_inner() {
            none if none.is_empty() => Ok(()),
            some => Err(Problems::new(some)),
        }
    }

    fn push(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }
}

/// A table that is being read.
pub(crate) struct Section<'a> {
    source: &'a Source<'a>,
    subject: Subject,
    /// The table's key within the subject; empty if it is the subject.
    path: String,
    place: Place,
    table: &'a DeTable<'a>,
    keys: &'static Keys,
    /// Keys that unknown ones were taken for.
    suggested: Vec<String>,
}

impl<'a> Section<'a> {
    /// The whole file.
    pub(crate) fn root(source: &'a Source<'a>, table: &'a DeTable<'a>, keys: &'static Keys) -> Self {
        let subject = Subject { name: "".into(), path: "".into() };
        Self::open(source, subject, String::new(), Place { line: 1, column: 1 }, table, keys)
    }

    fn open(
        source: &'a Source<'a>,
        subject: Subject,
        path: String,
        place: Place,
        table: &'a DeTable<'a>,
        keys: &'static Keys,
    ) -> Self {
        let mut suggested = Vec::new();
        for (key, value) in table {
            let name: &str = key.get_ref();
            if !keys.names.contains(&name) {
                let hint = nearest::key(name, keys);
                if let Hint::Nearest(word) = &hint {
                    suggested.push(word.clone());
                }
                let container =
                    keys.path.is_empty() && matches!(value.get_ref(), DeValue::Table(_) | DeValue::Array(_));
                let key_name = name.to_owned();
                let cause = match container {
                    true => Cause::UnknownSection { key: key_name, hint },
                    false => Cause::UnknownKey { key: key_name, hint },
                };
                let place = source.place(key.span().start);
                source.push(problem(source, &subject, &join(&path, name), place, cause));
            }
        }
        Self { source, subject, path, place, table, keys, suggested }
    }

    /// A table that is there once, such as `[admin]`. None if it is not there, or is something else (noted).
    pub(crate) fn table(&self, keys: &'static Keys) -> Option<Section<'a>> {
        let value = self.get(keys.path)?;
        let DeValue::Table(table) = value.get_ref() else {
            self.field(keys.path)?.refuse(Cause::Brackets(keys.header));
            return None;
        };
        let subject = Subject { name: keys.header.into(), path: keys.path.into() };
        let place = self.source.place(value.span().start);
        Some(Section::open(self.source, subject, String::new(), place, table, keys))
    }

    /// Tables that may be there many times, such as `[[service]]`. Each is called by its `name`, or by the first entry of
    /// `or_first_of`.
    pub(crate) fn tables(&self, keys: &'static Keys, or_first_of: &str) -> Vec<Section<'a>> {
        let Some(value) = self.get(keys.path) else { return Vec::new() };
        let DeValue::Array(array) = value.get_ref() else {
            if let Some(field) = self.field(keys.path) {
                field.refuse(Cause::Brackets(keys.header));
            }
            return Vec::new();
        };
        let open = |(index, value): (usize, &'a Spanned<DeValue<'a>>)| {
            let path = format!("{}[{index}]", keys.path);
            let DeValue::Table(table) = value.get_ref() else {
                let subject = Subject { name: "".into(), path: "".into() };
                Field { source: self.source, subject, path, value }.refuse_type("a table");
                return None;
            };
            let name = match name_of(table, or_first_of) {
                Some(name) => format!("{} \"{name}\"", keys.path).into(),
                None => keys.header.into(),
            };
            let place = self.source.place(value.span().start);
            Some(Section::open(self.source, Subject { name, path: path.into() }, String::new(), place, table, keys))
        };
        array.iter().enumerate().filter_map(open).collect()
    }

    /// Where it begins.
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// Notes that it is wrong as a whole.
    pub(crate) fn refuse(&self, cause: Cause) {
        self.source.push(problem(self.source, &self.subject, &self.path, self.place, cause));
    }

    /// The value of a key, whatever it is.
    pub(crate) fn field(&self, key: &'static str) -> Option<Field<'a>> {
        let value = self.get(key)?;
        Some(Field { source: self.source, subject: self.subject.clone(), path: join(&self.path, key), value })
    }

    /// The value of a key that must be there; `example` says how it is written.
    pub(crate) fn required<T: FromField>(&self, key: &'static str, example: &'static str) -> Option<T> {
        let field = self.field(key);
        if field.is_none() {
            self.miss(key, example);
        }
        T::from_field(&field?)
    }

    /// Notes that a key is missing, unless a key was refused that was meant to be this one.
    pub(crate) fn miss(&self, key: &'static str, example: &'static str) {
        if !self.suggested.iter().any(|suggested| suggested == key) {
            self.refuse(Cause::Missing { key, example });
        }
    }

    /// The value of a key that may be absent. None too if it is wrong (noted).
    pub(crate) fn optional<T: FromField>(&self, key: &'static str) -> Option<T> {
        T::from_field(&self.field(key)?)
    }

    /// The value of a key, or its default.
    pub(crate) fn or<T: FromField>(&self, key: &'static str, default: T) -> T {
        self.optional(key).unwrap_or(default)
    }

    /// A quantity within `min` and `max`, or its default.
    pub(crate) fn ranged<T: Quantity>(&self, key: &'static str, default: T, min: T, max: T) -> T {
        self.field(key).and_then(|field| within(&field, T::from_field(&field)?, min, max)).unwrap_or(default)
    }

    /// A quantity within `min` and `max`, or nothing where the file says `"off"`.
    pub(crate) fn ranged_or_off<T: Quantity>(
        &self,
        key: &'static str,
        default: Option<T>,
        min: T,
        max: T,
    ) -> Option<T> {
        let Some(field) = self.field(key) else { return default };
        match field.text() {
            Some(OFF) => None,
            Some(text) if !text.starts_with(|first: char| first.is_ascii_digit()) => {
                field.refuse(Cause::WrongText { expected: T::EXAMPLE_OR_OFF, found: text.to_owned() });
                None
            }
            _ => T::from_field(&field).and_then(|value| within(&field, value, min, max)),
        }
    }

    /// A number within `min` and `max`, or its default.
    pub(crate) fn number(&self, key: &'static str, default: u32, min: u32, max: u32) -> u32 {
        self.ranged(key, Number::from(default), min.into(), max.into()).into()
    }

    /// A number within `min` and `max`, or nothing where the file says `"off"`.
    pub(crate) fn number_or_off(&self, key: &'static str, default: Option<u32>, min: u32, max: u32) -> Option<u32> {
        self.ranged_or_off(key, default.map(Number::from), min.into(), max.into()).map(Number::into)
    }

    /// A quantity within `min` and `max`, if the key is there.
    pub(crate) fn ranged_or_none<T: Quantity>(&self, key: &'static str, min: T, max: T) -> Option<T> {
        self.field(key).and_then(|field| within(&field, T::from_field(&field)?, min, max))
    }

    /// One word out of a list, or its default.
    pub(crate) fn word<T: Word>(&self, key: &'static str, default: T) -> T {
        self.field(key).and_then(|field| word(&field)).unwrap_or(default)
    }

    fn get(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        debug_assert!(self.keys.names.contains(&key), "`{key}` stands in the list of {}", self.keys.header);
        self.table.get(key)
    }
}

/// What turns something off.
pub(crate) const OFF: &str = "off";

fn name_of<'a>(table: &'a DeTable<'a>, or_first_of: &str) -> Option<&'a str> {
    let text = |value: &'a Spanned<DeValue<'a>>| match value.get_ref() {
        DeValue::String(text) => Some(&**text),
        _ => None,
    };
    if let Some(name) = table.get("name").and_then(text) {
        return Some(name);
    }
    match table.get(or_first_of)?.get_ref() {
        DeValue::Array(array) => array.first().and_then(text),
        _ => None,
    }
}
