//! Shapes of the standard library's types, as serde codes them.
//!
//! What is missing here is missing on purpose; the notes on [`Shape`] say why.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::time::{Duration, SystemTime};

use super::{Shape, ShapeBuilder};
use crate::codec::Bytes;

macro_rules! words {
    ($($type:ty = $word:literal),* $(,)?) => {$(
        impl Shape for $type {
            fn describe(to: &mut ShapeBuilder) {
                to.word($word);
            }
        }
    )*};
}

words! {
    bool = "bool", char = "char", str = "str", String = "str", Box<str> = "str", Bytes = "bytes",
    () = "unit", u8 = "u8", u16 = "u16", u32 = "u32", u64 = "u64", u128 = "u128", i8 = "i8",
    i16 = "i16", i32 = "i32", i64 = "i64", i128 = "i128", f32 = "f32", f64 = "f64",
}

/// Refuses elements of no size at compile time: a length of 2^40 would cost no byte.
macro_rules! refuse_zero_size {
    ($type:ty) => {
        const {
            assert!(
                size_of::<$type>() != 0,
                "elements of no size cannot be part of a snapshot: their number would not be bounded by the input; store the number"
            )
        }
    };
}

impl<T: Shape> Shape for Option<T> {
    fn describe(to: &mut ShapeBuilder) {
        to.container("option", |arguments| arguments.element::<T>());
    }
}

impl<T: Shape> Shape for Box<T> {
    fn describe(to: &mut ShapeBuilder) {
        // A box of nothing has a size of its own and would pass where its content is refused.
        refuse_zero_size!(T);
        T::describe(to);
    }
}

macro_rules! lists {
    ($($type:ident = $name:literal),*) => {$(
        impl<T: Shape> Shape for $type<T> {
            fn describe(to: &mut ShapeBuilder) {
                refuse_zero_size!(T);
                to.container($name, |arguments| arguments.element::<T>());
            }
        }
    )*};
}

lists!(Vec = "list", VecDeque = "list", BTreeSet = "set");

impl<K: Shape, V: Shape> Shape for BTreeMap<K, V> {
    fn describe(to: &mut ShapeBuilder) {
        refuse_zero_size!(K);
        to.container("map", |arguments| {
            arguments.element::<K>();
            arguments.element::<V>();
        });
    }
}

impl<T: Shape, const N: usize> Shape for [T; N] {
    fn describe(to: &mut ShapeBuilder) {
        to.array::<T>(N);
    }
}

macro_rules! tuples {
    ($(($($element:ident)+))*) => {$(
        impl<$($element: Shape),+> Shape for ($($element,)+) {
            fn describe(to: &mut ShapeBuilder) {
                to.tuple::<Self>(|elements| { $(elements.element::<$element>();)+ });
            }
        }
    )*};
}

tuples! {
    (A B) (A B C) (A B C D) (A B C D E) (A B C D E F) (A B C D E F G) (A B C D E F G H)
}

impl Shape for Duration {
    fn describe(to: &mut ShapeBuilder) {
        to.structure::<Self>(|fields| {
            fields.field::<u64>("secs");
            fields.field::<u32>("nanos");
        });
    }
}

impl Shape for SystemTime {
    fn describe(to: &mut ShapeBuilder) {
        to.structure::<Self>(|fields| {
            fields.field::<u64>("secs_since_epoch");
            fields.field::<u32>("nanos_since_epoch");
        });
    }
}

impl Shape for Ipv4Addr {
    fn describe(to: &mut ShapeBuilder) {
        to.array::<u8>(4);
    }
}

impl Shape for Ipv6Addr {
    fn describe(to: &mut ShapeBuilder) {
        to.array::<u8>(16);
    }
}

impl Shape for SocketAddrV4 {
    fn describe(to: &mut ShapeBuilder) {
        <(Ipv4Addr, u16)>::describe(to);
    }
}

impl Shape for SocketAddrV6 {
    fn describe(to: &mut ShapeBuilder) {
        <(Ipv6Addr, u16)>::describe(to);
    }
}

macro_rules! either_family {
    ($type:ty, $v4:ty, $v6:ty) => {
        impl Shape for $type {
            fn describe(to: &mut ShapeBuilder) {
                to.choice::<Self>(|variants| {
                    variants.tuple("V4", |elements| elements.element::<$v4>());
                    variants.tuple("V6", |elements| elements.element::<$v6>());
                });
            }
        }
    };
}

either_family!(IpAddr, Ipv4Addr, Ipv6Addr);
either_family!(SocketAddr, SocketAddrV4, SocketAddrV6);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Bincode, Codec};
    use crate::shape::shape_of;

    #[test]
    fn shapes_are_written_canonically() {
        assert_eq!(
            shape_of::<Box<BTreeMap<u8, [i16; 3]>>>(),
            "map<u8,array<i16;3>>"
        );
        assert_eq!(shape_of::<(BTreeSet<char>, Box<str>)>(), "(set<char>,str)");
        assert_eq!(
            shape_of::<Option<Duration>>(),
            "option<{secs:u64,nanos:u32}>"
        );
        assert_eq!(
            shape_of::<SocketAddr>(),
            "[V4((array<u8;4>,u16))|V6((array<u8;16>,u16))]"
        );
    }

    #[test]
    fn shapes_say_what_serde_writes() {
        let bytes = |size: usize, out: &[u8]| assert_eq!(out.len(), size, "{out:?}");
        let mut out = Vec::new();
        Bincode::encode(&Duration::from_secs(1), &mut out).unwrap();
        bytes(8 + 4, &out);
        out.clear();
        Bincode::encode(&SystemTime::UNIX_EPOCH, &mut out).unwrap();
        bytes(8 + 4, &out);
        out.clear();
        Bincode::encode(&SocketAddr::from(([1, 2, 3, 4], 5)), &mut out).unwrap();
        bytes(4 + 4 + 2, &out);
        out.clear();
        Bincode::encode(&SocketAddr::from(([0u16; 8], 5)), &mut out).unwrap();
        bytes(4 + 16 + 2, &out);
    }
}
