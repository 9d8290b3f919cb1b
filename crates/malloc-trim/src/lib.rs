//! Returns free memory to the system.
//!
//! glibc returns a block that was a mapping of its own, and the end of its heap; what is free between used
//! blocks it keeps. A thousand calls at once, or a hundred lists of a megabyte, then stay in the process for
//! good. musl maps each block of 128 KiB and more by itself and smaller ones in groups, and unmaps them when
//! they are free: there is nothing to do.

/// Returns the free pages of all heaps of glibc to the system, in time proportional to the free blocks; does
/// nothing without glibc. Threads that allocate meanwhile wait.
pub fn malloc_trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: any thread may call malloc_trim at any time; it takes the locks of the allocator.
    #[expect(unsafe_code, reason = "a C function")]
    unsafe {
        libc::malloc_trim(0);
    }
}
