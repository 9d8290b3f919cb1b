//! Header blocks: ours are written without any table, a peer's are read with all that the format has.
//!
//! What we write is literals and names of the static table; it needs no state that could differ from the peer's.
//! A peer's dynamic table is kept, because most fields of most replies are one byte then. Source: RFC 7541.

use std::collections::VecDeque;
use std::sync::LazyLock;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

mod huffman;

/// How large the peer's dynamic table may be: the default.
const TABLE: usize = 4096;
/// What a field costs in the table beside its bytes.
const FIELD: usize = 32;
/// The most that a decoded block may have, each field counted as in the table.
pub(super) const MAX_LIST: u32 = 1 << 18;

/// What a response block says.
#[derive(Debug, Default)]
pub(super) struct Block {
    /// `:status`; none in trailers.
    pub(super) status: Option<StatusCode>,
    pub(super) headers: HeaderMap,
    /// Whether a field in it is no field of a response. The block was read to its end all the same.
    pub(super) malformed: bool,
}

/// A field as it is kept.
#[derive(Debug, Clone)]
enum Field {
    Status(StatusCode),
    Header(HeaderName, HeaderValue),
    /// What has no place in a response; its name may be used again.
    Other(Bytes),
}

/// The blocks of one connection, read in order.
#[derive(Debug)]
pub(super) struct Decoder {
    /// The newest first, each with its size.
    table: VecDeque<(Field, usize)>,
    size: usize,
    limit: usize,
}

/// What is left of a block.
struct Reader<'a>(&'a [u8]);

impl Decoder {
    pub(super) fn new() -> Self {
        Self { table: VecDeque::new(), size: 0, limit: TABLE }
    }

    /// Reads a block; `None` if it is broken, after which no other can be read.
    pub(super) fn decode(&mut self, block: &[u8]) -> Option<Block> {
        let mut reader = Reader(block);
        let mut read = Block::default();
        let mut total = 0;
        while let Some(&first) = reader.0.first() {
            let (field, size) = match first {
                0x80.. => self.at(reader.number(7)?)?.clone(),
                0x40.. => {
                    let (field, size) = self.literal(&mut reader, 6)?;
                    self.insert(field.clone(), size);
                    (field, size)
                }
                0x20.. => {
                    self.limit = Some(reader.number(5)?).filter(|&limit| limit <= TABLE)?;
                    self.evict();
                    continue;
                }
                _ => self.literal(&mut reader, 4)?,
            };
            total += size;
            if total > MAX_LIST as usize {
                return None;
            }
            match field {
                Field::Status(status) => read.malformed |= read.status.replace(status).is_some(),
                Field::Header(name, value) => read.malformed |= read.headers.try_append(name, value).is_err(),
                Field::Other(_) => read.malformed = true,
            }
        }
        Some(read)
    }

    /// Reads a literal whose name's place has so many bits.
    fn literal(&self, reader: &mut Reader<'_>, bits: u32) -> Option<(Field, usize)> {
        let place = reader.number(bits)?;
        let name = if place == 0 { Field::named(&reader.string()?) } else { self.at(place)?.0.clone() };
        let value = reader.string()?;
        let size = name.name().len() + value.len() + FIELD;
        Some((name.with(value), size))
    }

    fn at(&self, place: usize) -> Option<&(Field, usize)> {
        let place = place.checked_sub(1)?;
        match place.checked_sub(STATIC.len()) {
            None => STATIC.get(place),
            Some(place) => self.table.get(place),
        }
    }

    fn insert(&mut self, field: Field, size: usize) {
        self.table.push_front((field, size));
        self.size += size;
        self.evict();
    }

    fn evict(&mut self) {
        while self.size > self.limit {
            let Some((_, size)) = self.table.pop_back() else { return };
            self.size -= size;
        }
    }
}

impl Field {
    fn named(name: &[u8]) -> Self {
        match HeaderName::from_lowercase(name) {
            Ok(name) => Self::Header(name, HeaderValue::from_static("")),
            Err(_) if name == b":status" => Self::Status(StatusCode::OK),
            Err(_) => Self::Other(Bytes::copy_from_slice(name)),
        }
    }

