//! `#[derive(State)]` for `heirloom-state-codec`.
//!
//! Owns the translation of a type's definition into its shape, and the refusal of everything that
//! would make the shape a lie or the bytes unbounded. What a shape is, is the library's matter.

#![forbid(unsafe_code)]

mod attributes;
mod check;
mod expand;

use proc_macro::TokenStream;

/// Gives a type its shape, and with `#[state(name = "session", version = 2)]` its place in a
/// schema.
///
/// `#[state(name = "session", version = 1, oldest)]` marks the oldest version that is still kept.
/// Later versions implement `Step` by hand. A type without `#[state(…)]` is a part of other state
/// types.
///
/// The type's own `serde` attributes must leave its bytes alone: `bound`, `crate` and
/// `deny_unknown_fields` are accepted, all others are refused, as are `usize`, `isize`, `HashMap`,
/// `HashSet` and elements of no size.
#[proc_macro_derive(State, attributes(state))]
pub fn derive_state(input: TokenStream) -> TokenStream {
    let expanded = syn::parse(input).and_then(|input| expand::expand(&input));
    expanded
        .unwrap_or_else(|error| error.into_compile_error())
        .into()
}
