//! What the keeper and other generations ask of a keyed store.

use heirloom_state_codec::{Change, Lineage, Records, SchemaRef, SectionDescriptor, SectionTotal};

use super::{Handle, Keyed, Kind, Staged};
use crate::state::{
    error::{StateError, StoreError},
    remote::lowered,
    store::{Boxed, Budget, Followed, Form, Outlet, Pair, Pending, Progress, Seen, Store, Wanted},
    transaction::Group,
};

impl<T: Kind> Store for Handle<T> {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn reads(&self) -> Vec<SchemaRef> {
        <T::Value as Lineage<T::Codec>>::schemas()
    }

    fn entries(&self) -> u64 {
        self.0.count()
    }

    fn begin_copy(&self, form: &Form<'_>) -> Result<Vec<SectionDescriptor>, StoreError> {
        self.0.begin_copy(form)
    }

    fn copy_base(&self, out: &mut Outlet<'_>, budget: &Budget) -> Result<Progress, StoreError> {
        self.0.copy_base(out, budget)
    }

    fn pending(&self) -> Pending {
        self.0.pending()
    }

    fn copy_changes(&self, out: &mut Outlet<'_>, budget: &Budget) -> Result<Progress, StoreError> {
        self.0.copy_changes(out, budget)
    }

    fn settle(&self) {
        self.0.settle();
    }

    fn end_copy(&self) {
        self.0.end_copy();
    }

    fn begin_taking(&self, sections: &[&SectionDescriptor]) -> Result<(), StoreError> {
        self.0.begin_taking(sections)
    }

    fn apply(
        &self,
        section: &SectionDescriptor,
        base: bool,
        records: Records<'_>,
    ) -> Result<(), StoreError> {
        self.0.apply(section, base, records)
    }

    fn end_taking(&self) -> Vec<SectionTotal> {
        self.0.end_taking()
    }

    fn see<'a>(
        &'a self,
        version: u32,
        key: &'a [u8],
    ) -> Boxed<'a, Result<Option<Seen>, StateError>> {
        Box::pin(async move {
            let key = T::decode_key(key)?;
            let (held, value) = Self::see(self, &key).await?;
            let lowered = value.map(|value| lowered::<T::Codec, T::Value>(version, &value));
            let seen = lowered.transpose()?.map(|value| Seen {
                version: held,
                value,
            });
            Ok(seen)
        })
    }

    fn see_all(&self, version: u32) -> Boxed<'_, Result<Vec<Pair>, StateError>> {
        Box::pin(async move {
            let entries = Self::entries(self).await?;
            let each = entries.iter().map(|(key, value)| {
                let key = Keyed::<T>::key_bytes(key)?;
                Ok((key, lowered::<T::Codec, T::Value>(version, value)?))
            });
            each.collect()
        })
    }

    fn stage(&self, version: u32, wanted: &[Wanted<'_>]) -> Result<Box<dyn Group>, StateError> {
        let mut staged = Staged::new(self);
        for one in wanted {
            let value = one.change.map(|change| match change {
                Change::Put(bytes) => Some(bytes),
                Change::Remove => None,
            });
            staged.want_from(T::decode_key(one.key)?, one.expected, version, value)?;
        }
        Ok(Box::new(staged))
    }

    fn follow(&self, change: Followed<'_>) -> Result<(), StoreError> {
        self.0.follow(&change)
    }
}
