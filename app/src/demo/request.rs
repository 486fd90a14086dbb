//! Reading a request's target: path segments and query parameters, decoded and within limits; and what
//! a name may be, wherever it stands.

use std::{borrow::Cow, ops::RangeInclusive};

/// The longest key or other name, in bytes, after decoding.
const KEY_BYTES_MAX: usize = 128;

/// The key of a counter, checked.
///
/// The error says what a key may be.
pub(super) fn key(encoded: &str) -> Result<String, String> {
    let key = decode(encoded, Plus::Kept).filter(|key| is_fine(key));
    key.map(Cow::into_owned)
        .ok_or_else(|| what_is_fine("a key"))
}

/// Checks a name that came in a body. `what` it is stands in the error.
pub(super) fn check(what: &str, name: &str) -> Result<(), String> {
    if is_fine(name) {
        Ok(())
    } else {
        Err(what_is_fine(what))
    }
}

fn is_fine(name: &str) -> bool {
    !name.is_empty() && name.len() <= KEY_BYTES_MAX && !name.contains(char::is_control)
}

fn what_is_fine(what: &str) -> String {
    format!("{what} is 1 to {KEY_BYTES_MAX} bytes of UTF-8 without control characters")
}

/// The value of a query parameter, decoded; none if it is not given.
pub(super) fn parameter(query: Option<&str>, name: &str) -> Result<Option<String>, String> {
    for pair in query.unwrap_or_default().split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if key == name {
            return decode(value, Plus::Space)
                .map(|value| Some(value.into_owned()))
                .ok_or_else(|| format!("{name} is not percent-encoded UTF-8"));
        }
    }
    Ok(None)
}

/// A query parameter that is a number within `range`; `default` if it is not given.
pub(super) fn number(
    query: Option<&str>,
    name: &str,
    range: RangeInclusive<u64>,
    default: Option<u64>,
) -> Result<u64, String> {
    let given = match parameter(query, name)? {
        Some(value) => value.parse().ok(),
        None => default,
    };
    given
        .filter(|number| range.contains(number))
        .ok_or_else(|| {
            format!(
                "{name} is a number from {} to {}",
                range.start(),
                range.end()
            )
        })
}

/// What a plus sign means: in a query, a space.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plus {
    Kept,
    Space,
}

/// Undoes percent-encoding; none if it is damaged or what comes out is not UTF-8.
fn decode(encoded: &str, plus: Plus) -> Option<Cow<'_, str>> {
    if !encoded.contains(['%', '+']) {
        return Some(Cow::Borrowed(encoded));
    }
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut bytes = encoded.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' if plus == Plus::Space => b' ',
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_decoded_once_and_limited() {
        assert_eq!(key("a+b%20c%2Fd"), Ok("a+b c/d".to_owned()));
        assert_eq!(key("%C3%A9"), Ok("é".to_owned()));
        assert_eq!(key("%2541"), Ok("%41".to_owned()));
        assert!(key(&"k".repeat(128)).is_ok());
        for bad in ["", "%", "%4", "%zz", "%ff", "a%00b", &"k".repeat(129)] {
            assert!(key(bad).is_err(), "{bad}");
        }
        assert_eq!(check("user", "a%41"), Ok(()));
        assert!(
            check("user", "a\n")
                .unwrap_err()
                .starts_with("user is 1 to 128")
        );
    }

    #[test]
    fn parameters_are_found_by_their_whole_name() {
        let query = Some("ms=5&key=a+b&empty=&flag");
        assert_eq!(parameter(query, "key"), Ok(Some("a b".to_owned())));
        assert_eq!(parameter(query, "k"), Ok(None));
        assert_eq!(parameter(query, "empty"), Ok(Some(String::new())));
        assert_eq!(parameter(query, "flag"), Ok(Some(String::new())));
        assert_eq!(parameter(None, "key"), Ok(None));
    }

    #[test]
    fn numbers_keep_their_range() {
        let query = Some("ms=50&big=51&bad=x");
        assert_eq!(number(query, "ms", 0..=50, None), Ok(50));
        assert_eq!(number(query, "none", 0..=50, Some(7)), Ok(7));
        assert!(number(query, "none", 0..=50, None).is_err());
        assert!(number(query, "bad", 0..=50, Some(7)).is_err());
        assert_eq!(
            number(query, "big", 0..=50, None),
            Err("big is a number from 0 to 50".to_owned())
        );
    }
}
