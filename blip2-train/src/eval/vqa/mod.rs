//! VQA accuracy: VQAv2 and OK-VQA with ten answers, A-OKVQA, GQA.
//!
//! VQAv2 and OK-VQA: the mean over the ten annotators of `min(1, matches among the other nine / 3)`. Human answers
//! pass the punctuation step only, and only if the ten are not all the same; predictions pass both steps
//! ([`normalise`]). A-OKVQA: `min(1, matches / 3)` on the strings as they are. GQA: one answer, both sides through both
//! steps. Figures are percentages; a report rounds them to two decimals as the official tools do.

pub mod lemma;
pub mod normalise;

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::error::EvalError;
use super::results::{Answer, Id};

/// Which rule scores an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// VQAv2 and OK-VQA.
    Vqa,
    /// A-OKVQA, direct answers.
    AOkvqa,
    /// GQA.
    Gqa,
}

/// A question's human answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Annotation {
    /// The question.
    pub question_id: Id,
    /// Ten for VQAv2, OK-VQA and A-OKVQA, one for GQA.
    pub answers: Vec<String>,
    /// `yes/no`, `number`, `other`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_type: Option<String>,
    /// First words of the question (`what color is the`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question_type: Option<String>,
}

/// Accuracy in percent, not rounded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VqaScores {
    /// Over all questions.
    pub overall: f64,
    /// Per answer type, where annotations have one.
    pub per_answer_type: BTreeMap<String, f64>,
    /// Per question type, where annotations have one.
    pub per_question_type: BTreeMap<String, f64>,
    /// Per question, in the order of the annotations.
    pub per_question: Vec<(Id, f64)>,
}

/// Scores predictions; every annotated question needs exactly one.
///
/// # Errors
/// [`EvalError::MissingPrediction`], [`EvalError::DuplicateId`], [`EvalError::UnknownId`] for a prediction without
/// annotation, [`EvalError::NoReferences`] for a question without answers, [`EvalError::Empty`].
pub fn score(rule: Rule, annotations: &[Annotation], predictions: &[Answer]) -> Result<VqaScores, EvalError> {
    if annotations.is_empty() {
        return Err(EvalError::Empty);
    }
    let mut given: HashMap<&Id, &str> = HashMap::with_capacity(predictions.len());
    for prediction in predictions {
        if given
            .insert(&prediction.question_id, &prediction.answer)
            .is_some()
        {
            return Err(EvalError::DuplicateId {
                id: prediction.question_id.clone(),
            });
        }
    }
    let mut overall = Mean::default();
    let mut by_answer: BTreeMap<String, Mean> = BTreeMap::new();
    let mut by_question: BTreeMap<String, Mean> = BTreeMap::new();
    let mut per_question = Vec::with_capacity(annotations.len());
    for (index, annotation) in annotations.iter().enumerate() {
        let id = &annotation.question_id;
        let Some(answer) = given.remove(id) else {
            return Err(EvalError::MissingPrediction { id: id.clone() });
        };
        if annotation.answers.is_empty() {
            return Err(EvalError::NoReferences { item: index });
        }
        let accuracy = accuracy(rule, answer, &annotation.answers);
        overall.add(accuracy);
        for (kind, table) in [
            (&annotation.answer_type, &mut by_answer),
            (&annotation.question_type, &mut by_question),
        ] {
            if let Some(kind) = kind {
                table.entry(kind.clone()).or_default().add(accuracy);
            }
        }
        per_question.push((id.clone(), 100.0 * accuracy));
    }
    if let Some(id) = given.into_keys().min() {
        return Err(EvalError::UnknownId { id: id.clone() });
    }
    let means = |table: BTreeMap<String, Mean>| {
        table
            .into_iter()
            .map(|(kind, mean)| (kind, mean.value()))
            .collect()
    };
    Ok(VqaScores {
        overall: overall.value(),
        per_answer_type: means(by_answer),
        per_question_type: means(by_question),
        per_question,
    })
}

