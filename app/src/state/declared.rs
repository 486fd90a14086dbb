//! What a store declares in a manifest, and what it accepts from one.
//!
//! Owns the choice of the version to write, and the comparison of a section with what this program
//! calls the same, before any of it is decoded.

use heirloom_state_codec::{
    Codec, CodecId, Lineage, Schema, SchemaMismatch, SchemaRef, SectionDescriptor, SectionId,
    SectionKind, admit, differences,
};

use super::{error::StoreError, keyed::Value, store::Form};

/// What a store is, whatever its values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// What it is in the stream.
    pub(crate) kind: SectionKind,
    /// The canonical text of its keys' shape; empty if keys are the format's own.
    pub(crate) key_shape: &'a str,
}

/// The section of a store for this reader, and its attic if `stored` says that there is something for
/// it, or if the reader is older.
pub(crate) fn declare<C, V>(
    identity: Identity<'_>,
    form: &Form<'_>,
    entries: u64,
    stored: bool,
) -> Declared
where
    V: Value<C>,
    C: Codec<V>,
{
    let schemas = <V as Lineage<C>>::schemas();
    let knows = |schema: &&SchemaRef| {
        form.reader
            .is_none_or(|known| known.contains(&schema.version))
    };
    // With no version in common the reader explains why it cannot take the newest.
    let schema = schemas.iter().find(knows).or_else(|| schemas.first());
    let section = SectionDescriptor {
        id: form.first,
        kind: identity.kind,
        required: true,
        codec: C::ID,
        attic_of: None,
        name: identity.name.to_owned(),
        key_shape: identity.key_shape.to_owned(),
        schema: schema.cloned().unwrap_or_else(SchemaRef::opaque),
        entries_hint: entries,
        bytes_hint: 0,
    };
    let older = section.schema.version != <V as Schema>::VERSION;
    let attic = (older || stored).then(|| SectionDescriptor {
        id: SectionId(form.first.0.wrapping_add(1)),
        kind: SectionKind::Attic,
        required: false,
        codec: CodecId::RAW,
        attic_of: Some(section.id),
        name: format!("{}.attic", identity.name),
        schema: SchemaRef::opaque(),
        entries_hint: 0,
        ..section.clone()
    });
    Declared { section, attic }
}

/// A store's sections.
#[derive(Debug)]
pub(crate) struct Declared {
    pub(crate) section: SectionDescriptor,
    pub(crate) attic: Option<SectionDescriptor>,
}

impl Declared {
    /// Both, in the manifest's order.
    pub(crate) fn into_sections(self) -> Vec<SectionDescriptor> {
        std::iter::once(self.section).chain(self.attic).collect()
    }
}

/// The section among these that holds a store's entries, and the one that is its attic; none if the copy
/// has no such store.
///
/// # Errors
///
/// How the section and the store differ.
pub(crate) fn accept<'s, C, V>(
    identity: Identity<'_>,
    sections: &[&'s SectionDescriptor],
) -> Result<Option<(&'s SectionDescriptor, Option<SectionId>)>, StoreError>
where
    V: Value<C>,
    C: Codec<V>,
{
    let mut own = sections.iter().filter(|section| section.attic_of.is_none());
    let Some(section) = own.next().copied() else {
        return Ok(None);
    };
    if let Some(other) = own.next() {
        return Err(StoreError::Other(format!(
            "{} is no part of {}, which has none in this program; take one that knows it",
            other.name, identity.name
        )));
    }
    if section.kind != identity.kind || section.name != identity.name {
        return Err(StoreError::Other(format!(
            "{} is a {} in the copy and {} a {} in this program; give the new one another name",
            section.name, section.kind, identity.name, identity.kind
        )));
    }
    if section.key_shape != identity.key_shape {
        return Err(StoreError::Schema(SchemaMismatch::Key {
            section: section.name.clone(),
            differences: differences(identity.key_shape, &section.key_shape),
        }));
    }
    if !section.codec.same_bytes(C::ID) {
        return Err(StoreError::Schema(SchemaMismatch::Codec {
            section: section.name.clone(),
            here: C::ID,
            there: section.codec,
        }));
    }
    admit::<C, V>(section)?;
    let attic = sections.iter().find(|other| other.attic_of.is_some());
    Ok(Some((section, attic.map(|attic| attic.id))))
}

/// Records came of a section that the store was not told of.
pub(crate) fn undeclared(section: &SectionDescriptor) -> StoreError {
    StoreError::Other(format!(
        "{} was not declared; the program that wrote it is at fault",
        section.name
    ))
}
