//! LAVIS checkpoints (`.pth`): their names, what they leave out, and the configuration that they imply. Everything
//! is shown under Hugging Face names, so that the rest of the engine knows one family only.

pub mod detect;
mod error;
mod finish;
pub mod names;
pub mod open;
pub mod table;
mod tokenizers;

pub use error::{LavisError, MissingPart};
pub use names::{first_blocks, is_bare_encoder, is_lavis, under_huggingface_names, under_lavis_names};
pub use open::LavisParts;
pub use table::{Family, to_huggingface};
