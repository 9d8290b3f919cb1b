//! The output of a connection: small frames gathered in one buffer, large parts of bodies without a copy.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// From this size on a part is queued without a copy; a smaller one is copied faster than it is queued.
const MIN_ZERO_COPY: usize = 4 << 10;
/// How many bytes may be queued before bodies wait.
const HIGH_WATERMARK: usize = 512 << 10;
/// How much capacity the buffer keeps while it is empty.
const MAX_IDLE_CAPACITY: usize = 64 << 10;

/// Encoded frames that are not written yet, in order.
#[derive(Debug, Default)]
pub(crate) struct Output {
    parts: VecDeque<Bytes>,
    /// The length of all `parts`.
    len: usize,
    /// Frames after them, to which the next ones are appended.
    pub(crate) tail: BytesMut,
}

impl Output {
    pub(crate) fn len(&self) -> usize {
        self.len + self.tail.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells whether bodies may be appended.
    pub(crate) fn has_room(&self) -> bool {
        self.len() < HIGH_WATERMARK
    }

    /// Tells whether nothing may be read from the peer before some of it is written.
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= 2 * HIGH_WATERMARK
    }

    /// Appends a part of a body.
    pub(crate) fn push(&mut self, part: Bytes) {
        if part.len() < MIN_ZERO_COPY {
            return self.tail.extend_from_slice(&part);
        }
        if !self.tail.is_empty() {
            let sealed = self.tail.split().freeze();
            self.push_part(sealed);
        }
        self.push_part(part);
    }

    /// Reclaims the capacity of the buffer, or frees it if there is too much, once everything is written.
    pub(crate) fn clear(&mut self) {
        // Reclaiming is also asking how much room there is in all.
        if self.tail.try_reclaim(MAX_IDLE_CAPACITY + 1) {
            self.tail = BytesMut::new();
        }
    }

    fn push_part(&mut self, part: Bytes) {
        self.len += part.len();
        self.parts.push_back(part);
    }
}

impl Buf for Output {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        self.parts.front().map_or(&self.tail[..], |part| part)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let chunks = self.parts.iter().map(|part| &part[..]).chain([&self.tail[..]]);
        slices.iter_mut().zip(chunks).map(|(slice, chunk)| *slice = IoSlice::new(chunk)).count()
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(part) = self.parts.front_mut() {
            let whole = part.len().min(written);
            self.len -= whole;
            written -= whole;
            if whole < part.len() {
                return part.advance(whole);
            }
            self.parts.pop_front();
        }
        self.tail.advance(written);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_in_order_whatever_the_pieces() {
        let parts = [
            &[b'a'; 10][..],
            &[b'b'; MIN_ZERO_COPY],
            &[b'c'; MIN_ZERO_COPY],
            b"d",
            &[b'e'; 2 * MIN_ZERO_COPY],
            b"f",
        ];
        for step in [1, 9, 10, MIN_ZERO_COPY - 1, MIN_ZERO_COPY, MIN_ZERO_COPY + 11, 100_000] {
            let mut output = Output::default();
            for part in parts {
                output.push(Bytes::copy_from_slice(part));
            }
            let mut written = Vec::new();
            while !output.is_empty() {
                let mut slices = [IoSlice::new(&[]); 16];
                let count = output.chunks_vectored(&mut slices);
                let all: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                assert_eq!(all.len(), output.remaining());
                assert!(all.starts_with(output.chunk()) && !output.chunk().is_empty());
                written.extend_from_slice(&all[..step.min(all.len())]);
                output.advance(step.min(all.len()));
            }
            assert_eq!(written, parts.concat(), "{step} bytes at a time");
        }
    }

    #[test]
    fn a_large_part_is_not_copied() {
        let part = Bytes::from(vec![0; MIN_ZERO_COPY]);
        let mut output = Output::default();
        output.push(Bytes::from_static(b"head"));
        output.push(part.clone());
        output.advance(4);
        assert_eq!(output.chunk().as_ptr(), part.as_ptr());
    }
}
