//! Every way a request or an opaque connection can end, and what follows from it: status, flag, label, whose fault it is,
//! and whether another endpoint may be tried. Nothing else in the data plane knows which status a failure gets.

use std::io;

use ringmesh_codec::client_hello::Refusal as HelloRefusal;
use ringmesh_codec::http1::write_local_response;
use ringmesh_codec::refusal::Refusal;
use ringmesh_codec::sniff;

use crate::tls::Refused;

/// Whose doing an outcome is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// All went well.
    None,
    /// The client or peer that called.
    Downstream,
    /// The service that was called.
    Upstream,
    /// Our own limits and configuration.
    Proxy,
}

/// Whether another endpoint may be tried after an attempt ended this way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The endpoint has not seen a byte of the request.
    Elsewhere,
    /// It may have had an effect.
    Never,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $label:literal, $status:literal, $side:ident, $retry:ident;)*) => {
        /// Why a request ended as it did.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $name = $number,)* }

        impl Reason {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The metric label and access log word.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// The status answered if the response has not begun; 0: none, the connection is closed.
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// Whose doing it is.
            pub const fn side(self) -> Side {
                match self { $(Self::$name => Side::$side,)* }
            }

            /// Whether another endpoint may be tried.
            pub const fn retry(self) -> Retry {
                match self { $(Self::$name => Retry::$retry,)* }
            }
        }
    };
}

