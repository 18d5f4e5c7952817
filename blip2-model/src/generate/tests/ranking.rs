//! Ranking equals summing teacher-forced log-probabilities candidate by candidate.

use proptest::prelude::*;

use super::toy::Toy;
use crate::generate::GenerateError;
use crate::generate::ranking::{CandidateScore, RankBy, RankOptions, rank};
use crate::language::Architecture::{self, DecoderOnly, EncoderDecoder};
use crate::language::LanguageModel;
use crate::nn::{Context, PadMask};

fn brute_force(toy: &Toy, prompt: i64, ids: &[i64]) -> f32 {
    let logits = toy.teacher_forced(
        Toy::prompt(&[prompt]),
        &[ids.to_vec()],
        &PadMask::ones(1, ids.len()),
        &Context::eval(),
    );
    let logs = burn::tensor::activation::log_softmax(logits, 2);
    let flat: Vec<f32> = logs.into_data().into_vec().unwrap();
    let rows = flat.chunks(toy.vocab_size());
    rows.zip(ids).map(|(row, &id)| row[id as usize]).sum()
}

fn check(
    toy: &Toy,
    prompts: &[i64],
    candidates: &[Vec<Vec<i64>>],
    options: &RankOptions,
) -> Result<(), TestCaseError> {
    let ranked = rank(toy, Toy::prompt(prompts), candidates, options, &Context::eval()).unwrap();
    for ((scores, list), &prompt) in ranked.iter().zip(candidates).zip(prompts) {
        let mut expected: Vec<CandidateScore> = list
            .iter()
            .enumerate()
            .map(|(candidate, ids)| {
                let mut ids = ids.clone();
                ids.extend(options.end_token.filter(|end| ids.last() != Some(end)));
                let sum = brute_force(toy, prompt, &ids);
                CandidateScore {
                    candidate,
                    sum,
                    mean: sum / ids.len() as f32,
                    tokens: ids.len(),
                }
            })
            .collect();
        expected.sort_by(|a, b| match options.by {
            RankBy::Sum => b.sum.total_cmp(&a.sum),
            RankBy::Mean => b.mean.total_cmp(&a.mean),
        });
        // exact: the same f32 numbers, added in the same order
        prop_assert_eq!(scores, &expected);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn order_and_scores_equal_brute_force(
        table in any::<u64>(),
        encoder_decoder in any::<bool>(),
        prompts in prop::collection::vec(0i64..500, 1..4),
        // few different tokens, so that beginnings are shared and lists hold duplicates
        lists in prop::collection::vec(
            prop::collection::vec(prop::collection::vec(0i64..4, 1..5), 0..12), 3),
        end_token in prop::option::of(0i64..4),
        by_mean in any::<bool>(),
        max_rows in 0usize..9,
    ) {
        let architecture = if encoder_decoder { EncoderDecoder } else { DecoderOnly };
        let toy = Toy::random(table, 9, 2, architecture);
        let options = RankOptions {
            by: if by_mean { RankBy::Mean } else { RankBy::Sum },
            end_token,
            max_rows,
        };
        check(&toy, &prompts, &lists[..prompts.len()], &options)?;
    }
}

#[test]
fn bad_candidates_are_named() {
    let toy = Toy::random(1, 9, 0, Architecture::DecoderOnly);
    let fail = |list: Vec<Vec<i64>>| {
        let candidates = [vec![vec![1]], list];
        let options = RankOptions::default();
        let ctx = Context::eval();
        rank(&toy, Toy::prompt(&[1, 2]), &candidates, &options, &ctx).unwrap_err()
    };
    assert!(matches!(
        fail(vec![vec![1], vec![]]),
        GenerateError::EmptyCandidate { row: 1, candidate: 1 }
    ));
    assert!(matches!(
        fail(vec![vec![8, 9]]),
        GenerateError::UnknownToken {
            row: 1,
            candidate: 0,
            token: 9,
            vocab: 9
        }
    ));
}

#[test]
fn an_overflow_is_named() {
    let mut toy = Toy::random(2, 9, 0, DecoderOnly);
    toy.table.iter_mut().for_each(|row| row[3] = f32::NAN);
    let candidates = [vec![vec![1, 2]]];
    let options = RankOptions::default();
    let ctx = Context::eval();
    let error = rank(&toy, Toy::prompt(&[1]), &candidates, &options, &ctx).unwrap_err();
    assert!(matches!(error, GenerateError::NonFinite { row: 0, step: 0 }));
}
