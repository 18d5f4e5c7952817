//! A short proof that two checkpoints hold the same image side, without reading all of it: names, dtypes, shapes,
//! and samples of every tensor. Anything trained differs in every sample; a copy under another name does not.

use sha2::{Digest, Sha256};

use super::error::Result;
use super::source::TensorSource;

/// Prefixes of language models in the files that are read here: their weights do not change an image embedding.
const LANGUAGE: [&str; 4] = ["language_model.", "opt_model.", "t5_model.", "llm_model."];

/// Samples per tensor, and bytes of each.
const SAMPLES: usize = 8;
const SAMPLE: usize = 64;

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 over everything but the language model.
pub fn vision_and_bridge(source: &dyn TensorSource) -> Result<[u8; 32]> {
    let mut infos: Vec<_> = source
        .infos()
        .iter()
        .filter(|info| !LANGUAGE.iter().any(|prefix| info.name.starts_with(prefix)))
        .collect();
    infos.sort_by(|a, b| a.name.cmp(&b.name));
    let mut hash = Sha256::new();
    for info in infos {
        hash.update(format!("{} {} {:?}\n", info.name, info.dtype, info.shape));
        let tensor = source.get(&info.name)?;
        let bytes: &[u8] = tensor.bytes();
        if bytes.len() <= SAMPLES * SAMPLE {
            hash.update(bytes);
            continue;
        }
        for i in 0..SAMPLES {
            let at = (bytes.len() - SAMPLE) / (SAMPLES - 1) * i;
            hash.update(&bytes[at..at + SAMPLE]);
        }
    }
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::super::checkpoint_dir;
    use super::*;
    use std::path::Path;

    #[test]
    fn tells_checkpoints_apart_and_knows_a_copy() {
        let parity = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/parity");
        let of = |folder: &Path| {
            let opened = checkpoint_dir::open(folder).expect("a checkpoint");
            vision_and_bridge(opened.source.as_ref()).expect("a hash")
        };
        assert_ne!(of(&parity.join("opt")), of(&parity.join("itm")));
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::copy(
            parity.join("opt/model.safetensors"),
            dir.path().join("model.safetensors"),
        )
        .expect("copied");
        assert_eq!(of(dir.path()), of(&parity.join("opt")));
    }
}
