//! Has the allocator return memory to the system after a burst.
//!
//! glibc raises its threshold for mappings of their own to the largest block that was ever freed, and keeps
//! twice that at the end of its heap: after a thousand lists of a megabyte a process stays at hundreds of
//! megabytes. Fixed thresholds end that. They are read from the environment when a process starts, so `serve`
//! starts itself once more.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Blocks from this size on are mappings of their own, unmapped when freed. Smaller ones are cheaper on the
/// heap: every page of a new mapping is a fault.
const MMAP_THRESHOLD: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "524288");
/// How many free bytes the end of the heap keeps.
const TRIM_THRESHOLD: (&str, &str) = ("MALLOC_TRIM_THRESHOLD_", "2097152");

/// Executes this program again, with its arguments and the thresholds in its environment, unless they are
/// there. If that fails the process goes on as it is: it only keeps more memory.
pub(super) fn fix_thresholds() {
    if !cfg!(target_env = "gnu") || std::env::var_os(MMAP_THRESHOLD.0).is_some() {
        return;
    }
    let mut arguments = std::env::args_os();
    let (Some(name), Ok(program)) = (arguments.next(), std::env::current_exe()) else { return };
    let mut command = Command::new(program);
    let error = command.arg0(name).args(arguments).envs([MMAP_THRESHOLD, TRIM_THRESHOLD]).exec();
    eprintln!("crimux: the allocator keeps its thresholds: {error}");
}
