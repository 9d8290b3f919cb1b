//! Returns free memory to the system, and keeps what is about to be used again.
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

/// Has glibc keep up to `len` free bytes at the end of its heap, and map only blocks of more than `len` bytes
/// by themselves; does nothing without glibc, or if `len` is more than 32 MiB or the C type's maximum.
///
/// A list of a megabyte needs a block as large for each of its parts. By default each of them would be a
/// mapping of its own, or the end of the heap that is given back at once: then every list pays for every page
/// again. What is kept goes with the next [`malloc_trim`].
pub fn keep_free(len: usize) {
    #[cfg(target_env = "gnu")]
    if let Ok(len) = libc::c_int::try_from(len) {
        for parameter in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
            // SAFETY: mallopt takes the locks of the allocator; a value that it refuses changes nothing.
            #[expect(unsafe_code, reason = "a C function")]
            unsafe {
                libc::mallopt(parameter, len);
            }
        }
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = len;
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::keep_free;

    /// Pages that this process was given so far.
    fn page_faults() -> u64 {
        let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux has it");
        let fields = stat.rsplit_once(')').expect("the name is in brackets").1;
        fields.split_whitespace().nth(7).and_then(|field| field.parse().ok()).expect("minflt is a number")
    }

    #[test]
    fn large_blocks_are_used_again_without_new_pages() {
        const LEN: usize = 1 << 20;
        keep_free(8 << 20);
        let rounds = |count: usize| {
            for _ in 0..count {
                let parts = [(); 4].map(|()| vec![1_u8; LEN]);
                assert!(std::hint::black_box(&parts).iter().all(|part| part[LEN - 1] == 1));
            }
        };
        rounds(2);
        let before = page_faults();
        rounds(100);
        // Without it each round takes hundreds of new pages.
        let taken = page_faults() - before;
        assert!(taken < 100 * 16, "{taken} pages for 100 rounds");
    }
}
