//! Why an operation on the state, or moving it, did not succeed.

use heirloom_state_codec::{
    ApplyError, EntryError, MigrateError, ReadError, SchemaMismatch, StateMismatch, WriteError,
};

/// Why an operation on the state was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The state is another generation's, and it cannot be reached any more. Whether an operation that
    /// was under way has taken place is not known.
    #[error(
        "the generation that owns the state cannot be reached; \
         whether this operation took place there is not known"
    )]
    OwnerGone,
    /// The generation that owns the state refused the operation.
    #[error("the generation that owns the state refused the operation: {0}")]
    Refused(String),
    /// The operation cannot be carried out in a generation that has handed its state over.
    #[error("{0} is not possible in a generation that has handed its state over")]
    NotThere(&'static str),
    /// A value cannot be translated for the generation that owns the state.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// The system refused something the operation needs.
    #[error("the system refused what the operation needs: {0}")]
    System(#[from] std::io::Error),
}

/// Why a store's part of a copy cannot be given or taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// An entry cannot be written.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The stream refused something.
    #[error(transparent)]
    Write(WriteError),
    /// The copy is longer than it may be.
    #[error(
        "the copy of the state is over the limit of {limit} bytes; make it smaller, or raise max_state"
    )]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// An entry cannot be understood.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// A section is not what this program expects under its name.
    #[error(transparent)]
    Schema(#[from] SchemaMismatch),
    /// A record breaks a rule.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The system refused something.
    #[error("the system refused what it takes: {0}")]
    System(#[from] std::io::Error),
    /// Something else, in the store's own words.
    #[error("{0}")]
    Other(String),
}

impl From<WriteError> for StoreError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::StreamLength { limit } => Self::TooLarge { limit },
            other => Self::Write(other),
        }
    }
}

/// Why a copy of the state could not be taken. The text says whose fault it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeError {
    /// The stream is damaged, or ends too soon.
    #[error("the copy of the state cannot be used: {0}")]
    Stream(#[from] ReadError),
    /// A store cannot take its part.
    #[error("{section}: {reason}")]
    Store {
        /// The section.
        section: String,
        /// Why.
        reason: StoreError,
    },
    /// A section must be understood, and this program has no such store.
    #[error(
        "the former generation has state under the name {section}, which this program does not know, \
         so it would be lost; take a program that knows it"
    )]
    Unserved {
        /// The section.
        section: String,
    },
    /// The copy belongs to another migration; the former generation or the supervisor is at fault.
    #[error("the copy is that of migration {found}, not of {expected}")]
    OtherMigration {
        /// The migration that is under way.
        expected: u64,
        /// The one that the copy bears.
        found: u64,
    },
    /// Both sides do not hold the same.
    #[error("the copy is not the original: {0}")]
    Mismatch(#[from] StateMismatch),
    /// The system refused something.
    #[error("the copy of the state cannot be read: {0}")]
    System(#[from] std::io::Error),
    /// The migration was called off.
    #[error("the handover was called off: {0}")]
    CalledOff(String),
}
