//! Builds the canonical text of a shape while walking over a type.

use std::any::type_name;
use std::fmt::Write;

use super::Shape;

/// Receives the description of a type.
#[derive(Debug, Default)]
pub struct ShapeBuilder {
    text: String,
    /// Types whose brackets are open, outermost first, so that a type inside itself is written as a
    /// reference.
    open: Vec<&'static str>,
}

impl ShapeBuilder {
    pub(super) fn into_text(self) -> String {
        self.text
    }

    /// A type that is one word, such as `u64`.
    pub fn word(&mut self, word: &str) {
        self.text.push_str(word);
    }

    /// A container by name, such as `list<T>`.
    pub fn container(&mut self, name: &str, arguments: impl FnOnce(&mut Elements<'_>)) {
        self.text.push_str(name);
        self.text.push('<');
        arguments(&mut Elements {
            builder: self,
            first: true,
        });
        self.text.push('>');
    }

    /// `array<T;N>`.
    pub fn array<T: Shape>(&mut self, length: usize) {
        self.text.push_str("array<");
        T::describe(self);
        // Writing to a String does not fail.
        let _infallible = write!(self.text, ";{length}>");
    }

    /// Types in a fixed order without names, such as `(u8,str)`. `T` is the type described.
    pub fn tuple<T: ?Sized>(&mut self, elements: impl FnOnce(&mut Elements<'_>)) {
        self.bracketed::<T>('(', ')', |builder| {
            elements(&mut Elements {
                builder,
                first: true,
            });
        });
    }

    /// Named fields in a fixed order, such as `{user:str,seen:u64}`. `T` is the type described.
    pub fn structure<T: ?Sized>(&mut self, fields: impl FnOnce(&mut Fields<'_>)) {
        self.bracketed::<T>('{', '}', |builder| {
            fields(&mut Fields {
                builder,
                first: true,
            })
        });
    }

    /// Named variants in a fixed order, such as `[Free|Paid{until:u64}]`. `T` is the type
    /// described.
    pub fn choice<T: ?Sized>(&mut self, variants: impl FnOnce(&mut Variants<'_>)) {
        self.bracketed::<T>('[', ']', |builder| {
            variants(&mut Variants {
                builder,
                first: true,
            })
        });
    }

    fn bracketed<T: ?Sized>(&mut self, open: char, close: char, inside: impl FnOnce(&mut Self)) {
        let name = type_name::<T>();
        if let Some(levels) = self.open.iter().rev().position(|outer| *outer == name) {
            let _infallible = write!(self.text, "^{}", levels + 1);
            return;
        }
        self.open.push(name);
        self.text.push(open);
        inside(self);
        self.text.push(close);
        self.open.pop();
    }

    fn separate(&mut self, first: &mut bool, separator: char) {
        if !std::mem::take(first) {
            self.text.push(separator);
        }
    }
}

/// Receives types without names.
#[derive(Debug)]
pub struct Elements<'b> {
    builder: &'b mut ShapeBuilder,
    first: bool,
}

impl Elements<'_> {
    /// The next type.
    pub fn element<T: Shape + ?Sized>(&mut self) {
        self.builder.separate(&mut self.first, ',');
        T::describe(self.builder);
    }
}

/// Receives the fields of a struct.
#[derive(Debug)]
pub struct Fields<'b> {
    builder: &'b mut ShapeBuilder,
    first: bool,
}

impl Fields<'_> {
    /// The next field.
    pub fn field<T: Shape + ?Sized>(&mut self, name: &str) {
        self.builder.separate(&mut self.first, ',');
        self.builder.text.push_str(name);
        self.builder.text.push(':');
        T::describe(self.builder);
    }
}

/// Receives the variants of an enum.
#[derive(Debug)]
pub struct Variants<'b> {
    builder: &'b mut ShapeBuilder,
    first: bool,
}

impl Variants<'_> {
    /// A variant that holds nothing.
    pub fn unit(&mut self, name: &str) {
        self.builder.separate(&mut self.first, '|');
        self.builder.text.push_str(name);
    }

    /// A variant that holds types without names.
    pub fn tuple(&mut self, name: &str, elements: impl FnOnce(&mut Elements<'_>)) {
        self.unit(name);
        self.builder.text.push('(');
        elements(&mut Elements {
            builder: self.builder,
            first: true,
        });
        self.builder.text.push(')');
    }

    /// A variant that holds named fields.
    pub fn structure(&mut self, name: &str, fields: impl FnOnce(&mut Fields<'_>)) {
        self.unit(name);
        self.builder.text.push('{');
        fields(&mut Fields {
            builder: self.builder,
            first: true,
        });
        self.builder.text.push('}');
    }
}
