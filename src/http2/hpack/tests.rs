//! Blocks of the RFC's examples, and blocks that are none.

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
fn what_we_write_is_what_is_read() {
    for len in [0, 1, 126, 127, 128, 254, 255, 300, 20_000] {
        let (name, value) = (HeaderName::from_static("x-long"), "v".repeat(len));
        let mut out = BytesMut::new();
        put_header(&mut out, &name, &value.parse().unwrap());
        let block = Decoder::new().decode(&out).unwrap();
        assert_eq!(block.headers[&name], value, "{len} bytes");
    }
}

/// RFC 7541, C.4: three requests, Huffman coded.
#[test]
fn the_requests_of_the_rfc_are_read() {
    let mut decoder = Decoder::new();
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
        assert_eq!(block.kind(), Some(Kind::Request));
        assert_eq!(block.take(Pseudo::Method), "GET");
        assert_eq!(block.take(Pseudo::Scheme), scheme);
        assert_eq!(block.take(Pseudo::Path), path);
        assert_eq!(block.take(Pseudo::Authority), "www.example.com");
        assert_eq!(block.kind(), Some(Kind::Trailers), "nothing but headers is left");
        let headers: Vec<_> = block.headers.iter().map(|(name, value)| (name.as_str(), value)).collect();
        assert_eq!(headers.first().map(|(name, value)| (*name, value.to_str().unwrap())), header);
    }
    assert_eq!(decoder.size, 164);
}

#[test]
fn what_is_no_field_spoils_its_block_and_not_the_connection() {
    let mut decoder = Decoder::new();
    // Text that is none, a capital, a status twice, a path after a header or beside a status, a path alone,
    // `connection`.
    let connection = format!("40 0a {} 00", b"connection".map(|byte| format!("{byte:02x}")).concat());
    let long = ["40 03 616263 02 0a0d", "40 03 616263 00 84", &connection];
    for wrong in long.into_iter().chain(["40 03 412d42 00", "88 88", "88 84", "84"]) {
        assert_eq!(decoder.decode(&hex(wrong)).unwrap().kind(), None, "{wrong}");
    }
    assert_eq!(decoder.decode(&hex("88")).unwrap().kind(), Some(Kind::Response));
}

#[test]
fn a_status_is_read_as_it_was_written() {
    for status in [StatusCode::OK, StatusCode::IM_A_TEAPOT] {
        let mut out = BytesMut::new();
        put_no_table(&mut out);
        put_response(&mut out, status);
        assert_eq!(Decoder::new().decode(&out).unwrap().status(), Some(status));
    }
}

#[test]
fn a_block_that_is_too_long_is_spoilt_and_the_next_is_read() {
    let mut decoder = Decoder::new();
    let mut out = BytesMut::from(&hex("88 40 03 782d61 01 62")[..]);
    for _ in 0..MAX_LIST as usize / (FIELD + 4) {
        out.put_u8(0xbe);
    }
    assert_eq!(decoder.decode(&out).unwrap().kind(), None);
    let block = decoder.decode(&hex("88 be")).unwrap();
    assert_eq!((block.kind(), &block.headers["x-a"]), (Some(Kind::Response), &"b".parse().unwrap()));
}

#[test]
fn a_broken_block_is_refused() {
    for wrong in
        ["80", "ff ff ff ff ff 0f", "ff ff ff ff ff ff ff ff", "be", "40 03 61", "3f e2 1f", "40 81 00 00"]
    {
        assert!(Decoder::new().decode(&hex(wrong)).is_none(), "{wrong}");
    }
}
