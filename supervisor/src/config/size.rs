//! Amounts of bytes as people write them: `64KiB`, `1MiB`, `2GiB`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

/// The units, the largest first.
const UNITS: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

/// An amount from one KiB to one TiB, in whole KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Size(u64);

impl Size {
    /// So many MiB: for defaults.
    pub(crate) const fn mib(count: u16) -> Self {
        Self((count as u64) << 20)
    }

    /// The most there is.
    pub(crate) const MOST: Self = Self(1 << 40);

    pub(crate) fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = UNITS.iter().find_map(|(unit, bytes)| {
            let count = text.strip_suffix(unit)?.trim_end().parse::<u64>().ok()?;
            count.checked_mul(*bytes)
        });
        let Some(bytes) = parsed else {
            return Err(format!(
                "`{text}` is not a size such as 64KiB, 1MiB or 2GiB"
            ));
        };
        if bytes == 0 || bytes > Self::MOST.0 {
            return Err(format!("`{text}` must be from 1KiB to 1TiB"));
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS
            .iter()
            .find(|(_, bytes)| self.0.is_multiple_of(*bytes));
        // It is whole in the smallest unit, if in no other.
        let (unit, bytes) = whole.unwrap_or(&("KiB", 1 << 10));
        write!(f, "{}{unit}", self.0 / bytes)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_back_what_they_print() {
        for text in ["1KiB", "1536KiB", "1MiB", "3GiB", "1TiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        assert_eq!("2 MiB".parse::<Size>().unwrap(), Size::mib(2));
        assert_eq!("1024KiB".parse::<Size>().unwrap().to_string(), "1MiB");
    }

    #[test]
    fn sizes_need_a_unit_and_are_bounded() {
        for text in [
            "",
            "1",
            "1MB",
            "MiB",
            "-1KiB",
            "0KiB",
            "2TiB",
            "99999999999TiB",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
