use clap::Parser;

use super::*;
use crate::data::testing::picture_shards;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    data: DataArgs,
}

fn call(args: &[&str]) -> anyhow::Result<()> {
    run(Cli::try_parse_from([&["data"], args].concat())?.data)
}

#[test]
fn every_verb_runs() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
    let (dir, _) = picture_shards(&[6, 5], 0);
    let shards = format!("{}/{{0..1}}.tar", dir.path().display());
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    call(&["stats", &shards, "--json"]).unwrap();
    call(&["bench", &shards, "--size", "32", "--seconds", "0.01"]).unwrap();
    call(&["inspect", &shards, "-n", "4", "-o", &at("sheet.png")]).unwrap();
    assert!(image::open(at("sheet.png")).unwrap().width() > 4 * 160);
    call(&["convert", &shards, "--to", "folder", "-o", &at("out")]).unwrap();
    assert_eq!(
        call(&["verify", &at("out")]).unwrap_err().to_string(),
        "1 of 11 samples cannot be used"
    );
    assert!(call(&["stats", &at("none.json")]).is_err());
    assert!(
        call(&["stats", &shards, "--format", "nonsense"]).is_ok(),
        "formats concern annotation files only"
    );
}
