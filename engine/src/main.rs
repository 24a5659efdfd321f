//! The one binary: see [`rowship::cli`].

/// Short-lived small buffers dominate; mimalloc is built for them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    rowship::cli::run()
}
