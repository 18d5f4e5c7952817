//! Settings of a mixture, checked, and the digest that tells whether a saved position fits them.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::data::sample::DataError;
use crate::data::stream::{Data, Order, Split};

/// One data set of a mixture.
#[derive(Clone, Debug)]
pub struct Source {
    /// Name for logs.
    pub name: String,
    /// Its samples.
    pub data: Data,
    /// Relative frequency; for all sources or for none.
    pub ratio: Option<f64>,
}

/// What a draw decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Draw {
    /// The source of one sample: batches are mixed.
    #[default]
    Sample,
    /// The source of one batch of this many samples: batches are pure.
    Batch(u32),
}

/// How a mixture is read.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixtureConfig {
    /// Order of every source.
    pub order: Order,
    /// This process.
    pub split: Split,
    /// Grain of the mixture.
    pub draw: Draw,
    /// True: go on for ever (training by steps). False: every sample once, then the end.
    pub repeat: bool,
}

impl Default for MixtureConfig {
    fn default() -> Self {
        Self {
            order: Order::default(),
            split: Split::default(),
            draw: Draw::Sample,
            repeat: false,
        }
    }
}

pub(super) fn check(config: &MixtureConfig) -> Result<(), DataError> {
    let Split { rank, world, workers } = config.split;
    let bad = |field, value: u32, remedy| {
        Err(DataError::Setting {
            field,
            value: value.to_string(),
            remedy,
        })
    };
    match config.draw {
        _ if rank >= world => bad("rank", rank, "must be below the number of processes"),
        _ if workers == 0 => bad("workers", workers, "at least 1"),
        Draw::Batch(0) => bad("batch size", 0, "at least 1"),
        _ => Ok(()),
    }
}

pub(super) fn ratios(sources: &[Source], config: &MixtureConfig) -> Result<Option<Vec<f64>>, DataError> {
    let bad = |reason| Err(DataError::Ratios { reason });
    let given: Vec<f64> = sources.iter().filter_map(|s| s.ratio).collect();
    let sized = sources.iter().all(|s| match &s.data {
        Data::Rows(_) => true,
        Data::Shards(set) => set.samples.is_some() && !config.order.resample,
    });
    match (given.len(), sources.len()) {
        (_, 0) => bad("the mixture has no data set"),
        (0, 1) => Ok(None),
        (0, n) if matches!(config.draw, Draw::Batch(_)) => Ok(Some(vec![1.0; n])), // as LAVIS without ratios
        (0, _) if sized => Ok(None),
        (0, _) => {
            bad("shards of unknown size are mixed: give every data set a ratio, or the number of its samples")
        }
        (g, n) if g < n => bad("give a ratio to every data set or to none"),
        _ if given.iter().any(|r| !r.is_finite() || *r <= 0.0) => {
            bad("every ratio must be a positive number")
        }
        _ => Ok(Some(given)),
    }
}

/// File names without folders: data may move, its order may not change.
pub(super) fn setup(sources: &[Source], config: &MixtureConfig, ratios: Option<&[f64]>) -> String {
    let mut hash = Sha256::new();
    let name = |path: &std::path::Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
    for source in sources {
        hash.update(match &source.data {
            Data::Rows(set) => format!("rows {} {:?}\n", set.len(), name(set.shard().as_ref().as_ref())),
            Data::Shards(set) => {
                format!(
                    "shards {:?} {:?}\n",
                    set.samples,
                    set.paths.iter().map(|p| name(p)).collect::<Vec<_>>()
                )
            }
        });
    }
    let Split { workers, .. } = config.split;
    hash.update(format!(
        "{workers} {:?} {:?} {} {ratios:?}",
        config.order, config.draw, config.repeat
    ));
    hash.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect()
}
