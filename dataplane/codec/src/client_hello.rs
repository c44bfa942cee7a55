//! What a TLS client asks for, read from its first message without ending its TLS: the server's name (RFC 6066 section 3)
//! and the protocols of ALPN (RFC 7301). Nothing is decrypted and nothing is answered, but for an alert that refuses.
//!
//! A ClientHello may span records (RFC 8446 section 5.1), and its bytes may come one by one. [`Scanner`] finds its end,
//! looking at each byte once; then the message is read, once. With Encrypted Client Hello the outer name is the one that
//! is seen, as it is meant to be (RFC 9849 section 1); reserved values (GREASE, RFC 8701) are skipped like all that is
//! unknown.

use std::borrow::Cow;

/// Longest ClientHello, as a message. The peer chooses the size, so we choose the bound. Ordinary ones have 300 to 2,000
/// bytes; with key shares of every post-quantum group, long tickets and padding it may be some 20,000.
pub const MAX_HELLO_BYTES: usize = 32 * 1024;

/// Most bytes that a ClientHello may take on the wire, headers of its records included: a client may cut it into records
/// of a byte each, and all of it is kept, because an endpoint gets it as it came. One large pool buffer.
pub const MAX_WIRE_BYTES: usize = 64 * 1024;
const _: () = assert!(MAX_HELLO_BYTES < MAX_WIRE_BYTES);

/// Longest host name, in bytes (RFC 1035 section 2.3.4, without the root's empty label).
pub const MAX_NAME_BYTES: usize = 253;

/// Longest label of a host name (RFC 1035 section 2.3.4).
const MAX_LABEL_BYTES: usize = 63;

/// Content types (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;

/// Largest fragment of a plaintext record (RFC 8446 section 5.1).
const MAX_FRAGMENT_BYTES: usize = 1 << 14;

/// Content type, version, length.
const RECORD_HEADER_BYTES: usize = 5;

/// Type and length of a handshake message (RFC 8446 section 4).
const MESSAGE_HEADER_BYTES: usize = 4;

/// The handshake message type of a ClientHello.
const CLIENT_HELLO: u8 = 1;

/// Extension types.
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;

/// Why a ClientHello is refused. Side: client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The first bytes begin no handshake record.
    #[error("not TLS")]
    NotTls,
    /// Another message, or another kind of record before the message was whole.
    #[error("the first message is no ClientHello")]
    NotHello,
    /// Larger than [`MAX_HELLO_BYTES`], or than [`MAX_WIRE_BYTES`] with the headers of its records.
    #[error("ClientHello of more than {MAX_HELLO_BYTES} bytes, or in too many records")]
    TooLarge,
    /// Its parts do not fill it exactly, or one that we read is there twice (RFC 8446 section 4.2).
    #[error("malformed ClientHello")]
    Malformed,
    /// The name is none that DNS could have: not ASCII, an address, an empty label (RFC 6066 section 3).
    #[error("illegal server name in the ClientHello")]
    BadName,
}

impl Refusal {
    /// The alert that tells the client. None where it would not know what an alert is.
    pub const fn alert(self) -> Option<Alert> {
        match self {
            Self::NotTls => None,
            Self::NotHello => Some(Alert::UnexpectedMessage),
            Self::TooLarge | Self::Malformed => Some(Alert::DecodeError),
            Self::BadName => Some(Alert::IllegalParameter),
        }
    }
}

/// Alerts that refuse a ClientHello (RFC 8446 section 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Alert {
    /// Another message was due.
    UnexpectedMessage = 10,
    /// A part has no sense.
    IllegalParameter = 47,
    /// It cannot be read.
    DecodeError = 50,
    /// Nobody here has this name.
    UnrecognizedName = 112,
}

impl Alert {
    /// The record that ends the connection with it.
    pub const fn record(self) -> [u8; 7] {
        const FATAL: u8 = 2;
        [ALERT, 3, 3, 0, 2, FATAL, self as u8]
    }
}

/// What a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    name: Option<Box<str>>,
    /// The list as it came, checked: a length and so many bytes, again and again.
    protocols: Box<[u8]>,
}

impl ClientHello {
    /// The server's name: in lower case, without a dot at its end. None: the client names none.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The protocols that it offers, the preferred one first.
    pub fn protocols(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.protocols[..];
        std::iter::from_fn(move || {
            let (length, after) = rest.split_first()?;
            let (protocol, after) = after.split_at_checked(usize::from(*length))?;
            rest = after;
            Some(protocol)
        })
    }

