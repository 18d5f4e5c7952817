//! Initial weights drawn by name from a seeded generator on the host, so that a run starts with the same
//! numbers on every backend (LAVIS `blip2.py`, `eva_vit.py`; PyTorch's `nn.Linear`).

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{TensorData, backend::Backend};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use crate::params::{self, ParamInfo};

/// Standard deviation of everything that BERT or timm draws.
const STD: f64 = 0.02;

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Draw {
    /// The same value everywhere.
    Constant(f32),
    /// `N(0, std)`.
    Normal(f64),
    /// `N(0, std)` without values beyond two standard deviations.
    TruncatedNormal(f64),
    /// `U(-bound, bound)`.
    Uniform(f64),
}

/// Shapes of a module's parameters by name.
pub type Shapes = BTreeMap<String, Vec<usize>>;

impl Draw {
    /// `len` values from the stream that belongs to `(seed, name)`.
    pub fn values(self, seed: u64, name: &str, len: usize) -> Vec<f32> {
        let mut rng = keyed_rng(seed, "weight", &[name.as_bytes()]);
        let rng = &mut rng;
        (0..len)
            .map(|_| match self {
                Self::Constant(value) => value,
                Self::Normal(std) => (std * standard_normal(rng)) as f32,
                Self::TruncatedNormal(std) => loop {
                    let x = standard_normal(rng);
                    if x.abs() <= 2.0 {
                        break (std * x) as f32;
                    }
                },
                Self::Uniform(bound) => (bound * (2.0 * rng.random::<f64>() - 1.0)) as f32,
            })
            .collect()
    }
}

/// Draws every parameter of `module`; `rule` sees the parameter and all shapes of the module.
pub fn initialise<B: Backend, M: Module<B>>(
    module: M,
    seed: u64,
    rule: impl Fn(&ParamInfo, &Shapes) -> Draw,
) -> M {
    let infos = params::list(&module).into_iter();
    let shapes: Shapes = infos.map(|info| (info.name, info.shape)).collect();
    params::replace(module, |info| {
        let values = rule(info, &shapes).values(seed, &info.name, info.len());
        Some(TensorData::new(values, info.shape.clone()))
    })
}

/// Start of [`Bridge`](blip2_model::qformer::Bridge): norms 1 and 0, biases 0, temperature 0.07, projections
/// and matching head `U(-1/sqrt(in), 1/sqrt(in))` including their biases, everything else `N(0, 0.02)`.
///
/// Stage 1 then loads BERT over it and copies the text feed-forward to the queries' (see
/// [`copy_text_to_query`]).
pub fn bridge_rule(info: &ParamInfo, shapes: &Shapes) -> Draw {
    let (owner, leaf) = info.name.rsplit_once('.').unwrap_or(("", &info.name));
    let part = info.name.split('.').next().unwrap_or_default();
    if leaf == "temp" {
        return Draw::Constant(0.07);
    }
    if part.ends_with("_projection") || part == "itm_head" {
        let weight = &shapes[&format!("{owner}.weight")];
        return Draw::Uniform((weight[1] as f64).powf(-0.5));
    }
    let is_norm = owner.ends_with("norm") || owner == "ln_vision";
    match leaf {
        "bias" => Draw::Constant(0.0),
        "weight" if is_norm => Draw::Constant(1.0),
        _ => Draw::Normal(STD),
    }
}

/// Start of an image encoder: norms 1 and 0, biases 0, weights from a truncated normal of 0.02, the output
/// projections of block `i` divided by `sqrt(2 (i + 1))`.
pub fn encoder_rule(info: &ParamInfo, _shapes: &Shapes) -> Draw {
    let (owner, leaf) = info.name.rsplit_once('.').unwrap_or(("", &info.name));
    let owner_is = |suffix: &str| owner.ends_with(suffix);
    match leaf {
        "bias" => return Draw::Constant(0.0),
        "weight" if owner_is("norm") || owner_is("norm1") || owner_is("norm2") => {
            return Draw::Constant(1.0);
        }
        _ => {}
    }
    let block = block_index(&info.name);
    match block.filter(|_| owner_is("self_attn.projection") || owner_is("mlp.fc2")) {
        Some(i) => Draw::TruncatedNormal(STD / (2.0 * (i + 1) as f64).sqrt()),
        None => Draw::TruncatedNormal(STD),
    }
}

