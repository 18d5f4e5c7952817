//! `config.json` of a BLIP-2 folder -> typed configuration (`transformers/models/blip_2/configuration_blip_2.py`).
//!
//! Hugging Face field names. A value that this engine cannot honour is an error, never ignored.

use serde::{Deserialize, Serialize};

use crate::qformer::QFormerConfig;
use crate::vision::VisionConfig;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not JSON, or a field has the wrong type.
    #[error("config.json: {source}; compare it with the model's page on the hub")]
    Json {
        /// The parser's message, with line and column.
        #[from]
        source: serde_json::Error,
    },
    /// A field has a value outside what is implemented.
    #[error("config.json: {field} = {value} is not supported: {reason}")]
    Unsupported {
        /// Dotted path of the field.
        field: &'static str,
        /// Its value.
        value: String,
        /// Why, or what would be accepted.
        reason: &'static str,
    },
}
