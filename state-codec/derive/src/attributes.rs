//! Reads `#[state(…)]` and refuses what `#[serde(…)]` must not say.

use syn::{Attribute, Error, LitInt, LitStr, Result, Token, parse::ParseStream};

/// Longest schema name, as the format has it.
const NAME_BYTES_MAX: usize = 255;

/// What `#[state(…)]` says.
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) oldest: bool,
}

/// The identity in a type's attributes, if it has one.
pub(crate) fn identity(attributes: &[Attribute]) -> Result<Option<Identity>> {
    let mut found = None;
    for attribute in attributes
        .iter()
        .filter(|attribute| attribute.path().is_ident("state"))
    {
        if found.is_some() {
            return Err(Error::new_spanned(
                attribute,
                "`#[state(…)]` may stand once",
            ));
        }
        let (mut name, mut version, mut oldest) = (None::<LitStr>, None::<LitInt>, false);
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("name") {
                name = Some(meta.value()?.parse()?);
            } else if meta.path.is_ident("version") {
                version = Some(meta.value()?.parse()?);
            } else if meta.path.is_ident("oldest") {
                oldest = true;
            } else {
                return Err(meta.error("expected `name`, `version` or `oldest`"));
            }
            Ok(())
        })?;
        let missing = |what| {
            Error::new_spanned(
                attribute,
                format!("`{what}` is missing: `#[state(name = \"session\", version = 1)]`"),
            )
        };
        let name = name.ok_or_else(|| missing("name"))?;
        if name.value().is_empty() || name.value().len() > NAME_BYTES_MAX {
            return Err(Error::new(name.span(), "a schema name has 1 to 255 bytes"));
        }
        let literal = version.ok_or_else(|| missing("version"))?;
        let version: u32 = literal.base10_parse()?;
        if version == 0 {
            return Err(Error::new(literal.span(), "versions count from 1"));
        }
        found = Some(Identity {
            name: name.value(),
            version,
            oldest,
        });
    }
    Ok(found)
}

/// Refuses `#[state(…)]` on fields and variants, where it means nothing.
pub(crate) fn refuse_state(attributes: &[Attribute]) -> Result<()> {
    match attributes
        .iter()
        .find(|attribute| attribute.path().is_ident("state"))
    {
        Some(attribute) => Err(Error::new_spanned(
            attribute,
            "`#[state(…)]` belongs to the type as a whole",
        )),
        None => Ok(()),
    }
}

/// Refuses every serde attribute that changes what bytes a value has.
pub(crate) fn check_serde(attributes: &[Attribute]) -> Result<()> {
    for attribute in attributes
        .iter()
        .filter(|attribute| attribute.path().is_ident("serde"))
    {
        attribute.parse_nested_meta(|meta| {
            let name = meta
                .path
                .get_ident()
                .map(ToString::to_string)
                .unwrap_or_default();
            match reason(&name) {
                Some(reason) => Err(meta.error(reason)),
                None => skip_value(meta.input),
            }
        })?;
    }
    Ok(())
}

/// Why an attribute is refused; `None` if it is not.
fn reason(name: &str) -> Option<String> {
    let why = match name {
        "bound" | "crate" | "deny_unknown_fields" => return None,
        "flatten" | "untagged" | "tag" | "content" | "skip_serializing_if" => {
            "bincode cannot read back what it writes"
        }
        "skip" | "skip_serializing" | "skip_deserializing" => {
            "the field would silently be lost in a handover; remove it from the type"
        }
        "default" | "other" => "a missing field must be given by a `Step` between two versions",
        "rename" | "rename_all" | "rename_all_fields" | "alias" => {
            "the name in the type must be the name in the snapshot"
        }
        _ => "the shape must follow from the type's fields alone",
    };
    Some(format!(
        "`#[serde({name})]` cannot be used in a state type: {why}"
    ))
}

/// Reads over the value of an accepted attribute.
fn skip_value(input: ParseStream<'_>) -> Result<()> {
    if input.peek(Token![=]) {
        input.parse::<Token![=]>()?;
        input.parse::<syn::Expr>()?;
    } else if input.peek(syn::token::Paren) {
        input.parse::<proc_macro2::TokenTree>()?;
    }
    Ok(())
}
