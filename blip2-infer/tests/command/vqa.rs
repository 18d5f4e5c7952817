//! Several questions, several pictures, ranked candidates, questions that the Q-Former reads.

use std::path::Path;

use blip2_infer::{Request, Session};
use blip2_model::backend::Flex;
use blip2_model::blip2::Blip2;
use blip2_model::checkpoint::expected::expected_tensors;
use blip2_model::checkpoint::{Companions, DtypePolicy};
use blip2_model::config::Blip2Config;
use blip2_model::weights::safetensors::SafetensorsFile;
use blip2_model::weights::{DType, TensorBytes, TensorInfo, TensorSource, writer};
use serde_json::{Value, json};

use crate::{arg, blip2, objects, path, pictures, stdout, text};

/// The OPT fixture with a Q-Former that reads the question: tables and text feed-forwards from a simple generator,
/// a hundred times as large as drawn ones so that a question is not lost in the pictures.
fn instructed(folder: &Path) {
    let opt = path("parity/opt");
    let (opt, itm) = (Path::new(&opt), path("parity/itm"));
    let json = std::fs::read_to_string(opt.join("config.json")).expect("read");
    let mut config: Value = serde_json::from_str(&json).expect("JSON");
    config["qformer_config"]["use_qformer_text_input"] = json!(true);
    config["qformer_config"]["vocab_size"] = json!(321);
    let settings = json!({"model_max_length": 6}).to_string();
    let files = Companions::of_folder(opt)
        .with_text("config.json", config.to_string())
        .and(Companions::tokenizer_of(&itm), "qformer_tokenizer/")
        .with_text("qformer_tokenizer/tokenizer_config.json", settings);
    files.write(folder).expect("written");
    let config = Blip2Config::from_json(&config.to_string()).expect("a config");
    let model = Blip2::<Flex>::new(config, &Default::default()).expect("a model");
    let infos: Vec<TensorInfo> = expected_tensors(&model)
        .into_iter()
        .map(|tensor| TensorInfo {
            name: tensor.name,
            dtype: DType::F32,
            shape: tensor.shape,
        })
        .collect();
    let base = SafetensorsFile::open(opt.join("model.safetensors")).expect("weights");
    let mut state = 1u32;
    let fetch = &mut |info: &TensorInfo| {
        if base.info(&info.name).is_some() {
            return base.get(&info.name);
        }
        let count = info.shape.iter().product();
        let mut value = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        TensorBytes::from_f32(info.shape.clone(), (0..count).map(|_| value()).collect())
    };
    writer::write_file(folder.join("model.safetensors"), &infos, fetch).expect("written");
}

#[test]
fn the_q_former_reads_the_question_where_it_was_trained_to() {
    let folder = tempfile::tempdir().expect("a folder");
    instructed(folder.path());
    let (boat, model) = (path("parity/images/boat.png"), arg(folder.path()));
    // the second one is longer than the six tokens that the settings allow, the third begins like it
    let questions = [
        "what is it?",
        "a small boat on the blue water, red?",
        "a small boat on the house",
    ];
    let list = folder.path().join("answers.txt");
    std::fs::write(&list, "boat\nhouse\n").expect("written");
    let run = |more: &[&str]| {
        let args = [
            &["vqa", &boat],
            &questions[..2],
            &["--model", model, "--json"],
            more,
        ]
        .concat();
        objects(blip2(&args))
    };

    let session = Session::<Flex>::open(folder.path(), DtypePolicy::default(), false, &Default::default())
        .expect("a session");
    let image = [Session::<Flex>::read_image(Path::new(&boat)).expect("a picture")];
    let request = |prompt: &str, question: &str| Request {
        image: boat.clone(),
        prompt: format!("Question: {prompt} Answer:"),
        question: question.to_string(),
        options: session.generation.clone().expect("settings"),
    };
    let cache = folder.path().join("cache");
    let answers = [
        run(&[]),
        run(&["--cache", arg(&cache)]),
        run(&["--cache", arg(&cache)]),
    ];
    assert_eq!(answers[2][0]["timing_ms"]["vision"], 0.0);
    for (i, question) in questions[..2].iter().enumerate() {
        let want = session
            .answer(&image, &[request(question, question)])
            .expect("answers");
        for answers in &answers {
            assert_eq!(
                answers[i]["outputs"][0]["text"], want[0].outputs[0].text,
                "{question}"
            );
        }
    }

    let candidates = ["boat".to_string(), "house".to_string()];
    let rank = |prompt: &str, question: &str| {
        let request = request(prompt, question);
        session.rank(&image[0], &request, &candidates).expect("ranked")[0].log_likelihood
    };
    let first = |lines: Vec<Value>| lines[0]["log_likelihood"].as_f64().expect("a number") as f32;
    let ranked = ["--candidates", arg(&list)];
    let cached = [&ranked[..], &["--cache", arg(&cache)]].concat();
    let want = rank(questions[0], questions[0]);
    // the same numbers in the same batches, up to what the text of JSON keeps
    assert!((first(run(&ranked)) - want).abs() < 1e-5);
    assert!((first(run(&cached)) - want).abs() < 1e-5);
    let other = rank(questions[0], questions[1]);
    assert!((want - other).abs() > 1e-3, "{want} whatever the question");
    // cut to what training saw
    assert_eq!(rank("", questions[1]), rank("", questions[2]));
}

