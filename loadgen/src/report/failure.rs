//! Why a request has no answer that counts.

use std::fmt;

use serde::Serialize;

/// Why a request has no answer that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The server refused the connection, or could not be reached.
    Connect,
    /// The two sides could not agree on TLS, or one broke it.
    Tls,
    /// The server would not change to the protocol asked for.
    Upgrade,
    /// No answer, or no complete one, within the timeout.
    Timeout,
    /// The connection ended before the head of the answer was complete: nobody knows whether the request had an effect.
    Cut,
    /// The connection ended, or was reset, after the head and before the end of the answer.
    Truncated,
    /// The answer breaks the protocol.
    Malformed,
    /// The answer is complete but its body is not what was asked for.
    WrongBody,
}

impl Failure {
    /// Its name in results.
    pub fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Upgrade => "upgrade",
            Self::Timeout => "timeout",
            Self::Cut => "cut",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
            Self::WrongBody => "wrong_body",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}
