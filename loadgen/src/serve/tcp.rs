//! TCP echo and sink.

use ringmesh_ring::stop::Stop;
use ringmesh_ring::stream::Stream;
use ringmesh_ring::{Buffer, Output, Size};

use super::Shared;
use crate::message::fill;

/// Length of the sink's receipt.
pub const SINK_RECEIPT_BYTES: usize = 8;

/// Sends back what comes, and half-closes when the client does.
pub(super) async fn echo<S: Stream>(shared: &Shared, stream: &S, stop: &Stop) {
    let mut output = Output::new();
    let mut buffer = Buffer::take(Size::Large);
    loop {
        shared.begin_idle(stop);
        match fill(stream, &mut buffer, stop).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let came = buffer.filled().len();
        output.push(buffer.slice(0..came));
        buffer.consume(came);
        if stream.flush(&mut output, stop).await.is_err() {
            break;
        }
    }
    // The client may be gone.
    let _gone = stream.shutdown_write();
}

/// Counts what comes; the count is the receipt.
pub(super) async fn sink<S: Stream>(shared: &Shared, stream: &S, stop: &Stop) {
    let mut buffer = Buffer::take(Size::Large);
    let mut bytes = 0;
    loop {
        shared.begin_idle(stop);
        match fill(stream, &mut buffer, stop).await {
            Ok(0) => break,
            Ok(came) => bytes += came as u64,
            Err(_) => return,
        }
        buffer.consume(buffer.filled().len());
    }
    let mut output = Output::new();
    output.push_bytes(&bytes.to_be_bytes());
    if stream.flush(&mut output, stop).await.is_ok() {
        // The client may be gone.
        let _gone = stream.shutdown_write();
    }
}
