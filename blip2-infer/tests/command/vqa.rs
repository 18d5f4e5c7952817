//! Several questions, several pictures, ranked candidates.

use crate::{arg, blip2, objects, path, pictures, stdout, text};

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
