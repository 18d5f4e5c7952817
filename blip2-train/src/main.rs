//! The `blip2-train` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    blip2_train::cli::main()
}
