//! What a head in HTTP/2 must be like, beyond what its library sees to (RFC 9113 section 8).

use crate::authority;
use crate::head::Method;
use crate::http1::target::find_query;
use crate::refusal::Refusal;
use crate::words;

/// What a client says first that speaks HTTP/2 (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Whether these first bytes of a connection can only be HTTP/2: all of the preface that is there, and enough of it that no
/// request of HTTP/1 begins so.
pub fn begins_preface(bytes: &[u8]) -> bool {
    const ENOUGH: usize = b"PRI * HTTP/2".len();
    bytes.len() >= ENOUGH && (bytes.starts_with(PREFACE) || PREFACE.starts_with(bytes))
}

/// Checks `:path` and tells where its query begins, or its length. As strict as for HTTP/1, because the next hop may get it in
/// a request line (RFC 9113 section 8.3.1).
///
/// # Errors
/// [`Refusal::BadTarget`].
pub fn check_path(path: &[u8], method: Method) -> Result<usize, Refusal> {
    if !words::all_graphic(path) {
        return Err(Refusal::BadTarget);
    }
    let query = find_query(path)?;
    match path {
        [b'/', ..] => Ok(query),
        b"*" if method == Method::Options => Ok(query),
        _ => Err(Refusal::BadTarget),
    }
}

/// Checks `:authority` and Host, which must not contradict each other: one of them routes, the other may be what the next hop
/// believes (RFC 9113 section 8.3.1).
///
/// # Errors
/// [`Refusal::BadHost`], [`Refusal::MissingHost`] if there is neither.
pub fn check_authority<'a>(authority: Option<&'a [u8]>, host: Option<&'a [u8]>) -> Result<&'a [u8], Refusal> {
    let chosen = match (authority, host) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => return Err(Refusal::BadHost),
        (Some(chosen), _) | (None, Some(chosen)) => chosen,
        (None, None) => return Err(Refusal::MissingHost),
    };
    authority::parse(chosen)?;
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_path_that_fits_a_request_line_is_taken() {
        let check = |path: &str, method, expected: Result<usize, Refusal>| {
            assert_eq!(check_path(path.as_bytes(), method), expected, "{path:?}");
        };
        check("/", Method::Get, Ok(1));
        check("/a/b?c=d?e", Method::Get, Ok(4));
        check("*", Method::Options, Ok(1));
        for path in [
            "",
            "*",
            "a",
            "?a",
            "/a b",
            "/a\tb",
            "/\r\nx: y",
            "/a#b",
            "/a?b#c",
            "/\u{e9}",
            "/\0",
            "http://h/a",
            "/\x7f",
        ] {
            check(path, Method::Get, Err(Refusal::BadTarget));
        }
    }

    #[test]
    fn authority_and_host_must_agree() {
        let check = |authority: Option<&str>, host: Option<&str>, expected: Result<&str, Refusal>| {
            let found = check_authority(authority.map(str::as_bytes), host.map(str::as_bytes));
            assert_eq!(found, expected.map(str::as_bytes), "{authority:?} {host:?}");
        };
        check(Some("shop:80"), None, Ok("shop:80"));
        check(None, Some("shop"), Ok("shop"));
        check(Some("Shop"), Some("shop"), Ok("Shop"));
        check(Some("shop"), Some("bank"), Err(Refusal::BadHost));
        check(Some("shop"), Some("shop:80"), Err(Refusal::BadHost));
        check(Some("me@shop"), None, Err(Refusal::BadHost));
        check(Some(""), None, Err(Refusal::BadHost));
        check(None, None, Err(Refusal::MissingHost));
    }

    #[test]
    fn the_preface_is_known_before_it_is_whole() {
        for length in 0..PREFACE.len() {
            assert_eq!(begins_preface(&PREFACE[..length]), length >= 12, "{length}");
        }
        assert!(begins_preface(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0"));
        assert!(!begins_preface(b"PRI * HTTP/2.0\r\n\r\nXX"));
        assert!(!begins_preface(b"GET / HTTP/1.1\r\n"));
    }
}
