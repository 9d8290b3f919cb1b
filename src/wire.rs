//! Reads and writes the protobuf wire format, field by field, without knowing any message.
//!
//! Forwarded messages stay encoded; this module reads, overrides or appends the few fields that decide the
//! route. A reader borrows from its input, allocates nothing, never trusts a length beyond the input and
//! reads as protobuf parsers do: the last occurrence of a singular field wins, and repeated occurrences of
//! a singular message merge. It must not know a message or a method. Source: the protobuf encoding
//! specification, "Last One Wins" and "Merging".

use bytes::{BufMut, Bytes, BytesMut};

/// Why bytes are not a protobuf message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes end inside a field.
    #[error("message ends inside a field")]
    Truncated,
    /// A varint of more than ten bytes, or of more than 64 bits.
    #[error("overlong varint")]
    Overlong,
    /// A field number of zero or beyond 2²⁹-1.
    #[error("invalid field number")]
    FieldNumber,
    /// A wire type that does not exist, or a group that is not closed as it was opened.
    #[error("invalid wire type")]
    WireType,
    /// A field with another wire type than the message declares.
    #[error("field {0} has the wrong wire type")]
    Unexpected(u32),
    /// A string field that is not UTF-8.
    #[error("field {0} is not UTF-8")]
    Utf8(u32),
}

/// The value of one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2: a string, bytes, a message or packed scalars.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Fixed32(u32),
    /// Wire types 3 and 4: a group, skipped as a whole.
    Group,
}

/// One field: its number, its value and all of its bytes, tag included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// Field number.
    pub number: u32,
    /// Decoded value.
    pub value: Value<'a>,
    /// The field as it stands in the message.
    pub raw: &'a [u8],
}

/// Iterates over the fields of a message; ends after the first error.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

/// Returns the fields of `message`.
pub fn fields(message: &[u8]) -> Fields<'_> {
    Fields { rest: message }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, WireError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let start = self.rest;
        // Most fields of the API are short texts and messages.
        if let [tag @ 0x08..0x80, len @ 0..0x80, rest @ ..] = start
            && tag & 7 == 2
            && let Some((bytes, rest)) = rest.split_at_checked(usize::from(*len))
        {
            self.rest = rest;
            let raw = &start[..start.len() - rest.len()];
            return Some(Ok(Field { number: u32::from(tag >> 3), value: Value::Bytes(bytes), raw }));
        }
        let mut cursor = start;
        let field = read_field(&mut cursor).map(|(number, value)| Field {
            number,
            value,
            raw: &start[..start.len() - cursor.len()],
        });
        self.rest = if field.is_ok() { cursor } else { &[] };
        Some(field)
    }
}

impl<'a> Field<'a> {
    /// Returns the payload of a length-delimited field.
    ///
    /// # Errors
    /// [`WireError::Unexpected`] for any other wire type.
    #[inline]
    pub fn bytes(&self) -> Result<&'a [u8], WireError> {
        match self.value {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(WireError::Unexpected(self.number)),
        }
    }

    /// Returns a string field.
    ///
    /// # Errors
    /// [`WireError::Unexpected`] for another wire type, [`WireError::Utf8`] for bytes that are not UTF-8.
    #[inline]
    pub fn string(&self) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| WireError::Utf8(self.number))
    }

    /// Returns a varint field.
    ///
    /// # Errors
    /// [`WireError::Unexpected`] for any other wire type.
    #[inline]
    pub fn varint(&self) -> Result<u64, WireError> {
        match self.value {
            Value::Varint(value) => Ok(value),
            _ => Err(WireError::Unexpected(self.number)),
        }
    }
}

/// Returns the payload at `path` (field numbers, outermost first) of `message`: the last occurrence in the
/// merged message, `None` if the field is not set.
///
/// # Errors
/// Returns an error if a message on the path cannot be parsed.
///
/// # Panics
/// If the path is empty.
pub fn peek_bytes<'a>(message: &'a [u8], path: &[u32]) -> Result<Option<&'a [u8]>, WireError> {
    let (&number, inner) = path.split_first().expect("a path names at least one field");
    let mut found = None;
    for field in fields(message) {
        let field = field?;
        if field.number == number {
            let bytes = field.bytes()?;
            found = if inner.is_empty() { Some(bytes) } else { peek_bytes(bytes, inner)?.or(found) };
        }
    }
    Ok(found)
}

