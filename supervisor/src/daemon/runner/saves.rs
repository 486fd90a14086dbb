//! Saving the state of a service to a file.
//!
//! Owns a snapshot that a client asked for, and the state that a stop leaves behind for the next start,
//! which takes it up in [`super::restores`]. How a file becomes whole or nothing is in [`crate::daemon::state_file`].

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::oneshot;

use heirloom_handover::fault::{self, Point};
use heirloom_handover::message::{Order, Report};

use super::Runner;
use crate::control::protocol::{EventKind, Fault, Refusal, Saved};
use crate::core::generation::Phase;
use crate::core::service::ProcessId;
use crate::daemon::input::{Input, ServiceInput};
use crate::daemon::memory::size;
use crate::daemon::process::{Custody, Process, Untold};
use crate::daemon::state_file::{Draft, Unsaved};
use crate::daemon::timer::Timer;

/// How long a program may take to write a snapshot: a hundred gigabytes to a slow disk.
const LONGEST_SAVE: Duration = Duration::from_secs(600);

/// A state that is being saved.
#[derive(Debug)]
pub(crate) struct Save {
    number: u64,
    process: ProcessId,
    generation: u64,
    purpose: Purpose,
    stage: Stage,
}

#[derive(Debug)]
enum Purpose {
    /// A client wants it.
    Snapshot(oneshot::Sender<Result<Saved, Refusal>>),
    /// It is kept for the next start.
    Keep,
}

#[derive(Debug)]
enum Stage {
    /// The file is being made.
    Drafting { _making: Timer },
    /// The program writes it; nobody waits longer than the deadline.
    Writing(Draft, Option<Timer>),
    /// The program says that it has written it, and is to end before that counts.
    Written(Draft, Counts),
    /// It is being read back and put in place.
    Keeping {
        _reading: Timer,
        place: PathBuf,
        counts: Counts,
    },
}

/// What a program says of what it wrote.
#[derive(Clone, Copy, Debug)]
struct Counts {
    entries: u64,
    rounds: u64,
    pause_usec: u64,
}

impl Runner {
    /// Saves the state of the process that serves, for a client.
    pub(crate) fn snapshot(
        &mut self,
        instance: Option<usize>,
        path: PathBuf,
        answer: oneshot::Sender<Result<Saved, Refusal>>,
    ) {
        let process = match self.whose_state(instance) {
            Ok(process) => process,
            Err(refusal) => {
                // The client may have gone.
                let _gone = answer.send(Err(refusal));
                return;
            }
        };
        let (id, generation) = (process.id, process.generation);
        let bytes_max = process.plan.service.max_state.bytes();
        self.last_migration += 1;
        let number = self.last_migration;
        let inputs = self.context.inputs.clone();
        let name = self.service.name.clone();
        let drafting = Timer::task(async move {
            let made = tokio::task::spawn_blocking(move || Draft::create(&path, bytes_max)).await;
            if let Ok(made) = made {
                let input = ServiceInput::Drafted(number, Box::new(made));
                // The queue is closed only when the supervisor ends.
                let _ended = inputs.send(Input::Service(name, input)).await;
            }
        });
        self.saving = Some(Save {
            number,
            process: id,
            generation,
            purpose: Purpose::Snapshot(answer),
            stage: Stage::Drafting { _making: drafting },
        });
    }

    /// The process whose state is meant, if it can be saved now.
    fn whose_state(&self, instance: Option<usize>) -> Result<&Process, Refusal> {
        let refuse = |fault, reason: String| Refusal { fault, reason };
        let name = &self.service.name;
        if self.machine.is_stopping() || self.stop_wanted {
            let reason = "the service is being stopped".to_owned();
            return Err(refuse(Fault::State, reason));
        }
        let serving = self
            .processes
            .values()
            .filter(|process| process.phase == Phase::Serving);
        let serving: Vec<&Process> = serving
            .filter(|process| instance.is_none_or(|instance| process.slot == instance))
            .collect();
        let process = match serving[..] {
            [process] => process,
            [] => {
                let reason = match instance {
                    Some(instance) => format!("no instance {instance} of {name} serves"),
                    None => format!("no generation of {name} serves"),
                };
                return Err(refuse(Fault::State, reason));
            }
            [_, ..] => {
                let reason = format!(
                    "{} instances of {name} serve, each with a state of its own; say which with --instance",
                    serving.len()
                );
                return Err(refuse(Fault::Usage, reason));
            }
        };
        let generation = process.generation;
        if process.native.custody != Custody::Owner {
            let reason = format!(
                "generation {generation} of {name} does not speak the handover protocol, so its state cannot be saved"
            );
            return Err(refuse(Fault::State, reason));
        }
        if self.migration_from(process.id).is_some() {
            let reason = "its state is being handed over; try again when that is over".to_owned();
            return Err(refuse(Fault::State, reason));
        }
        if self.saving.is_some() {
            let reason = "its state is being saved already; try again when that is over";
            return Err(refuse(Fault::State, reason.to_owned()));
        }
        Ok(process)
    }

