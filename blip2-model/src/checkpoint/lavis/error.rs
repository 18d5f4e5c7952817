//! What can go wrong between a LAVIS checkpoint and a model.

use std::fmt;
use std::path::PathBuf;

use crate::weights::WeightsError;
use crate::weights::error::NameList;

/// See the module documentation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LavisError {
    /// The checkpoint holds only what BLIP-2 trained, and the rest was not given.
    #[error(
        "{}: LAVIS leaves the frozen parts out of this file; still needed: {}",
        path.display(),
        Sentences(missing)
    )]
    Incomplete {
        /// The checkpoint.
        path: PathBuf,
        /// What is missing.
        missing: Vec<MissingPart>,
    },
    /// An encoder file where a model is wanted.
    #[error(
        "{}: this is an image encoder alone; give the BLIP-2 checkpoint with --model and this file with --vision",
        path.display()
    )]
    EncoderAlone {
        /// The file.
        path: PathBuf,
    },
    /// Neither Hugging Face nor LAVIS names.
    #[error(
        "{}: not a BLIP-2 checkpoint: there is no config.json beside it and its tensors do not have LAVIS's names (it begins with {})",
        path.display(),
        NameList(names)
    )]
    NotBlip2 {
        /// The file.
        path: PathBuf,
        /// Some of its names.
        names: Vec<String>,
    },
    /// A file or folder given for a part does not hold that part.
    #[error("{}: there is no {part} in it{hint}", path.display())]
    NotThePart {
        /// File or folder.
        path: PathBuf,
        /// What was looked for.
        part: &'static str,
        /// What to give instead.
        hint: &'static str,
    },
    /// Sizes that no tensor has as a dimension, and that are not those of a published model.
    #[error(
        "{}: the weights do not tell {}; write them into a JSON file in the form of config.json and give it with --config",
        path.display(),
        fields.join(", ")
    )]
    Undetermined {
        /// The checkpoint.
        path: PathBuf,
        /// Dotted names in `config.json`.
        fields: Vec<&'static str>,
    },
    /// A tensor that every BLIP-2 has is not there.
    #[error("{}: LAVIS checkpoint without {name}; it is damaged, or not a BLIP-2", path.display())]
    Lacks {
        /// The checkpoint.
        path: PathBuf,
        /// Hugging Face name of the tensor.
        name: String,
    },
    /// A JSON file that cannot be used.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's message.
        #[source]
        source: serde_json::Error,
    },
    /// Tensors that LAVIS has no place for.
    #[error("LAVIS has no BLIP-2 with these tensors: {}", NameList(names))]
    NoPlace {
        /// Hugging Face names.
        names: Vec<String>,
    },
    /// A part that LAVIS's BLIP-2 does not come with.
    #[error("LAVIS has BLIP-2 with EVA-CLIP or CLIP and with OPT or T5; this one has {family}")]
    NoSuchFamily {
        /// The part.
        family: &'static str,
    },
    /// Files cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// A part that a checkpoint leaves out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MissingPart {
    /// The image encoder of this width.
    Vision {
        /// Width of its tokens.
        width: usize,
    },
    /// The language model.
    Language {
        /// OPT or T5.
        family: &'static str,
        /// Width of its embeddings.
        width: usize,
    },
    /// The tokenizer of the Q-Former.
    QueryTokenizer,
}

impl fmt::Display for MissingPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vision { width: 1408 } => {
                f.write_str("the image encoder EVA-CLIP ViT-g (--vision FILE, LAVIS's eva_vit_g.pth)")
            }
            Self::Vision { width: 1024 } => {
                f.write_str("the image encoder CLIP ViT-L (--vision FILE, LAVIS's clip_vit_L.pth)")
            }
            Self::Vision { width } => write!(f, "an image encoder of width {width} (--vision FILE)"),
            Self::Language { family, width } => {
                let id = match (*family, width) {
                    ("OPT", 2560) => "facebook/opt-2.7b",
                    ("OPT", 4096) => "facebook/opt-6.7b",
                    ("T5", 2048) => "google/flan-t5-xl",
                    ("T5", 4096) => "google/flan-t5-xxl",
                    _ => {
                        return write!(
                            f,
                            "the {family} language model of width {width} (--llm DIR|HUB_ID)"
                        );
                    }
                };
                write!(f, "the language model (--llm DIR|HUB_ID, for example {id})")
            }
            Self::QueryTokenizer => {
                f.write_str("the tokenizer of the Q-Former (--tokenizer DIR, the files of bert-base-uncased)")
            }
        }
    }
}

struct Sentences<'a>(&'a [MissingPart]);

impl fmt::Display for Sentences<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in self.0.iter().enumerate() {
            write!(f, "{}{part}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}
