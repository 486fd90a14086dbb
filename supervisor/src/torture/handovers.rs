//! The handovers of a torture, one after the other, and what is done to their processes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::dice::{self, Deed, Dice, Disturbance, Target};
use super::instance::{Footprint, Instance, Unheard, is_at_rest, serves};
use super::plan::{Plan, Until};
use super::tally::{Custody, Harm, Leaks};
use super::victim::{self, Stopped};
use crate::control::protocol::{EventKind, Outcome, Report};

/// How long the service may take to be whole after a handover, however it ended.
const LONGEST_RECOVERY: Duration = Duration::from_secs(60);

/// How often is looked for what no event tells.
const LOOK_EVERY: Duration = Duration::from_micros(200);
const WAIT_EVERY: Duration = Duration::from_millis(2);

/// Behind so many handovers it is measured what the supervisor needs; all that it keeps is there by then.
const WARM_AFTER: u64 = 3;

/// Descriptors that the supervisor may keep beyond that: programs that were proven since.
const KEPT_DESCRIPTORS: u64 = 4;

/// Memory that it may take in the second half beyond what it took in the first, in which what it remembers and
/// what its allocator keeps find their size. What leaks leaks on.
const KEPT_KIB: u64 = 8 * 1024;

/// So many handovers are told of while they happen: one of so many.
const TELL_EVERY: u64 = 100;

/// What came of all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) tried: u64,
    pub(crate) committed: u64,
    pub(crate) aborted: u64,
    pub(crate) rolled_back: u64,
    /// Those that nobody disturbed and that failed all the same; the first with its reason.
    pub(crate) failed: u64,
    pub(crate) first_failed: Option<String>,
    pub(crate) harms: Vec<Harm>,
    /// How long the state stood still at most.
    pub(crate) longest_pause_ms: f64,
    pub(crate) longest_ms: f64,
}

/// The handovers.
#[derive(Debug)]
pub(crate) struct Handovers<'a> {
    plan: &'a Plan,
    instance: &'a Instance,
    start: Instant,
    dice: Dice,
    counts: Counts,
    /// How long one takes that nobody disturbs.
    usual: Duration,
    before: Option<Footprint>,
    /// Memory of the supervisor after each handover.
    resident_kib: Vec<u64>,
}

/// Who serves before a handover.
struct Former {
    generation: u64,
    pid: Pid,
    /// All that the supervisor has started by then.
    children: Vec<Pid>,
}

/// What was done to a process, as far as it is known at once.
struct Struck {
    at: Duration,
    stopped: Stopped,
    disturbance: Disturbance,
    ports: std::collections::BTreeSet<u16>,
}

impl<'a> Handovers<'a> {
    pub(crate) fn new(plan: &'a Plan, instance: &'a Instance, start: Instant) -> Self {
        Self {
            plan,
            instance,
            start,
            dice: Dice::new(plan.seed),
            counts: Counts::default(),
            usual: Duration::from_millis(50),
            before: None,
            resident_kib: Vec::new(),
        }
    }

    pub(crate) fn outcome(&self) -> Counts {
        self.counts.clone()
    }

    /// What there is more than at the beginning.
    pub(crate) fn leaks(&self, now: &Footprint) -> Leaks {
        let Some(before) = self.before else {
            return Leaks::default();
        };
        let more = |now: u64, before: u64, kept: u64| now.saturating_sub(before + kept);
        Leaks {
            descriptors: more(now.descriptors, before.descriptors, KEPT_DESCRIPTORS),
            processes: now.processes,
            zombies: now.zombies,
            resident_kib: growth_of(&self.resident_kib).saturating_sub(KEPT_KIB),
        }
    }

    /// Does them.
    ///
    /// # Errors
    ///
    /// Why no more can be done: the service, or the supervisor, is not there any more.
    pub(crate) fn work(
        &mut self,
        interrupted: &AtomicBool,
        tell: &dyn Fn(&str),
    ) -> Result<(), String> {
        let address = self.instance.address().map_err(|error| error.to_string())?;
        let mut due = Instant::now() + self.plan.every;
        loop {
            while Instant::now() < due && !interrupted.load(Ordering::Relaxed) {
                let left = due.saturating_duration_since(Instant::now());
                thread::sleep(left.min(Duration::from_millis(50)));
            }
            let over = match self.plan.until {
                Until::For(time) => self.start.elapsed() >= time,
                Until::Handovers(count) => self.counts.tried >= count,
            };
            if over || interrupted.load(Ordering::Relaxed) {
                return Ok(());
            }
            due = Instant::now() + self.plan.every;
            self.one(address)?;
            self.resident_kib.push(self.instance.resident_kib());
            if self.counts.tried == WARM_AFTER {
                self.settle()?;
                self.before = Some(self.instance.footprint());
            }
            if self.counts.tried.is_multiple_of(TELL_EVERY) {
                let Counts {
                    tried, committed, ..
                } = self.counts;
                let harms = self.counts.harms.len();
                tell(&format!(
                    "{tried} handovers, {committed} committed, {harms} disturbed"
                ));
            }
        }
    }

