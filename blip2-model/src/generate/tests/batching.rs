//! Rows of a batch do not influence each other; events, cancelling and failures are per row.

use std::ops::ControlFlow;

use proptest::prelude::*;

use super::toy::Toy;
use crate::generate::options::OptionsError;
use crate::generate::{EarlyStopping, GenerateError, GenerateOptions, StopReason, StreamEvent, generate};
use crate::language::Architecture::{self, DecoderOnly, EncoderDecoder};
use crate::nn::Context;

fn any_architecture() -> impl Strategy<Value = Architecture> {
    prop_oneof![Just(DecoderOnly), Just(EncoderDecoder)]
}

prop_compose! {
    fn any_options()(
        max_new_tokens in 1usize..12,
        min_share in 0.0..1.0f64,
        num_beams in prop_oneof![Just(1usize), 2usize..6],
        do_sample in any::<bool>(),
        sequences in 1usize..6,
        length_penalty in prop_oneof![Just(-1.0), Just(0.0), Just(1.0), Just(1.5)],
        early_stopping in prop_oneof![
            Just(EarlyStopping::Heuristic), Just(EarlyStopping::WhenFull), Just(EarlyStopping::Never)
        ],
        repetition_penalty in prop_oneof![Just(1.0), Just(1.4)],
        no_repeat_ngram_size in 0usize..4,
        (temperature, top_k, top_p) in (0.5..2.0, 0usize..20, 0.3..1.0),
        seed in any::<u64>(),
        ends in 0usize..4,
    ) -> GenerateOptions {
        let limit = if num_beams == 1 && do_sample { 5 } else { num_beams };
        GenerateOptions {
            max_new_tokens,
            min_new_tokens: (max_new_tokens as f64 * min_share * 0.5) as usize,
            num_beams,
            do_sample,
            num_return_sequences: sequences.min(limit),
            length_penalty,
            early_stopping,
            repetition_penalty,
            no_repeat_ngram_size,
            temperature,
            top_k,
            top_p,
            seed,
            eos_token_ids: (0..ends as i64).collect(),
            decoder_start_token_id: Some(7),
            ..Default::default()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// https://github.com/huggingface/transformers/issues/27251: a batch must not change its members.
    #[test]
    fn a_batch_gives_what_single_runs_give(
        table in any::<u64>(),
        architecture in any_architecture(),
        rows in prop::collection::vec((0i64..1000, any_options()), 1..6),
    ) {
        let toy = Toy::random(table, 33, 4, architecture);
        let (prompts, options): (Vec<i64>, Vec<GenerateOptions>) = rows.into_iter().unzip();
        let batch = toy.run(&prompts, &options).unwrap();
        prop_assert_eq!(batch.len(), prompts.len());
        for ((generation, prompt), options) in batch.iter().zip(prompts).zip(&options) {
            let single = toy.run_one(prompt, options);
            prop_assert_eq!(&generation.sequences, &single);
            // beam sampling may run out of tokens that have any probability
            let enough = single.len() == options.num_return_sequences;
            prop_assert!(enough || (options.do_sample && options.num_beams > 1));
            prop_assert!(!single.is_empty());
            for sequence in &single {
                let ids = &sequence.token_ids;
                let text = &ids[..ids.len() - 1];
                prop_assert!(ids.len() <= options.max_new_tokens);
                prop_assert!(text.iter().all(|id| !options.is_eos(*id)));
                let ended = options.is_eos(ids[ids.len() - 1]);
                prop_assert!(!ended || text.len() >= options.min_new_tokens);
                prop_assert!(ended || ids.len() == options.max_new_tokens);
            }
            if options.num_beams > 1 {
                prop_assert!(single.windows(2).all(|pair| pair[0].score >= pair[1].score));
            }
        }
    }

    /// With one beam that stops at the first end token, a beam search is a greedy search.
    #[test]
    fn one_beam_equals_greedy(
        table in any::<u64>(),
        prompt in 0i64..1000,
        mut options in any_options(),
    ) {
        options.num_beams = 1;
        options.num_return_sequences = 1;
        options.do_sample = false;
        options.early_stopping = EarlyStopping::WhenFull;
        // the penalty acts on logits in one and on log-probabilities in the other
        options.repetition_penalty = 1.0;
        let toy = Toy::random(table, 33, 4, EncoderDecoder);
        let greedy = toy.run_one(prompt, &options);
        let beam = crate::generate::search::run_as_beam_search(&options, 33, |tokens| {
            toy.row(prompt, tokens)
        });
        prop_assert_eq!(&greedy[0].token_ids, &beam[0].token_ids);
        prop_assert_eq!(greedy[0].stop, beam[0].stop);
        prop_assert!((greedy[0].score - beam[0].score).abs() <= 1e-6 * beam[0].score.abs());
    }
}

#[test]
fn beam_sampling_returns_no_hypothesis_of_probability_zero() {
    let toy = Toy::random(10, 20, 0, DecoderOnly);
    let options = GenerateOptions {
        do_sample: true,
        num_beams: 3,
        num_return_sequences: 3,
        // leaves the two best tokens, the least that beams keep
        top_p: 0.0,
        ..greedy(1)
    };
    let found = toy.run_one(1, &options);
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|sequence| sequence.score > -20.0));
}

fn greedy(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens,
        ..Default::default()
    }
}

