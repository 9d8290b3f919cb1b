//! What a fuzzed peer does: frames that are valid up to what the input changes, and raw bytes.

/// Reads the input as a script.
pub struct Script<'a>(pub &'a [u8]);

impl Script<'_> {
    /// The next byte; `None` at the end.
    pub fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let (now, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        now.to_vec()
    }

    /// Bytes that the peer sends for this operation. `stream` is the highest one that it has opened or was
    /// asked on.
    pub fn frames(&mut self, operation: u8, stream: &mut u32, head: &[u8]) -> Vec<u8> {
        let parameter = self.byte().unwrap_or_default();
        // Mostly one of the last streams.
        let known = stream.saturating_sub(2 * u32::from(parameter % 4));
        match operation % 12 {
            0 => {
                *stream += 2;
                frame(1, 4 | (parameter & 1), *stream, head)
            }
            1 => frame(0, parameter & 1, known, &vec![parameter; usize::from(parameter) * 64]),
            // A gRPC prefix that claims a size.
            2 => frame(0, 0, known, &[0, 0, parameter, 0, 0]),
            3 => frame(3, 0, known, &[0, 0, 0, parameter]),
            4 => frame(4, 0, 0, &[0, 4, 0, parameter, parameter, 0]),
            5 => frame(8, 0, if parameter < 32 { 0 } else { known }, &[0, parameter >> 4, parameter, 1]),
            6 => frame(6, parameter & 1, 0, &[parameter; 8]),
            7 => frame(7, 0, 0, &[0, 0, 0, parameter, 0, 0, 0, parameter & 15, b'x']),
            // A header block of the input, in one or two frames.
            8 => {
                let block = self.bytes(usize::from(parameter));
                let (first, second) = block.split_at(block.len() / 2);
                [frame(1, parameter & 1, known, first), frame(9, 4, known, second)].concat()
            }
            9 => frame(1, 5, known, b"\x00\x0bgrpc-status\x010"),
            10 => {
                let kind = self.byte().unwrap_or_default();
                let payload = self.bytes(usize::from(parameter));
                frame(kind % 11, parameter, known, &payload)
            }
            _ => self.bytes(usize::from(parameter)),
        }
    }
}

/// A frame as it stands on the wire.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}