    /// The file of a snapshot was made.
    pub(super) fn drafted(&mut self, number: u64, made: Result<Draft, Unsaved>) {
        let Some(save) = self.saving.as_mut().filter(|save| save.number == number) else {
            return;
        };
        let draft = match made {
            Ok(draft) => draft,
            Err(error) => return self.save_failed(&error.to_string()),
        };
        fault::reached(Point::Drafted);
        let order = Order::Save {
            migration: number,
            bytes_max: Some(draft.bytes_max()),
        };
        let told = match self.processes.get(&save.process) {
            Some(process) => process.order(&order, &[draft.descriptor()]),
            None => Err(Untold::Closed),
        };
        match told {
            Ok(()) => {
                let input =
                    Input::Service(self.service.name.clone(), ServiceInput::SaveOver(number));
                let limit = Timer::start(&self.context.inputs, LONGEST_SAVE, input);
                save.stage = Stage::Writing(draft, Some(limit));
            }
            Err(error) => {
                self.save_failed(&format!(
                    "the program cannot be told to save its state: {error}"
                ));
            }
        }
    }

    /// Whether a report of this number belongs to a state that a process saves.
    pub(super) fn is_saving(&self, id: ProcessId, number: u64) -> bool {
        let save = self.saving.as_ref();
        save.is_some_and(|save| save.number == number && save.process == id)
    }

    /// Whether a state is being kept for the next start.
    pub(super) fn is_keeping(&self) -> bool {
        let save = self.saving.as_ref();
        save.is_some_and(|save| matches!(save.purpose, Purpose::Keep))
    }

    /// The process that saves its state has said something.
    pub(super) fn save_said(&mut self, report: Report) {
        match report {
            Report::Saved {
                entries,
                rounds,
                pause_usec,
                ..
            } => {
                let counts = Counts {
                    entries,
                    rounds,
                    pause_usec,
                };
                fault::reached(Point::Written);
                let Some(mut save) = self.saving.take() else {
                    return;
                };
                save.stage = match save.stage {
                    Stage::Writing(draft, _limit) => Stage::Written(draft, counts),
                    other => other,
                };
                let ends = matches!(save.purpose, Purpose::Keep);
                self.saving = Some(save);
                if !ends {
                    self.keep_what_was_written();
                }
            }
            Report::Failed { reason, .. } => {
                self.save_failed(&format!("the program cannot save its state: {reason}"));
            }
            other => {
                let bytes = other.to_bytes();
                let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or(&[]);
                let line = String::from_utf8_lossy(line);
                self.save_failed(&format!("the program answered {line} instead of SAVED"));
            }
        }
    }

    /// Reads back what was written and puts it in place, in a thread of its own.
    fn keep_what_was_written(&mut self) {
        let Some(mut save) = self.saving.take() else {
            return;
        };
        save.stage = match save.stage {
            Stage::Written(draft, counts) => {
                let (inputs, name) = (self.context.inputs.clone(), self.service.name.clone());
                let (number, place) = (save.number, draft.place().to_owned());
                let keeping = Timer::task(async move {
                    let kept = tokio::task::spawn_blocking(move || draft.keep()).await;
                    if let Ok(kept) = kept {
                        let input = ServiceInput::Kept(number, kept);
                        // The queue is closed only when the supervisor ends.
                        let _ended = inputs.send(Input::Service(name, input)).await;
                    }
                });
                Stage::Keeping {
                    _reading: keeping,
                    place,
                    counts,
                }
            }
            other => other,
        };
        self.saving = Some(save);
    }

    /// What was written was put in place, or could not be.
    pub(super) fn kept(&mut self, number: u64, kept: Result<u64, Unsaved>) {
        if self
            .saving
            .as_ref()
            .is_none_or(|save| save.number != number)
        {
            return;
        }
        let bytes = match kept {
            Ok(bytes) => bytes,
            Err(error) => return self.save_failed(&error.to_string()),
        };
        let Some(Save {
            generation,
            purpose,
            stage:
                Stage::Keeping {
                    place: path,
                    counts,
                    ..
                },
            ..
        }) = self.saving.take()
        else {
            return;
        };
        let text = format!(
            "its state was saved to {}: {} entries, {}",
            path.display(),
            counts.entries,
            size(bytes)
        );
        self.note(Some(generation), EventKind::Saved, &text);
        fault::reached(Point::Kept);
        let saved = Saved {
            service: self.service.name.clone(),
            generation,
            path,
            bytes,
            entries: counts.entries,
            rounds: counts.rounds,
            pause_ms: counts.pause_usec as f64 / 1e3,
        };
        self.save_over(purpose, Ok(saved));
    }

    /// A state takes too long to be saved.
    pub(super) fn save_took_too_long(&mut self, number: u64) {
        if let Some(save) = self.saving.as_ref().filter(|save| save.number == number)
            && let Some(process) = self.processes.get(&save.process)
        {
            let order = Order::Abort {
                migration: number,
                reason: "it takes too long".to_owned(),
            };
            // What it still writes goes to a file that has no name any more.
            let _untold = process.order(&order, &[]);
            let limit = humantime::format_duration(LONGEST_SAVE);
            self.save_failed(&format!(
                "the program has not saved its state within {limit}"
            ));
        }
    }

