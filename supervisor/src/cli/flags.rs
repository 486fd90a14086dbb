//! Every command, flag and default, with its description.
//!
//! The descriptions here are the documentation of the command line: `--help`, the man pages and the
//! completions are made from them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};

use super::exit;
use crate::config::listen::ListenSpec;
use crate::config::pin::Sha256;
use crate::config::privileges::Capabilities;
use crate::config::service::{
    Health, Instances, MostDraining, Ready, Span, StopSignal, Strategy, WithoutWayBack,
};
use crate::config::size::Size;
use crate::control::place::Wanted;
use crate::log::Format;
use crate::torture::Aim;

/// Replaces a running network service by a new version without its users noticing.
///
/// A supervisor holds the listening sockets. At a reload it starts the new program with the
/// inherited sockets, waits until it is ready, and lets the old one finish what it has begun.
#[derive(Debug, Parser)]
#[command(
    name = "heirloom",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Box<Run>),
    Reload(Reload),
    Rollback(Rollback),
    Status(Status),
    Events(Events),
    Stop(Stop),
    Upgrade(Upgrade),
    Snapshot(Snapshot),
    Inspect(Inspect),
    Check(Check),
    Torture(Box<Torture>),
    Generate(Generate),
    /// Say whether this program could follow a running supervisor; the record is read from standard input
    #[command(hide = true, name = crate::daemon::TRY)]
    TryRecord {
        /// The command line that it would have.
        #[arg(last = true, required = true)]
        words: Vec<std::ffi::OsString>,
    },
}

/// Which supervisor is meant
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// The supervisor's name. Not needed when only one runs.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The supervisor's control socket.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    control: Option<PathBuf>,
}

impl Which {
    pub(crate) fn wanted(self) -> Wanted {
        Wanted {
            path: self.control,
            name: self.name,
        }
    }
}

/// Run a supervisor in the foreground
///
/// Runs one program given behind `--`, or the services of a configuration file. Ends when told to by
/// `heirloom stop`, TERM or INT (twice: at once). HUP hands over to the program as it stands now,
/// USR1 opens log files anew, USR2 replaces the supervisor itself (see `heirloom upgrade`).
#[derive(Debug, Args)]
#[command(after_help = "\
SPEC is [NAME=]ADDRESS[,OPTION=VALUE]...: tcp:HOST:PORT, udp:HOST:PORT, unix:PATH, unix:@ABSTRACT, \
unix-seqpacket:PATH, or fd:NAME for a socket systemd passes; HOST:PORT and PORT are tcp. Options: \
mode=0660 (unix), backlog=N, v6only=true, nonblocking=true (for programs such as nginx that take \
it for granted).

Exit status: 0 it was told to end; 1 it did not come up; 2 usage or configuration.")]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Listen there; may be repeated.
    #[arg(long, value_name = "SPEC")]
    pub(crate) listen: Vec<ListenSpec>,
    /// Read services from a file, again at each reload.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath,
          conflicts_with_all = ["program", "listen", "Tuning"], required_unless_present = "program")]
    pub(crate) config: Option<PathBuf>,
    /// What log lines look like.
    #[arg(long, value_enum, default_value = "auto", value_name = "FORMAT")]
    pub(crate) log_format: Format,
    /// Append log lines to a file instead of standard error.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) log_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) tuning: Tuning,
    /// The program and its arguments.
    #[arg(last = true, value_name = "PROGRAM ARGS", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) program: Vec<String>,
}

