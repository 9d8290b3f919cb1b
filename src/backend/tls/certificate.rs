//! Reads what an operator is shown of a certificate: subject and validity (RFC 5280, section 4.1).
//!
//! rustls judges certificates and hands out neither. Nothing is trusted because of what is read here: a
//! certificate that cannot be read gives `None`, and so does one whose lengths exceed its bytes.

use std::fmt::Write as _;

const INTEGER: u8 = 0x02;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const BMP_STRING: u8 = 0x1e;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// `[0]`, the version, which certificates of version 1 lack.
const VERSION: u8 = 0xa0;
/// `UTF8String`, and the older strings of one byte each.
const STRINGS: [u8; 7] = [0x0c, 0x12, 0x13, 0x14, 0x16, 0x1a, 0x1b];

/// The short names of attributes (RFC 4514, section 3), by the encoding of their identifiers.
const ATTRIBUTES: [(&[u8], &str); 11] = [
    (&[0x55, 4, 3], "CN"),
    (&[0x55, 4, 5], "serialNumber"),
    (&[0x55, 4, 6], "C"),
    (&[0x55, 4, 7], "L"),
    (&[0x55, 4, 8], "ST"),
    (&[0x55, 4, 9], "STREET"),
    (&[0x55, 4, 10], "O"),
    (&[0x55, 4, 11], "OU"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1], "UID"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25], "DC"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1], "emailAddress"),
];

const DAY: i64 = 86_400;

/// Subject and validity of a certificate.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown {
    /// `CN=node-7, O=example`, in the order of the certificate.
    pub(super) subject: String,
    /// In seconds since 1970, negative before.
    pub(super) not_before: i64,
    /// In seconds since 1970.
    pub(super) not_after: i64,
}

/// A part of a DER encoding: elements, each a tag, a length and a content (X.690, section 8.1).
#[derive(Clone, Copy)]
struct Der<'a>(&'a [u8]);

/// Reads a certificate; `None` if it is not one.
pub(super) fn read(der: &[u8]) -> Option<Shown> {
    let mut certificate = Der(der).take(SEQUENCE)?.take(SEQUENCE)?;
    if certificate.0.first() == Some(&VERSION) {
        certificate.take(VERSION)?;
    }
    let (_serial, _algorithm, _issuer) =
        (certificate.take(INTEGER)?, certificate.take(SEQUENCE)?, certificate.take(SEQUENCE)?);
    let mut validity = certificate.take(SEQUENCE)?;
    let (not_before, not_after) = (validity.time()?, validity.time()?);
    let subject = certificate.take(SEQUENCE)?.name()?;
    Some(Shown { subject, not_before, not_after })
}

impl Der<'_> {
    /// Takes the next element.
    fn element(&mut self) -> Option<(u8, Self)> {
        let (&[tag, length], rest) = self.0.split_first_chunk()?;
        let (length, rest) = match length {
            ..=0x7f => (usize::from(length), rest),
            // The length has this many bytes.
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
                (bytes.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, Self(content)))
    }

    /// Takes the next element, which has this tag, and returns its content.
    fn take(&mut self, tag: u8) -> Option<Self> {
        self.element().filter(|(found, _)| *found == tag).map(|(_, content)| content)
    }

    /// Reads a name: sets of attributes, of which nearly all have one.
    fn name(mut self) -> Option<String> {
        let mut name = String::new();
        while !self.0.is_empty() {
            let mut set = self.take(SET)?;
            let mut separator = if name.is_empty() { "" } else { ", " };
            while !set.0.is_empty() {
                let mut attribute = set.take(SEQUENCE)?;
                let key = attribute_name(attribute.take(OBJECT_IDENTIFIER)?.0);
                let (tag, value) = attribute.element()?;
                write!(name, "{separator}{key}={}", attribute_value(tag, value.0)).ok()?;
                separator = " + ";
            }
        }
        Some(name)
    }

    /// Takes a time, whose two forms end with seconds and `Z` (section 4.1.2.5).
    fn time(&mut self) -> Option<i64> {
        let (tag, Self(text)) = self.element()?;
        let digits = text.strip_suffix(b"Z")?;
        let (year, rest) = match tag {
            // 1950 to 2049.
            UTC_TIME => {
                let (year, rest) = digits.split_at_checked(2)?;
                let year = number(year)?;
                (if year < 50 { 2000 + year } else { 1900 + year }, rest)
            }
            GENERALIZED_TIME => {
                let (year, rest) = digits.split_at_checked(4)?;
                (number(year)?, rest)
            }
            _ => return None,
        };
        let pair = |at: usize| number(rest.get(2 * at..2 * at + 2)?);
        let (month, day) = (pair(0)?, pair(1)?);
        let of_day = pair(2)? * 3600 + pair(3)? * 60 + pair(4)?;
        let is_date = rest.len() == 10 && (1..=12).contains(&month) && (1..=31).contains(&day);
        (is_date && of_day < DAY).then(|| days_since_1970(year, month, day) * DAY + of_day)
    }
}

