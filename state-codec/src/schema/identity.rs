//! Compares what two programs call the same, and finds the version both know.

use std::fmt;

use super::{Lineage, Schema};
use crate::codec::CodecId;
use crate::envelope::{SchemaRef, SectionDescriptor};
use crate::shape::{Fingerprint, differences, shape_of};

/// The identity of a type as it stands in a manifest.
#[must_use]
pub fn schema_of<T: Schema>() -> SchemaRef {
    let shape = shape_of::<T>();
    let fingerprint = Fingerprint::of(&shape);
    SchemaRef {
        name: T::NAME.to_owned(),
        version: T::VERSION,
        fingerprint,
        shape,
    }
}

/// Two programs do not mean the same by a schema. Its text says how they differ.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SchemaMismatch {
    /// The same version has another shape: somebody changed a type that was to stay as it was.
    Shape {
        /// Name of the schema.
        name: String,
        /// The version.
        version: u32,
        /// The differences, one sentence each.
        differences: Vec<String>,
    },
    /// No version is known to both.
    Versions {
        /// Name of the schema.
        name: String,
        /// What the running program knows.
        here: Vec<u32>,
        /// What the other one knows or wrote.
        there: Vec<u32>,
    },
    /// Another schema altogether.
    Name {
        /// What the running program expects.
        here: String,
        /// What the other one wrote.
        there: String,
    },
    /// Another codec.
    Codec {
        /// Name of the section.
        section: String,
        /// The codec that the running program expects.
        here: CodecId,
        /// The codec that was used.
        there: CodecId,
    },
    /// The keys have another shape.
    Key {
        /// Name of the section.
        section: String,
        /// The differences, one sentence each.
        differences: Vec<String>,
    },
}

impl fmt::Display for SchemaMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |versions: &[u32]| {
            let texts: Vec<_> = versions.iter().map(ToString::to_string).collect();
            if texts.is_empty() {
                "none".to_owned()
            } else {
                texts.join(", ")
            }
        };
        match self {
            Self::Shape {
                name,
                version,
                differences,
            } => write!(
                f,
                "{name}@{version} is not the same type in both programs: {}; a version in use must stay as it is, so give the changed type a version of its own",
                differences.join("; ")
            ),
            Self::Versions { name, here, there } => write!(
                f,
                "{name}: no version is known to both programs, here {}, there {}; take a program that knows both",
                list(here),
                list(there)
            ),
            Self::Codec {
                section,
                here,
                there,
            } => write!(
                f,
                "`{section}` is coded with {there}, not with {here}; read it with the codec that the manifest names"
            ),
            Self::Name { here, there } => write!(
                f,
                "schema `{there}` stands where `{here}` is expected; the section's name is used for something else now"
            ),
            Self::Key {
                section,
                differences,
            } => write!(
                f,
                "the keys of `{section}` are not the same type in both programs: {}; keys have no versions, so give the section another name",
                differences.join("; ")
            ),
        }
    }
}

impl std::error::Error for SchemaMismatch {}

/// The newest version that both programs know, to be settled before anything is frozen. `here` and
/// `there` are lists such as [`Lineage::schemas`] makes; the newer program translates, whichever
/// side it is on.
///
/// # Errors
/// [`SchemaMismatch::Shape`] if a version that both list has two shapes, even if another one would
/// do: one of the programs is then not what it says. [`SchemaMismatch::Versions`] if they have none
/// in common.
pub fn agree<'h>(
    name: &str,
    here: &'h [SchemaRef],
    there: &[SchemaRef],
) -> Result<&'h SchemaRef, SchemaMismatch> {
    let mut best: Option<&SchemaRef> = None;
    for ours in here.iter().filter(|schema| schema.name == name) {
        let same = |theirs: &&SchemaRef| theirs.name == name && theirs.version == ours.version;
        let Some(theirs) = there.iter().find(same) else {
            continue;
        };
        if theirs.fingerprint != ours.fingerprint {
            return Err(SchemaMismatch::Shape {
                name: name.to_owned(),
                version: ours.version,
                differences: differences(&ours.shape, &theirs.shape),
            });
        }
        if best.is_none_or(|best| best.version < ours.version) {
            best = Some(ours);
        }
    }
    let versions = |schemas: &[SchemaRef]| {
        let known = schemas.iter().filter(|schema| schema.name == name);
        known.map(|schema| schema.version).collect()
    };
    best.ok_or_else(|| SchemaMismatch::Versions {
        name: name.to_owned(),
        here: versions(here),
        there: versions(there),
    })
}

/// Checks that a section's values can be read as `T`, before any of them is decoded.
///
/// # Errors
/// All of [`SchemaMismatch`] but [`SchemaMismatch::Key`] and [`SchemaMismatch::Codec`].
pub fn admit<C, T: Lineage<C> + Schema>(section: &SectionDescriptor) -> Result<(), SchemaMismatch> {
    let theirs = &section.schema;
    if theirs.name != T::NAME {
        return Err(SchemaMismatch::Name {
            here: T::NAME.to_owned(),
            there: theirs.name.clone(),
        });
    }
    agree(T::NAME, &T::schemas(), std::slice::from_ref(theirs)).map(drop)
}
