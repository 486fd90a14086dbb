//! The demo service, version 2: what one deploys over version 1.

#[path = "../demo/mod.rs"]
mod demo;
#[path = "../demo/release/v2.rs"]
mod release;

fn main() -> std::process::ExitCode {
    demo::main()
}
