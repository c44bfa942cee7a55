//! How both sides come to a secret (RFC 8446 section 4.2.7).

use std::fmt;
use std::str::FromStr;

use rustls::NamedGroup;
use rustls::crypto::SupportedKxGroup;
use rustls::crypto::aws_lc_rs::{ALL_KX_GROUPS, DEFAULT_KX_GROUPS};

/// Key exchange groups that a client offers, the preferred one first.
#[derive(Clone, Debug)]
pub struct Groups(pub(super) Vec<&'static dyn SupportedKxGroup>);

impl Default for Groups {
    fn default() -> Self {
        Self(DEFAULT_KX_GROUPS.to_vec())
    }
}

impl FromStr for Groups {
    type Err = String;

    /// Reads names between commas, in any case.
    fn from_str(text: &str) -> Result<Self, String> {
        let find = |name: &str| {
            let found = ALL_KX_GROUPS.iter().find(|group| label(group.name()).eq_ignore_ascii_case(name)).copied();
            found.ok_or_else(|| {
                let known: Vec<String> = ALL_KX_GROUPS.iter().map(|group| label(group.name())).collect();
                format!("`{name}` is no key exchange group; there are {}", known.join(", "))
            })
        };
        text.split(',').map(|name| find(name.trim())).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(|group| label(group.name())).collect();
        f.write_str(&names.join(","))
    }
}

/// The group's name in IANA's registry of supported groups.
pub(super) fn label(group: NamedGroup) -> String {
    format!("{group:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_named_in_any_case_and_kept_in_order() {
        let groups: Groups = "secp256r1, x25519".parse().unwrap();
        assert_eq!(groups.to_string(), "secp256r1,X25519");
        assert_eq!(Groups::default().0[0].name(), NamedGroup::X25519MLKEM768);
        for text in ["", "x25519,", "x448", "ffdhe2048x"] {
            assert!(text.parse::<Groups>().unwrap_err().contains("there are X25519"), "{text}");
        }
    }
}
