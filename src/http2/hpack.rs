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

/// A field that is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pseudo {
    Status,
    Method,
    Path,
    Scheme,
    Authority,
}

/// What a block can be the header of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Response,
    /// Nothing but headers.
    Trailers,
}

/// What a block says.
#[derive(Debug, Default)]
pub(super) struct Block {
    pseudo: [Option<Bytes>; Pseudo::NAMES.len()],
    pub(super) headers: HeaderMap,
    /// Whether a field in it is none, or stands where none of its kind may. It was read to its end all the same.
    malformed: bool,
}

/// A field as it is kept.
#[derive(Debug, Clone)]
enum Field {
    Pseudo(Pseudo, Bytes),
    Header(HeaderName, HeaderValue),
    /// What has no place in gRPC; its name may be used again.
    Other(Bytes),
}

impl Pseudo {
    /// Their names, in their order.
    const NAMES: [&str; 5] = [":status", ":method", ":path", ":scheme", ":authority"];
    const ALL: [Self; 5] = [Self::Status, Self::Method, Self::Path, Self::Scheme, Self::Authority];

    fn named(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|pseudo| pseudo.name().as_bytes() == name)
    }

    fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

impl Block {
    /// Returns what it is the header of; `None` if it is malformed.
    pub(super) fn kind(&self) -> Option<Kind> {
        let [status, method, path, scheme, authority] = self.pseudo.each_ref().map(Option::is_some);
        match (status, method && path, method || path || scheme || authority) {
            _ if self.malformed => None,
            (true, _, false) => Some(Kind::Response),
            (false, true, _) => Some(Kind::Request),
            (false, _, false) => Some(Kind::Trailers),
            _ => None,
        }
    }

    /// Takes a field that is no header.
    pub(super) fn take(&mut self, pseudo: Pseudo) -> Bytes {
        self.pseudo[pseudo as usize].take().unwrap_or_default()
    }

    /// Returns the status of a response, if it is one.
    pub(super) fn status(&self) -> Option<StatusCode> {
        StatusCode::from_bytes(self.pseudo[Pseudo::Status as usize].as_ref()?).ok()
    }

    fn add(&mut self, field: Field) {
        self.malformed |= match field {
            // They all come before the first header.
            Field::Pseudo(pseudo, value) => {
                self.pseudo[pseudo as usize].replace(value).is_some() || !self.headers.is_empty()
            }
            Field::Header(name, value) => self.headers.try_append(name, value).is_err(),
            Field::Other(_) => true,
        };
    }
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
            // The rest is read for the table's sake.
            if total > MAX_LIST as usize {
                read.malformed = true;
            } else {
                read.add(field);
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
        if let Some(pseudo) = Pseudo::named(name) {
            return Self::Pseudo(pseudo, Bytes::new());
        }
        match HeaderName::from_lowercase(name) {
            Ok(name) if !is_of_connection(&name) => Self::Header(name, HeaderValue::from_static("")),
            _ => Self::Other(Bytes::copy_from_slice(name)),
        }
    }

    /// Returns a field of the same name.
    fn with(self, value: Bytes) -> Self {
        match self {
            Self::Pseudo(pseudo, _) => Self::Pseudo(pseudo, value),
            Self::Header(name, _) => match HeaderValue::from_maybe_shared(value) {
                Ok(value) => Self::Header(name, value),
                Err(_) => Self::Other(Bytes::copy_from_slice(name.as_str().as_bytes())),
            },
            other @ Self::Other(_) => other,
        }
    }

    fn name(&self) -> &[u8] {
        match self {
            Self::Pseudo(pseudo, _) => pseudo.name().as_bytes(),
            Self::Header(name, _) => name.as_str().as_bytes(),
            Self::Other(name) => name,
        }
    }
}

/// Tells whether a header speaks of a connection, which HTTP/2 has frames for.
fn is_of_connection(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade"
    )
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

/// Says that we keep no table, before the first of our blocks: a peer that wants a smaller one than the default need
/// not be told again.
pub(super) fn put_no_table(out: &mut BytesMut) {
    out.put_u8(0x20);
}

/// Begins the block of a response.
pub(super) fn put_response(out: &mut BytesMut, status: StatusCode) {
    if status == StatusCode::OK {
        return out.put_u8(0x88);
    }
    // A literal with the name of place 8.
    out.put_u8(0x08);
    put_string(out, status.as_str().as_bytes());
}

/// Begins the block of a request.
pub(super) fn put_request(out: &mut BytesMut, path: &str) {
    // `:method: POST`, `:scheme: http`, `:authority` and `:path`: places 3, 6, 1 and 4.
    out.put_slice(&[0x83, 0x86, 0x01]);
    put_string(out, b"localhost");
    out.put_u8(0x04);
    put_string(out, path.as_bytes());
}

/// Writes these headers.
pub(super) fn put_headers(out: &mut BytesMut, headers: &HeaderMap) {
    headers.iter().for_each(|(name, value)| put_header(out, name, value));
}

/// Writes one header.
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
mod tests;
