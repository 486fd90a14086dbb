//! Man pages and completions, from the definition of the command line.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;

use super::flags::{Arguments, Generate, Generated};
use super::{complain, exit};

pub(crate) fn generate(command: &Generate) -> ExitCode {
    let written = match &command.what {
        Generated::Man { directory } => man(directory),
        Generated::Completions { shell } => {
            let mut definition = Arguments::command();
            clap_complete::generate(*shell, &mut definition, "heirloom", &mut io::stdout());
            Ok(())
        }
    };
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.to_string());
            exit::FAILED.into()
        }
    }
}

fn man(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(Arguments::command(), directory)
}
