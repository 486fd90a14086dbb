//! Objects travel as descriptors, to a generation on the same machine.
//!
//! A reference may be sent for an object that is removed afterwards; the index says at the end which ones
//! there are.

use std::{collections::HashMap, fs::File, os::fd::OwnedFd, sync::Arc};

use heirloom_state_codec::{MemfdRef, SchemaRef, SectionDescriptor, SectionId, SectionKind};

use super::{Object, memory};
use crate::state::{
    error::StoreError,
    store::{Budget, Outlet, Progress},
};

/// Objects whose descriptors have yet to go.
#[derive(Debug)]
pub(super) struct Giving {
    section: SectionId,
    pub(super) left: Vec<Arc<Object>>,
}

impl Giving {
    pub(super) fn new(section: SectionId, objects: Vec<Arc<Object>>) -> Self {
        Self {
            section,
            left: objects,
        }
    }

    /// The section's entry in the manifest.
    pub(super) fn declare(
        &self,
        name: &str,
        codec: heirloom_state_codec::CodecId,
    ) -> SectionDescriptor {
        SectionDescriptor {
            id: self.section,
            kind: SectionKind::Blob,
            required: true,
            codec,
            attic_of: None,
            name: name.to_owned(),
            key_shape: String::new(),
            schema: SchemaRef::opaque(),
            entries_hint: self.left.len() as u64,
            bytes_hint: 0,
        }
    }

    pub(super) fn slice(
        &mut self,
        out: &mut Outlet<'_>,
        budget: &Budget,
    ) -> Result<Progress, StoreError> {
        while let Some(object) = self.left.pop() {
            let descriptor = out.attach(OwnedFd::from(object.file.try_clone()?));
            let reference = MemfdRef {
                key: object.name.as_bytes(),
                descriptor,
                seals: memory::seals(),
                offset: 0,
                length: object.size,
                content: None,
            };
            out.writer.memfd(self.section, &reference)?;
            if !self.left.is_empty() && budget.is_spent(out.writer) {
                return Ok(Progress::More);
            }
        }
        Ok(Progress::Done)
    }
}

/// Takes an object up.
///
/// # Errors
///
/// If its file is not what was promised, or is no object of an arena.
pub(super) fn take(
    files: &mut HashMap<String, File>,
    reference: &MemfdRef<'_>,
    descriptor: OwnedFd,
) -> Result<(), StoreError> {
    let name = std::str::from_utf8(reference.key).ok();
    let Some(name) = name.filter(|_| reference.offset == 0) else {
        return Err(StoreError::Other(
            "an object in a memory file begins elsewhere than at 0, or its name is no text; \
             the program that wrote it is at fault"
                .to_owned(),
        ));
    };
    let file = memory::check(descriptor, reference.seals, reference.length)?;
    files.insert(name.to_owned(), file);
    Ok(())
}
