//! A snapshot from end to end, against encoding and decoding the same entries and nothing else.

use anyhow::{Context as _, Result};

use super::supervised::Supervised;
use super::{Extent, transfers};
use crate::measure::{Outcome, Pairs, median};
use crate::peers::Programs;
use crate::publish::markdown::Table;
use crate::state::record::CodecName;
use crate::state::transfer::Way;

/// The ratio to hold.
const HOLD: f64 = 1.3;

/// For each codec, handovers without writes and plain transfers of the same entries by turns.
///
/// # Errors
/// If one of them fails.
pub async fn measure(programs: &Programs, extent: Extent) -> Result<Outcome> {
    let (entries, rounds) = match extent {
        Extent::Full => (1_000_000, 7),
        Extent::Small => (20_000, 2),
    };
    let mut table = Table::new([
        "codec",
        "entries",
        "rounds",
        "end to end",
        "encoding alone",
        "decoding alone",
        "ratio to the slower",
        "middle half",
        "hold",
    ]);
    let mut missed = Vec::new();
    for codec in [CodecName::Bincode, CodecName::Wincode] {
        let mut service = Supervised::start(programs, entries, 0, codec).await?;
        let mut pairs = Pairs::default();
        let (mut encodings, mut decodings) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            service.hand_over().await?;
            let taken = service.supervisor().copying_ms().await?;
            let plain = transfers::run(programs, entries, Way::Whole, codec).await?;
            pairs.add(taken, plain.encoding_ms.max(plain.decoding_ms));
            encodings.push(plain.encoding_ms);
            decodings.push(plain.decoding_ms);
        }
        service.end().await?;
        let (low, high) = pairs.spread();
        let ratio = pairs.ratio();
        table.row([
            codec.word().to_owned(),
            entries.to_string(),
            rounds.to_string(),
            format!("{:.0} ms", pairs.first()),
            format!("{:.0} ms", median(&encodings).context("no round")?),
            format!("{:.0} ms", median(&decodings).context("no round")?),
            format!("**{ratio:.2}**"),
            format!("{low:.2} to {high:.2}"),
            format!("≤ {HOLD}"),
        ]);
        if extent == Extent::Full && ratio > HOLD {
            missed.push(format!(
                "a snapshot in {} takes {ratio:.2} times as long as the slower of encoding and \
                 decoding, not {HOLD}",
                codec.word()
            ));
        }
    }
    Ok(Outcome {
        section: "state-snapshot",
        table,
        missed,
    })
}
