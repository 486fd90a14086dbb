//! Where log lines go and what they look like.
//!
//! A terminal gets lines for people, journald its own fields, everything else JSON. Lines of the
//! supervisor and of its programs take the same way; each carries service and generation. Writing
//! never waits: files and terminals are written by a thread, journald through a socket that does not
//! block. What a reader does not take is dropped, for a log must not stop a supervisor.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

/// So many lines may wait for the thread that writes them.
const MOST_WAITING: usize = 4096;

/// How long lines that wait for the thread are waited for before the process is another program.
const LONGEST_FLUSH: Duration = Duration::from_millis(200);

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
    /// How many lines were given to the thread, and how many it has written.
    put: Arc<AtomicU64>,
    written: Arc<AtomicU64>,
    _flush: Option<WorkerGuard>,
}

impl Log {
    /// Waits, for a moment, until what was said is written: this process is about to be another program.
    pub(crate) fn flush(&self) {
        let deadline = std::time::Instant::now() + LONGEST_FLUSH;
        let behind = || self.put.load(Ordering::Acquire) > self.written.load(Ordering::Acquire);
        while behind() && std::time::Instant::now() < deadline {
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
    let (put, written) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let counted = Arc::clone(&written);
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
        written,
        _flush: flush,
    })
}

/// A writer that counts lines: each is written by one call.
struct Counted<W> {
    writer: W,
    written: Arc<AtomicU64>,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let result = self.writer.write_all(line);
        self.written.fetch_add(1, Ordering::Release);
        result.map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

fn thread(
    writer: impl Write + Send + 'static,
    written: Arc<AtomicU64>,
) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(MOST_WAITING)
        .thread_name("log")
        .finish(Counted { writer, written })
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

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
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
        let time = humantime::format_rfc3339_millis(SystemTime::now());
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
        writeln!(writer, "{}", line.message)
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