    /// A snapshot makes room for what is more important.
    pub(super) fn give_snapshot_up(&mut self, id: ProcessId, reason: &str) {
        if let Some(save) = self.saving.as_ref().filter(|save| save.process == id)
            && matches!(save.purpose, Purpose::Snapshot(_))
        {
            if let Some(process) = self.processes.get(&id) {
                let order = Order::Abort {
                    migration: save.number,
                    reason: reason.to_owned(),
                };
                // If it cannot be told, it cannot be told what comes next either.
                let _untold = process.order(&order, &[]);
            }
            self.save_failed(reason);
        }
    }

    /// A process will not save its state any more.
    pub(super) fn save_lost(&mut self, id: ProcessId, reason: &str) {
        let save = self.saving.as_ref().filter(|save| save.process == id);
        match save.map(|save| &save.stage) {
            Some(Stage::Drafting { .. } | Stage::Writing(..)) => self.save_failed(reason),
            Some(Stage::Written(..) | Stage::Keeping { .. }) | None => {}
        }
    }

    /// A process has ended: if it had saved its state before, that counts now.
    pub(super) fn ended_saving(&mut self, id: ProcessId) {
        let save = self.saving.as_ref().filter(|save| save.process == id);
        match save.map(|save| &save.stage) {
            Some(Stage::Written(..)) => self.keep_what_was_written(),
            Some(Stage::Drafting { .. } | Stage::Writing(..)) => {
                let how = self.processes.get(&id).and_then(|one| one.reason.clone());
                let how = how.map(|how| format!(" ({how})")).unwrap_or_default();
                self.save_failed(&format!("the program ended before it had saved it{how}"));
            }
            Some(Stage::Keeping { .. }) | None => {}
        }
    }

    fn save_failed(&mut self, reason: &str) {
        let Some(save) = self.saving.take() else {
            return;
        };
        let text = format!("the state was not saved: {reason}");
        self.note(Some(save.generation), EventKind::NotSaved, &text);
        let refusal = Refusal {
            fault: Fault::State,
            reason: text,
        };
        self.save_over(save.purpose, Err(refusal));
    }

    fn save_over(&mut self, purpose: Purpose, outcome: Result<Saved, Refusal>) {
        match (purpose, outcome) {
            (Purpose::Snapshot(answer), outcome) => {
                // The client may have gone.
                let _gone = answer.send(outcome);
            }
            (Purpose::Keep, outcome) => {
                if let Err(refusal) = outcome {
                    self.unsaved
                        .push(format!("{}: {}", self.service.name, refusal.reason));
                }
                self.welcome_waiting();
            }
        }
    }

    /// What could not be saved when processes were stopped, since it was last asked.
    pub(crate) fn take_unsaved(&mut self) -> Vec<String> {
        std::mem::take(&mut self.unsaved)
    }

    /// A process whose state is to be kept is told to write it and end; says whether it was.
    pub(super) fn stop_and_keep(&mut self, id: ProcessId) -> bool {
        let Some(process) = self.processes.get(&id) else {
            return false;
        };
        let bytes_max = process.plan.service.max_state.bytes();
        let next = self.settings_in_force();
        let one_at_a_time = super::handovers::is_sequential(next);
        let Some(mut path) = process.plan.service.state_file.clone() else {
            return false;
        };
        if !one_at_a_time && !self.machine.is_stopping() {
            return false;
        }
        if one_at_a_time && let Some(other) = &next.state_file {
            // Where the one that comes looks for it.
            path.clone_from(other);
        }
        let generation = process.generation;
        self.give_snapshot_up(id, "the service is being stopped");
        self.last_migration += 1;
        let number = self.last_migration;
        let save = |draft| Save {
            number,
            process: id,
            generation,
            purpose: Purpose::Keep,
            stage: Stage::Writing(draft, None),
        };
        let order = Order::Stop {
            migration: number,
            bytes_max: Some(bytes_max),
        };
        let told = Draft::create(&path, bytes_max)
            .map_err(|error| error.to_string())
            .and_then(|draft| {
                let process = self.processes.get(&id).ok_or("it has ended")?;
                let told = process.order(&order, &[draft.descriptor()]);
                told.map_err(|error| error.to_string())?;
                Ok(draft)
            });
        match told {
            Ok(draft) => {
                self.saving = Some(save(draft));
                let text = "told to save its state and end (STOP)";
                self.note(Some(generation), EventKind::Draining, text);
                true
            }
            Err(error) => {
                let text = format!("the state was not saved: {error}");
                self.note(Some(generation), EventKind::NotSaved, &text);
                self.unsaved.push(format!("{}: {text}", self.service.name));
                false
            }
        }
    }

    /// A process whose state was to be kept cannot be told to save it.
    pub(super) fn cannot_keep(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        if self.machine.is_stopping() && process.plan.service.state_file.is_some() {
            let text = "the state was not saved: the program has closed its socket of the handover protocol";
            self.note(Some(process.generation), EventKind::NotSaved, text);
            self.unsaved.push(format!("{}: {text}", self.service.name));
        }
    }
}
