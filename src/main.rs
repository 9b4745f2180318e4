//! The binary `backup`: everything is in the library.

fn main() -> std::process::ExitCode {
    lifeboat::cli::main()
}
