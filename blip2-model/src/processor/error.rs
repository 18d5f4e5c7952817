//! What can go wrong between a file (or a string) and the numbers that a model takes.
//!
//! Every variant names the file or the setting at fault; messages end with what to do next.

use std::path::PathBuf;

/// An error that a foreign library returned without a public type.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Failures of image decoding, resizing, preprocessing and tokenisation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessorError {
    /// A file could not be opened or read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// An image of zero bytes.
    #[error("{image} is empty (0 bytes): download or copy it again")]
    EmptyImage {
        /// File name, or the label given with the bytes.
        image: String,
    },

    /// The first bytes match none of the formats that are read.
    #[error("{image} is not a JPEG, PNG or WebP file: convert it to one of these")]
    UnknownImageFormat {
        /// File name, or the label given with the bytes.
        image: String,
    },

    /// The header announces more pixels than the limit allows; nothing was decoded.
    #[error(
        "{image} has {width} x {height} pixels, more than the limit of {limit}: \
         shrink it, or raise the pixel limit if the file is trusted"
    )]
    ImageTooLarge {
        /// File name, or the label given with the bytes.
        image: String,
        /// Width in the header, pixels.
        width: u32,
        /// Height in the header, pixels.
        height: u32,
        /// Largest allowed `width * height`.
        limit: u64,
    },

    /// The data ends before the picture does.
    #[error("{image} is truncated: the file ends before the picture is complete; copy it again")]
    TruncatedImage {
        /// File name, or the label given with the bytes.
        image: String,
    },

    /// The file is of a known format, but damaged or using a feature that is not read.
    #[error("cannot decode {image}: {source}")]
    DecodeImage {
        /// File name, or the label given with the bytes.
        image: String,
        /// What the decoder said.
        source: image::ImageError,
    },

    /// An image, crop box or target without pixels, or a box that leaves the image.
    #[error(
        "cannot resize box ({left}, {top}, {right}, {bottom}) of a {width} x {height} image to \
         {out_width} x {out_height}: the box must lie inside the image and no side may be 0"
    )]
    ResizeBox {
        /// Left edge of the box, inclusive.
        left: u32,
        /// Top edge of the box, inclusive.
        top: u32,
        /// Right edge of the box, exclusive.
        right: u32,
        /// Bottom edge of the box, exclusive.
        bottom: u32,
        /// Width of the image.
        width: u32,
        /// Height of the image.
        height: u32,
        /// Requested width.
        out_width: u32,
        /// Requested height.
        out_height: u32,
    },

    /// Images of one batch came out in different sizes.
    #[error(
        "image {index} of the batch becomes {height} x {width} pixels, the first one \
         {first_height} x {first_width}: give the processor a fixed size, or a crop size"
    )]
    MixedBatch {
        /// Position of the first image that differs.
        index: usize,
        /// Its height after preprocessing.
        height: u32,
        /// Its width after preprocessing.
        width: u32,
        /// Height of image 0 after preprocessing.
        first_height: u32,
        /// Width of image 0 after preprocessing.
        first_width: u32,
    },

    /// A JSON file that is not JSON, or whose fields have the wrong type.
    #[error("{path} is not valid: {source}")]
    InvalidJson {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        source: serde_json::Error,
    },

    /// A preprocessing setting whose meaning is not implemented.
    #[error("preprocessor setting `{field}` = {found} is not supported: expected {expected}")]
    UnsupportedSetting {
        /// Name of the field as Hugging Face spells it.
        field: String,
        /// The value found.
        found: serde_json::Value,
        /// What would be accepted.
        expected: &'static str,
    },

    /// A folder holds none of the files from which the tokenizer can be built.
    #[error("no tokenizer in {folder}: looked for {looked_for}. {remedy}")]
    MissingTokenizer {
        /// The folder.
        folder: PathBuf,
        /// The file names tried, as a sentence.
        looked_for: &'static str,
        /// How to obtain one of them.
        remedy: &'static str,
    },

    /// A tokenizer file that cannot be understood.
    #[error(
        "{path} is not a usable tokenizer file: {source}; fetch it again from the checkpoint's repository"
    )]
    InvalidTokenizer {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: Cause,
    },

    /// An added token would not get the id that the checkpoint was trained with.
    #[error(
        "token `{token}` should have id {expected} according to {path}, but the vocabulary gives it \
         {found}: the tokenizer files belong to different checkpoints"
    )]
    AddedTokenId {
        /// The file that states the id.
        path: PathBuf,
        /// Text of the token.
        token: String,
        /// Id in the file.
        expected: u32,
        /// Id that the vocabulary leads to.
        found: u32,
    },

    /// An operation needs a special token that this tokenizer lacks.
    #[error("the tokenizer has no {role} token: add `{role}_token` to tokenizer_config.json")]
    MissingSpecialToken {
        /// Role of the token, such as `pad`.
        role: &'static str,
    },

    /// The length limit leaves no room for the special tokens.
    #[error("max_length {max_length} is too small: {special} special tokens are added to every text")]
    MaxLength {
        /// The limit asked for, tokens.
        max_length: usize,
        /// Special tokens added to one text.
        special: usize,
    },

    /// A text is longer than the fixed length to which a batch is padded.
    #[error("text {index} has {length} tokens, more than the {target} to pad to: set max_length as well")]
    PadLength {
        /// Position of the text in the batch.
        index: usize,
        /// Its length, tokens.
        length: usize,
        /// The fixed length.
        target: usize,
    },

    /// The tokenizer library refused a text or ids.
    #[error("tokenisation failed: {source}")]
    Tokenize {
        /// What the library said.
        source: Cause,
    },
}
