//! `grpc.health.v1.Health/Check` (`health-checking.md` of gRPC): the one message asked and the one answered.

/// Where it is called.
pub const PATH: &str = "/grpc.health.v1.Health/Check";

/// What a server says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// It does not know.
    Unknown,
    /// It takes calls.
    Serving,
    /// It does not.
    NotServing,
    /// It does not know the service.
    ServiceUnknown,
    /// Something that this version does not know.
    Other(u64),
}

/// The message that asks for a service, in its frame; the whole server if the name is empty.
pub fn write_request(service: &str) -> Vec<u8> {
    let mut message = Vec::with_capacity(service.len() + 16);
    if !service.is_empty() {
        // Field 1, of a length.
        message.push(0x0a);
        write_varint(service.len() as u64, &mut message);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0; 5];
    framed[1..].copy_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(&message);
    framed
}

fn write_varint(mut value: u64, into: &mut Vec<u8>) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

/// Reads the one message of an answer. None if it is none, is compressed, or more than one.
pub fn read_response(body: &[u8]) -> Option<Serving> {
    let (prefix, mut message) = body.split_at_checked(5)?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if prefix[0] != 0 || length != message.len() {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let tag = read_varint(&mut message)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => status = read_varint(&mut message)?,
            (0, _) => return None,
            (_, 0) => drop(read_varint(&mut message)?),
            (_, 1) => skip(&mut message, 8)?,
            (_, 2) => {
                let length = read_varint(&mut message)?;
                skip(&mut message, usize::try_from(length).ok()?)?;
            }
            (_, 5) => skip(&mut message, 4)?,
            _ => return None,
        }
    }
    Some(match status {
        0 => Serving::Unknown,
        1 => Serving::Serving,
        2 => Serving::NotServing,
        3 => Serving::ServiceUnknown,
        other => Serving::Other(other),
    })
}

fn skip(message: &mut &[u8], bytes: usize) -> Option<()> {
    *message = message.get(bytes..)?;
    Some(())
}

fn read_varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_the_service() {
        assert_eq!(write_request(""), b"\0\0\0\0\0");
        assert_eq!(write_request("a.B"), b"\0\0\0\0\x05\x0a\x03a.B");
        let long = "x".repeat(200);
        assert_eq!(write_request(&long)[..8], *b"\0\0\0\0\xcb\x0a\xc8\x01");
    }

    #[test]
    fn a_response_is_read_past_what_is_not_known() {
        let check = |message: &[u8], expected| {
            let framed = [&[0, 0, 0, 0, message.len() as u8][..], message].concat();
            assert_eq!(read_response(&framed), expected, "{message:?}");
        };
        check(b"", Some(Serving::Unknown));
        check(b"\x08\x01", Some(Serving::Serving));
        check(b"\x08\x02", Some(Serving::NotServing));
        check(b"\x08\x03", Some(Serving::ServiceUnknown));
        check(b"\x08\xac\x02", Some(Serving::Other(300)));
        // The last one counts, as everywhere in protobuf.
        check(b"\x08\x02\x08\x01", Some(Serving::Serving));
        check(b"\x12\x02ab\x08\x01\x19\0\0\0\0\0\0\0\0\x25\0\0\0\0\x28\x96\x01", Some(Serving::Serving));
        for broken in [&b"\x08"[..], b"\x08\x80", b"\x12\x05ab", b"\x19\0", b"\x0b", b"\x00\x01", &[0x80; 11]] {
            check(broken, None);
        }
    }

    #[test]
    fn what_is_no_single_plain_message_is_none() {
        for body in [&b""[..], b"\0\0\0\0", b"\0\0\0\0\x02\x08", b"\x01\0\0\0\x02\x08\x01", b"\0\0\0\0\x02\x08\x01\0"] {
            assert_eq!(read_response(body), None, "{body:?}");
        }
    }
}
