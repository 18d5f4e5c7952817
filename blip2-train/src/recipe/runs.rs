//! Whole runs from a recipe's text to an exported folder that opens as a model, on tiny models and generated data.

use std::path::Path;

use blip2_model::backend::Flex;
use blip2_model::checkpoint::DtypePolicy;
use blip2_model::generate::GenerateOptions;
use blip2_model::language::Architecture;
use blip2_model::session::{Request, Session};
use blip2_model::weights::safetensors::SafetensorsFile;
use blip2_model::weights::{DType, TensorSource};
use burn::backend::Autodiff;

use super::start::{Ended, Environment, run};
use super::*;
use crate::distributed::Single;
use crate::run::progress::Show;
use crate::run::{Interrupt, log};

type Ad = Autodiff<Flex>;

fn fixture(name: &str) -> String {
    format!("{}/../tests/fixtures/parity/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Twelve pictures of two colours with captions that the fixtures' vocabularies can spell.
fn pictures(folder: &Path) -> String {
    let rows: String = (0..12u8)
        .map(|i| {
            let colour = if i % 2 == 0 {
                [220, 30, 10 * i]
            } else {
                [20, 10 * i, 220]
            };
            let picture = image::RgbImage::from_pixel(16, 14, image::Rgb(colour));
            picture.save(folder.join(format!("{i}.png"))).unwrap();
            let word = if i % 2 == 0 {
                "a red house"
            } else {
                "fruit on the table"
            };
            format!("{{\"image\":\"{i}.png\",\"caption\":\"{word}\",\"question\":\"What is it?\",\"answer\":[\"house\",\"fruit\"]}}\n")
        })
        .collect();
    let path = folder.join("captions.jsonl");
    std::fs::write(&path, rows).unwrap();
    path.display().to_string()
}

/// Where everything of a test lies.
struct Bench {
    folder: tempfile::TempDir,
    data: String,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = pictures(folder.path());
        Self { folder, data }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn recipe(&self, head: &str, sets: &[&str]) -> Recipe {
        let text = format!(
            "{head}\n[[data.train]]\npath = \"{}\"\n[train]\nbatch_size = 4\nlog_every = 1\n[schedule]\nmax_iters = 3\nwarmup_steps = 0\ninit_lr = 1e-3\n",
            self.data
        );
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        Recipe::parse(&text, "test", &sets).unwrap_or_else(|error| panic!("{error}"))
    }

    fn start(&self, recipe: &Recipe, name: &str, stop: bool) -> Ended {
        let interrupt = Interrupt::new();
        if stop {
            interrupt.request();
        }
        let env = Environment::<Flex> {
            folder: self.folder.path().join(name),
            collective: &Single,
            interrupt,
            dry_run: false,
            show: Show::Nothing,
        };
        run::<Ad>(recipe, &env, &Default::default()).unwrap_or_else(|error| panic!("{error}"))
    }

    fn train(&self, recipe: &Recipe, name: &str) -> Session<Flex> {
        let Ended::Finished(export) = self.start(recipe, name, false) else {
            panic!("{name} did not finish")
        };
        let session = Session::open(&export, DtypePolicy::default(), false, &Default::default());
        session.unwrap_or_else(|error| panic!("{error}"))
    }

    /// First and last loss of a run.
    fn losses(&self, name: &str) -> Vec<f64> {
        let rows = log::read(&self.folder.path().join(name)).unwrap();
        rows.iter()
            .filter(|row| row["kind"] == "train")
            .map(|row| row["loss"].as_f64().unwrap())
            .collect()
    }

    fn tensors(&self, name: &str) -> SafetensorsFile {
        SafetensorsFile::open(self.folder.path().join(name).join("export/model.safetensors")).unwrap()
    }
}

fn caption(session: &Session<Flex>, picture: &str) -> String {
    let image = Session::<Flex>::read_image(Path::new(picture)).unwrap();
    let request = Request {
        image: picture.into(),
        prompt: String::new(),
        question: String::new(),
        options: session
            .generation
            .clone()
            .unwrap_or_else(|| GenerateOptions::for_architecture(Architecture::DecoderOnly)),
    };
    session.answer(&[image], &[request]).unwrap()[0].outputs[0]
        .text
        .clone()
}

fn stage1(bench: &Bench, sets: &[&str]) -> Recipe {
    let base = fixture("itm");
    bench.recipe(
        &format!("stage = \"stage1\"\n[model]\nbase = \"{base}\"\n[data]\nmax_txt_len = 12"),
        sets,
    )
}

#[test]
fn stage_1_from_a_checkpoint_ends_in_a_model_that_matches() {
    let bench = Bench::new();
    let recipe = stage1(&bench, &["optimizer.clip_norm=1.0"]);
    let session = bench.train(&recipe, "run");
    let text = session.tokenize_texts(&["a red house".into()], Some(12)).unwrap();
    assert_eq!(text.ids.len(), 1);
    assert!(session.model.bridge.lm_head.is_some(), "stage 1 has all heads");
    for name in ["recipe.toml", "report.html", "metrics.jsonl"] {
        assert!(bench.folder.path().join("run").join(name).is_file(), "{name}");
    }
    // what is written down is what was run
    let saved = Recipe::open(&bench.folder.path().join("run/recipe.toml"), &[]).unwrap();
    assert_eq!(saved.trainer(None).unwrap(), recipe.trainer(None).unwrap());
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_bits() {
    let bench = Bench::new();
    let recipe = stage1(
        &bench,
        &["train.train_vision=true", "data.vis_processor=blip_image_train"],
    );
    bench.train(&recipe, "whole");
    for step in 1..=2 {
        let ended = bench.start(&recipe, "parts", true);
        assert!(
            matches!(ended, Ended::Interrupted(found) if found == step),
            "{ended:?}"
        );
    }
    bench.train(&recipe, "parts");
    let (whole, parts) = (bench.tensors("whole"), bench.tensors("parts"));
    assert!(
        whole
            .infos()
            .iter()
            .any(|info| info.name.starts_with("vision_model.encoder.layers.0"))
    );
    for info in whole.infos() {
        let (a, b) = (whole.get(&info.name).unwrap(), parts.get(&info.name).unwrap());
        assert_eq!(a.bytes(), b.bytes(), "{}", info.name);
    }
}

/// With an evaluation transform the store holds the encoder's output to f16 precision, so the first loss, before any
/// difference can grow, agrees to that precision; the second run finds everything stored.
#[test]
fn stored_features_train_as_pixels_do() {
    let bench = Bench::new();
    let plain = "data.vis_processor=blip_image_eval";
    bench.train(&stage1(&bench, &[plain]), "pixels");
    let store = format!("train.features={}", bench.path("features"));
    // a request to stop is heard before the first picture, and nothing is trained
    let stopped = bench.start(&stage1(&bench, &[plain, &store]), "stored", true);
    assert!(matches!(stopped, Ended::Interrupted(0)));
    assert!(!bench.folder.path().join("stored").join("metrics.jsonl").exists());
    for name in ["stored", "again"] {
        bench.train(&stage1(&bench, &[plain, &store]), name);
        let (a, b) = (bench.losses("pixels")[0], bench.losses(name)[0]);
        assert!((a - b).abs() < 5e-3 * a, "{a} and {b}");
    }
    assert_eq!(bench.losses("stored"), bench.losses("again"));
}

/// What a store holds depends on how pictures are prepared, not on how many data sets there are.
#[test]
fn more_data_that_is_prepared_alike_joins_a_feature_store() {
    let bench = Bench::new();
    let fingerprint = |processors: &[&str]| {
        let sets = processors
            .iter()
            .map(|p| format!("{{path = \"{}\"{p}}}", bench.data));
        let sets = format!("data.train=[{}]", sets.collect::<Vec<_>>().join(", "));
        let recipe = stage1(&bench, &["data.vis_processor=blip_image_eval", &sets]);
        feeds::Reader::once(&recipe, 28).unwrap().fingerprint().unwrap()
    };
    let other = ", vis_processor = \"blip_image_train\"";
    assert_eq!(fingerprint(&[""]), fingerprint(&["", ""]));
    assert_ne!(fingerprint(&[""]), fingerprint(&[other]));
    assert_ne!(fingerprint(&[""]), fingerprint(&["", other]));
    assert_ne!(fingerprint(&["", other]), fingerprint(&[other, ""]));
}

/// A caption for each of two colours, learnt by heart: targets end where they should, padding is masked, the prompt
/// is the picture, and what is exported generates what was trained.
#[test]
fn both_families_learn_two_captions_by_heart() {
    for family in ["opt", "t5"] {
        let bench = Bench::new();
        let base = fixture(family);
        let head = format!("stage = \"stage2\"\n[model]\nbase = \"{base}\"");
        let sets = [
            "schedule.max_iters=100",
            "schedule.init_lr=5e-3",
            "train.batch_size=6",
            "stage2.llm_dropout=false",
            "train.lora={target = \"language_model\", rank = 8}",
        ];
        let session = bench.train(&bench.recipe(&head, &sets), "run");
        for (picture, text) in [("0.png", "a red house"), ("1.png", "fruit on the table")] {
            assert_eq!(caption(&session, &bench.path(picture)), text, "{family}");
        }
    }
}

/// Adapters merged on export: the exported matrix is `W + alpha / r * B A` of the checkpoint's factors.
#[test]
fn adapters_are_merged_on_export() {
    let bench = Bench::new();
    let recipe = stage1(
        &bench,
        &["train.lora={target = \"qformer\", rank = 2, alpha = 6.0}"],
    );
    bench.train(&recipe, "run");
    let name = "qformer.encoder.layer.1.attention.attention.query.weight";
    let base = SafetensorsFile::open(Path::new(&fixture("itm")).join("model.safetensors")).unwrap();
    let checkpoint = bench
        .folder
        .path()
        .join("run/checkpoints/step-00000003/model.safetensors");
    let checkpoint = SafetensorsFile::open(checkpoint).unwrap();
    assert!(checkpoint.info(name).is_none(), "adapted matrices do not train");
    let get = |file: &SafetensorsFile, name: &str| file.get(name).unwrap().to_f32_vec().unwrap();
    let owner = name.strip_suffix(".weight").unwrap();
    let (a, b) = (
        get(&checkpoint, &format!("{owner}.lora_A.weight")),
        get(&checkpoint, &format!("{owner}.lora_B.weight")),
    );
    let (old, new) = (get(&base, name), get(&bench.tensors("run"), name));
    let width = a.len() / 2;
    let mut moved = 0f32;
    for (i, (old, new)) in old.iter().zip(&new).enumerate() {
        let (row, column) = (i / width, i % width);
        let sum: f32 = (0..2).map(|r| b[row * 2 + r] * a[r * width + column]).sum();
        // one f32 product and sum of two terms
        assert!((old + 3.0 * sum - new).abs() < 1e-6, "{i}");
        moved = moved.max((old - new).abs());
    }
    assert!(moved > 1e-5, "three steps leave a trace: {moved}");
}

const NANO: &str = r#"
[model.config]
num_query_tokens = 4
image_text_hidden_size = 16
[model.config.vision_config]
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 2
image_size = 16
patch_size = 8
[model.config.qformer_config]
vocab_size = 320
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 48
max_position_embeddings = 32
"#;

/// Everything from nothing: a language model on text, stage 1 with its encoder, stage 2 on both.
#[test]
fn three_stages_from_random_weights_build_on_each_other() {
    let bench = Bench::new();
    let text = bench.path("texts.txt");
    std::fs::write(&text, "a red house\nfruit on the table\n".repeat(40)).unwrap();
    let opt = fixture("opt");
    let language = format!(
        "stage = \"language_model\"\n[model]\ninit = \"random\"\ntokenizer = \"{opt}\"\n[model.config]\nmodel_type = \"opt\"\nvocab_size = 372\nhidden_size = 32\nnum_hidden_layers = 1\nffn_dim = 48\nnum_attention_heads = 2\nmax_position_embeddings = 64\n[data]\nmax_txt_len = 24"
    );
    let set = format!("data.train.0.path={text}");
    let recipe = bench.recipe(
        &language,
        &[&set, "schedule.max_iters=40", "schedule.init_lr=1e-2"],
    );
    let Ended::Finished(lm) = bench.start(&recipe, "lm", false) else {
        panic!()
    };
    let losses = bench.losses("lm");
    assert!(losses[39] < 0.5 * losses[0], "{} to {}", losses[0], losses[39]);
    assert!(
        std::fs::read_to_string(lm.join("config.json"))
            .unwrap()
            .contains("OPTForCausalLM")
    );

    let itm = fixture("itm");
    let head = format!(
        "stage = \"stage1\"\n[model]\ninit = \"random\"\nqformer_tokenizer = \"{itm}\"{NANO}\n[data]\nmax_txt_len = 12"
    );
    let recipe = bench.recipe(&head, &["train.train_vision=true"]);
    bench.train(&recipe, "first");

    let (run1, lm) = (bench.path("first"), lm.display());
    let head = format!("stage = \"stage2\"\n[model]\nopt_model = \"{lm}\"\nbridge_from = \"{run1}\"{NANO}");
    let recipe = bench.recipe(&head, &[]);
    let session = bench.train(&recipe, "second");
    caption(&session, &bench.path("1.png"));
    // the encoder that stage 1 trained is the one stage 2 has frozen, and the language model is ours
    let name = "vision_model.encoder.layers.1.mlp.fc1.weight";
    let (first, second) = (bench.tensors("first"), bench.tensors("second"));
    assert_eq!(
        first.get(name).unwrap().bytes(),
        second.get(name).unwrap().bytes()
    );
    let plain = SafetensorsFile::open(bench.folder.path().join("lm/export/model.safetensors")).unwrap();
    let name = "model.decoder.layers.0.fc1.weight";
    let inside = second.get(&format!("language_model.{name}")).unwrap();
    assert_eq!(plain.get(name).unwrap().bytes(), inside.bytes());

    // the same seed gives the same start, and an export in half precision is half as large
    let half = bench.folder.path().join("half");
    let found = origins::checkpoint_of(&bench.folder.path().join("second")).unwrap();
    let files = export::export::<Flex>(&found, &half, Some(DType::F16)).unwrap();
    let file = SafetensorsFile::open(&files[0]).unwrap();
    assert!(file.infos().iter().all(|info| info.dtype == DType::F16));
    Session::<Flex>::open(&half, DtypePolicy::default(), false, &Default::default()).unwrap();
}

/// Question answering with a trained encoder and a Q-Former that reads the question; the text branch that stage 2
/// lacks is drawn, and both tokenizers end in the export.
#[test]
fn answers_train_with_the_question_in_the_q_former() {
    let bench = Bench::new();
    let (opt, itm) = (fixture("opt"), fixture("itm"));
    let config = std::fs::read_to_string(Path::new(&opt).join("config.json")).unwrap();
    let path = bench.path("config.json");
    std::fs::write(&path, config.replace("\"vocab_size\": 97", "\"vocab_size\": 321")).unwrap();
    let head = format!(
        "stage = \"stage2\"\n[model]\nconfig = \"{path}\"\nvision_from = \"{opt}\"\nlanguage_from = \"{opt}\"\nbridge_from = [\"{opt}\"]\nqformer_tokenizer = \"{itm}\"\nqformer_text_input = true\n[stage2]\ntask = \"answer\"\ntemplate = \"Question: {{}} Answer:\""
    );
    let recipe = bench.recipe(
        &head,
        &["train.train_vision=true", "optimizer.lr_layer_decay=0.9"],
    );
    let Ended::Finished(export) = bench.start(&recipe, "run", false) else {
        panic!()
    };
    assert!(bench.losses("run").iter().all(|loss| loss.is_finite()));
    for name in [
        "tokenizer.json",
        "qformer_tokenizer/tokenizer.json",
        "generation_config.json",
    ] {
        assert!(export.join(name).is_file(), "{name}");
    }
    // a session gives the Q-Former the question, cut as training cuts it
    let session = Session::<Flex>::open(&export, DtypePolicy::default(), false, &Default::default()).unwrap();
    assert!(session.model.reads_questions());
    let longest = blip2_model::checkpoint::companions::longest_text(&export.join("qformer_tokenizer"));
    assert_eq!(longest, Some(recipe.data.max_txt_len));
    let trained = bench.tensors("run");
    let base = SafetensorsFile::open(Path::new(&opt).join("model.safetensors")).unwrap();
    let frozen = "language_model.model.decoder.layers.0.fc1.weight";
    assert_eq!(
        trained.get(frozen).unwrap().bytes(),
        base.get(frozen).unwrap().bytes()
    );
    let moved = "vision_model.encoder.layers.0.mlp.fc1.weight";
    assert_ne!(
        trained.get(moved).unwrap().bytes(),
        base.get(moved).unwrap().bytes()
    );
}

/// LLaMA in the place of OPT: the text ends with the end of text instead of a line feed.
#[test]
fn a_llama_decoder_trains_in_stage_2() {
    let bench = Bench::new();
    let opt = fixture("opt");
    let head = format!(
        "stage = \"stage2\"\n[model]\ninit = \"random\"\ntokenizer = \"{opt}\"{NANO}\n[model.config.text_config]\nmodel_type = \"llama\"\nvocab_size = 372\nhidden_size = 24\nintermediate_size = 32\nnum_hidden_layers = 1\nnum_attention_heads = 2\nmax_position_embeddings = 64\nbos_token_id = 2\neos_token_id = 2\npad_token_id = 1\n[stage2]\nprompt = \"a\""
    );
    let session = bench.train(&bench.recipe(&head, &[]), "run");
    caption(&session, &bench.path("1.png"));
    assert!(bench.losses("run").iter().all(|loss| loss.is_finite()));
}

#[test]
fn missing_weights_are_named_before_anything_is_trained() {
    let bench = Bench::new();
    let itm = fixture("itm");
    let head = format!("stage = \"stage1\"\n[model]\nqformer_tokenizer = \"{itm}\"{NANO}");
    let recipe = bench.recipe(&head, &[]);
    let env = Environment::<Flex> {
        folder: bench.folder.path().join("run"),
        collective: &Single,
        interrupt: Interrupt::new(),
        dry_run: false,
        show: Show::Nothing,
    };
    let error = run::<Ad>(&recipe, &env, &Default::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("image encoder") && error.contains("vision_from"),
        "{error}"
    );
    assert!(!env.folder.exists());
}

#[test]
fn a_dry_run_counts_and_writes_nothing() {
    let bench = Bench::new();
    let recipe = stage1(&bench, &["schedule.max_iters=100"]);
    let env = Environment::<Flex> {
        folder: bench.folder.path().join("run"),
        collective: &Single,
        interrupt: Interrupt::new(),
        dry_run: true,
        show: Show::Nothing,
    };
    let Ended::Estimated(estimate) = run::<Ad>(&recipe, &env, &Default::default()).unwrap() else {
        panic!()
    };
    assert!(!env.folder.exists());
    assert_eq!((estimate.steps, estimate.steps_per_epoch), (100, Some(3)));
    let by_part: usize = estimate
        .parts
        .iter()
        .filter(|p| p.trains)
        .map(|p| p.parameters)
        .sum();
    let by_group: usize = estimate.groups.iter().map(|g| g.parameters).sum();
    assert_eq!(by_part, by_group);
    assert!(estimate.seconds_per_step > 0.0 && estimate.losses.len() == 3);
    assert!(
        estimate
            .parts
            .iter()
            .any(|p| !p.trains && p.part == "image encoder" && p.weight_bytes > 0)
    );
}