    /// Returns a field of the same name.
    fn with(self, value: Bytes) -> Self {
        let name = match self {
            Self::Status(_) => match StatusCode::from_bytes(&value) {
                Ok(status) => return Self::Status(status),
                Err(_) => Bytes::from_static(b":status"),
            },
            Self::Header(name, _) => match HeaderValue::from_maybe_shared(value) {
                Ok(value) => return Self::Header(name, value),
                Err(_) => Bytes::copy_from_slice(name.as_str().as_bytes()),
            },
            Self::Other(name) => name,
        };
        Self::Other(name)
    }

    fn name(&self) -> &[u8] {
        match self {
            Self::Status(_) => b":status",
            Self::Header(name, _) => name.as_str().as_bytes(),
            Self::Other(name) => name,
        }
    }
}

impl Reader<'_> {
    /// Reads a number whose first byte has so many bits for it.
    fn number(&mut self, bits: u32) -> Option<usize> {
        let (&first, mut rest) = self.0.split_first()?;
        let full = (1 << bits) - 1;
        let mut number = usize::from(first) & full;
        if number == full {
            // Four more bytes are 256 MiB, more than anything here may have.
            for shift in [0, 7, 14, 21, 28] {
                let (&byte, left) = rest.split_first().filter(|_| shift < 28)?;
                rest = left;
                number += usize::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
            }
        }
        self.0 = rest;
        Some(number)
    }

    fn string(&mut self) -> Option<Bytes> {
        let coded = *self.0.first()? >= 0x80;
        let len = self.number(7)?;
        let (string, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        if coded { huffman::decode(string).map(Bytes::from) } else { Some(Bytes::copy_from_slice(string)) }
    }
}

/// Begins the block of a request.
pub(super) fn put_request(out: &mut BytesMut, path: &str) {
    // `:method: POST`, `:scheme: http`, `:authority` and `:path`: places 3, 6, 1 and 4.
    out.put_slice(&[0x83, 0x86, 0x01]);
    put_string(out, b"localhost");
    out.put_u8(0x04);
    put_string(out, path.as_bytes());
}

/// Writes one field of a request.
pub(super) fn put_header(out: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    out.put_u8(if value.is_sensitive() { 0x10 } else { 0x00 });
    put_string(out, name.as_str().as_bytes());
    put_string(out, value.as_bytes());
}

fn put_string(out: &mut BytesMut, string: &[u8]) {
    let full = 0x7f;
    if let Some(len) = u8::try_from(string.len()).ok().filter(|&len| len < full) {
        out.put_u8(len);
    } else {
        out.put_u8(full);
        let mut rest = string.len() - usize::from(full);
        while let Some(more) = u8::try_from(rest & 0x7f).ok().filter(|_| rest > 0x7f) {
            out.put_u8(more | 0x80);
            rest >>= 7;
        }
        out.put_u8(u8::try_from(rest).unwrap_or(full));
    }
    out.put_slice(string);
}

