//! `eval vqa`: free answers and ranked ones.

use std::path::Path;

use blip2_model::backend::Flex;
use blip2_model::checkpoint::DtypePolicy;
use blip2_model::generate::GenerateOptions;
use blip2_model::session::{Request, Session};
use serde_json::{Value, json};

use crate::{Place, call, fixture, ok, read, refused, score};

/// Three questions about two pictures, as LAVIS and A-OKVQA write them.
fn questions(place: &Place) -> String {
    let path = place.at("questions.json");
    let row = |id: u64, image: &str, question: &str, answer: &str| {
        json!({"question_id": id, "image": format!("{image}.png"), "question": question, "answer": vec![answer; 10],
            "answer_type": if id == 3 { "number" } else { "other" }, "choices": ["boat", "cat"], "correct_choice_idx": 0})
    };
    let rows = json!([
        row(1, "boat", "What is this?", "boat"),
        row(2, "boat", "What colour is the water?", "blue"),
        row(3, "house", "How many?", "1"),
    ]);
    std::fs::write(&path, rows.to_string()).expect("write");
    path.to_string_lossy().into_owned()
}

#[test]
fn vqa_generates_or_ranks() {
    let place = Place::new();
    let (data, images, model) = (questions(&place), fixture("parity/images"), fixture("parity/t5"));
    let common = [
        "eval", "vqa", &data, "--images", &images, "--model", &model, "--json",
    ];
    let report = ok(&[&common[..], &["--out", &place.text("g")]].concat());
    assert_eq!(
        report["config"]["answers"]["generate"]["length_penalty"], -1.0,
        "LAVIS for T5"
    );
    assert_eq!(report["config"]["prompt"], "Question: {} Short answer:");
    assert!(score(&report, "overall") >= 0.0 && score(&report, "number") >= 0.0);
    let predictions = read(&place.at("g"), "predictions.json");
    let ids: Vec<&Value> = predictions
        .as_array()
        .expect("list")
        .iter()
        .map(|p| &p["question_id"])
        .collect();
    assert_eq!(ids, [1, 2, 3]);

    let list = place.at("plural.txt");
    std::fs::write(&list, "boats\n").expect("write");
    let list = list.to_string_lossy().into_owned();
    for (out, flags, answer, overall) in [
        ("p", &[][..], "boats", 0.0),
        ("l", &["--lemmatise"][..], "boat", 33.33),
    ] {
        let report = ok(&[
            &common[..],
            &["--out", &place.text(out), "--candidates", &list],
            flags,
        ]
        .concat());
        assert_eq!(score(&report, "overall"), overall);
        let predictions = read(&place.at(out), "predictions.json");
        assert!(
            predictions
                .as_array()
                .expect("list")
                .iter()
                .all(|line| line["answer"] == answer)
        );
    }

    let list = place.at("answers.txt");
    std::fs::write(&list, "boat\nblue\n1\n").expect("write");
    let list = list.to_string_lossy().into_owned();
    ok(&[&common[..], &["--out", &place.text("r"), "--candidates", &list]].concat());
    for line in read(&place.at("r"), "predictions.json").as_array().expect("list") {
        assert!(
            ["boat", "blue", "1"].contains(&line["answer"].as_str().expect("text")),
            "{line}"
        );
    }
    let choices = ok(&[
        &common[..],
        &[
            "--out",
            &place.text("c"),
            "--candidates",
            "choices",
            "--batch",
            "1",
        ],
    ]
    .concat());
    assert!((0.0..=100.0).contains(&score(&choices, "multiple choice")));
    refused(
        &[
            &common[..],
            &["--out", &place.text("x"), "--candidates", "none.txt"],
        ]
        .concat(),
        "none.txt",
    );
}

/// Trained with the question in the Q-Former, exported, and evaluated: the answers are those of a session, which
/// `blip2 vqa` is, given the same words.
#[test]
fn an_evaluation_answers_as_a_session_with_the_question_in_the_q_former() {
    let place = Place::new();
    let (opt, itm) = (fixture("parity/opt"), fixture("parity/itm"));
    let config = std::fs::read_to_string(format!("{opt}/config.json")).expect("read");
    let config = config.replace("\"vocab_size\": 97", "\"vocab_size\": 321");
    std::fs::write(place.at("config.json"), config).expect("written");
    let (data, images) = (questions(&place), fixture("parity/images"));
    let recipe = format!(
        "stage = \"stage2\"\n[model]\nconfig = \"{}\"\nvision_from = \"{opt}\"\nlanguage_from = \"{opt}\"\n\
         bridge_from = [\"{opt}\"]\nqformer_tokenizer = \"{itm}\"\nqformer_text_input = true\n\
         [stage2]\ntask = \"answer\"\ntemplate = \"Question: {{}} Answer:\"\n\
         [data]\nmax_txt_len = 24\n[[data.train]]\npath = \"{data}\"\nimages = \"{images}\"\n\
         [train]\nbatch_size = 3\n[schedule]\nmax_iters = 4\nwarmup_steps = 0\ninit_lr = 1e-2\n",
        place.text("config.json")
    );
    std::fs::write(place.at("recipe.toml"), recipe).expect("written");
    let (run, out) = (place.text("run"), place.text("answers"));
    let trained = call(&["train", &place.text("recipe.toml"), "--out", &run]);
    assert!(
        trained.status.success(),
        "{}",
        String::from_utf8_lossy(&trained.stderr)
    );
    let model = place.at("run").join("export");
    let args = [
        "eval",
        "vqa",
        &data,
        "--images",
        &images,
        "--model",
        model.to_str().expect("UTF-8"),
        "--out",
        &out,
        "--json",
        "--prompt",
        "Question: {} Answer:",
        "--min-new-tokens",
        "5",
    ];
    let report = ok(&args);
    let options: GenerateOptions =
        serde_json::from_value(report["config"]["answers"]["generate"].clone()).expect("options");
    assert_eq!(report["config"]["clean"], true);
    let predictions = read(Path::new(&out), "predictions.json");

    let session = Session::<Flex>::open(&model, DtypePolicy::default(), false, &Default::default());
    let session = session.unwrap_or_else(|e| panic!("{e}"));
    let asked = [
        ("boat", "what is this?"),
        ("boat", "what colour is the water?"),
        ("house", "how many?"),
    ];
    for ((image, question), line) in asked.iter().zip(predictions.as_array().expect("list")) {
        let image = format!("{images}/{image}.png");
        let picture = Session::<Flex>::read_image(Path::new(&image)).expect("a picture");
        let mut request = Request {
            image,
            prompt: format!("Question: {question} Answer:"),
            question: question.to_string(),
            options: options.clone(),
        };
        let answers = session.answer(std::slice::from_ref(&picture), std::slice::from_ref(&request));
        assert_eq!(
            line["answer"],
            answers.expect("an answer")[0].outputs[0].text,
            "{question}"
        );
        // the text matters: without it the same prompt has another likelihood
        let candidates = ["boat".to_string()];
        let with = session.rank(&picture, &request, &candidates).expect("ranked");
        request.question.clear();
        let without = session.rank(&picture, &request, &candidates).expect("ranked");
        let moved = with[0].log_likelihood - without[0].log_likelihood;
        assert!(moved.abs() > 1e-4, "{question}: {moved:e}");
    }
}