    /// Whether it offers a protocol.
    pub fn offers(&self, protocol: &[u8]) -> bool {
        self.protocols().any(|offered| offered == protocol)
    }
}

/// Finds the end of a ClientHello in bytes that grow.
#[derive(Clone, Debug, Default)]
pub struct Scanner {
    /// Where the header of the next record begins.
    record: usize,
    /// What of the message lies in the records before.
    found: usize,
    /// The first bytes of the message.
    header: [u8; MESSAGE_HEADER_BYTES],
}

impl Scanner {
    /// Looks at all bytes that have come so far, those of earlier calls included. None: more are needed.
    ///
    /// # Errors
    /// If it is no ClientHello that we take, see [`Refusal`]. More bytes change nothing then.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Option<ClientHello>, Refusal> {
        loop {
            let Some(fragment) = next_fragment(bytes, self.record)? else {
                return self.wait(bytes);
            };
            let first = &bytes[fragment.clone()];
            for (place, byte) in (self.found..MESSAGE_HEADER_BYTES).zip(first) {
                self.header[place] = *byte;
            }
            // A whole fragment is needed to go on to the next, but not to see that the message is none of ours.
            let found = self.found + first.len();
            let length = message_length(&self.header, found)?;
            let is_whole_record = bytes.len() >= fragment.start + fragment_length(bytes, self.record);
            if length.is_some_and(|length| found >= length) {
                let records = &bytes[..fragment.end];
                return parse(&message(records, length.unwrap_or_default())).map(Some);
            }
            if !is_whole_record {
                return self.wait(bytes);
            }
            (self.record, self.found) = (fragment.end, found);
        }
    }

    fn wait(&self, bytes: &[u8]) -> Result<Option<ClientHello>, Refusal> {
        if bytes.len() >= MAX_WIRE_BYTES { Err(Refusal::TooLarge) } else { Ok(None) }
    }
}

/// What the header at `at` says of its fragment's length.
fn fragment_length(bytes: &[u8], at: usize) -> usize {
    match bytes.get(at + 3..at + RECORD_HEADER_BYTES) {
        Some([high, low]) => usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    }
}

/// Where the fragment of the record at `at` lies, as far as it has come. None: its header has not.
fn next_fragment(bytes: &[u8], at: usize) -> Result<Option<std::ops::Range<usize>>, Refusal> {
    let header = &bytes[at.min(bytes.len())..];
    let wrong = if at == 0 { Refusal::NotTls } else { Refusal::NotHello };
    // Byte by byte: who speaks something else may wait for an answer after its second.
    match header {
        [kind, ..] if *kind != HANDSHAKE => return Err(wrong),
        [_, major, ..] if *major != 3 => return Err(wrong),
        [_, _, minor, ..] if *minor > 4 => return Err(wrong),
        _ if header.len() < RECORD_HEADER_BYTES => return Ok(None),
        _ => {}
    }
    let length = fragment_length(bytes, at);
    if length == 0 || length > MAX_FRAGMENT_BYTES {
        return Err(Refusal::Malformed);
    }
    let begin = at + RECORD_HEADER_BYTES;
    Ok(Some(begin..bytes.len().min(begin + length)))
}

/// The length of the message whose first bytes these are, of which `found` have come: its header included. None: not known
/// yet.
fn message_length(header: &[u8; MESSAGE_HEADER_BYTES], found: usize) -> Result<Option<usize>, Refusal> {
    let [kind, high, middle, low] = *header;
    if found > 0 && kind != CLIENT_HELLO {
        return Err(Refusal::NotHello);
    }
    if found < MESSAGE_HEADER_BYTES {
        return Ok(None);
    }
    match u32::from_be_bytes([0, high, middle, low]) as usize + MESSAGE_HEADER_BYTES {
        length if length > MAX_HELLO_BYTES => Err(Refusal::TooLarge),
        length => Ok(Some(length)),
    }
}

