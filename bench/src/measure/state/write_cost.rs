//! What a tracked write costs: by turns with the same write on a map without tracking, and while a copy
//! is being made.
//!
//! The program that writes is told to copy by this one, which plays its supervisor and its successor:
//! it reads the base and then says nothing more. So every entry has been copied, every write is a
//! change to be noted, and no other thread works. That is the most that tracking itself can cost.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use heirloom_handover::lifeline::Lifeline;
use heirloom_handover::message::{LARGEST_BYTES, Order, Purpose, Reads, Report};
use heirloom_handover::{environment, fds};
use heirloom_state_codec::{Event, Limits, SnapshotReader};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use nix::unistd::pipe2;

use super::Extent;
use crate::measure::{Outcome, Pairs};
use crate::peers::Programs;
use crate::publish::markdown::Table;

/// The ratios to hold.
const HOLD_IDLE: f64 = 1.01;
const HOLD_COPYING: f64 = 1.1;
/// Writes of one batch: some tens of milliseconds.
const BATCH: u64 = 100_000;
/// How long the program may take to say something.
const PATIENCE_S: i64 = 60;
/// What the program is told about times. The copy does not get so far that they matter.
const PAUSE: Duration = Duration::from_millis(5);
const FREEZE: Duration = Duration::from_secs(1);

/// Writes on each map by turns, without a copy and with one.
///
/// # Errors
/// If the program fails.
pub async fn measure(programs: &Programs, extent: Extent) -> Result<Outcome> {
    let programs = programs.clone();
    // All of it waits for one pipe or another.
    tokio::task::spawn_blocking(move || compare(&programs, extent)).await?
}

fn compare(programs: &Programs, extent: Extent) -> Result<Outcome> {
    let (entries, copies, turns) = match extent {
        Extent::Full => (1_000_000, 8, 4),
        Extent::Small => (20_000, 2, 1),
    };
    let mut writer = Writer::start(programs, entries)?;
    let (mut idle, mut copying) = (Pairs::default(), Pairs::default());
    let mut plain = Pairs::default();
    for _ in 0..copies {
        for _ in 0..turns {
            idle.add(writer.batch("tracked")?, writer.batch("untracked")?);
            plain.add(writer.batch("tracked")?, writer.batch("plain")?);
        }
        let copy = writer.begin_copy()?;
        for _ in 0..turns {
            copying.add(writer.batch("tracked")?, writer.batch("untracked")?);
        }
        writer.end_copy(copy)?;
    }
    writer.end()?;

    let mut table = Table::new([
        "a write on a tracked map",
        "against",
        "rounds",
        "tracked",
        "other",
        "ratio",
        "middle half",
        "hold",
    ]);
    let mut missed = Vec::new();
    let rows = [
        (
            "no handover",
            "the same map, untracked",
            &idle,
            Some(HOLD_IDLE),
        ),
        (
            "a copy is being made",
            "the same map, untracked",
            &copying,
            Some(HOLD_COPYING),
        ),
        (
            "no handover",
            "`Mutex<HashMap>`, as many shards",
            &plain,
            None,
        ),
    ];
    for (when, against, pairs, hold) in rows {
        let (low, high) = pairs.spread();
        let ratio = pairs.ratio();
        table.row([
            when.to_owned(),
            against.to_owned(),
            pairs.count().to_string(),
            format!("{:.0} ns", pairs.first()),
            format!("{:.0} ns", pairs.second()),
            format!("**{ratio:.3}**"),
            format!("{low:.3} to {high:.3}"),
            hold.map_or_else(|| "not judged".to_owned(), |hold| format!("≤ {hold}")),
        ]);
        if let Some(hold) = hold.filter(|hold| extent == Extent::Full && ratio > *hold) {
            missed.push(format!(
                "{when}: a tracked write takes {ratio:.3} times as long as an untracked one, not {hold}"
            ));
        }
    }
    Ok(Outcome {
        section: "state-write",
        table,
        missed,
    })
}

/// The program that writes. It is killed if this is dropped before its end.
struct Writer {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    socket: OwnedFd,
    /// What it says that it can read; a copy is made for a reader that can read the same.
    reads: Vec<Reads>,
    migration: u64,
}

