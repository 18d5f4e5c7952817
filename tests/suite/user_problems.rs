//! `tests/user-problems.md` promises a test or a reason for every failure that users of other implementations
//! report. Here: every test that it names exists, and no row is without one of the two.

use std::path::Path;

#[test]
fn every_test_that_the_table_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let table = std::fs::read_to_string(root.join("tests/user-problems.md")).expect("the table");
    let rows: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with("| ") && line.as_bytes()[2].is_ascii_digit())
        .collect();
    let numbers: Vec<u32> = rows
        .iter()
        .filter_map(|row| row[2..].split(' ').next()?.parse().ok())
        .collect();
    // sections C1 to C3 and C5 of the survey
    let expected: Vec<u32> = (1..=20).chain(33..=36).collect();
    assert_eq!(numbers, expected);
    let mut named = 0;
    for row in rows {
        let tests: Vec<&str> = row
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|t| t.contains("::"))
            .collect();
        assert!(
            !tests.is_empty() || row.contains("Reason:"),
            "neither a test nor a reason: {row}"
        );
        for test in tests {
            let (file, name) = test.split_once("::").expect("filtered above");
            let source = std::fs::read_to_string(root.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
            assert!(source.contains(&format!("fn {name}")), "{test} does not exist");
            named += 1;
        }
    }
    assert!(named >= 40, "only {named} tests are named");
}