#[test]
fn questions_together_are_answered_as_alone() {
    let boat = path("parity/images/boat.png");
    let questions = ["what is it?", "how many boats are there on the water?"];
    for model in ["parity/opt", "parity/t5"] {
        let model = path(model);
        let together = objects(blip2(
            &[
                &["vqa", &boat],
                questions.as_slice(),
                &["--model", &model, "--json"],
            ]
            .concat(),
        ));
        assert_eq!(together.len(), 2);
        for (question, answer) in questions.iter().zip(&together) {
            let alone = objects(blip2(&["vqa", &boat, question, "--model", &model, "--json"]));
            assert_eq!(
                answer["outputs"][0]["token_ids"], alone[0]["outputs"][0]["token_ids"],
                "{question}"
            );
            assert!(answer["prompt"].as_str().is_some_and(|p| p.contains(question)));
        }
        // encoded once: both answers report the same pass of the image encoder
        assert_eq!(
            together[0]["timing_ms"]["vision"],
            together[1]["timing_ms"]["vision"]
        );
    }
}

#[test]
fn a_folder_is_asked_and_resumed() {
    let (dir, files) = pictures();
    let (model, out) = (path("parity/opt"), dir.path().join("answers.csv"));
    let args = |questions: &[&str]| {
        let folder = arg(dir.path()).to_string();
        let mut args = vec!["vqa".to_string(), folder];
        args.extend(questions.iter().map(|q| q.to_string()));
        args.extend(["--model", &model, "--out", arg(&out), "--batch", "3"].map(String::from));
        args
    };
    let run = |questions: &[&str]| {
        let args = args(questions);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        stdout(blip2(&args));
        let file = std::fs::read_to_string(&out).expect("written");
        csv::Reader::from_reader(file.as_bytes()).records().count()
    };
    assert_eq!(run(&["what is it?"]), files.len());
    // a further question is asked of every picture, the first one of none
    assert_eq!(run(&["what is it?", "where is it?"]), 2 * files.len());
}

#[test]
fn candidates_are_ranked_per_question() {
    let dir = tempfile::tempdir().expect("a folder");
    let list = dir.path().join("answers.txt");
    std::fs::write(&list, "boat\n\n house \nfruit\n").expect("written");
    let (boat, model) = (path("parity/images/boat.png"), path("parity/opt"));
    let lines = objects(blip2(&[
        "vqa",
        &boat,
        "what is it?",
        "what colour?",
        "--candidates",
        arg(&list),
        "--model",
        &model,
        "--json",
    ]));
    assert_eq!(lines.len(), 6);
    for ranked in lines.chunks(3) {
        let scores: Vec<f64> = ranked
            .iter()
            .filter_map(|l| l["log_likelihood"].as_f64())
            .collect();
        assert!(
            scores.windows(2).all(|w| w[0] >= w[1]) && scores.len() == 3,
            "{scores:?}"
        );
        let mut texts: Vec<&str> = ranked.iter().filter_map(|l| l["text"].as_str()).collect();
        texts.sort_unstable();
        assert_eq!(texts, ["boat", "fruit", "house"]);
        assert_eq!(ranked[0]["question"], ranked[2]["question"]);
    }
}

#[test]
fn streams_the_same_as_it_returns() {
    // sampling settles token by token; the text printed must be the text of the JSON
    let (boat, model) = (path("parity/images/boat.png"), path("parity/opt"));
    let args = [
        "vqa",
        &boat,
        "what?",
        "--model",
        &model,
        "--do-sample",
        "--seed",
        "3",
        "--min-new-tokens",
        "4",
    ];
    let plain = stdout(blip2(&args));
    let json = objects(blip2(&[args.as_slice(), &["--json"]].concat()));
    assert_eq!(plain.trim_end_matches('\n'), text(&json[0]));
}
