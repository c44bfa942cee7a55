//! One client connection: a request out, its answer in.

use ringmesh_ring::net::{Address, Net};
use ringmesh_ring::stop::{Reason, Stop};
use ringmesh_ring::stream::{self, Idle, Stream};
use ringmesh_ring::{Buffer, Output, Size};

use super::entry::Prepared;
use crate::message::{self, Body, Fault, Framing, Method};
use crate::report::Failure;
use crate::wait::both;

/// What came back, as far as the head tells.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Value of the counted field.
    pub(crate) field: Option<String>,
    /// Bytes received, heads and framing included.
    pub(crate) bytes: u64,
    /// Whether the connection can serve another request.
    pub(crate) persistent: bool,
}

/// What is to be read of an answer.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) method: Method,
    pub(crate) field: Option<&'a str>,
}

/// A connection, with no buffer of its own: between two requests it holds none.
pub(crate) struct Connection<S> {
    stream: S,
}

impl<S: Stream> Connection<S> {
    /// Connects.
    pub(crate) async fn open<N: Net<Stream = S>>(net: &N, address: &Address, stop: &Stop) -> Result<Self, Failure> {
        match net.connect(address, None, stop).await {
            Ok(stream) => Ok(Self { stream }),
            Err(stream::Error::Stopped(_)) => Err(Failure::Timeout),
            Err(stream::Error::Io(_)) => Err(Failure::Connect),
        }
    }

    /// One that is open.
    pub(crate) fn over(stream: S) -> Self {
        Self { stream }
    }

    /// Whether a request may be sent: nothing came, and the server has not closed.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.stream.check_idle(), Ok(Idle::Open))
    }

    pub(crate) fn stream(&self) -> &S {
        &self.stream
    }

    /// Sends a prepared request and reads its answer, giving the body's bytes to `sink`.
    pub(crate) async fn exchange(
        &self,
        request: &Prepared,
        field: Option<&str>,
        output: &mut Output,
        stop: &Stop,
        sink: impl FnMut(&[u8]),
    ) -> Result<Answer, Failure> {
        let asked = Asked { method: request.method, field };
        request.write(output);
        let result = if request.is_large() {
            self.send_while_reading(asked, output, stop, sink).await
        } else {
            self.send_then_read(asked, output, stop, sink).await
        };
        output.clear();
        result
    }

    /// Sends what `output` holds, then reads.
    pub(crate) async fn send_then_read(
        &self,
        asked: Asked<'_>,
        output: &mut Output,
        stop: &Stop,
        sink: impl FnMut(&[u8]),
    ) -> Result<Answer, Failure> {
        match self.stream.flush(output, stop).await {
            Ok(()) => {}
            Err(stream::Error::Stopped(_)) => return Err(Failure::Timeout),
            // The server may have answered before it closed.
            Err(stream::Error::Io(_)) => output.clear(),
        }
        self.read(asked, stop, sink).await
    }

    /// Large requests: an echoing server would not take the rest before its answer is read.
    async fn send_while_reading(
        &self,
        asked: Asked<'_>,
        output: &mut Output,
        stop: &Stop,
        sink: impl FnMut(&[u8]),
    ) -> Result<Answer, Failure> {
        let send = self.stream.flush(output, stop);
        let read = self.read(asked, stop, sink);
        let answered_early = || stop.trigger(Reason::Abort);
        let (sent, answer) = both(send, read, answered_early).await;
        let mut answer = answer?;
        // An answer before the end of the request: the server does not want the rest.
        answer.persistent &= sent.is_ok();
        Ok(answer)
    }

    async fn read(&self, asked: Asked<'_>, stop: &Stop, mut sink: impl FnMut(&[u8])) -> Result<Answer, Failure> {
        let mut buffer = Buffer::take(Size::Small);
        let mut bytes = 0;
        let head = loop {
            let parse = |received: &[u8]| message::parse_response(received, asked.method, asked.field);
            let head = message::read_head(&self.stream, &mut buffer, stop, parse).await.map_err(before_the_answer)?;
            // Interim responses come before the answer (RFC 9110 section 15.2).
            if !(100..200).contains(&head.status) || head.status == 101 {
                break head;
            }
            bytes += head.length as u64;
            buffer.consume(head.length);
        };
        let field = head.field.map(|range| String::from_utf8_lossy(&buffer.filled()[range]).into_owned());
        bytes += head.length as u64;
        buffer.consume(head.length);
        if matches!(head.framing, Framing::Fixed(length) if length > buffer.capacity() as u64) {
            buffer.grow();
        }
        let mut body = Body::new(head.framing);
        let count = |data: &[u8]| {
            bytes += data.len() as u64;
            sink(data);
        };
        message::read_body(&self.stream, &mut buffer, &mut body, stop, count).await.map_err(within_the_answer)?;
        // Bytes that nobody asked for: the next answer could not be trusted.
        let persistent = head.persistent && buffer.filled().is_empty();
        Ok(Answer { status: head.status, field, bytes, persistent })
    }
}

/// What a request has failed for that could not be sent.
pub(super) fn while_sending(error: stream::Error) -> Failure {
    match error {
        stream::Error::Stopped(_) => Failure::Timeout,
        stream::Error::Io(_) => Failure::Cut,
    }
}

/// What a request has failed for of whose answer nothing had come.
pub(super) fn before_the_answer(fault: Fault) -> Failure {
    match fault {
        Fault::Ended | Fault::Broken => Failure::Cut,
        Fault::Malformed => Failure::Malformed,
        Fault::Stopped(_) => Failure::Timeout,
    }
}

fn within_the_answer(fault: Fault) -> Failure {
    match fault {
        Fault::Ended | Fault::Broken => Failure::Truncated,
        Fault::Malformed => Failure::Malformed,
        Fault::Stopped(_) => Failure::Timeout,
    }
}
