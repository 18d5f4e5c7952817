//! Caption evaluation: one caption per picture against its references (LAVIS `captioning` task).

use std::collections::HashMap;
use std::ops::ControlFlow;

use blip2_model::blip2::ImageFeatures;
use blip2_model::generate::{self, GenerateOptions};
use blip2_model::nn::{Context, Kernels};
use blip2_model::processor::text::blip_caption;
use blip2_model::session::Session;
use serde::{Deserialize, Serialize};

use super::pictures::{Picture, Pictures};
use super::publish::{Finished, Publisher};
use super::{RunError, Runner};
use crate::eval::results::{self, Caption, Id, Score};
use crate::eval::{CaptionScores, export};

/// Settings of a caption evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptionTask {
    /// Beginning of the caption, given to the language model.
    pub prompt: String,
    /// How to generate.
    pub generation: GenerateOptions,
}

impl CaptionTask {
    /// Captions what this process has to and what no process has done yet.
    pub fn run<B: Kernels>(&self, runner: &mut Runner<B>) -> Result<(), RunError> {
        let (mut journal, done) = runner.folder.journal::<Caption>("predictions")?;
        let wanted: Vec<usize> = (0..runner.pictures.list.len())
            .filter(|&at| runner.effort.share.has(at) && !done.contains(&runner.pictures.list[at].id))
            .collect();
        let meter = runner.meter("captions", wanted.len());
        runner.encode_each(&wanted, runner.effort.batch, &mut |runner, at, features| {
            let prompts = vec![self.prompt.clone(); at.len()];
            let index: Vec<usize> = (0..at.len()).collect();
            let questions = vec![""; at.len()];
            let session = &runner.session;
            let texts = generate_texts(session, &features, &index, &prompts, &questions, &self.generation)?;
            let lines: Vec<Caption> = at
                .iter()
                .zip(texts)
                .map(|(&at, caption)| Caption {
                    image_id: runner.pictures.list[at].id.clone(),
                    caption,
                })
                .collect();
            journal.append(&lines)?;
            meter.add(at.len());
            runner.folder.tick()
        })?;
        Ok(journal.sync()?)
    }

    /// Scores what the journals hold.
    pub fn finish(&self, pictures: &Pictures, publisher: &mut Publisher) -> Result<Finished, RunError> {
        let (captions, _) = results::merge(results::read_journals::<Caption>(
            publisher.folder(),
            "predictions",
        )?);
        let items = publisher.complete(pictures.list.iter().map(|picture| (picture, &picture.id)))?;
        let said: HashMap<&Id, &Caption> = captions.iter().map(|c| (&c.image_id, c)).collect();
        let missing = items.iter().filter(|(_, id)| !said.contains_key(id)).count();
        publisher.all_done(items.len() - missing, items.len())?;
        let predictions: Vec<Caption> = items
            .iter()
            .filter_map(|(_, id)| said.get(id).map(|c| (*c).clone()))
            .collect();
        publisher.write("predictions.json", &predictions)?;
        // pictures without references (test splits) are predicted, not scored
        let scored: Vec<(&Picture, &Caption)> = items
            .iter()
            .zip(&predictions)
            .filter(|((picture, _), _)| !picture.captions.is_empty())
            .map(|((picture, _), caption)| (*picture, caption))
            .collect();
        let mut finished = Finished {
            items: items.len(),
            ..Finished::default()
        };
        if scored.len() < items.len() {
            finished.notes.push(format!(
                "{} of {} pictures have no reference captions and are not scored",
                items.len() - scored.len(),
                items.len()
            ));
        }
        if scored.is_empty() {
            return Ok(finished);
        }
        let references: Vec<Vec<String>> = scored.iter().map(|(p, _)| p.captions.clone()).collect();
        let candidates: Vec<&str> = scored.iter().map(|(_, c)| c.caption.as_str()).collect();
        let scores = CaptionScores::compute(&references, &candidates)?;
        let exact: Vec<bool> = scored
            .iter()
            .map(|(p, c)| is_exact(&c.caption, &p.captions))
            .collect();
        let share = exact.iter().filter(|e| **e).count() as f64 / exact.len() as f64;
        finished.scores = scores.report();
        finished.scores.push(Score {
            metric: "exact match".into(),
            value: 100.0 * share,
            published: None,
        });
        let scored_captions: Vec<Caption> = scored.iter().map(|(_, c)| (*c).clone()).collect();
        publisher.write(
            "references.json",
            &export::references(scored.iter().map(|(p, c)| (&c.image_id, p.captions.as_slice()))),
        )?;
        publisher.write("spice.json", &export::spice(&scored_captions, &references)?)?;
        finished.cases = scored
            .iter()
            .zip(&scores.items)
            .zip(&exact)
            .map(|(((picture, caption), metrics), exact)| super::publish::Case {
                picture: picture.id.clone(),
                question: None,
                prediction: caption.caption.clone(),
                references: picture.captions.clone(),
                // CIDEr of short captions is often 0; what is exactly right is best of all
                score: metrics.cider_d + f64::from(u8::from(*exact)) + 0.1 * metrics.rouge_l,
            })
            .collect();
        finished.sorted_by = "CIDEr-D + 0.1 ROUGE-L + 1 if exact";
        Ok(finished)
    }
}

/// The caption equals a reference once both are cleaned as training texts are ([`blip_caption`]: lower case, most
/// punctuation gone, white space joined).
pub fn is_exact(caption: &str, references: &[String]) -> bool {
    let clean = |text: &str| match blip_caption(text, "", usize::MAX) {
        cleaned if cleaned.trim().is_empty() => text.trim().to_lowercase(),
        cleaned => cleaned.trim().to_owned(),
    };
    let caption = clean(caption);
    references.iter().any(|reference| clean(reference) == caption)
}

/// One text per prompt; prompt `i` is about picture `index[i]` of the batch, and `questions[i]` is for a Q-Former that
/// reads them.
pub(super) fn generate_texts<B: Kernels, S: AsRef<str>>(
    session: &Session<B>,
    features: &ImageFeatures<B>,
    index: &[usize],
    prompts: &[String],
    questions: &[S],
    options: &GenerateOptions,
) -> Result<Vec<String>, RunError> {
    let ctx = Context::eval();
    let soft = session.soft_tokens(features, index, questions, &ctx)?; // [prompts, Q, d]
    let prompt = session.model.prompt(soft, &session.tokenize_prompts(prompts)?)?;
    let options = vec![options.clone(); prompts.len()];
    let answers = generate::generate(session.model.language()?, prompt, &options, &ctx, &mut |_| {
        ControlFlow::Continue(())
    })?;
    answers
        .into_iter()
        .map(|answer| match answer.sequences.first() {
            Some(best) => Ok(session.detokenize(&best.token_ids)?),
            None => Ok(String::new()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_match_ignores_what_cleaning_removes() {
        let references = ["Keycap: #".to_owned(), "A  Cat.".to_owned()];
        assert!(is_exact("a cat", &references));
        assert!(is_exact("keycap", &references));
        assert!(!is_exact("a cats", &references));
        assert!(!is_exact("", &references));
        assert!(is_exact("!", &["!".to_owned()]));
    }
}
