//! Reads TOML with an eye on the person who wrote it: every problem is noted with its line and key, and reading goes on, so
//! that one look shows them all.
//!
//! A [`Section`] is a table with the [`Keys`] it may have. Keys that are not in that list are refused when the section is
//! opened; asking for a key that is not in it is a bug. So the lists are what the parser knows, and the test of
//! `configs/reference.toml` reads the same lists.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use crate::error::{Cause, Hint, Located, Place, Problem, Problems};
use crate::nearest;
use crate::snapshot::Address;
use crate::spiffe::SpiffeId;
use crate::unit::{self, ByteSize};

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

/// Which object something belongs to.
#[derive(Clone)]
struct Subject {
    /// `service "payments"`.
    name: Rc<str>,
    /// `service[2]`.
    path: Rc<str>,
}

/// A value at its place.
#[derive(Clone)]
pub(crate) struct Field<'a> {
    source: &'a Source<'a>,
    subject: Subject,
    /// The key within the subject.
    path: String,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Field<'a> {
    /// Where it stands.
    pub(crate) fn place(&self) -> Place {
        self.source.place(self.value.span().start)
    }

    /// Notes that it is wrong.
    pub(crate) fn refuse(&self, cause: Cause) {
        self.source.push(problem(self.source, &self.subject, &self.path, self.place(), cause));
    }

    /// Notes that its type is wrong.
    pub(crate) fn refuse_type(&self, expected: &'static str) {
        self.refuse(Cause::WrongType { expected, found: describe(self.value.get_ref()) });
    }

    /// Its text, or nothing without a word.
    pub(crate) fn text(&self) -> Option<&'a str> {
        match self.value.get_ref() {
            DeValue::String(text) => Some(text),
            _ => None,
        }
    }

    /// Its text, or a problem.
    pub(crate) fn expect_text(&self, expected: &'static str) -> Option<&'a str> {
        let text = self.text();
        if text.is_none() {
            self.refuse_type(expected);
        }
        text
    }

    /// Whether it is a whole number.
    pub(crate) fn is_number(&self) -> bool {
        matches!(self.value.get_ref(), DeValue::Integer(_))
    }

    /// Whether it is a table.
    pub(crate) fn is_table(&self) -> bool {
        matches!(self.value.get_ref(), DeValue::Table(_))
    }

    /// Its items, or nothing without a word.
    pub(crate) fn items(&self) -> Option<Vec<Field<'a>>> {
        match self.value.get_ref() {
            DeValue::Array(array) => Some(items(self, array)),
            _ => None,
        }
    }

    /// Its items, at least one, or a problem.
    pub(crate) fn expect_items(&self, expected: &'static str, if_empty: &'static str) -> Option<Vec<Field<'a>>> {
        let Some(items) = self.items() else {
            self.refuse_type(expected);
            return None;
        };
        if items.is_empty() {
            self.refuse(Cause::EmptyList(if_empty));
            return None;
        }
        Some(items)
    }

    /// Its items read as `T`, at least one and none twice, or problems.
    pub(crate) fn expect_set<T>(&self, expected: &'static str, if_empty: &'static str) -> Option<Vec<Located<T>>>
    where
        T: FromField + Clone + Eq + Hash + fmt::Display,
    {
        let items = self.expect_items(expected, if_empty)?;
        let mut seen = HashSet::with_capacity(items.len());
        let mut distinct = |item: &Field<'a>| {
            let value = Located::<T>::from_field(item)?;
            if seen.insert(value.value.clone()) {
                return Some(value);
            }
            item.refuse(Cause::Twice(value.to_string()));
            None
        };
        Some(items.iter().filter_map(&mut distinct).collect())
    }

    /// The table in it, or a problem.
    pub(crate) fn section(&self, keys: &'static Keys, expected: &'static str) -> Option<Section<'a>> {
        match self.value.get_ref() {
            DeValue::Table(table) => {
                Some(Section::open(self.source, self.subject.clone(), self.path.clone(), self.place(), table, keys))
            }
            _ => {
                self.refuse_type(expected);
                None
            }
        }
    }

    /// The keys and values of a table whose keys are free, or a problem.
    pub(crate) fn entries(&self, expected: &'static str) -> Option<Vec<(&'a str, Field<'a>)>> {
        let DeValue::Table(table) = self.value.get_ref() else {
            self.refuse_type(expected);
            return None;
        };
        let entry = |(key, value): (&'a Spanned<_>, &'a Spanned<DeValue<'a>>)| {
            let key: &'a std::borrow::Cow<'a, str> = key.get_ref();
            let path = format!("{}.{key}", self.path);
            (key.as_ref(), Field { source: self.source, subject: self.subject.clone(), path, value })
        };
        Some(table.iter().map(entry).collect())
    }
}

fn items<'a>(field: &Field<'a>, array: &'a DeArray<'a>) -> Vec<Field<'a>> {
    let item = |(index, value): (usize, &'a Spanned<DeValue<'a>>)| {
        let path = format!("{}[{index}]", field.path);
        Field { source: field.source, subject: field.subject.clone(), path, value }
    };
    array.iter().enumerate().map(item).collect()
}

fn problem(source: &Source<'_>, subject: &Subject, field: &str, place: Place, cause: Cause) -> Problem {
    let dot = if subject.path.is_empty() || field.is_empty() { "" } else { "." };
    let key = format!("{}{dot}{field}", subject.path);
    // These name the key themselves, or speak of the object as a whole.
    let (field, key) = match &cause {
        Cause::UnknownKey { key: name, .. } | Cause::UnknownSection { key: name, .. } => {
            (container(field), replace_last(&key, name))
        }
        Cause::Missing { key: name, .. } => (field.to_owned(), join(&key, name)),
        _ => (field.to_owned(), key),
    };
    let subject = subject.name.to_string();
    Problem { file: source.file.to_owned(), place: Some(place), key, subject, field, cause }
}

/// The path of what holds the last part of `path`.
fn container(path: &str) -> String {
    path.rsplit_once('.').map_or("", |(container, _)| container).to_owned()
}

fn replace_last(path: &str, name: &str) -> String {
    join(&container(path), name)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// What is there, as type and value.
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("string \"{text}\""),
        DeValue::Integer(number) => format!("integer {number}"),
        DeValue::Float(number) => format!("float {number}"),
        DeValue::Boolean(value) => format!("boolean {value}"),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
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
        field.refuse(Cause::UnknownWord { found: text.to_owned(), hint: nearest::or_all(text, words) });
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
        address.map(Self::Ip)
    }
}

/// Longest path of a Unix socket, in bytes: `sun_path` has 108 with the closing NUL (unix(7)).
const MAX_UNIX_PATH_BYTES: usize = 107;

/// Reads the path of a Unix socket.
pub(crate) fn unix(field: &Field<'_>, path: &str) -> Option<PathBuf> {
    if !path.starts_with('/') {
        field.refuse(Cause::RelativePath(path.to_owned()));
        return None;
    }
    if path.len() > MAX_UNIX_PATH_BYTES {
        let expected = "a path of a Unix socket with at most 107 bytes";
        field.refuse(Cause::WrongText { expected, found: path.to_owned() });
        return None;
    }
    Some(path.into())
}
