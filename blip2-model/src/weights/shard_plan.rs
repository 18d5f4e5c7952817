//! Which tensor goes to which file of a Hugging Face folder, and which files of a folder are weights.

use std::path::{Path, PathBuf};

use super::error::{Result, WeightsError};
use super::tensor::TensorInfo;

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// File names of `count` shards.
pub(super) fn shard_names(count: usize) -> Vec<String> {
    match count {
        0 | 1 => vec![SINGLE.into()],
        n => (1..=n)
            .map(|i| format!("model-{i:05}-of-{n:05}.safetensors"))
            .collect(),
    }
}

/// Tensors in order of name, cut where a shard would exceed the limit.
pub(super) fn split(infos: &[TensorInfo], max_shard_bytes: u64) -> Vec<Vec<&TensorInfo>> {
    let mut sorted: Vec<&TensorInfo> = infos.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let mut shards: Vec<Vec<&TensorInfo>> = vec![Vec::new()];
    let mut room = max_shard_bytes;
    for info in sorted {
        let bytes = info.byte_len() as u64;
        match shards.last_mut() {
            Some(shard) if shard.is_empty() || bytes <= room => shard.push(info),
            _ => {
                shards.push(vec![info]);
                room = max_shard_bytes;
            }
        }
        room = room.saturating_sub(bytes);
    }
    shards
}

/// Safetensors weights in a folder, the index last.
pub(super) fn existing_weights(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| WeightsError::io(folder, e))? {
        let path = entry.map_err(|e| WeightsError::io(folder, e))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let rank = match name {
            SINGLE => 1,
            INDEX => 2,
            name if is_shard_name(name) => 0,
            _ => continue,
        };
        files.push((rank, path));
    }
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// `model-00001-of-00002.safetensors`
fn is_shard_name(name: &str) -> bool {
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    let middle = name
        .strip_prefix("model-")
        .and_then(|n| n.strip_suffix(".safetensors"));
    middle
        .and_then(|m| m.split_once("-of-"))
        .is_some_and(|(i, n)| digits(i) && digits(n))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tensor::DType;
    use super::*;

    #[test]
    fn only_weights_count_as_weights() {
        let dir = tempfile::tempdir().unwrap();
        let weights = [
            "model-00001-of-00002.safetensors",
            "model.safetensors",
            "model.safetensors.index.json",
        ];
        for name in weights.iter().chain(&[
            "model-1-of-2.safetensors",
            "adapter_model.safetensors",
            "config.json",
        ]) {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(
            existing_weights(dir.path()).unwrap(),
            weights.map(|name| dir.path().join(name))
        );
        for name in shard_names(12) {
            assert!(is_shard_name(&name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn splitting_keeps_every_tensor_and_the_limit(sizes in proptest::collection::vec(0usize..50, 0..30), limit in 1u64..120) {
            let infos: Vec<_> = sizes.iter().enumerate().map(|(i, &n)| TensorInfo { name: format!("{i:02}"), dtype: DType::U8, shape: vec![n] }).collect();
            let shards = split(&infos, limit);
            let flat: Vec<&TensorInfo> = shards.iter().flatten().copied().collect();
            prop_assert_eq!(flat, infos.iter().collect::<Vec<_>>());
            for shard in &shards {
                let bytes: usize = shard.iter().map(|info| info.byte_len()).sum();
                // a tensor above the limit is alone but for empty ones
                prop_assert!(shard.iter().filter(|info| info.byte_len() > 0).count() <= 1 || bytes as u64 <= limit);
                prop_assert!(shards.len() == 1 || !shard.is_empty());
            }
        }
    }
}
