//! The RFC's examples, and invalid blocks.

use bytes::{BufMut, BytesMut};

use super::*;

/// The limit of the lists here.
const MAX_LIST: usize = 1 << 15;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// RFC 7541, C.6: three responses, Huffman coded, in a table of 256 bytes, so that fields are evicted.
#[test]
fn the_responses_of_the_rfc_are_decoded_with_a_table_that_evicts() {
    let mut decoder = Decoder::new(MAX_LIST);
    decoder.limit = 256;
    let first = "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e \
                 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3";
    let third = "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 \
                 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed \
                 4ee5 b106 3d50 07";
    let block = decoder.decode(&hex(first)).unwrap();
    assert_eq!(block.status().unwrap(), 302);
    assert_eq!(block.headers["cache-control"], "private");
    assert_eq!(block.headers["location"], "https://www.example.com");
    assert_eq!(decoder.size, 222);
    let block = decoder.decode(&hex("4883 640e ffc1 c0bf")).unwrap();
    assert_eq!(block.status().unwrap(), 307);
    assert_eq!(block.headers["date"], "Mon, 21 Oct 2013 20:13:21 GMT");
    let block = decoder.decode(&hex(third)).unwrap();
    assert_eq!(block.status().unwrap(), 200);
    assert_eq!(block.headers["content-encoding"], "gzip");
    assert_eq!(block.headers["set-cookie"], "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1");
    assert_eq!((decoder.size, decoder.table.len()), (215, 3));
    assert!(!block.malformed);
}

#[test]
fn headers_are_decoded_as_they_were_encoded() {
    for len in [0, 1, 126, 127, 128, 254, 255, 300, 20_000] {
        let (name, value) = (HeaderName::from_static("x-long"), "v".repeat(len));
        let mut out = BytesMut::new();
        encode_header(&mut out, &name, &value.parse().unwrap());
        let block = Decoder::new(MAX_LIST).decode(&out).unwrap();
        assert_eq!(block.headers[&name], value, "{len} bytes");
    }
}

/// RFC 7541, C.4: three requests, Huffman coded.
#[test]
fn the_requests_of_the_rfc_are_decoded() {
    let mut decoder = Decoder::new(MAX_LIST);
    for (block, scheme, path, header) in [
        ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", "http", "/", None),
        ("8286 84be 5886 a8eb 1064 9cbf", "http", "/", Some(("cache-control", "no-cache"))),
        (
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
            "https",
            "/index.html",
            Some(("custom-key", "custom-value")),
        ),
    ] {
        let mut block = decoder.decode(&hex(block)).unwrap();
        assert_eq!(block.kind(), Some(ListKind::Request));
        assert_eq!(block.take(Pseudo::Method), "GET");
        assert_eq!(block.take(Pseudo::Scheme), scheme);
        assert_eq!(block.take(Pseudo::Path), path);
        assert_eq!(block.take(Pseudo::Authority), "www.example.com");
        assert_eq!(block.kind(), Some(ListKind::Trailers), "nothing but headers is left");
        let headers: Vec<_> = block.headers.iter().map(|(name, value)| (name.as_str(), value)).collect();
        assert_eq!(headers.first().map(|(name, value)| (*name, value.to_str().unwrap())), header);
    }
    assert_eq!(decoder.size, 164);
}

#[test]
fn an_invalid_field_makes_its_list_malformed_and_the_decoder_goes_on() {
    let mut decoder = Decoder::new(MAX_LIST);
    // Text that is invalid, a capital, a status twice, a path after a header or beside a status, a path
    // alone, `connection`.
    let connection = format!("40 0a {} 00", b"connection".map(|byte| format!("{byte:02x}")).concat());
    let long = ["40 03 616263 02 0a0d", "40 03 616263 00 84", &connection];
    for wrong in long.into_iter().chain(["40 03 412d42 00", "88 88", "88 84", "84"]) {
        assert_eq!(decoder.decode(&hex(wrong)).unwrap().kind(), None, "{wrong}");
    }
    assert_eq!(decoder.decode(&hex("88")).unwrap().kind(), Some(ListKind::Response));
}

