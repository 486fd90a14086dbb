//! Reading the envelope: header, what a newer minor version may have added to it, manifest.

use super::{Expect, Found, Progress, SnapshotReader};
use crate::envelope::{HEADER_BYTES, MAGIC, Manifest, ParsedHeader};
use crate::error::{Defect, ReadError};

impl SnapshotReader {
    pub(super) fn read_header(&mut self) -> Result<Progress, ReadError> {
        // A stream of another kind may be shorter than a header; say so as soon as it is known.
        let seen = &self.intake.buffer[self.intake.unread.clone()];
        let common = seen.len().min(MAGIC.len());
        if seen[..common] != MAGIC[..common] {
            let mut found = [0; 8];
            found[..common].copy_from_slice(&seen[..common]);
            return Err(self.intake.at(0, Defect::Magic { found }));
        }
        let Some(range) = self.intake.have(HEADER_BYTES) else {
            return Ok(Progress::NeedMore);
        };
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(&self.intake.buffer[range]);
        let parsed =
            ParsedHeader::parse(&bytes).map_err(|(offset, defect)| ReadError { offset, defect })?;
        self.digest.update(&bytes);
        self.header = Some(parsed.header);
        self.expect = match parsed.extension_len {
            0 => Expect::Manifest(parsed),
            _ => Expect::Extension(parsed),
        };
        self.intake.shown = HEADER_BYTES;
        Ok(Progress::Skipped)
    }

    pub(super) fn read_extension(&mut self, parsed: ParsedHeader) -> Result<Progress, ReadError> {
        let Some(range) = self.intake.have(parsed.extension_len as usize) else {
            return Ok(Progress::NeedMore);
        };
        let bytes = &self.intake.buffer[range];
        let (body, declared) = bytes.split_at(bytes.len() - 4);
        let computed = crc32fast::hash(body);
        if declared != computed.to_le_bytes() {
            let mut word = [0; 4];
            word.copy_from_slice(declared);
            let declared = u32::from_le_bytes(word);
            return Err(self
                .intake
                .at(0, Defect::HeaderChecksum { declared, computed }));
        }
        self.digest.update(bytes);
        self.intake.shown = bytes.len();
        self.expect = Expect::Manifest(parsed);
        Ok(Progress::Skipped)
    }

    pub(super) fn read_manifest(&mut self, parsed: ParsedHeader) -> Result<Progress, ReadError> {
        let Some(range) = self.intake.have(parsed.manifest_len as usize) else {
            return Ok(Progress::NeedMore);
        };
        let bytes = &self.intake.buffer[range];
        let computed = crc32fast::hash(bytes);
        let declared = parsed.manifest_checksum;
        if declared != computed {
            return Err(self
                .intake
                .at(0, Defect::ManifestChecksum { declared, computed }));
        }
        let manifest = Manifest::parse(bytes).map_err(|(at, defect)| self.intake.at(at, defect))?;
        self.digest.update(bytes);
        self.intake.shown = bytes.len();
        self.references = vec![0; manifest.sections.len()];
        self.manifest = Some(manifest);
        self.expect = Expect::Frame;
        Ok(Progress::Found(Found::Opened))
    }
}