/// Returns the string at `path`, empty if it is not set, as proto3 reads it.
///
/// # Errors
/// Returns an error if a message on the path cannot be parsed, or if the value is not UTF-8.
pub fn peek_str<'a>(message: &'a [u8], path: &[u32]) -> Result<&'a str, WireError> {
    let bytes = peek_bytes(message, path)?.unwrap_or_default();
    let number = path.last().copied().unwrap_or_default();
    std::str::from_utf8(bytes).map_err(|_| WireError::Utf8(number))
}

/// Returns the varint at `path`, zero if it is not set, as proto3 reads it.
///
/// # Errors
/// Returns an error if a message on the path cannot be parsed.
///
/// # Panics
/// If the path is empty.
pub fn peek_varint(message: &[u8], path: &[u32]) -> Result<u64, WireError> {
    let (&number, inner) = path.split_first().expect("a path names at least one field");
    let mut found = 0;
    for field in fields(message) {
        let field = field?;
        if field.number != number {
            continue;
        }
        if inner.is_empty() {
            found = field.varint()?;
        } else if has_path(field.bytes()?, inner)? {
            found = peek_varint(field.bytes()?, inner)?;
        }
    }
    Ok(found)
}

/// Tells whether the field at `path` is set.
///
/// # Errors
/// Returns an error if a message on the path cannot be parsed.
///
/// # Panics
/// If the path is empty.
pub fn has_path(message: &[u8], path: &[u32]) -> Result<bool, WireError> {
    let (&number, inner) = path.split_first().expect("a path names at least one field");
    let mut found = false;
    for field in fields(message) {
        let field = field?;
        if field.number == number {
            found |= inner.is_empty() || has_path(field.bytes()?, inner)?;
        }
    }
    Ok(found)
}

/// Iterates over the payloads of the repeated message field `number`.
pub fn items(message: &[u8], number: u32) -> impl Iterator<Item = Result<&[u8], WireError>> {
    fields(message).filter_map(move |field| match field {
        Ok(field) if field.number == number => Some(field.bytes()),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    })
}

/// Reads the key and value of one entry of a `map<string, string>`.
///
/// # Errors
/// Returns an error if the entry cannot be parsed.
pub fn map_entry(entry: &[u8]) -> Result<(&str, &str), WireError> {
    /// A map entry is a message of a key and a value (protobuf encoding specification, "Maps").
    const KEY: [u32; 1] = [1];
    const VALUE: [u32; 1] = [2];
    Ok((peek_str(entry, &KEY)?, peek_str(entry, &VALUE)?))
}

/// Returns `message` with the string at `path` set to `value`, by appending the fields that override it.
///
/// Appending is enough because the last occurrence of a scalar wins and messages merge; every byte of the
/// original, unknown fields included, stays as it was.
///
/// # Panics
/// If the path is empty.
pub fn append_str(message: &[u8], path: &[u32], value: &str) -> Bytes {
    let mut field = BytesMut::with_capacity(value.len() + 16 * path.len());
    put_bytes(&mut field, *path.last().expect("a path names at least one field"), value.as_bytes());
    for &number in path[..path.len() - 1].iter().rev() {
        let inner = field.split();
        put_bytes(&mut field, number, &inner);
    }
    let mut out = BytesMut::with_capacity(message.len() + field.len());
    out.put_slice(message);
    out.put_slice(&field);
    out.freeze()
}

/// Returns `message` without the fields at `path`, or `None` if there are none. All other bytes stay,
/// except the lengths of the messages around a removed field.
///
/// # Errors
/// Returns an error if a message on the path cannot be parsed.
pub fn without(message: &[u8], path: &[u32]) -> Result<Option<Bytes>, WireError> {
    let Some((&number, inner)) = path.split_first() else { return Ok(None) };
    if !has_path(message, path)? {
        return Ok(None);
    }
    let mut out = BytesMut::with_capacity(message.len());
    for field in fields(message) {
        let field = field?;
        if field.number != number {
            out.put_slice(field.raw);
        } else if !inner.is_empty() {
            match without(field.bytes()?, inner)? {
                Some(shorter) => put_bytes(&mut out, number, &shorter),
                None => out.put_slice(field.raw),
            }
        }
    }
    Ok(Some(out.freeze()))
}

/// Splits an encoded list into encoded lists of at most `limit` bytes each, between its fields; a single
/// field that is larger stays whole. An empty list gives no pieces.
///
/// # Errors
/// Returns an error if the list cannot be parsed.
pub fn split(list: &Bytes, limit: usize) -> Result<Vec<Bytes>, WireError> {
    let mut pieces = Vec::new();
    let (mut start, mut end) = (0, 0);
    for field in fields(list) {
        let len = field?.raw.len();
        if end > start && end + len - start > limit {
            pieces.push(list.slice(start..end));
            start = end;
        }
        end += len;
    }
    if end > start {
        pieces.push(list.slice(start..end));
    }
    Ok(pieces)
}

