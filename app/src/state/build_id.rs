//! The build ID of the running program, by which a snapshot says who wrote it.
//!
//! It stands in an ELF note of the program's file (`NT_GNU_BUILD_ID`, elf(5)). A program without one,
//! or a file that cannot be read, is no error: the ID is then unknown.

use std::{fs::File, io::Read, os::unix::fs::FileExt, sync::OnceLock};

use heirloom_state_codec::BuildId;

/// A program header of the kind that holds notes (`PT_NOTE`).
const NOTE_SEGMENT: u32 = 4;
/// The note's type and owner.
const BUILD_ID_NOTE: u32 = 3;
const OWNER: &[u8] = b"GNU\0";

/// More than any program's notes; longer segments are not searched.
const NOTES_BYTES_MAX: u64 = 64 * 1024;

/// The running program's.
pub(super) fn own() -> BuildId {
    static OWN: OnceLock<BuildId> = OnceLock::new();
    *OWN.get_or_init(|| {
        let file = File::open("/proc/self/exe").ok();
        file.and_then(|file| of(&file)).unwrap_or_default()
    })
}

/// That of a 64-bit little-endian ELF file; none if there is none.
fn of(file: &File) -> Option<BuildId> {
    let mut header = [0; 64];
    (&*file).read_exact(&mut header).ok()?;
    // Magic, 64-bit, little-endian.
    if header[..6] != [0x7F, b'E', b'L', b'F', 2, 1] {
        return None;
    }
    let table = u64::from_le_bytes(header[32..40].try_into().ok()?);
    let size = u16::from_le_bytes(header[54..56].try_into().ok()?);
    let count = u16::from_le_bytes(header[56..58].try_into().ok()?);
    for index in 0..u64::from(count) {
        let mut segment = [0; 56];
        let at = table.checked_add(index * u64::from(size))?;
        file.read_exact_at(&mut segment, at).ok()?;
        let kind = u32::from_le_bytes(segment[..4].try_into().ok()?);
        let offset = u64::from_le_bytes(segment[8..16].try_into().ok()?);
        let length = u64::from_le_bytes(segment[32..40].try_into().ok()?);
        if kind != NOTE_SEGMENT || length > NOTES_BYTES_MAX {
            continue;
        }
        let mut notes = vec![0; usize::try_from(length).ok()?];
        file.read_exact_at(&mut notes, offset).ok()?;
        if let Some(id) = in_notes(&notes) {
            return Some(id);
        }
    }
    None
}

/// Notes stand end to end: lengths of owner and content, type, owner, content, each padded to four
/// bytes.
fn in_notes(mut notes: &[u8]) -> Option<BuildId> {
    let padded = |length: u32| usize::try_from(length).ok()?.checked_next_multiple_of(4);
    while notes.len() >= 12 {
        let (head, rest) = notes.split_at(12);
        let word = |at: usize| head[at..at + 4].try_into().map(u32::from_le_bytes).ok();
        let (owner_length, length) = (word(0)?, word(4)?);
        let (owner, rest) = rest.split_at_checked(padded(owner_length)?)?;
        let content = rest.get(..usize::try_from(length).ok()?)?;
        if word(8)? == BUILD_ID_NOTE && owner == OWNER {
            return Some(BuildId::from_note(content));
        }
        notes = rest.get(padded(length)?..).unwrap_or_default();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(kind: u32, owner: &[u8], content: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [owner.len() as u32, content.len() as u32, kind] {
            note.extend_from_slice(&word.to_le_bytes());
        }
        for part in [owner, content] {
            note.extend_from_slice(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn the_id_is_found_among_other_notes() {
        let notes = [note(1, OWNER, &[0; 16]), note(3, OWNER, &[7; 20])].concat();
        assert_eq!(in_notes(&notes), Some(BuildId([7; 20])));
        assert_eq!(in_notes(&note(3, b"Go\0\0", b"x")), None);
        for length in 0..notes.len() {
            let _ = in_notes(&notes[..length]);
        }
    }

    #[test]
    fn what_is_no_program_has_none() {
        let file = File::open("/proc/self/cmdline").unwrap();
        assert_eq!(of(&file), None);
    }
}
