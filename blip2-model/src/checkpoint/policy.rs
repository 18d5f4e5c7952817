//! Which dtype each part keeps its matrices in. Norms, biases and every other vector stay f32: they are
//! a thousandth of the bytes and most of the trouble.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::config::Blip2Config;
use crate::language::LanguageConfig;
use crate::nn::Kernels;
use crate::nn::kernels::{PACK_GROUP, WeightBits};
use crate::weights::DType;

/// The three parts of BLIP-2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Frozen image encoder.
    Vision,
    /// `ln_vision`, queries, Q-Former, projections, heads.
    QFormer,
    /// Frozen language model.
    Llm,
}

impl Part {
    /// The part that a module path belongs to.
    pub fn of(path: &str) -> Self {
        match path.split('.').next() {
            Some("vision") => Self::Vision,
            Some("language") => Self::Llm,
            _ => Self::QFormer,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vision => "vision",
            Self::QFormer => "qformer",
            Self::Llm => "llm",
        })
    }
}

/// Dtype of one part's matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PartDtype {
    /// As in the file.
    Auto,
    /// 4 bytes.
    F32,
    /// 2 bytes, 5 exponent bits.
    F16,
    /// 2 bytes, 8 exponent bits.
    BF16,
    /// Linear maps of the language model in 8 bits with a scale per 32 weights; everything else as in the file, but its
    /// tables and its output head in bf16 where the file has f32.
    Int8,
    /// The same in 4 bits.
    Int4,
}

impl PartDtype {
    /// Bits of packed linear maps, if they are packed.
    pub fn bits(self) -> Option<WeightBits> {
        match self {
            Self::Int8 => Some(WeightBits::Eight),
            Self::Int4 => Some(WeightBits::Four),
            _ => None,
        }
    }

    /// Reads the name of a dtype for a part that is never packed.
    pub fn unpacked(name: &str) -> Result<Self, UnknownDtype> {
        let dtype: Self = name.parse()?;
        match dtype.bits() {
            Some(_) => Err(UnknownDtype::Packed { name: name.into() }),
            None => Ok(dtype),
        }
    }
}

impl FromStr for PartDtype {
    type Err = UnknownDtype;

    fn from_str(s: &str) -> Result<Self, UnknownDtype> {
        match s {
            "auto" => Ok(Self::Auto),
            "f32" | "float32" => Ok(Self::F32),
            "f16" | "float16" | "fp16" => Ok(Self::F16),
            "bf16" | "bfloat16" => Ok(Self::BF16),
            "int8" => Ok(Self::Int8),
            "int4" => Ok(Self::Int4),
            _ => Err(UnknownDtype::Unknown { name: s.into() }),
        }
    }
}

/// A dtype name that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnknownDtype {
    /// Not one of the names.
    #[error("unknown dtype `{name}`; use auto, f32, f16, bf16, int8 or int4")]
    Unknown {
        /// The name.
        name: String,
    },
    /// A packed dtype for a part that is never packed.
    #[error("{name} packs linear maps of the language model alone; use auto, f32, f16 or bf16")]
    Packed {
        /// The name.
        name: String,
    },
}

/// One dtype per part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DtypePolicy {
    /// Image encoder.
    pub vision: PartDtype,
    /// Q-Former and all that trains with it.
    pub qformer: PartDtype,
    /// Language model.
    pub llm: PartDtype,
    /// Keep a language model that is stored in f16 as f32 (T5).
    pub widen_f16_llm: bool,
}

impl Default for DtypePolicy {
    /// Frozen parts as in the file, the Q-Former in f32 (as transformers 4.57 keeps it).
    fn default() -> Self {
        Self {
            vision: PartDtype::Auto,
            qformer: PartDtype::F32,
            llm: PartDtype::Auto,
            widen_f16_llm: false,
        }
    }
}

impl DtypePolicy {
    /// Everything f32.
    pub fn f32() -> Self {
        Self {
            vision: PartDtype::F32,
            qformer: PartDtype::F32,
            llm: PartDtype::F32,
            widen_f16_llm: false,
        }
    }

    /// One dtype for the frozen parts; the Q-Former stays f32.
    pub fn frozen(dtype: PartDtype) -> Self {
        Self {
            vision: dtype,
            qformer: PartDtype::F32,
            llm: dtype,
            widen_f16_llm: false,
        }
    }

    /// The same with other dtypes for the Q-Former and the language model, where given.
    pub fn but(mut self, qformer: Option<PartDtype>, llm: Option<PartDtype>) -> Self {
        self.qformer = qformer.unwrap_or(self.qformer);
        self.llm = llm.unwrap_or(self.llm);
        self
    }

