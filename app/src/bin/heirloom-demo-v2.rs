//! The demo service, version 2: what one deploys over version 1.

#[path = "../demo/mod.rs"]
mod demo;

fn main() -> std::process::ExitCode {
    demo::main("2.0.0")
}
