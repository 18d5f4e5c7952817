//! Which data set a verb reads.

use std::path::PathBuf;

use clap::Args;

use crate::data::source::SourceConfig;

/// Which data set, and how to read it.
#[derive(Clone, Debug, Args)]
pub struct SourceSelect {
    /// Tar shards (`s-{000..012}.tar`, `*.tar`, `-`), an annotation file, or a folder.
    #[arg(value_name = "DATA")]
    pub path: String,
    /// Folder of the pictures an annotation file names [default: the file's folder].
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// Format of the annotation file, such as coco_caption, karpathy or gqa [default: by field names].
    #[arg(long)]
    pub format: Option<String>,
    /// Split of a Karpathy file: train, val or test.
    #[arg(long)]
    pub split: Option<String>,
    /// Annotations that belong to an official VQA questions file.
    #[arg(long, value_name = "FILE")]
    pub answers: Option<PathBuf>,
}

impl SourceSelect {
    /// The configuration; `pairs`: one sample per caption.
    pub fn config(&self, pairs: bool) -> SourceConfig {
        SourceConfig {
            images: self.images.clone(),
            format: self.format.clone(),
            split: self.split.clone(),
            answers: self.answers.clone(),
            pairs: Some(pairs),
            ..SourceConfig::new(self.path.clone())
        }
    }
}
