//! What `/proc` tells of another process.

/// Tells whether a process is stopped by a signal or a debugger (`proc_pid_stat(5)`, field 3).
pub fn is_stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it may hold anything.
    stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with(['T', 't']))
}

/// Returns the name of a process's program, at most 15 bytes of it; empty if the process has ended.
pub fn program(pid: i32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}
