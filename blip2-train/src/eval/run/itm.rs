//! Matching evaluation: does the model tell a picture's captions from those of other pictures?
//!
//! Every caption is a pair that belongs together; as many captions of other pictures are drawn as pairs that do not.
//! Or the data set says itself which of its pairs belong together (`labelled`). Accuracy is that of the matching head at
//! probability 1/2, averaged over both kinds (of labelled pairs also the plain share); AUC is the probability that a true
//! pair scores above a false one; AP, average precision, is the area under precision as a step function of recall.

use std::collections::{HashMap, HashSet};

use blip2_model::nn::{Context, Kernels};
use blip2_model::processor::text::{MAX_WORDS, blip_caption};
use serde::{Deserialize, Serialize};

use super::pictures::Pictures;
use super::publish::{Case, Finished, Publisher};
use super::retrieval::match_texts;
use super::{RunError, Runner};
use crate::data::rng::KeyedRng;
use crate::eval::EvalError;
use crate::eval::results::{self, Id, Prediction, Score};

/// Settings of a matching evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItmTask {
    /// Pairs as the data set labels them; nothing is drawn.
    #[serde(default)]
    pub labelled: bool,
    /// Captions of other pictures drawn for each caption.
    pub negatives: usize,
    /// Keys the draw.
    pub seed: u64,
    /// Clean captions as LAVIS does.
    pub clean: bool,
    /// Tokens kept of a caption.
    pub max_length: usize,
}

/// Line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Matched {
    image_id: Id,
    captions: Vec<String>,
    /// Whether they are the picture's.
    matches: Vec<bool>,
    /// Matching probabilities.
    probability: Vec<f32>,
    /// Contrastive cosines; empty for a model without them.
    cosine: Vec<f32>,
}

impl Prediction for Matched {
    fn id(&self) -> &Id {
        &self.image_id
    }
}

impl ItmTask {
    /// Scores the pairs of this process' pictures.
    pub fn run<B: Kernels>(&self, runner: &mut Runner<B>) -> Result<(), RunError> {
        let (mut journal, done) = runner.folder.journal::<Matched>("pairs")?;
        let pairs = self.pairs(&runner.pictures)?;
        let mine: Vec<usize> = (0..pairs.len())
            .filter(|&at| !pairs[at].is_empty() && runner.effort.share.has(at))
            .filter(|&at| !done.contains(&runner.pictures.list[at].id))
            .collect();
        let meter = runner.meter("pairs", mine.iter().map(|&at| pairs[at].len()).sum());
        runner.encode_each(&mine, runner.effort.batch, &mut |runner, at, features| {
            for (row, &at) in at.iter().enumerate() {
                let (captions, matches): (Vec<String>, Vec<bool>) = pairs[at].iter().cloned().unzip();
                let words: Vec<String> = captions.iter().map(|c| self.cleaned(c)).collect();
                let one = features.select(&[row]);
                let batch = runner.effort.batch;
                let itm = match_texts(&runner.session, &one, &words, self.max_length, batch, &meter)?;
                let mut cosine = Vec::new();
                if runner.session.model.bridge.text_projection.is_some() {
                    for part in words.chunks(batch) {
                        let tokens = runner.session.tokenize_texts(part, Some(self.max_length))?;
                        let found = runner.session.model.itc(&one, &tokens, &Context::eval())?;
                        cosine.extend(found.into_iter().flatten().map(|score| score.cosine));
                    }
                }
                journal.append(&[Matched {
                    image_id: runner.pictures.list[at].id.clone(),
                    captions,
                    matches,
                    probability: itm.iter().map(|score| score.probability).collect(),
                    cosine,
                }])?;
                runner.folder.tick()?;
            }
            Ok(())
        })?;
        Ok(journal.sync()?)
    }

    fn cleaned(&self, caption: &str) -> String {
        match self.clean.then(|| blip_caption(caption, "", MAX_WORDS)) {
            Some(cleaned) if !cleaned.trim().is_empty() => cleaned,
            _ => caption.to_owned(),
        }
    }

