//! An entry with placeholders: made anew for each request.

use bytes::Bytes;

use super::entry::Entry;
use super::template::{Error, Template, Values};

/// An entry whose path, fields or body hold placeholders.
pub(super) struct Draft {
    entry: Entry,
    path: Template,
    fields: Vec<Template>,
    body: Option<Template>,
}

impl Draft {
    /// None: there is nothing to fill, so the entry is always the same.
    ///
    /// # Errors
    /// If a placeholder is none.
    pub(super) fn new(entry: &Entry) -> Result<Option<Self>, Error> {
        let draft = Self {
            path: Template::parse(&entry.path)?,
            fields: entry.fields.iter().map(|(_, value)| Template::parse(value)).collect::<Result<_, _>>()?,
            // A body that is no text has no placeholders.
            body: match entry.body.as_deref().map(std::str::from_utf8) {
                Some(Ok(text)) => Some(Template::parse(text)?),
                Some(Err(_)) | None => None,
            },
            entry: entry.clone(),
        };
        let is_plain = draft.fields.iter().chain(&draft.body).chain([&draft.path]).all(Template::is_plain);
        Ok((!is_plain).then_some(draft))
    }

    /// The same for an entry that was checked before the load started.
    pub(super) fn checked(entry: &Entry) -> Option<Self> {
        Self::new(entry).expect("checked before the load started")
    }

    /// The entry of one request.
    pub(super) fn fill(&self, values: &Values<impl Fn() -> u64>) -> Entry {
        let mut entry = self.entry.clone();
        entry.path = self.path.fill(values);
        for ((_, value), template) in entry.fields.iter_mut().zip(&self.fields) {
            *value = template.fill(values);
        }
        if let Some(body) = &self.body {
            entry.body = Some(Bytes::from(body.fill(values)));
        }
        entry
    }

    /// The entry as it might be, to be checked before anything is sent.
    pub(super) fn example(&self) -> Entry {
        self.fill(&Values { counter: 0, random: || 0 })
    }
}
