//! Header blocks (RFC 7541): ours are encoded without a dynamic table, a peer's are decoded with everything
//! the format has.
//!
//! What we encode is literals and names of the static table; it needs no state that could differ from the
//! peer's. A peer's dynamic table is kept, because most fields of most responses are one byte then.

use std::collections::VecDeque;
use std::sync::LazyLock;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

pub(crate) use encode::{
    encode_header, encode_headers, encode_request, encode_status, encode_table_size_zero,
};

mod encode;
mod huffman;

/// The size of the peer's dynamic table: the default (RFC 9113, section 6.5.2).
const MAX_TABLE_SIZE: usize = 4096;
/// What a field counts beside its bytes (RFC 7541, section 4.1; RFC 9113, section 6.5.2).
pub(crate) const FIELD_OVERHEAD: usize = 32;
/// How many fields a header list may have, whatever its size: one of them costs more memory than it counts.
const MAX_FIELDS: usize = 1024;

/// A pseudo-header field (RFC 9113, section 8.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pseudo {
    Status,
    Method,
    Path,
    Scheme,
    Authority,
}

/// What a header list can be, by its pseudo-header fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListKind {
    Request,
    Response,
    /// No pseudo-header field.
    Trailers,
}

/// A decoded header list.
#[derive(Debug, Default)]
pub(crate) struct HeaderList {
    pseudo: [Option<Bytes>; Pseudo::NAMES.len()],
    pub(crate) headers: HeaderMap,
    /// Set if any field is invalid or misplaced. The block is still decoded fully, to keep the dynamic table
    /// in sync.
    malformed: bool,
    /// The size of the list if it exceeds the limit; the fields beyond it are left out.
    pub(crate) too_large: Option<usize>,
    content_length: Option<u64>,
    fields: usize,
    /// The size of the list (RFC 9113, section 6.5.2).
    size: usize,
}

/// A decoded field.
#[derive(Debug, Clone)]
enum Field {
    Pseudo(Pseudo, Bytes),
    Header(HeaderName, HeaderValue),
    /// One that makes its list malformed. Its name may be used again.
    Invalid(Bytes),
}

impl Pseudo {
    /// Their names, in their order.
    const NAMES: [&str; 5] = [":status", ":method", ":path", ":scheme", ":authority"];
    const ALL: [Self; 5] = [Self::Status, Self::Method, Self::Path, Self::Scheme, Self::Authority];

    fn by_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|pseudo| pseudo.name().as_bytes() == name)
    }

    fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

impl HeaderList {
    /// Returns what it can be; `None` if it is malformed (RFC 9113, sections 8.1.1 and 8.3).
    pub(crate) fn kind(&self) -> Option<ListKind> {
        let [status, method, path, scheme, authority] = self.pseudo.each_ref().map(Option::is_some);
        match (status, method && path && scheme, method || path || scheme || authority) {
            _ if self.malformed => None,
            (true, _, false) => Some(ListKind::Response),
            // An empty path is invalid (section 8.3.1).
            (false, true, _) => Some(ListKind::Request).filter(|_| !self.pseudo(Pseudo::Path).is_empty()),
            (false, _, false) => Some(ListKind::Trailers),
            _ => None,
        }
    }

    /// Returns the value of a pseudo-header field; empty if it is missing.
    pub(crate) fn pseudo(&self, pseudo: Pseudo) -> &[u8] {
        self.pseudo[pseudo as usize].as_deref().unwrap_or_default()
    }

    /// Takes the value of a pseudo-header field; empty if it is missing.
    pub(crate) fn take(&mut self, pseudo: Pseudo) -> Bytes {
        self.pseudo[pseudo as usize].take().unwrap_or_default()
    }

