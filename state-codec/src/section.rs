//! A section seen as entries of two types: declares itself, writes in the agreed version, reads in
//! any.

use std::marker::PhantomData;

use crate::codec::{Codec, CodecId};
use crate::digest::EntryHash;
use crate::envelope::{SchemaRef, SectionDescriptor, SectionId, SectionKind};
use crate::error::WriteError;
use crate::frame::record::{Change, Record};
use crate::schema::{
    AtticRecord, Context, Lineage, MigrateError, ReadEntry, SchemaMismatch, Step, admit,
    read_entry, write_entry,
};
use crate::shape::{Shape, differences, shape_of};
use crate::writer::SnapshotWriter;

/// A section whose keys are `K` and whose values are `V`, coded by `C`.
#[derive(Debug)]
pub struct Section<C, K, V> {
    id: SectionId,
    /// Version of the values in the stream.
    version: u32,
    types: PhantomData<Types<C, K, V>>,
}

/// Keeps a section free of the auto traits of its types, which it does not hold.
type Types<C, K, V> = fn() -> (C, K, V);

/// What became of an entry that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The entry's hash, for its next change.
    pub hash: EntryHash,
    /// What the version written has no room for; it belongs into the attic section under the same
    /// key.
    pub attic: Option<AtticRecord>,
}

/// What became of an entry that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadChange<V> {
    /// It has this value now.
    Put(ReadEntry<V>),
    /// It was removed.
    Remove,
}