    /// One handover, to its very end.
    fn one(&mut self, address: SocketAddr) -> Result<(), String> {
        // The first ones show how long one takes, and what the supervisor needs.
        let disturbance = dice::next(&mut self.dice, self.plan);
        let disturbance = disturbance.filter(|_| self.counts.tried >= WARM_AFTER);
        let former = self.former()?;
        let program = self.program();
        self.counts.tried += 1;
        let (instance, plan) = (self.instance, self.plan);
        let (start, usual) = (self.start, self.usual);
        let (report, struck) = thread::scope(|scope| {
            let asked = Instant::now();
            let reload = scope.spawn(move || instance.reload(program));
            let struck = disturbance.and_then(|disturbance| {
                let ended = || reload.is_finished();
                let pid = match disturbance.target {
                    Target::Old => Some(former.pid),
                    Target::New => wait_for_new(instance.pid(), &former.children, &ended),
                }?;
                let moment = asked + disturbance.after(usual);
                thread::sleep(moment.saturating_duration_since(Instant::now()));
                let stopped = victim::stop(pid, instance.pid())?;
                let at = start.elapsed();
                let ports = stopped.ports(address);
                match disturbance.deed {
                    Deed::Kill => stopped.kill(),
                    Deed::Stall => {
                        thread::sleep(plan.stall_for);
                        stopped.go_on();
                    }
                }
                Some(Struck {
                    at,
                    stopped,
                    disturbance,
                    ports,
                })
            });
            let report = reload.join();
            (report, struck)
        });
        let report = report.map_err(|_| "the thread that reloads has panicked".to_owned())?;
        let report = report.map_err(|error| error.to_string());
        let report = match (report, self.instance.status()) {
            (Ok(report), _) => report,
            (Err(reason), Err(Unheard::Gone(_))) => return Err(reason),
            (Err(reason), Ok(_) | Err(Unheard::Refused(_))) => {
                self.count_failed(struck.is_some(), &reason);
                return self.recover();
            }
        };
        self.count(&report, struck.is_some());
        if let Some(struck) = &struck {
            self.wait_for_death(&struck.stopped)?;
        }
        self.recover()?;
        if let Some(struck) = struck {
            let harm = self.harm(struck, &report, former.generation);
            self.counts.harms.push(harm);
        }
        Ok(())
    }

    /// What every second handover is to, if there is something else.
    fn program(&self) -> Option<Vec<String>> {
        let alternate = self.plan.alternate.as_ref()?;
        let mut command = self.plan.service.command.clone();
        if self.counts.tried.is_multiple_of(2)
            && let Some(program) = command.first_mut()
        {
            program.clone_from(alternate);
        }
        Some(command)
    }

    fn former(&self) -> Result<Former, String> {
        let status = self.instance.status().map_err(|error| error.to_string())?;
        let all = status.services.iter().flat_map(|one| &one.generations);
        let serving = all.filter(|one| one.phase == "serving");
        let last = serving.max_by_key(|one| one.generation);
        let last = last.and_then(|one| Some((one.generation, one.pid?)));
        let (generation, pid) = last.ok_or("nothing serves")?;
        Ok(Former {
            generation,
            pid: Pid::from_raw(pid),
            children: victim::children_of(self.instance.pid()),
        })
    }

    fn count(&mut self, report: &Report, disturbed: bool) {
        let reason = report.reason.as_deref().unwrap_or("no reason is known");
        self.counts.longest_pause_ms = self.counts.longest_pause_ms.max(report.pause_ms);
        self.counts.longest_ms = self.counts.longest_ms.max(report.total_ms);
        match report.outcome {
            Outcome::Committed | Outcome::Rehearsed => {
                self.counts.committed += 1;
                if !disturbed {
                    self.usual = Duration::from_secs_f64(report.total_ms.max(1.0) / 1e3);
                }
                return;
            }
            Outcome::Aborted => self.counts.aborted += 1,
            Outcome::RolledBack => self.counts.rolled_back += 1,
        }
        self.count_failed(disturbed, reason);
    }

