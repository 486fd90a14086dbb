//! Turns a type's definition into its implementations.

use proc_macro2::{Group, Ident, TokenStream, TokenTree};
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Fields, GenericParam, Result, Type, parse_quote};

use crate::attributes::{Identity, check_serde, identity, refuse_state};
use crate::check::check_type;

/// All implementations for one type.
pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    check_serde(&input.attrs)?;
    let identity = identity(&input.attrs)?;
    if let Some(lifetime) = input.generics.lifetimes().next() {
        return Err(Error::new_spanned(
            lifetime,
            "a state type owns its data and has no lifetimes",
        ));
    }
    let (types, body) = match &input.data {
        Data::Struct(data) => structure(&data.fields)?,
        Data::Enum(data) => choice(data)?,
        Data::Union(_) => {
            return Err(Error::new_spanned(
                &input.ident,
                "a union does not say what it holds",
            ));
        }
    };
    let mut elements = Vec::new();
    types
        .iter()
        .try_for_each(|ty| check_type(ty, &mut elements))?;

    let mut generics = input.generics.clone();
    for parameter in &mut generics.params {
        if let GenericParam::Type(parameter) = parameter {
            parameter
                .bounds
                .push(parse_quote!(::heirloom_state_codec::Shape));
        }
    }
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    let name = &input.ident;
    let shape = quote! {
        #[automatically_derived]
        impl #impl_generics ::heirloom_state_codec::Shape for #name #type_generics #where_clause {
            fn describe(to: &mut ::heirloom_state_codec::ShapeBuilder) {
                #body
            }
        }
    };
    // Of a generic type the elements are not known here; `describe` checks them when it is
    // compiled.
    let sizes = input
        .generics
        .params
        .is_empty()
        .then(|| sizes(&elements, &input.ident));
    let schema = identity
        .map(|identity| schema(input, &identity))
        .transpose()?;
    Ok(quote! { #shape #sizes #schema })
}

fn sizes(elements: &[&Type], name: &Ident) -> TokenStream {
    elements
        .iter()
        .map(|element| {
            let span = element.span();
            // `Self` has no meaning outside of the type's definition.
            let element = replace_self(element.to_token_stream(), name);
            quote_spanned! {span=>
                const _: () = ::core::assert!(
                    ::core::mem::size_of::<#element>() != 0,
                    "elements of no size cannot be part of a snapshot: their number would not be bounded by the input; store the number"
                );
            }
        })
        .collect()
}

fn replace_self(tokens: TokenStream, name: &Ident) -> TokenStream {
    tokens
        .into_iter()
        .map(|token| match token {
            TokenTree::Ident(ident) if ident == "Self" => TokenTree::Ident(name.clone()),
            TokenTree::Group(group) => {
                let inner = replace_self(group.stream(), name);
                TokenTree::Group(Group::new(group.delimiter(), inner))
            }
            TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => token,
        })
        .collect()
}

/// The types in a struct and the statements that describe it.
fn structure(fields: &Fields) -> Result<(Vec<Type>, TokenStream)> {
    let (types, description) = held(fields)?;
    let body = match fields {
        Fields::Named(_) => quote! { to.structure::<Self>(|fields| { #description }); },
        Fields::Unnamed(_) => quote! { to.tuple::<Self>(|elements| { #description }); },
        Fields::Unit => quote! { to.word("unit"); },
    };
    Ok((types, body))
}

/// The types in an enum and the statements that describe it.
fn choice(data: &syn::DataEnum) -> Result<(Vec<Type>, TokenStream)> {
    if data.variants.is_empty() {
        return Err(Error::new(
            data.enum_token.span(),
            "an enum without variants has no values",
        ));
    }
    let mut all = Vec::new();
    let mut body = TokenStream::new();
    for variant in &data.variants {
        check_serde(&variant.attrs)?;
        refuse_state(&variant.attrs)?;
        let name = variant.ident.unraw().to_string();
        let (types, description) = held(&variant.fields)?;
        all.extend(types);
        body.extend(match &variant.fields {
            Fields::Named(_) => quote! { variants.structure(#name, |fields| { #description }); },
            Fields::Unnamed(_) => quote! { variants.tuple(#name, |elements| { #description }); },
            Fields::Unit => quote! { variants.unit(#name); },
        });
    }
    Ok((all, quote! { to.choice::<Self>(|variants| { #body }); }))
}

/// The types of some fields and the statements that describe them one by one.
fn held(fields: &Fields) -> Result<(Vec<Type>, TokenStream)> {
    let mut types = Vec::new();
    let mut description = TokenStream::new();
    for field in fields {
        check_serde(&field.attrs)?;
        refuse_state(&field.attrs)?;
        let ty = &field.ty;
        description.extend(match &field.ident {
            Some(name) => {
                let name = name.unraw().to_string();
                quote_spanned! {ty.span()=> fields.field::<#ty>(#name); }
            }
            None => quote_spanned! {ty.span()=> elements.element::<#ty>(); },
        });
        types.push(ty.clone());
    }
    Ok((types, description))
}

fn schema(input: &DeriveInput, identity: &Identity) -> Result<TokenStream> {
    if !input.generics.params.is_empty() {
        return Err(Error::new_spanned(
            &input.generics,
            "a version of a schema is one type and has no parameters",
        ));
    }
    let (name, schema, version) = (&input.ident, &identity.name, identity.version);
    let step = identity.oldest.then(|| {
        quote! {
            #[automatically_derived]
            impl ::heirloom_state_codec::Step for #name {
                type Older = ::heirloom_state_codec::Origin;
                type Attic = ();

                fn up(
                    older: Self::Older,
                    _: ::core::option::Option<()>,
                    _: &mut ::heirloom_state_codec::Context,
                ) -> ::core::result::Result<Self, ::heirloom_state_codec::StepError> {
                    match older {}
                }

                fn down(
                    self,
                    _: &mut ::heirloom_state_codec::Context,
                ) -> ::core::result::Result<
                    (Self::Older, ::core::option::Option<()>),
                    ::heirloom_state_codec::StepError,
                > {
                    ::core::result::Result::Err(::heirloom_state_codec::StepError::new(
                        "there is no older version",
                    ))
                }
            }
        }
    });
    Ok(quote! {
        #[automatically_derived]
        impl ::heirloom_state_codec::Schema for #name {
            const NAME: &'static str = #schema;
            const VERSION: u32 = #version;
        }
        #step
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(input: DeriveInput) -> String {
        expand(&input)
            .map(|tokens| tokens.to_string())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn serde_attributes_that_change_the_bytes_are_refused_with_a_reason() {
        let flatten = refusal(parse_quote! { struct A { #[serde(flatten)] inner: B } });
        assert_eq!(
            flatten,
            "`#[serde(flatten)]` cannot be used in a state type: bincode cannot read back what it writes"
        );
        let skip = refusal(parse_quote! { enum A { B { #[serde(skip)] cache: u8 } } });
        assert!(skip.contains("silently be lost"), "{skip}");
        let tag = refusal(parse_quote! { #[serde(tag = "kind")] enum A { B } });
        assert!(tag.contains("`#[serde(tag)]`"), "{tag}");
        let untagged = refusal(parse_quote! { #[serde(untagged)] enum A { B } });
        assert!(untagged.contains("`#[serde(untagged)]`"), "{untagged}");
        let rename = refusal(parse_quote! { enum A { #[serde(rename = "b")] B } });
        assert!(
            rename.contains("must be the name in the snapshot"),
            "{rename}"
        );
        let with = refusal(parse_quote! { struct A { #[serde(with = "x")] b: u8 } });
        assert!(with.contains("fields alone"), "{with}");
        let second =
            refusal(parse_quote! { #[serde(deny_unknown_fields, default)] struct A { b: u8 } });
        assert!(second.contains("`#[serde(default)]`"), "{second}");
    }

    #[test]
    fn harmless_serde_attributes_are_accepted() {
        let input: DeriveInput = parse_quote! {
            #[serde(deny_unknown_fields, crate = "other::serde", bound(serialize = "T: X"))]
            struct A<T> { b: T }
        };
        assert!(expand(&input).is_ok());
    }

    #[test]
    fn types_that_cannot_move_are_refused_wherever_they_stand() {
        let deep = refusal(parse_quote! { struct A { b: Option<Vec<(u8, [usize; 3])>> } });
        assert_eq!(
            deep,
            "`usize` cannot be part of a snapshot: it differs between machines; use `u64` or `u32`"
        );
        let isize_ = refusal(parse_quote! { struct A(std::primitive::isize); });
        assert!(isize_.contains("`i64`"), "{isize_}");
        let map = refusal(parse_quote! { enum A { B(HashMap<u8, u8>) } });
        assert!(map.contains("`BTreeMap`"), "{map}");
        let arc = refusal(parse_quote! { struct A { b: Arc<u8> } });
        assert!(arc.contains("keep a key"), "{arc}");
        let reference = refusal(parse_quote! { struct A { b: &'static str } });
        assert!(reference.contains("owns its data"), "{reference}");
        let lifetime = refusal(parse_quote! { struct A<'a> { b: Cow<'a, str> } });
        assert!(lifetime.contains("no lifetimes"), "{lifetime}");
    }

    #[test]
    fn the_size_of_every_element_is_asserted() {
        let input: DeriveInput =
            parse_quote! { struct A { b: Option<Vec<Marker>>, c: BTreeMap<Key, u8> } };
        let expanded = expand(&input).unwrap().to_string();
        assert!(
            expanded.contains("size_of :: < Marker > () != 0"),
            "{expanded}"
        );
        assert!(
            expanded.contains("size_of :: < Key > () != 0"),
            "{expanded}"
        );
        let own: DeriveInput = parse_quote! { struct A { b: Vec<(u8, Self)> } };
        let expanded = expand(&own).unwrap().to_string();
        assert!(
            expanded.contains("size_of :: < (u8 , A) > () != 0"),
            "{expanded}"
        );
    }

    #[test]
    fn identities_are_checked() {
        let zero = refusal(parse_quote! { #[state(name = "a", version = 0)] struct A { b: u8 } });
        assert_eq!(zero, "versions count from 1");
        let nameless = refusal(parse_quote! { #[state(version = 1)] struct A { b: u8 } });
        assert!(nameless.contains("`name` is missing"), "{nameless}");
        let unknown =
            refusal(parse_quote! { #[state(name = "a", version = 1, newest)] struct A { b: u8 } });
        assert!(unknown.contains("expected `name`"), "{unknown}");
        let generic =
            refusal(parse_quote! { #[state(name = "a", version = 1)] struct A<T> { b: T } });
        assert!(generic.contains("no parameters"), "{generic}");
        let field = refusal(parse_quote! { struct A { #[state(oldest)] b: u8 } });
        assert!(field.contains("type as a whole"), "{field}");
        let twice = refusal(parse_quote! {
            #[state(name = "a", version = 1)] #[state(name = "a", version = 2)] struct A { b: u8 }
        });
        assert!(twice.contains("once"), "{twice}");
    }

    #[test]
    fn only_the_oldest_version_gets_a_step() {
        let oldest: DeriveInput =
            parse_quote! { #[state(name = "a", version = 3, oldest)] struct A { b: u8 } };
        assert!(expand(&oldest).unwrap().to_string().contains("Step for A"));
        let later: DeriveInput =
            parse_quote! { #[state(name = "a", version = 4)] struct A { b: u8 } };
        assert!(!expand(&later).unwrap().to_string().contains("Step for A"));
    }

    #[test]
    fn what_has_no_values_is_refused() {
        assert!(refusal(parse_quote! { enum A {} }).contains("no values"));
        assert!(refusal(parse_quote! { union A { b: u8 } }).contains("does not say"));
    }
}
