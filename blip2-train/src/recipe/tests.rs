//! Recipes as text.

use super::*;

const MINIMAL: &str = "stage = \"stage1\"\n[model]\nbase = \"x/y\"\n[[data.train]]\npath = \"a.tar\"\n[schedule]\nmax_iters = 3\n";

#[test]
fn unknown_keys_are_errors_everywhere() {
    Recipe::parse(MINIMAL, "test", &[]).unwrap();
    for section in [
        "",
        "model.",
        "data.",
        "data.train.0.",
        "optimizer.",
        "schedule.",
        "train.",
        "stage1.",
        "stage2.",
    ] {
        let set = [format!("{section}typo=1")];
        let error = Recipe::parse(MINIMAL, "test", &set).unwrap_err().to_string();
        assert!(error.contains("unknown field `typo`"), "{section}: {error}");
    }
    let line = Recipe::parse(&format!("{MINIMAL}max_itres = 4\n"), "test", &[]).unwrap_err();
    assert!(line.to_string().contains("max_itres"), "{line}");
}

#[test]
fn contradictions_are_refused_with_the_key() {
    for (set, key) in [
        ("model.vit_model=\"clip_L\"", "model.base"),
        ("model.qformer_dropout=1.0", "model.qformer_dropout"),
        ("schedule.max_epoch=3", "schedule.max_epoch"),
        (
            "schedule.lr_sched=\"linear_warmup_cosine_lr\"",
            "schedule.max_epoch",
        ),
        ("train.batch_size=0", "train.batch_size"),
        ("data.max_txt_len=1", "data.max_txt_len"),
        ("data.train.0.path=a.txt", "data.train.path"),
        ("train.lora={target = \"language_model\"}", "train.lora.target"),
    ] {
        let error = Recipe::parse(MINIMAL, "test", &[set.into()])
            .unwrap_err()
            .to_string();
        assert!(error.starts_with(key), "{set}: {error}");
    }
}

#[test]
fn both_spellings_mean_the_same() {
    let sets = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
    let text = MINIMAL.replace("max_iters = 3", "steps = 3\nlr = 2e-4");
    let ours = Recipe::parse(&text, "test", &sets(&["train.accumulate=2"])).unwrap();
    let lavis = sets(&["train.accum_grad_iters=2", "schedule.init_lr=2e-4"]);
    let lavis = Recipe::parse(MINIMAL, "test", &lavis).unwrap();
    let config = |recipe: &Recipe| recipe.trainer(None).unwrap();
    assert_eq!(config(&ours), config(&lavis));
    assert_eq!(config(&ours).accumulate, 2);
}

#[test]
fn dropout_of_the_qformer_replaces_the_architecture_s() {
    let text = MINIMAL.replace("base = \"x/y\"", "vit_model = \"clip_L\"");
    let dropout = |set: &[String]| {
        let recipe = Recipe::parse(&text, "test", set).unwrap();
        let config = architecture::configuration(&recipe.model, recipe.stage).unwrap();
        let qformer = config.qformer_config;
        (qformer.hidden_dropout_prob, qformer.attention_probs_dropout_prob)
    };
    assert_eq!(dropout(&[]), (0.1, 0.1));
    assert_eq!(dropout(&["model.qformer_dropout=0.25".into()]), (0.25, 0.25));
}

#[test]
fn epochs_need_a_known_length() {
    let text = MINIMAL.replace("max_iters = 3", "epochs = 4");
    let recipe = Recipe::parse(&text, "test", &[]).unwrap();
    assert_eq!(recipe.trainer(Some(5)).unwrap().steps, 20);
    let error = recipe.trainer(None).unwrap_err().to_string();
    assert!(
        error.contains("samples") && error.contains("max_iters"),
        "{error}"
    );
}