/// Every callback heard, in a comparable form.
fn events(
    toy: &Toy,
    prompts: &[i64],
    options: &[GenerateOptions],
    mut stop_at: impl FnMut(&StreamEvent<'_>) -> bool,
) -> (Vec<String>, Vec<crate::generate::Generation>) {
    let mut heard = Vec::new();
    let mut listen = |event: StreamEvent<'_>| {
        heard.push(match event {
            StreamEvent::Token {
                row,
                sequence,
                token_id,
                ..
            } => {
                format!("{row}.{sequence}: {token_id}")
            }
            StreamEvent::Searching { row, new_tokens } => format!("{row}: searching {new_tokens}"),
            StreamEvent::Finished { row, sequences } => format!("{row}: {} done", sequences.len()),
        });
        if stop_at(&event) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let prompt = Toy::prompt(prompts);
    let out = generate(toy, prompt, options, &Context::eval(), &mut listen).unwrap();
    (heard, out)
}

#[test]
fn tokens_are_heard_as_they_come() {
    let toy = Toy::random(4, 20, 0, DecoderOnly);
    let beams = GenerateOptions {
        num_beams: 2,
        ..greedy(2)
    };
    let (heard, out) = events(&toy, &[1, 2, 3], &[greedy(1), beams, greedy(3)], |_| false);
    let token = |row: usize, at: usize| format!("{row}.0: {}", out[row].sequences[0].token_ids[at]);
    let expected = [
        token(0, 0),
        "1: searching 1".into(),
        token(2, 0),
        "0: 1 done".into(),
        "1: searching 2".into(),
        token(2, 1),
        "1: 1 done".into(),
        token(2, 2),
        "2: 1 done".into(),
    ];
    assert_eq!(heard, expected);
}

#[test]
fn breaking_cancels_one_prompt_only() {
    let toy = Toy::random(5, 20, 0, EncoderDecoder);
    let beams = GenerateOptions {
        num_beams: 3,
        ..greedy(9)
    };
    let options = [greedy(9), beams, greedy(9)];
    let (_, whole) = events(&toy, &[1, 2, 3], &options, |_| false);
    let (_, cut) = events(&toy, &[1, 2, 3], &options, |event| match event {
        StreamEvent::Token { row, .. } => *row == 0,
        StreamEvent::Searching { row, new_tokens } => *row == 1 && *new_tokens == 4,
        _ => false,
    });
    let lengths: Vec<usize> = cut.iter().map(|g| g.sequences[0].token_ids.len()).collect();
    assert_eq!(lengths, [1, 4, 9]);
    assert_eq!(cut[0].sequences[0].stop, StopReason::Cancelled);
    assert_eq!(cut[1].sequences[0].stop, StopReason::Cancelled);
    assert_eq!(
        cut[0].sequences[0].token_ids,
        whole[0].sequences[0].token_ids[..1]
    );
    assert_eq!(cut[2], whole[2]);
}

/// https://github.com/salesforce/LAVIS/issues/806: an empty answer has to say why it is empty.
#[test]
fn an_answer_that_ends_at_once_says_so() {
    let mut toy = Toy::random(6, 20, 0, DecoderOnly);
    toy.table.iter_mut().for_each(|row| row[19] = 50.0);
    for num_beams in [1, 4] {
        let options = GenerateOptions {
            num_beams,
            eos_token_ids: vec![19],
            ..greedy(5)
        };
        let sequence = &toy.run_one(1, &options)[0];
        assert_eq!(sequence.token_ids, [19]);
        assert_eq!(sequence.stop, StopReason::EosFirst);
    }
}

#[test]
fn broken_logits_name_the_prompt_and_the_step() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for num_beams in [1, 3] {
            let mut toy = Toy::random(7, 20, 0, DecoderOnly);
            let options = GenerateOptions {
                num_beams,
                ..greedy(6)
            };
            let first = toy.run_one(2, &options)[0].token_ids[0];
            let rows = toy.table.len();
            let at = (2 * 31 + (first + 1) * 7) as usize % rows;
            toy.table[at][11] = bad;
            let safe = (0..).find(|p| (p * 31) as usize % rows != at).unwrap();
            let short = greedy(1);
            let error = toy.run(&[safe, 2], &[short, options]).unwrap_err();
            assert!(
                matches!(error, GenerateError::NonFinite { row: 1, step: 1 }),
                "{error}"
            );
        }
    }
}

#[test]
fn rules_that_ban_everything_are_an_error() {
    let toy = Toy::random(8, 3, 0, DecoderOnly);
    for (num_beams, do_sample) in [(1, false), (1, true), (2, false), (2, true)] {
        let options = GenerateOptions {
            num_beams,
            do_sample,
            no_repeat_ngram_size: 1,
            ..greedy(9)
        };
        let error = toy.run(&[1], &[options]).unwrap_err();
        assert!(
            matches!(error, GenerateError::NothingLeft { row: 0, step: 3 }),
            "{error}"
        );
    }
}

#[test]
fn arguments_are_checked_before_the_model_runs() {
    let toy = Toy::random(9, 20, 0, EncoderDecoder);
    let error = toy.run(&[1, 2], &[greedy(1)]).unwrap_err();
    assert!(matches!(
        error,
        GenerateError::RowCount {
            prompts: 2,
            found: 1,
            ..
        }
    ));
    let error = toy.run(&[1, 2], &[greedy(1), greedy(0)]).unwrap_err();
    let expected = OptionsError::OutOfRange {
        option: "max_new_tokens",
        value: 0.0,
        allowed: ">= 1",
    };
    assert!(
        matches!(&error, GenerateError::Options { row: 1, source } if *source == expected),
        "{error}"
    );
}
