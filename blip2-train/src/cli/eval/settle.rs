//! From arguments to the settings of a task, once the model is known.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use blip2_model::nn::Kernels;
use blip2_model::session::Session;

use super::args::{CaptionArgs, ItmArgs, RetrievalArgs, RuleArg, RunArgs, VqaArgs};
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
                candidates: candidates(file)?,
                per_token: self.per_token,
            },
        };
        Ok(Task::Vqa(VqaTask {
            prompt: self.generation.prompt(true),
            clean: !self.no_clean,
            lemmatise: self.lemmatise,
            answers,
            rule: match self.rule {
                RuleArg::Vqa => Rule::Vqa,
                RuleArg::Aokvqa => Rule::AOkvqa,
                RuleArg::Gqa => Rule::Gqa,
            },
        }))
    }
}

/// One answer per line; none for `choices`.
fn candidates(file: &Path) -> Result<Vec<String>> {
    if file.as_os_str() == "choices" {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("--candidates {}", file.display()))?;
    let lines: Vec<String> = text
        .lines()
        .map(|l| l.trim().to_owned())
        .filter(|l| !l.is_empty())
        .collect();
    if lines.is_empty() {
        bail!("--candidates {}: no answers; write one per line", file.display());
    }
    Ok(lines)
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
            shared: !self.own_captions_only,
        }))
    }
}
