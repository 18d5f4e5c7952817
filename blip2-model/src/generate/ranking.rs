//! Which of the given answers does the model find most likely? Exact log-likelihoods, for closed-vocabulary VQA
//! (`predict_answers` with `inference_method="rank"` in LAVIS, but over every candidate instead of a
//! shortlist by first token).
//!
//! The prompt is encoded once. Candidates form a prefix tree walked level by level with the
//! key/value cache, so that a beginning which several share is computed once, too. The result equals the
//! sum over [`LanguageModel::teacher_forced`] log-probabilities.

use std::ops::Range;

use burn::tensor::{Int, Tensor, TensorData, activation};

use super::error::{GenerateError, check_rows};
use crate::language::{DecodeState, LanguageModel, Prompt};
use crate::nn::{Context, Kernels};

/// What decides the order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RankBy {
    /// Log-probability of the whole answer; favours short ones.
    #[default]
    Sum,
    /// Log-probability per token.
    Mean,
}

/// How to rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankOptions {
    /// What decides the order; both scores are returned in any case.
    pub by: RankBy,
    /// Appended to every candidate that does not end with it, so that "yes" also answers for stopping there.
    /// OPT: the newline 50118; T5: `</s>` 1, which its tokenizer has already appended.
    pub end_token: Option<i64>,
    /// Most candidates in one batch: the bound on memory, each takes a row of the
    /// key/value cache and `8 V` bytes of logits and log-probabilities.
    pub max_rows: usize,
}

impl Default for RankOptions {
    fn default() -> Self {
        Self {
            by: RankBy::default(),
            end_token: None,
            max_rows: 64,
        }
    }
}

/// Likelihood of one candidate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CandidateScore {
    /// Position in the list of candidates.
    pub candidate: usize,
    /// Log-probability of all its tokens, in nats.
    pub sum: f32,
    /// `sum / tokens`.
    pub mean: f32,
    /// Tokens scored, an appended end token included.
    pub tokens: usize,
}

/// Scores the candidates of each row of `prompt` (`B` rows, `B` lists of token ids), best first.
///
/// Equal scores keep the order of the list.
pub fn rank<B, M, C>(
    model: &M,
    prompt: Prompt<B>,
    candidates: &[C],
    options: &RankOptions,
    ctx: &Context,
) -> Result<Vec<Vec<CandidateScore>>, GenerateError>
where
    B: Kernels,
    M: LanguageModel<B> + ?Sized,
    C: AsRef<[Vec<i64>]>,
{
    check_rows("lists of candidates", prompt.mask.batch(), candidates.len())?;
    let answers = candidates
        .iter()
        .enumerate()
        .map(|(row, list)| prepare(row, list.as_ref(), options.end_token, model.vocab_size()))
        .collect::<Result<Vec<_>, _>>()?;
    let lengths = answers.iter().flatten().map(|answer| answer.ids.len());
    let Some(longest) = lengths.max() else {
        return Ok(vec![Vec::new(); candidates.len()]);
    };

    let (state, logits) = model.prefill(prompt, longest, ctx);
    let mut ranked = Vec::with_capacity(answers.len());
    for (row, mut answers) in answers.into_iter().enumerate() {
        answers.sort_by(|a, b| a.ids.cmp(&b.ids));
        let mut scores = Vec::with_capacity(answers.len());
        for chunk in answers.chunks(options.max_rows.max(1)) {
            let first = logits.clone().narrow(0, row, 1);
            let sums = score_chunk(model, row, state.clone(), first, chunk, ctx)?;
            scores.extend(chunk.iter().zip(sums).map(|(answer, sum)| CandidateScore {
                candidate: answer.candidate,
                sum,
                mean: sum / answer.ids.len() as f32,
                tokens: answer.ids.len(),
            }));
        }
        scores.sort_by_key(|score| score.candidate);
        scores.sort_by(|a, b| match options.by {
            RankBy::Sum => b.sum.total_cmp(&a.sum),
            RankBy::Mean => b.mean.total_cmp(&a.mean),
        });
        ranked.push(scores);
    }
    Ok(ranked)
}

struct Answer {
    candidate: usize,
    ids: Vec<i64>,
}