    /// Captions with their labels.
    fn labelled_pairs(pictures: &Pictures) -> Result<Vec<Vec<(String, bool)>>, RunError> {
        let of = |picture: &super::pictures::Picture| {
            let captions = picture.captions.iter().zip(&picture.labels);
            let label = |(caption, (label, key)): (&String, &(Option<bool>, String))| match label {
                Some(label) => Ok((caption.clone(), *label)),
                None => Err(RunError::Label {
                    data: pictures.name().to_owned(),
                    key: key.clone(),
                }),
            };
            captions.map(label).collect()
        };
        let pairs = pictures
            .list
            .iter()
            .map(of)
            .collect::<Result<Vec<Vec<(String, bool)>>, _>>()?;
        for (label, what) in [(true, "pairs with label 1"), (false, "pairs with label 0")] {
            if !pairs.iter().flatten().any(|(_, of)| *of == label) {
                return Err(RunError::Nothing {
                    data: pictures.name().to_owned(),
                    what,
                });
            }
        }
        Ok(pairs)
    }

    /// For each picture its captions and others, none of which it shares; or what the data set says.
    fn pairs(&self, pictures: &Pictures) -> Result<Vec<Vec<(String, bool)>>, RunError> {
        if self.labelled {
            return Self::labelled_pairs(pictures);
        }
        let all: Vec<&String> = pictures.list.iter().flat_map(|p| &p.captions).collect();
        let distinct: HashSet<&String> = all.iter().copied().collect();
        if distinct.len() < 2 {
            return Err(RunError::Nothing {
                data: pictures.name().to_owned(),
                what: "captions that differ",
            });
        }
        let of = |picture: &super::pictures::Picture| {
            let own: HashSet<&String> = picture.captions.iter().collect();
            let mut pairs: Vec<(String, bool)> = picture.captions.iter().map(|c| (c.clone(), true)).collect();
            if own.len() == distinct.len() {
                return pairs;
            }
            let mut rng = KeyedRng::new(self.seed, "negatives", &[picture.id.to_string().as_bytes()]);
            let wanted = self.negatives * picture.captions.len();
            // with few other captions most draws are the picture's own; the bound keeps that finite
            for _ in 0..100 * wanted {
                if pairs.len() == picture.captions.len() + wanted {
                    break;
                }
                let drawn = all[rng.below(all.len() as u64) as usize];
                if !own.contains(drawn) {
                    pairs.push((drawn.clone(), false));
                }
            }
            pairs
        };
        Ok(pictures.list.iter().map(of).collect())
    }

    /// Scores what the journals hold.
    pub fn finish(&self, pictures: &Pictures, publisher: &mut Publisher) -> Result<Finished, RunError> {
        let (lines, _) = results::merge(results::read_journals::<Matched>(publisher.folder(), "pairs")?);
        let lines: HashMap<&Id, &Matched> = lines.iter().map(|line| (&line.image_id, line)).collect();
        let wanted = pictures
            .list
            .iter()
            .filter(|p| !p.captions.is_empty() && !publisher.is_skipped(&p.id));
        let wanted: Vec<&Id> = wanted.map(|p| &p.id).collect();
        let rows: Vec<&Matched> = wanted.iter().filter_map(|id| lines.get(*id).copied()).collect();
        publisher.all_done(rows.len(), wanted.len())?;
        if rows.is_empty() {
            return Err(EvalError::Empty.into());
        }
        publisher.write("predictions.json", &rows)?;
        let labels: Vec<bool> = rows.iter().flat_map(|row| row.matches.iter().copied()).collect();
        let probability: Vec<f32> = rows
            .iter()
            .flat_map(|row| row.probability.iter().copied())
            .collect();
        let cosine: Vec<f32> = rows.iter().flat_map(|row| row.cosine.iter().copied()).collect();
        let figure = |metric: &str, value: f64| Score {
            metric: metric.to_owned(),
            value: 100.0 * value,
            published: None,
        };
        let mut scores = vec![
            figure("ITM accuracy", balanced_accuracy(&probability, &labels, 0.5)),
            figure("ITM AUC", auc(&probability, &labels)),
            figure("ITM AP", average_precision(&probability, &labels)),
        ];
        if self.labelled {
            scores[0].metric = "ITM balanced accuracy".to_owned();
            scores.insert(0, figure("ITM accuracy", accuracy(&probability, &labels, 0.5)));
        }
        if cosine.len() == labels.len() {
            scores.push(figure("ITC AUC", auc(&cosine, &labels)));
            scores.push(figure("ITC AP", average_precision(&cosine, &labels)));
        }
        let cases = rows.iter().flat_map(|row| {
            (0..row.captions.len()).map(|i| {
                let p = f64::from(row.probability[i]);
                Case {
                    picture: row.image_id.clone(),
                    question: None,
                    prediction: format!("{} ({:.1} % match)", row.captions[i], 100.0 * p),
                    references: vec![
                        if row.matches[i] {
                            "belongs to the picture"
                        } else {
                            "does not"
                        }
                        .to_owned(),
                    ],
                    score: if row.matches[i] { p } else { 1.0 - p },
                }
            })
        });
        Ok(Finished {
            items: labels.len(),
            cases: cases.collect(),
            scores,
            sorted_by: "probability given to the truth",
            notes: Vec::new(),
        })
    }
}

