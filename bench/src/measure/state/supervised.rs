//! A holder of state under the real supervisor.

use std::path::PathBuf;
use std::{fs, iter};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::peers::Programs;
use crate::state::account::{Account, now_ns};
use crate::state::record::CodecName;
use crate::supervisor::{Handover, Supervisor};

/// A service that holds state, and the accounts its generations leave.
#[derive(Debug)]
pub struct Supervised {
    supervisor: Supervisor,
    program: String,
    arguments: Vec<String>,
    accounts: TempDir,
    asked: Vec<(u64, Handover)>,
}

/// What the whole life of the service came to.
#[derive(Debug)]
pub struct Life {
    /// When each handover was asked for, and what the supervisor says about it.
    pub handovers: Vec<(u64, Handover)>,
    /// The account of each generation, from the first. One more than handovers.
    pub accounts: Vec<Account>,
}

impl Supervised {
    /// Starts it and waits until the first generation holds `entries` entries.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start(
        programs: &Programs,
        entries: u64,
        rate: u64,
        codec: CodecName,
    ) -> Result<Self> {
        let accounts = TempDir::with_prefix("heirloom-accounts-")?;
        let program = programs.holder.to_string_lossy().into_owned();
        let arguments = [
            ("--entries", entries.to_string()),
            ("--rate", rate.to_string()),
            ("--codec", codec.word().to_owned()),
            ("--accounts", accounts.path().to_string_lossy().into_owned()),
        ];
        let arguments: Vec<String> = arguments
            .into_iter()
            .flat_map(|(name, value)| [name.to_owned(), value])
            .collect();
        let command: Vec<&str> = iter::once(program.as_str())
            .chain(arguments.iter().map(String::as_str))
            .collect();
        let supervisor = Supervisor::start(&programs.heirloom, &command).await?;
        Ok(Self {
            supervisor,
            program,
            arguments,
            accounts,
            asked: Vec::new(),
        })
    }

    /// The supervisor itself.
    pub fn supervisor(&mut self) -> &mut Supervisor {
        &mut self.supervisor
    }

    /// Hands over once.
    ///
    /// # Errors
    /// If it fails, or the state did not go over.
    pub async fn hand_over(&mut self) -> Result<Handover> {
        self.hand_over_to(&[]).await
    }

    async fn hand_over_to(&mut self, command: &[&str]) -> Result<Handover> {
        let asked_ns = now_ns();
        self.supervisor.reload(command).await?;
        let last = self.supervisor.status().await?.last_handover;
        let handover = last.context("the supervisor does not know of the handover")?;
        if handover.outcome != "committed" || !handover.moves_connections() {
            bail!("the state did not go over: {handover:?}");
        }
        self.asked.push((asked_ns, handover.clone()));
        Ok(handover)
    }

    /// Hands over once more, to a generation that does not write and counts what the entries know of;
    /// then ends all of it.
    ///
    /// # Errors
    /// If that fails, or a generation left no account.
    pub async fn end(mut self) -> Result<Life> {
        let counting = [self.program.clone()]
            .into_iter()
            .chain(self.arguments.clone())
            .chain(["--writers".to_owned(), "0".to_owned(), "--count".to_owned()])
            .collect::<Vec<_>>();
        let counting: Vec<&str> = counting.iter().map(String::as_str).collect();
        self.hand_over_to(&counting).await?;
        self.supervisor.stop().await?;
        let generations = self.asked.len() as u64 + 1;
        let path = |number: u64| -> PathBuf { self.accounts.path().join(format!("{number}.json")) };
        let accounts = (1..=generations)
            .map(|number| {
                let bytes = fs::read(path(number))
                    .with_context(|| format!("generation {number} left no account"))?;
                Ok(serde_json::from_slice(&bytes)?)
            })
            .collect::<Result<_>>()?;
        Ok(Life {
            handovers: self.asked,
            accounts,
        })
    }
}
