//! What clients and signals ask of the supervisor: which services are meant, by which configuration,
//! and where the answer goes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::config::file::{self, Configuration};
use crate::config::service::Service;
use crate::config::trust;
use crate::control::protocol::{Fault, Refusal, Request};
use crate::daemon::family::Family;
use crate::daemon::input::{Asked, Awaited};
use crate::daemon::inspect;
use crate::daemon::runner::{Runner, Waiter, What};

use super::{Stage, Succession, Supervisor};

impl Supervisor {
    pub(super) fn asked(&mut self, asked: Asked) {
        match asked {
            Asked::Status(answer) => {
                let unmeasured = self.status();
                let mut status = unmeasured.clone();
                let families = self.runners().flat_map(|runner| runner.families());
                let families: BTreeMap<i32, Family> = families.collect();
                let asked = Instant::now();
                let measuring = tokio::task::spawn_blocking(move || {
                    inspect::measure(&mut status, &families, asked);
                    status
                });
                drop(tokio::spawn(async move {
                    // On a starved machine what is known at once is better than no answer.
                    let measured = tokio::time::timeout(inspect::LONGEST, measuring).await;
                    let status = measured.ok().and_then(Result::ok).unwrap_or(unmeasured);
                    // The client may have gone.
                    let _gone = answer.send(status);
                }));
            }
            Asked::Handover { request, answer } => {
                let outcome = self.handover(request);
                // The client may have gone; the handover goes on all the same.
                let _gone = answer.send(outcome);
            }
            Asked::Snapshot {
                service,
                instance,
                path,
                answer,
            } => {
                let name = self.one_service(service.as_deref());
                let runner = name.map(|name| self.services.get_mut(&name));
                match runner {
                    Ok(Some(runner)) => runner.snapshot(instance, path, answer),
                    // It has just been found.
                    Ok(None) => drop(answer),
                    Err(refusal) => {
                        // The client may have gone.
                        let _gone = answer.send(Err(refusal));
                    }
                }
            }
            Asked::Upgrade { timeout_ms, answer } => {
                let limit = timeout_ms.map(Duration::from_millis);
                self.make_way(Succession::InPlace, limit, Some(answer));
            }
            Asked::Leave { timeout_ms, answer } => {
                let limit = timeout_ms.map(Duration::from_millis);
                self.make_way(Succession::Anew, limit, Some(answer));
            }
            Asked::Stop { timeout_ms, answer } => {
                self.stop_waiters.push(answer);
                self.stop(timeout_ms.map(Duration::from_millis));
            }
        }
    }

    pub(super) fn handover(&mut self, request: Request) -> Result<Vec<Awaited>, Refusal> {
        let state = |reason: String| Refusal {
            fault: Fault::State,
            reason,
        };
        match request {
            Request::Reload {
                service,
                dry_run,
                program,
                until_proven,
            } => {
                let read = self.read_configuration(service.as_deref())?;
                if program.is_some() && service.is_none() && self.services.len() != 1 {
                    let names: Vec<&str> = self.services.keys().map(String::as_str).collect();
                    return Err(Refusal {
                        fault: Fault::Usage,
                        reason: format!(
                            "say which service the program is for: {}",
                            names.join(", ")
                        ),
                    });
                }
                let what = if dry_run { What::DryRun } else { What::Reload };
                self.spread(what, read, service.as_deref(), program, until_proven)
                    .map_err(state)
            }
            Request::Rollback { service } => {
                let name = self.one_service(service.as_deref())?;
                self.request(&name, What::Rollback, None, None, false)
                    .map_err(state)
                    .map(|one| vec![one])
            }
            Request::Status
            | Request::Events { .. }
            | Request::Snapshot { .. }
            | Request::Upgrade { .. }
            | Request::Stop { .. } => Err(state("this is not a handover".to_owned())),
        }
    }

    pub(super) fn one_service(&self, name: Option<&str>) -> Result<String, Refusal> {
        let names: Vec<&str> = self.services.keys().map(String::as_str).collect();
        let usage = |reason| Refusal {
            fault: Fault::Usage,
            reason,
        };
        match (name, &names[..]) {
            (Some(name), _) if names.contains(&name) => Ok(name.to_owned()),
            (Some(name), _) => Err(usage(format!(
                "there is no service {name}; there are: {}",
                names.join(", ")
            ))),
            (None, [only]) => Ok((*only).to_owned()),
            (None, _) => Err(usage(format!("say which service: {}", names.join(", ")))),
        }
    }

