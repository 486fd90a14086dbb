//! Where log lines go and what they look like.
//!
//! A terminal gets lines for people, journald its own fields, everything else JSON. Lines of the
//! supervisor and of its programs take the same way; each carries service and generation. Writing
//! never waits: files and terminals are written by a thread, journald through a socket that does not
//! block. What a reader does not take, or a disk has no room for, is dropped, for a log must not stop a
//! supervisor; where a thread writes, it is told how much once there is room again.

use std::borrow::Cow;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use crate::clock::time_of_day;

/// So many lines may wait for the thread that writes them.
const MOST_WAITING: usize = 4096;

/// How long the last lines may take to be written.
const LONGEST_FLUSH: Duration = Duration::from_secs(2);

/// How long lines that wait for the thread are waited for before the process is another program.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// What log lines look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people on a terminal, journald's fields if journald reads, JSON otherwise.
    Auto,
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
    /// journald's own fields.
    Journald,
}

/// The running log; flushed when dropped.
#[derive(Debug)]
pub(crate) struct Log {
    reopen: Arc<AtomicBool>,
    /// How many lines were given to the thread, and how many it has taken from there.
    put: Arc<AtomicU64>,
    taken: Arc<AtomicU64>,
    flush: Option<WorkerGuard>,
}

impl Drop for Log {
    fn drop(&mut self) {
        let Some(guard) = self.flush.take() else {
            return;
        };
        // The guard says on standard output what it could not flush, and that may be just as stuck.
        let (done, flushed) = mpsc::channel();
        let flushing = std::thread::Builder::new().spawn(move || {
            drop(guard);
            // Whoever waited may have given up.
            let _late = done.send(());
        });
        if flushing.is_ok() {
            let _late = flushed.recv_timeout(LONGEST_FLUSH);
        }
    }
}

impl Log {
    /// Waits, for a moment, until what was said is written: this process is about to be another program.
    pub(crate) fn flush(&self) {
        let deadline = Instant::now() + LONGEST_PAUSE;
        let behind = || self.put.load(Ordering::Acquire) > self.taken.load(Ordering::Acquire);
        while behind() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Opens log files anew before the next line, for after they were renamed.
    pub(crate) fn reopen(&self) {
        self.reopen.store(true, Ordering::Release);
    }
}

/// Starts logging, once in the life of the process.
///
/// # Errors
///
/// The file cannot be opened, or journald cannot be reached though it was asked for.
pub(crate) fn start(format: Format, file: Option<&Path>) -> io::Result<Log> {
    let reopen = Arc::new(AtomicBool::new(false));
    let format = match format {
        Format::Auto if file.is_some() => Format::Json,
        Format::Auto if journald_reads(&io::stderr()) => Format::Journald,
        Format::Auto if io::stderr().is_terminal() => Format::Human,
        Format::Auto => Format::Json,
        chosen @ (Format::Human | Format::Json | Format::Journald) => chosen,
    };
    let (put, taken) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let counted = Arc::clone(&taken);
    let registry = tracing_subscriber::registry().with(LevelFilter::INFO);
    let flush = if format == Format::Journald {
        let before = crate::sys::open_descriptors()?;
        let journal = tracing_journald::layer()?
            .with_field_prefix(Some("HEIRLOOM".to_owned()))
            .with_syslog_identifier("heirloom".to_owned());
        // The layer writes on the thread that logs. A journald that does not read must cost lines,
        // not the supervisor.
        crate::sys::stop_waiting_on_new(&before)?;
        registry.with(journal).init();
        None
    } else {
        let (writer, flush) = match file {
            Some(path) => thread(Reopened::open(path, Arc::clone(&reopen))?, counted),
            None => thread(io::stderr(), counted),
        };
        let color = file.is_none() && io::stderr().is_terminal();
        registry
            .with(layer(format, writer, Arc::clone(&put), color))
            .init();
        Some(flush)
    };
    Ok(Log {
        reopen,
        put,
        taken,
        flush,
    })
}

fn thread(
    writer: impl Write + Send + 'static,
    taken: Arc<AtomicU64>,
) -> (NonBlocking, WorkerGuard) {
    let overflow = Arc::<OnceLock<ErrorCounter>>::default();
    let counting = Counting {
        writer,
        taken,
        overflow: Arc::clone(&overflow),
        unwritten: 0,
        told: 0,
    };
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(MOST_WAITING)
        .thread_name("log")
        .finish(counting);
    // Set once, here.
    let _fresh = overflow.set(writer.error_counter());
    (writer, guard)
}

/// Tells how many lines were lost as soon as one can be written.
struct Counting<W> {
    writer: W,
    /// Counts the lines that came here.
    taken: Arc<AtomicU64>,
    /// Counts the lines that had no place among those that wait.
    overflow: Arc<OnceLock<ErrorCounter>>,
    /// Lines that could not be written.
    unwritten: usize,
    /// Lost lines that were told of.
    told: usize,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        let written = self.writer.write_all(line);
        self.taken.fetch_add(1, Ordering::Release);
        if let Err(error) = written {
            self.unwritten = self.unwritten.saturating_add(1);
            return Err(error);
        }
        let overflow = self.overflow.get().map_or(0, ErrorCounter::dropped_lines);
        let lost = overflow.saturating_add(self.unwritten);
        let untold = lost.saturating_sub(self.told);
        if untold > 0 {
            self.told = lost;
            // Comes behind what waits.
            tracing::warn!(
                "{untold} lines of the log were lost: it could not be written for a while"
            );
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

type Boxed =
    Box<dyn Layer<tracing_subscriber::layer::Layered<LevelFilter, Registry>> + Send + Sync>;

fn layer(format: Format, writer: NonBlocking, put: Arc<AtomicU64>, color: bool) -> Boxed {
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(move || {
            put.fetch_add(1, Ordering::Release);
            writer.clone()
        })
        .with_ansi(color);
    match format {
        Format::Json => layer
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .boxed(),
        Format::Auto | Format::Human | Format::Journald => layer.event_format(ForPeople).boxed(),
    }
}

/// Whether journald reads what is written here (`JOURNAL_STREAM`, `systemd.exec(5)`).
fn journald_reads(stream: &impl std::os::fd::AsFd) -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(descriptor) = stream.as_fd().try_clone_to_owned() else {
        return false;
    };
    let Ok(metadata) = File::from(descriptor).metadata() else {
        return false;
    };
    named == format!("{}:{}", metadata.dev(), metadata.ino())
}

/// A file that is opened anew when told to.
struct Reopened {
    path: PathBuf,
    file: File,
    wanted: Arc<AtomicBool>,
}

impl Reopened {
    fn open(path: &Path, wanted: Arc<AtomicBool>) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: append_to(path)?,
            wanted,
        })
    }
}

