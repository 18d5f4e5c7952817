//! From a line of configuration to an open data set: what a path is decides how it is read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::annotations::AnnotationConfig;
use super::checked;
use super::folder::open_folder;
use super::formats::Format;
use super::mixture::Source;
use super::pattern::expand;
use super::records::Container;
use super::sample::DataError;
use super::shard::{ShardSet, is_shard};
use super::stream::Data;
use super::webdataset::TarFields;

/// One data set of a recipe. Only `path` is needed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Shards (`{000..012}`, `*`, `a::b`, `-`), an annotation file, or a folder.
    pub path: String,
    /// Name for logs; the path when absent.
    #[serde(default)]
    pub name: Option<String>,
    /// Annotation files: folder of the pictures.
    #[serde(default)]
    pub images: Option<PathBuf>,
    /// Annotation files: name in [`super::formats::FORMATS`].
    #[serde(default)]
    pub format: Option<String>,
    /// Karpathy files: "train", "val" or "test".
    #[serde(default)]
    pub split: Option<String>,
    /// Official VQA files: the annotations beside the questions.
    #[serde(default)]
    pub answers: Option<PathBuf>,
    /// One sample per caption (default) or one per picture.
    #[serde(default)]
    pub pairs: Option<bool>,
    /// Relative frequency in a mixture.
    #[serde(default)]
    pub ratio: Option<f64>,
    /// Shards: number of samples, as `data stats` counts them.
    #[serde(default)]
    pub samples: Option<u64>,
    /// Tar shards: members and limits.
    #[serde(default)]
    pub tar: TarFields,
    /// Parquet shards: columns.
    #[cfg(feature = "parquet")]
    #[serde(default)]
    pub parquet: super::parquet::ParquetFields,
}

impl SourceConfig {
    /// `path` with everything else left to find out.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            name: None,
            images: None,
            format: None,
            split: None,
            answers: None,
            pairs: None,
            ratio: None,
            samples: None,
            tar: TarFields::default(),
            #[cfg(feature = "parquet")]
            parquet: Default::default(),
        }
    }

    /// Opens the data set: reads annotation files, checks that shards exist.
    pub fn open(&self) -> Result<Source, DataError> {
        let name = self.name.clone().unwrap_or_else(|| self.path.clone());
        Ok(Source {
            name,
            data: self.data()?,
            ratio: self.ratio,
        })
    }

    fn data(&self) -> Result<Data, DataError> {
        let paths = expand(&self.path)?;
        let path = &paths[0];
        if paths.iter().all(|p| is_shard(p)) {
            return self.shards(paths);
        }
        if paths.len() > 1 {
            return Err(DataError::UnknownKind {
                path: self.path.clone().into(),
            });
        }
        let annotations = AnnotationConfig {
            images: self.images.clone(),
            format: self.format.clone().unwrap_or_else(|| Format::auto().name.into()),
            split: self.split.clone(),
            answers: self.answers.clone(),
            pairs: self.pairs.unwrap_or(true),
            ..AnnotationConfig::new(path)
        };
        if path.is_dir() {
            let shards = shards_in(path)?;
            return if shards.is_empty() {
                Ok(Data::Rows(Arc::new(open_folder(path, &annotations)?)))
            } else {
                self.shards(shards)
            };
        }
        if Container::of(path).is_none() {
            std::fs::metadata(path).map_err(DataError::io(path))?;
            return Err(DataError::UnknownKind { path: path.clone() });
        }
        Ok(Data::Rows(Arc::new(checked::open(&annotations)?)))
    }

    fn shards(&self, paths: Vec<PathBuf>) -> Result<Data, DataError> {
        if let Some(split) = &self.split {
            return Err(checked::no_splits(&self.path, split));
        }
        let mut set = ShardSet::new(paths)?;
        set.tar = self.tar.clone();
        set.samples = self.samples;
        #[cfg(feature = "parquet")]
        {
            set.parquet = self.parquet.clone();
        }
        Ok(Data::Shards(Arc::new(set)))
    }
}

/// Shards directly in `dir`, by name.
fn shards_in(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(DataError::io(dir))? {
        let path = entry.map_err(DataError::io(dir))?.path();
        if is_shard(&path) && path.is_file() {
            out.push(path);
        }
    }
    out.sort();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::testing::numbered_shards;
    use super::*;

    #[test]
    fn a_path_is_recognised() {
        let (dir, _) = numbered_shards(&[1, 1, 1], false);
        let base = dir.path().to_string_lossy().into_owned();
        let shards = |path: String| match SourceConfig::new(path).open().unwrap().data {
            Data::Shards(set) => set.paths.len(),
            Data::Rows(_) => 0,
        };
        assert_eq!(shards(format!("{base}/{{0..1}}.tar")), 2);
        assert_eq!(shards(format!("{base}/*.tar")), 3);
        assert_eq!(shards(base.clone()), 3);

        std::fs::create_dir(dir.path().join("f")).unwrap();
        std::fs::write(dir.path().join("f/captions.csv"), "image,caption\na.jpg,x\n").unwrap();
        let rows = |path: String| match SourceConfig::new(path).open().unwrap().data {
            Data::Rows(set) => set.len(),
            Data::Shards(_) => 0,
        };
        assert_eq!(rows(format!("{base}/f")), 1);
        assert_eq!(rows(format!("{base}/f/captions.csv")), 1);

        let coco = r#"{"images":[{"id":7,"file_name":"a.jpg"}],"annotations":[{"image_id":7,"caption":"x"},{"image_id":7,"caption":"y"}]}"#;
        std::fs::write(dir.path().join("coco.json"), coco).unwrap();
        assert_eq!(
            rows(format!("{base}/coco.json")),
            2,
            "the official layout, one row per caption"
        );
        let named = SourceConfig {
            format: Some("gqa".into()),
            ..SourceConfig::new(format!("{base}/coco.json"))
        };
        assert!(matches!(named.open().err(), Some(DataError::Layout { .. })));

        let split = SourceConfig {
            split: Some("test".into()),
            ..SourceConfig::new(format!("{base}/0.tar"))
        };
        assert!(matches!(split.open().err(), Some(DataError::NoSplits { .. })));

        let error = |path: String| SourceConfig::new(path).open().err();
        assert!(matches!(
            error(format!("{base}/none.tar")),
            Some(DataError::Io { .. })
        ));
        assert!(matches!(
            error(format!("{base}/none")),
            Some(DataError::Io { .. })
        ));
        std::fs::write(dir.path().join("x.bin"), "").unwrap();
        assert!(matches!(
            error(format!("{base}/x.bin")),
            Some(DataError::UnknownKind { .. })
        ));
        assert!(serde_json::from_str::<SourceConfig>(r#"{"path":"x","imges":"y"}"#).is_err());
    }
}
