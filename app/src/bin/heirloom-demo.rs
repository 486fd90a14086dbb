//! The demo service, version 1.

#[path = "../demo/mod.rs"]
mod demo;

fn main() -> std::process::ExitCode {
    demo::main("1.0.0")
}
