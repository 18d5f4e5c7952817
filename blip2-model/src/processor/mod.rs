//! From files and strings to the numbers that a model takes, and back to text.
//!
//! Images: [`decode`] -> [`mod@resize`] -> [`image`] (pixel values). Texts: [`text`] (cleaning, prompts) ->
//! [`tokenizer`] (ids) -> [`detokenize`] (streamed text). No tensors here: results are plain vectors.

pub mod decode;
pub mod detokenize;
pub mod error;
pub mod filter;
mod guard;
pub mod image;
pub mod image_config;
mod passes;
pub mod resize;
pub mod text;
pub mod tokenizer;
mod tokenizer_files;

#[cfg(test)]
mod fixtures;

pub use ::image::RgbImage;

pub use self::decode::{Alpha, DecodeOptions, ImageHeader, decode_bytes, decode_file, read_header};
pub use self::detokenize::DetokenizeStream;
pub use self::error::ProcessorError;
pub use self::filter::Filter;
pub use self::image::{ImageProcessor, PixelBatch};
pub use self::image_config::{ImageProcessorConfig, ResizeTo};
pub use self::resize::{PassOrder, PixelBox, Resampling, resize, resize_box, resize_crop};
pub use self::tokenizer::{
    EncodeOptions, PadTo, Padding, Side, SpecialIds, TextTokenizer, TokenBatch, TokenizerKind,
};
