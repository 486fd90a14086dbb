//! What the keeper and other generations ask of an arena.
//!
//! Owns which of its sections is which, and the moment at which a taken arena is complete.

use std::{collections::HashMap, fs::File, os::fd::OwnedFd, sync::Arc};

use heirloom_state_codec::{
    CodecId, MemfdRef, Records, SchemaRef, SectionDescriptor, SectionId, SectionKind, SectionTotal,
    StateDigest,
};

use super::{Arena, Extent, Object, bytes, descriptors, memory};
use crate::state::{
    error::{StateError, StoreError},
    store::{Boxed, Budget, Followed, Form, Outlet, Pair, Pending, Progress, Seen, Store, Wanted},
    transaction::Group,
    turn::lock,
    way_back::record::Fate,
};

/// What is under way.
#[derive(Debug, Default)]
pub(super) enum Moving {
    #[default]
    Nothing,
    Descriptors(descriptors::Giving),
    Bytes(bytes::Giving),
    Taking(Taking),
}

/// A copy on its way in.
#[derive(Debug)]
pub(super) struct Taking {
    files: HashMap<String, File>,
    bytes: Option<bytes::Taking>,
}

impl Moving {
    /// An object was made.
    pub(super) fn made(&mut self, object: &Arc<Object>) {
        match self {
            Self::Descriptors(giving) => giving.left.push(Arc::clone(object)),
            Self::Bytes(giving) => giving.made(object),
            Self::Nothing | Self::Taking(_) => {}
        }
    }

    /// An object was removed.
    pub(super) fn removed(&mut self, object: &Arc<Object>) {
        match self {
            Self::Bytes(giving) => giving.removed(object),
            // If it has gone already, the index tells that it is gone.
            Self::Descriptors(giving) => giving.left.retain(|other| !Arc::ptr_eq(other, object)),
            Self::Nothing | Self::Taking(_) => {}
        }
    }

    /// A chunk of an object was written to.
    pub(super) fn written(&mut self, object: &Arc<Object>, chunk: u64) {
        match self {
            Self::Bytes(giving) => giving.written(object, chunk),
            // The memory itself moves.
            Self::Descriptors(_) | Self::Nothing | Self::Taking(_) => {}
        }
    }

    fn slice(
        &mut self,
        out: &mut Outlet<'_>,
        budget: &Budget,
        base: bool,
    ) -> Result<Progress, StoreError> {
        match self {
            Self::Descriptors(giving) => giving.slice(out, budget),
            Self::Bytes(giving) => giving.slice(out, budget, base),
            Self::Nothing | Self::Taking(_) => Ok(Progress::Done),
        }
    }
}

impl Arena {
    /// Puts together what has come: each object that the index names must be there.
    fn complete(&self, mut files: HashMap<String, File>) -> Option<HashMap<String, Arc<Object>>> {
        let mut objects = HashMap::new();
        for (name, extent) in self.shared.index.held() {
            let file = match files.remove(&name) {
                Some(file) => file,
                // Of an object without bytes there is nothing that could have come.
                None if extent.bytes == 0 => memory::growing().ok()?,
                None => return None,
            };
            if file.metadata().ok()?.len() < extent.bytes {
                return None;
            }
            memory::seal(&file, extent.bytes).ok()?;
            let object = Arc::new(Object::new(&name, file, extent.bytes));
            objects.insert(name, object);
        }
        Some(objects)
    }
}

impl Store for Arena {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn reads(&self) -> Vec<SchemaRef> {
        vec![SchemaRef::opaque()]
    }

    fn entries(&self) -> u64 {
        Store::entries(&self.shared.index)
    }

    fn begin_copy(&self, form: &Form<'_>) -> Result<Vec<SectionDescriptor>, StoreError> {
        // The index has one version, so it has no attic: its section is the first, and the objects' the
        // next but one all the same.
        let index = Form {
            reader: None,
            ..*form
        };
        let section = SectionId(form.first.0.wrapping_add(2));
        let objects = lock(&self.shared.objects);
        let mut sections = self.shared.index.begin_copy(&index)?;
        let all = objects.values().map(Arc::clone).collect();
        let mut moving = lock(&self.shared.moving);
        if form.descriptors {
            let giving = descriptors::Giving::new(section, all);
            sections.push(giving.declare(&self.shared.name, CodecId::RAW));
            *moving = Moving::Descriptors(giving);
        } else {
            let giving = bytes::Giving::new(section, all);
            sections.push(giving.declare(&self.shared.name));
            *moving = Moving::Bytes(giving);
        }
        Ok(sections)
    }

    fn copy_base(&self, out: &mut Outlet<'_>, budget: &Budget) -> Result<Progress, StoreError> {
        match self.shared.index.copy_base(out, budget)? {
            Progress::More => Ok(Progress::More),
            Progress::Done => lock(&self.shared.moving).slice(out, budget, true),
        }
    }

    fn pending(&self) -> Pending {
        let index = self.shared.index.pending();
        let objects = match &*lock(&self.shared.moving) {
            Moving::Bytes(giving) => giving.pending(),
            Moving::Descriptors(giving) => Pending {
                entries: giving.left.len() as u64,
                bytes: 0,
            },
            Moving::Nothing | Moving::Taking(_) => Pending::default(),
        };
        Pending {
            entries: index.entries + objects.entries,
            bytes: index.bytes + objects.bytes,
        }
    }

