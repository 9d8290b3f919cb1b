//! What `/proc` tells of another process.

/// Tells whether a process is stopped by a signal or a debugger.
pub fn is_stopped(pid: i32) -> bool {
    matches!(state(pid), Some('T' | 't'))
}

/// Tells whether a process is stopped by a signal, so that SIGCONT continues it.
pub fn is_stopped_by_signal(pid: i32) -> bool {
    state(pid) == Some('T')
}

/// Returns the state of a process (`proc_pid_stat(5)`, field 3); `None` if it has ended.
fn state(pid: i32) -> Option<char> {
    stat(pid)?.chars().next()
}

/// Returns when a process was started, in clock ticks since the boot (field 22): with its number it names one
/// process.
pub fn start_time(pid: i32) -> Option<u64> {
    stat(pid)?.split(' ').nth(19)?.parse().ok()
}

/// Returns what the kernel tells of a process, from field 3 on.
fn stat(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything.
    stat.rsplit_once(") ").map(|(_, fields)| fields.to_owned())
}

/// Returns the name of a process's program, at most 15 bytes of it; empty if the process has ended.
pub fn program(pid: i32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_number_and_start() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(own).is_some() && start_time(own) == start_time(own));
        assert!(!is_stopped(own) && !program(own).is_empty());
        assert_eq!((start_time(i32::MAX), program(i32::MAX).as_str()), (None, ""));
    }
}
