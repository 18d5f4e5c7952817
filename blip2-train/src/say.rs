//! Lines for the person, where several processes share one terminal.

use std::fmt::Display;
use std::io::Write as _;

/// A line on standard error in one write. `eprintln!` writes its pieces one by one, and those of two ranks that end at
/// the same moment would mix.
pub fn say(line: impl Display) {
    // nobody is left to be told that standard error is gone
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
