//! Writes measurements down: tables in Markdown, latencies as a picture. Measures nothing.

pub mod markdown;
pub mod svg;
