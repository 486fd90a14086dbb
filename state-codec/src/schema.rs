//! Versions of a schema, and the steps between them.
//!
//! Each version is a struct of its own that is never changed again. Between two neighbours stands
//! one [`Step`] that goes both ways, so the newer program translates both what an older one wrote
//! and what an older one is to read. Steps compose; nobody writes a step over two versions.
//!
//! ```
//! use heirloom_state_codec::*;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, State)]
//! #[state(name = "session", version = 1, oldest)]
//! struct SessionV1 { user: String }
//!
//! #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, State)]
//! #[state(name = "session", version = 2)]
//! struct SessionV2 { user: String, visits: u64 }
//!
//! impl Step for SessionV2 {
//!     type Older = SessionV1;
//!     type Attic = u64; // what version 1 has no room for
//!     fn up(old: SessionV1, attic: Option<u64>, _: &mut Context) -> Result<Self, StepError> {
//!         Ok(Self { user: old.user, visits: attic.unwrap_or(0) })
//!     }
//!     fn down(self, _: &mut Context) -> Result<(SessionV1, Option<u64>), StepError> {
//!         Ok((SessionV1 { user: self.user }, Some(self.visits)))
//!     }
//! }
//!
//! let mut context = Context::default();
//! let session = SessionV2 { user: "ann".to_owned(), visits: 7 };
//! let mut old_bytes = Vec::new();
//! let attic = write_entry::<Bincode, _>(&session, 1, None, &mut old_bytes, &mut context)?;
//! let read = read_entry::<Bincode, SessionV2>(1, &old_bytes, attic, &mut context)?;
//! assert_eq!(read.value, session);
//! # Ok::<(), MigrateError>(())
//! ```

mod attic;
mod entry;
mod identity;
mod lineage;

pub use attic::{AtticLayer, AtticRecord};
pub use entry::{ReadEntry, read_entry, write_entry};
pub use identity::{SchemaMismatch, admit, agree, schema_of};
pub use lineage::{Ancestor, Lineage, Origin};

use crate::codec::CodecError;
use crate::shape::Shape;

/// One version of a schema. Derive it: `#[state(name = "session", version = 2)]`.
pub trait Schema: Shape {
    /// Name that all versions share.
    const NAME: &'static str;
    /// Version, counting up from 1.
    const VERSION: u32;
}

/// The two ways between a version and the one before it, declared together.
///
/// Both ways may fail, and neither may depend on anything but its arguments: they run in the newer
/// program only, before commit, and may run for an entry more than once.
pub trait Step: Schema + Sized {
    /// The version before this one; [`Origin`] for the oldest.
    type Older: Ancestor;
    /// What the older version has no room for; `()` if it has room for everything.
    type Attic: Shape;

    /// From the older version to this one. `attic` is what [`Self::down`] put aside for this very
    /// entry, if it went down once and has not changed since.
    ///
    /// # Errors
    /// If the older value has no meaning in this version. The handover is then aborted.
    fn up(
        older: Self::Older,
        attic: Option<Self::Attic>,
        context: &mut Context,
    ) -> Result<Self, StepError>;

    /// From this version to the older one, with what the older one has no room for.
    ///
    /// # Errors
    /// If the value has no meaning in the older version. The handover is then aborted.
    fn down(self, context: &mut Context) -> Result<(Self::Older, Option<Self::Attic>), StepError>;
}

/// Most notes a [`Context`] keeps.
const NOTES_MAX: usize = 64;

/// What a migration reports beside its values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    notes: Vec<String>,
    /// Notes that were not kept because there were too many.
    pub notes_dropped: u64,
    /// Entries translated to a newer version.
    pub raised: u64,
    /// Entries translated to an older version.
    pub lowered: u64,
    /// Entries that got back what a downgrade had put aside.
    pub attic_restored: u64,
    /// Entries that had changed since, so that what was put aside for them was given up.
    pub attic_dropped: u64,
}

impl Context {
    /// Notes something for the person who watches the handover. The first 64 are kept.
    pub fn note(&mut self, text: impl Into<String>) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(text.into());
        } else {
            self.notes_dropped += 1;
        }
    }

    /// The notes so far.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// Why a step refused an entry, in the application's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StepError(String);

impl StepError {
    /// An error with this text.
    #[must_use]
    pub fn new(reason: impl std::fmt::Display) -> Self {
        Self(reason.to_string())
    }
}

/// An entry cannot be translated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MigrateError {
    /// The codec refused it.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A step refused it.
    #[error(
        "{schema}: the step from version {from} to {to} refused an entry: {reason}; the new program's migration is at fault, or this entry is"
    )]
    Step {
        /// Name of the schema.
        schema: &'static str,
        /// Version before the step.
        from: u32,
        /// Version behind it.
        to: u32,
        /// The application's words.
        reason: StepError,
    },
    /// A version that this program does not know.
    #[error(
        "{schema}: this program knows versions {oldest} to {newest}, not {asked}; take a program that knows both"
    )]
    UnknownVersion {
        /// Name of the schema.
        schema: &'static str,
        /// Oldest version known.
        oldest: u32,
        /// Newest version known.
        newest: u32,
        /// The version asked for.
        asked: u32,
    },
}
