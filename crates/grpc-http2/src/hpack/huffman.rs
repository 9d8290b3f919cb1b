//! The Huffman code of HPACK.
//!
//! The code is canonical: codes of one length are consecutive and in the order of their symbols, so the
//! lengths say everything. Source: RFC 7541, appendix B.

use std::sync::LazyLock;

/// How many bits each byte has; the last one is the end of string.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];
const LONGEST: usize = 30;

/// For each length, the first code of it, and the symbols that have it, in order.
static CODES: LazyLock<[(u32, Vec<u8>); LONGEST + 1]> = LazyLock::new(|| {
    let mut next = 0;
    std::array::from_fn(|length| {
        next <<= 1;
        let symbols = (0..=u8::MAX).filter(|&symbol| usize::from(LENGTHS[usize::from(symbol)]) == length);
        let symbols: Vec<u8> = symbols.collect();
        let first = next;
        next += u32::try_from(symbols.len()).expect("at most 256");
        (first, symbols)
    })
});

/// By the next eight bits: the symbol and the length of its code, or length 0 if that is longer.
static SHORT: LazyLock<[(u8, u8); 256]> = LazyLock::new(|| {
    std::array::from_fn(|byte| {
        let code = |length: usize| u32::try_from(byte >> (8 - length)).unwrap_or_default();
        let found = (1..=8).find_map(|length| symbol(code(length), length).zip(u8::try_from(length).ok()));
        found.unwrap_or_default()
    })
});

/// Returns the symbol of a code of this length.
fn symbol(code: u32, length: usize) -> Option<u8> {
    let (first, symbols) = CODES.get(length)?;
    symbols.get(usize::try_from(code.checked_sub(*first)?).ok()?).copied()
}

/// Decodes a string; `None` if it is invalid.
pub(crate) fn decode(encoded: &[u8]) -> Option<Vec<u8>> {
    let short = &*SHORT;
    let mut decoded = Vec::with_capacity(encoded.len() * 8 / 5);
    let (words, bytes) = encoded.as_chunks();
    let words = words.iter().map(|&word| (u32::from_be_bytes(word), 32));
    let bytes = bytes.iter().map(|&byte| (u32::from(byte) << 24, 8));
    // The bits that are not decoded yet, from the left.
    let (mut bits, mut count) = (0_u64, 0);
    for (more, len) in words.chain(bytes) {
        bits |= u64::from(more) << (32 - count);
        count += len;
        while let Some((byte, length)) = first(short, bits).filter(|(_, length)| *length <= count) {
            decoded.push(byte);
            bits <<= length;
            count -= length;
        }
        // So many bits have a code, unless they are the end of string, which must not be there.
        if usize::from(count) >= LONGEST {
            return None;
        }
    }
    // What is left over is padding: less than a byte, all ones.
    (count < 8 && bits.leading_ones() == u32::from(count)).then_some(decoded)
}

/// Finds the code at the left; `None` if that is the end of string.
fn first(short: &[(u8, u8); 256], bits: u64) -> Option<(u8, u8)> {
    match short[(bits >> 56) as usize] {
        (_, 0) => (9..=LONGEST).find_map(|length| {
            let code = u32::try_from(bits >> (64 - length)).ok()?;
            symbol(code, length).zip(u8::try_from(length).ok())
        }),
        found => Some(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodes with the same table, for the way back.
    fn encode(text: &[u8]) -> Vec<u8> {
        let mut bits = Vec::new();
        for &byte in text {
            let length = usize::from(LENGTHS[usize::from(byte)]);
            let (first, symbols) = &CODES[length];
            let place = symbols.iter().position(|&symbol| symbol == byte).unwrap();
            let code = first + u32::try_from(place).unwrap();
            bits.extend((0..length).rev().map(|bit| code >> bit & 1));
        }
        bits.resize(bits.len().next_multiple_of(8), 1);
        bits.chunks(8)
            .map(|byte| byte.iter().fold(0, |byte, &bit| byte << 1 | u8::try_from(bit).unwrap()))
            .collect()
    }

    #[test]
    fn the_examples_of_the_rfc_are_read() {
        // RFC 7541, C.4.1 and C.6.1.
        let domain = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decode(&domain).unwrap(), b"www.example.com");
        assert_eq!(decode(&[0x64, 0x02]).unwrap(), b"302");
        assert_eq!(decode(&[]).unwrap(), b"");
    }

    #[test]
    fn every_byte_comes_back() {
        let all: Vec<u8> = (0..=u8::MAX).collect();
        assert_eq!(decode(&encode(&all)).unwrap(), all);
    }

    #[test]
    fn wrong_padding_and_the_end_of_string_are_refused() {
        assert_eq!(decode(&[0x64, 0x02, 0xff]), None, "a whole byte of padding");
        assert_eq!(decode(&[0b0001_1000]), None, "zeros as padding");
        assert_eq!(decode(&[0xff; 4]), None, "the end of string");
    }
}
