//! `blip2 doctor`: may this device be trusted with the models?

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use blip2_model::backend::{BackendKind, SelectDevice};
use blip2_model::checkpoint::DtypePolicy;
use blip2_model::doctor::{self, Check, Outcome};
use blip2_model::generate::GenerateOptions;
use blip2_model::nn::Kernels;
use blip2_model::processor::RgbImage;
use blip2_model::with_backend;
use clap::Args;
use serde::Serialize;

use super::model;
use super::output::{self, Stop};
use crate::{Request, Session};

/// Arguments of `doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Compares layer norms, attention, masked softmax, GELU, matrix products in f32, f16 and bf16, an output layer of 50,304
rows, key/value caches and decoding with them against sums in f64 on the host and against a CPU backend of this build.
Exit code 0: the device may be trusted. 1: it may not; the failing line says where it goes wrong.

Examples:
  blip2 doctor
  blip2 doctor --backend vulkan --device 0
  blip2 doctor --backend cuda --model Salesforce/blip2-opt-2.7b")]
pub struct DoctorArgs {
    /// Backend to examine (see `blip2 backends`); default: the first one compiled in
    #[arg(long)]
    backend: Option<String>,
    /// Device of the backend
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// Also compare a whole checkpoint with the CPU, in f32; default: the bundled model if it is there
    #[arg(long, value_name = "DIR|HUB_ID|nano")]
    model: Option<String>,
    /// Never ask the network for a model
    #[arg(long)]
    offline: bool,
    /// Print one JSON object per check, and one for the verdict
    #[arg(long)]
    json: bool,
    /// No notes on stderr
    #[arg(long)]
    quiet: bool,
}

/// Last line of `--json`.
#[derive(Serialize)]
struct Verdict {
    backend: BackendKind,
    device: String,
    reference: Option<BackendKind>,
    trusted: bool,
    tokens_per_second: Option<f64>,
}

pub(super) fn run(args: &DoctorArgs) -> Result<()> {
    let kind = BackendKind::choose(args.backend.as_deref())?;
    let folder = match &args.model {
        Some(name) => Some(model::folder(name, args.offline, args.quiet)?),
        None => model::bundled(model::NANO),
    };
    let reference = kind.reference();
    let (mut checks, device, outputs, answer) = with_backend!(kind, B => {
        examine::<B>(args.device, folder.as_deref())?
    });
    if let Some(reference) = reference {
        let want = with_backend!(reference, R => reference_outputs::<R>(folder.as_deref())?);
        checks.extend(doctor::compare_models(&outputs.unwrap_or_default(), &want.models));
        if let (Some(got), Some(want)) = (&answer, &want.answer) {
            checks.extend(compare_answers(got, want));
        }
    }
    let trusted = doctor::is_trusted(&checks) && !checks.is_empty();
    for check in &checks {
        match args.json {
            true => output::json(check)?,
            false => output::line(&describe(check))?,
        }
    }
    let verdict = Verdict {
        backend: kind,
        device,
        reference,
        trusted,
        tokens_per_second: answer.map(|answer| answer.tokens_per_second),
    };
    match args.json {
        true => output::json(&verdict)?,
        false => output::line(&words(&verdict, &checks))?,
    }
    if trusted {
        return Ok(());
    }
    Err(Stop::NotTrusted.into())
}

/// What a checkpoint makes of a drawn picture.
struct ModelAnswer {
    logits: Vec<f32>,
    token_ids: Vec<i64>,
    tokens_per_second: f64,
}

struct Reference {
    models: doctor::Outputs,
    answer: Option<ModelAnswer>,
}

type Examined = (Vec<Check>, String, Option<doctor::Outputs>, Option<ModelAnswer>);

fn examine<B: Kernels + SelectDevice>(index: usize, folder: Option<&Path>) -> Result<Examined> {
    let device = B::open_device(index)?;
    let checks = doctor::examine::<B>(&device);
    // a device that panics here has failed above
    let outputs = doctor::run_models::<B>(&device).ok();
    let answer = folder.map(|folder| ask::<B>(folder, &device)).transpose()?;
    Ok((
        checks,
        format!("{} {device:?}", B::name(&device)),
        outputs,
        answer,
    ))
}

fn reference_outputs<R: Kernels + SelectDevice>(folder: Option<&Path>) -> Result<Reference> {
    let device = R::select_device(0);
    Ok(Reference {
        models: doctor::run_models::<R>(&device)?,
        answer: folder.map(|folder| ask::<R>(folder, &device)).transpose()?,
    })
}

