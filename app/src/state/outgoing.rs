//! Attic records on their way out: what becomes of the one of an entry that is being written.

use heirloom_state_codec::{EntryHash, SectionId, SnapshotWriter, WriteError};

/// An entry whose attic record is to be written, before the entry itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beside<'a> {
    /// The entry's key and version.
    pub(crate) key: &'a [u8],
    pub(crate) version: u64,
    /// What it has in the attic now.
    pub(crate) record: Option<&'a [u8]>,
    /// What was sent of it in this copy.
    pub(crate) replaced: Option<EntryHash>,
}

impl Beside<'_> {
    /// Writes the record, or that there is none any more; returns what is sent of it now.
    ///
    /// # Errors
    ///
    /// If the writer refuses it.
    pub(crate) fn write(
        self,
        writer: &mut SnapshotWriter,
        attic: SectionId,
        base: bool,
    ) -> Result<Option<EntryHash>, WriteError> {
        let Self {
            key,
            version,
            record,
            replaced,
        } = self;
        match (record, replaced) {
            (Some(record), None) if base => writer.bulk(attic, version, key, record).map(Some),
            (Some(record), replaced) => writer
                .upsert(attic, version, key, record, replaced)
                .map(Some),
            (None, Some(replaced)) => {
                writer.tombstone(attic, version, key, Some(replaced))?;
                Ok(None)
            }
            (None, None) => Ok(None),
        }
    }
}
