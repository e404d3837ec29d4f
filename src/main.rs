//! The `onehop` command.
#![deny(unsafe_code)]

mod cli;
mod trim;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // A huge page under the allocator's arenas would make the first kilobytes cost megabytes of memory. Where the kernel
    // does not know the switch it has no huge pages to switch off.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    // Before anything builds a TLS configuration. It only fails if a provider is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    cli::run()
}