    /// Returns the status of a response; `None` if it is missing or invalid.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        StatusCode::from_bytes(self.pseudo[Pseudo::Status as usize].as_ref()?).ok()
    }

    /// Returns how long the body must be, if the list says so.
    pub(crate) fn content_length(&self) -> Option<u64> {
        self.content_length
    }

    /// Returns how many bytes of memory it takes, about: a field of a [`HeaderMap`] takes more than its
    /// overhead counts.
    pub(crate) fn memory(&self) -> usize {
        self.size + self.fields.min(MAX_FIELDS) * 3 * FIELD_OVERHEAD
    }

    fn add(&mut self, field: Field) {
        let is_valid = match field {
            // Section 8.3: once each, and before every other field.
            Field::Pseudo(pseudo, value) => {
                self.pseudo[pseudo as usize].replace(value).is_none() && self.headers.is_empty()
            }
            Field::Header(name, value) => {
                let is_valid = self.is_valid_header(&name, &value);
                is_valid && self.headers.try_append(name, value).is_ok()
            }
            Field::Invalid(_) => false,
        };
        self.malformed |= !is_valid;
    }

    /// Checks the two fields whose values HTTP/2 has rules for, and keeps `content-length`.
    fn is_valid_header(&mut self, name: &HeaderName, value: &HeaderValue) -> bool {
        if *name == TE {
            // Section 8.2.2.
            return value == "trailers";
        }
        if *name == CONTENT_LENGTH {
            let digits = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let length = digits.and_then(|digits| digits.parse().ok());
            let is_first = self.content_length.is_none() || self.content_length == length;
            self.content_length = length;
            return length.is_some() && is_first;
        }
        true
    }
}

/// The decoder of one connection: its blocks are decoded in order.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// The newest first, each with its size.
    table: VecDeque<(Field, usize)>,
    size: usize,
    limit: usize,
    /// The largest header list, in bytes as RFC 9113, section 6.5.2 counts them.
    max_list: usize,
}

/// The rest of a block.
struct Reader<'a>(&'a [u8]);

impl Decoder {
    pub(crate) fn new(max_list: usize) -> Self {
        Self { table: VecDeque::new(), size: 0, limit: MAX_TABLE_SIZE, max_list }
    }

    /// Returns how long an encoded block may be: what is longer ends the connection, a list that is too large
    /// does not.
    pub(crate) fn max_block(&self) -> usize {
        2 * self.max_list + MAX_TABLE_SIZE
    }

    /// Decodes a block; `None` if it is invalid, after which no other can be decoded. The list is boxed: it
    /// is moved more often than it is read.
    pub(crate) fn decode(&mut self, block: &[u8]) -> Option<Box<HeaderList>> {
        let mut reader = Reader(block);
        let mut decoded = Box::<HeaderList>::default();
        while let Some(&first) = reader.0.first() {
            let (field, size) = match first {
                0x80.. => self.at(reader.integer(7)?)?.clone(),
                0x40.. => {
                    let (field, size) = self.literal(&mut reader, 6)?;
                    self.insert(field.clone(), size);
                    (field, size)
                }
                // Section 4.2: a size update comes before the first field.
                0x20.. if decoded.fields > 0 => return None,
                0x20.. => {
                    self.limit = Some(reader.integer(5)?).filter(|&limit| limit <= MAX_TABLE_SIZE)?;
                    self.evict();
                    continue;
                }
                0x10.. => {
                    let (field, size) = self.literal(&mut reader, 4)?;
                    (field.never_indexed(), size)
                }
                _ => self.literal(&mut reader, 4)?,
            };
            decoded.size += size;
            decoded.fields += 1;
            if decoded.size > self.max_list || decoded.fields > MAX_FIELDS {
                // The rest is decoded for the table alone.
                decoded.too_large = Some(decoded.size.max(self.max_list + 1));
            } else {
                decoded.add(field);
            }
        }
        Some(decoded)
    }

    /// Decodes a literal whose name index has so many bits (section 6.2).
    fn literal(&self, reader: &mut Reader<'_>, bits: u32) -> Option<(Field, usize)> {
        let index = reader.integer(bits)?;
        let name = if index == 0 { Field::by_name(&reader.string()?) } else { self.at(index)?.0.clone() };
        let value = reader.string()?;
        let size = name.name().len() + value.len() + FIELD_OVERHEAD;
        Some((name.with(value), size))
    }

