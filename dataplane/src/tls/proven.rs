//! Signatures in certificates, each checked once a worker. That a key has signed some bytes is a fact that no clock, bundle or
//! policy changes. All that these do change (times, usages, names, who is trusted) is checked anew for each chain, and so is
//! what a peer signs in its handshake.
#![deny(clippy::disallowed_methods)]

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::sync::LazyLock;

use aws_lc_rs::digest::{Context, SHA256};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};

/// Signatures that a worker knows, at most; the first ones are forgotten first. A peer has one or two, of 64 bytes here.
const MAX_KNOWN: usize = 1024;

/// All algorithms of the library, which look up what they have checked before.
pub(super) fn algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    static OWN: LazyLock<Vec<Remembering>> = LazyLock::new(|| {
        default_provider().signature_verification_algorithms.all.iter().map(|inner| Remembering(*inner)).collect()
    });
    static ALL: LazyLock<Vec<&'static dyn SignatureVerificationAlgorithm>> =
        LazyLock::new(|| OWN.iter().map(|own| own as &dyn SignatureVerificationAlgorithm).collect());
    &ALL
}

/// SHA-256 of key, message, signature and both algorithms.
type Fact = [u8; 32];

#[derive(Default)]
struct Known {
    facts: HashSet<Fact>,
    in_order: VecDeque<Fact>,
}

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::default();
}

impl Known {
    fn add(&mut self, fact: Fact) {
        if self.in_order.len() >= MAX_KNOWN
            && let Some(first) = self.in_order.pop_front()
        {
            self.facts.remove(&first);
        }
        if self.facts.insert(fact) {
            self.in_order.push_back(fact);
        }
    }
}

#[derive(Debug)]
struct Remembering(&'static dyn SignatureVerificationAlgorithm);

impl Remembering {
    fn fact(&self, parts: [&[u8]; 3]) -> Fact {
        let (key, signature) = (self.0.public_key_alg_id(), self.0.signature_alg_id());
        let mut context = Context::new(&SHA256);
        for part in [key.as_ref(), signature.as_ref()].into_iter().chain(parts) {
            // With its length, so that no two lists of parts read alike.
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

impl SignatureVerificationAlgorithm for Remembering {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let fact = self.fact([public_key, message, signature]);
        if KNOWN.with_borrow(|known| known.facts.contains(&fact)) {
            return Ok(());
        }
        self.0.verify_signature(public_key, message, signature)?;
        KNOWN.with_borrow_mut(|known| known.add(fact));
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.0.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.0.signature_alg_id()
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Takes a signature that repeats the message, and counts how often it is asked.
    #[derive(Debug)]
    struct Counting;

    thread_local! {
        static ASKED: Cell<usize> = const { Cell::new(0) };
    }

    impl SignatureVerificationAlgorithm for Counting {
        fn verify_signature(&self, _: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
            ASKED.set(ASKED.get() + 1);
            if message == signature { Ok(()) } else { Err(InvalidSignature) }
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            AlgorithmIdentifier::from_slice(b"key")
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            AlgorithmIdentifier::from_slice(b"signature")
        }
    }

    #[test]
    fn a_signature_is_checked_once_a_wrong_one_each_time_and_the_oldest_are_forgotten() {
        let own = Remembering(&Counting);
        let check = |key: &[u8], message: &[u8], signature: &[u8], good: bool, asked: usize| {
            let before = ASKED.get();
            assert_eq!(
                own.verify_signature(key, message, signature).is_ok(),
                good,
                "{key:?} {message:?} {signature:?}"
            );
            assert_eq!(ASKED.get() - before, asked, "{key:?} {message:?} {signature:?}");
        };
        check(b"k", b"one", b"one", true, 1);
        check(b"k", b"one", b"one", true, 0);
        // Any other byte, or a byte elsewhere, is another fact.
        check(b"l", b"one", b"one", true, 1);
        check(b"ko", b"ne", b"one", false, 1);
        check(b"k", b"one", b"two", false, 1);
        check(b"k", b"one", b"two", false, 1);
        for number in 0..MAX_KNOWN as u64 {
            check(b"k", &number.to_be_bytes(), &number.to_be_bytes(), true, 1);
        }
        check(b"k", &7_u64.to_be_bytes(), &7_u64.to_be_bytes(), true, 0);
        check(b"k", b"one", b"one", true, 1);
        KNOWN.with_borrow(|known| assert_eq!((known.facts.len(), known.in_order.len()), (MAX_KNOWN, MAX_KNOWN)));
    }
}