/// Not for everybody to read: nobody knows what programs write.
fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)
}

impl Write for Reopened {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // If it cannot be opened, the old file goes on: better there than nowhere.
        if self.wanted.swap(false, Ordering::Acquire)
            && let Ok(file) = append_to(&self.path)
        {
            self.file = file;
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Text of a program's, with what a terminal would obey made visible; so written, JSON stays what it is.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let obeyed = |one: char| one.is_control() && !matches!(one, '\n' | '\t');
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for one in text.chars() {
        if obeyed(one) {
            shown.push_str(&format!("\\u{:04x}", u32::from(one)));
        } else {
            shown.push(one);
        }
    }
    Cow::Owned(shown)
}

/// `2026-01-01T00:00:00Z WARN shop/7: text`
struct ForPeople;

impl<S, N> FormatEvent<S, N> for ForPeople
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Line::default();
        event.record(&mut line);
        let (dim, color, plain) = match (writer.has_ansi_escapes(), *event.metadata().level()) {
            (false, _) => ("", "", ""),
            (true, Level::ERROR) => ("\x1b[2m", "\x1b[31m", "\x1b[0m"),
            (true, Level::WARN) => ("\x1b[2m", "\x1b[33m", "\x1b[0m"),
            (true, _) => ("\x1b[2m", "\x1b[32m", "\x1b[0m"),
        };
        let time = humantime::format_rfc3339_millis(time_of_day());
        let level = event.metadata().level();
        write!(writer, "{dim}{time}{plain} {color}{level:>5}{plain} ")?;
        match (line.service.as_str(), line.generation) {
            ("", _) => {}
            (service, 0) => write!(writer, "{service}: ")?,
            (service, generation) => write!(writer, "{service}/{generation}: ")?,
        }
        if !line.stream.is_empty() {
            write!(writer, "{dim}{}|{plain} ", line.stream)?;
        }
        writeln!(writer, "{}", printable(&line.message))
    }
}

#[derive(Default)]
struct Line {
    service: String,
    generation: u64,
    stream: String,
    message: String,
}

impl Visit for Line {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "generation" {
            self.generation = value;
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "service" => value.clone_into(&mut self.service),
            "stream" => value.clone_into(&mut self.stream),
            _other => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            "service" => self.service = format!("{value:?}").trim_matches('"').to_owned(),
            _other => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        assert_eq!(printable("plain\ttext\n"), "plain\ttext\n");
        let title = "\x1b]0;title\x07 \u{9b}2J \u{7f}";
        assert_eq!(printable(title), "\\u001b]0;title\\u0007 \\u009b2J \\u007f");
        let json = serde_json::to_string(title).unwrap();
        let read: String = serde_json::from_str(&printable(&json)).unwrap();
        assert_eq!(read, title);
    }

    #[test]
    fn only_the_owner_and_the_group_may_read_a_log() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        append_to(&path).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o137, 0, "{mode:o}");
    }

    #[test]
    fn a_renamed_file_is_left_once_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let told = Arc::new(AtomicBool::new(false));
        let mut log = Reopened::open(&path, Arc::clone(&told)).unwrap();
        log.write_all(b"one\n").unwrap();
        let rotated = directory.path().join("log.1");
        std::fs::rename(&path, &rotated).unwrap();
        log.write_all(b"two\n").unwrap();
        told.store(true, Ordering::Release);
        log.write_all(b"three\n").unwrap();
        assert_eq!(std::fs::read_to_string(&rotated).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
    }
}