    fn at(&self, index: usize) -> Option<&(Field, usize)> {
        let index = index.checked_sub(1)?;
        match index.checked_sub(STATIC_TABLE.len()) {
            None => STATIC_TABLE.get(index),
            Some(index) => self.table.get(index),
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
    fn by_name(name: &[u8]) -> Self {
        if let Some(pseudo) = Pseudo::by_name(name) {
            return Self::Pseudo(pseudo, Bytes::new());
        }
        match HeaderName::from_lowercase(name) {
            Ok(name) if !is_connection_specific(&name) => Self::Header(name, HeaderValue::from_static("")),
            _ => Self::Invalid(Bytes::copy_from_slice(name)),
        }
    }

    /// Returns a field of the same name.
    fn with(self, value: Bytes) -> Self {
        // Section 8.2.1: a value neither starts nor ends with a space.
        let is_trimmed =
            [value.first(), value.last()].into_iter().flatten().all(|byte| !matches!(byte, b' ' | b'\t'));
        match self {
            Self::Pseudo(pseudo, _) => Self::Pseudo(pseudo, value),
            Self::Header(name, _) => match HeaderValue::from_maybe_shared(value) {
                Ok(value) if is_trimmed => Self::Header(name, value),
                _ => Self::Invalid(Bytes::copy_from_slice(name.as_str().as_bytes())),
            },
            other @ Self::Invalid(_) => other,
        }
    }

    /// Marks a value as one that must be forwarded as it came, never indexed (RFC 7541, section 6.2.3).
    fn never_indexed(mut self) -> Self {
        if let Self::Header(_, value) = &mut self {
            value.set_sensitive(true);
        }
        self
    }

    fn name(&self) -> &[u8] {
        match self {
            Self::Pseudo(pseudo, _) => pseudo.name().as_bytes(),
            Self::Header(name, _) => name.as_str().as_bytes(),
            Self::Invalid(name) => name,
        }
    }
}

/// Tells whether a header is about a connection; those are malformed in HTTP/2 (RFC 9113, section 8.2.2).
fn is_connection_specific(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade"
    )
}

impl Reader<'_> {
    /// Reads an integer whose prefix has so many bits (section 5.1).
    fn integer(&mut self, bits: u32) -> Option<usize> {
        let (&first, mut rest) = self.0.split_first()?;
        let full = (1 << bits) - 1;
        let mut integer = usize::from(first) & full;
        if integer == full {
            // Four more bytes are 256 MiB, more than anything here may have.
            for shift in [0, 7, 14, 21, 28] {
                let (&byte, left) = rest.split_first().filter(|_| shift < 28)?;
                rest = left;
                integer += usize::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
            }
        }
        self.0 = rest;
        Some(integer)
    }

    /// Reads a string (section 5.2).
    fn string(&mut self) -> Option<Bytes> {
        let is_huffman = *self.0.first()? >= 0x80;
        let len = self.integer(7)?;
        let (string, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        if is_huffman {
            huffman::decode(string).map(Bytes::from)
        } else {
            Some(Bytes::copy_from_slice(string))
        }
    }
}

/// Returns the size of a header list of these fields (RFC 9113, section 6.5.2).
pub(crate) fn list_size<'a>(fields: impl IntoIterator<Item = (&'a HeaderName, &'a HeaderValue)>) -> usize {
    fields.into_iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD).sum()
}

/// The static table (RFC 7541, appendix A).
static STATIC_TABLE: LazyLock<Vec<(Field, usize)>> = LazyLock::new(|| {
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
    let entry = |(name, value): (&str, &'static str)| {
        let field = Field::by_name(name.as_bytes()).with(Bytes::from_static(value.as_bytes()));
        (field, name.len() + value.len() + FIELD_OVERHEAD)
    };
    fields.into_iter().map(entry).collect()
});

#[cfg(test)]
mod tests;
