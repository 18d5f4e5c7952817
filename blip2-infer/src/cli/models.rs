//! `blip2 models`

use anyhow::Result;
use blip2_model::backend::{BackendKind, SelectDevice};
use blip2_model::blip2::Blip2;
use blip2_model::catalogue::PUBLISHED;
use blip2_model::checkpoint::expected_tensors;
use blip2_model::config::Blip2Config;
use blip2_model::with_backend;
use clap::Args;
use serde::Serialize;

use super::{model, output};

/// Arguments of `models`.
#[derive(Debug, Args)]
pub struct ModelsArgs {
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

/// One line of the list.
#[derive(Serialize)]
struct Line {
    model: String,
    purpose: &'static str,
    image_size: usize,
    parameters: usize,
    bytes: Sizes,
    licence: &'static str,
    /// Folder on this machine; null if it has to be downloaded.
    folder: Option<String>,
}

/// All parameters in one dtype.
#[derive(Serialize)]
struct Sizes {
    f32: usize,
    f16: usize,
    bf16: usize,
}

impl Sizes {
    fn of(parameters: usize) -> Self {
        Self {
            f32: 4 * parameters,
            f16: 2 * parameters,
            bf16: 2 * parameters,
        }
    }
}

pub(super) fn run(args: &ModelsArgs) -> Result<()> {
    let kind = BackendKind::choose(None)?;
    let count = |config: Blip2Config| -> Result<usize> {
        with_backend!(kind, B => {
            let model = Blip2::<B>::new(config, &B::select_device(0))?;
            Ok(expected_tensors(&model).iter().map(|p| p.num_elements()).sum())
        })
    };
    let mut lines = Vec::new();
    for model::Bundled { name, purpose, .. } in model::BUNDLED {
        let folder = model::bundled(name);
        let config = folder
            .as_ref()
            .and_then(|folder| std::fs::read_to_string(folder.join("config.json")).ok());
        let Some(config) = config.and_then(|json| Blip2Config::from_json(&json).ok()) else {
            continue;
        };
        let image_size = config.vision_config.image_size();
        let parameters = count(config)?;
        lines.push(Line {
            model: name.into(),
            purpose,
            image_size,
            parameters,
            bytes: Sizes::of(parameters),
            licence: "see NOTICES.md",
            folder: folder.map(|folder| folder.display().to_string()),
        });
    }
    for entry in &PUBLISHED {
        let parameters = count(entry.config())?;
        lines.push(Line {
            model: entry.id.into(),
            purpose: entry.purpose,
            image_size: entry.image_size,
            parameters,
            bytes: Sizes::of(parameters),
            licence: entry.licence,
            folder: model::cached(entry.id).map(|folder| folder.display().to_string()),
        });
    }
    if args.json {
        return lines.iter().try_for_each(output::json);
    }
    let head = [
        "model",
        "for",
        "pixels",
        "parameters",
        "f32",
        "f16/bf16",
        "here",
        "licence",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    for line in &lines {
        rows.push(vec![
            line.model.clone(),
            line.purpose.into(),
            line.image_size.to_string(),
            match line.parameters {
                n if n < 1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
                n => format!("{:.2} G", n as f64 / 1e9),
            },
            output::bytes(line.bytes.f32 as u64),
            output::bytes(line.bytes.f16 as u64),
            if line.folder.is_some() { "yes" } else { "-" }.into(),
            line.licence.into(),
        ]);
    }
    output::line(&output::table(&rows))
}
