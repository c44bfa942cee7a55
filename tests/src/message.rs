//! HTTP/1.1 messages as the fake clients and services read them: strict, whole in memory, with nothing changed.

use std::io::{self, Read};

/// Largest head that is read.
const MAX_HEAD_BYTES: usize = 2 * 1024 * 1024;

/// Names as they came, and values without the blanks around them.
pub type Fields = Vec<(String, String)>;

/// A start line and fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Request line or status line, without its end. HTTP/2 has none: there it is empty, and the fields begin with those
    /// whose names begin with a colon.
    pub start: String,
    /// Its fields, in their order.
    pub fields: Fields,
}

impl Head {
    /// The value of the first field of this name, in whatever case it is written.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The values of all fields of this name.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let same = move |(field, _): &&(String, String)| field.eq_ignore_ascii_case(name);
        self.fields.iter().filter(same).map(|(_, value)| value.as_str())
    }

    /// The status of a response.
    ///
    /// # Panics
    /// If it is none.
    pub fn status(&self) -> u16 {
        let text = match self.field(":status") {
            Some(status) => Some(status),
            None => self.start.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)),
        };
        let status = text.and_then(|text| text.parse().ok());
        status.unwrap_or_else(|| panic!("`{}` is no status line", self.start))
    }

    /// Method and target of a request.
    pub fn request(&self) -> (&str, &str) {
        if let (Some(method), Some(path)) = (self.field(":method"), self.field(":path")) {
            return (method, path);
        }
        let mut words = self.start.split(' ');
        (words.next().unwrap_or_default(), words.next().unwrap_or_default())
    }

    fn parse(text: &str) -> io::Result<Self> {
        let mut lines = text.split("\r\n");
        let start = lines.next().unwrap_or_default().to_owned();
        let fields = lines
            .take_while(|line| !line.is_empty())
            .map(|line| {
                let (name, value) = line.split_once(':').ok_or_else(|| malformed(format!("no field: `{line}`")))?;
                Ok((name.to_owned(), value.trim().to_owned()))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { start, fields })
    }
}

/// A whole message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Its head.
    pub head: Head,
    /// Its content, without framing.
    pub body: Vec<u8>,
    /// Fields behind the body.
    pub trailers: Fields,
}

impl Message {
    /// See [`Head::status`].
    pub fn status(&self) -> u16 {
        self.head.status()
    }

    /// See [`Head::field`].
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.field(name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Reads messages off a stream, and keeps what came beyond them.
pub struct Reader<S> {
    /// Where they come from.
    pub stream: S,
    bytes: Vec<u8>,
}

impl<S: Read> Reader<S> {
    /// Reads from this stream.
    pub fn new(stream: S) -> Self {
        Self { stream, bytes: Vec::new() }
    }

    /// The next head. None: the stream ended before its first byte.
    ///
    /// # Errors
    /// If the stream fails or ends in the middle, or this is no head.
    pub fn head(&mut self) -> io::Result<Option<Head>> {
        let mut searched = 0_usize;
        loop {
            let from = searched.saturating_sub(3);
            if let Some(end) = self.bytes[from..].windows(4).position(|window| window == b"\r\n\r\n") {
                let head: Vec<u8> = self.bytes.drain(..from + end + 4).collect();
                let text = String::from_utf8(head).map_err(|_| malformed("a head that is no text".to_owned()))?;
                return Head::parse(&text).map(Some);
            }
            searched = self.bytes.len();
            if searched > MAX_HEAD_BYTES {
                return Err(malformed("an endless head".to_owned()));
            }
            if self.more()? == 0 {
                return if self.bytes.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// The message whose head this is, with the body and trailers that it announces.
    ///
    /// # Errors
    /// If the stream fails or ends before them, or the framing is broken.
    pub fn rest_of(&mut self, head: Head, without_length: WithoutLength) -> io::Result<Message> {
        if head.values("transfer-encoding").any(|value| value.eq_ignore_ascii_case("chunked")) {
            let (body, trailers) = self.chunked()?;
            return Ok(Message { head, body, trailers });
        }
        let body = match (head.field("content-length"), without_length) {
            (Some(length), _) => {
                let length = length.parse().map_err(|_| malformed(format!("a length of `{length}`")))?;
                self.exactly(length)?
            }
            (None, WithoutLength::Empty) => Vec::new(),
            (None, WithoutLength::UntilClose) => self.rest()?,
        };
        Ok(Message { head, body, trailers: Fields::new() })
    }

    /// So many bytes.
    ///
    /// # Errors
    /// If the stream fails or ends before them.
    pub fn exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.bytes.len() < count {
            if self.more()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.bytes.drain(..count).collect())
    }

    /// All that comes before the stream ends.
    ///
    /// # Errors
    /// If the stream fails.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        while self.more()? > 0 {}
        Ok(std::mem::take(&mut self.bytes))
    }

    fn chunked(&mut self) -> io::Result<(Vec<u8>, Fields)> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let size = line.split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(size, 16).map_err(|_| malformed(format!("a chunk size of `{line}`")))?;
            if size == 0 {
                break;
            }
            body.extend(self.exactly(size)?);
            if !self.line()?.is_empty() {
                return Err(malformed("a chunk longer than its size".to_owned()));
            }
        }
        let mut trailers = Fields::new();
        loop {
            let line = self.line()?;
            match line.split_once(':') {
                Some((name, value)) => trailers.push((name.to_owned(), value.trim().to_owned())),
                None if line.is_empty() => return Ok((body, trailers)),
                None => return Err(malformed(format!("a trailer `{line}`"))),
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.bytes.windows(2).position(|window| window == b"\r\n") {
                let line: Vec<u8> = self.bytes.drain(..end + 2).take(end).collect();
                return String::from_utf8(line).map_err(|_| malformed("a line that is no text".to_owned()));
            }
            if self.more()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn more(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 16 * 1024];
        let count = loop {
            match self.stream.read(&mut buffer) {
                // A read with a deadline is not begun again by the kernel when something has interrupted it.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        self.bytes.extend_from_slice(&buffer[..count]);
        Ok(count)
    }
}

/// What a message is whose head announces no length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithoutLength {
    /// A request, or a response that has no body.
    Empty,
    /// Any other response.
    UntilClose,
}

fn malformed(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