reasons! {
    /// The service's response was passed on whole.
    Ok = 0, "ok", 0, None, Never;
    /// The request cannot be read without ambiguity (RFC 9112 section 11.2).
    BadRequest = 1, "bad_request", 400, Downstream, Never;
    /// The head is larger than the listener allows (RFC 6585 section 5).
    HeaderTooLarge = 2, "header_too_large", 431, Downstream, Never;
    /// The target is longer than allowed (RFC 9110 section 15.5.15).
    TargetTooLong = 3, "target_too_long", 414, Downstream, Never;
    /// A method or transfer coding we do not serve (RFC 9110 section 15.6.2).
    NotImplemented = 4, "not_implemented", 501, Downstream, Never;
    /// A version of HTTP we do not speak (RFC 9110 section 15.6.6).
    VersionNotSupported = 5, "version_not_supported", 505, Downstream, Never;
    /// An expectation other than `100-continue` (RFC 9110 section 15.5.18).
    ExpectationFailed = 6, "expectation_failed", 417, Downstream, Never;
    /// The head or the body did not arrive in time (RFC 9110 section 15.5.9).
    ClientTimeout = 7, "client_timeout", 408, Downstream, Never;
    /// The body broke its framing or ended early.
    BadBody = 8, "bad_body", 400, Downstream, Never;
    /// The client went away.
    ClientAborted = 9, "client_aborted", 0, Downstream, Never;
    /// No allow rule admits the request.
    PolicyDenied = 10, "policy_denied", 403, Downstream, Never;
    /// No route has its host and path.
    NoRoute = 11, "no_route", 404, Downstream, Never;
    /// The service has no endpoint.
    NoEndpoint = 12, "no_endpoint", 503, Upstream, Never;
    /// The service has as many requests in flight as it may.
    InFlightLimit = 13, "in_flight_limit", 503, Proxy, Never;
    /// No endpoint accepted a connection.
    ConnectFailed = 14, "connect_failed", 503, Upstream, Elsewhere;
    /// No endpoint accepted a connection in time.
    ConnectTimeout = 15, "connect_timeout", 503, Upstream, Elsewhere;
    /// An endpoint did not prove the identity we expect.
    UpstreamIdentity = 16, "upstream_identity", 503, Upstream, Elsewhere;
    /// The handshake with an endpoint failed otherwise.
    UpstreamTls = 17, "upstream_tls", 503, Upstream, Elsewhere;
    /// The response did not end in time (RFC 9110 section 15.6.5).
    RequestTimeout = 18, "request_timeout", 504, Upstream, Never;
    /// The endpoint closed or reset before a response.
    UpstreamReset = 19, "upstream_reset", 502, Upstream, Never;
    /// The endpoint's response cannot be read (RFC 9110 section 15.6.3).
    UpstreamGarbage = 20, "upstream_garbage", 502, Upstream, Never;
    /// The response ended early; what had come was passed on and the connection cut.
    ResponseTruncated = 21, "response_truncated", 502, Upstream, Never;
    /// The proxy is shutting down, or a peer's root is not trusted any more, and it had no time left.
    Drained = 22, "drained", 503, Proxy, Never;
    /// A filter refused.
    FilterRefused = 23, "filter_refused", 403, Proxy, Never;
    /// A task of ours panicked.
    Internal = 24, "internal", 500, Proxy, Never;
    /// The listener has as many connections as it may.
    ConnectionLimit = 25, "connection_limit", 0, Proxy, Never;
    /// The connection was silent for too long.
    IdleTimeout = 26, "idle_timeout", 0, Downstream, Never;
    /// The peer's handshake was refused; the handshake metrics say why.
    TlsRefused = 27, "tls_refused", 0, Downstream, Never;
    /// The client sent its body slower than the listener allows (RFC 9110 section 15.5.9).
    ClientSendsSlowly = 28, "client_sends_slowly", 408, Downstream, Never;
    /// The client took what there was for it slower than the listener allows.
    ClientReadsSlowly = 29, "client_reads_slowly", 0, Downstream, Never;
    /// The endpoint took what there was for it slower than the listener allows (RFC 9110 section 15.6.5).
    UpstreamReadsSlowly = 30, "upstream_reads_slowly", 504, Upstream, Never;
    /// The client broke the rules of HTTP/2 (RFC 9113 section 5.4); stream or connection are reset.
    Http2Error = 31, "http2_error", 0, Downstream, Never;
    /// The client sent more resets, PINGs, settings or empty frames than anybody needs (RFC 9113 section 10.5).
    Flood = 32, "flood", 0, Downstream, Never;
    /// A proxy's connection did not begin with a PROXY header that can be believed.
    ProxyHeader = 33, "proxy_header", 0, Downstream, Never;
    /// A proxy's PROXY header was not whole in time.
    ProxyHeaderTimeout = 34, "proxy_header_timeout", 0, Downstream, Never;
    /// The client is none of the proxies that a listener is for.
    NotAProxy = 35, "not_a_proxy", 0, Downstream, Never;
    /// The client began TLS where plain HTTP is spoken. It takes the answer for broken TLS, and programs and people know it.
    TlsToPlainPort = 37, "tls_to_plain_port", 400, Downstream, Never;
    /// The client sent a request in plain text where TLS is spoken.
    PlainToTlsPort = 38, "plain_to_tls_port", 400, Downstream, Never;
    /// No route has the server name that the client asks for, with the protocols that it offers (RFC 6066 section 3).
    UnrecognizedName = 39, "unrecognized_name", 0, Downstream, Never;
    /// The client's first message is no ClientHello that we take; see `ringmesh_codec::client_hello`.
    BadClientHello = 40, "bad_client_hello", 0, Downstream, Never;
    /// The service goes to where the client wanted to go, and that is a port of ours, or it came to us by itself (RFC 9110
    /// section 15.5.20).
    NoOriginalDestination = 41, "no_original_destination", 421, Downstream, Never;
    /// It did not become clear in time what the client speaks, and only what is clear may go on.
    NotDetected = 42, "not_detected", 0, Downstream, Never;
    /// An opaque connection was open for as long as it may be.
    MaxDuration = 43, "max_duration", 0, Proxy, Never;
    /// The endpoint takes no tunnel of another protocol: its HTTP/2 does not announce extended CONNECT (RFC 8441 section 3), or
    /// it has answered by HTTP/1.1 as if nothing had been asked, which a client of HTTP/2 would take for the tunnel's begin.
    UpgradeUnsupported = 44, "upgrade_unsupported", 502, Upstream, Never;
    /// The request has passed this proxy before: its name stands in `Via` (RFC 5842 section 7.2).
    LoopDetected = 45, "loop_detected", 508, Downstream, Never;
    /// An OPTIONS that was to go no further than here (RFC 9110 section 7.6.2).
    MaxForwards = 46, "max_forwards", 200, None, Never;
    /// The listener sends all requests to HTTPS (RFC 9110 section 15.4.9).
    Redirected = 47, "redirected", 308, None, Never;
    /// The client's source has as many connections as it may.
    SourceLimit = 48, "source_limit", 0, Downstream, Never;
    /// The body is larger than the listener allows (RFC 9110 section 15.5.14).
    BodyTooLarge = 49, "body_too_large", 413, Downstream, Never;
    /// As many handshakes of the listener are under way as may be.
    HandshakeLimit = 50, "handshake_limit", 0, Proxy, Never;
    /// The client broke the rules of the connection that two proxies share (`dataplane/src/mux/PROTOCOL.md`).
    TrunkError = 51, "trunk_error", 0, Downstream, Never;
    /// The endpoint sent nothing for longer than the listener's `idle_timeout` (RFC 9110 section 15.6.5).
    UpstreamSilent = 52, "upstream_silent", 504, Upstream, Never;
    /// A stream of HTTP/2 never became a request: it was one more than the client may have at a time, or its head broke a rule or
    /// was several times too large (RFC 9113 sections 5.1.2 and 8.1.1). The library below us refuses these.
    StreamRefused = 53, "stream_refused", 0, Downstream, Never;
}

