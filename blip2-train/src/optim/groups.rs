//! Parameter groups: who decays, and who learns at a fraction of the rate (spec of LAVIS's
//! `get_optimizer_params` in `blip2.py` and `base_model.py`).

use serde::{Deserialize, Serialize};

use crate::initial::block_index;
use crate::params::ParamInfo;

/// How one parameter is treated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// Whether weight decay applies.
    pub decay: bool,
    /// Factor on the learning rate.
    pub lr_scale: f64,
}

/// Which parameter belongs where.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupRule {
    /// Layer-wise decay of the learning rate in an unfrozen encoder (parameters below `encoder.`).
    pub layers: Option<LayerDecay>,
}

/// Layer-wise learning-rate decay: block `i` of `L` learns at `rate^(L - i)`, embeddings at `rate^(L + 1)`.
///
/// LAVIS computes these factors and then never applies them; the paper means them to be applied.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerDecay {
    /// Factor per layer, at most 1.
    pub rate: f64,
    /// Number of blocks `L`.
    pub layers: usize,
    /// Whether the encoder is CLIP, whose patch projection and first norm LAVIS counts to the last layer.
    pub clip: bool,
}

impl GroupRule {
    /// The group of a parameter.
    ///
    /// A parameter decays unless it is a vector or a bias. The temperature decays: it is a scalar in
    /// LAVIS, not a vector. So do EVA's class token (three axes), but not CLIP's (one axis there).
    pub fn group(&self, info: &ParamInfo) -> Group {
        let name = info.name.as_str();
        let clip = self.layers.is_some_and(|layers| layers.clip);
        let is_vector = info.shape.len() == 1 && name != "temp" && name != "bridge.temp";
        let is_clip_class = clip && name.ends_with("class_embedding");
        let is_bias = name == "bias" || name.ends_with(".bias");
        Group {
            decay: !(is_vector || is_bias || is_clip_class),
            lr_scale: self.layers.map_or(1.0, |layers| layers.scale(name)),
        }
    }
}

impl LayerDecay {
    fn scale(&self, name: &str) -> f64 {
        let Some(name) = name.strip_prefix("encoder.") else {
            return 1.0;
        };
        self.rate.powi((self.layers + 1 - self.layer_id(name)) as i32)
    }

    /// `get_num_layer` of the two encoders.
    fn layer_id(&self, name: &str) -> usize {
        if let Some(index) = block_index(name) {
            return (index + 1).min(self.layers);
        }
        let in_first = match self.clip {
            true => name.ends_with("class_embedding") || name.ends_with("position_embedding"),
            false => name.starts_with("embeddings."),
        };
        if in_first { 0 } else { self.layers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, shape: &[usize]) -> ParamInfo {
        ParamInfo {
            name: name.into(),
            shape: shape.into(),
        }
    }

    #[test]
    fn vectors_and_biases_do_not_decay_and_the_temperature_does() {
        let decays = |name: &str, shape: &[usize]| GroupRule::default().group(&info(name, shape)).decay;
        assert!(decays("query_tokens", &[1, 32, 768]));
        assert!(decays("temp", &[1]));
        assert!(decays("bridge.temp", &[1]));
        assert!(decays("qformer.embeddings.word_embeddings.weight", &[9, 4]));
        assert!(decays("encoder.embeddings.class_embedding", &[1, 1, 4]));
        assert!(!decays("qformer.layernorm.weight", &[4]));
        assert!(!decays("lm_head.bias", &[9]));
        assert!(!decays("itm_head.bias", &[2]));
    }

    #[test]
    fn layers_decay_by_the_layer_ids_of_the_reference() {
        let rule = GroupRule {
            layers: Some(LayerDecay {
                rate: 0.95,
                layers: 39,
                clip: false,
            }),
        };
        let scale = |name: &str| rule.group(&info(name, &[2, 2])).lr_scale;
        assert_eq!(scale("bridge.query_tokens"), 1.0);
        // a power of a variable and of a constant may round differently in the last place
        let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-12, "{a} and {b}");
        near(scale("encoder.embeddings.weight"), 0.95f64.powi(40));
        near(scale("encoder.layers.0.mlp.fc1.weight"), 0.95f64.powi(39));
        near(scale("encoder.layers.38.mlp.fc1.weight"), 0.95);

        let rule = GroupRule {
            layers: Some(LayerDecay {
                rate: 0.9,
                layers: 23,
                clip: true,
            }),
        };
        let scale = |name: &str| rule.group(&info(name, &[2, 2])).lr_scale;
        near(scale("encoder.embeddings.position_embedding"), 0.9f64.powi(24));
        near(scale("encoder.embeddings.weight"), 0.9);
        near(scale("encoder.pre_layernorm.weight"), 0.9);
        let class = info("encoder.embeddings.class_embedding", &[1, 1, 4]);
        assert!(!rule.group(&class).decay);
    }
}
