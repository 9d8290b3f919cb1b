//! Starts a simulated CRI runtime by hand, to try crimux without a real one and to measure it.
//!
//! It runs on one thread, so that in a benchmark the backend has a known share of the machine.

use std::io::Write;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use testkit::runtime::SimRuntime;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, Parser)]
#[command(name = "testkit", about = "What crimux is tested with", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serves a simulated CRI runtime until SIGTERM.
    Runtime(RuntimeArguments),
}

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
struct RuntimeArguments {
    /// Where to listen: `unix:///PATH` or `tcp://IP:PORT`.
    #[arg(long)]
    listen: String,
    /// The runtime name that Version reports.
    #[arg(long, default_value = "containerd")]
    name: String,
    /// The handlers that sandboxes may ask for.
    #[arg(long, value_delimiter = ',', default_value = "runc")]
    handlers: Vec<String>,
    /// How many sandboxes there are at the start.
    #[arg(long, default_value_t = 0)]
    sandboxes: usize,
    /// How many running containers there are at the start, spread over the sandboxes.
    #[arg(long, default_value_t = 0)]
    containers: usize,
    /// How many images there are at the start.
    #[arg(long, default_value_t = 0)]
    images: usize,
    /// Do not keep calls in memory.
    #[arg(long)]
    no_record: bool,
    /// The largest HTTP/2 frame in bytes.
    #[arg(long, default_value_t = 16384)]
    frame_size: usize,
    /// Offer the six streaming lists.
    #[arg(long)]
    stream_lists: bool,
    /// Begin each list of sandboxes and containers with another item.
    #[arg(long)]
    rotate_lists: bool,
    /// Stream container events.
    #[arg(long)]
    events: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Arguments::parse().verb {
        Verb::Runtime(arguments) => serve(arguments).await,
    }
}

async fn serve(arguments: RuntimeArguments) -> Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut builder = SimRuntime::builder(&arguments.name)
        .handlers(arguments.handlers)
        .sandboxes(arguments.sandboxes, arguments.containers)
        .images(arguments.images)
        .record(!arguments.no_record)
        .frame_size(arguments.frame_size)
        .abilities(|abilities| {
            abilities.stream_lists = arguments.stream_lists;
            abilities.rotate_lists = arguments.rotate_lists;
        });
    if arguments.events {
        builder = builder.events();
    }
    let builder = match arguments.listen.split_once("://") {
        Some(("unix", path)) => builder.unix(path),
        Some(("tcp", address)) => builder.tcp_at(address.parse().context("an address is IP:PORT")?),
        _ => bail!("--listen takes unix:///PATH or tcp://IP:PORT"),
    };
    let runtime = builder.start().await;
    writeln!(std::io::stdout(), "listening on {}", runtime.endpoint())?;
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    Ok(())
}
