//! The `blip2` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    blip2_infer::cli::main()
}
