//! Listeners of a record on their way back, from a predecessor in place or from one that is gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{CannotListen, Listener, Set, SocketPath};
use crate::daemon::record::{self, Handle, handles::Found};

/// Listeners of a record on their way back: a socket that is listed twice is one.
#[derive(Debug, Default)]
pub(crate) struct Returning(BTreeMap<Handle, Arc<Listener>>);

impl Returning {
    /// Takes a listed set back.
    ///
    /// # Errors
    ///
    /// A socket was not found, or is not what the record says.
    pub(crate) fn set(
        &mut self,
        listed: &[record::Listener],
        found: &mut Found,
    ) -> Result<Set, CannotListen> {
        listed.iter().map(|one| self.one(one, found)).collect()
    }

    /// Everything was taken over: from now on paths go with their last listeners.
    pub(crate) fn were_taken_over(&self) {
        for place in self.0.values().filter_map(|one| one.path.as_ref()) {
            place.goes_with_us.store(true, Ordering::Relaxed);
        }
    }

    fn one(
        &mut self,
        listed: &record::Listener,
        found: &mut Found,
    ) -> Result<Arc<Listener>, CannotListen> {
        let lost = |reason: String| CannotListen {
            spec: listed.spec.to_string(),
            reason,
        };
        if let Some(known) = self.0.get(&listed.handle) {
            if known.spec == listed.spec {
                return Ok(Arc::clone(known));
            }
            return known
                .with(&listed.spec)
                .map_err(|error| lost(error.to_string()));
        }
        let fd = found
            .take(listed.handle)
            .ok_or_else(|| lost(format!("the socket on {} was not found", listed.bound)))?;
        let inode = nix::sys::stat::fstat(&fd).map(|stat| stat.st_ino);
        if inode != Ok(listed.inode) {
            let text = format!("what was found is not the socket on {}", listed.bound);
            return Err(lost(text));
        }
        let path = listed.path.clone();
        let listener = Arc::new(Listener {
            handle: listed.handle,
            spec: listed.spec.clone(),
            fd,
            bound: listed.bound.clone(),
            starter_key: listed.starter_key.clone(),
            inode: listed.inode,
            path: path.map(|(path, inode)| SocketPath::new(path, inode, false)),
        });
        self.0.insert(listed.handle, Arc::clone(&listener));
        Ok(listener)
    }
}
