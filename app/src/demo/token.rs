//! Names that nobody can guess and nobody has had before, in any generation.

use super::answer::Refusal;

/// Random bytes of a token: so many that none ever comes twice.
const BYTES: usize = 16;

/// A new token: 32 hexadecimal digits.
pub(super) fn new() -> Result<String, Refusal> {
    let mut bytes = [0_u8; BYTES];
    getrandom::fill(&mut bytes).map_err(|error| {
        Refusal::Unavailable(format!("the system gave no random bytes: {error}"))
    })?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

/// Whether a text can be a token at all.
pub(super) fn is_one(text: &str) -> bool {
    text.len() == 2 * BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_recognised_and_differ() {
        let (one, other) = (new().unwrap(), new().unwrap());
        assert!(is_one(&one) && is_one(&other));
        assert_ne!(one, other);
        for bad in ["", "0", &"g".repeat(32), &"0".repeat(33)] {
            assert!(!is_one(bad), "{bad}");
        }
    }
}
