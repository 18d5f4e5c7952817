//! A conversation through a pipe.

use crate::{blip2, blip2_with_input, objects, path, stderr, stdout, text};

fn chat(model: &str, input: &str, more: &[&str]) -> std::process::Output {
    let (boat, model) = (path("parity/images/boat.png"), path(&format!("parity/{model}")));
    let args = [&["chat", &boat, "--model", &model, "--max-new-tokens", "5"], more].concat();
    blip2_with_input(&args, input)
}

#[test]
fn earlier_turns_stand_in_the_prompt_until_reset() {
    for model in ["opt", "t5"] {
        let input = "what is it?\n\nwhy?\n/reset\nwhere?\n/quit\nnever asked\n";
        let answers = objects(chat(model, input, &["--json", "--min-new-tokens", "2"]));
        assert_eq!(answers.len(), 3, "{model}");
        let prompt = |i: usize| answers[i]["prompt"].as_str().expect("a prompt");
        assert_eq!(prompt(0), "Question: what is it? Answer:");
        let first = text(&answers[0]).trim_end_matches('.');
        assert!(!first.is_empty());
        assert_eq!(
            prompt(1),
            format!("Question: what is it? Answer: {first}. Question: why? Answer:")
        );
        assert_eq!(prompt(2), "Question: where? Answer:");
        let questions: Vec<&str> = answers.iter().filter_map(|a| a["question"].as_str()).collect();
        assert_eq!(questions, ["what is it?", "why?", "where?"]);
        // the picture was encoded once
        assert_eq!(
            answers[0]["timing_ms"]["vision"],
            answers[2]["timing_ms"]["vision"]
        );
    }
}

#[test]
fn what_is_streamed_is_the_answer() {
    for more in [
        &["--min-new-tokens", "2"][..],
        &["--do-sample", "--seed", "5"],
        &["--num-beams", "3"],
    ] {
        let input = "what is it?\nhow many?\n";
        let plain = stdout(chat("opt", input, more));
        let json = objects(chat("opt", input, &[more, &["--json"]].concat()));
        let texts: String = json.iter().map(|a| format!("{}\n", text(a))).collect();
        assert_eq!(plain, texts, "{more:?}");
    }
}

#[test]
fn a_long_conversation_forgets_its_beginning_instead_of_failing() {
    // the position table of this model has 96 rows
    let question = "is there a small boat on the blue water or a house on the hill?\n";
    let out = chat("opt", &question.repeat(6), &["--json", "--min-new-tokens", "3"]);
    let notes = stderr(&out);
    assert!(notes.contains("forgotten"), "{notes}");
    assert_eq!(objects(out).len(), 6);
    let long = format!("{}\n", "word ".repeat(200));
    let out = chat("opt", &long, &[]);
    assert_eq!(out.status.code(), Some(2));
    assert!(stderr(&out).contains("shorten the prompt"), "{}", stderr(&out));
}

#[test]
fn unknown_commands_are_not_asked() {
    let out = chat("opt", "/help\n/quit\n", &["--quiet"]);
    assert!(stderr(&out).contains("/help"), "{}", stderr(&out));
    assert_eq!(stdout(out), "");
    let itm = path("parity/itm");
    let out = blip2(&["chat", &path("parity/images/boat.png"), "--model", &itm]);
    assert_eq!(out.status.code(), Some(2));
    assert!(stderr(&out).contains("language model"));
}
