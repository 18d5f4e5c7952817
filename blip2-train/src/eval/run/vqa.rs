//! VQA evaluation: open generation, or the likeliest of given answers (LAVIS `vqa`, `gqa`, `aok_vqa` tasks).
//!
//! LAVIS passes OK-VQA predictions through spaCy's English lemmatizer first; [`crate::eval::vqa::lemma`] does what of that
//! needs no tables of spaCy's.

use std::collections::HashMap;

use blip2_model::blip2::ImageFeatures;
use blip2_model::generate::GenerateOptions;
use blip2_model::generate::ranking::{RankBy, RankOptions, rank};
use blip2_model::nn::{Context, Kernels};
use blip2_model::processor::text::{MAX_WORDS, blip_question, fill_template};
use serde::{Deserialize, Serialize};

use super::caption::generate_texts;
use super::pictures::{Asked, Picture, Pictures};
use super::publish::{Case, Finished, Publisher};
use super::{RunError, Runner};
use crate::data::sample::Question;
use crate::eval::results::{self, Answer, Id, Score};
use crate::eval::vqa::lemma::BaseForms;
use crate::eval::vqa::{Annotation, Rule, rounded, score};

/// Settings of a VQA evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VqaTask {
    /// Template; `{}` stands for the question.
    pub prompt: String,
    /// Clean questions as LAVIS does (lower case, most punctuation gone).
    pub clean: bool,
    /// Bring words back to base forms before scoring.
    #[serde(default)]
    pub lemmatise: bool,
    /// Where answers come from.
    pub answers: AnswerBy,
    /// How they are scored.
    pub rule: Rule,
}

/// Where answers come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerBy {
    /// The model's own words.
    Generate(GenerateOptions),
    /// The likeliest of these.
    Rank {
        /// Answers to every question; empty: each question's own choices.
        candidates: Vec<String>,
        /// Divide the log-likelihood by the number of tokens.
        per_token: bool,
    },
}

/// A question with the number of its picture in a batch.
type Pending = Vec<(usize, Asked)>;

