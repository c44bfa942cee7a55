//! Why a message is not taken.

/// Why a message is refused. After one, nothing more can be read from its connection: where the next message starts is
/// unknown.
///
/// [`Refusal::status`] is the answer to a refused *request*. A refused response is the upstream's fault; what the
/// client gets then is for the proxy to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not `method SP target SP version CRLF` (RFC 9112 section 3).
    #[error("malformed request line")]
    BadRequestLine,
    /// Not `version SP status SP reason CRLF` (RFC 9112 section 4).
    #[error("malformed status line")]
    BadStatusLine,
    /// More than one empty line before the request line, or any before a status line (RFC 9112 section 2.2).
    #[error("empty lines before the message")]
    LeadingEmptyLines,
    /// A CR or LF that is not part of a CRLF (RFC 9112 section 2.2: a bare LF *may* be taken, which is what makes two
    /// readers disagree).
    #[error("line not ended by CRLF")]
    BadLineEnd,
    /// Neither HTTP/1.0 nor HTTP/1.1 (RFC 9110 section 15.6.6).
    #[error("unsupported HTTP version")]
    UnsupportedVersion,
    /// A request target that fits none of the four forms, has a fragment, or bytes outside of visible ASCII (RFC 9112
    /// section 3.2).
    #[error("malformed request target")]
    BadTarget,
    /// Longer than [`Limits::max_target_bytes`](crate::Limits::max_target_bytes) (RFC 9110 section 15.5.15).
    #[error("request target too long")]
    TargetTooLong,
    /// CONNECT that announces a body: what follows it is the tunnel's (RFC 9110 section 9.3.6).
    #[error("CONNECT with a body")]
    ConnectWithBody,
    /// A field name that is no token: spaces before the colon, line folding, or no colon at all (RFC 9112 section 5).
    #[error("malformed field name or folded line")]
    BadFieldName,
    /// NUL, bare CR or another control character in a field value (RFC 9110 section 5.5).
    #[error("forbidden character in a field value")]
    BadFieldValue,
    /// More fields than [`Limits::max_fields`](crate::Limits::max_fields) (RFC 6585 section 5).
    #[error("too many fields")]
    TooManyFields,
    /// Larger than [`Limits::max_head_bytes`](crate::Limits::max_head_bytes) (RFC 6585 section 5).
    #[error("head too large")]
    HeadTooLarge,
    /// An HTTP/1.1 request without Host (RFC 9112 section 3.2).
    #[error("Host is missing")]
    MissingHost,
    /// Several Host fields (RFC 9112 section 3.2).
    #[error("several Host fields")]
    RepeatedHost,
    /// Host, or the authority of an absolute target, is no host with optional port (RFC 9112 section 3.2).
    #[error("malformed host")]
    BadHost,
    /// Content-Length is not 1 to 19 digits of a value below 2^63 (RFC 9112 section 6.3 item 5). Lists are refused too.
    #[error("malformed Content-Length")]
    BadContentLength,
    /// Several Content-Length fields, also when they agree (RFC 9110 section 8.6 allows to refuse them).
    #[error("several Content-Length fields")]
    RepeatedContentLength,
    /// Content-Length together with Transfer-Encoding (RFC 9112 section 6.3 item 3).
    #[error("both Content-Length and Transfer-Encoding")]
    LengthAndCoding,
    /// Transfer-Encoding whose last coding is not `chunked`, has it twice, is empty, or several such fields (RFC 9112
    /// section 6.3 item 4).
    #[error("Transfer-Encoding does not end in one `chunked`")]
    BadTransferEncoding,
    /// A coding under `chunked` that we do not know (RFC 9112 section 6.1: 501).
    #[error("unknown transfer coding")]
    UnknownCoding,
    /// Transfer-Encoding in an HTTP/1.0 message (RFC 9112 section 6.1: faulty framing).
    #[error("Transfer-Encoding in HTTP/1.0")]
    CodingInOldVersion,
    /// A body of a GET, HEAD or DELETE in HTTP/1.0 (RFC 9110 section 9.3.1: refused for what it can smuggle). HAProxy
    /// refuses it too.
    #[error("body of a GET, HEAD or DELETE in HTTP/1.0")]
    BodyInOldVersion,
    /// A 1xx or 204 response with Transfer-Encoding or a Content-Length other than 0 (RFC 9112 section 6.3 item 1 says
    /// that there is no body; a reader that trusts the field waits for one).
    #[error("body announced in a response that has none")]
    BodyForbidden,
    /// Connection is not a list of tokens (RFC 9110 section 7.6.1).
    #[error("malformed Connection")]
    BadConnection,
    /// More options than [`MAX_CONNECTION_OPTIONS`](crate::limits::MAX_CONNECTION_OPTIONS).
    #[error("too many Connection options")]
    TooManyConnectionOptions,
    /// An expectation other than `100-continue` (RFC 9110 section 10.1.1).
    #[error("unknown expectation")]
    UnknownExpectation,
    /// A chunk size that is not 1 to 16 hexadecimal digits of a value below 2^63 (RFC 9112 section 7.1).
    #[error("malformed chunk size")]
    BadChunkSize,
    /// Chunk extensions that do not follow the grammar (RFC 9112 section 7.1.1).
    #[error("malformed chunk extension")]
    BadChunkExtension,
    /// Longer than [`Limits::max_chunk_line_bytes`](crate::Limits::max_chunk_line_bytes).
    #[error("chunk line too long")]
    ChunkLineTooLong,
    /// A chunk's bytes are not followed by CRLF (RFC 9112 section 7.1).
    #[error("chunk not ended by CRLF")]
    BadChunkEnd,
    /// A trailer line that is no field (RFC 9112 section 7.1.2).
    #[error("malformed trailer field")]
    BadTrailer,
    /// A trailer that would change framing, routing or access (RFC 9110 section 6.5.1).
    #[error("field not allowed as a trailer")]
    ForbiddenTrailer,
    /// Larger than [`Limits::max_trailer_bytes`](crate::Limits::max_trailer_bytes).
    #[error("trailers too large")]
    TrailersTooLarge,
    /// More content than the limit (RFC 9110 section 15.5.14).
    #[error("body is larger than allowed")]
    BodyTooLarge,
    /// The connection ended inside of a body (RFC 9112 section 8).
    #[error("body ended early")]
    BodyIncomplete,
    /// `%` not followed by two hexadecimal digits (RFC 3986 section 2.1).
    #[error("malformed percent-encoding in the path")]
    BadPercentEncoding,
    /// An encoded `/`, `\` or NUL, or a plain `\`: servers differ on whether it separates or ends (RFC 3986 section
    /// 2.2).
    #[error("ambiguous separator in the path")]
    AmbiguousSeparator,
    /// Dot segments that climb above the root, or that carry parameters (`..;x`), which servers resolve differently
    /// (RFC 3986 section 5.2.4).
    #[error("ambiguous dot segment in the path")]
    AmbiguousDotSegment,
}

impl Refusal {
    /// The status that answers a request refused for this.
    pub fn status(self) -> u16 {
        match self {
            Self::BodyTooLarge => 413,
            Self::TargetTooLong => 414,
            Self::UnknownExpectation => 417,
            Self::TooManyFields | Self::HeadTooLarge => 431,
            Self::UnknownCoding => 501,
            Self::UnsupportedVersion => 505,
            _ => 400,
        }
    }
}