    fn copy_changes(&self, out: &mut Outlet<'_>, budget: &Budget) -> Result<Progress, StoreError> {
        match self.shared.index.copy_changes(out, budget)? {
            Progress::More => Ok(Progress::More),
            Progress::Done => lock(&self.shared.moving).slice(out, budget, false),
        }
    }

    fn settle(&self) {
        let objects: Vec<_> = lock(&self.shared.objects).values().cloned().collect();
        for object in objects {
            drop(lock(&object.writing));
        }
        self.shared.index.settle();
    }

    fn end_copy(&self) {
        self.shared.index.end_copy();
        *lock(&self.shared.moving) = Moving::Nothing;
    }

    fn begin_taking(&self, sections: &[&SectionDescriptor]) -> Result<(), StoreError> {
        let (mut index, mut bytes) = (Vec::new(), None);
        for section in sections.iter().copied() {
            let part = section.name.strip_prefix(&self.shared.name);
            match (section.kind, part) {
                (SectionKind::Blob, Some("")) => {}
                (SectionKind::Map, Some(".bytes")) => bytes = Some(bytes::Taking::new(section.id)),
                _other => index.push(section),
            }
        }
        self.shared.index.begin_taking(&index)?;
        if !sections.is_empty() {
            lock(&self.shared.objects).clear();
            *lock(&self.shared.moving) = Moving::Taking(Taking {
                files: HashMap::new(),
                bytes,
            });
        }
        Ok(())
    }

    fn apply(
        &self,
        section: &SectionDescriptor,
        base: bool,
        records: Records<'_>,
    ) -> Result<(), StoreError> {
        let mut moving = lock(&self.shared.moving);
        if let Moving::Taking(Taking {
            files,
            bytes: Some(taking),
        }) = &mut *moving
            && taking.section == section.id
        {
            let mut records = records;
            return records.try_for_each(|record| taking.apply(files, base, &record));
        }
        self.shared.index.apply(section, base, records)
    }

    fn apply_memfd(
        &self,
        _section: &SectionDescriptor,
        reference: &MemfdRef<'_>,
        descriptor: OwnedFd,
    ) -> Result<(), StoreError> {
        match &mut *lock(&self.shared.moving) {
            Moving::Taking(taking) => descriptors::take(&mut taking.files, reference, descriptor),
            Moving::Nothing | Moving::Descriptors(_) | Moving::Bytes(_) => Err(StoreError::Other(
                "an object came before its arena was declared; this is a fault of heirloom-app"
                    .to_owned(),
            )),
        }
    }

    fn end_taking(&self) -> Vec<SectionTotal> {
        let mut totals = self.shared.index.end_taking();
        let Moving::Taking(taking) = std::mem::take(&mut *lock(&self.shared.moving)) else {
            return totals;
        };
        match self.complete(taking.files) {
            Some(objects) => *lock(&self.shared.objects) = objects,
            // An index whose objects are not all there is not held: the comparison with what the writer
            // holds fails.
            None => {
                for total in &mut totals {
                    total.state = StateDigest::default();
                }
            }
        }
        totals.extend(taking.bytes.as_ref().map(bytes::Taking::total));
        totals
    }

    fn follow(&self, change: Followed<'_>) -> Result<(), StoreError> {
        let name = std::str::from_utf8(change.key).ok();
        let Some(name) = name else {
            return Err(change.is_none_of(&self.shared.name));
        };
        let mut objects = lock(&self.shared.objects);
        match (change.fate, change.descriptor) {
            (Fate::Object { bytes }, Some(descriptor)) => {
                let file = memory::check(descriptor, memory::seals(), bytes)?;
                let object = Arc::new(Object::new(name, file, bytes));
                objects.insert(name.to_owned(), object);
                self.shared.index.preset(name.to_owned(), Extent { bytes });
            }
            (Fate::Remove, _) => {
                objects.remove(name);
                self.shared.index.discard(&name.to_owned());
            }
            (Fate::Put { .. } | Fate::Object { .. }, _) => {
                let wrong = "a change of an arena is none; the program that wrote it is at fault";
                return Err(StoreError::Other(wrong.to_owned()));
            }
        }
        Ok(())
    }

    fn see<'a>(&'a self, _: u32, _: &'a [u8]) -> Boxed<'a, Result<Option<Seen>, StateError>> {
        Box::pin(async { Err(self.not_there()) })
    }

    fn see_all(&self, _: u32) -> Boxed<'_, Result<Vec<Pair>, StateError>> {
        Box::pin(async { Err(self.not_there()) })
    }

    fn stage(&self, _: u32, _: &[Wanted<'_>]) -> Result<Box<dyn Group>, StateError> {
        Err(self.not_there())
    }
}

impl Arena {
    fn not_there(&self) -> StateError {
        StateError::Refused(format!(
            "the objects of {} are not reached over the link; the memory itself is shared",
            self.shared.name
        ))
    }
}
