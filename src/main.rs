//! The binary `backup`: everything is in the library.

/// The allocator, and the one option of it that is set: how long it keeps memory that nobody uses.
///
/// Buffers of 16 MiB come and go on many threads. The system's allocator keeps them apart in an arena a thread; mimalloc 3
/// keeps what was freed for a second. Either doubles the peak memory of a run or a restore, which must stay under 256 MiB
/// (DESIGN, section 10).
mod allocator {
    #[global_allocator]
    static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

    /// `mi_option_purge_delay` of mimalloc's `mi_option_e`.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    /// Its default in mimalloc 3: where it is another, the option may be another too, and is left alone.
    const PURGE_DELAY_DEFAULT_MS: std::ffi::c_long = 1000;
    const PURGE_DELAY_MS: std::ffi::c_long = 10;

    /// Has freed memory given back after 10 ms, unless `MIMALLOC_PURGE_DELAY` says otherwise. To be called first.
    pub fn give_back_early() {
        // SAFETY: both functions take an index into a fixed table, which they check, and may be called at any time.
        #[allow(unsafe_code, reason = "mimalloc has no safe interface to its options")]
        unsafe {
            if libmimalloc_sys::mi_option_get(PURGE_DELAY) == PURGE_DELAY_DEFAULT_MS {
                libmimalloc_sys::mi_option_set(PURGE_DELAY, PURGE_DELAY_MS);
            }
        }
    }
}

fn main() -> std::process::ExitCode {
    allocator::give_back_early();
    lifeboat::cli::main()
}