/// `i` of a name that contains `layers.i.`.
pub fn block_index(name: &str) -> Option<usize> {
    let mut parts = name.split('.').skip_while(|part| *part != "layers");
    parts.nth(1)?.parse().ok()
}

/// Copies every text feed-forward of the Q-Former to the queries' one, as stage 1 does after loading BERT.
pub fn copy_text_to_query<B: Backend, M: Module<B>>(module: M) -> M {
    let values = params::values(&module);
    params::replace(module, |info| {
        let source = info.name.replace("ffn_query", "ffn_text");
        let value = values.get(&source).filter(|_| source != info.name)?;
        Some(TensorData::new(params::to_host(value), info.shape.clone()))
    })
}

/// A generator that belongs to `(seed, purpose, parts)` and to nothing else.
pub fn keyed_rng(seed: u64, purpose: &str, parts: &[&[u8]]) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    for part in std::iter::once(purpose.as_bytes()).chain(parts.iter().copied()) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    ChaCha8Rng::from_seed(hash.finalize().into())
}

/// Box-Muller; the second value of each pair is thrown away, so that a position in the stream is a count.
fn standard_normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_depend_on_the_name_and_have_the_right_moments() {
        let n = 40_000;
        let a = Draw::Normal(0.02).values(1, "a", n);
        assert_ne!(a, Draw::Normal(0.02).values(1, "b", n));
        assert_eq!(a[..10], Draw::Normal(0.02).values(1, "a", 10));
        let std = (a.iter().map(|x| f64::from(x * x)).sum::<f64>() / n as f64).sqrt();
        // relative deviation of a standard deviation is 1 / sqrt(2 n) = 0.0035; four of them
        assert!((std / 0.02 - 1.0).abs() < 0.014, "{std}");
        let cut = Draw::TruncatedNormal(0.02).values(1, "a", n);
        assert!(cut.iter().all(|x| x.abs() <= 0.04));
        let flat = Draw::Uniform(0.5).values(1, "a", n);
        assert!(flat.iter().all(|x| x.abs() <= 0.5) && flat.iter().any(|x| x.abs() > 0.49));
    }

    #[test]
    fn rules_follow_the_reference() {
        let shapes = Shapes::from([("itm_head.weight".to_string(), vec![2, 16])]);
        let rule = |name: &str| {
            let info = ParamInfo {
                name: name.into(),
                shape: vec![2],
            };
            bridge_rule(&info, &shapes)
        };
        assert_eq!(rule("itm_head.bias"), Draw::Uniform(0.25));
        assert_eq!(rule("temp"), Draw::Constant(0.07));
        assert_eq!(
            rule("qformer.layers.3.attention.layer_norm.weight"),
            Draw::Constant(1.0)
        );
        assert_eq!(rule("qformer.layernorm.weight"), Draw::Constant(1.0));
        assert_eq!(rule("ln_vision.weight"), Draw::Constant(1.0));
        assert_eq!(rule("qformer.layers.3.attention.query.bias"), Draw::Constant(0.0));
        assert_eq!(rule("query_tokens"), Draw::Normal(0.02));
        let encoder = |name: &str| {
            let info = ParamInfo {
                name: name.into(),
                shape: vec![2],
            };
            encoder_rule(&info, &shapes)
        };
        assert_eq!(encoder("layers.1.layer_norm1.weight"), Draw::Constant(1.0));
        assert_eq!(encoder("layers.1.mlp.fc2.weight"), Draw::TruncatedNormal(0.01));
        assert_eq!(encoder("layers.1.mlp.fc1.weight"), Draw::TruncatedNormal(0.02));
        assert_eq!(encoder("embeddings.weight"), Draw::TruncatedNormal(0.02));
    }
}
