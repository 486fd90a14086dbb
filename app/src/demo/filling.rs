//! State for measurements: as many entries as wanted, of any size, which mean nothing.

use hyper::StatusCode;
use tokio::task::yield_now;

use super::{
    answer::{Answer, Refusal, text},
    request::number,
    routes::Demo,
};
use crate::release::Filling;

/// The most entries, the most bytes of one, and the most bytes of all.
const ENTRIES_MAX: u64 = 10_000_000;
const BYTES_MAX: u64 = 65_536;
const TOTAL_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;

/// So many entries are written before other requests get their turn on this thread.
const BATCH: u64 = 64;

impl Demo {
    /// Makes the filling `entries` entries of `bytes` bytes each, whatever it was before.
    pub(super) async fn fill(&self, query: Option<&str>) -> Result<Answer, Refusal> {
        let entries = number(query, "entries", 0..=ENTRIES_MAX, None)?;
        let bytes = number(query, "bytes", 0..=BYTES_MAX, Some(100))?;
        if entries * bytes > TOTAL_BYTES_MAX {
            return Err(Refusal::BadRequest(format!(
                "entries times bytes is at most {TOTAL_BYTES_MAX}"
            )));
        }
        let length = usize::try_from(bytes)
            .map_err(|_| Refusal::BadRequest("this machine counts no further".to_owned()))?;
        // Two at once would leave a mixture, and more than they may.
        let _alone = self.filling.lock().await;
        let mut batch = 0;
        for entry in 0..entries {
            // Not all alike, so that nothing is measured that only works on equal entries.
            let mut bytes = entry.to_le_bytes().repeat(length.div_ceil(8));
            bytes.truncate(length);
            let filling = Filling {
                bytes: bytes.into(),
            };
            self.stores.filling.insert(entry, filling).await?;
            rest(&mut batch).await;
        }
        // The keys have no gaps, so the first one that is missing is behind the last.
        let mut beyond = entries;
        while self.stores.filling.remove(&beyond).await?.is_some() {
            beyond += 1;
            rest(&mut batch).await;
        }
        Ok(text(
            StatusCode::OK,
            format!("entries={entries} bytes={bytes}"),
        ))
    }
}

async fn rest(batch: &mut u64) {
    *batch += 1;
    if *batch >= BATCH {
        *batch = 0;
        yield_now().await;
    }
}