/// The first `length` bytes that the records hold: where they lie if that is one record, else a copy.
fn message(records: &[u8], length: usize) -> Cow<'_, [u8]> {
    let begin = RECORD_HEADER_BYTES;
    if fragment_length(records, 0) >= length
        && let Some(whole) = records.get(begin..begin + length)
    {
        return Cow::Borrowed(whole);
    }
    let mut copy = Vec::with_capacity(length);
    let mut at = 0;
    while copy.len() < length && at < records.len() {
        let end = records.len().min(at + RECORD_HEADER_BYTES + fragment_length(records, at));
        let fragment = records.get(at + RECORD_HEADER_BYTES..end).unwrap_or_default();
        copy.extend_from_slice(&fragment[..fragment.len().min(length - copy.len())]);
        at = end;
    }
    Cow::Owned(copy)
}

/// Reads a whole message (RFC 8446 section 4.1.2, RFC 5246 section 7.4.1.2).
fn parse(message: &[u8]) -> Result<ClientHello, Refusal> {
    let mut hello = Reader(message);
    hello.take(MESSAGE_HEADER_BYTES)?;
    let (_version, _random) = (hello.take(2)?, hello.take(32)?);
    let session = hello.short()?;
    let suites = hello.long()?;
    let compressions = hello.short()?;
    if session.len() > 32 || suites.is_empty() || suites.len() % 2 != 0 || compressions.is_empty() {
        return Err(Refusal::Malformed);
    }
    let (mut name, mut protocols) = (None, None);
    // A hello of TLS 1.2 may end here.
    if !hello.0.is_empty() {
        let mut extensions = Reader(hello.long()?);
        while !extensions.0.is_empty() {
            let kind = extensions.number()?;
            let content = extensions.long()?;
            let known = match kind {
                SERVER_NAME => &mut name,
                ALPN => &mut protocols,
                _ => continue,
            };
            if known.replace(content).is_some() {
                return Err(Refusal::Malformed);
            }
        }
    }
    if !hello.0.is_empty() {
        return Err(Refusal::Malformed);
    }
    Ok(ClientHello {
        name: name.map(host_name).transpose()?,
        protocols: protocols.map(protocol_list).transpose()?.unwrap_or_default(),
    })
}

/// A list of exactly one host name: of a second one, and of kinds that nobody has defined, two readers could make different
/// things (RFC 6066 section 3).
fn host_name(extension: &[u8]) -> Result<Box<str>, Refusal> {
    const HOST_NAME: &[u8] = &[0];
    let mut outer = Reader(extension);
    let mut list = Reader(outer.long()?);
    let (kind, name) = (list.take(1)?, list.long()?);
    if !outer.0.is_empty() || !list.0.is_empty() || kind != HOST_NAME {
        return Err(Refusal::Malformed);
    }
    // The dot at the end is not allowed and means nothing.
    let name = name.strip_suffix(b".").unwrap_or(name);
    match std::str::from_utf8(name) {
        Ok(text) if is_host_name(name) => Ok(text.to_ascii_lowercase().into()),
        _ => Err(Refusal::BadName),
    }
}

/// Letters, digits, `-` and the `_` that people use; no address, which would end in a number.
fn is_host_name(name: &[u8]) -> bool {
    let is_label = |label: &[u8]| {
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=MAX_LABEL_BYTES).contains(&label.len()) && label.iter().all(allowed)
    };
    let last = name.rsplit(|byte| *byte == b'.').next().unwrap_or_default();
    name.len() <= MAX_NAME_BYTES
        && name.split(|byte| *byte == b'.').all(is_label)
        && !last.iter().all(u8::is_ascii_digit)
}

/// The protocols of ALPN; none is empty (RFC 7301 section 3.1).
fn protocol_list(extension: &[u8]) -> Result<Box<[u8]>, Refusal> {
    let mut outer = Reader(extension);
    let list = outer.long()?;
    let mut rest = Reader(list);
    if list.is_empty() || !outer.0.is_empty() {
        return Err(Refusal::Malformed);
    }
    while !rest.0.is_empty() {
        if rest.short()?.is_empty() {
            return Err(Refusal::Malformed);
        }
    }
    Ok(list.into())
}

/// Takes parts off the front (RFC 8446 section 3.4).
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Refusal> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Refusal::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u16, Refusal> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A vector whose length has one byte.
    fn short(&mut self) -> Result<&'a [u8], Refusal> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }

    /// A vector whose length has two bytes.
    fn long(&mut self) -> Result<&'a [u8], Refusal> {
        let length = self.number()?;
        self.take(usize::from(length))
    }
}
