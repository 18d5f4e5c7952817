//! Results on stdout and nothing else there. A reader that has seen enough (`blip2 ... | head`) ends the
//! command quietly.

use std::io::{self, Write};

use anyhow::Result;

/// Why a verb ends early although nothing is wrong with the input.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stop {
    /// Ctrl-C, after what was under way had been finished and written.
    #[error("stopped after {done} of {total}; run the same command again to go on")]
    Interrupted {
        /// Finished.
        done: usize,
        /// Asked for.
        total: usize,
    },
    /// `doctor` found the device wanting; it has said so itself.
    #[error("this device cannot be trusted")]
    NotTrusted,
}

/// Writes one line to stdout.
pub(super) fn line(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// Writes part of a line to stdout, at once.
pub(super) fn piece(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Writes one JSON object as a line.
pub(super) fn json(value: &impl serde::Serialize) -> Result<()> {
    line(&serde_json::to_string(value)?)
}

/// Whether an error is a reader that went away.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// `1234567` -> `1.2 MB`
pub(super) fn bytes(count: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{value:.1} {}", units[unit]),
    }
}

/// Columns padded to their widest cell, two blanks between; the first row is the head.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        let cells = rows.iter().filter_map(|row| row.get(c));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths);
        let line: Vec<String> = cells.map(|(cell, &width)| format!("{cell:<width$}")).collect();
        line.join("  ").trim_end().to_string()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![
            vec!["a".into(), "size".into()],
            vec!["longer".into(), bytes(1_234_567)],
        ];
        assert_eq!(table(&rows), "a       size\nlonger  1.2 MB");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(15_000_000_000), "15.0 GB");
    }
}
