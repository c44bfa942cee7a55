//! Users and groups of this machine by name.
//!
//! Read from `/etc/passwd` and `/etc/group` themselves: a directory service that is asked for a name may take its time, and
//! control has none. Accounts that are only there are written as numbers.

use std::fs;
use std::io;

/// Why a name is nobody's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not listed.
    #[error("there is no {kind} \"{name}\" in {file}; if a directory service knows it, write its number")]
    Unknown {
        /// `user` or `group`.
        kind: &'static str,
        /// As written.
        name: String,
        /// Where it was looked for.
        file: &'static str,
    },
    /// The list cannot be read.
    #[error("{file} cannot be read: {error}")]
    Unreadable {
        /// The list.
        file: &'static str,
        /// Why not.
        error: io::Error,
    },
}

/// The number of a user.
///
/// # Errors
/// If there is none of that name.
pub(super) fn user(name: &str) -> Result<u32, Error> {
    look_up("user", name, "/etc/passwd")
}

/// The number of a group.
///
/// # Errors
/// If there is none of that name.
pub(super) fn group(name: &str) -> Result<u32, Error> {
    look_up("group", name, "/etc/group")
}

fn look_up(kind: &'static str, name: &str, file: &'static str) -> Result<u32, Error> {
    // The highest one means "as it is" to the kernel.
    if let Some(number) = name.parse().ok().filter(|number| *number != u32::MAX) {
        return Ok(number);
    }
    let list = fs::read_to_string(file).map_err(|error| Error::Unreadable { file, error })?;
    find(&list, name).ok_or_else(|| Error::Unknown { kind, name: name.to_owned(), file })
}

/// Both lists have the name first and the number third (passwd(5), group(5)).
fn find(list: &str, name: &str) -> Option<u32> {
    list.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_found_by_name_and_by_number() {
        const LIST: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33::/:/x\nnone:x::1\n:x:7:7\n";
        assert_eq!(find(LIST, "root"), Some(0));
        assert_eq!(find(LIST, "web"), Some(33));
        for name in ["x", "broken", "none", "we", "33"] {
            assert_eq!(find(LIST, name), None, "{name}");
        }
        assert_eq!(user("root").unwrap(), 0);
        assert_eq!(group("4711").unwrap(), 4711);
        let message = user("nobody-of-that-name").unwrap_err().to_string();
        assert!(message.contains("no user \"nobody-of-that-name\" in /etc/passwd"), "{message}");
        assert!(group("4294967295").is_err());
    }
}