/// An entry cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// It cannot be translated into the version to be written.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// The writer refused it.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl<C, K, V> Section<C, K, V>
where
    C: Codec<K> + Codec<V>,
    K: Shape,
    V: Step + Lineage<C> + Clone,
{
    /// A section that is written in `V`'s own version.
    #[must_use]
    pub fn new(id: SectionId) -> Self {
        Self {
            id,
            version: V::VERSION,
            types: PhantomData,
        }
    }

    /// The same section, written in an older version for a reader that knows no newer one.
    #[must_use]
    pub fn in_version(self, version: u32) -> Self {
        Self { version, ..self }
    }

    /// The section as a reader finds it, after checking that it can be read as `K` and `V`.
    ///
    /// # Errors
    /// How the types differ.
    pub fn open(section: &SectionDescriptor) -> Result<Self, SchemaMismatch> {
        let key = shape_of::<K>();
        if key != section.key_shape {
            let differences = differences(&key, &section.key_shape);
            return Err(SchemaMismatch::Key {
                section: section.name.clone(),
                differences,
            });
        }
        if !section.codec.same_bytes(Self::codec()) {
            let (here, there) = (Self::codec(), section.codec);
            return Err(SchemaMismatch::Codec {
                section: section.name.clone(),
                here,
                there,
            });
        }
        admit::<C, V>(section)?;
        Ok(Self {
            id: section.id,
            version: section.schema.version,
            types: PhantomData,
        })
    }

    /// Number of the codec.
    #[must_use]
    pub fn codec() -> CodecId {
        <C as Codec<V>>::ID
    }

    /// The section's entry in the manifest.
    ///
    /// # Errors
    /// [`MigrateError::UnknownVersion`] if `V` has no such version as was asked for.
    pub fn descriptor(
        &self,
        name: &str,
        kind: SectionKind,
    ) -> Result<SectionDescriptor, MigrateError> {
        let schemas = <V as Lineage<C>>::schemas();
        let schema = schemas
            .into_iter()
            .find(|schema| schema.version == self.version);
        let schema = schema.ok_or_else(|| MigrateError::UnknownVersion {
            schema: V::NAME,
            oldest: <V as Lineage<C>>::OLDEST.unwrap_or(V::VERSION),
            newest: V::VERSION,
            asked: self.version,
        })?;
        Ok(SectionDescriptor {
            id: self.id,
            kind,
            required: true,
            codec: Self::codec(),
            attic_of: None,
            name: name.to_owned(),
            key_shape: shape_of::<K>(),
            schema,
            entries_hint: 0,
            bytes_hint: 0,
        })
    }

    /// The manifest entry of the attic that goes with this section.
    #[must_use]
    pub fn attic_descriptor(&self, id: SectionId, name: &str) -> SectionDescriptor {
        SectionDescriptor {
            id,
            kind: SectionKind::Attic,
            required: false,
            codec: CodecId::RAW,
            attic_of: Some(self.id),
            name: format!("{name}.attic"),
            key_shape: shape_of::<K>(),
            schema: SchemaRef::opaque(),
            entries_hint: 0,
            bytes_hint: 0,
        }
    }

    /// Writes an entry of the base. `stored` is the attic record that was read with the entry, if
    /// any.
    ///
    /// # Errors
    /// If the entry cannot be translated or the writer refuses it; nothing has been written then.
    pub fn bulk(
        &self,
        writer: &mut SnapshotWriter,
        version: u64,
        key: &K,
        value: &V,
        stored: Option<&AtticRecord>,
        context: &mut Context,
    ) -> Result<Written, EntryError> {
        if self.version == V::VERSION && stored.is_none() {
            let hash = writer.bulk_with::<C, K, V>(self.id, version, key, value)?;
            return Ok(Written { hash, attic: None });
        }
        let coded = self.code(key, value, stored, context)?;
        let hash = writer.bulk(self.id, version, &coded.key, &coded.value)?;
        Ok(Written {
            hash,
            attic: coded.attic,
        })
    }

    /// Writes an entry that is new or has changed; `replaced` as in [`SnapshotWriter::upsert`].
    ///
    /// # Errors
    /// As [`Self::bulk`].
    #[allow(
        clippy::too_many_arguments,
        reason = "each is a different thing and none has a default"
    )]
    pub fn upsert(
        &self,
        writer: &mut SnapshotWriter,
        version: u64,
        key: &K,
        value: &V,
        replaced: Option<EntryHash>,
        stored: Option<&AtticRecord>,
        context: &mut Context,
    ) -> Result<Written, EntryError> {
        if self.version == V::VERSION && stored.is_none() {
            let hash = writer.upsert_with::<C, K, V>(self.id, version, key, value, replaced)?;
            return Ok(Written { hash, attic: None });
        }
        let coded = self.code(key, value, stored, context)?;
        let hash = writer.upsert(self.id, version, &coded.key, &coded.value, replaced)?;
        Ok(Written {
            hash,
            attic: coded.attic,
        })
    }

    /// Writes the removal of an entry; `replaced` as in [`SnapshotWriter::tombstone`].
    ///
    /// # Errors
    /// As [`Self::bulk`].
    pub fn tombstone(
        &self,
        writer: &mut SnapshotWriter,
        version: u64,
        key: &K,
        replaced: Option<EntryHash>,
    ) -> Result<(), EntryError> {
        let bytes = Self::key_bytes(key)?;
        Ok(writer.tombstone(self.id, version, &bytes, replaced)?)
    }

    /// The bytes of a key, under which the attic record of its entry stands as well.
    ///
    /// # Errors
    /// [`MigrateError::Codec`].
    pub fn key_bytes(key: &K) -> Result<Vec<u8>, MigrateError> {
        let mut bytes = Vec::new();
        C::encode(key, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads a record's key.
    ///
    /// # Errors
    /// [`MigrateError::Codec`].
    pub fn key(&self, record: &Record<'_>) -> Result<K, MigrateError> {
        Ok(C::decode(record.key)?)
    }

    /// Reads a record's change and raises its value to `V`. `attic` is what the attic section holds
    /// under the same key.
    ///
    /// # Errors
    /// If the value cannot be decoded or raised.
    pub fn read(
        &self,
        record: &Record<'_>,
        attic: Option<AtticRecord>,
        context: &mut Context,
    ) -> Result<ReadChange<V>, MigrateError> {
        match record.change {
            Change::Put(value) => {
                read_entry::<C, V>(self.version, value, attic, context).map(ReadChange::Put)
            }
            Change::Remove => Ok(ReadChange::Remove),
        }
    }

    fn code(
        &self,
        key: &K,
        value: &V,
        stored: Option<&AtticRecord>,
        context: &mut Context,
    ) -> Result<CodedEntry, MigrateError> {
        let (mut key_bytes, mut value_bytes) = (Vec::new(), Vec::new());
        C::encode(key, &mut key_bytes)?;
        let attic = write_entry::<C, V>(value, self.version, stored, &mut value_bytes, context)?;
        Ok(CodedEntry {
            key: key_bytes,
            value: value_bytes,
            attic,
        })
    }
}

/// An entry as bytes in the version to be written.
struct CodedEntry {
    key: Vec<u8>,
    value: Vec<u8>,
    attic: Option<AtticRecord>,
}
