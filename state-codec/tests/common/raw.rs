//! Snapshots put together byte by byte from docs/snapshot-format.md, without the library's writer.
//! So tests can make streams that no writer makes, and the document is tried out at the same time.

pub(crate) const MAGIC: [u8; 8] = [0x89, 0x48, 0x4C, 0x53, 0x0D, 0x0A, 0x1A, 0x0A];

/// A stream under construction.
pub(crate) struct Stream {
    pub(crate) bytes: Vec<u8>,
    pub(crate) sequence: u64,
    sections: Vec<u16>,
}

/// A section's entry in a manifest: number and kind; opaque and named by its number.
pub(crate) type RawSection = (u16, u8);

pub(crate) fn manifest(sections: &[RawSection]) -> Vec<u8> {
    let mut out = Vec::new();
    text(&mut out, "raw");
    out.extend((sections.len() as u16).to_le_bytes());
    for (id, kind) in sections {
        out.extend(id.to_le_bytes());
        out.push(*kind);
        out.push(1);
        out.extend(0_u16.to_le_bytes());
        out.extend(0_u16.to_le_bytes());
        out.extend(0_u32.to_le_bytes());
        out.extend(&blake3::hash(b"").as_bytes()[..16]);
        out.extend(0_u64.to_le_bytes());
        out.extend(0_u64.to_le_bytes());
        text(&mut out, &format!("s{id}"));
        text(&mut out, "");
        text(&mut out, "");
        text(&mut out, "");
    }
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

pub(crate) fn envelope(manifest: &[u8], frame_cap: u32) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(1_u16.to_le_bytes());
    out.extend(0_u16.to_le_bytes());
    out.extend(72_u32.to_le_bytes());
    out.extend(0_u64.to_le_bytes());
    out.extend(1_u64.to_le_bytes());
    out.extend([0; 20]);
    out.extend(frame_cap.to_le_bytes());
    out.extend((manifest.len() as u32).to_le_bytes());
    out.extend(crc32fast::hash(manifest).to_le_bytes());
    out.extend(0_u32.to_le_bytes());
    let checksum = crc32fast::hash(&out);
    out.extend(checksum.to_le_bytes());
    out.extend(manifest);
    out
}

impl Stream {
    pub(crate) fn new(sections: &[RawSection], frame_cap: u32) -> Self {
        let bytes = envelope(&manifest(sections), frame_cap);
        Self {
            bytes,
            sequence: 0,
            sections: sections.iter().map(|(id, _)| *id).collect(),
        }
    }

    /// Appends a frame with right checksums and the next sequence number, whatever it holds.
    pub(crate) fn frame(&mut self, kind: u8, flags: u8, section: u16, shard: u32, payload: &[u8]) {
        let mut out = Vec::new();
        out.extend(b"HLF1");
        out.push(kind);
        out.push(flags);
        out.extend(section.to_le_bytes());
        out.extend((payload.len() as u32).to_le_bytes());
        out.extend(shard.to_le_bytes());
        out.extend(self.sequence.to_le_bytes());
        out.extend(crc32fast::hash(payload).to_le_bytes());
        let checksum = crc32fast::hash(&out);
        out.extend(checksum.to_le_bytes());
        out.extend(payload);
        self.bytes.extend(out);
        self.sequence += 1;
    }

    pub(crate) fn freeze(&mut self, rounds: u32) {
        self.frame(4, 0, 0, 0, &rounds.to_le_bytes());
    }

    /// Appends an end mark that declares `totals` (entries, sum) for the sections.
    pub(crate) fn end(&mut self, totals: &[(u64, u128)]) {
        let mut payload = Vec::new();
        payload.extend(self.sequence.to_le_bytes());
        payload.extend((self.bytes.len() as u64).to_le_bytes());
        payload.extend((self.sections.len() as u16).to_le_bytes());
        for (section, (entries, sum)) in self.sections.iter().zip(totals) {
            payload.extend(section.to_le_bytes());
            payload.extend(entries.to_le_bytes());
            payload.extend(sum.to_le_bytes());
        }
        let mut digest = blake3::Hasher::new();
        digest.update(&self.bytes);
        digest.update(&payload);
        payload.extend(digest.finalize().as_bytes());
        payload.extend([0x0A, 0x1A, 0x0A, 0x0D, 0x53, 0x4C, 0x48, 0x89]);
        self.frame(7, 0, 0, 0, &payload);
    }
}

/// A record; no value is a tombstone.
pub(crate) fn record(version: u64, key: &[u8], value: Option<&[u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(version.to_le_bytes());
    out.extend((key.len() as u32).to_le_bytes());
    out.extend(
        value
            .map_or(u32::MAX, |value| value.len() as u32)
            .to_le_bytes(),
    );
    out.extend(key);
    out.extend(value.unwrap_or_default());
    out
}

/// What a record adds to its section's state digest.
pub(crate) fn entry_hash(record: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(record)
}