/// Greedy continuation of a picture of coloured gradients. Only checkpoints with a language model answer.
fn ask<B: Kernels>(folder: &Path, device: &B::Device) -> Result<ModelAnswer> {
    let session = Session::<B>::open(&PathBuf::from(folder), DtypePolicy::f32(), false, device)?;
    let side = 96;
    let picture = RgbImage::from_fn(side, side, |x, y| {
        let level = |v: u32| (v * 255 / (2 * side)) as u8;
        [level(2 * x), level(2 * y), level(x + y)].into()
    });
    let encoded = session.encode_once(&[picture])?;
    let Ok(architecture) = session.architecture() else {
        return Ok(ModelAnswer {
            logits: encoded.queries_to_host().concat(),
            token_ids: Vec::new(),
            tokens_per_second: 0.0,
        });
    };
    let options = GenerateOptions {
        min_new_tokens: 20,
        ..GenerateOptions::for_architecture(architecture)
    };
    let request = Request {
        image: String::new(),
        prompt: "a photo of".into(),
        question: String::new(),
        options,
    };
    let start = Instant::now();
    let answers = session.answer_encoded(&encoded, &[0], &[request], &mut blip2_model::session::ignore)?;
    let seconds = start.elapsed().as_secs_f64();
    let token_ids: Vec<i64> = answers
        .into_iter()
        .flat_map(|answer| answer.outputs)
        .flat_map(|output| output.token_ids)
        .collect();
    Ok(ModelAnswer {
        logits: encoded.queries_to_host().concat(),
        tokens_per_second: token_ids.len() as f64 / seconds,
        token_ids,
    })
}

fn compare_answers(got: &ModelAnswer, want: &ModelAnswer) -> [Check; 2] {
    let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    let ids = |ids: &[i64]| ids.iter().map(|&id| id as f32).collect::<Vec<_>>();
    [
        // full-size encoders sum over 40 layers: ten times the bound of the small models
        Check::compare(
            "checkpoint: query outputs",
            &got.logits,
            &wide(&want.logits),
            1e-3,
        ),
        Check::compare(
            "checkpoint: greedy tokens",
            &ids(&got.token_ids),
            &wide(&ids(&want.token_ids)),
            0.0,
        ),
    ]
}

fn describe(check: &Check) -> String {
    let Check {
        name, error, bound, ..
    } = check;
    match &check.outcome {
        Outcome::Passed => format!("ok    {name:<42} error {error:8.1e}  bound {bound:.0e}"),
        Outcome::Failed => format!("WRONG {name:<42} error {error:8.1e}  bound {bound:.0e}"),
        Outcome::Unsupported(reason) => format!("-     {name:<42} {reason}"),
    }
}

fn words(verdict: &Verdict, checks: &[Check]) -> String {
    let Verdict { backend, device, .. } = verdict;
    let failed: Vec<&str> = checks
        .iter()
        .filter(|check| check.outcome == Outcome::Failed)
        .map(|check| check.name.as_str())
        .collect();
    if failed == [doctor::LARGE_TABLE] {
        return format!(
            "{backend} ({device}) cannot be trusted with the published checkpoints: their token tables exceed the \
             128 MiB that this adapter binds at once, and are read wrongly. All else is right, so small models such \
             as the bundled one work. Use another backend or device (`blip2 backends`) for the others."
        );
    }
    if !failed.is_empty() {
        return format!(
            "{backend} ({device}) cannot be trusted: {} {} wrong. Captions and scores made on it would be wrong, too. \
             Use another backend or device (`blip2 backends`), update the driver, and see backends.md.",
            failed.join(", "),
            if failed.len() == 1 { "is" } else { "are" }
        );
    }
    let beside = match verdict.reference {
        Some(reference) => format!(" and of the {reference} backend"),
        None => String::new(),
    };
    let missing = checks
        .iter()
        .filter(|check| matches!(check.outcome, Outcome::Unsupported(_)))
        .count();
    let half = match missing {
        0 => "",
        _ => " It lacks a half-precision format, as said above.",
    };
    format!(
        "{backend} ({device}) may be trusted: all results are within rounding of f64 sums on the host{beside}.{half}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(checks: &[Check]) -> String {
        let verdict = Verdict {
            backend: BackendKind::Vulkan,
            device: "a card".into(),
            reference: Some(BackendKind::Flex),
            trusted: doctor::is_trusted(checks),
            tokens_per_second: None,
        };
        words(&verdict, checks)
    }

    #[test]
    fn the_verdict_names_what_is_wrong() {
        let good = Check::compare("layer norm", &[1.0], &[1.0], 1e-5);
        let bad = Check::compare("attention", &[0.5], &[1.0], 1e-5);
        assert!(verdict(std::slice::from_ref(&good)).contains("may be trusted"));
        let text = verdict(&[good, bad.clone()]);
        assert!(text.contains("cannot be trusted: attention is wrong"), "{text}");
        assert!(describe(&bad).starts_with("WRONG attention"));
        let large = Check::compare(doctor::LARGE_TABLE, &[0.5], &[1.0], 1e-5);
        assert!(!doctor::is_trusted(std::slice::from_ref(&large)));
        assert!(verdict(&[large]).contains("128 MiB"));
    }
}
