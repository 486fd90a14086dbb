//! How soon a request is answered after `kill -9` of the generation that serves: in its probation, where the
//! one before it is in reserve, and afterwards, where the program is started anew.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::state::Extent;
use super::{Outcome, Pairs};
use crate::peers::Programs;
use crate::publish::markdown::Table;
use crate::supervisor::Supervisor;

/// How long an answer may take in all.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two attempts: a death closes connections that were accepted, and those are tried again.
const PAUSE: Duration = Duration::from_micros(200);

/// So many writes are acknowledged before each death.
const WRITES: u64 = 20;

/// Lets generations die by turns.
///
/// # Errors
/// If nobody answers, or an acknowledged write is lost in a probation.
pub async fn measure(programs: &Programs, extent: Extent) -> Result<Outcome> {
    let rounds = match extent {
        Extent::Small => 2,
        Extent::Full => 30,
    };
    let demo = programs.demo.to_string_lossy();
    let mut pairs = Pairs::default();
    for _ in 0..rounds {
        let mut supervisor = Supervisor::start(&programs.heirloom, &[demo.as_ref()]).await?;
        supervisor.reload(&[]).await?;
        let address = supervisor.address();
        for _ in 0..WRITES {
            ask(address, "POST", "/counters/a").await?;
        }
        let back = after_death(&mut supervisor).await?;
        let kept = ask(address, "GET", "/counters/a").await?;
        ensure!(
            kept == WRITES.to_string(),
            "{kept} of {WRITES} acknowledged writes are left after a death in the probation"
        );
        // The one that was in reserve has nobody behind it any more.
        let anew = after_death(&mut supervisor).await?;
        supervisor.stop().await?;
        pairs.add(back.as_secs_f64() * 1e3, anew.as_secs_f64() * 1e3);
    }
    let mut table = Table::new([
        "rounds",
        "from kill -9 to an answer, in the probation",
        "writes left",
        "the same, started anew",
        "writes left",
        "ratio",
        "middle half",
    ]);
    let (low, high) = pairs.spread();
    table.row([
        rounds.to_string(),
        format!("{:.2} ms", pairs.first()),
        format!("{WRITES} of {WRITES}"),
        format!("{:.2} ms", pairs.second()),
        format!("0 of {WRITES}"),
        format!("**{:.2}**", pairs.ratio()),
        format!("{low:.2} to {high:.2}"),
    ]);
    Ok(Outcome {
        section: "probation",
        table,
        missed: Vec::new(),
    })
}

/// Kills the generation that serves; how long it takes until another process answers.
async fn after_death(supervisor: &mut Supervisor) -> Result<Duration> {
    let address = supervisor.address();
    let pid = timeout(PATIENCE, settled(supervisor))
        .await
        .context("nothing comes to serve")??;
    let mine = format!("\"pid\":{pid}}}");
    let killed = Instant::now();
    kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL)?;
    timeout(PATIENCE, async {
        loop {
            match ask(address, "GET", "/version").await {
                Ok(answer) if !answer.ends_with(&mine) => return,
                Ok(_) | Err(_) => sleep(PAUSE).await,
            }
        }
    })
    .await
    .context("nobody answers after a death")?;
    Ok(killed.elapsed())
}

/// The process that serves, once the supervisor has taken note of the last death.
async fn settled(supervisor: &mut Supervisor) -> Result<i32> {
    loop {
        let answering = ask(supervisor.address(), "GET", "/version").await?;
        let service = supervisor.status().await?;
        let serving = service
            .generations
            .iter()
            .filter(|one| one.phase == "serving");
        let serving: Vec<i32> = serving.map(|one| one.pid).collect();
        if let [pid] = serving[..]
            && service.state == "serving"
            && answering.ends_with(&format!("\"pid\":{pid}}}"))
        {
            return Ok(pid);
        }
        sleep(PAUSE).await;
    }
}

/// The body of a good answer, on a connection of its own.
async fn ask(address: SocketAddr, method: &str, target: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "{method} {target} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    Ok(body.to_owned())
}
