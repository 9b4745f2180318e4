//! The binary `backup`: everything is in the library.

/// Buffers of 16 MiB come and go on many threads; the system's allocator keeps them apart in an arena a thread and
/// doubles the memory of a restore.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    lifeboat::cli::main()
}
