//! What a client says and expects.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::ClientConfig;

use super::connection::{Connection, Ends, borrowed};
use super::message::Outgoing;
use crate::client::is_end;
use crate::message::{Head, Message};
use crate::tls;
use crate::wait::DEADLINE;

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With a whole answer.
    Answer(Message),
    /// By a reset with this code.
    Reset(u32),
    /// By a GOAWAY with this code, which does not know it.
    GoAway(u32),
    /// With the connection.
    Closed,
}

impl Connection {
    /// Connects a well-behaved client, by prior knowledge.
    ///
    /// # Panics
    /// If nobody accepts.
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        Self::connect_with(address, &[])
    }

    /// Connects a client that says these settings.
    ///
    /// # Panics
    /// If nobody accepts.
    #[track_caller]
    pub fn connect_with(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        match Self::try_connect(address, settings) {
            Ok(client) => client,
            Err(error) => panic!("cannot connect to {address}: {error}"),
        }
    }

    /// Connects a client that says these settings. Every read has a deadline.
    ///
    /// # Errors
    /// If nobody accepts.
    pub fn try_connect(address: SocketAddr, settings: &[(u16, u32)]) -> io::Result<Self> {
        Self::client(socket(address)?, settings)
    }

    /// Connects a client by TLS, which must choose HTTP/2.
    ///
    /// # Errors
    /// If the server refuses, or chooses something else.
    pub fn connect_tls(address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let stream = tls::connect(address, config)?.into_inner();
        let chosen = stream.conn.alpn_protocol();
        if chosen != Some(b"h2") {
            return Err(io::Error::other(format!("ALPN chose {:?}", chosen.map(String::from_utf8_lossy))));
        }
        Self::client(stream, &[])
    }

    /// Sends a head, and gives its stream.
    ///
    /// # Panics
    /// If the other side is gone.
    #[track_caller]
    pub fn open(&mut self, fields: &[(&str, &str)], ends: Ends) -> u32 {
        let stream = self.next_id();
        self.send_fields(stream, fields, ends).expect("the connection is open");
        stream
    }

    /// The number of a stream that was not used.
    pub fn next_id(&mut self) -> u32 {
        self.next_stream += 2;
        self.next_stream - 2
    }

    /// Sends a whole request, and gives its stream.
    ///
    /// # Panics
    /// If the other side is gone, or resets it.
    #[track_caller]
    pub fn request(&mut self, request: &Outgoing) -> u32 {
        match self.try_request(request) {
            Ok(stream) => stream,
            Err(error) => panic!("cannot send: {error}"),
        }
    }

    /// Sends a whole request, and gives its stream.
    ///
    /// # Errors
    /// If the other side is gone, or resets it.
    pub fn try_request(&mut self, request: &Outgoing) -> io::Result<u32> {
        let stream = self.next_id();
        self.send_message(stream, request)?;
        Ok(stream)
    }

    /// Sends a request's head, to which a body belongs, and gives its stream.
    ///
    /// # Panics
    /// If the other side is gone.
    #[track_caller]
    pub fn begin(&mut self, request: &Outgoing) -> u32 {
        self.open(&borrowed(&request.fields), Ends::No)
    }

    /// Waits until a stream has ended, in whatever way.
    ///
    /// # Errors
    /// If nothing comes for too long, or what comes breaks the rules.
    pub fn ended(&mut self, stream: u32) -> io::Result<Ended> {
        let ended = self.until(|end| {
            let came = end.stream(stream);
            let goodbye = end.goodbyes.last().filter(|(last, _)| *last < stream);
            match (came.ended, came.reset, goodbye) {
                (true, ..) => Some(Ended::Answer(came.message.clone())),
                (_, Some(code), _) => Some(Ended::Reset(code)),
                (_, _, Some((_, code))) => Some(Ended::GoAway(*code)),
                (false, None, None) => None,
            }
        });
        match ended {
            Err(error) if is_end(&error) => Ok(Ended::Closed),
            ended => ended,
        }
    }

    /// The whole answer on a stream.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn response(&mut self, stream: u32) -> Message {
        match self.ended(stream) {
            Ok(Ended::Answer(message)) => message,
            Ok(other) => panic!("no whole response on stream {stream}: {other:?}; came {:?}", self.stream(stream)),
            Err(error) => panic!("no whole response on stream {stream}: {error}; came {:?}", self.stream(stream)),
        }
    }

    /// The head on a stream, interim ones left out.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn head(&mut self, stream: u32) -> Head {
        let head = self.until(|end| {
            let came = end.stream(stream);
            if came.has_head {
                return Some(Ok(came.message.head.clone()));
            }
            came.reset.map(Err)
        });
        match head {
            Ok(Ok(head)) => head,
            Ok(Err(code)) => panic!("stream {stream} was reset with {code}"),
            Err(error) => panic!("no head on stream {stream}: {error}"),
        }
    }

    /// Sends a request and reads its answer.
    ///
    /// # Panics
    /// If there is no whole one.
    #[track_caller]
    pub fn exchange(&mut self, request: &Outgoing) -> Message {
        let stream = self.request(request);
        self.response(stream)
    }

    /// Sends a GET and reads its answer.
    ///
    /// # Panics
    /// If there is no whole one.
    #[track_caller]
    pub fn get(&mut self, host: &str, path: &str) -> Message {
        self.exchange(&Outgoing::get(host, path))
    }
}

/// A socket with deadlines.
fn socket(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}
