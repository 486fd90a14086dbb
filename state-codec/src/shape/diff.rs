//! Says in words how two shapes differ.

use super::parse::{Tree, parse};

/// Most differences that are listed.
const LISTED_MAX: usize = 16;

/// The differences between two shapes, one sentence each, at most sixteen. `here` is the shape that
/// the running program has, `there` the other one. Empty if and only if the texts are equal.
///
/// ```
/// use heirloom_state_codec::differences;
/// assert_eq!(
///     differences("{user:str,seen:u32}", "{user:str,seen:u64}"),
///     ["`seen` is u32 here and u64 there"],
/// );
/// ```
#[must_use]
pub fn differences(here: &str, there: &str) -> Vec<String> {
    if here == there {
        return Vec::new();
    }
    let mut found = Vec::new();
    if let (Some(here), Some(there)) = (parse(here), parse(there)) {
        compare("", &here, &there, &mut found);
    }
    if found.is_empty() {
        // One of them is not canonical, or only its spelling differs.
        found.push(format!(
            "the shape is {} here and {} there",
            shortened(here),
            shortened(there)
        ));
    }
    if found.len() > LISTED_MAX {
        let more = found.len() - LISTED_MAX;
        found.truncate(LISTED_MAX);
        found.push(format!("and {more} more"));
    }
    found
}

fn shortened(shape: &str) -> String {
    match shape.char_indices().nth(120) {
        Some((end, _)) => format!("{}…", &shape[..end]),
        None => shape.to_owned(),
    }
}

fn compare(path: &str, here: &Tree, there: &Tree, found: &mut Vec<String>) {
    if here == there || found.len() > LISTED_MAX {
        return;
    }
    match (here, there) {
        (Tree::Structure(ours), Tree::Structure(theirs)) => {
            named(
                path,
                "field",
                ours,
                theirs,
                found,
                |path, ours, theirs, found| {
                    compare(path, ours, theirs, found);
                },
            );
        }
        (Tree::Choice(ours), Tree::Choice(theirs)) => {
            named(
                path,
                "variant",
                ours,
                theirs,
                found,
                |path, ours, theirs, found| match (ours, theirs) {
                    (Some(ours), Some(theirs)) => compare(path, ours, theirs, found),
                    (None, None) => {}
                    (Some(ours), None) => {
                        found.push(format!(
                            "variant {} holds {ours} here and nothing there",
                            quoted(path)
                        ));
                    }
                    (None, Some(theirs)) => found.push(format!(
                        "variant {} holds nothing here and {theirs} there",
                        quoted(path)
                    )),
                },
            );
        }
        (Tree::Container(name, ours), Tree::Container(other, theirs))
            if name == other && ours.len() == theirs.len() =>
        {
            for (ours, theirs) in ours.iter().zip(theirs) {
                compare(&join(path, &format!("<{name}>")), ours, theirs, found);
            }
        }
        (Tree::Tuple(ours), Tree::Tuple(theirs)) if ours.len() == theirs.len() => {
            for (position, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                compare(&join(path, &position.to_string()), ours, theirs, found);
            }
        }
        (here, there) => {
            let (here, there) = (shortened(&here.to_string()), shortened(&there.to_string()));
            found.push(format!("{} is {here} here and {there} there", quoted(path)));
        }
    }
}

/// Compares things with names: those missing on either side, their order, and those on both sides.
fn named<T: std::fmt::Debug>(
    path: &str,
    what: &str,
    ours: &[(String, T)],
    theirs: &[(String, T)],
    found: &mut Vec<String>,
    mut both: impl FnMut(&str, &T, &T, &mut Vec<String>),
) {
    let names = |side: &[(String, T)], other: &[(String, T)]| -> Vec<String> {
        let common = side
            .iter()
            .filter(|(name, _)| other.iter().any(|(known, _)| known == name));
        common.map(|(name, _)| name.clone()).collect()
    };
    for (name, _) in ours
        .iter()
        .filter(|(name, _)| theirs.iter().all(|(known, _)| known != name))
    {
        found.push(format!(
            "{what} {} exists only here",
            quoted(&join(path, name))
        ));
    }
    for (name, _) in theirs
        .iter()
        .filter(|(name, _)| ours.iter().all(|(known, _)| known != name))
    {
        found.push(format!(
            "{what} {} exists only there",
            quoted(&join(path, name))
        ));
    }
    let (our_order, their_order) = (names(ours, theirs), names(theirs, ours));
    if our_order != their_order {
        let (here, there) = (our_order.join(", "), their_order.join(", "));
        found.push(format!(
            "{what}s of {} are ordered {here} here and {there} there",
            quoted(path)
        ));
    }
    for (name, our) in ours {
        if let Some((_, their)) = theirs.iter().find(|(known, _)| known == name) {
            both(&join(path, name), our, their, found);
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn quoted(path: &str) -> String {
    if path.is_empty() {
        "the value".to_owned()
    } else {
        format!("`{path}`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_shapes_have_no_difference() {
        assert!(differences("{a:u8}", "{a:u8}").is_empty());
    }

    #[test]
    fn each_kind_of_difference_is_named() {
        assert_eq!(
            differences("{a:u32,b:u32}", "{b:u32,a:u32}"),
            ["fields of the value are ordered a, b here and b, a there"]
        );
        assert_eq!(
            differences("{a:u8,inner:{x:u8,y:u8}}", "{inner:{x:u16},c:u8}"),
            [
                "field `a` exists only here",
                "field `c` exists only there",
                "field `inner.y` exists only here",
                "`inner.x` is u8 here and u16 there",
            ]
        );
        assert_eq!(
            differences("list<[A|B(u8)]>", "list<[A(u8)|B]>"),
            [
                "variant `<list>.A` holds nothing here and (u8) there",
                "variant `<list>.B` holds (u8) here and nothing there",
            ]
        );
        assert_eq!(
            differences("(u8,u8)", "(u8,u9)"),
            ["`1` is u8 here and u9 there"]
        );
        assert_eq!(
            differences("u8", "u16"),
            ["the value is u8 here and u16 there"]
        );
    }

    #[test]
    fn what_cannot_be_read_is_still_reported() {
        assert_eq!(differences("u8", "{"), ["the shape is u8 here and { there"]);
        let many = |kind: &str| {
            let fields: Vec<_> = (0..100).map(|n| format!("f{n}:{kind}")).collect();
            format!("{{{}}}", fields.join(","))
        };
        let found = differences(&many("u8"), &many("u16"));
        assert!(found.len() <= LISTED_MAX + 1, "{found:?}");
    }
}
