//! `report RUN` and `import-lavis FILE`.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::recipe::lavis_yaml;
use crate::run::guard::write_atomically;
use crate::run::{log::METRICS, report};

/// Arguments of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Folder of a run
    pub run: PathBuf,
}

/// Arguments of `import-lavis`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// LAVIS's training configuration (.yaml)
    pub file: PathBuf,
    /// File to write [default: standard output]
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// `report`
pub(super) fn report(args: &ReportArgs) -> Result<()> {
    if !args.run.join(METRICS).is_file() {
        bail!(
            "{} has no {METRICS}; give the folder that `train --out` wrote",
            args.run.display()
        );
    }
    println!("{}", report::write(&args.run)?.display());
    Ok(())
}

/// `import-lavis`
pub(super) fn import(args: &ImportArgs) -> Result<()> {
    let path = args.file.display().to_string();
    let text = std::fs::read_to_string(&args.file).with_context(|| path.clone())?;
    let name = args.file.file_stem().unwrap_or_default().to_string_lossy();
    let imported = lavis_yaml::import(&text, &name).with_context(|| path)?;
    match &args.out {
        None => print!("{}", imported.toml),
        Some(out) => {
            write_atomically(out, imported.toml.as_bytes()).with_context(|| out.display().to_string())?;
            println!("{}", out.display());
        }
    }
    Ok(())
}
