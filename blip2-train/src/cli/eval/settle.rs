//! From arguments to the settings of a task, once the model is known.

use anyhow::{Result, bail};
use blip2_model::nn::Kernels;
use blip2_model::session::Session;

use super::args::{CaptionArgs, ItmArgs, RetrievalArgs, RuleArg, RunArgs, VqaArgs};
use super::candidates;
use crate::eval::run::Task;
use crate::eval::run::caption::CaptionTask;
use crate::eval::run::itm::ItmTask;
use crate::eval::run::retrieval::RetrievalTask;
use crate::eval::run::vqa::{AnswerBy, VqaTask};
use crate::eval::vqa::Rule;

/// A verb's settings once the model is known.
pub trait Settle {
    /// What every evaluation needs.
    fn run(&self) -> &RunArgs;
    /// The task.
    fn task<B: Kernels>(&self, session: &Session<B>) -> Result<Task>;
}

impl Settle for CaptionArgs {
    fn run(&self) -> &RunArgs {
        &self.run
    }

    fn task<B: Kernels>(&self, session: &Session<B>) -> Result<Task> {
        let generation = self
            .generation
            .options(session.generation.as_ref(), session.architecture()?, false);
        Ok(Task::Caption(CaptionTask {
            prompt: self.generation.prompt(false),
            generation,
        }))
    }
}

impl Settle for VqaArgs {
    fn run(&self) -> &RunArgs {
        &self.run
    }

    fn task<B: Kernels>(&self, session: &Session<B>) -> Result<Task> {
        let answers = match &self.candidates {
            None => AnswerBy::Generate(self.generation.options(
                session.generation.as_ref(),
                session.architecture()?,
                true,
            )),
            Some(file) => AnswerBy::Rank {
                candidates: candidates::read(file)?,
                per_token: self.per_token,
            },
        };
        Ok(Task::Vqa(VqaTask {
            prompt: self.generation.prompt(true),
            clean: !self.no_clean,
            lemmatise: self.lemmatise,
            answers,
            rule: rule(self.rule, self.run.data.format.as_deref()),
        }))
    }
}

/// The rule of the data set's kind, where `--format` names one.
fn rule(given: Option<RuleArg>, format: Option<&str>) -> Rule {
    match (given, format) {
        (Some(RuleArg::Vqa), _) => Rule::Vqa,
        (Some(RuleArg::Aokvqa), _) | (None, Some("aok_vqa")) => Rule::AOkvqa,
        // one answer a question, in Visual Genome's questions as well
        (Some(RuleArg::Gqa), _) | (None, Some("gqa" | "gqa_official" | "vg_vqa")) => Rule::Gqa,
        (None, _) => Rule::Vqa,
    }
}

impl Settle for ItmArgs {
    fn run(&self) -> &RunArgs {
        &self.run
    }

    fn task<B: Kernels>(&self, _: &Session<B>) -> Result<Task> {
        if self.negatives == 0 && !self.labelled {
            bail!("--negatives 0: accuracy needs pairs that do not match; give at least 1");
        }
        Ok(Task::Itm(ItmTask {
            labelled: self.labelled,
            negatives: self.negatives,
            seed: self.seed,
            clean: !self.no_clean,
            max_length: self.max_length,
        }))
    }
}

impl Settle for RetrievalArgs {
    fn run(&self) -> &RunArgs {
        &self.run
    }

    fn task<B: Kernels>(&self, _: &Session<B>) -> Result<Task> {
        Ok(Task::Retrieval(RetrievalTask {
            k: self.k,
            clean: !self.no_clean,
            max_length: self.max_length,
            shared: self.shared_captions,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_follows_the_format_unless_it_is_given() {
        let of = |format| rule(None, Some(format));
        assert_eq!(of("gqa"), Rule::Gqa);
        assert_eq!(of("gqa_official"), Rule::Gqa);
        assert_eq!(of("aok_vqa"), Rule::AOkvqa);
        assert_eq!(of("ok_vqa"), Rule::Vqa);
        assert_eq!(rule(None, None), Rule::Vqa);
        assert_eq!(rule(Some(RuleArg::Vqa), Some("gqa")), Rule::Vqa);
        // the formats are those that the reader knows
        for name in ["gqa", "gqa_official", "vg_vqa", "aok_vqa", "ok_vqa"] {
            assert!(crate::data::formats::Format::named(name).is_ok(), "{name}");
        }
    }
}
