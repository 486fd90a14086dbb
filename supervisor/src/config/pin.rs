//! What a program must be to be run: its hash, or a signature of it.
//!
//! Owns reading and printing both. Holding a program to them is `daemon::plan`'s.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use minisign_verify::PublicKey;
use serde::{Deserialize, Serialize, Serializer};

/// What stands for the program's path in the path of a signature.
const PROGRAM: &str = "{program}";

/// A SHA-256 hash, written as 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Sha256(pub(crate) [u8; 32]);

impl FromStr for Sha256 {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!("`{text}` is not a SHA-256: 64 hexadecimal digits, as `sha256sum` prints them")
        };
        let mut hash = [0; 32];
        if text.len() != 2 * hash.len() {
            return Err(bad());
        }
        for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digit = |at: usize| char::from(digits[at]).to_digit(16);
            let (Some(high), Some(low)) = (digit(0), digit(1)) else {
                return Err(bad());
            };
            *byte = (high << 4 | low) as u8;
        }
        Ok(Self(hash))
    }
}

impl TryFrom<String> for Sha256 {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A signature of the program by the owner of a key, as `minisign` makes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "MinisignTable", into = "MinisignTable")]
pub(crate) struct Minisign {
    pub(crate) key: Key,
    /// Where the signature is, with a place for the program's path.
    signature: String,
}

/// Where the public key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// It stands in the configuration.
    Given { text: String, key: PublicKey },
    /// It is read for each look-up.
    File(PathBuf),
}

impl Minisign {
    /// Where the signature of the program at this path is.
    pub(crate) fn signature_of(&self, program: &Path) -> PathBuf {
        let mut path = OsString::new();
        for (index, part) in self.signature.split(PROGRAM).enumerate() {
            if index > 0 {
                path.push(program);
            }
            path.push(part);
        }
        path.into()
    }
}

/// The same as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MinisignTable {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_key_file: Option<PathBuf>,
    #[serde(default = "beside_the_program")]
    signature: String,
}

fn beside_the_program() -> String {
    format!("{PROGRAM}.minisig")
}

impl TryFrom<MinisignTable> for Minisign {
    type Error = String;

    fn try_from(table: MinisignTable) -> Result<Self, String> {
        let key = match (table.public_key, table.public_key_file) {
            (Some(text), None) => {
                let key = PublicKey::from_base64(text.trim()).map_err(|_| {
                    format!(
                        "`{text}` is not a public key of minisign: 56 characters, the second line of its file"
                    )
                })?;
                Key::Given { text, key }
            }
            (None, Some(path)) => Key::File(path),
            (Some(_), Some(_)) => {
                return Err(
                    "minisign has both public_key and public_key_file; one is enough".into(),
                );
            }
            (None, None) => return Err("minisign needs public_key or public_key_file".into()),
        };
        if table.signature.is_empty() || table.signature.contains('\0') {
            return Err("minisign's signature must be the path of a file".into());
        }
        Ok(Self {
            key,
            signature: table.signature,
        })
    }
}

impl From<Minisign> for MinisignTable {
    fn from(minisign: Minisign) -> Self {
        let (public_key, public_key_file) = match minisign.key {
            Key::Given { text, key: _ } => (Some(text), None),
            Key::File(path) => (None, Some(path)),
        };
        Self {
            public_key,
            public_key_file,
            signature: minisign.signature,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";

    fn read(text: &str) -> Result<Minisign, String> {
        toml::from_str(text).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn a_hash_reads_back_and_everything_else_is_refused() {
        let text = "0123456789abcdef".repeat(4);
        assert_eq!(text.parse::<Sha256>().unwrap().to_string(), text);
        assert_eq!(
            text.to_uppercase().parse::<Sha256>(),
            text.parse::<Sha256>()
        );
        for bad in ["", "12", &"g".repeat(64), &"+1".repeat(32), &"é".repeat(32)] {
            assert!(bad.parse::<Sha256>().unwrap_err().contains("sha256sum"));
        }
    }

    #[test]
    fn a_key_is_given_or_in_a_file_and_a_bad_one_is_refused() {
        let given = read(&format!("public_key = \"{KEY}\"")).unwrap();
        assert!(matches!(given.key, Key::Given { .. }));
        assert_eq!(
            given.signature_of(Path::new("/srv/shop")),
            Path::new("/srv/shop.minisig")
        );
        assert_eq!(read(&toml::to_string(&given).unwrap()).unwrap(), given);
        let elsewhere = "public_key_file = \"/k\"\nsignature = \"/signatures{program}\"";
        assert_eq!(
            read(elsewhere).unwrap().signature_of(Path::new("/srv/x")),
            Path::new("/signatures/srv/x")
        );
        for (text, part) in [
            (String::new(), "needs public_key"),
            ("public_key = \"RWQ\"".to_owned(), "56 characters"),
            (
                format!("public_key = \"{KEY}\"\npublic_key_file = \"x\""),
                "both",
            ),
            (
                format!("public_key = \"{KEY}\"\nsignature = \"\""),
                "path of a file",
            ),
            (
                format!("public_key = \"{KEY}\"\nkey = \"x\""),
                "unknown field",
            ),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