/// The settings of the one service given on the command line
#[derive(Debug, Args)]
#[group(id = "Tuning", multiple = true)]
pub(crate) struct Tuning {
    /// How one generation takes over from another: auto is handover for a program that speaks the
    /// protocol, overlap for any other.
    #[arg(long, value_enum)]
    pub(crate) strategy: Option<Strategy>,
    /// How many processes serve at once; they are replaced one after the other [default: 1].
    #[arg(long, value_name = "N")]
    pub(crate) instances: Option<Instances>,
    /// When a new generation counts as ready: auto, notify, after:TIME or exec:COMMAND
    /// [default: auto].
    #[arg(long, value_name = "HOW")]
    pub(crate) ready: Option<Ready>,
    /// What tells a generation to finish and end [default: TERM].
    #[arg(long, value_name = "SIGNAL")]
    pub(crate) stop_signal: Option<StopSignal>,
    /// How long a new generation may take to be ready [default: 1m].
    #[arg(long, value_name = "TIME")]
    pub(crate) ready_timeout: Option<Span>,
    /// How long a generation may take to finish what it has begun [default: 30s].
    #[arg(long, value_name = "TIME")]
    pub(crate) drain_timeout: Option<Span>,
    /// How long a new generation's death still brings the one before it back [default: 10s].
    #[arg(long, value_name = "TIME")]
    pub(crate) probation: Option<Span>,
    /// Run this in the probation, and undo the handover when it fails three times in a row:
    /// exec:COMMAND.
    #[arg(long, value_name = "HOW")]
    pub(crate) health: Option<Health>,
    /// How often the command of --health is run [default: 1s].
    #[arg(long, value_name = "TIME")]
    pub(crate) health_every: Option<Span>,
    /// What to do at a handover of state that could not be undone without a loss [default: warn].
    #[arg(long, value_enum, value_name = "POLICY")]
    pub(crate) without_way_back: Option<WithoutWayBack>,
    /// How long clients may wait when the state moves: it is copied beforehand until what is left fits
    /// [default: 5ms].
    #[arg(long, value_name = "TIME")]
    pub(crate) pause: Option<Span>,
    /// The longest the state may stand still when it moves; then the old program goes on with it
    /// [default: 1s].
    #[arg(long, value_name = "TIME")]
    pub(crate) freeze_timeout: Option<Span>,
    /// Whether a handover of state is refused when memory would not do for two copies
    /// [default: true].
    #[arg(long, value_name = "BOOL")]
    pub(crate) memory_check: Option<bool>,
    /// Keep the state in this file while nothing runs: a stop saves it, the next start takes it up.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) state_file: Option<PathBuf>,
    /// How large the state may be, as it is copied: a larger one neither moves nor is saved
    /// [default: 1TiB].
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_state: Option<Size>,
    /// How much of what one process writes to its output may go into the log in a second, ten seconds'
    /// worth at once; what is more is dropped and counted [default: 1MiB].
    #[arg(long, value_name = "SIZE")]
    pub(crate) log_rate: Option<Size>,
    /// How often the program must send WATCHDOG=1.
    #[arg(long, value_name = "TIME")]
    pub(crate) watchdog: Option<Span>,
    /// How many former processes may drain before a handover waits for one to end [default: 8].
    #[arg(long, value_name = "N")]
    pub(crate) most_draining: Option<MostDraining>,
    /// Run it in this directory, looked up for each generation.
    #[arg(long, value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    pub(crate) directory: Option<PathBuf>,
    /// Add the NAME=VALUE lines of a file to its environment, read for each generation.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) env_file: Option<PathBuf>,
    /// Run it as this user.
    #[arg(long, value_name = "USER", value_hint = ValueHint::Username)]
    pub(crate) user: Option<String>,
    /// Run it as this group [default: the user's own].
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<String>,
    /// Its supplementary groups, with commas between [default: the user's own].
    #[arg(long, value_name = "GROUPS", value_delimiter = ',')]
    pub(crate) groups: Option<Vec<String>>,
    /// Whether nothing it executes, such as sudo, can give it privileges [default: true with a user
    /// other than root].
    #[arg(long, value_name = "BOOL")]
    pub(crate) no_new_privileges: Option<bool>,
    /// The capabilities it has, with commas between [default: none; for root all that the supervisor
    /// has].
    #[arg(long, value_name = "NAMES")]
    pub(crate) capabilities: Option<Capabilities>,
    /// Run the program only if its file has this SHA-256.
    #[arg(long, value_name = "HEX")]
    pub(crate) sha256: Option<Sha256>,
}

/// Hand over to the program as it stands now, wait, and report
///
/// Everything is looked up again: the configuration, symbolic links, the directory, the environment
/// file and the program.
#[derive(Debug, Args)]
#[command(after_help = exit::TABLE)]
pub(crate) struct Reload {
    /// The service; all of them if none is named.
    #[arg(value_name = "SERVICE")]
    pub(crate) service: Option<String>,
    #[command(flatten)]
    pub(crate) which: Which,
    /// Start the new program, see it ready, and let it go again.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Wait at most this long for the outcome.
    #[arg(long, value_name = "TIME")]
    pub(crate) timeout: Option<Span>,
    /// Wait until the probation is over: only then can exit status 5 be told from 0 for a program
    /// that dies in its first seconds.
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) until_proven: bool,
    /// Print the report as JSON, a line a service.
    #[arg(long)]
    pub(crate) json: bool,
    /// The program and its arguments from now on.
    #[arg(last = true, value_name = "PROGRAM ARGS", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) program: Vec<String>,
}