    /// The configuration as it stands now; none if the command line was all there was.
    pub(super) fn read_configuration(
        &self,
        service: Option<&str>,
    ) -> Result<Option<Configuration>, Refusal> {
        let usage = |reason: String| Refusal {
            fault: Fault::Usage,
            reason,
        };
        let mut read = match &self.file {
            Some(file) => {
                if let Some(warning) = trust::writable_by_all(file) {
                    tracing::warn!("{warning}");
                }
                file::read(file).map_err(|error| usage(error.to_string()))?
            }
            None => {
                if service.is_some() {
                    self.one_service(service)?;
                }
                return Ok(None);
            }
        };
        if let Some(name) = service
            && !read.services.contains_key(name)
        {
            return Err(usage(format!("the configuration has no service {name}")));
        }
        if read.name != self.name {
            tracing::warn!(
                "the supervisor goes on as {}; its name does not change",
                self.name
            );
        }
        self.give_unclaimed(&mut read);
        Ok(Some(read))
    }

    /// Asks each service that is meant for a handover, takes up new ones and lets go of those the
    /// configuration no longer has.
    pub(super) fn spread(
        &mut self,
        what: What,
        read: Option<Configuration>,
        only: Option<&str>,
        program: Option<Vec<String>>,
        until_proven: bool,
    ) -> Result<Vec<Awaited>, String> {
        let meant = |name: &str| only.is_none_or(|only| only == name);
        if self.stage == Stage::Stopping || self.stage == Stage::GivingUp {
            return Err("the supervisor is being stopped".to_owned());
        }
        let Some(read) = read else {
            let names: Vec<String> = self
                .services
                .keys()
                .filter(|name| meant(name))
                .cloned()
                .collect();
            let each = names
                .iter()
                .map(|name| self.request(name, what, None, program.clone(), until_proven));
            return each.collect();
        };
        // Everything is checked, and bound, before anything is changed.
        let mut news = Vec::new();
        for (name, service) in read.services.iter().filter(|(name, _)| meant(name)) {
            match self.services.get(name) {
                Some(runner) => runner
                    .would_take(what)
                    .map_err(|declined| declined.to_string())?,
                None if what == What::DryRun => {}
                None if self.removed.iter().any(|runner| runner.name() == name) => {
                    return Err(format!(
                        "service {name} is still ending; try again when it has"
                    ));
                }
                None => news.push(
                    Runner::new(self.context.clone(), service.clone())
                        .map_err(|error| format!("service {name}: {error}"))?,
                ),
            }
        }
        if what == What::Reload && only.is_none() {
            self.let_go_of_others(&read);
        }
        for runner in news {
            self.services.insert(runner.name().to_owned(), runner);
        }
        let mut awaited = Vec::new();
        for (name, service) in read.services {
            if meant(&name) && self.services.contains_key(&name) {
                let program = program.clone();
                awaited.push(self.request(&name, what, Some(service), program, until_proven)?);
            }
        }
        Ok(awaited)
    }

    /// Services that the configuration no longer has finish and end.
    fn let_go_of_others(&mut self, read: &Configuration) {
        let gone = self
            .services
            .keys()
            .filter(|name| !read.services.contains_key(*name));
        for name in gone.cloned().collect::<Vec<_>>() {
            if let Some(mut runner) = self.services.remove(&name) {
                tracing::info!(service = name, "the configuration no longer has it");
                runner.stop(false);
                self.removed.push(runner);
            }
        }
    }

    pub(super) fn request(
        &mut self,
        name: &str,
        what: What,
        service: Option<Service>,
        program: Option<Vec<String>>,
        until_proven: bool,
    ) -> Result<Awaited, String> {
        let Some(runner) = self.services.get_mut(name) else {
            return Err(format!("there is no service {name}"));
        };
        let (answer, report) = oneshot::channel();
        let waiter = Some(Waiter {
            answer,
            until_proven,
        });
        runner
            .request(what, service, program, waiter)
            .map_err(|declined| declined.to_string())?;
        if what != What::DryRun {
            self.note_reload();
        }
        Ok(Awaited {
            service: name.to_owned(),
            report,
        })
    }

    pub(super) fn reload_by_signal(&mut self) {
        self.refused = None;
        let spread = self
            .read_configuration(None)
            .map_err(|refusal| refusal.reason)
            .and_then(|read| self.spread(What::Reload, read, None, None, false));
        match spread {
            // Nobody waits; how each ends is in the log and the status.
            Ok(awaited) => drop(awaited),
            Err(reason) => {
                tracing::error!("the reload was refused, nothing has changed: {reason}");
                self.refused = Some(reason);
                self.note_reload();
            }
        }
    }

    pub(super) fn note_reload(&mut self) {
        if self.stage == Stage::Running {
            self.reloading = true;
            self.systemd.reloading("a new generation is being started");
        }
    }
}
