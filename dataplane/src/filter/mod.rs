//! What may look at a request before it is routed. Tests put filters in through [`crate::start`]; the configuration has
//! none yet.

use std::sync::Arc;

/// What a filter says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Continue,
    /// Refuse with 403.
    Refuse,
}

/// Looks at requests, on one worker.
pub trait Filter {
    /// Looks at a request by its method and path.
    fn request(&self, method: &[u8], path: &[u8]) -> Verdict;
}

/// Makes a filter for each worker.
pub type Make = Arc<dyn Fn() -> Box<dyn Filter> + Send + Sync>;