/// Upper bound on the number of reasons, for tables indexed by them.
pub const MAX_REASONS: usize = 64;
const _: () = assert!((Reason::ALL[Reason::ALL.len() - 1] as usize) < MAX_REASONS);

impl Reason {
    /// The reason with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.iter().find(|reason| **reason as u8 == number).copied()
    }

    /// What an unreadable request head ends in.
    pub fn of_refusal(refusal: &Refusal) -> Self {
        match refusal.status() {
            413 => Self::BodyTooLarge,
            414 => Self::TargetTooLong,
            417 => Self::ExpectationFailed,
            431 => Self::HeaderTooLarge,
            501 => Self::NotImplemented,
            505 => Self::VersionNotSupported,
            _ => Self::BadRequest,
        }
    }

    /// What is wrong, in words for who sees our answer.
    pub const fn words(self) -> &'static str {
        match self {
            Self::TlsToPlainPort => "this port speaks plain HTTP, not TLS: use http://",
            Self::PlainToTlsPort => "this port speaks TLS, not plain HTTP: use https://",
            _ => self.label(),
        }
    }

    /// An answer of ours as HTTP/1, after which the connection ends. Empty if the reason has no status.
    pub fn last_answer(self) -> Vec<u8> {
        let mut answer = Vec::new();
        if self.status() != 0 {
            let (status, phrase) = (self.status(), phrase(self.status()));
            let body = format!("{status} {phrase}: {}\n", self.words());
            let fields = [("content-type", "text/plain"), ("x-ringmesh-reason", self.label()), ("connection", "close")];
            write_local_response(status, phrase, &fields, body.len() as u64, &mut answer);
            answer.extend_from_slice(body.as_bytes());
        }
        answer
    }

    /// What a ClientHello that is refused ends in; `bytes` are the first ones of the connection.
    pub fn of_hello(refusal: HelloRefusal, bytes: &[u8]) -> Self {
        let is_plain_http = refusal == HelloRefusal::NotTls && sniff::is_plain_http(bytes);
        if is_plain_http { Self::PlainToTlsPort } else { Self::BadClientHello }
    }

    /// What a body that cannot be read ends in.
    pub fn of_body(refusal: &Refusal) -> Self {
        if *refusal == Refusal::BodyTooLarge { Self::BodyTooLarge } else { Self::BadBody }
    }

    /// What a failed operation on the endpoint's connection ends in, before its response began.
    pub fn of_upstream(error: &io::Error) -> Self {
        // A server refuses a client's certificate after the client's handshake is over (RFC 8446 section 4.4.4).
        if Refused::inside(error).is_some() { Self::UpstreamTls } else { Self::UpstreamReset }
    }

    /// What a stop in the middle of a request ends in.
    pub fn of_stop(reason: ringmesh_ring::stop::Reason) -> Self {
        match reason {
            ringmesh_ring::stop::Reason::Deadline => Self::RequestTimeout,
            ringmesh_ring::stop::Reason::Drain => Self::Drained,
            ringmesh_ring::stop::Reason::Abort => Self::ClientAborted,
        }
    }
}

/// The standard phrase of a status that we answer ourselves (RFC 9110 section 15, RFC 6585).
pub const fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        301 => "Moved Permanently",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        508 => "Loop Detected",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_found_by_its_number_and_has_a_label_of_its_own() {
        assert!(Reason::ALL.is_sorted_by_key(|reason| *reason as u8));
        for reason in Reason::ALL {
            assert_eq!(Reason::from_number(*reason as u8), Some(*reason));
            assert_eq!(Reason::ALL.iter().filter(|other| other.label() == reason.label()).count(), 1);
        }
    }

    #[test]
    fn only_what_no_endpoint_has_seen_is_tried_elsewhere() {
        for reason in Reason::ALL.iter().filter(|reason| reason.retry() == Retry::Elsewhere) {
            assert_eq!(reason.status(), 503, "{}", reason.label());
            assert_eq!(reason.side(), Side::Upstream, "{}", reason.label());
        }
    }
}
