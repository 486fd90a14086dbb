//! `docs/failure-modes.md` says which test stands for which failure, `SECURITY.md` which for which boundary;
//! they must not name what is not.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn every_test_that_is_named_exists() {
    for (document, at_least) in [("docs/failure-modes.md", 50), ("SECURITY.md", 60)] {
        all_that_are_named_exist(document, at_least);
    }
}

fn all_that_are_named_exist(document: &str, at_least: usize) {
    let supervisor = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(supervisor.join("..").join(document)).unwrap();
    // What stands between two backticks and has the form of a test.
    let named: BTreeSet<(&str, &str)> = table
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|code| code.split_once("::"))
        .filter(|(file, name)| *file != "file" && !name.contains(' '))
        .collect();
    assert!(
        named.len() >= at_least,
        "{document} is hardly read: {} of {at_least}: {named:?}",
        named.len()
    );
    for (file, name) in named {
        let places = ["tests/end_to_end", "tests", ".", ".."];
        let source = places
            .iter()
            .find_map(|place| {
                fs::read_to_string(supervisor.join(place).join(format!("{file}.rs"))).ok()
            })
            .unwrap_or_else(|| panic!("{document}: there is no file for {file}::{name}"));
        assert!(
            source.contains(&format!("fn {name}(")),
            "{document}: {file} has no {name}"
        );
    }
}

#[test]
fn every_failure_has_its_row() {
    let supervisor = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(supervisor.join("../docs/failure-modes.md")).unwrap();
    let mut numbers: Vec<u32> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=58).collect::<Vec<u32>>());
}
