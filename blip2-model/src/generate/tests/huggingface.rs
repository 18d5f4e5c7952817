//! Equality with transformers 4.57.6 on `tests/fixtures/generate/`, made by `tests/fixtures/gen/generate.py`.

use serde::Deserialize;

use super::toy::Toy;
use crate::generate::processors::Processors;
use crate::generate::{EarlyStopping, GenerateOptions, StopReason};
use crate::language::Architecture;

#[derive(Deserialize)]
struct SearchFile {
    /// f64, then rounded to f32 as the script does.
    table: Vec<Vec<f64>>,
    prompts: Vec<i64>,
    decoder_start_token_id: i64,
    cases: Vec<SearchCase>,
}

#[derive(Deserialize)]
struct SearchCase {
    form: String,
    options: GenerateOptions,
    prompt_ids: Option<Vec<Vec<i64>>>,
    rows: Vec<Vec<Expected>>,
}

#[derive(Deserialize)]
struct Expected {
    token_ids: Vec<i64>,
    score: f32,
}

fn search_file() -> SearchFile {
    let json = include_str!("../../../../tests/fixtures/generate/search.json");
    serde_json::from_str(json).unwrap()
}

fn check(cases: impl Fn(&SearchCase) -> bool, at_least: usize) {
    let file = search_file();
    let narrow = |row: &Vec<f64>| row.iter().map(|&x| x as f32).collect::<Vec<f32>>();
    let table: Vec<Vec<f32>> = file.table.iter().map(narrow).collect();
    let mut checked = 0;
    for case in file.cases.iter().filter(|case| cases(case)) {
        let architecture = match case.form.as_str() {
            "encoder_decoder" => Architecture::EncoderDecoder,
            _ => Architecture::DecoderOnly,
        };
        let toy = Toy {
            table: table.clone(),
            architecture,
        };
        let options = GenerateOptions {
            decoder_start_token_id: Some(file.decoder_start_token_id),
            ..case.options.clone()
        };
        let unseen = vec![Vec::new(); file.prompts.len()];
        let prompt_ids = case.prompt_ids.as_ref().unwrap_or(&unseen);
        let all = vec![options.clone(); file.prompts.len()];
        let generations = toy.run_after(&file.prompts, prompt_ids, &all).unwrap();
        for (row, (generation, expected)) in generations.iter().zip(&case.rows).enumerate() {
            let label = format!("{}, prompt {row}, {:?}", case.form, case.options);
            assert_eq!(generation.sequences.len(), expected.len(), "{label}");
            for (found, expected) in generation.sequences.iter().zip(expected) {
                assert_eq!(found.token_ids, expected.token_ids, "{label}");
                // sums of up to 25 log-probabilities, each rounded to f32 once here and once in torch;
                // relative because a negative length penalty multiplies the sum by the length
                let bound = 1e-5 * expected.score.abs().max(1.0);
                let gap = (found.score - expected.score).abs();
                assert!(gap <= bound, "{label}: {} {}", found.score, expected.score);
                let ends = found.token_ids.last().is_some_and(|id| options.is_eos(*id));
                let stop = match (ends, found.token_ids.len()) {
                    (true, 1) => StopReason::EosFirst,
                    (true, _) => StopReason::Eos,
                    (false, _) => StopReason::Length,
                };
                assert_eq!(found.stop, stop, "{label}");
            }
        }
        checked += 1;
    }
    assert!(checked >= at_least, "only {checked} cases");
}

#[test]
fn greedy_search_equals_transformers() {
    check(|case| case.options.num_beams == 1, 20);
}

#[test]
fn beam_search_equals_transformers() {
    for stopping in [
        EarlyStopping::Heuristic,
        EarlyStopping::WhenFull,
        EarlyStopping::Never,
    ] {
        let beams = |case: &SearchCase| case.options.num_beams > 1;
        check(|case| beams(case) && case.options.early_stopping == stopping, 40);
    }
}

#[derive(Deserialize)]
struct WarperFile {
    cases: Vec<WarperCase>,
}

#[derive(Deserialize)]
struct WarperCase {
    options: GenerateOptions,
    history: Vec<i64>,
    logits: Vec<f64>,
    scores: Vec<Option<f64>>,
}

#[test]
fn sampling_rules_equal_transformers() {
    let json = include_str!("../../../../tests/fixtures/generate/warpers.json");
    let file: WarperFile = serde_json::from_str(json).unwrap();
    for WarperCase {
        options,
        history,
        logits,
        scores,
    } in file.cases
    {
        let mut row: Vec<f32> = logits.iter().map(|&x| x as f32).collect();
        Processors::new(&options).apply(&history, history.len(), &mut row);
        let expected: Vec<f32> = scores
            .iter()
            .map(|score| score.map_or(f32::NEG_INFINITY, |score| score as f32))
            .collect();
        // exact: one division or product per number, and the same set of banned tokens
        assert_eq!(row, expected, "{options:?}");
    }
}
