//! Looking for bytes in short texts, eight at once: paths and targets are too short for wider registers to pay.

const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);

/// Marks the bytes of a word that are `wanted`, in their highest bits. Others may be marked too, but only behind the first that
/// is (Mycroft's test for a zero byte).
#[inline]
pub(crate) fn equal(word: u64, wanted: u8) -> u64 {
    let zero = word ^ (ONES * u64::from(wanted));
    zero.wrapping_sub(ONES) & !zero
}

/// Marks the bytes of a word that are above ASCII.
#[inline]
pub(crate) fn above_ascii(word: u64) -> u64 {
    word
}

/// Whether all bytes are visible characters of ASCII.
#[inline]
pub(crate) fn all_graphic(text: &[u8]) -> bool {
    let not_graphic = |word: u64| {
        // Others may be marked too, but only behind the first that is.
        let below = word.wrapping_sub(ONES * 0x21) & !word;
        below | equal(word, 0x7f) | above_ascii(word)
    };
    find(text, not_graphic).is_none_or(|place| place >= text.len())
}

/// Where the first byte is that `marks` marks. Where it marks bytes that are 0, it finds one behind a text of less than 8.
#[inline]
pub(crate) fn find(text: &[u8], marks: impl Fn(u64) -> u64) -> Option<usize> {
    let first = |word: u64| {
        let marked = marks(word) & HIGH;
        (marked != 0).then(|| marked.trailing_zeros() as usize / 8)
    };
    let Some(last) = text.last_chunk::<8>() else {
        return first(text.iter().rfold(0, |word, byte| (word << 8) | u64::from(*byte)));
    };
    for (index, word) in text.as_chunks::<8>().0.iter().enumerate() {
        if let Some(found) = first(u64::from_le_bytes(*word)) {
            return Some(index * 8 + found);
        }
    }
    // What is left over, and the end of the word before it once more.
    first(u64::from_le_bytes(*last)).map(|found| text.len() - 8 + found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_wanted_byte_is_found_wherever_it_stands() {
        let wanted = |word| equal(word, b'?') | equal(word, b'#') | above_ascii(word);
        for length in 0..40 {
            let plain = vec![b'a'; length];
            assert_eq!(find(&plain, wanted), None);
            for (first, second) in (0..length).flat_map(|first| (first..length).map(move |second| (first, second))) {
                for one in [b'?', b'#', 0x80, 0xff] {
                    let mut text = plain.clone();
                    text[second] = b'#';
                    text[first] = one;
                    assert_eq!(find(&text, wanted), Some(first), "{text:?}");
                }
            }
            for byte in (0..0x80).filter(|byte| ![b'?', b'#'].contains(byte)) {
                assert_eq!(find(&vec![byte; length], wanted), None, "{byte}");
            }
        }
    }

    #[test]
    fn only_visible_characters_are_graphic() {
        for (length, place) in (1..20).flat_map(|length| (0..length).map(move |place| (length, place))) {
            for byte in 0..=u8::MAX {
                let mut text = vec![b'a'; length];
                text[place] = byte;
                assert_eq!(all_graphic(&text), byte.is_ascii_graphic(), "{byte} at {place} of {length}");
            }
        }
        assert!(all_graphic(b""));
    }
}