    /// Dtype to keep a tensor in, given its path, rank and dtype in the file. What will be packed is packed from the
    /// dtype that the file has.
    pub fn resolve(&self, path: &str, rank: usize, stored: DType) -> DType {
        let part = match Part::of(path) {
            Part::Vision => self.vision,
            Part::QFormer => self.qformer,
            Part::Llm => self.llm,
        };
        match part {
            _ if rank < 2 => DType::F32,
            PartDtype::F32 => DType::F32,
            PartDtype::F16 => DType::F16,
            PartDtype::BF16 => DType::BF16,
            // at four bytes the output head alone would be read as long as half of the packed layers
            PartDtype::Int8 | PartDtype::Int4
                if stored == DType::F32 && Part::of(path) == Part::Llm && !packs(path) =>
            {
                DType::BF16
            }
            _ if self.widen_f16_llm && stored == DType::F16 && Part::of(path) == Part::Llm => DType::F32,
            _ if stored.is_float() && stored != DType::F64 => stored,
            _ => DType::F32,
        }
    }

    /// Bits that the weight at `path` is packed into, if it is.
    pub fn packing(&self, path: &str, shape: &[usize]) -> Option<WeightBits> {
        let divides = matches!(shape, [_, depth] if depth.is_multiple_of(PACK_GROUP));
        self.llm
            .bits()
            .filter(|_| divides && Part::of(path) == Part::Llm && packs(path))
    }
}

/// Whether the matrix of a language model at `path` is one of those that are packed: its tables are not, nor is the
/// output head, which decides between words whose scores are close.
fn packs(path: &str) -> bool {
    const WHOLE: [&str; 4] = ["lm_head", "embed_", "shared", "relative_attention_bias"];
    !path
        .split('.')
        .any(|name| WHOLE.iter().any(|whole| name.starts_with(whole)))
}

/// Dtypes that a model or a backend cannot have.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// T5 in f16.
    #[error("T5 overflows in f16 and answers with noise; use --dtype-llm bf16 or f32")]
    T5InHalf,
    /// Packed weights on a backend without them.
    #[error("this backend has no int8 and int4; use --dtype-llm f32, f16 or bf16, or another --backend")]
    Unpackable,
}

impl DtypePolicy {
    /// The policy made safe for a configuration: T5 in f16 is refused when asked for, and widened to f32 when
    /// it is only how the file stores it.
    pub fn for_config(mut self, config: &Blip2Config) -> Result<Self, PolicyError> {
        if matches!(config.language(), Some(LanguageConfig::T5(_))) {
            match self.llm {
                PartDtype::F16 => return Err(PolicyError::T5InHalf),
                PartDtype::Auto | PartDtype::Int8 | PartDtype::Int4 => self.widen_f16_llm = true,
                _ => {}
            }
        }
        Ok(self)
    }

    /// The policy if the backend can hold its weights.
    pub fn on<B: Kernels>(self) -> Result<Self, PolicyError> {
        match self.llm.bits() {
            Some(_) if !B::PACKS => Err(PolicyError::Unpackable),
            _ => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_packed_and_what_surrounds_them_takes_two_bytes() {
        let packed = DtypePolicy::default().but(None, Some(PartDtype::Int8));
        let layer = "language.model.layers.0.fc1.weight";
        assert_eq!(packed.packing(layer, &[64, 32]), Some(WeightBits::Eight));
        assert_eq!(packed.packing(layer, &[64, 40]), None, "no whole groups");
        assert_eq!(packed.packing("vision.layers.0.fc1.weight", &[64, 32]), None);
        assert_eq!(
            packed.resolve(layer, 2, DType::F32),
            DType::F32,
            "until it is packed"
        );
        for table in [
            "embed_tokens",
            "embed_positions",
            "shared",
            "lm_head",
            "relative_attention_bias",
        ] {
            let path = format!("language.model.{table}.weight");
            assert_eq!(packed.packing(&path, &[64, 32]), None, "{path}");
            assert_eq!(packed.resolve(&path, 2, DType::F32), DType::BF16, "{path}");
            assert_eq!(packed.resolve(&path, 2, DType::F16), DType::F16, "{path}");
            assert_eq!(
                DtypePolicy::default().resolve(&path, 2, DType::F32),
                DType::F32,
                "{path}"
            );
        }
        assert_eq!(packed.resolve("vision.patch.weight", 2, DType::F32), DType::F32);
    }
}
