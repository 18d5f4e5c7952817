//! Shard patterns: `{00000..00012}` ranges, `{a,b}` choices, `*` and `?`, several joined by `::`, `-` for standard
//! input, as webdataset writes them.

use std::path::{Path, PathBuf};

use super::sample::DataError;

/// Most names a pattern may expand to.
const LIMIT: usize = 10_000_000;

/// The shard paths of `pattern` in order; `*` and `?` are matched against the file system and sorted by name.
///
/// A brace pattern may name files that do not exist (they are reported when opened); a glob that matches nothing is
/// an error.
pub fn expand(pattern: &str) -> Result<Vec<PathBuf>, DataError> {
    let mut out = Vec::new();
    for part in pattern.split("::").filter(|p| !p.is_empty()) {
        let mut names = Vec::new();
        braces(part, pattern, &mut names)?;
        for name in names {
            if name.contains(['*', '?']) {
                let before = out.len();
                glob(Path::new(&name), &mut out)?;
                if out.len() == before {
                    return Err(DataError::NoShards { pattern: name });
                }
            } else {
                out.push(PathBuf::from(name));
            }
        }
    }
    if out.is_empty() {
        return Err(DataError::NoShards {
            pattern: pattern.to_owned(),
        });
    }
    Ok(out)
}

fn braces(text: &str, pattern: &str, out: &mut Vec<String>) -> Result<(), DataError> {
    let bad = |reason| DataError::Pattern {
        pattern: pattern.to_owned(),
        reason,
    };
    let Some(open) = text.find('{') else {
        if text.contains('}') {
            return Err(bad("`}` without `{`"));
        }
        if out.len() >= LIMIT {
            return Err(bad("expands to more than ten million names"));
        }
        out.push(text.to_owned());
        return Ok(());
    };
    let inside = &text[open + 1..];
    let close = inside.find('}').ok_or_else(|| bad("`{` without `}`"))?;
    let (body, rest) = (&inside[..close], &inside[close + 1..]);
    if body.contains('{') {
        return Err(bad("braces inside braces are not supported"));
    }
    let mut tails = Vec::new();
    braces(rest, pattern, &mut tails)?;
    let heads: Vec<String> = match body.split_once("..") {
        Some((from, to)) => {
            let parse = |s: &str| {
                s.parse::<u64>()
                    .map_err(|_| bad("a range is {FIRST..LAST} in digits"))
            };
            let (first, last) = (parse(from)?, parse(to)?);
            if last < first || last - first >= LIMIT as u64 {
                return Err(bad("a range must ascend and have fewer than ten million members"));
            }
            // leading zeros fix the width, as in a shell
            let width = if from.starts_with('0') || to.starts_with('0') {
                from.len().max(to.len())
            } else {
                0
            };
            (first..=last).map(|n| format!("{n:0width$}")).collect()
        }
        None if body.contains(',') => body.split(',').map(str::to_owned).collect(),
        None => return Err(bad("braces hold {FIRST..LAST} or {a,b}")),
    };
    if heads.len().saturating_mul(tails.len()).saturating_add(out.len()) > LIMIT {
        return Err(bad("expands to more than ten million names"));
    }
    for head in &heads {
        for tail in &tails {
            out.push(format!("{}{head}{tail}", &text[..open]));
        }
    }
    Ok(())
}

fn glob(path: &Path, out: &mut Vec<PathBuf>) -> Result<(), DataError> {
    let mut found = vec![PathBuf::new()];
    for component in path.components() {
        let piece = component.as_os_str();
        let text = piece.to_string_lossy();
        if !text.contains(['*', '?']) {
            found.iter_mut().for_each(|p| p.push(piece));
            continue;
        }
        let mut next = Vec::new();
        for dir in &found {
            let listed = if dir.as_os_str().is_empty() {
                Path::new(".")
            } else {
                dir.as_path()
            };
            let Ok(entries) = std::fs::read_dir(listed) else {
                continue;
            };
            for entry in entries {
                let name = entry.map_err(DataError::io(listed))?.file_name();
                if wildcard(text.as_bytes(), name.as_encoded_bytes()) {
                    next.push(dir.join(name));
                }
            }
        }
        next.sort();
        found = next;
    }
    found.retain(|p| p.exists());
    out.append(&mut found);
    Ok(())
}

/// `*` any run, `?` any one byte; a leading dot must be written out.
fn wildcard(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        return false;
    }
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((sp, sn)) = star else { return false };
                star = Some((sp, sn + 1));
                p = sp + 1;
                n = sn + 1;
            }
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(pattern: &str) -> Vec<String> {
        expand(pattern)
            .unwrap()
            .into_iter()
            .map(|p| p.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn ranges_choices_and_lists() {
        assert_eq!(names("a-{008..010}.tar"), ["a-008.tar", "a-009.tar", "a-010.tar"]);
        assert_eq!(names("a-{8..10}.tar"), ["a-8.tar", "a-9.tar", "a-10.tar"]);
        assert_eq!(
            names("{x,y}/{0..1}.tar::z.tar"),
            ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar", "z.tar"]
        );
        assert_eq!(names("-"), ["-"]);
        for bad in [
            "{0..",
            "}",
            "{a..b}",
            "{3..1}",
            "{}",
            "{{a,b}}",
            "{0..99999999999}",
            "{0..9999999}{0..9}",
        ] {
            assert!(matches!(expand(bad), Err(DataError::Pattern { .. })), "{bad}");
        }
        assert!(matches!(expand(""), Err(DataError::NoShards { .. })));
    }

    #[test]
    fn globs_are_sorted_and_must_match() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b1.tar", "a1.tar", "c.txt", ".h.tar"] {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        let base = dir.path().to_string_lossy().into_owned();
        assert_eq!(
            names(&format!("{base}/*.tar")),
            [format!("{base}/a1.tar"), format!("{base}/b1.tar")]
        );
        assert_eq!(names(&format!("{base}/?1.t*")).len(), 2);
        assert!(matches!(
            expand(&format!("{base}/*.zip")),
            Err(DataError::NoShards { .. })
        ));
    }
}
