//! Writes measurements down: tables in Markdown, figures as pictures. Measures nothing.

pub mod chart;
pub mod markdown;
pub mod svg;
