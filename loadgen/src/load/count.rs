//! What came of a request of HTTP or gRPC goes into the report.

use ringmesh_ring::Instant;

use super::connection::Answer;
use super::entry::Expect;
use super::worker::{Answered, Due, Ended, Shared};
use crate::limits::MAX_FIELD_VALUE_BYTES;
use crate::report::{Expected, Failure};

/// A request that has ended.
pub(super) struct Counted {
    /// Which entry of the load it was.
    pub(super) entry: usize,
    /// When its sending began.
    pub(super) begin: Instant,
    pub(super) expect: Expect,
    /// Whether the values of a response field are counted.
    pub(super) counts_field: bool,
    pub(super) bytes_sent: u64,
}

impl Shared {
    pub(super) fn count(&self, due: &Due, request: &Counted, result: &Result<Answer, Failure>) {
        let outcome = match result {
            Ok(answer) => Ok(Answered {
                status: Some(answer.status),
                expected: if request.expect.admits(answer.status) { Expected::Yes } else { Expected::No },
                field: request.counts_field.then(|| bounded(answer.field.as_deref().unwrap_or(""))),
                bytes_sent: request.bytes_sent,
                bytes_received: answer.bytes,
            }),
            Err(cause) => Err(*cause),
        };
        self.record(due, &Ended { entry: request.entry, begin: request.begin, outcome });
    }
}

/// As much of a field's value as is kept.
fn bounded(value: &str) -> &str {
    &value[..value.floor_char_boundary(MAX_FIELD_VALUE_BYTES)]
}
