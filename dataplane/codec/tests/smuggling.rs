//! Every known way to make two readers disagree about where a message ends or where it goes, and what becomes of it here:
//! one table, which is the documentation. A row names the section of the RFC that rules it, says what it is, and lists the
//! forms it is tried in. What can stand in requests and responses alike is tried in both.
//!
//! Nothing in the table is repaired by guessing: either a message has one reading, and is written to the next hop in its
//! plainest form, or it is refused and its connection ends.

use ringmesh_codec::http1::{Edits, Joined, Parsed, RequestHead, ResponseHead};
use ringmesh_codec::refusal::Refusal::{self, *};
use ringmesh_codec::{BodyLength, BodyScanner, Limits, Method, body};

/// Where the forms of a row stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// They are requests from their first byte on.
    Request,
    /// They are responses to a GET.
    Response,
    /// They are the first line of a request, without its end.
    RequestLine,
    /// They are the first line of a response, without its end.
    StatusLine,
    /// They are targets of a GET.
    Target,
    /// They are values of Host.
    Host,
    /// They are the field lines behind Host in a request.
    RequestFields,
    /// They are field lines, in a request and in a response of 200.
    Fields,
    /// They are a chunked body, of a request and of a response.
    Chunks,
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Becomes {
    /// It is refused for this reason; the connection ends.
    Refused(Refusal),
    /// It is refused for one of these, depending on the form.
    RefusedFor(&'static [Refusal]),
    /// It goes on as it came, with a body of this length.
    Passed(BodyLength),
    /// It goes on, but these lines are in it in place of what came.
    Rewritten(&'static str),
    /// It goes on without this.
    Without(&'static str),
}
use Becomes::{Passed, Refused, RefusedFor, Rewritten, Without};
use BodyLength::{Chunked, Fixed, None as Empty, UntilClose};

/// RFC and section, what it is, where the forms stand, the forms, and what becomes of them.
type Row = (&'static str, &'static str, At, &'static [&'static [u8]], Becomes);

#[rustfmt::skip]
const TABLE: &[Row] = &[
    // ---- two lengths ----
    ("9112 6.3 item 3", "CL.TE and TE.CL: a length and a coding, in either order", At::Fields, &[
        b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        b"transfer-encoding: CHUNKED\r\ncontent-length: 6\r\n",
    ], Refused(LengthAndCoding)),
    ("9112 6.3 item 5", "CL.CL: several lengths, also if they agree", At::Fields, &[
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nX: y\r\ncontent-length: 5\r\n",
    ], Refused(RepeatedContentLength)),
    ("9112 6.1", "TE.TE: several codings, of which readers pick one", At::Fields, &[
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-encoding: x\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: chunked, gzip\r\n",
    ], Refused(BadTransferEncoding)),
    ("9112 6.1", "a coding below `chunked` that is not ours to undo: 501", At::Fields, &[
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: identity, chunked\r\n",
        b"Transfer-Encoding: gzip, br,chunked\r\n",
    ], Refused(UnknownCoding)),
    ("9112 6.1", "`chunked` in disguise", At::Fields, &[
        b"Transfer-Encoding: xchunked\r\n", b"Transfer-Encoding: chunkedx\r\n", b"Transfer-Encoding: chunke\r\n",
        b"Transfer-Encoding: identity\r\n", b"Transfer-Encoding: gzip\r\n", b"Transfer-Encoding: \r\n",
        b"Transfer-Encoding: ,\r\n", b"Transfer-Encoding: chunked,\r\n", b"Transfer-Encoding: ,chunked\r\n",
        b"Transfer-Encoding: chunked;q=1\r\n", b"Transfer-Encoding: \"chunked\"\r\n",
        b"Transfer-Encoding: chunked chunked\r\n", b"Transfer-Encoding: chunk\xc3\xa9d\r\n",
        b"Transfer-Encoding: gzip;x, chunked\r\n", b"Transfer-Encoding: c\xcc\xb8hunked\r\n",
    ], Refused(BadTransferEncoding)),
    ("9112 6.1", "`chunked` in another spelling has one meaning, and is written in the usual one", At::Fields, &[
        b"Transfer-Encoding: chUnked\r\n", b"Transfer-Encoding:chunked\r\n", b"Transfer-Encoding: \tchunked\r\n",
        b"Transfer-Encoding:  chunked\r\n", b"Transfer-Encoding: chunked \r\n", b"TRANSFER-ENCODING: CHUNKED\t\r\n",
    ], Rewritten("Transfer-Encoding: chunked\r\n")),
    ("9112 6.1", "a coding in HTTP/1.0, which has none", At::Request, &[
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ], Refused(CodingInOldVersion)),
    ("9112 6.1", "the same in a response", At::Response, &[
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ], Refused(CodingInOldVersion)),

    // ---- lengths ----
    ("9110 8.6", "a length that is not digits alone", At::Fields, &[
        b"Content-Length: \r\n", b"Content-Length: +5\r\n", b"Content-Length: -5\r\n", b"Content-Length: -0\r\n",
        b"Content-Length: 0x5\r\n", b"Content-Length: 5a\r\n", b"Content-Length: 5 5\r\n", b"Content-Length: 5;\r\n",
        b"Content-Length: 5.0\r\n", b"Content-Length: 1e1\r\n", b"Content-Length: \"5\"\r\n",
        b"Content-Length: \xd9\xa5\r\n", b"Content-Length: five\r\n", b"Content-Length: 5_0\r\n",
    ], Refused(BadContentLength)),
    ("9112 6.3 item 5", "a list of lengths, also of equal ones", At::Fields, &[
        b"Content-Length: 5,5\r\n", b"Content-Length: 5, 5\r\n", b"Content-Length: 5, 6\r\n",
    ], Refused(BadContentLength)),
    ("9110 8.6", "a length beyond 63 bits, which would wrap or turn negative", At::Fields, &[
        b"Content-Length: 9223372036854775808\r\n", b"Content-Length: 18446744073709551616\r\n",
        b"Content-Length: 18446744073709551621\r\n", b"Content-Length: 340282366920938463463374607431768211461\r\n",
    ], Refused(BadContentLength)),
    ("9110 8.6", "more than 19 digits, whatever they come to", At::Fields, &[
        b"Content-Length: 00000000000000000005\r\n",
    ], Refused(BadContentLength)),
    ("9110 8.6", "leading zeros, which some read as octal, are left out", At::Fields, &[
        b"Content-Length: 010\r\n", b"Content-Length: 0000000000000000010\r\n",
    ], Rewritten("Content-Length: 10\r\n")),
    ("9110 8.6", "a length past 32 bits counts whole", At::Fields, &[
        b"Content-Length: 4294967301\r\n",
    ], Passed(Fixed(4_294_967_301))),
    ("9110 8.6", "the longest length", At::Fields, &[
        b"Content-Length: 9223372036854775807\r\n",
    ], Passed(Fixed(i64::MAX as u64))),
    ("9110 8.6", "a length", At::Fields, &[b"Content-Length: 5\r\n"], Passed(Fixed(5))),
    ("9112 6.3 item 7", "a request without a length has no body, whatever its method", At::Request, &[
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /evil HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\n\r\nGET /evil HTTP/1.1\r\n\r\n",
        b"DELETE / HTTP/1.1\r\nHost: a\r\n\r\nGET /evil HTTP/1.1\r\n\r\n",
        b"PURGE / HTTP/1.1\r\nHost: a\r\n\r\nGET /evil HTTP/1.1\r\n\r\n",
        b"get / HTTP/1.1\r\nHost: a\r\n\r\nGET /evil HTTP/1.1\r\n\r\n",
    ], Passed(Empty)),
    ("9112 6.3 item 6", "GET with a length has a body: one reading", At::Request, &[
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    ], Passed(Fixed(5))),
    ("9110 9.3.1", "but not in HTTP/1.0, where readers expect none", At::Request, &[
        b"GET / HTTP/1.0\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        b"DELETE / HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello",
        b"HEAD / HTTP/1.0\r\nContent-Length: 1\r\n\r\nh",
    ], Refused(BodyInOldVersion)),
    ("9112 6.3 item 6", "where a POST may have one", At::Request, &[
        b"POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    ], Rewritten("POST / HTTP/1.1\r\n")),
    ("9112 6.3 item 8", "a response without a length ends with its connection", At::Response, &[
        b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 404 Not Found\r\nX: y\r\n\r\n",
    ], Passed(UntilClose)),
    ("9112 6.3 item 1", "a response that has no body and announces one", At::Response, &[
        b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n",
    ], Refused(BodyForbidden)),
    ("9110 8.6", "a length of 0 that 1xx and 204 must not have is left out", At::Response, &[
        b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
    ], Without("Content-Length")),
    ("9112 6.3 item 1", "304 tells of the length of another response", At::Response, &[
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
    ], Passed(Empty)),

    // ---- field lines ----
    ("9112 5.1", "space before the colon", At::Fields, &[
        b"Transfer-Encoding : chunked\r\n", b"Transfer-Encoding\t: chunked\r\n", b"Content-Length : 5\r\n",
    ], Refused(BadFieldName)),
    ("9112 5.2", "obs-fold, and lines that begin with a space", At::Fields, &[
        b"Transfer-Encoding:\r\n chunked\r\n", b"X: y\r\n\tz\r\n", b"X: y\r\n Content-Length: 5\r\n",
        b" Content-Length: 5\r\n", b"X:\r\n \r\n",
    ], Refused(BadFieldName)),
    ("9112 2.2", "space between the first line and the first field", At::Request, &[
        b"POST / HTTP/1.1\r\n Host: a\r\n\r\n", b"POST / HTTP/1.1\r\n\tHost: a\r\n\r\n",
    ], Refused(BadFieldName)),
    ("9110 5.1", "names that are no tokens, and lines without a colon", At::Fields, &[
        b"Content-Length\0: 5\r\n", b"Content-Length\r: 5\r\n", b"Transfer\xe2\x80\x90Encoding: chunked\r\n",
        b": chunked\r\n", b"no colon\r\n", b"X: y\r\nno-colon\r\n", b"(X): y\r\n", b"X\x7f: y\r\n", b"\xffX: y\r\n",
    ], Refused(BadFieldName)),
    ("9110 5.1", "names that CGI and its heirs fold into those of framing", At::Fields, &[
        b"Transfer_Encoding: chunked\r\n", b"content_length: 5\r\n", b"Content_length: 0\r\n",
    ], Refused(BadFieldName)),
    ("9110 5.5", "NUL and other control characters in a value", At::Fields, &[
        b"X: a\0b\r\n", b"X: a\x01b\r\n", b"X: a\x08b\r\n", b"X: a\x0bb\r\n", b"X: a\x0cb\r\n", b"X: a\x1fb\r\n",
        b"X: a\x7fb\r\n", b"Transfer-Encoding: \x0bchunked\r\n", b"Transfer-Encoding: chunked\x0c\r\n",
        b"Transfer-Encoding: \0chunked\r\n",
    ], Refused(BadFieldValue)),
    ("9110 5.5", "a bare CR in a value", At::Fields, &[
        b"X: y\rContent-Length: 5\r\n", b"X: y\r\r\n", b"X: \ry\r\n",
    ], Refused(BadFieldValue)),
    ("9112 2.2", "a bare LF that ends a line, which readers may take", At::Fields, &[
        b"X: y\nContent-Length: 5\r\n", b"X:\nY: z\r\n", b"X: y\n", b"X:\n chunked\r\n", b"\n",
    ], RefusedFor(&[BadLineEnd, BadFieldName])),
    ("9112 2.2", "a bare CR or LF at the ends of a head", At::Request, &[
        b"GET / HTTP/1.1\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\n",
        b"GET / HTTP/1.1\n\n", b"GET / HTTP/1.1\rHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\rX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n",
    ], Refused(BadLineEnd)),
    ("9112 2.2", "the same in a response", At::Response, &[
        b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\n\r\n",
        b"HTTP/1.1 200\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n",
    ], Refused(BadLineEnd)),
    ("9110 5.5", "bytes above ASCII and tabs in other values are opaque", At::RequestFields, &[
        b"X: \xfc\xff\x80\r\n", b"X: a\tb\r\n", b"X: \r\n",
    ], Passed(Empty)),

    // ---- first lines ----
    ("9112 3", "request lines that two readers split differently", At::RequestLine, &[
        b"GET  / HTTP/1.1", b"GET /  HTTP/1.1", b" GET / HTTP/1.1", b"GET\t/ HTTP/1.1", b"GET /\tHTTP/1.1",
        b"GET /a b HTTP/1.1", b"GET / HTTP/1.1 x HTTP/1.1", b"GET /", b"GET", b"GET / ", b"GET / http/1.1",
        b"GET / XTTP/1.1", b"G(T / HTTP/1.1", b"/ HTTP/1.1", b"GET /\x7f HTTP/1.1", b"GET /\x01 HTTP/1.1",
        b"GET / HTTP/1.1 ", b"GET / HTTP/1.12", b"GET\x0b/ HTTP/1.1", b"\0GET / HTTP/1.1",
        b"GET /\0 HTTP/1.1", b"\xefGET / HTTP/1.1", b"GET /\xff HTTP/1.1", b"GET / HTTP/1.1\x0b",
    ], RefusedFor(&[BadRequestLine, BadLineEnd])),
    ("9110 2.5", "versions that are not ours: 505", At::RequestLine, &[
        b"GET / HTTP/2.0", b"GET / HTTP/0.9", b"GET / HTTP/1.2", b"GET / HTTP/1.", b"GET / HTTP/11", b"PRI * HTTP/2.0", b"GET / HTTP/3",
    ], Refused(UnsupportedVersion)),
    ("9112 2.2", "one empty line in front of a request is skipped", At::Request, &[
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ], Rewritten("GET / HTTP/1.1\r\nHost: a\r\n\r\n")),
    ("9112 2.2", "more of them, or of another kind", At::Request, &[
        b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ], RefusedFor(&[LeadingEmptyLines, BadLineEnd])),
    ("9112 2.2", "an empty line in front of a response", At::Response, &[
        b"\r\nHTTP/1.1 200 OK\r\n\r\n", b"\nHTTP/1.1 200 OK\r\n\r\n",
    ], Refused(LeadingEmptyLines)),
    ("9112 4", "status lines that two readers take differently", At::StatusLine, &[
        b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1  200 OK", b"HTTP/1.1 099 x", b"HTTP/1.1 000 x",
        b"HTTP/1.1 -20 x", b"HTTP/1.1", b"HTTP 200 OK", b"200 OK", b"http/1.1 200 OK", b"HTTP/1.1 2x0 OK",
        b"HTTP/1.1 200 a\0b", b"GET / HTTP/1.1", b"ICY 200 OK", b"HTTP/1.1\t200 OK", b"HTTP/1.1 200\tOK",
    ], Refused(BadStatusLine)),
    ("9112 4", "a reason may be missing or odd", At::StatusLine, &[
        b"HTTP/1.1 200", b"HTTP/1.1 200 ", b"HTTP/1.1 200 \xc3\xbc", b"HTTP/1.1 999 x y",
    ], Passed(UntilClose)),
    ("9112 2.3", "HTTP/1.0 goes on as our own version", At::StatusLine, &[
        b"HTTP/1.0 200 OK",
    ], Rewritten("HTTP/1.1 200 OK\r\n")),
    ("9110 2.5", "versions of a response that are not ours", At::StatusLine, &[
        b"HTTP/2.0 200 OK", b"HTTP/0.9 200 OK", b"HTTP/2 200",
    ], Refused(UnsupportedVersion)),

    // ---- where it goes ----
    ("9112 3.2", "no Host in HTTP/1.1", At::Request, &[
        b"GET / HTTP/1.1\r\n\r\n", b"GET http://a/ HTTP/1.1\r\n\r\n", b"CONNECT a:443 HTTP/1.1\r\n\r\n",
    ], Refused(MissingHost)),
    ("9112 3.2", "no Host in HTTP/1.0 goes on as an empty one, where nobody puts the service there", At::Request, &[
        b"GET / HTTP/1.0\r\n\r\n",
    ], Rewritten("GET / HTTP/1.1\r\nHost: \r\n")),
    ("9112 3.2", "several Hosts, also if they agree, also under an absolute target", At::Request, &[
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nhOST: b\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", b"GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ], Refused(RepeatedHost)),
    ("9112 3.2.2", "the authority of an absolute target wins over Host, which becomes it", At::Request, &[
        b"GET http://b:1/x?y HTTP/1.1\r\nHost: a\r\n\r\n",
    ], Rewritten("GET /x?y HTTP/1.1\r\nHost: b:1\r\n\r\n")),
    ("9112 3.2.4", "an absolute target without a path", At::Request, &[
        b"GET http://b HTTP/1.1\r\nHost: b\r\n\r\n",
    ], Rewritten("GET / HTTP/1.1\r\nHost: b\r\n\r\n")),
    ("9112 3.2.4", "and of OPTIONS: the whole server", At::Request, &[
        b"OPTIONS http://b HTTP/1.1\r\nHost: b\r\n\r\n",
    ], Rewritten("OPTIONS * HTTP/1.1\r\nHost: b\r\n\r\n")),
    ("9110 7.2", "hosts that two readers take apart differently", At::Host, &[
        b"", b"a b", b"a,b", b"a/b", b"a@b", b"user@a", b"a?b", b"a#b", b"a\\b", b"a:b", b"a:80:81", b"a:", b":80",
        b"a:65536", b"a:+80", b"a:000080", b"a:80 ;b", b"[::1", b"::1", b"[a]", b"[::1]x", b"[::1%25eth0]", b"a%2eb", b"*.a",
        b"b\xc3\xbcro", b"\"a\"", b"a\tb", b"a;b", b"a:4294967376",
    ], Refused(BadHost)),
    ("9110 7.2", "hosts", At::Host, &[
        b"a", b"a.b-c_d~e", b"A:80", b"127.0.0.1:8080", b"[::1]", b"[2001:db8::1]:443", b"a.",
    ], Passed(Empty)),
    ("9112 3.2", "targets in none of the four forms", At::Target, &[
        b"a", b"*", b"**", b"a:80", b"?x", b"/a#b", b"/b\xc3\xbcro", b"ftp://a/", b"http:/a", b"http:///", b"http://",
        b"http://u@a/", b"http://a?x", b"http://a:b/", b"\\", b"javascript:x", b"a://http://b/", b"http://a\\b/", b"http://a,b/",
    ], RefusedFor(&[BadTarget, BadHost])),
    ("9112 3.2.1", "targets", At::Target, &[
        b"/", b"//", b"/a?b=c://d", b"/%41", b"/a|b", b"/a\\b",
    ], Passed(Empty)),
    ("9112 3.2.4", "`*` is for OPTIONS alone", At::Request, &[
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    ], Passed(Empty)),
    ("9112 3.2.3", "CONNECT in another form than host and port, and this form with another method", At::RequestLine, &[
        b"CONNECT a HTTP/1.1", b"CONNECT a:0 HTTP/1.1", b"CONNECT / HTTP/1.1", b"CONNECT * HTTP/1.1",
        b"CONNECT http://a:443/ HTTP/1.1", b"CONNECT http://a:443 HTTP/1.1", b"CONNECT a:443/ HTTP/1.1",
        b"CONNECT a:443?x HTTP/1.1", b"CONNECT //a:443 HTTP/1.1", b"CONNECT u@a:443 HTTP/1.1", b"GET a:443 HTTP/1.1",
        b"CONNECT a:443#x HTTP/1.1",
    ], RefusedFor(&[BadTarget, BadHost])),
    ("9110 9.3.6", "CONNECT that announces a body: what follows is the tunnel's", At::Request, &[
        b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nContent-Length: 0\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nContent-Length: 5\r\n\r\nhello",
        b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ], Refused(ConnectWithBody)),
    ("9112 3.2.3", "CONNECT, whose Host becomes its target", At::Request, &[
        b"CONNECT [::1]:443 HTTP/1.1\r\nHost: other\r\n\r\n",
    ], Rewritten("CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n")),

    // ---- one connection ----
    ("9110 7.6.1", "Connection that is no list of tokens", At::Fields, &[
        b"Connection: close;q=1\r\n", b"Connection: \"close\"\r\n", b"Connection: a b\r\n",
    ], Refused(BadConnection)),
    ("9110 7.6.1", "more options than anybody needs", At::Fields, &[
        b"Connection: a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a\r\n",
    ], Refused(TooManyConnectionOptions)),
    ("9110 7.6.1", "Connection that names what all recipients need takes nothing away", At::RequestFields, &[
        b"Connection: content-length\r\nContent-Length: 0010\r\n",
    ], Rewritten("Content-Length: 10\r\n")),
    ("9110 7.6.1", "and of framing, Host and who asks neither", At::RequestFields, &[
        b"Connection: transfer-encoding, authorization, host, x-forwarded-for, x\r\nAuthorization: b\r\nX: y\r\n\
          Transfer-Encoding: chunked\r\n",
    ], Rewritten("Host: a\r\nAuthorization: b\r\nTransfer-Encoding: chunked\r\n\r\n")),
    ("9110 7.8", "Upgrade and what goes with h2c are for this connection", At::RequestFields, &[
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    ], Rewritten("Host: a\r\n\r\n")),
    ("9110 10.1.4", "TE goes on as our own, and only for trailers", At::RequestFields, &[
        b"TE: trailers\r\nConnection: te\r\n",
    ], Rewritten("TE: trailers\r\nConnection: TE\r\n")),
    ("9110 10.1.4", "other codings are an offer that is not kept", At::RequestFields, &[
        b"TE: gzip, trailers\r\nConnection: te\r\n", b"TE: chunked\r\n",
    ], Without("TE")),
    ("9110 10.1.1", "an expectation that nobody knows: 417", At::RequestFields, &[
        b"Expect: 200-ok\r\n", b"Expect: 100-continue, x\r\n", b"Expect: 100-continue;x\r\n",
    ], Refused(UnknownExpectation)),
    ("9110 10.1.1", "HTTP/1.0 has no expectations", At::Request, &[
        b"POST / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n",
    ], Without("Expect")),

    // ---- chunks ----
    ("9112 7.1", "chunk sizes that are not hexadecimal digits alone", At::Chunks, &[
        b"\r\nhello\r\n0\r\n\r\n", b"0x5\r\nhello\r\n0\r\n\r\n", b"+5\r\nhello\r\n0\r\n\r\n", b"-5\r\nhello\r\n0\r\n\r\n",
        b"g\r\nhello\r\n0\r\n\r\n", b"5_\r\nhello\r\n0\r\n\r\n", b"5\0\r\nhello\r\n0\r\n\r\n", b"\t5\r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n", b"5,5\r\nhello\r\n0\r\n\r\n", b"5.\r\nhello\r\n0\r\n\r\n", b"\xef\xbc\x95\r\nhello\r\n0\r\n\r\n",
        b"5\x0b\r\nhello\r\n0\r\n\r\n", b"5h\r\nhello\r\n0\r\n\r\n",
    ], Refused(BadChunkSize)),
    ("9112 7.1", "chunk sizes beyond 63 bits, which would wrap or turn negative", At::Chunks, &[
        b"10000000000000005\r\nhello\r\n0\r\n\r\n", b"8000000000000000\r\nhello\r\n0\r\n\r\n",
        b"FFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n", b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        b"100000000000000000000000000000005\r\nhello\r\n0\r\n\r\n",
    ], Refused(BadChunkSize)),
    ("9112 7.1", "more than 16 digits, whatever they come to", At::Chunks, &[
        b"00000000000000005\r\nhello\r\n0\r\n\r\n",
    ], Refused(BadChunkSize)),
    ("9112 7.1", "chunks", At::Chunks, &[
        b"5\r\nhello\r\n0\r\n\r\n", b"0000000000000005\r\nhello\r\n0000\r\n\r\n",
        b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", b"0\r\n\r\n",
    ], Passed(Chunked)),
    ("9112 7.1", "a chunk that is longer or shorter than its size, or ends without CRLF", At::Chunks, &[
        b"5\r\nhello\n0\r\n\r\n", b"5\r\nhello\r0\r\n\r\n", b"5\r\nhello0\r\n\r\n", b"5\r\nhello!\r\n0\r\n\r\n",
        b"5\r\nhell\r\n0\r\n\r\n", b"5\r\nhello\r\r\n0\r\n\r\n",
    ], Refused(BadChunkEnd)),
    ("9112 7.1", "a bare CR or LF in chunk framing (TERM.EXT and the like)", At::Chunks, &[
        b"5\nhello\r\n0\r\n\r\n", b"5\rhello\r\n0\r\n\r\n", b"5\r\rhello\r\n0\r\n\r\n", b"5;a\nhello\r\n0\r\n\r\n",
        b"5;a\rb\r\nhello\r\n0\r\n\r\n", b"5;\n\r\nhello\r\n0\r\n\r\n", b"0\n\r\n", b"0\r\n\n", b"0\r\n\rx", b"0\r\nX: y\n\r\n",
        b"0\r\nX: y\rz\r\n\r\n", b"0\r\nX: y\r\n\n", b"5;a=\"b\r\nhello\r\n0\r\n\r\n", b"5;a=\"b\\\r\nhello\r\n0\r\n\r\n",
        b"5;a=\"b\nc\"\r\nhello\r\n0\r\n\r\n",
    ], Refused(BadLineEnd)),
    ("9112 7.1.1", "chunk extensions that follow their grammar", At::Chunks, &[
        b"5;a\r\nhello\r\n0\r\n\r\n", b"5;a=b\r\nhello\r\n0\r\n\r\n", b"5;a=\"b;\\\"c\"\r\nhello\r\n0\r\n\r\n",
        b"5;a;b=c\r\nhello\r\n0\r\n\r\n", b"5 ; a = b\r\nhello\r\n0\r\n\r\n", b"5;a \r\nhello\r\n0\r\n\r\n",
        b"5;a=b\t;c\r\nhello\r\n0\r\n\r\n", b"5;a=\"\"\r\nhello\r\n0\r\n\r\n", b"5;a=\"\t \xc3\xbc\" ;b\r\nhello\r\n0\r\n\r\n",
    ], Passed(Chunked)),
    ("9112 7.1.1", "and those that do not", At::Chunks, &[
        b"5;\r\nhello\r\n0\r\n\r\n", b"5;;\r\nhello\r\n0\r\n\r\n", b"5;a=\r\nhello\r\n0\r\n\r\n", b"5;=b\r\nhello\r\n0\r\n\r\n",
        b"5;a b\r\nhello\r\n0\r\n\r\n", b"5;a=b c\r\nhello\r\n0\r\n\r\n", b"5;a=\"b\"c\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n", b"5;a=(b)\r\nhello\r\n0\r\n\r\n", b"5;\0\r\nhello\r\n0\r\n\r\n",
        b"5;a=\"\0\"\r\nhello\r\n0\r\n\r\n", b"5 x\r\nhello\r\n0\r\n\r\n",
    ], RefusedFor(&[BadChunkExtension, BadLineEnd])),
    ("9112 7.1.2", "trailers that are no fields", At::Chunks, &[
        b"0\r\nX : y\r\n\r\n", b"0\r\n X: y\r\n\r\n", b"0\r\nX: y\r\n z\r\n\r\n", b"0\r\n: y\r\n\r\n", b"0\r\nX: \0\r\n\r\n",
        b"0\r\nGET / HTTP/1.1\r\n\r\n", b"0\r\n\xffX: y\r\n\r\n", b"0\r\nX: \x0b\r\n\r\n",
    ], Refused(BadTrailer)),
    ("9112 7.1.2", "a trailer without a colon", At::Chunks, &[b"0\r\nX\r\n\r\n"], Refused(BadLineEnd)),
    ("9110 6.5.1", "trailers that would change framing, routing or access where somebody merges them into the head", At::Chunks, &[
        b"0\r\nX: y\r\nTransfer-Encoding: z\r\n\r\n", b"0\r\nX: y\r\ncontent-length: z\r\n\r\n", b"0\r\nHOST: z\r\n\r\n",
        b"0\r\nTrailer: z\r\n\r\n", b"0\r\nAuthorization: z\r\n\r\n", b"0\r\nCookie: z\r\n\r\n", b"0\r\nSet-Cookie: z\r\n\r\n",
        b"0\r\nX-Forwarded-For: z\r\n\r\n", b"0\r\nx-forwarded-client-cert-with-a-very-long-name: z\r\n\r\n",
        b"0\r\nForwarded: z\r\n\r\n", b"0\r\nVia: z\r\n\r\n", b"0\r\nIf-Match: z\r\n\r\n", b"0\r\nProxy-Authenticate: z\r\n\r\n",
        b"0\r\nConnection: z\r\n\r\n", b"0\r\nTE: z\r\n\r\n", b"0\r\nUpgrade: z\r\n\r\n", b"0\r\nStrict-Transport-Security: z\r\n\r\n",
    ], Refused(ForbiddenTrailer)),
    ("9110 6.5.1", "trailers", At::Chunks, &[
        b"0\r\nX: y\r\ngrpc-status: 0\r\nEmpty:\r\nU: \xc3\xbc\t\r\n\r\n", b"0\r\nHostess: z\r\nContent-Digest: z\r\n\r\n",
    ], Passed(Chunked)),
];

/// What was read and what is written for the next hop.
type Read = Result<(BodyLength, Vec<u8>), Refusal>;

fn request(bytes: &[u8]) -> Read {
    let mut head = RequestHead::default();
    match head.parse(bytes, &Limits::default())? {
        Parsed::Partial => panic!("the head is not complete: {}", bytes.escape_ascii()),
        Parsed::Complete => {
            read_body(head.framing(), &bytes[head.len()..])?;
            let mut joined = Joined { bytes, text: Vec::new() };
            head.write(bytes, &Edits::default(), &mut joined);
            Ok((head.framing(), joined.text))
        }
    }
}

fn response(method: Method, bytes: &[u8]) -> Read {
    let mut head = ResponseHead::default();
    match head.parse(bytes, &Limits::default())? {
        Parsed::Partial => panic!("the head is not complete: {}", bytes.escape_ascii()),
        Parsed::Complete => {
            read_body(head.framing(method), &bytes[head.len()..])?;
            let mut joined = Joined { bytes, text: Vec::new() };
            head.write(bytes, &Edits::default(), &mut joined);
            Ok((head.framing(method), joined.text))
        }
    }
}

fn read_body(length: BodyLength, bytes: &[u8]) -> Result<(), Refusal> {
    let scan = BodyScanner::new(length, &Limits::default()).scan(bytes)?;
    // Rows about heads alone end where a chunked body would begin.
    let is_whole = length != Chunked || bytes.is_empty() || scan.state == body::State::Done;
    assert!(is_whole, "the chunked body is complete: {}", bytes.escape_ascii());
    Ok(())
}

/// The messages in which a form is tried.
fn messages(at: At, form: &[u8]) -> Vec<(Direction, Vec<u8>)> {
    use Direction::{Back, Forth};
    let join = |direction, before: &str, after: &str| (direction, [before.as_bytes(), form, after.as_bytes()].concat());
    match at {
        At::Request => vec![join(Forth, "", "")],
        At::Response => vec![join(Back, "", "")],
        At::RequestLine => vec![join(Forth, "", "\r\nHost: a\r\n\r\n")],
        At::StatusLine => vec![join(Back, "", "\r\n\r\n")],
        At::Target => vec![join(Forth, "GET ", " HTTP/1.1\r\nHost: a\r\n\r\n")],
        At::Host => vec![join(Forth, "GET / HTTP/1.1\r\nHost: ", "\r\n\r\n")],
        At::RequestFields => vec![join(Forth, "POST / HTTP/1.1\r\nHost: a\r\n", "\r\n")],
        At::Fields => vec![
            join(Forth, "POST / HTTP/1.1\r\nHost: a\r\n", "\r\n"),
            join(Back, "HTTP/1.1 200 OK\r\nServer: a\r\n", "\r\n"),
        ],
        At::Chunks => vec![
            join(Forth, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", ""),
            join(Back, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", ""),
        ],
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Forth,
    Back,
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part))
}

/// What is wrong with what became of a message, if anything.
fn wrong(direction: Direction, message: &[u8], becomes: Becomes) -> Option<String> {
    let read = |message: &[u8]| match direction {
        Direction::Forth => request(message),
        Direction::Back => response(Method::Get, message),
    };
    let right = match (becomes, read(message)) {
        (Refused(expected), Err(refusal)) => refusal == expected,
        (RefusedFor(expected), Err(refusal)) => expected.contains(&refusal),
        // A response that announces nothing ends with its connection.
        (Passed(length), Ok((found, written))) => {
            message.starts_with(&written) && (found == length || (length, found) == (Empty, UntilClose))
        }
        (Rewritten(lines), Ok((_, written))) => {
            // What was written is read like any other message, and not written anew again.
            let is_stable = match read(&written) {
                Ok((_, again)) => again == written,
                // An empty Host stands for the one that HTTP/1.0 may leave out.
                Err(refusal) => refusal == BadHost && lines.ends_with("Host: \r\n"),
            };
            contains(&written, lines.as_bytes()) && written != message && is_stable
        }
        (Without(name), Ok((_, written))) => !contains(&written, format!("\r\n{name}:").as_bytes()),
        _ => false,
    };
    let found = || read(message).map(|(length, written)| (length, written.escape_ascii().to_string()));
    (!right).then(|| format!("{direction:?} {}\n  became {:?}", message.escape_ascii(), found()))
}

#[test]
fn every_row_becomes_what_the_table_says_in_every_direction() {
    let mut tried = 0;
    let mut all_wrong = Vec::new();
    for (rfc, what, at, forms, becomes) in TABLE {
        for (direction, message) in forms.iter().flat_map(|form| messages(*at, form)) {
            tried += 1;
            all_wrong.extend(wrong(direction, &message, *becomes).map(|wrong| format!("RFC {rfc}: {what}\n  {wrong}")));
        }
    }
    assert!(all_wrong.is_empty(), "{}", all_wrong.join("\n"));
    assert!(tried > 400, "only {tried} messages were tried");
}

#[test]
fn every_row_names_its_section_and_forms_of_its_own() {
    let mut seen = std::collections::HashSet::new();
    for (rfc, what, at, forms, _) in TABLE {
        let (document, section) = rfc.split_once(' ').expect("document and section");
        assert!(["9110", "9112"].contains(&document), "{rfc}");
        assert!(section.starts_with(|first: char| first.is_ascii_digit()), "{rfc}");
        assert!(!what.is_empty() && !forms.is_empty(), "{rfc}");
        for form in *forms {
            assert!(seen.insert((format!("{at:?}"), *form)), "{} stands there twice", form.escape_ascii());
        }
    }
}

#[test]
fn every_control_character_in_a_value_is_refused_in_both_directions() {
    for byte in (0..32).chain([127]).filter(|byte| !b"\t\r\n".contains(byte)) {
        for (direction, message) in messages(At::Fields, &[b"X: a", &[byte][..], b"b\r\n"].concat()) {
            let read = match direction {
                Direction::Forth => request(&message),
                Direction::Back => response(Method::Get, &message),
            };
            assert_eq!(read, Err(BadFieldValue), "{byte:#x}");
        }
    }
}

/// RFC 9112 section 6.3 item 1: what was asked decides too.
#[test]
fn a_response_to_head_has_no_body_whatever_it_announces() {
    for fields in ["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n", ""] {
        let message = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
        assert_eq!(response(Method::Head, message.as_bytes()).map(|(length, _)| length), Ok(Empty), "{fields}");
    }
    // Item 2: and so has one that makes a tunnel.
    let tunnel = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(response(Method::Connect, tunnel).map(|(length, _)| length), Ok(Empty));
    let refused = b"HTTP/1.1 407 No\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(response(Method::Connect, refused).map(|(length, _)| length), Ok(Fixed(5)));
}

/// RFC 9112 section 7.1: sizes at which a 32-bit reader would wrap count whole.
#[test]
fn a_chunk_past_32_bits_is_as_long_as_it_says() {
    let mut body = BodyScanner::new(Chunked, &Limits::default());
    let scan = body.scan(b"100000005\r\nhello\r\n0\r\n\r\n").expect("a size");
    assert_eq!((scan.state, scan.consumed), (body::State::More, 23));
    assert_eq!(body.unframed_bytes(), 0x1_0000_0005 - 12);
    let mut body = BodyScanner::new(Chunked, &Limits::default());
    body.scan(b"7fffffffffffffff\r\n").expect("the longest size");
    assert_eq!(body.unframed_bytes(), i64::MAX as u64);
}

/// RFC 9110 section 15.5.15, RFC 6585 section 5: what has no end is refused when it is longer than allowed, and nobody
/// waits for the rest. 100 MiB are offered in pieces, of which only the allowed part is ever kept.
#[test]
fn what_has_no_end_is_refused_at_its_limit() {
    let limits = Limits::default();
    let check = |start: &str, filler: &str, expected: Refusal, most: usize| {
        let mut bytes = start.as_bytes().to_vec();
        let mut head = RequestHead::default();
        let offered = 100 << 20;
        let mut sent = 0;
        while sent < offered {
            bytes.extend_from_slice(filler.repeat(64).as_bytes());
            sent += filler.len() * 64;
            match head.parse(&bytes, &limits) {
                Ok(Parsed::Partial) => {
                    assert!(bytes.len() <= most, "{start}: nothing is said after {} bytes", bytes.len())
                }
                Ok(Parsed::Complete) => panic!("{start}: it has no end"),
                Err(refusal) => return assert_eq!(refusal, expected, "{start}"),
            }
        }
        panic!("{start}: all of it was taken");
    };
    let most = limits.max_head_bytes + 64 * 16;
    check("GET /", "aaaaaaaaaaaaaaaa", TargetTooLong, most);
    check("GET / HTTP/1.1\r\nHost: a\r\nX: ", "aaaaaaaaaaaaaaaa", HeadTooLarge, most);
    check("GET / HTTP/1.1\r\nHost: a\r\n", "X: y\r\n", TooManyFields, most);
    check("GET / HTTP/1.1\r\nHost: a\r\n", "aaaaaaaaaaaaaaaa", HeadTooLarge, most);
    let endless = |start: &str, filler: &str| {
        let mut body = BodyScanner::new(Chunked, &limits);
        let filler = filler.repeat(1 << 16);
        let once = body.scan(start.as_bytes()).and_then(|_| body.scan(filler.as_bytes()));
        once.map(|scan| scan.state)
    };
    assert_eq!(endless("5;", "a"), Err(ChunkLineTooLong));
    assert_eq!(endless("5;a=\"", "b"), Err(ChunkLineTooLong));
    assert_eq!(endless("0\r\nX: ", "a"), Err(TrailersTooLarge));
    assert_eq!(endless("0\r\n", "X: y\r\n"), Err(TrailersTooLarge));
}
