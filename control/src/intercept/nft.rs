//! Talking to the kernel's nf_tables through the command `nft`.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use super::{Rules, TABLE};

/// Where it is installed, for users whose path does not say so.
const PLACES: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];

/// What the rules of a table are known by.
const DIGEST: &str = "rules ";

/// Why the rules are not what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such command.
    #[error("`nft` is not there; install nftables (Debian: apt-get install nftables; Alpine: apk add nftables)")]
    NotInstalled,
    /// The process may not.
    #[error(
        "the kernel does not let us: it takes CAP_NET_ADMIN in this network namespace (run as root; in a container or pod, add the \
         capability NET_ADMIN). nft says: {0}"
    )]
    NotPermitted(String),
    /// The kernel cannot.
    #[error(
        "this kernel lacks what the rules need (CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT, CONFIG_NFT_REDIR, CONFIG_NFT_FIB_INET). nft says: {0}"
    )]
    NotInKernel(String),
    /// The kernel or the command does not take them.
    #[error("the rules are refused; nothing has changed. nft says:\n{0}")]
    Refused(String),
    /// The command cannot be run.
    #[error("`nft` cannot be run: {0}")]
    Io(#[from] io::Error),
}

impl Error {
    fn of(words: &str) -> Self {
        let words = words.trim();
        let line = words.lines().next().unwrap_or_default().to_owned();
        if words.contains("Operation not permitted") || words.contains("Permission denied") {
            return Self::NotPermitted(line);
        }
        let unknown = ["Operation not supported", "Protocol not supported", "Protocol family not supported"];
        if unknown.iter().any(|what| words.contains(what)) {
            return Self::NotInKernel(line);
        }
        Self::Refused(words.to_owned())
    }
}

/// What is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// What tells these rules from others.
    pub digest: String,
    /// Each rule that counts, with the connections that it has met.
    pub rules: Vec<(String, u64)>,
}

/// Puts rules into the place of those that are there. Whether anything had to be changed.
///
/// # Errors
/// See [`Error`]; then nothing has changed.
pub fn on(rules: &Rules) -> Result<bool, Error> {
    if show()?.is_some_and(|shown| shown.digest == rules.digest()) {
        return Ok(false);
    }
    nft(&["-f", "-"], &rules.to_string()).map(|_| true)
}

/// Takes our rules away, if there are any. Whether there were.
///
/// # Errors
/// See [`Error`].
pub fn off() -> Result<bool, Error> {
    let were = show()?.is_some();
    if were {
        nft(&["-f", "-"], &off_script())?;
    }
    Ok(were)
}

/// What [`off`] does.
pub fn off_script() -> String {
    format!("add table {TABLE}\ndelete table {TABLE}\n")
}

/// What is in the kernel, if anything is.
///
/// # Errors
/// See [`Error`].
pub fn show() -> Result<Option<Shown>, Error> {
    let mut words = vec!["list", "table"];
    words.extend(TABLE.split(' '));
    match nft(&words, "") {
        Ok(text) => Ok(Some(read(&text))),
        Err(Error::Refused(words)) if words.contains("No such file or directory") => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads what `nft list table` prints; our rules all have a counter and a comment.
fn read(text: &str) -> Shown {
    let mut shown = Shown { digest: String::new(), rules: Vec::new() };
    for line in text.lines() {
        let comment = line.split_once("comment \"").and_then(|(_, rest)| rest.split_once('"'));
        let packets = line.split_once("counter packets ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        let (Some((comment, _)), Some(packets)) = (comment, packets) else { continue };
        match comment.strip_prefix(DIGEST) {
            Some(digest) => digest.clone_into(&mut shown.digest),
            None => shown.rules.push((comment.to_owned(), packets)),
        }
    }
    shown
}

fn nft(words: &[&str], input: &str) -> Result<String, Error> {
    for place in PLACES {
        let mut command = Command::new(place);
        command.args(words).env("LC_ALL", "C").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        // A command that ends without reading says why on standard error. Scripts fit the pipe many times over, and nothing
        // is printed before they are read.
        let _ = child.stdin.take().map(|mut pipe| pipe.write_all(input.as_bytes()));
        let output = child.wait_with_output()?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        return if output.status.success() { Ok(text(&output.stdout)) } else { Err(Error::of(&text(&output.stderr))) };
    }
    Err(Error::NotInstalled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nft_says_is_told_with_what_helps() {
        let of = |words| Error::of(words).to_string();
        let told = of("Error: Could not process rule: Operation not permitted\nadd table inet ringmesh");
        assert!(told.contains("CAP_NET_ADMIN") && told.contains("Could not process rule"), "{told}");
        let told = of("netlink: Error: cache initialization failed: Protocol not supported\n");
        assert!(told.contains("CONFIG_NF_TABLES_INET"), "{told}");
        let told = of("/dev/stdin:3:1-4: Error: syntax error, unexpected string\ntabel\n^^^^^\n");
        assert!(told.contains("nothing has changed") && told.ends_with("^^^^^"), "{told}");
    }

    #[test]
    fn counters_are_read_with_their_words() {
        let text = "table inet ringmesh {\n\tchain about {\n\t\tcounter packets 0 bytes 0 comment \"rules 12ab\"\n\t}\n\
                    \t\tmeta mark 0x0000524d counter packets 7 bytes 420 accept comment \"outbound: left alone\"\n\
                    \t\tjump outbound_left_alone\n}\n";
        let expected = Shown { digest: "12ab".to_owned(), rules: vec![("outbound: left alone".to_owned(), 7)] };
        assert_eq!(read(text), expected);
    }
}
