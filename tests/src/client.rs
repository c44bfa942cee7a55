//! A client that sends exactly the bytes it is given, and reads strictly what comes back.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

use crate::message::{Head, Message, Reader, WithoutLength};
use crate::wait::DEADLINE;

/// A connection to a proxy, plain or through TLS.
pub struct Client<S = TcpStream> {
    reader: Reader<S>,
}

impl Client<TcpStream> {
    /// Connects.
    ///
    /// # Panics
    /// If nobody accepts.
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        match Self::try_connect(address) {
            Ok(client) => client,
            Err(error) => panic!("cannot connect to {address}: {error}"),
        }
    }

    /// Connects. Every read has a deadline.
    ///
    /// # Errors
    /// If nobody accepts.
    pub fn try_connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, DEADLINE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(Self::over(stream))
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        &self.reader.stream
    }

    /// Sends no more, but reads on.
    ///
    /// # Panics
    /// If the connection is gone.
    pub fn half_close(&self) {
        self.socket().shutdown(Shutdown::Write).expect("the connection is open");
    }

    /// Ends the connection by a reset.
    pub fn reset(self) {
        reset(self.reader.stream);
    }

    /// How long a read may take from now on.
    ///
    /// # Panics
    /// If that is no time at all.
    pub fn set_patience(&self, patience: Duration) {
        self.socket().set_read_timeout(Some(patience)).expect("a time");
    }
}

/// Ends a connection by a reset, as a process does that dies with bytes unread.
///
/// # Panics
/// If the kernel knows no linger.
pub fn reset(stream: TcpStream) {
    set_socket_linger(&stream, Some(Duration::ZERO)).expect("sockets know it");
}

impl<S: Read + Write> Client<S> {
    /// Speaks over this stream.
    pub fn over(stream: S) -> Self {
        Self { reader: Reader::new(stream) }
    }

    /// Sends bytes.
    ///
    /// # Panics
    /// If the connection is gone.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        if let Err(error) = self.try_send(bytes) {
            panic!("cannot send: {error}");
        }
        self
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.reader.stream.write_all(bytes.as_ref())?;
        self.reader.stream.flush()
    }

    /// Sends a GET without more than it needs, and reads the response.
    ///
    /// # Panics
    /// If there is no whole response.
    #[track_caller]
    pub fn get(&mut self, host: &str, target: &str) -> Message {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).response()
    }

    /// The next response, interim ones left out.
    ///
    /// # Panics
    /// If there is no whole response.
    #[track_caller]
    pub fn response(&mut self) -> Message {
        self.response_to("GET")
    }

    /// The next response, to a request by this method.
    ///
    /// # Panics
    /// If there is no whole response.
    #[track_caller]
    pub fn response_to(&mut self, method: &str) -> Message {
        match self.try_response_to(method) {
            Ok(response) => response,
            Err(error) => panic!("no whole response: {error}"),
        }
    }

    /// The next response, interim ones left out.
    ///
    /// # Errors
    /// If there is no whole response.
    pub fn try_response(&mut self) -> io::Result<Message> {
        self.try_response_to("GET")
    }

    /// The next response, to a request by this method.
    ///
    /// # Errors
    /// If there is no whole response.
    pub fn try_response_to(&mut self, method: &str) -> io::Result<Message> {
        loop {
            let head = self.try_head()?;
            if head.status() >= 200 {
                return self.body_of(head, method);
            }
        }
    }

    /// The next head, interim ones included.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn head(&mut self) -> Head {
        match self.try_head() {
            Ok(head) => head,
            Err(error) => panic!("no response: {error}"),
        }
    }

    /// The next head, interim ones included.
    ///
    /// # Errors
    /// If there is none.
    pub fn try_head(&mut self) -> io::Result<Head> {
        self.reader.head()?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// The rest of a response whose head was read.
    ///
    /// # Errors
    /// If it does not come whole.
    pub fn body_of(&mut self, head: Head, method: &str) -> io::Result<Message> {
        if method == "HEAD" || matches!(head.status(), 204 | 304) {
            return Ok(Message { head, ..Message::default() });
        }
        self.reader.rest_of(head, WithoutLength::UntilClose)
    }

    /// So many bytes of what comes.
    ///
    /// # Errors
    /// If they do not come.
    pub fn exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        self.reader.exactly(count)
    }

    /// All that comes until the other side ends.
    ///
    /// # Errors
    /// If it ends by a reset, or not at all.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        self.reader.rest()
    }

    /// Sees that the other side ends without another byte, in whatever way.
    ///
    /// # Panics
    /// If it sends something, or does not end.
    #[track_caller]
    pub fn expect_end(&mut self) {
        match self.rest() {
            Ok(rest) => assert!(rest.is_empty(), "more came: {}", String::from_utf8_lossy(&rest)),
            Err(error) => assert!(is_end(&error), "no end: {error}"),
        }
    }

    /// The stream below. What was read ahead is lost.
    pub fn into_inner(self) -> S {
        self.reader.stream
    }
}

/// Whether an error says that the other side is gone, rather than silent.
pub fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe | NotConnected)
}
