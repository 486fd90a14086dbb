//! The demo service, version 1.

#[path = "../demo/mod.rs"]
mod demo;
#[path = "../demo/release/v1.rs"]
mod release;

fn main() -> std::process::ExitCode {
    demo::main()
}
