//! The known word that somebody most likely meant.

use crate::config::SECTIONS;
use crate::error::Hint;
use crate::reader::Keys;

/// What other products call things, with our word. Only used where the word is unknown and ours is allowed there.
const FOREIGN_WORDS: [(&str, &str); 35] = [
    ("timeout", "request_timeout"),
    ("timeout", "connect_timeout"),
    ("address", "bind"),
    ("listen", "bind"),
    ("port", "bind"),
    ("upstream", "service"),
    ("cluster", "service"),
    ("backend", "service"),
    ("backends", "endpoints"),
    ("target", "to"),
    ("targets", "to"),
    ("destination", "to"),
    ("destinations", "to"),
    ("backendRefs", "to"),
    ("frontend", "listener"),
    ("gateway", "listener"),
    ("server", "endpoints"),
    ("servers", "endpoints"),
    ("addresses", "endpoints"),
    ("hostnames", "hosts"),
    ("domains", "hosts"),
    ("matches", "match"),
    ("principals", "from"),
    ("source", "from"),
    ("certificates", "tls"),
    ("cert", "certificate"),
    ("chain", "certificate"),
    ("private_key", "key"),
    ("lb_policy", "balance"),
    ("load_balancing", "balance"),
    ("threads", "workers"),
    ("concurrency", "workers"),
    ("affinity", "pin"),
    ("authorization", "policy"),
    ("prefix", "path_prefix"),
];

/// What would be right instead of the unknown key `written`.
pub(crate) fn key(written: &str, keys: &Keys) -> Hint {
    let foreign = FOREIGN_WORDS.iter().find(|(theirs, ours)| *theirs == written && keys.names.contains(ours));
    if let Some((_, ours)) = foreign {
        return Hint::Nearest((*ours).to_owned());
    }
    if let Some(word) = pick(written, keys.names.iter().copied()) {
        return Hint::Nearest(word.to_owned());
    }
    let inside = |section: &&&Keys| section.path.starts_with(keys.path) && !keys.path.is_empty();
    let having = || SECTIONS.iter().filter(|section| section.names.contains(&written));
    if let Some(section) = having().find(inside).or_else(|| having().next()) {
        return Hint::Elsewhere(section.header);
    }
    Hint::OneOf(keys.names.iter().map(|name| (*name).to_owned()).collect())
}

/// The word that was meant, else all there are.
pub(crate) fn or_all<'a>(written: &str, words: impl Iterator<Item = &'a str> + Clone) -> Hint {
    match pick(written, words.clone()) {
        Some(word) => Hint::Nearest(word.to_owned()),
        None => Hint::OneOf(words.map(str::to_owned).collect()),
    }
}

/// The name that was meant, else nothing: there may be thousands.
pub(crate) fn name<'a>(written: &str, names: impl Iterator<Item = &'a str>) -> Hint {
    pick(written, names).map_or(Hint::Nothing, |name| Hint::Nearest(name.to_owned()))
}

/// The word nearest to `written`, if it is near enough to be meant: up to a third of it is wrong, or one of them contains
/// the other whole.
fn pick<'a>(written: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let simple = written.to_ascii_lowercase().replace('-', "_");
    let near = |word: &'a str| {
        let distance = distance(&simple, &word.to_ascii_lowercase().replace('-', "_"));
        let allowed = (simple.len().max(word.len()) / 3).max(1);
        let contained = simple.len() >= 4 && word.len() >= 4 && (word.contains(&simple) || simple.contains(word));
        (distance <= allowed || contained).then_some((distance, word))
    };
    words.filter_map(near).min_by_key(|(distance, _)| *distance).map(|(_, word)| word)
}

/// Longest word that is compared; a longer one is no slip of the finger.
const MAX_COMPARED_BYTES: usize = 64;

/// How many bytes to insert, delete, replace, or swap with their neighbour to make `a` from `b` (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().max(b.len()) > MAX_COMPARED_BYTES {
        return usize::MAX;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_slips_of_the_finger() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "ab", 2),
            ("bind", "bind", 0),
            ("bnid", "bind", 1),
            ("bin", "bind", 1),
            ("endpoint", "endpoints", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn a_word_is_suggested_only_if_it_is_near() {
        let words = ["name", "bind", "service", "idle_timeout"];
        for (written, expected) in [
            ("nmae", Some("name")),
            ("Bind", Some("bind")),
            ("services", Some("service")),
            ("idle-timeout", Some("idle_timeout")),
            ("timeout", Some("idle_timeout")),
            ("colour", None),
            ("x", None),
        ] {
            assert_eq!(pick(written, words.into_iter()), expected, "{written}");
        }
    }
}