impl VqaTask {
    /// An error if the rule gives 0 whatever the answers are.
    pub(super) fn check(&self, pictures: &Pictures) -> Result<(), RunError> {
        let asked = pictures.list.iter().flat_map(|picture| &picture.questions);
        let people = asked.map(|asked| asked.question.answers.iter().map(|a| a.count).sum::<u32>());
        // a question without answers is not scored
        match (self.rule, people.max()) {
            (Rule::Vqa, Some(1)) => Err(RunError::OneAnswer {
                data: pictures.name().to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Answers what this process has to and what no process has answered yet.
    pub fn run<B: Kernels>(&self, runner: &mut Runner<B>) -> Result<(), RunError> {
        let (mut journal, done) = runner.folder.journal::<Answer>("predictions")?;
        let todo: Vec<usize> = (0..runner.pictures.list.len())
            .filter(|&at| runner.effort.share.has(at))
            .filter(|&at| {
                runner.pictures.list[at]
                    .questions
                    .iter()
                    .any(|q| !done.contains(&q.id))
            })
            .collect();
        let open = |asked: &&Asked| !done.contains(&asked.id);
        let total = todo
            .iter()
            .flat_map(|&at| &runner.pictures.list[at].questions)
            .filter(open)
            .count();
        let meter = runner.meter("answers", total);
        runner.encode_each(&todo, runner.effort.batch, &mut |runner, at, features| {
            let pending: Pending = at
                .iter()
                .enumerate()
                .flat_map(|(row, &at)| {
                    runner.pictures.list[at]
                        .questions
                        .iter()
                        .map(move |asked| (row, asked))
                })
                .filter(|(_, asked)| open(asked))
                .map(|(row, asked)| (row, asked.clone()))
                .collect();
            for part in pending.chunks(runner.effort.batch) {
                let texts = self.answer(runner, &features, part)?;
                let lines: Vec<Answer> = part
                    .iter()
                    .zip(texts)
                    .map(|((_, asked), answer)| Answer {
                        question_id: asked.id.clone(),
                        answer,
                    })
                    .collect();
                journal.append(&lines)?;
                meter.add(part.len());
                runner.folder.tick()?;
            }
            Ok(())
        })?;
        Ok(journal.sync()?)
    }

    fn answer<B: Kernels>(
        &self,
        runner: &Runner<B>,
        features: &ImageFeatures<B>,
        part: &[(usize, Asked)],
    ) -> Result<Vec<String>, RunError> {
        let session = &runner.session;
        let index: Vec<usize> = part.iter().map(|(row, _)| *row).collect();
        let questions: Vec<String> = part
            .iter()
            .map(|(_, asked)| self.question(&asked.question))
            .collect();
        let prompts: Vec<String> = questions
            .iter()
            .map(|question| fill_template(&self.prompt, &[question]))
            .collect();
        let (shared, per_token) = match &self.answers {
            AnswerBy::Generate(options) => {
                return generate_texts(session, features, &index, &prompts, &questions, options);
            }
            AnswerBy::Rank {
                candidates,
                per_token,
            } => (candidates, *per_token),
        };
        let own: Vec<&[String]> = part
            .iter()
            .map(|(_, asked)| match shared.is_empty() {
                true => asked.question.choices.as_slice(),
                false => shared.as_slice(),
            })
            .collect();
        if let Some(at) = own.iter().position(|list| list.is_empty()) {
            return Err(RunError::Setting {
                name: "--candidates choices",
                value: format!("not possible for question {}", part[at].1.id),
                remedy: "it has no choices; give a file of candidates, or leave the option away to generate",
            });
        }
        let ids = match shared.is_empty() {
            true => own
                .iter()
                .map(|list| session.tokenize_candidates(list))
                .collect::<Result<Vec<_>, _>>()?,
            false => vec![session.tokenize_candidates(shared)?; part.len()],
        };
        let ctx = Context::eval();
        let soft = session.soft_tokens(features, &index, &questions, &ctx)?; // [questions, Q, d]
        let prompt = session.model.prompt(soft, &session.tokenize_prompts(&prompts)?)?;
        let options = RankOptions {
            by: if per_token { RankBy::Mean } else { RankBy::Sum },
            ..RankOptions::default()
        };
        let ranked = rank(session.model.language()?, prompt, &ids, &options, &ctx)?;
        let best = ranked
            .iter()
            .zip(&own)
            .map(|(scores, list)| scores.first().map(|s| list[s.candidate].clone()));
        Ok(best.map(Option::unwrap_or_default).collect())
    }

    /// The question as it stands in the prompt and as a Q-Former reads it.
    fn question(&self, question: &Question) -> String {
        match self.clean {
            true => blip_question(&question.text, MAX_WORDS),
            false => question.text.clone(),
        }
    }

    /// Scores what the journals hold.
    pub fn finish(&self, pictures: &Pictures, publisher: &mut Publisher) -> Result<Finished, RunError> {
        let questions = pictures
            .list
            .iter()
            .flat_map(|p| p.questions.iter().map(move |asked| (p, asked)));
        let questions: Vec<(&Picture, &Asked)> =
            questions.filter(|(p, _)| !publisher.is_skipped(&p.id)).collect();
        let (answers, _) = results::merge(results::read_journals::<Answer>(
            publisher.folder(),
            "predictions",
        )?);
        let said: HashMap<&Id, &Answer> = answers.iter().map(|a| (&a.question_id, a)).collect();
        let mut predictions: Vec<Answer> = questions
            .iter()
            .filter_map(|(_, asked)| said.get(&asked.id).map(|a| (*a).clone()))
            .collect();
        if self.lemmatise {
            let all = questions.iter().flat_map(|(_, asked)| &asked.question.answers);
            let forms = BaseForms::of(all.map(|answer| answer.text.as_str()));
            predictions
                .iter_mut()
                .for_each(|prediction| prediction.answer = forms.of_answer(&prediction.answer));
        }
        publisher.all_done(predictions.len(), questions.len())?;
        publisher.write("predictions.json", &predictions)?;
        let mut finished = Finished {
            items: questions.len(),
            sorted_by: "accuracy",
            ..Finished::default()
        };
        let annotated: Vec<(&(&Picture, &Asked), &Answer)> = questions
            .iter()
            .zip(&predictions)
            .filter(|((_, asked), _)| !asked.question.answers.is_empty())
            .collect();
        if annotated.len() < questions.len() {
            finished.notes.push(format!(
                "{} of {} questions have no answers and are not scored",
                questions.len() - annotated.len(),
                questions.len()
            ));
        }
        if let Some(share) = multiple_choice(&questions, &predictions) {
            finished.scores.push(figure("multiple choice", share));
        }
        if annotated.is_empty() {
            return Ok(finished);
        }
        let annotations: Vec<Annotation> = annotated
            .iter()
            .map(|((_, asked), _)| annotation(asked))
            .collect();
        let given: Vec<Answer> = annotated.iter().map(|(_, answer)| (*answer).clone()).collect();
        let scores = score(self.rule, &annotations, &given)?;
        let mut figures = vec![figure("overall", rounded(scores.overall))];
        figures.extend(
            scores
                .per_answer_type
                .iter()
                .map(|(kind, value)| figure(kind, rounded(*value))),
        );
        figures.append(&mut finished.scores);
        finished.scores = figures;
        publisher.write("accuracy.json", &scores)?;
        finished.cases = annotated
            .iter()
            .zip(&scores.per_question)
            .map(|(((picture, asked), answer), (_, accuracy))| Case {
                picture: picture.id.clone(),
                question: Some(asked.question.text.clone()),
                prediction: answer.answer.clone(),
                references: asked
                    .question
                    .answers
                    .iter()
                    .map(|a| format!("{} ({})", a.text, a.count))
                    .collect(),
                score: accuracy / 100.0,
            })
            .collect();
        Ok(finished)
    }
}

fn figure(metric: &str, value: f64) -> Score {
    Score {
        metric: metric.to_owned(),
        value,
        published: None,
    }
}

/// The annotators' answers in full, in order of first appearance; their order does not matter to any rule.
fn annotation(asked: &Asked) -> Annotation {
    let question = &asked.question;
    let all = question
        .answers
        .iter()
        .flat_map(|a| std::iter::repeat_n(a.text.clone(), a.count as usize));
    Annotation {
        question_id: asked.id.clone(),
        answers: all.collect(),
        answer_type: question.answer_type.clone(),
        question_type: question.question_type.clone(),
    }
}

/// Percent of questions with choices whose answer is the right one.
fn multiple_choice(questions: &[(&Picture, &Asked)], predictions: &[Answer]) -> Option<f64> {
    let with_choices = questions
        .iter()
        .zip(predictions)
        .filter_map(|((_, asked), answer)| {
            let right = asked.question.choices.get(asked.question.correct_choice?)?;
            Some(*right == answer.answer)
        });
    let right: Vec<bool> = with_choices.collect();
    let share = right.iter().filter(|r| **r).count() as f64 / right.len() as f64;
    (!right.is_empty()).then_some(100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::super::pictures::Selection;
    use super::*;
    use crate::data::source::SourceConfig;

    #[test]
    fn one_answer_a_question_needs_a_rule_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let check = |rule, answers: &str| {
            let path = dir.path().join("q.jsonl");
            std::fs::write(
                &path,
                format!("{{\"image\":\"a.png\",\"question\":\"What?\"{answers}}}\n"),
            )
            .unwrap();
            let config = SourceConfig::new(path.to_string_lossy());
            let pictures = Pictures::open(&config, &Selection::default(), 1).unwrap();
            let task = VqaTask {
                prompt: "{}".into(),
                clean: true,
                lemmatise: false,
                answers: AnswerBy::Generate(GenerateOptions::default()),
                rule,
            };
            task.check(&pictures)
        };
        let error = check(Rule::Vqa, r#","answer":"cat""#).unwrap_err().to_string();
        assert!(error.contains("--rule gqa"), "{error}");
        assert!(check(Rule::Gqa, r#","answer":"cat""#).is_ok());
        assert!(check(Rule::Vqa, r#","answer":["cat","cat"]"#).is_ok());
        assert!(check(Rule::Vqa, "").is_ok(), "a test split is not scored");
    }
}
