//! Reads the canonical text of a shape back into a tree, for comparison.

/// Deepest nesting a shape may have to be read; a deeper one is compared as text.
const DEPTH_MAX: usize = 64;

/// A shape as a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tree {
    /// A word, a reference (`^1`) or the number in an array.
    Word(String),
    /// A container and its arguments.
    Container(String, Vec<Self>),
    /// Types without names.
    Tuple(Vec<Self>),
    /// Named fields.
    Structure(Vec<(String, Self)>),
    /// Named variants; what a variant holds is a [`Tree::Tuple`] or [`Tree::Structure`].
    Choice(Vec<(String, Option<Self>)>),
}

/// The tree of a shape's text, or `None` if it is not canonical.
pub(super) fn parse(text: &str) -> Option<Tree> {
    let mut parser = Parser { rest: text };
    let tree = parser.shape(0)?;
    parser.rest.is_empty().then_some(tree)
}

struct Parser<'t> {
    rest: &'t str,
}

impl<'t> Parser<'t> {
    fn eat(&mut self, expected: char) -> bool {
        let rest = self.rest.strip_prefix(expected);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn name(&mut self) -> Option<&'t str> {
        let end = self
            .rest
            .find(|c: char| ",;:|<>(){}[]".contains(c))
            .unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!name.is_empty()).then_some(name)
    }

    fn shape(&mut self, depth: usize) -> Option<Tree> {
        if depth > DEPTH_MAX {
            return None;
        }
        if self.eat('(') {
            return self
                .list(')', ',', |parser| parser.shape(depth + 1))
                .map(Tree::Tuple);
        }
        if self.eat('{') {
            return self
                .list('}', ',', |parser| parser.field(depth + 1))
                .map(Tree::Structure);
        }
        if self.eat('[') {
            return self
                .list(']', '|', |parser| parser.variant(depth + 1))
                .map(Tree::Choice);
        }
        let name = self.name()?.to_owned();
        if !self.eat('<') {
            return Some(Tree::Word(name));
        }
        let mut arguments = vec![self.shape(depth + 1)?];
        while self.eat(',') || self.eat(';') {
            arguments.push(self.shape(depth + 1)?);
        }
        self.eat('>').then_some(Tree::Container(name, arguments))
    }

    fn field(&mut self, depth: usize) -> Option<(String, Tree)> {
        let name = self.name()?.to_owned();
        if !self.eat(':') {
            return None;
        }
        Some((name, self.shape(depth)?))
    }

    fn variant(&mut self, depth: usize) -> Option<(String, Option<Tree>)> {
        let name = self.name()?.to_owned();
        let holds = self.rest.starts_with(['(', '{']);
        Some((
            name,
            if holds {
                Some(self.shape(depth)?)
            } else {
                None
            },
        ))
    }

    fn list<T>(
        &mut self,
        close: char,
        separator: char,
        mut item: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let mut items = Vec::new();
        if self.eat(close) {
            return Some(items);
        }
        loop {
            items.push(item(self)?);
            if self.eat(close) {
                return Some(items);
            }
            if !self.eat(separator) {
                return None;
            }
        }
    }
}

impl std::fmt::Display for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let join = |trees: &[Self], separator: &str| {
            trees
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(separator)
        };
        match self {
            Self::Word(word) => f.write_str(word),
            Self::Container(name, arguments) if name == "array" => {
                write!(f, "{name}<{}>", join(arguments, ";"))
            }
            Self::Container(name, arguments) => write!(f, "{name}<{}>", join(arguments, ",")),
            Self::Tuple(elements) => write!(f, "({})", join(elements, ",")),
            Self::Structure(fields) => {
                let fields: Vec<_> = fields
                    .iter()
                    .map(|(name, tree)| format!("{name}:{tree}"))
                    .collect();
                write!(f, "{{{}}}", fields.join(","))
            }
            Self::Choice(variants) => {
                let holds =
                    |holds: &Option<Self>| holds.as_ref().map_or(String::new(), Self::to_string);
                let variants: Vec<_> = variants
                    .iter()
                    .map(|(name, tree)| format!("{name}{}", holds(tree)))
                    .collect();
                write!(f, "[{}]", variants.join("|"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_text_survives_a_round_trip() {
        for text in [
            "u64",
            "unit",
            "{}",
            "{user:str,seen:u64,next:option<^1>}",
            "[Free|Paid{until:u64}|Trial(u8,char)|Empty()]",
            "map<(str,u8),array<list<bytes>;3>>",
        ] {
            assert_eq!(
                parse(text).map(|tree| tree.to_string()).as_deref(),
                Some(text)
            );
        }
    }

    #[test]
    fn other_text_is_refused_without_harm() {
        for text in [
            "", "{", "{a}", "{a:u8", "list<", "list<u8", "u8>", "(u8,)", "[|]", "[A|",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(&"(".repeat(100_000)), None);
        assert_eq!(parse(&"list<".repeat(100_000)), None);
    }
}
