//! Sampling follows the distribution that the rules leave, reproducibly.

use super::toy::Toy;
use crate::generate::GenerateOptions;
use crate::generate::processors::Processors;
use crate::language::Architecture::DecoderOnly;

/// Pearson's statistic of `counts` against `probabilities`, and its degrees of freedom.
fn chi_square(counts: &[usize], probabilities: &[f64]) -> (f64, usize) {
    let total: usize = counts.iter().sum();
    let mut statistic = 0.0;
    let mut cells = 0;
    for (&count, &probability) in counts.iter().zip(probabilities) {
        if probability == 0.0 {
            assert_eq!(count, 0, "a banned token was drawn");
            continue;
        }
        let expected = probability * total as f64;
        statistic += (count as f64 - expected).powi(2) / expected;
        cells += 1;
    }
    (statistic, cells - 1)
}

/// A bound that a fair sample exceeds with a probability of about 1e-6 (4.75 standard deviations, Wilson-Hilferty).
fn assert_plausible((statistic, freedom): (f64, usize)) {
    let n = freedom as f64;
    let spread = 2.0 / (9.0 * n);
    let bound = n * (1.0 - spread + 4.75 * spread.sqrt()).powi(3);
    assert!(
        statistic < bound,
        "chi-square {statistic} of {freedom} above {bound}"
    );
}

fn exact(row: &[f32], options: &GenerateOptions) -> Vec<f64> {
    let mut row = row.to_vec();
    Processors::new(options).apply(&[], 0, &mut row);
    let weights: Vec<f64> = row.iter().map(|&x| f64::from(x).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

#[test]
fn samples_have_the_exact_distribution() {
    let toy = Toy::random(1, 12, 0, DecoderOnly);
    for (temperature, top_k, top_p) in [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.3, 5, 1.0), (1.0, 50, 0.8)] {
        let options = GenerateOptions {
            do_sample: true,
            max_new_tokens: 1,
            num_return_sequences: 20_000,
            temperature,
            top_k,
            top_p,
            seed: 9,
            ..Default::default()
        };
        let mut counts = vec![0; 12];
        for sequence in toy.run_one(3, &options) {
            counts[sequence.token_ids[0] as usize] += 1;
        }
        assert_plausible(chi_square(&counts, &exact(toy.row(3, &[]), &options)));
    }
}

/// One step of beam sampling with two beams draws four tokens without replacement; the better of the first
/// two is the answer.
#[test]
fn beam_samples_have_the_exact_distribution() {
    let toy = Toy::random(2, 6, 0, DecoderOnly);
    let base = GenerateOptions {
        do_sample: true,
        num_beams: 2,
        max_new_tokens: 1,
        ..Default::default()
    };
    let p = exact(toy.row(4, &[]), &base);
    let mut expected = vec![0.0; 6];
    for first in 0..6 {
        for second in (0..6).filter(|&second| second != first) {
            let better = if p[first] > p[second] { first } else { second };
            expected[better] += p[first] * p[second] / (1.0 - p[first]);
        }
    }
    let mut counts = vec![0; 6];
    for seed in 0..8_000 {
        let options = GenerateOptions { seed, ..base.clone() };
        counts[toy.run_one(4, &options)[0].token_ids[0] as usize] += 1;
    }
    assert_plausible(chi_square(&counts, &expected));
}

#[test]
fn a_seed_repeats_and_another_differs() {
    let toy = Toy::random(3, 30, 1, DecoderOnly);
    for num_beams in [1, 3] {
        let run = |seed| {
            let options = GenerateOptions {
                do_sample: true,
                num_beams,
                seed,
                num_return_sequences: 3,
                ..Default::default()
            };
            toy.run_one(5, &options)
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        let siblings = run(1);
        assert_ne!(siblings[0].token_ids, siblings[1].token_ids);
    }
}
