//! WebSocket echo: what came goes back, frame by frame, while it comes.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ringmesh_ring::stop::Stop;
use ringmesh_ring::stream::Stream;
use ringmesh_ring::{Buffer, Output, Size};

use super::Shared;
use crate::limits::MAX_FIELDS;
use crate::message::{Fault, fill, read_head};
use crate::websocket::{Frame, MAX_CONTROL_BYTES, MAX_FRAME_HEAD_BYTES, Opcode, apply_mask};

/// What is hashed behind the client's key (RFC 6455 section 1.3).
const SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Serves one connection to its end.
pub(super) async fn serve<S: Stream>(shared: &Shared, stream: &S, stop: &Stop) {
    shared.begin_idle(stop);
    let mut buffer = Buffer::take(Size::Small);
    let mut output = Output::new();
    if open(stream, &mut buffer, &mut output, stop).await.is_ok() {
        while let Ok(Next::Frame) = echo(shared, stream, &mut buffer, &mut output, stop).await {}
    }
    // What is left is the answer that closes; the client may be gone.
    let _gone = stream.flush(&mut output, stop).await;
    let _gone = stream.shutdown_write();
}

/// What a client asks for.
struct Asked {
    length: usize,
    /// Its key; none if it does not ask for a WebSocket.
    key: Option<String>,
}

fn parse(bytes: &[u8]) -> Result<Option<Asked>, Fault> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let Ok(status) = request.parse(bytes) else { return Err(Fault::Malformed) };
    let httparse::Status::Complete(length) = status else { return Ok(None) };
    let key = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case("sec-websocket-key"));
    Ok(Some(Asked { length, key: key.and_then(|field| Some(std::str::from_utf8(field.value).ok()?.to_owned())) }))
}

async fn open<S: Stream>(stream: &S, buffer: &mut Buffer, output: &mut Output, stop: &Stop) -> Result<(), Fault> {
    let asked = read_head(stream, buffer, stop, parse).await?;
    buffer.consume(asked.length);
    let Some(key) = asked.key else {
        output.push_bytes(
            b"HTTP/1.1 426 Upgrade Required\r\nupgrade: websocket\r\nconnection: upgrade, close\r\n\
              sec-websocket-version: 13\r\ncontent-length: 0\r\n\r\n",
        );
        return Err(Fault::Malformed);
    };
    let accept = STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{SUFFIX}").as_bytes()));
    output.push_bytes(
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
             sec-websocket-accept: {accept}\r\n\r\n"
        )
        .as_bytes(),
    );
    Ok(stream.flush(output, stop).await?)
}

/// Whether another frame may come.
enum Next {
    Frame,
    End,
}

/// Sends one frame back. What is sent at last is left in `output` until the client has to be waited for.
async fn echo<S: Stream>(
    shared: &Shared,
    stream: &S,
    buffer: &mut Buffer,
    output: &mut Output,
    stop: &Stop,
) -> Result<Next, Fault> {
    let (frame, head) = loop {
        if let Some(frame) = Frame::parse(buffer.filled()).map_err(|_| Fault::Malformed)? {
            break frame;
        }
        wait(shared, stream, buffer, output, stop).await?;
    };
    // A client masks everything (RFC 6455 section 5.1).
    let mask = frame.mask.ok_or(Fault::Malformed)?;
    buffer.consume(head);
    let opcode = match frame.opcode {
        Opcode::Ping => Opcode::Pong,
        opcode => opcode,
    };
    let answers = opcode != Opcode::Pong || frame.opcode == Opcode::Ping;
    if answers {
        let mut head = [0; MAX_FRAME_HEAD_BYTES];
        let end = Frame { opcode, mask: None, ..frame }.write(&mut head);
        output.push_bytes(&head[..end]);
    }
    let mut position = 0;
    while position < frame.length {
        if buffer.is_empty() {
            wait(shared, stream, buffer, output, stop).await?;
        }
        let taken = buffer.len().min(usize::try_from(frame.length - position).unwrap_or(usize::MAX));
        let part = &mut buffer.filled_mut()[..taken];
        apply_mask(part, mask, position);
        if answers {
            output.push_bytes(part);
        }
        buffer.consume(taken);
        position += taken as u64;
    }
    debug_assert!(!opcode.is_control() || frame.length <= MAX_CONTROL_BYTES as u64, "bounded by the parser");
    Ok(if opcode == Opcode::Close { Next::End } else { Next::Frame })
}

/// Sends what there is and waits for more.
async fn wait<S: Stream>(
    shared: &Shared,
    stream: &S,
    buffer: &mut Buffer,
    output: &mut Output,
    stop: &Stop,
) -> Result<(), Fault> {
    stream.flush(output, stop).await?;
    shared.begin_idle(stop);
    if fill(stream, buffer, stop).await? == 0 {
        return Err(Fault::Ended);
    }
    Ok(())
}