/// Share of pairs on the right side of the threshold; in 0 to 1.
pub fn accuracy(scores: &[f32], labels: &[bool], threshold: f32) -> f64 {
    let right = scores
        .iter()
        .zip(labels)
        .filter(|(score, label)| (**score > threshold) == **label);
    right.count() as f64 / labels.len() as f64
}

/// Average precision: `sum_n (R_n - R_(n-1)) P_n` over the distinct scores as thresholds, highest first, without
/// interpolation (scikit-learn's `average_precision_score`). NaN without true pairs.
pub fn average_precision(scores: &[f32], labels: &[bool]) -> f64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let (mut seen, mut found, mut sum) = (0usize, 0usize, 0.0);
    for tied in order.chunk_by(|a, b| scores[*a] == scores[*b]) {
        let new = tied.iter().filter(|i| labels[**i]).count();
        seen += tied.len();
        found += new;
        sum += new as f64 * found as f64 / seen as f64;
    }
    sum / found as f64
}

/// Mean of the shares of true pairs above, and of false pairs not above the threshold; in 0 to 1.
pub fn balanced_accuracy(scores: &[f32], labels: &[bool], threshold: f32) -> f64 {
    let share = |label: bool| {
        let of: Vec<f32> = scores
            .iter()
            .zip(labels)
            .filter(|(_, l)| **l == label)
            .map(|(s, _)| *s)
            .collect();
        let right = of.iter().filter(|s| (**s > threshold) == label).count();
        right as f64 / of.len() as f64
    };
    match (share(true), share(false)) {
        (only, none) | (none, only) if none.is_nan() => only,
        (yes, no) => (yes + no) / 2.0,
    }
}

/// Area under the ROC curve: the share of (true, false) pairs in the right order, ties counting half.
/// NaN without both kinds.
pub fn auc(scores: &[f32], labels: &[bool]) -> f64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    let (mut below, mut won) = (0.0, 0.0);
    let mut rest = order.as_slice();
    while let Some(first) = rest.first() {
        let same = rest
            .iter()
            .take_while(|i| scores[**i] == scores[*first])
            .count()
            .max(1);
        let yes = rest[..same].iter().filter(|i| labels[**i]).count() as f64;
        let no = same as f64 - yes;
        won += yes * (below + no / 2.0);
        below += no;
        rest = &rest[same..];
    }
    won / (below * (scores.len() as f64 - below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auc_counts_pairs_in_order() {
        // sklearn.metrics.roc_auc_score([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) = 0.75, from its documentation
        assert_eq!(auc(&[0.1, 0.4, 0.35, 0.8], &[false, false, true, true]), 0.75);
        assert_eq!(auc(&[0.5; 4], &[false, true, true, false]), 0.5);
        assert_eq!(auc(&[0.9, 0.1], &[true, false]), 1.0);
        assert!(auc(&[0.9], &[true]).is_nan());
    }

    #[test]
    fn average_precision_as_scikit_learn_has_it() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} and {b}");
        // average_precision_score([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) = 0.8333..., from its documentation
        let (labels, scores) = ([false, false, true, true], [0.1, 0.4, 0.35, 0.8]);
        close(average_precision(&scores, &labels), 5.0 / 6.0);
        // one threshold for all: the share of true pairs
        close(average_precision(&[0.5; 4], &[true, false, false, false]), 0.25);
        // ties are one threshold: 1/2 of the recall at precision 1, the rest at 2/3
        close(
            average_precision(&[0.9, 0.5, 0.5], &[true, true, false]),
            0.5 + 0.5 * 2.0 / 3.0,
        );
        assert!(average_precision(&[0.9], &[false]).is_nan());
        assert_eq!(
            accuracy(&[0.9, 0.1, 0.1, 0.6], &[true, false, false, false], 0.5),
            0.75
        );
    }

    #[test]
    fn accuracy_weighs_both_kinds_alike() {
        let labels = [true, false, false, false];
        assert_eq!(
            balanced_accuracy(&[0.9, 0.1, 0.1, 0.6], &labels, 0.5),
            (1.0 + 2.0 / 3.0) / 2.0
        );
        assert_eq!(balanced_accuracy(&[0.9], &[true], 0.5), 1.0);
    }
}