#[test]
fn a_status_is_decoded_as_it_was_encoded() {
    for status in [StatusCode::OK, StatusCode::IM_A_TEAPOT] {
        let mut out = BytesMut::new();
        encode_table_size_zero(&mut out);
        encode_status(&mut out, status);
        assert_eq!(Decoder::new(MAX_LIST).decode(&out).unwrap().status(), Some(status));
    }
}

#[test]
fn a_list_that_is_too_large_is_cut_off_and_the_next_is_decoded() {
    let mut decoder = Decoder::new(MAX_LIST);
    // Beyond the size, and beyond the number of fields.
    for (first, count) in [("88 40 03 782d61 01 62", MAX_LIST / (FIELD_OVERHEAD + 4)), ("88", MAX_FIELDS)] {
        let mut out = BytesMut::from(&hex(first)[..]);
        out.put_bytes(0xbe, count);
        let block = decoder.decode(&out).unwrap();
        assert!(block.too_large.is_some_and(|len| len > MAX_LIST), "{count}: {:?}", block.too_large);
        assert!(block.headers.len() <= MAX_FIELDS);
    }
    let block = decoder.decode(&hex("88 be")).unwrap();
    assert_eq!((block.kind(), &block.headers["x-a"]), (Some(ListKind::Response), &"b".parse().unwrap()));
}

/// RFC 9113, sections 8.2.1, 8.2.2 and 8.3.1; the third field of each is the one that is wrong.
#[test]
fn malformed_fields_are_found() {
    let request = "83 86 04 01 2f";
    let literal = |name: &str, value: &str| {
        let mut field = vec![0, u8::try_from(name.len()).unwrap()];
        field.extend_from_slice(name.as_bytes());
        field.push(u8::try_from(value.len()).unwrap());
        field.extend_from_slice(value.as_bytes());
        field
    };
    let kind = |fields: &[(&str, &str)]| {
        let mut block = hex(request);
        for (name, value) in fields {
            block.extend(literal(name, value));
        }
        Decoder::new(MAX_LIST).decode(&block).unwrap().kind()
    };
    assert_eq!(
        kind(&[("te", "trailers"), ("content-length", "5"), ("content-length", "5")]),
        Some(ListKind::Request)
    );
    for wrong in [
        ("te", "gzip"),
        ("x-a", " b"),
        ("x-a", "b\t"),
        ("content-length", "-1"),
        ("content-length", "+1"),
        ("content-length", ""),
        ("connection", "close"),
        (":other", "x"),
    ] {
        assert_eq!(kind(&[wrong]), None, "{wrong:?}");
    }
    assert_eq!(kind(&[("content-length", "5"), ("content-length", "6")]), None);
    // No scheme, an empty path, no path.
    for wrong in ["83 04 01 2f", "83 86 04 00", "83 86"] {
        assert_eq!(Decoder::new(MAX_LIST).decode(&hex(wrong)).unwrap().kind(), None, "{wrong}");
    }
}

/// RFC 7541, section 6.2.3.
#[test]
fn a_never_indexed_field_is_encoded_as_one() {
    let encoded = hex("10 03 782d61 01 62");
    let block = Decoder::new(MAX_LIST).decode(&encoded).unwrap();
    let mut out = BytesMut::new();
    encode_headers(&mut out, &block.headers);
    assert_eq!(out, encoded);
    let block = Decoder::new(MAX_LIST).decode(&hex("00 03 782d61 01 62")).unwrap();
    assert!(!block.headers["x-a"].is_sensitive());
}

#[test]
fn an_invalid_block_is_refused() {
    for wrong in [
        "80",
        "ff ff ff ff ff 0f",
        "ff ff ff ff ff ff ff ff",
        "be",
        "40 03 61",
        "3f e2 1f",
        "40 81 00 00",
        "88 20",
    ] {
        assert!(Decoder::new(MAX_LIST).decode(&hex(wrong)).is_none(), "{wrong}");
    }
}