/// Hand over to the last proven program
///
/// A program is proven once it has lived through its probation. It is kept open, so this works also
/// when a deploy has renamed over or deleted it.
#[derive(Debug, Args)]
#[command(after_help = exit::TABLE)]
pub(crate) struct Rollback {
    /// The service; not needed when there is only one.
    #[arg(value_name = "SERVICE")]
    pub(crate) service: Option<String>,
    #[command(flatten)]
    pub(crate) which: Which,
    /// Wait at most this long for the outcome.
    #[arg(long, value_name = "TIME")]
    pub(crate) timeout: Option<Span>,
    /// Print the report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show what runs
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 told; 2 usage; 3 no supervisor reached; 4 no answer in time."
)]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Print it as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Show it again every second, until interrupted.
    #[arg(long)]
    pub(crate) watch: bool,
}

/// Show what happened
#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 told; 2 usage; 3 no supervisor reached.")]
pub(crate) struct Events {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Go on with what happens from now on, until interrupted.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Print JSON, a line an event.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Let everything finish what it has begun, and end
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 ended; 1 ended, and a state could not be saved, or not ended; 2 usage; 3 no supervisor reached."
)]
pub(crate) struct Stop {
    #[command(flatten)]
    pub(crate) which: Which,
    /// After so long, end it all the same; with --leave-running, wait for no handover any longer and fail.
    #[arg(long, value_name = "TIME")]
    pub(crate) timeout: Option<Span>,
    /// End the supervisor alone. What it runs serves on, and the next supervisor of its name takes it over: under
    /// the systemd unit that is started at once, else by whoever starts it. Refused if the next one could not start.
    /// The supervisor ends with status 6.
    #[arg(long)]
    pub(crate) leave_running: bool,
}

