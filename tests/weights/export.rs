//! A model that was loaded and written again: the same bytes, a complete folder, nothing overwritten.

use std::path::{Path, PathBuf};

use blip2_model::backend::Flex;
use blip2_model::blip2::Blip2;
use blip2_model::checkpoint::{
    Companions, DtypePolicy, ExportError, ExportOptions, PartDtype, export_folder,
};
use blip2_model::config::Blip2Config;
use blip2_model::weights::writer::WriteOptions;
use blip2_model::weights::{DType, TensorSource, WeightsError, checkpoint_dir};

use crate::support::fixture;

/// One file, shards, a post-norm model, a torch pickle, a retrieval model.
const FOLDERS: [&str; 5] = ["opt", "opt-legacy", "opt-350m-form", "t5", "itm"];

fn load(folder: &Path, policy: DtypePolicy) -> Blip2<Flex> {
    let opened = checkpoint_dir::open(folder).unwrap();
    let config = Blip2Config::from_json(opened.config_json.as_deref().unwrap()).unwrap();
    let loaded = Blip2::load(config, opened.source.as_ref(), policy, false, &Default::default());
    loaded.unwrap_or_else(|e| panic!("{e}")).0
}

fn folder(name: &str) -> PathBuf {
    fixture(&format!("parity/{name}"))
}

fn options(name: &str, max_shard_bytes: u64) -> ExportOptions {
    ExportOptions {
        write: WriteOptions {
            max_shard_bytes,
            overwrite: false,
        },
        companions: Companions::of_folder(folder(name)),
        ..ExportOptions::default()
    }
}

/// Every tensor of `written` has the bytes that `source` has under that name.
fn assert_same_bytes(written: &dyn TensorSource, source: &dyn TensorSource) {
    for info in written.infos() {
        let (ours, theirs) = (written.get(&info.name).unwrap(), source.get(&info.name).unwrap());
        assert_eq!(ours.dtype(), theirs.dtype(), "{}", info.name);
        assert_eq!(ours.shape(), theirs.shape(), "{}", info.name);
        assert!(ours.bytes() == theirs.bytes(), "{} differs", info.name);
    }
}

#[test]
fn a_loaded_model_is_written_with_the_bytes_it_came_with() {
    for (name, shard) in FOLDERS
        .iter()
        .flat_map(|name| [(*name, u64::MAX), (*name, 30_000)])
    {
        let source = checkpoint_dir::open(folder(name)).unwrap();
        let model = load(&folder(name), DtypePolicy::default());
        let out = tempfile::tempdir().unwrap();
        let files = export_folder(&model, out.path(), &options(name, shard)).unwrap();
        assert!(
            files.iter().all(|file| file.exists()),
            "{name}: a file was announced and not written"
        );
        let written = checkpoint_dir::open(out.path()).unwrap();
        assert_same_bytes(written.source.as_ref(), source.source.as_ref());
        assert_eq!(
            written.config_json, source.config_json,
            "{name}: fields of config.json were lost"
        );
        // complete: it loads without --allow-partial, and so does everything beside it
        load(out.path(), DtypePolicy::default());
        for file in Companions::of_folder(folder(name)).names() {
            assert_eq!(
                std::fs::read(out.path().join(file)).unwrap(),
                std::fs::read(folder(name).join(file)).unwrap()
            );
        }
    }
}

#[test]
fn a_dtype_per_part_is_honoured_and_norms_stay_f32() {
    let model = load(&folder("opt"), DtypePolicy::default());
    let out = tempfile::tempdir().unwrap();
    let options = ExportOptions {
        policy: DtypePolicy::frozen(PartDtype::BF16),
        ..options("opt", u64::MAX)
    };
    export_folder(&model, out.path(), &options).unwrap();
    let written = checkpoint_dir::open(out.path()).unwrap().source;
    let source = checkpoint_dir::open(folder("opt")).unwrap().source;
    for info in written.infos() {
        let frozen = ["vision_model.e", "language_model."]
            .iter()
            .any(|part| info.name.starts_with(part));
        let narrow = frozen && info.shape.len() > 1;
        assert_eq!(info.dtype == DType::BF16, narrow, "{}", info.name);
        let expected = source.get(&info.name).unwrap().convert(info.dtype).unwrap();
        assert!(
            written.get(&info.name).unwrap().bytes() == expected.bytes(),
            "{}",
            info.name
        );
    }
    assert!(written.infos().iter().any(|info| info.dtype == DType::BF16));
    // and a model that holds bf16 is written as bf16 without being asked
    let narrow = load(out.path(), DtypePolicy::default());
    let again = tempfile::tempdir().unwrap();
    export_folder(&narrow, again.path(), &ExportOptions::default()).unwrap();
    let again = checkpoint_dir::open(again.path()).unwrap().source;
    assert_eq!(again.infos().len(), written.infos().len());
    assert_same_bytes(again.as_ref(), written.as_ref());
}

#[test]
fn a_config_is_written_when_none_is_given() {
    let model = load(&folder("t5"), DtypePolicy::default());
    let out = tempfile::tempdir().unwrap();
    export_folder(&model, out.path(), &ExportOptions::default()).unwrap();
    let json = std::fs::read_to_string(out.path().join("config.json")).unwrap();
    assert_eq!(Blip2Config::from_json(&json).unwrap(), model.config);
    // a config.json of some other model is not taken over
    let other = tempfile::tempdir().unwrap();
    export_folder(&model, other.path(), &options("opt", u64::MAX)).unwrap();
    assert_eq!(
        std::fs::read_to_string(other.path().join("config.json")).unwrap(),
        json
    );
}

#[test]
fn nothing_is_overwritten_without_being_asked() {
    let model = load(&folder("opt"), DtypePolicy::default());
    let out = tempfile::tempdir().unwrap();
    let foreign = out.path().join("tokenizer.json");
    std::fs::write(&foreign, "mine").unwrap();
    let refused = export_folder(&model, out.path(), &options("opt", u64::MAX)).unwrap_err();
    let ExportError::Weights(error) = &refused else {
        panic!("{refused}")
    };
    assert!(
        matches!(error.as_ref(), WeightsError::AlreadyExists { path } if *path == foreign),
        "{refused}"
    );
    assert_eq!(
        std::fs::read_dir(out.path()).unwrap().count(),
        1,
        "something was written"
    );
    let mut forced = options("opt", u64::MAX);
    forced.write.overwrite = true;
    export_folder(&model, out.path(), &forced).unwrap();
    assert_ne!(std::fs::read(&foreign).unwrap(), b"mine");
    // weights in the way count even where every other file is the same
    let refused = export_folder(&model, out.path(), &options("opt", u64::MAX)).unwrap_err();
    assert!(refused.to_string().contains("model.safetensors"), "{refused}");
}

#[test]
fn t5_is_never_written_in_half_precision() {
    let model = load(&folder("t5"), DtypePolicy::default());
    let out = tempfile::tempdir().unwrap();
    let options = ExportOptions {
        policy: DtypePolicy::frozen(PartDtype::F16),
        ..ExportOptions::default()
    };
    assert!(matches!(
        export_folder(&model, out.path(), &options),
        Err(ExportError::Policy(_))
    ));
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}
