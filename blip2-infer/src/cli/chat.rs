//! `blip2 chat IMAGE`: a conversation about one picture as in the paper (figure 4): earlier questions and answers
//! stand in the prompt, the picture is encoded once.

use std::io::{self, BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Result;
use blip2_model::language::AnyLanguageModel;
use blip2_model::nn::Kernels;
use blip2_model::processor::text::{PromptFamily, Prompts};
use blip2_model::session::{Answer, Encoded};
use clap::Args;
use serde::Serialize;

use super::interrupt::Interrupt;
use super::{CommonArgs, GenerationArgs, Verb, cache, output, pictures};
use crate::{Request, Session};

/// Arguments of `chat`.
#[derive(Debug, Args)]
#[command(after_help = "\
One question per line on stdin, typed or piped. A line that begins with / is a command:
  /reset  forget earlier questions and answers
  /quit   end (so does the end of the input)
The prompt is \"Question: ... Answer: ... . Question: ... Answer:\"; when it no longer fits the model, the oldest turns
are left out.

Examples:
  blip2 chat photo.jpg --model Salesforce/blip2-flan-t5-xl
  printf 'what is it?\\nwhere was it taken?\\n' | blip2 chat photo.jpg --json")]
pub struct ChatArgs {
    /// Picture
    image: PathBuf,
    /// Keep the encoded picture in this folder, by content
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// One answer with `--json`.
#[derive(Serialize)]
struct Line<'a> {
    question: &'a str,
    #[serde(flatten)]
    answer: &'a Answer,
}

impl Verb for ChatArgs {
    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn run<B: Kernels>(&self, device: &B::Device) -> Result<()> {
        let session = self.common.open::<B>(device)?;
        let kept = cache::needed_to_answer(&session);
        let cache = self.common.cache(self.cache.as_deref(), kept)?;
        let picture = pictures::read(&self.image, cache::wanted(cache.as_ref()))?;
        let (_, encoded) = cache::encode(&session, cache.as_ref(), vec![picture])?;
        let family = match session.model.language()? {
            AnyLanguageModel::T5(_) => PromptFamily::T5,
            AnyLanguageModel::Opt(_) | AnyLanguageModel::Llama(_) => PromptFamily::Opt,
        };
        let mut chat = Chat {
            args: self,
            session: &session,
            encoded,
            prompts: family.prompts(),
            turns: Vec::new(),
            interrupt: Interrupt::on_signals()?,
        };
        let typed = io::stdin().is_terminal() && !self.common.quiet;
        if typed {
            eprintln!("ask about {}; /reset forgets, /quit ends", self.image.display());
        }
        let mut lines = io::stdin().lock().lines();
        loop {
            if typed {
                eprint!("> ");
                io::stderr().flush()?;
            }
            chat.interrupt.set_idle(true);
            let line = lines.next().transpose()?;
            chat.interrupt.set_idle(false);
            let Some(line) = line else {
                break;
            };
            match line.trim() {
                "" => {}
                "/quit" | "/exit" => break,
                "/reset" => chat.turns.clear(),
                unknown if unknown.starts_with('/') => {
                    eprintln!("{unknown}: no such command; there are /reset and /quit");
                }
                question => chat.ask(question)?,
            }
        }
        Ok(())
    }
}

/// A conversation.
struct Chat<'a, B: Kernels> {
    args: &'a ChatArgs,
    session: &'a Session<B>,
    encoded: Encoded<B>,
    prompts: &'static Prompts,
    /// Questions with their answers.
    turns: Vec<(String, String)>,
    interrupt: Interrupt,
}

impl<B: Kernels> Chat<'_, B> {
    fn ask(&mut self, question: &str) -> Result<()> {
        let (session, args) = (self.session, self.args);
        let options = args
            .generation
            .options(session.generation.as_ref(), session.architecture()?, false);
        let prompt = self.prompt(question, options.max_new_tokens)?;
        let request = Request {
            image: args.image.display().to_string(),
            prompt,
            question: question.to_string(),
            options,
        };
        let mut failure = None;
        let json = args.common.json;
        let answers = session.answer_encoded(&self.encoded, &[0], &[request], &mut |piece| {
            let shown = match json {
                true => Ok(()),
                false => output::piece(piece.text),
            };
            match shown {
                Ok(()) if !self.interrupt.is_requested() => ControlFlow::Continue(()),
                Ok(()) => ControlFlow::Break(()),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        let Some(answer) = answers.into_iter().next() else {
            return Ok(());
        };
        match json {
            true => output::json(&Line {
                question,
                answer: &answer,
            })?,
            false => output::line("")?,
        }
        let text = answer.outputs.first().map(|o| o.text.clone()).unwrap_or_default();
        match text.is_empty() {
            // an empty answer in the prompt would teach the model to give more of them
            true => eprintln!("(no answer: the model ended at once; try --min-new-tokens 1)"),
            false => self.turns.push((question.to_string(), text)),
        }
        if self.interrupt.is_requested() {
            let done = self.turns.len();
            return Err(output::Stop::Interrupted { done, total: done }.into());
        }
        Ok(())
    }

    /// The conversation so far with `question` at its end, without its oldest turns if it would not fit.
    fn prompt(&mut self, question: &str, max_new_tokens: usize) -> Result<String> {
        let room = self.session.prompt_room(max_new_tokens)?;
        loop {
            let turns: Vec<(&str, &str)> = self.turns.iter().map(|(q, a)| (q.as_str(), a.as_str())).collect();
            let prompt = self.prompts.conversation(&turns, question);
            let tokens = self
                .session
                .tokenize_prompts(std::slice::from_ref(&prompt))?
                .mask
                .len();
            if room.is_none_or(|room| tokens <= room) || self.turns.is_empty() {
                return Ok(prompt);
            }
            self.turns.remove(0);
            if !self.args.common.quiet {
                eprintln!("(the oldest question is forgotten: the conversation no longer fits the model)");
            }
        }
    }
}
