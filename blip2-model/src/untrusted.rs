//! Every way in for bytes from outside, one call each: what the fuzz targets (`tests/fuzz/`) and the test of stored nasty
//! files call. None of these may panic or ask for memory out of proportion to the input, whatever the bytes are.

use std::path::Path;

use bytes::Bytes;

use crate::config::Blip2Config;
use crate::generate::GenerateOptions;
use crate::language::Architecture;
use crate::processor::{
    DecodeOptions, EncodeOptions, ImageProcessorConfig, TextTokenizer, TokenizerKind, decode_bytes,
};
use crate::weights::TensorSource;
use crate::weights::pickle::Pickle;
use crate::weights::safetensors::SafetensorsFile;
use crate::weights::sharded::ShardIndex;
use crate::weights::torch::TorchFile;

/// How many readers took the bytes and how many refused them with a typed error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Taken.
    pub good: u32,
    /// Refused.
    pub bad: u32,
}

impl Tally {
    fn add<T, E: std::error::Error>(&mut self, result: Result<T, E>) {
        match result {
            Ok(_) => self.good += 1,
            Err(error) => {
                // a message must be printable too
                let _ = error.to_string();
                self.bad += 1;
            }
        }
    }
}

/// As `config.json`, `preprocessor_config.json` and `generation_config.json`.
pub fn config(bytes: &[u8]) -> Tally {
    let mut tally = Tally::default();
    let text = String::from_utf8_lossy(bytes);
    tally.add(Blip2Config::from_json(&text));
    tally.add(ImageProcessorConfig::from_json(&text, Path::new("untrusted")));
    for architecture in [Architecture::DecoderOnly, Architecture::EncoderDecoder] {
        tally.add(GenerateOptions::hf(&text, architecture));
    }
    tally
}

/// As a safetensors file; tensors are read where the header is accepted.
pub fn safetensors(bytes: &[u8]) -> Tally {
    let mut tally = Tally::default();
    let file = SafetensorsFile::from_bytes("untrusted", Bytes::copy_from_slice(bytes));
    if let Ok(file) = &file {
        read_all(&mut tally, file);
    }
    tally.add(file);
    tally
}

/// As a torch file, and as the pickle inside one.
pub fn torch(bytes: &[u8]) -> Tally {
    let mut tally = Tally::default();
    tally.add(Pickle::parse(bytes));
    let file = TorchFile::from_bytes("untrusted", Bytes::copy_from_slice(bytes));
    if let Ok(file) = &file {
        read_all(&mut tally, file);
    }
    tally.add(file);
    tally
}

/// As the index of a sharded checkpoint.
pub fn index(bytes: &[u8]) -> Tally {
    let mut tally = Tally::default();
    tally.add(ShardIndex::from_bytes(Path::new("untrusted"), bytes));
    tally
}

/// As each file of a tokenizer's folder, for each family; the ones that load encode and decode a sentence.
pub fn tokenizer(bytes: &[u8]) -> Tally {
    let mut tally = Tally::default();
    let cases = [
        ("tokenizer.json", TokenizerKind::Bert),
        ("tokenizer.json", TokenizerKind::Opt),
        ("tokenizer.json", TokenizerKind::T5),
        ("vocab.txt", TokenizerKind::Bert),
    ];
    for (name, kind) in cases {
        let folder = match tempfile::tempdir() {
            Ok(folder) => folder,
            Err(_) => return tally,
        };
        if std::fs::write(folder.path().join(name), bytes).is_err() {
            return tally;
        }
        let tokenizer = TextTokenizer::from_folder(folder.path(), kind);
        if let Ok(tokenizer) = &tokenizer {
            let ids = tokenizer.encode("a boat, \u{1f6a4} é\n", &EncodeOptions::default());
            if let Ok(ids) = &ids {
                tally.add(tokenizer.decode(ids, true));
            }
            tally.add(ids);
        }
        tally.add(tokenizer);
    }
    tally
}

/// As a picture; one that claims more than a million pixels is refused instead of decoded, to keep runs short.
pub fn image(bytes: &[u8]) -> Tally {
    let mut tally = Tally::default();
    for allow_truncated in [false, true] {
        let options = DecodeOptions {
            max_pixels: 1 << 20,
            allow_truncated,
            ..DecodeOptions::default()
        };
        tally.add(decode_bytes(bytes, "untrusted", &options));
    }
    tally
}

fn read_all(tally: &mut Tally, source: &dyn TensorSource) {
    for info in source.infos().iter().take(100) {
        // a view may repeat one stored number without end
        if info.byte_len() < 1 << 24 {
            tally.add(source.get(&info.name));
        }
    }
}
