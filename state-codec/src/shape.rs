//! The shape of a type: a canonical text of what its bytes consist of, and its fingerprint.
//!
//! bincode's bytes do not say what they are: two swapped `u32` fields decode without an error. So
//! each section carries the shape of its values, and bytes are decoded only as a type of the same
//! shape. The text is structural: names of types do not matter, names and order of fields and
//! variants do.

mod builder;
mod diff;
mod parse;
mod types;

use std::fmt;
use std::str::FromStr;

pub use builder::{Elements, Fields, ShapeBuilder, Variants};
pub use diff::differences;

/// A type whose bytes can be described.
///
/// Derive it with `#[derive(State)]`. The description must be of what serde does with the type, so
/// an implementation by hand goes with an implementation of serde's traits by hand.
///
/// ```
/// use heirloom_state_codec::{State, shape_of};
/// #[derive(State)]
/// struct Node { name: String, next: Option<Box<Node>> }
/// assert_eq!(shape_of::<Node>(), "{name:str,next:option<^1>}");
/// ```
///
/// What cannot be described does not compile:
///
/// ```compile_fail,E0080
/// # use heirloom_state_codec::State;
/// #[derive(State)]
/// struct Bomb { marks: Vec<()> } // elements of no size cannot be part of a snapshot
/// ```
/// ```compile_fail
/// # use heirloom_state_codec::State;
/// #[derive(State)]
/// struct Machine { width: usize } // it differs between machines
/// ```
/// ```compile_fail
/// # use heirloom_state_codec::State;
/// #[derive(serde::Serialize, State)]
/// struct Cache { #[serde(skip)] hits: u64 } // the field would silently be lost
/// ```
/// ```compile_fail,E0277
/// # use heirloom_state_codec::shape_of;
/// shape_of::<std::sync::Arc<u8>>(); // has no shape
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no shape, so it cannot be part of a snapshot",
    note = "`#[derive(State)]` gives a type of your own its shape",
    note = "`usize` and `isize` differ between machines: use `u64` and `i64`",
    note = "`HashMap` and `HashSet` code the same value as different bytes: use `BTreeMap` and `BTreeSet`",
    note = "pointers that are shared (`Rc`, `Arc`) cannot be moved: keep keys instead"
)]
pub trait Shape {
    /// Describes the type.
    fn describe(to: &mut ShapeBuilder);
}

/// The canonical text of a type's shape. Its grammar is in `docs/snapshot-format.md`.
///
/// ```
/// use heirloom_state_codec::{Fingerprint, shape_of};
/// assert_eq!(shape_of::<Vec<(u64, Option<String>)>>(), "list<(u64,option<str>)>");
/// assert_ne!(Fingerprint::of(&shape_of::<u32>()), Fingerprint::of(&shape_of::<i32>()));
/// ```
#[must_use]
pub fn shape_of<T: Shape + ?Sized>() -> String {
    let mut builder = ShapeBuilder::default();
    T::describe(&mut builder);
    builder.into_text()
}

/// Hash of a shape: the first 16 bytes of its blake3, as a little-endian number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub u128);

impl Fingerprint {
    /// Fingerprint of a shape's text.
    #[must_use]
    pub fn of(shape: &str) -> Self {
        let hash = blake3::hash(shape.as_bytes());
        let mut half = [0; 16];
        half.copy_from_slice(&hash.as_bytes()[..16]);
        Self(u128::from_le_bytes(half))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}
