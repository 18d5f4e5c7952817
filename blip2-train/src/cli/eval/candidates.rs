//! The list of answers to choose from: a text file with one per line, or LAVIS's `answer_list.json`.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// The answers in a file; none for `choices`, which stands for each question's own.
pub(super) fn read(file: &Path) -> Result<Vec<String>> {
    if file.as_os_str() == "choices" {
        return Ok(Vec::new());
    }
    let named = || format!("--candidates {}", file.display());
    let text = std::fs::read_to_string(file).with_context(named)?;
    let json = file.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    let lines: Vec<String> = match serde_json::from_str::<Vec<String>>(&text) {
        Ok(list) => list,
        Err(error) if json => bail!("{}: not a JSON list of strings: {error}", named()),
        Err(_) => text.lines().map(str::to_owned).collect(),
    };
    let answers: Vec<String> = lines
        .iter()
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect();
    if answers.is_empty() {
        bail!(
            "{}: no answers; write one per line, or a JSON list of strings",
            named()
        );
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_lists_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            read(&path)
        };
        assert_eq!(of("a.txt", "cat\n\n two dogs \n").unwrap(), ["cat", "two dogs"]);
        for name in ["answer_list.json", "answers"] {
            assert_eq!(
                of(name, "[\"cat\",\"two dogs\", \"\"]\n").unwrap(),
                ["cat", "two dogs"]
            );
        }
        let error = format!("{:#}", of("b.json", "{\"cat\": 1}").unwrap_err());
        assert!(
            error.contains("b.json") && error.contains("list of strings"),
            "{error}"
        );
        assert!(of("c.json", "[]").is_err() && of("c.txt", "\n").is_err());
        assert!(read(Path::new("choices")).unwrap().is_empty());
        assert!(read(&dir.path().join("none.txt")).is_err());
    }
}