fn prepare(
    row: usize,
    list: &[Vec<i64>],
    end_token: Option<i64>,
    vocab: usize,
) -> Result<Vec<Answer>, GenerateError> {
    let answer = |(candidate, ids): (usize, &Vec<i64>)| {
        let mut ids = ids.clone();
        if ids.is_empty() {
            return Err(GenerateError::EmptyCandidate { row, candidate });
        }
        ids.extend(end_token.filter(|end| ids.last() != Some(end)));
        let known = |id: &i64| usize::try_from(*id).is_ok_and(|id| id < vocab);
        match ids.iter().find(|id| !known(id)) {
            None => Ok(Answer { candidate, ids }),
            Some(&token) => Err(GenerateError::UnknownToken {
                row,
                candidate,
                token,
                vocab,
            }),
        }
    };
    list.iter().enumerate().map(answer).collect()
}

/// Answers that share their first tokens, as a range of a sorted list.
struct Node {
    answers: Range<usize>,
    /// Row of the current logits that continues the shared beginning.
    row: usize,
    /// The token that `answers` have in common next.
    token: i64,
}

/// Sum of log-probabilities per answer. `answers` are sorted; `state` holds the whole batch, `logits [1, V]` are
/// those of prompt `prompt_row`.
fn score_chunk<B, M>(
    model: &M,
    prompt_row: usize,
    mut state: DecodeState<B>,
    mut logits: Tensor<B, 2>,
    answers: &[Answer],
    ctx: &Context,
) -> Result<Vec<f32>, GenerateError>
where
    B: Kernels,
    M: LanguageModel<B> + ?Sized,
{
    let mut sums = vec![0.0; answers.len()];
    let mut open = vec![(0..answers.len(), 0)];
    for depth in 0.. {
        let nodes = branch(answers, &open, depth);
        for (node, log_prob) in nodes.iter().zip(log_probs(logits, &nodes)?) {
            if !log_prob.is_finite() {
                return Err(GenerateError::NonFinite {
                    row: prompt_row,
                    step: depth,
                });
            }
            for sum in &mut sums[node.answers.clone()] {
                *sum += log_prob;
            }
        }
        let longer = |node: &&Node| {
            let mut answers = answers[node.answers.clone()].iter();
            answers.any(|answer| answer.ids.len() > depth + 1)
        };
        let going_on: Vec<&Node> = nodes.iter().filter(longer).collect();
        if going_on.is_empty() {
            break;
        }
        let rows: Vec<usize> = going_on
            .iter()
            .map(|node| if depth == 0 { prompt_row } else { node.row })
            .collect();
        let tokens: Vec<i64> = going_on.iter().map(|node| node.token).collect();
        open = going_on
            .iter()
            .enumerate()
            .map(|(row, node)| (node.answers.clone(), row))
            .collect();
        state.select(&rows);
        logits = model.step(&tokens, &mut state, ctx);
    }
    Ok(sums)
}

/// Splits each open range by the token at `depth`; answers that end before it drop out.
fn branch(answers: &[Answer], open: &[(Range<usize>, usize)], depth: usize) -> Vec<Node> {
    let mut nodes = Vec::new();
    for (range, row) in open {
        let tokens = range.clone().filter_map(|index| {
            let token = answers[index].ids.get(depth)?;
            Some((index, *token))
        });
        let first = nodes.len();
        for (index, token) in tokens {
            match nodes[first..].last_mut() {
                Some(Node {
                    answers, token: last, ..
                }) if *last == token => {
                    answers.end = index + 1;
                }
                _ => nodes.push(Node {
                    answers: index..index + 1,
                    row: *row,
                    token,
                }),
            }
        }
    }
    nodes
}

/// Log-probability of each node's token, picked on the device: `[R, V] -> [nodes]`.
fn log_probs<B: Kernels>(logits: Tensor<B, 2>, nodes: &[Node]) -> Result<Vec<f32>, GenerateError> {
    let [rows, vocab] = logits.dims();
    let index: Vec<i64> = nodes
        .iter()
        .map(|node| node.row as i64 * vocab as i64 + node.token)
        .collect();
    let index = Tensor::<B, 1, Int>::from_data(TensorData::new(index, [nodes.len()]), &logits.device());
    let picked = activation::log_softmax(logits, 1)
        .reshape([rows * vocab])
        .select(0, index);
    super::read(picked)
}