/// Writes seconds since 1970 as an RFC 3339 date and time in UTC.
pub(super) fn utc(seconds: i64) -> String {
    let (days, of_day) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (year, month, day) = date(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn number(digits: &[u8]) -> Option<i64> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Days from 1970-01-01 to a date. Years are counted from March, so that a leap day is the last of its year;
/// 400 years have 146 097 days.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month > 2 { year } else { year - 1 };
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year * 365 + year / 4 - year / 100 + of_year - 719_468
}

/// The date of a day, as year, month and day: the inverse of [`days_since_1970`].
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

fn attribute_name(identifier: &[u8]) -> String {
    let known = ATTRIBUTES.iter().find(|(encoded, _)| *encoded == identifier);
    known.map_or_else(|| dotted(identifier), |(_, name)| (*name).to_owned())
}

/// Writes an object identifier with dots (X.690, section 8.19): seven bits a byte, and the first two numbers
/// in one.
fn dotted(identifier: &[u8]) -> String {
    let (mut numbers, mut number) = (Vec::new(), 0_u64);
    for &byte in identifier {
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            if numbers.is_empty() {
                let first = (number / 40).min(2);
                numbers.extend([first, number - 40 * first]);
            } else {
                numbers.push(number);
            }
            number = 0;
        }
    }
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(".")
}

/// A value that is no string is written in hexadecimal digits (RFC 4514, section 2.4).
fn attribute_value(tag: u8, value: &[u8]) -> String {
    match tag {
        tag if STRINGS.contains(&tag) => String::from_utf8_lossy(value).into_owned(),
        BMP_STRING => {
            let units = value.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
            char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
        }
        _ => value.iter().fold(String::from("#"), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair};
    use time::OffsetDateTime;

    use super::*;

    /// A certificate that is valid between two moments in seconds since 1970.
    fn issued(names: Vec<(DnType, DnValue)>, not_before: i64, not_after: i64) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in names {
            params.distinguished_name.push(kind, value);
        }
        params.not_before = OffsetDateTime::from_unix_timestamp(not_before).unwrap();
        params.not_after = OffsetDateTime::from_unix_timestamp(not_after).unwrap();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_subject_is_written_in_the_order_of_the_certificate() {
        let names = vec![
            (DnType::CountryName, DnValue::from("DE")),
            (DnType::OrganizationName, DnValue::from("system:nodes")),
            (DnType::CommonName, DnValue::Utf8String("Knoten ü".to_owned())),
            (DnType::CustomDnType(vec![1, 2, 840, 113_549, 1, 9, 1]), DnValue::from("a@b.example")),
            (DnType::CustomDnType(vec![2, 999, 3]), DnValue::BmpString("Ω".try_into().unwrap())),
        ];
        let shown = read(&issued(names, 0, 1)).unwrap();
        let wanted = "C=DE, O=system:nodes, CN=Knoten ü, emailAddress=a@b.example, 2.999.3=Ω";
        assert_eq!(shown.subject, wanted);
        assert_eq!(attribute_value(0x04, &[0xab, 0x01]), "#ab01");
        assert_eq!(read(&issued(Vec::new(), 0, 1)).unwrap().subject, "");
    }

    #[test]
    fn both_forms_of_a_time_are_read() {
        let read_time = |tag, text: &str| {
            let encoded = [&[tag, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
            Der(&encoded).time()
        };
        assert_eq!(read_time(UTC_TIME, "210203000000Z"), Some(1_612_310_400));
        assert_eq!(read_time(UTC_TIME, "500101000000Z"), Some(-631_152_000));
        assert_eq!(read_time(GENERALIZED_TIME, "20500101000000Z"), Some(2_524_608_000));
        for wrong in ["210203000000", "2102030000Z", "211303000000Z", "21020300000xZ", "+10203000000Z"] {
            assert_eq!(read_time(UTC_TIME, wrong), None, "{wrong}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn dates_are_those_that_another_library_says(seconds in -631_152_000_i64..253_402_300_800) {
            let moment = OffsetDateTime::from_unix_timestamp(seconds).unwrap();
            let format = &time::format_description::well_known::Rfc3339;
            prop_assert_eq!(utc(seconds), moment.format(format).unwrap());
            let shown = read(&issued(Vec::new(), seconds, seconds)).unwrap();
            prop_assert_eq!((shown.not_before, shown.not_after), (seconds, seconds));
        }

        #[test]
        fn no_bytes_make_it_panic(cut in 0_usize..400, at in 0_usize..400, byte: u8) {
            let mut der = issued(vec![(DnType::CommonName, DnValue::from("node-7"))], 0, 1);
            der.truncate(der.len().min(cut));
            if let Some(place) = der.get_mut(at) {
                *place = byte;
            }
            let _ = read(&der);
        }
    }
}
