//! Tables in Markdown, and their places in a document.

use anyhow::{Result, bail};

/// A table with a fixed number of columns.
#[derive(Debug, Clone)]
pub struct Table {
    columns: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these headings.
    #[must_use]
    pub fn new<const COLUMNS: usize>(headings: [&str; COLUMNS]) -> Self {
        Self {
            columns: COLUMNS,
            rows: vec![headings.map(str::to_owned).to_vec()],
        }
    }

    /// Adds a row; short rows are filled with empty cells, long ones are cut.
    pub fn row<const COLUMNS: usize>(&mut self, cells: [String; COLUMNS]) {
        let mut cells: Vec<String> = cells
            .map(|cell| cell.replace('|', "\\|").replace('\n', " "))
            .to_vec();
        cells.resize(self.columns, String::new());
        self.rows.push(cells);
    }

    /// The table as Markdown, ending in a line break.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        let mut text = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            text.push_str(&format!("| {} |\n", row.join(" | ")));
            if index == 0 {
                text.push_str(&format!("|{}\n", " --- |".repeat(self.columns)));
            }
        }
        text
    }
}

/// Puts `content` between the marks of `section` in `document`.
///
/// # Errors
/// If the marks are not there exactly once.
pub fn replace_section(document: &str, section: &str, content: &str) -> Result<String> {
    let (begin, end) = (
        format!("<!-- begin {section} -->\n"),
        format!("<!-- end {section} -->"),
    );
    if document.matches(&begin).count() != 1 || document.matches(&end).count() != 1 {
        bail!(
            "the document does not have \"{}\" and \"{end}\" exactly once",
            begin.trim()
        );
    }
    match (document.split_once(&begin), document.split_once(&end)) {
        (Some((before, _)), Some((_, after))) if before.len() + after.len() < document.len() => Ok(
            format!("{before}{begin}\n{}\n{end}{after}", content.trim_end()),
        ),
        _ => bail!(
            "in the document, \"{end}\" stands before \"{}\"",
            begin.trim()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_markdown() {
        let mut table = Table::new(["a", "b"]);
        table.row(["1".to_owned(), "x|y".to_owned()]);
        assert_eq!(
            table.to_markdown(),
            "| a | b |\n| --- | --- |\n| 1 | x\\|y |\n"
        );
    }

    #[test]
    fn a_section_is_replaced_and_can_be_replaced_again() {
        let document = "one\n<!-- begin x -->\nold\n<!-- end x -->\ntwo\n";
        let once = replace_section(document, "x", "new\n").unwrap();
        assert_eq!(once, "one\n<!-- begin x -->\n\nnew\n<!-- end x -->\ntwo\n");
        assert_eq!(replace_section(&once, "x", "new").unwrap(), once);
    }

    #[test]
    fn marks_that_are_missing_or_in_the_wrong_order_are_an_error() {
        assert!(replace_section("nothing", "x", "new").is_err());
        let turned = "<!-- end x --> between\n<!-- begin x -->\n";
        assert!(replace_section(turned, "x", "new").is_err());
    }
}
