//! Exit statuses, for deploy pipelines and `systemctl reload` to branch on.

/// Refused or failed; what served before serves on, nothing has changed. For `run`: it did not
/// come up.
pub(crate) const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
pub(crate) const USAGE: u8 = 2;
/// No supervisor was reached.
pub(crate) const UNREACHED: u8 = 3;
/// The wait was over before the outcome was known.
pub(crate) const UNKNOWN: u8 = 4;
/// The new generation had taken over, and was rolled back.
pub(crate) const ROLLED_BACK: u8 = 5;

/// For `run`: it was told to end alone, and what it ran is left to the next one.
pub(crate) const LEFT_RUNNING: u8 = 6;

/// The same for people, in `--help` and the man pages.
pub(crate) const TABLE: &str = "\
Exit status:
  0  the new generation serves
  1  refused or failed; the old one serves on, nothing changed
  2  usage or configuration
  3  no supervisor reached
  4  timed out waiting, outcome unknown
  5  committed, then rolled back";
