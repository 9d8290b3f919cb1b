//! The `crimux` command.

use std::process::ExitCode;

use clap::Parser;
use crimux::cli::{self, Cli};

fn main() -> ExitCode {
    cli::run(Cli::parse_from(cli::verb_first(std::env::args_os())))
}
