//! The writing half: slices of plaintext in, records in as few buffers as possible out.

use ringmesh_ring::{BUFFER_BYTES, Buffer, LARGE_BUFFER_BYTES, Output, Size};

use super::limits::{MAX_RECORD_BYTES, MAX_SEALED_BUFFERS, RECORD_OVERHEAD_BYTES};
use super::session::{SealError, Sealed, Session};

/// Least room that is worth a record of its own at the end of a buffer, when more is to come: its 22 bytes and the
/// cipher's start are then below one percent.
const MIN_SPLIT_BYTES: usize = 4 * 1024;

/// Least plaintext that is sealed into a buffer for bulk: less is for a large one and a small one beside it.
const MIN_BULK_BYTES: usize = LARGE_BUFFER_BYTES + BUFFER_BYTES;

/// Least spare room of a buffer that is still written to: a key update always fits, which rustls would drop otherwise.
const MIN_SPARE_BYTES: usize = 256;

/// Seals what `output` has into `sealed`, as far as [`MAX_SEALED_BUFFERS`] go. Small slices are gathered, so that a head
/// and a short body are one record; slices of a record's size or more are sealed from where they are. `held` is what the
/// reading half must keep in place, see [`Session::seal`].
pub(super) fn seal(
    session: &mut Session,
    held: &mut [u8],
    output: &mut Output,
    sealed: &mut Output,
) -> Result<(), SealError> {
    for filled in 0.. {
        let wanted = output.len_bytes();
        let small = wanted + RECORD_OVERHEAD_BYTES <= BUFFER_BYTES;
        // What little is left behind the last goes with it.
        if output.is_empty() || filled > MAX_SEALED_BUFFERS || filled == MAX_SEALED_BUFFERS && !small {
            break;
        }
        let mut buffer = Buffer::take(match wanted {
            _ if small => Size::Small,
            ..MIN_BULK_BYTES => Size::Large,
            _ => Size::Bulk,
        });
        fill_buffer(session, held, output, &mut buffer)?;
        sealed.push(buffer.slice(0..buffer.len()));
    }
    Ok(())
}

/// Fills one buffer with records.
fn fill_buffer(
    session: &mut Session,
    held: &mut [u8],
    output: &mut Output,
    buffer: &mut Buffer,
) -> Result<(), SealError> {
    let mut most = MAX_RECORD_BYTES;
    while !output.is_empty() {
        let wanted = output.len_bytes().min(most);
        let room = buffer.spare().saturating_sub(RECORD_OVERHEAD_BYTES).min(wanted);
        if buffer.spare() < MIN_SPARE_BYTES || (room < wanted && room < MIN_SPLIT_BYTES) {
            break;
        }
        match with_plain(output, room, |plain| session.seal(held, plain, buffer.spare_mut())) {
            Ok(Sealed { written, taken }) => {
                buffer.commit(written);
                output.advance(taken);
            }
            // A key update is to be sent before this record, and does not fit beside it.
            Err(SealError::NoRoom) if room >= 2 * MIN_SPLIT_BYTES => most = room / 2,
            Err(SealError::NoRoom) if !buffer.is_empty() => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Shows the first `length` bytes of `output` as one piece: where they are if they are one, else gathered.
fn with_plain<R>(output: &Output, length: usize, seal: impl FnOnce(&[u8]) -> R) -> R {
    match output.slices().next() {
        Some(first) if first.len() >= length => seal(&first[..length]),
        _ => {
            let mut gathered = Buffer::take(Size::Small);
            for slice in output.slices() {
                let wanted = slice.len().min(length - gathered.len());
                gathered.extend_from_slice(&slice[..wanted]).expect("a record's plaintext fits a small buffer");
                if gathered.len() == length {
                    break;
                }
            }
            seal(gathered.filled())
        }
    }
}

/// Seals a close_notify; nothing if the connection is over already.
pub(super) fn seal_close(session: &mut Session, held: &mut [u8], sealed: &mut Output) {
    let mut buffer = Buffer::take(Size::Small);
    if let Ok(written) = session.seal_close(held, buffer.spare_mut()) {
        buffer.commit(written);
        sealed.push(buffer.slice(0..written));
    }
}