/// A copy that has come to the end of its base.
struct Copy {
    stream: std::fs::File,
    /// Kept open: their end would end the copy.
    _others: (Lifeline, OwnedFd),
}

impl Drop for Writer {
    fn drop(&mut self) {
        // It has ended if all went well; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Writer {
    fn start(programs: &Programs, entries: u64) -> Result<Self> {
        let (socket, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(PATIENCE_S))?;
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let mut command = Command::new(&programs.write_cost);
        for name in environment::OF_THE_SUPERVISOR_ALONE {
            command.env_remove(name);
        }
        let mut child = command
            .args(["--entries", &entries.to_string()])
            .env(environment::HEIRLOOM_FD, theirs.as_raw_fd().to_string())
            .env(environment::HEIRLOOM_GENERATION, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", programs.write_cost.display()))?;
        drop(theirs);
        let output = child.stdout.take().context("its output is piped")?;
        let mut writer = Self {
            input: child.stdin.take(),
            output: BufReader::new(output),
            child,
            socket,
            reads: Vec::new(),
            migration: 0,
        };
        match writer.report()? {
            Report::Hello { reads, .. } => writer.reads = reads,
            other => bail!("it said {other:?} instead of HELLO"),
        }
        writer.order(&Order::Begin, &[])?;
        let filled = writer.line()?;
        if filled != "filled" {
            bail!("it wrote {filled:?} instead of saying that it is filled");
        }
        Ok(writer)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        if line.is_empty() {
            bail!("it ended; its reason is above");
        }
        Ok(line.trim().to_owned())
    }

    fn order(&self, order: &Order, descriptors: &[OwnedFd]) -> Result<()> {
        Ok(fds::send(&self.socket, &order.to_bytes(), descriptors)?)
    }

    fn report(&self) -> Result<Report> {
        let received = fds::receive(&self.socket, LARGEST_BYTES)?;
        Ok(Report::parse(&received.bytes)?)
    }

    /// Nanoseconds of one write, over a batch.
    fn batch(&mut self, map: &str) -> Result<f64> {
        let input = self.input.as_mut().context("its input is closed")?;
        writeln!(input, "{map} {BATCH}")?;
        let took_ns: f64 = self.line()?.parse()?;
        Ok(took_ns / BATCH as f64)
    }

    /// Lets it copy, up to where every entry has been copied and it waits to be told to freeze.
    fn begin_copy(&mut self) -> Result<Copy> {
        self.migration += 1;
        let (stream, their_stream) = pipe2(OFlag::O_CLOEXEC)?;
        let (lifeline, their_lifeline) = Lifeline::pair()?;
        let (link, their_link) = Lifeline::pair()?;
        let order = Order::Send {
            migration: self.migration,
            to: 2,
            purpose: Purpose::Handover,
            pause: PAUSE,
            freeze: FREEZE,
            reads: self.reads.clone(),
            bytes_max: None,
            way_back: None,
        };
        self.order(&order, &[their_stream, their_lifeline, their_link])?;
        let mut stream = std::fs::File::from(stream);
        let lifeline = Lifeline::new(lifeline);
        let mut reader = SnapshotReader::new(Limits::default());
        loop {
            let count = stream.read(reader.space())?;
            if count == 0 {
                bail!("it gave the copy up: {:?}", self.report()?);
            }
            reader.filled(count);
            while let Some(event) = reader.poll()? {
                if let Event::RoundEnd(round) = event {
                    lifeline.applied(round.round)?;
                    match self.report()? {
                        Report::Converged { .. } => {
                            return Ok(Copy {
                                stream,
                                _others: (lifeline, link),
                            });
                        }
                        other => bail!("it said {other:?} instead of CONVERGED"),
                    }
                }
            }
        }
    }

    fn end_copy(&self, mut copy: Copy) -> Result<()> {
        let order = Order::Abort {
            migration: self.migration,
            reason: "it was only measured".to_owned(),
        };
        self.order(&order, &[])?;
        // It closes the stream once it has ended the copy.
        copy.stream.read_to_end(&mut Vec::new())?;
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        drop(self.input.take());
        let status = self.child.wait()?;
        if !status.success() {
            bail!("it ended with {status}");
        }
        Ok(())
    }
}
