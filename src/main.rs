//! The `crimux` command.

fn main() {}
