//! What the request path changes in a head before it is written.

use std::ops::Range;

use crate::name::{Name, is_token};

/// Changes to one head: fields set, appended or removed, another target, and what this hop says about its connection.
/// Meant to be kept and used again.
#[derive(Clone, Debug, Default)]
pub struct Edits {
    /// Lines as they will be written, and the names of removed fields.
    text: Vec<u8>,
    list: Vec<Edit>,
    target: Vec<u8>,
    connection: Connection,
    upgrade: Upgrade,
    chunked: Chunked,
    framing: Framing,
    client_fields: ClientFields,
}

/// What our Connection field says to the next hop, or back to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Connection {
    /// Nothing: persistent in HTTP/1.1.
    #[default]
    Unsaid,
    /// `close`.
    Close,
    /// `keep-alive`: for an HTTP/1.0 client that asked for it.
    KeepAlive,
}

/// Whether the Upgrade field goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Upgrade {
    /// Left out, like the other fields of this connection.
    #[default]
    Drop,
    /// Kept, with `Connection: upgrade`.
    Keep,
}

/// Whether a chunked body goes on in its chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Chunked {
    /// Transfer-Encoding is kept: the body is forwarded as it came.
    #[default]
    Keep,
    /// Transfer-Encoding is left out: only the content is sent, ended by closing (to an HTTP/1.0 client).
    Remove,
}

/// Whether a response says how long its body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Framing {
    /// As it came.
    #[default]
    Keep,
    /// Content-Length and Transfer-Encoding are left out: a tunnel begins (RFC 9110 section 9.3.6).
    Drop,
}

/// Whether fields that [tell of the client](crate::name::tells_of_client) go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ClientFields {
    /// As they came.
    #[default]
    Keep,
    /// Left out, all but those that are set or appended. However many came, this takes no storage.
    Drop,
}

/// Why an edit cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The name is no token. Fault: ours, or the config's.
    #[error("field name is not a token")]
    BadName,
    /// The value has control characters. Fault: ours, or the config's.
    #[error("field value has control characters")]
    BadValue,
    /// The target is empty or has spaces, control characters, a fragment or bytes above ASCII. Fault: the config's.
    #[error("target has characters that a request target must not have")]
    BadTarget,
    /// Content-Length, Transfer-Encoding and Connection follow from the message, and Host can only be set.
    #[error("field cannot be edited")]
    Protected,
}

#[derive(Clone, Debug)]
struct Edit {
    name: Range<usize>,
    /// Empty for a removal, or once a later edit of the same name has replaced it.
    line: Range<usize>,
    known: Name,
    /// Whether fields of that name that came in are left out.
    replaces: bool,
}

impl Edits {
    /// Forgets all changes and keeps the storage.
    pub fn clear(&mut self) {
        self.text.clear();
        self.list.clear();
        self.target.clear();
        self.connection = Connection::default();
        self.upgrade = Upgrade::default();
        self.chunked = Chunked::default();
        self.framing = Framing::default();
        self.client_fields = ClientFields::default();
    }