/// The fields that both sides know. Source: RFC 7541, appendix A.
static STATIC: LazyLock<Vec<(Field, usize)>> = LazyLock::new(|| {
    let fields = [
        (":authority", ""),
        (":method", "GET"),
        (":method", "POST"),
        (":path", "/"),
        (":path", "/index.html"),
        (":scheme", "http"),
        (":scheme", "https"),
        (":status", "200"),
        (":status", "204"),
        (":status", "206"),
        (":status", "304"),
        (":status", "400"),
        (":status", "404"),
        (":status", "500"),
        ("accept-charset", ""),
        ("accept-encoding", "gzip, deflate"),
        ("accept-language", ""),
        ("accept-ranges", ""),
        ("accept", ""),
        ("access-control-allow-origin", ""),
        ("age", ""),
        ("allow", ""),
        ("authorization", ""),
        ("cache-control", ""),
        ("content-disposition", ""),
        ("content-encoding", ""),
        ("content-language", ""),
        ("content-length", ""),
        ("content-location", ""),
        ("content-range", ""),
        ("content-type", ""),
        ("cookie", ""),
        ("date", ""),
        ("etag", ""),
        ("expect", ""),
        ("expires", ""),
        ("from", ""),
        ("host", ""),
        ("if-match", ""),
        ("if-modified-since", ""),
        ("if-none-match", ""),
        ("if-range", ""),
        ("if-unmodified-since", ""),
        ("last-modified", ""),
        ("link", ""),
        ("location", ""),
        ("max-forwards", ""),
        ("proxy-authenticate", ""),
        ("proxy-authorization", ""),
        ("range", ""),
        ("referer", ""),
        ("refresh", ""),
        ("retry-after", ""),
        ("server", ""),
        ("set-cookie", ""),
        ("strict-transport-security", ""),
        ("transfer-encoding", ""),
        ("user-agent", ""),
        ("vary", ""),
        ("via", ""),
        ("www-authenticate", ""),
    ];
    let kept = |(name, value): (&str, &'static str)| {
        let field = Field::named(name.as_bytes()).with(Bytes::from_static(value.as_bytes()));
        (field, name.len() + value.len() + FIELD)
    };
    fields.into_iter().map(kept).collect()
});

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    /// RFC 7541, C.6: three responses, Huffman coded, in a table of 256 bytes, so that fields are evicted.
    #[test]
    fn the_responses_of_the_rfc_are_read_in_a_table_that_evicts() {
        let mut decoder = Decoder::new();
        decoder.limit = 256;
        let first = "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e \
                     919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3";
        let third = "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 \
                     821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed \
                     4ee5 b106 3d50 07";
        let block = decoder.decode(&hex(first)).unwrap();
        assert_eq!(block.status, Some(StatusCode::FOUND));
        assert_eq!(block.headers["cache-control"], "private");
        assert_eq!(block.headers["location"], "https://www.example.com");
        assert_eq!(decoder.size, 222);
        let block = decoder.decode(&hex("4883 640e ffc1 c0bf")).unwrap();
        assert_eq!(block.status, Some(StatusCode::TEMPORARY_REDIRECT));
        assert_eq!(block.headers["date"], "Mon, 21 Oct 2013 20:13:21 GMT");
        let block = decoder.decode(&hex(third)).unwrap();
        assert_eq!(block.status, Some(StatusCode::OK));
        assert_eq!(block.headers["content-encoding"], "gzip");
        assert_eq!(block.headers["set-cookie"], "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1");
        assert_eq!((decoder.size, decoder.table.len()), (215, 3));
        assert!(!block.malformed);
    }

    #[test]
    fn what_we_write_is_what_is_read() {
        for len in [0, 1, 126, 127, 128, 254, 255, 300, 20_000] {
            let (name, value) = (HeaderName::from_static("x-long"), "v".repeat(len));
            let mut out = BytesMut::new();
            put_header(&mut out, &name, &value.parse().unwrap());
            let block = Decoder::new().decode(&out).unwrap();
            assert_eq!(block.headers[&name], value, "{len} bytes");
        }
    }

    #[test]
    fn what_is_no_field_of_a_response_spoils_the_response_and_not_the_connection() {
        let mut decoder = Decoder::new();
        for wrong in ["83", "40 03 616263 02 0a0d", "40 03 412d42 00", "08 02 3939"] {
            assert!(decoder.decode(&hex(wrong)).unwrap().malformed, "{wrong}");
        }
        assert!(!decoder.decode(&hex("88")).unwrap().malformed);
    }

    #[test]
    fn a_broken_block_is_refused() {
        for wrong in [
            "80",
            "ff ff ff ff ff 0f",
            "ff ff ff ff ff ff ff ff",
            "be",
            "40 03 61",
            "3f e2 1f",
            "40 81 00 00",
        ] {
            assert!(Decoder::new().decode(&hex(wrong)).is_none(), "{wrong}");
        }
    }
}
