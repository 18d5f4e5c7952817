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

#[test]
fn no_sample_is_an_error_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    std::fs::write(at("empty.jsonl"), "").unwrap();
    let row = |i: u32| format!("{{\"image\":\"no/{i}.jpg\",\"caption\":\"x\"}}\n");
    std::fs::write(at("gone.jsonl"), (0..3).map(row).collect::<String>()).unwrap();
    for verb in ["stats", "verify", "inspect"] {
        let sheet = at("sheet.png");
        let with = |file: &str| {
            let path = at(file);
            let mut args = vec![verb, path.as_str()];
            if verb == "inspect" {
                args.extend(["-o", &sheet]);
            }
            call(&args).unwrap_err().to_string()
        };
        let text = with("empty.jsonl");
        assert!(text.contains("there is no sample in it"), "{verb}: {text}");
        let text = with("gone.jsonl");
        match verb {
            "verify" => assert_eq!(text, "3 of 3 samples cannot be used"), // after the list of them
            _ => assert!(
                text.contains("none of 3 samples") && text.contains("no/0.jpg"),
                "{verb}: {text}"
            ),
        }
        assert!(!dir.path().join("sheet.png").exists());
    }
}