    /// Whether there is nothing to change.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
            && self.target.is_empty()
            && self.connection == Connection::Unsaid
            && self.upgrade == Upgrade::Drop
            && self.chunked == Chunked::Keep
            && self.framing == Framing::Keep
            && self.client_fields == ClientFields::Keep
    }

    /// Puts one field in place of all of that name.
    ///
    /// # Errors
    /// See [`EditError`]; nothing is changed then.
    pub fn set(&mut self, name: &str, value: &[u8]) -> Result<(), EditError> {
        let known = check(name, value)?;
        self.void(name);
        self.push(name, known, true, Some(value));
        Ok(())
    }

    /// Adds a field after those that came in.
    ///
    /// # Errors
    /// See [`EditError`]; nothing is changed then.
    pub fn append(&mut self, name: &str, value: &[u8]) -> Result<(), EditError> {
        let known = check(name, value)?;
        if known == Name::Host {
            return Err(EditError::Protected);
        }
        self.push(name, known, false, Some(value));
        Ok(())
    }

    /// Leaves out all fields of that name.
    ///
    /// # Errors
    /// See [`EditError`]; nothing is changed then.
    pub fn remove(&mut self, name: &str) -> Result<(), EditError> {
        let known = check(name, b"")?;
        if known == Name::Host {
            return Err(EditError::Protected);
        }
        self.void(name);
        self.push(name, known, true, None);
        Ok(())
    }

    /// Puts another target (path and query) in place of the client's.
    ///
    /// # Errors
    /// [`EditError::BadTarget`].
    pub fn set_target(&mut self, target: &[u8]) -> Result<(), EditError> {
        if target.is_empty() || !target.iter().all(|&byte| byte.is_ascii_graphic() && byte != b'#') {
            return Err(EditError::BadTarget);
        }
        self.target.clear();
        self.target.extend_from_slice(target);
        Ok(())
    }

    /// Says something about this connection.
    pub fn set_connection(&mut self, connection: Connection) {
        self.connection = connection;
    }

    /// Keeps or leaves out the Upgrade field.
    pub fn set_upgrade(&mut self, upgrade: Upgrade) {
        self.upgrade = upgrade;
    }

    /// Keeps or leaves out Transfer-Encoding.
    pub fn set_chunked(&mut self, chunked: Chunked) {
        self.chunked = chunked;
    }

    /// Keeps or leaves out what says how long a response's body is.
    pub fn set_framing(&mut self, framing: Framing) {
        self.framing = framing;
    }

    /// Keeps or leaves out what tells of the client.
    pub fn set_client_fields(&mut self, client_fields: ClientFields) {
        self.client_fields = client_fields;
    }

    pub(super) fn client_fields(&self) -> ClientFields {
        self.client_fields
    }

    pub(super) fn target(&self) -> Option<&[u8]> {
        (!self.target.is_empty()).then_some(&self.target)
    }

    pub(super) fn connection(&self) -> Connection {
        self.connection
    }

    pub(super) fn upgrade(&self) -> Upgrade {
        self.upgrade
    }

    pub(super) fn chunked(&self) -> Chunked {
        self.chunked
    }

    pub(super) fn framing(&self) -> Framing {
        self.framing
    }

    pub(super) fn sets_host(&self) -> bool {
        self.list.iter().any(|edit| edit.known == Name::Host)
    }

    /// Whether fields of that name that came in are left out.
    pub(super) fn replaces(&self, name: &[u8]) -> bool {
        self.list.iter().any(|edit| edit.replaces && self.text[edit.name.clone()].eq_ignore_ascii_case(name))
    }

    /// The lines to write, each with its CRLF.
    pub(super) fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.list.iter().filter(|edit| !edit.line.is_empty()).map(|edit| &self.text[edit.line.clone()])
    }

    fn void(&mut self, name: &str) {
        for edit in &mut self.list {
            if self.text[edit.name.clone()].eq_ignore_ascii_case(name.as_bytes()) {
                edit.line = 0..0;
            }
        }
    }

    fn push(&mut self, name: &str, known: Name, replaces: bool, value: Option<&[u8]>) {
        let start = self.text.len();
        self.text.extend_from_slice(name.as_bytes());
        let name = start..self.text.len();
        let line = match value {
            None => 0..0,
            Some(value) => {
                self.text.extend_from_slice(b": ");
                self.text.extend_from_slice(value);
                self.text.extend_from_slice(b"\r\n");
                start..self.text.len()
            }
        };
        self.list.push(Edit { name, line, known, replaces });
    }
}

fn check(name: &str, value: &[u8]) -> Result<Name, EditError> {
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(EditError::BadName);
    }
    if value.iter().any(|&byte| byte != b'\t' && byte.is_ascii_control()) {
        return Err(EditError::BadValue);
    }
    match Name::from_bytes(name.as_bytes()) {
        Name::ContentLength | Name::TransferEncoding => Err(EditError::Protected),
        known if known.is_hop_by_hop() => Err(EditError::Protected),
        known => Ok(known),
    }
}
