//! Command line: one file per verb. Results go to stdout (with `--json` one object per line), everything else
//! to stderr. Bad input ends with exit code 2 and a sentence that names the thing and the remedy.

mod backends;
mod cache;
mod caption;
mod chat;
mod common;
mod convert;
mod doctor;
mod embed;
mod index;
mod interrupt;
mod matching;
mod memory;
mod model;
mod models;
mod output;
mod parts;
mod pictures;
mod progress;
mod search;
mod sink;
mod vqa;

use std::process::ExitCode;

use anyhow::Result;
use blip2_model::nn::Kernels;
use blip2_model::sentence::sentence;
use blip2_model::with_backend;
use clap::{Parser, Subcommand};

pub use common::{CommonArgs, GenerationArgs};

/// BLIP-2 on any GPU or CPU: caption pictures, answer questions about them, match and embed.
#[derive(Debug, Parser)]
#[command(name = "blip2", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  blip2 caption photo.jpg --model Salesforce/blip2-opt-2.7b
  blip2 caption photos/ --model DIR --preset lavis --out captions.jsonl
  blip2 vqa photo.jpg \"how many dogs?\" --model DIR
  blip2 vqa photo.jpg \"what is it?\" --candidates answers.txt --model DIR
  blip2 chat photo.jpg --model Salesforce/blip2-flan-t5-xl
  blip2 doctor --backend vulkan
  blip2 search \"a dog on a beach\" --images photos/ --model Salesforce/blip2-itm-vit-g
  blip2 match photo.jpg \"a cat\" \"a dog\" --model Salesforce/blip2-itm-vit-g";

#[derive(Debug, Subcommand)]
enum Command {
    /// Describe pictures
    Caption(caption::CaptionArgs),
    /// Answer questions about pictures
    Vqa(vqa::VqaArgs),
    /// Talk about a picture: earlier questions and answers are remembered
    Chat(chat::ChatArgs),
    /// Score how well texts match a picture (ITM logits and probability, ITC cosine)
    #[command(mut_arg("model", |arg| arg.default_value(model::NANO_ITM)))]
    Match(matching::MatchArgs),
    /// Find pictures of a folder by a text
    #[command(mut_arg("model", |arg| arg.default_value(model::NANO_ITM)))]
    Search(search::SearchArgs),
    /// Write embeddings of pictures or texts to a safetensors file
    #[command(mut_arg("model", |arg| arg.default_value(model::NANO_ITM)))]
    Embed(embed::EmbedArgs),
    /// Write every named intermediate of one forward pass to a safetensors file
    Trace(embed::TraceArgs),
    /// Rewrite a checkpoint as Hugging Face safetensors or as a LAVIS .pth
    Convert(convert::ConvertArgs),
    /// List the published checkpoints, their sizes and licences, and which of them are on this machine
    Models(models::ModelsArgs),
    /// Predict how much memory a checkpoint takes
    Memory(memory::MemoryArgs),
    /// List the backends of this build
    Backends,
    /// Check whether a device computes correctly; exit code 1 if it does not
    Doctor(doctor::DoctorArgs),
}

/// Something that needs a backend type to run.
trait Verb {
    fn common(&self) -> &CommonArgs;
    fn run<B: Kernels>(&self, device: &B::Device) -> Result<()>;
}

fn dispatch(verb: &impl Verb) -> Result<()> {
    let common = verb.common();
    let kind = blip2_model::backend::BackendKind::choose(common.backend.as_deref())?;
    with_backend!(kind, B => {
        use blip2_model::backend::SelectDevice;
        verb.run::<B>(&B::open_device(common.device)?)
    })
}

/// Parses the arguments, runs the verb, and turns an error into a sentence.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Caption(args) => dispatch(&args),
        Command::Vqa(args) => dispatch(&args),
        Command::Chat(args) => dispatch(&args),
        Command::Match(args) => dispatch(&args),
        Command::Search(args) => dispatch(&args),
        Command::Embed(args) => dispatch(&args),
        Command::Trace(args) => dispatch(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Models(args) => models::run(&args),
        Command::Memory(args) => memory::run(&args),
        Command::Backends => backends::run(),
        Command::Doctor(args) => doctor::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<output::Stop>() {
            Some(stop @ output::Stop::Interrupted { .. }) => {
                eprintln!("{stop}");
                ExitCode::from(130)
            }
            Some(output::Stop::NotTrusted) => ExitCode::from(1),
            None => {
                eprintln!("error: {}", sentence(error.as_ref()));
                ExitCode::from(2)
            }
        },
    }
}
