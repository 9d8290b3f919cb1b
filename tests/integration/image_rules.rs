//! `docs/images.md` has the table of rules that the router follows, and no other.
//!
//! `UPDATE=1 cargo test --test integration image_rules` rewrites the table; the text around it is written by
//! hand.

use std::fmt::Write as _;

use crimux::router::images::RULES;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/images.md");
const BEGIN: &str = "<!-- rules: begin -->\n";
const END: &str = "<!-- rules: end -->\n";

#[test]
fn the_document_has_the_rules_of_the_router() {
    let mut table = "| call | carries | goes to | because |\n|---|---|---|---|\n".to_owned();
    for row in &RULES {
        writeln!(table, "| {} | {} | {} | {} |", row.call, row.carries, row.store, row.reason).unwrap();
    }
    let document = std::fs::read_to_string(PATH).unwrap();
    let (before, rest) = document.split_once(BEGIN).expect("the table begins");
    let (written, after) = rest.split_once(END).expect("the table ends");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(PATH, [before, BEGIN, &table, END, after].concat()).unwrap();
        return;
    }
    assert!(
        written == table,
        "docs/images.md is outdated: UPDATE=1 cargo test --test integration image_rules"
    );
}
