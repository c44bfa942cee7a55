//! A value at its place.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::rc::Rc;

use toml::Spanned;
use toml::de::{DeArray, DeValue};

use super::{FromField, Keys, Section, Source};
use crate::error::{Cause, Located, Place, Problem};

/// Which object something belongs to.
#[derive(Clone)]
pub(super) struct Subject {
    /// `service "payments"`.
    pub(super) name: Rc<str>,
    /// `service[2]`.
    pub(super) path: Rc<str>,
}

/// A value at its place.
#[derive(Clone)]
pub(crate) struct Field<'a> {
    pub(super) source: &'a Source<'a>,
    pub(super) subject: Subject,
    /// The key within the subject.
    pub(super) path: String,
    pub(super) value: &'a Spanned<DeValue<'a>>,
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

    /// Whether it is `false`.
    pub(crate) fn is_false(&self) -> bool {
        matches!(self.value.get_ref(), DeValue::Boolean(false))
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
        // As long as the list: most have one item, and there may be ten thousand lists.
        let mut distinct = Vec::with_capacity(items.len());
        for item in &items {
            let Some(value) = Located::<T>::from_field(item) else { continue };
            if seen.insert(value.value.clone()) {
                distinct.push(value);
            } else {
                item.refuse(Cause::Twice(value.to_string()));
            }
        }
        Some(distinct)
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

pub(super) fn problem(source: &Source<'_>, subject: &Subject, field: &str, place: Place, cause: Cause) -> Problem {
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

pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// What is there, as type and value.
pub(super) fn describe(value: &DeValue<'_>) -> String {
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