/// Writes a length-delimited field.
pub fn put_bytes(out: &mut impl BufMut, number: u32, value: &[u8]) {
    put_header(out, number, value.len());
    out.put_slice(value);
}

/// Writes the tag and length of a length-delimited field whose payload follows.
pub fn put_header(out: &mut impl BufMut, number: u32, len: usize) {
    put_raw_varint(out, (u64::from(number) << 3) | 2);
    put_raw_varint(out, len as u64);
}

/// Writes a varint field.
pub fn put_varint(out: &mut impl BufMut, number: u32, value: u64) {
    put_raw_varint(out, u64::from(number) << 3);
    put_raw_varint(out, value);
}

/// Returns how many bytes [`put_bytes`] writes for a payload of `len` bytes.
pub fn bytes_field_len(number: u32, len: usize) -> usize {
    varint_len((u64::from(number) << 3) | 2) + varint_len(len as u64) + len
}

fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn put_raw_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.put_u8(value.to_le_bytes()[0]);
}

#[inline]
fn read_field<'a>(cursor: &mut &'a [u8]) -> Result<(u32, Value<'a>), WireError> {
    let (number, wire_type) = read_tag(cursor)?;
    let value = match wire_type {
        0 => Value::Varint(read_varint(cursor)?),
        1 => Value::Fixed64(u64::from_le_bytes(take_array(cursor)?)),
        2 => {
            let len = read_varint(cursor)?;
            Value::Bytes(take(cursor, usize::try_from(len).map_err(|_| WireError::Truncated)?)?)
        }
        3 => {
            skip_group(cursor, number)?;
            Value::Group
        }
        5 => Value::Fixed32(u32::from_le_bytes(take_array(cursor)?)),
        _ => return Err(WireError::WireType),
    };
    Ok((number, value))
}

#[inline]
fn read_tag(cursor: &mut &[u8]) -> Result<(u32, u8), WireError> {
    let tag = read_varint(cursor)?;
    let number = u32::try_from(tag >> 3).ok().filter(|n| (1..1 << 29).contains(n));
    Ok((number.ok_or(WireError::FieldNumber)?, (tag & 7) as u8))
}

/// Reads a varint. Nearly all tags and lengths have one byte.
#[inline]
fn read_varint(cursor: &mut &[u8]) -> Result<u64, WireError> {
    match cursor.split_first() {
        Some((&byte, rest)) if byte < 0x80 => {
            *cursor = rest;
            Ok(byte.into())
        }
        _ => read_long_varint(cursor),
    }
}

fn read_long_varint(cursor: &mut &[u8]) -> Result<u64, WireError> {
    let mut value = 0u64;
    for (index, &byte) in cursor.iter().enumerate().take(10) {
        if index == 9 && byte > 1 {
            return Err(WireError::Overlong);
        }
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            *cursor = &cursor[index + 1..];
            return Ok(value);
        }
    }
    Err(if cursor.len() >= 10 { WireError::Overlong } else { WireError::Truncated })
}

#[inline]
fn take<'a>(cursor: &mut &'a [u8], len: usize) -> Result<&'a [u8], WireError> {
    let (taken, rest) = cursor.split_at_checked(len).ok_or(WireError::Truncated)?;
    *cursor = rest;
    Ok(taken)
}

fn take_array<const N: usize>(cursor: &mut &[u8]) -> Result<[u8; N], WireError> {
    let taken = take(cursor, N)?;
    Ok(taken.try_into().expect("take returns exactly N bytes"))
}

/// Skips to the end of a group. Nested groups are counted, not recursed into, so that depth costs no stack.
fn skip_group(cursor: &mut &[u8], number: u32) -> Result<(), WireError> {
    let mut open = vec![number];
    while let Some(&innermost) = open.last() {
        let (number, wire_type) = read_tag(cursor)?;
        match wire_type {
            0 => drop(read_varint(cursor)?),
            1 => drop(take(cursor, 8)?),
            2 => {
                let len = read_varint(cursor)?;
                take(cursor, usize::try_from(len).map_err(|_| WireError::Truncated)?)?;
            }
            3 => open.push(number),
            4 if number == innermost => drop(open.pop()),
            5 => drop(take(cursor, 4)?),
            _ => return Err(WireError::WireType),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