    fn count_failed(&mut self, disturbed: bool, reason: &str) {
        if !disturbed {
            self.counts.failed += 1;
            let number = self.counts.tried;
            let text = format!("handover {number}, which nobody disturbed: {reason}");
            self.counts.first_failed.get_or_insert(text);
        }
    }

    /// What a process took along, now that it is known how the handover ended.
    fn harm(&self, struck: Struck, report: &Report, former: u64) -> Harm {
        let Struck {
            at,
            stopped,
            disturbance,
            ports,
        } = struck;
        let (generation, custody) = match disturbance.target {
            // Where the new one had not taken it over, nobody else had the state.
            Target::Old => {
                let to = report.to;
                let taken = self.instance.has_happened(to, EventKind::TakenOver, to);
                let custody = if taken {
                    Custody::NotOwner
                } else {
                    Custody::Alone
                };
                (former, custody)
            }
            Target::New => {
                let to = report.to;
                let returned = self.instance.has_happened(to, EventKind::Returned, former);
                let custody = match report.outcome {
                    Outcome::Aborted => Custody::NotOwner,
                    Outcome::Committed | Outcome::RolledBack | Outcome::Rehearsed if returned => {
                        Custody::Owner
                    }
                    Outcome::Committed | Outcome::RolledBack | Outcome::Rehearsed => Custody::Alone,
                };
                (to, custody)
            }
        };
        Harm {
            at,
            until: self.start.elapsed(),
            handover: self.counts.tried,
            generation,
            deed: disturbance.deed,
            target: disturbance.target,
            ports,
            died: disturbance.deed == Deed::Kill || stopped.is_dead(),
            custody,
        }
    }

    /// Waits until the supervisor knows that a process has died, if it has: until then all seems well.
    fn wait_for_death(&self, stopped: &Stopped) -> Result<(), String> {
        self.wait("notice a death", |instance| {
            if !stopped.is_dead() {
                return Ok(true);
            }
            let status = instance.status()?;
            let mut all = status.services.iter().flat_map(|one| &one.generations);
            Ok(all.all(|one| one.pid != Some(stopped.pid().as_raw())))
        })
    }

    /// Waits until the service serves again, whatever happened.
    fn recover(&self) -> Result<(), String> {
        self.wait("serve again", |instance| {
            instance.status().map(|status| serves(&status))
        })
    }

    /// Waits until nothing is left of those who have given way.
    fn settle(&self) -> Result<(), String> {
        self.wait("end its former generations", |instance| {
            instance.status().map(|status| is_at_rest(&status))
        })
    }

    fn wait(
        &self,
        what: &str,
        check: impl Fn(&Instance) -> Result<bool, Unheard>,
    ) -> Result<(), String> {
        let end = Instant::now() + LONGEST_RECOVERY;
        while !check(self.instance).map_err(|error| error.to_string())? {
            if Instant::now() >= end {
                let limit = humantime::format_duration(LONGEST_RECOVERY);
                return Err(format!("the service did not {what} within {limit}"));
            }
            thread::sleep(WAIT_EVERY);
        }
        Ok(())
    }
}

/// By how much the most of the second half is more than that of the first.
fn growth_of(all: &[u64]) -> u64 {
    let (first, second) = all.split_at(all.len() / 2);
    let most = |half: &[u64]| half.iter().copied().max().unwrap_or(0);
    most(second).saturating_sub(most(first))
}

/// The process that the supervisor starts next; none if the handover ends without one.
fn wait_for_new(supervisor: Pid, former: &[Pid], ended: &dyn Fn() -> bool) -> Option<Pid> {
    loop {
        let over = ended();
        let children = victim::children_of(supervisor).into_iter();
        let mut new = children.filter(|child| !former.contains(child));
        if let Some(new) = new.find(|child| victim::leads_a_group(*child)) {
            return Some(new);
        }
        if over {
            return None;
        }
        thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_on_is_told_from_what_has_found_its_size() {
        let grows: Vec<u64> = (0..100).map(|turn| 1000 + 10 * turn).collect();
        assert_eq!(growth_of(&grows), 500);
        let settles: Vec<u64> = (0..100).map(|turn| 1000 + 10 * turn.min(40)).collect();
        assert_eq!(growth_of(&settles), 0);
        assert_eq!(growth_of(&[]), 0);
    }
}