/// Accuracy of one answer, 0 to 1.
pub fn accuracy(rule: Rule, prediction: &str, answers: &[String]) -> f64 {
    match rule {
        Rule::Vqa => {
            let prediction = normalise::prediction(prediction);
            let unanimous = answers.windows(2).all(|pair| pair[0] == pair[1]);
            let human = |answer: &String| {
                if unanimous {
                    answer.clone()
                } else {
                    normalise::punctuation(answer)
                }
            };
            let matching: Vec<bool> = answers.iter().map(|answer| human(answer) == prediction).collect();
            let all = matching.iter().filter(|m| **m).count();
            let among_others = matching.iter().map(|own| (all - usize::from(*own)) as f64);
            among_others.map(|n| (n / 3.0).min(1.0)).sum::<f64>() / answers.len() as f64
        }
        Rule::AOkvqa => {
            let matches = answers.iter().filter(|answer| *answer == prediction).count();
            (matches as f64 / 3.0).min(1.0)
        }
        Rule::Gqa => {
            let prediction = normalise::prediction(prediction);
            f64::from(u8::from(
                answers
                    .iter()
                    .any(|answer| normalise::prediction(answer) == prediction),
            ))
        }
    }
}

/// Two decimals, halves as the binary fraction decides, like Python's `round`.
pub fn rounded(percent: f64) -> f64 {
    format!("{percent:.2}").parse().unwrap_or(percent)
}

/// Mean of fractions, in percent.
#[derive(Default)]
struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }
    fn value(&self) -> f64 {
        100.0 * self.sum / self.count.max(1) as f64 // in this order, as the official tools round the result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(list: &[(&str, usize)]) -> Vec<String> {
        list.iter()
            .flat_map(|(answer, n)| std::iter::repeat_n(answer.to_string(), *n))
            .collect()
    }

    #[test]
    fn three_of_ten_humans() {
        // the three who agree see two others, the seven others see three
        let ten = answers(&[("red", 3), ("blue", 7)]);
        assert!(
            (accuracy(Rule::Vqa, "red", &ten) - 0.9).abs() < 1e-12,
            "(3 * 2/3 + 7) / 10"
        );
        assert_eq!(accuracy(Rule::Vqa, "Blue.", &ten), 1.0);
        assert_eq!(
            accuracy(Rule::AOkvqa, "red", &answers(&[("red", 1), ("blue", 9)])),
            1.0 / 3.0
        );
        assert_eq!(accuracy(Rule::AOkvqa, "Red", &ten), 0.0, "no normalisation");
        assert_eq!(
            accuracy(Rule::Gqa, "the T-shirt", &answers(&[("t shirt", 1)])),
            1.0
        );
    }

    #[test]
    fn unanimous_human_answers_stay_as_they_are() {
        assert_eq!(
            accuracy(Rule::Vqa, "t-shirt", &answers(&[("t-shirt", 10)])),
            0.0,
            "the prediction loses its hyphen"
        );
        let nearly = answers(&[("t-shirt", 9), ("shirt", 1)]);
        assert_eq!(accuracy(Rule::Vqa, "t-shirt", &nearly), 1.0);
    }

    #[test]
    fn predictions_and_annotations_must_agree() {
        let annotation = |id: i64| Annotation {
            question_id: id.into(),
            answers: answers(&[("a", 10)]),
            answer_type: None,
            question_type: None,
        };
        let answer = |id: i64| Answer {
            question_id: id.into(),
            answer: "x".to_string(),
        };
        let run = |a: &[Annotation], p: &[Answer]| score(Rule::Vqa, a, p).unwrap_err().to_string();
        assert!(run(&[], &[]).contains("nothing to score"));
        assert!(run(&[annotation(1)], &[]).contains("no prediction for 1"));
        assert!(run(&[annotation(1)], &[answer(1), answer(1)]).contains("twice"));
        assert!(run(&[annotation(1)], &[answer(1), answer(7)]).contains('7'));
    }

    #[test]
    fn rounding_follows_the_binary_fraction() {
        assert_eq!(rounded(63.125), 63.12, "a true half goes to the even digit");
        assert_eq!(rounded(2.675), 2.67, "2.675 is a little less than it looks");
    }
}
