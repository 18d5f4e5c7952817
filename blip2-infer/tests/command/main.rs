//! The contract of the `blip2` command: results on stdout (with `--json` one object per line), everything else on
//! stderr, exit code 2 on bad input. One binary for all verbs.

mod basics;
mod caption;
mod chat;
mod doctor;
mod planning;
mod search;
mod vqa;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Runs the command on the CPU backend.
pub fn blip2(args: &[&str]) -> Output {
    command(args).output().expect("the command starts")
}

/// The command, not yet started.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blip2"));
    command.args(args).args(["--backend", "flex"]);
    command
}

/// Runs the command with a text on stdin.
pub fn blip2_with_input(args: &[&str], input: &str) -> Output {
    let mut child = command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("written");
    drop(stdin);
    child.wait_with_output().expect("the command ends")
}

/// A file below `tests/fixtures`.
pub fn path(name: &str) -> String {
    format!("{}/../tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// stdout of a run that must succeed.
pub fn stdout(out: Output) -> String {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("UTF-8")
}

/// stderr of a run.
pub fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// The objects on stdout of a run that must succeed.
pub fn objects(out: Output) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str(line).expect("one object per line");
    stdout(out).lines().map(parse).collect()
}

/// Text of the first output.
pub fn text(answer: &Value) -> &str {
    answer["outputs"][0]["text"].as_str().expect("a text")
}

/// A folder with copies of the three fixture pictures, in a subfolder too, and one file that is no picture.
pub fn pictures() -> (tempfile::TempDir, [PathBuf; 4]) {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(dir.path().join("sub")).expect("a folder");
    let files = [
        ("a.png", "boat"),
        ("b.png", "house"),
        ("d.png", "fruit"),
        ("sub/e.png", "boat"),
    ]
    .map(|(name, picture)| {
        let file = dir.path().join(name);
        std::fs::copy(path(&format!("parity/images/{picture}.png")), &file).expect("copied");
        file
    });
    std::fs::write(dir.path().join("c.png"), "not a picture").expect("written");
    (dir, files)
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
