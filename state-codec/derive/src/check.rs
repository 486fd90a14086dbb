//! Refuses field types that cannot be part of a snapshot, and finds the element types whose size
//! the compiler is to check.

use syn::{Error, GenericArgument, PathArguments, Result, Type};

/// Containers whose elements must have a size. The first argument is the element or key.
const CONTAINERS: [&str; 4] = ["Vec", "VecDeque", "BTreeSet", "BTreeMap"];

/// Walks over a field's type. Element types are added to `elements`.
pub(crate) fn check_type<'t>(ty: &'t Type, elements: &mut Vec<&'t Type>) -> Result<()> {
    match ty {
        Type::Path(path) => {
            let Some(segment) = path.path.segments.last() else {
                return Ok(());
            };
            let name = segment.ident.to_string();
            if let Some(reason) = refused(&name) {
                return Err(Error::new_spanned(
                    ty,
                    format!("`{name}` cannot be part of a snapshot: {reason}"),
                ));
            }
            let PathArguments::AngleBracketed(arguments) = &segment.arguments else {
                return Ok(());
            };
            let mut types = arguments.args.iter().filter_map(|argument| match argument {
                GenericArgument::Type(ty) => Some(ty),
                _ => None,
            });
            if CONTAINERS.contains(&name.as_str())
                && let Some(element) = types.clone().next()
            {
                elements.push(element);
            }
            types.try_for_each(|ty| check_type(ty, elements))
        }
        Type::Tuple(tuple) => tuple
            .elems
            .iter()
            .try_for_each(|ty| check_type(ty, elements)),
        Type::Array(array) => check_type(&array.elem, elements),
        Type::Paren(inner) => check_type(&inner.elem, elements),
        Type::Group(inner) => check_type(&inner.elem, elements),
        Type::Reference(_) | Type::Ptr(_) | Type::FnPtr(_) | Type::TraitObject(_) => {
            Err(Error::new_spanned(
                ty,
                "a state type owns its data: pointers and functions cannot move to another process",
            ))
        }
        // Anything else has no `Shape` and is refused by the compiler.
        _ => Ok(()),
    }
}

fn refused(name: &str) -> Option<&'static str> {
    Some(match name {
        "usize" => "it differs between machines; use `u64` or `u32`",
        "isize" => "it differs between machines; use `i64` or `i32`",
        "HashMap" => "it codes the same value as different bytes; use `BTreeMap`",
        "HashSet" => "it codes the same value as different bytes; use `BTreeSet`",
        "Rc" | "Arc" => "sharing does not survive a move to another process; keep a key instead",
        "Instant" => "it has no meaning in another process; use `SystemTime` or `Duration`",
        _ => return None,
    })
}