/// Replace the supervisor itself by its program as it stands now
///
/// The process goes on as the new program: the same pid, sockets, programs and clients, and nothing is
/// interrupted. The program is looked up where the supervisor was started from, and tried first; one that
/// cannot go on from what this supervisor knows changes nothing. Handovers that are under way are waited
/// for, and those that are asked for meanwhile are begun by the new program. USR2 does the same.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 the new program runs; 1 refused or failed, the old one runs on and nothing changed; \
2 usage; 3 no supervisor reached; 4 timed out waiting, outcome unknown."
)]
pub(crate) struct Upgrade {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Wait at most this long for handovers that are under way.
    #[arg(long, value_name = "TIME", default_value = "1m")]
    pub(crate) timeout: Span,
    /// Print what runs now as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Save the state of a running service to a file
///
/// The service serves on. The file is whole or not there: it is written beside its place, read back,
/// and then renamed over FILE.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 saved; 1 refused or failed, FILE is as it was; 2 usage; 3 no supervisor reached; \
4 timed out waiting, outcome unknown."
)]
pub(crate) struct Snapshot {
    /// The service; not needed when there is only one.
    #[arg(value_name = "SERVICE")]
    pub(crate) service: Option<String>,
    #[command(flatten)]
    pub(crate) which: Which,
    /// The file. The supervisor writes it, with the rights of its own user.
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: PathBuf,
    /// Which instance, from 0, of a service that has several: each has a state of its own.
    #[arg(long, value_name = "N")]
    pub(crate) instance: Option<usize>,
    /// Wait at most this long.
    #[arg(long, value_name = "TIME")]
    pub(crate) timeout: Option<Span>,
    /// Print what was saved as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Tell what a saved state holds, and whether it is sound
///
/// Needs neither the program that wrote it nor a supervisor. Every checksum is checked, every entry
/// counted; of a damaged file it says what is wrong and at which byte.
#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 sound; 1 damaged; 2 usage, or it cannot be read.")]
pub(crate) struct Inspect {
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// Also print the shapes of keys and values.
    #[arg(long)]
    pub(crate) shapes: bool,
    /// Print it as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Validate a configuration and print it with every default filled in
///
/// What only shows on the machine it will run on (a program that does not exist, say) is a warning.
#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 valid; 2 not valid.")]
pub(crate) struct Check {
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
}

/// Hand a program over again and again, under load, while its processes are killed; tell what was lost
///
/// Runs a supervisor of its own, in a temporary directory, with PROGRAM on a loopback port. Clients ask
/// all the time and never retry; at random moments the new or the old process is killed or stopped.
/// What a killed process alone had (requests it was at, its connections, its state) is counted apart; all
/// else that a client misses is a loss.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 nothing was lost, nothing is left over; 1 something was, or a handover failed that nobody \
disturbed; 2 usage; 3 the program does not come up. INT and TERM end it early, with a report; twice: at once."
)]
pub(crate) struct Torture {
    /// Go on for so long [default: 30s].
    #[arg(long = "for", value_name = "TIME", conflicts_with = "handovers")]
    pub(crate) lasting: Option<Span>,
    /// Go on for so many handovers.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) handovers: Option<u64>,
    /// From the beginning of one handover to that of the next.
    #[arg(long, value_name = "TIME", default_value = "500ms")]
    pub(crate) every: Span,
    /// Kill this generation with SIGKILL at a random moment of a handover.
    #[arg(long, value_enum, value_name = "WHICH", default_value = "new")]
    pub(crate) kill: Aim,
    /// Stop this generation for a while at a random moment of a handover.
    #[arg(long, value_enum, value_name = "WHICH", default_value = "none")]
    pub(crate) stall: Aim,
    /// For so long.
    #[arg(long, value_name = "TIME", default_value = "2s")]
    pub(crate) stall_for: Span,
    /// Of a hundred handovers, so many are disturbed.
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) share: u8,
    /// Choose moments and victims by this number; the report names the one that was used. The same one
    /// chooses the same again, as far as the machine is as fast.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// At every second handover hand over to this program instead, with the same arguments.
    #[arg(long, value_name = "PROGRAM", value_hint = ValueHint::CommandName)]
    pub(crate) alternate: Option<String>,
    /// Clients GET this path.
    #[arg(long, value_name = "PATH", default_value = "/")]
    pub(crate) path: String,
    /// Clients POST to this path, KEY in it being each client's own, and expect how often they have done
    /// so: then each write that was acknowledged is checked to be there once.
    #[arg(long, value_name = "PATH", conflicts_with = "path")]
    pub(crate) counter: Option<String>,
    /// Clients only connect, for programs that do not speak HTTP.
    #[arg(long, conflicts_with_all = ["path", "counter"])]
    pub(crate) connect_only: bool,
    /// A connection that the program closes between two requests counts as lost.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Clients that keep their connection.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clients)]
    pub(crate) keeping: usize,
    /// Clients that connect anew for each request.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clients)]
    pub(crate) fresh: usize,
    /// Clients that keep a connection and use it every three seconds.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clients)]
    pub(crate) idle: usize,
    /// How long a client waits from an answer to its next request.
    #[arg(long, value_name = "TIME", default_value = "10ms")]
    pub(crate) pace: Span,
    /// Print the report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Listen there; the first is the one that clients connect to [default: http=tcp:127.0.0.1:0].
    #[arg(long, value_name = "SPEC")]
    pub(crate) listen: Vec<ListenSpec>,
    #[command(flatten)]
    pub(crate) tuning: Tuning,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "PROGRAM ARGS", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) program: Vec<String>,
}

/// Each client is a thread.
fn clients(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number <= 512);
    number.ok_or_else(|| "give a number up to 512".to_owned())
}

/// Write man pages or completions, made from the definition of this command line
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct Generate {
    #[command(subcommand)]
    pub(crate) what: Generated,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Generated {
    /// Man pages, a file a command, into a directory
    Man { directory: PathBuf },
    /// Completions for a shell, to standard output
    Completions { shell: clap_complete::Shell },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_holds_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_file_and_a_program_exclude_each_other() {
        let parse = |line: &str| Arguments::try_parse_from(line.split(' ')).map(drop);
        parse("heirloom run --config x.toml").unwrap();
        parse("heirloom run --listen 80 --strategy sequential -- prog --flag").unwrap();
        parse("heirloom run").unwrap_err();
        parse("heirloom run --config x.toml -- prog").unwrap_err();
        parse("heirloom run --config x.toml --strategy overlap").unwrap_err();
        parse("heirloom run --config x.toml --listen 80").unwrap_err();
        parse("heirloom reload web --timeout 5s --json -- prog a").unwrap();
    }
}
