//! Initial values of tensors that no file provides, drawn by part and name.

use blip2_model::config::Blip2Config;
use blip2_model::language::LanguageConfig;

use crate::initial::{Draw, Shapes, bridge_rule, encoder_rule};
use crate::params::ParamInfo;

/// Which of the three parts a parameter belongs to; its path is relative to that part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Root {
    /// Image encoder.
    Vision,
    /// What BLIP-2 trains.
    Bridge,
    /// Language model.
    Language,
}

impl Root {
    /// In words.
    pub fn title(self) -> &'static str {
        match self {
            Self::Vision => "image encoder",
            Self::Bridge => "Q-Former with queries, heads and projections",
            Self::Language => "language model",
        }
    }

    /// First part of paths in the key tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vision => "vision",
            Self::Bridge => "bridge",
            Self::Language => "language",
        }
    }
}

/// How a parameter of a part starts; `shapes` are those of the whole part.
pub fn rule(config: &Blip2Config, root: Root, info: &ParamInfo, shapes: &Shapes) -> Draw {
    match (root, &config.text_config) {
        (Root::Vision, _) => encoder_rule(info, shapes),
        (Root::Bridge, _) | (_, None) => match bridge_rule(info, shapes) {
            // 0.02 is BERT's; narrow models ask for more
            Draw::Normal(_) => Draw::Normal(config.qformer_config.initializer_range),
            draw => draw,
        },
        (Root::Language, Some(language)) => language_rule(language, info),
    }
}

/// Start of a language model as transformers draws it: norms 1 and 0, biases 0, matrices `N(0, std)` with the
/// family's deviation (`_init_weights` of `modeling_opt.py`, `modeling_llama.py`, `modeling_t5.py`).
pub fn language_rule(config: &LanguageConfig, info: &ParamInfo) -> Draw {
    let (owner, leaf) = info.name.rsplit_once('.').unwrap_or(("", &info.name));
    let module = owner.rsplit('.').next().unwrap_or_default();
    match leaf {
        "bias" => return Draw::Constant(0.0),
        _ if module.contains("norm") => return Draw::Constant(1.0),
        _ => {}
    }
    let t5 = match config {
        LanguageConfig::Opt(opt) => return Draw::Normal(opt.init_std),
        LanguageConfig::Llama(llama) => return Draw::Normal(llama.initializer_range),
        LanguageConfig::T5(t5) => t5,
    };
    let (model, inner) = (t5.d_model as f64, (t5.num_heads * t5.d_kv) as f64);
    let std = match module {
        "shared" | "lm_head" => 1.0,
        "q" => (model * t5.d_kv as f64).powf(-0.5),
        "k" | "v" | "relative_attention_bias" | "wi_0" | "wi_1" => model.powf(-0.5),
        "o" => inner.powf(-0.5),
        "wo" => (t5.d_ff as f64).powf(-0.5),
        _ => 0.02,
    };
    Draw::Normal(t5.initializer_factor * std)
}

#[cfg(test)]
mod tests {
    use super::*;
    use blip2_model::language::{OptConfig, T5Config};

    fn draw(config: &LanguageConfig, name: &str) -> Draw {
        let info = ParamInfo {
            name: name.into(),
            shape: vec![4, 4],
        };
        language_rule(config, &info)
    }

    #[test]
    fn families_start_as_their_own_code_does() {
        let opt = LanguageConfig::Opt(OptConfig::default());
        assert_eq!(
            draw(&opt, "decoder.layers.0.self_attn_layer_norm.weight"),
            Draw::Constant(1.0)
        );
        assert_eq!(
            draw(&opt, "decoder.layers.0.self_attn.q_proj.bias"),
            Draw::Constant(0.0)
        );
        assert_eq!(draw(&opt, "decoder.embed_tokens.weight"), Draw::Normal(0.02));
        let t5 = LanguageConfig::T5(T5Config::default());
        assert_eq!(
            draw(&t5, "encoder.blocks.0.self_attention.norm.weight"),
            Draw::Constant(1.0)
        );
        assert_eq!(draw(&t5, "shared.weight"), Draw::Normal(1.0));
        let want = (512.0f64 * 64.0).powf(-0.5);
        assert_eq!(
            draw(&t5, "encoder.blocks.0.self_attention.q.weight"),
            Draw::Normal(want)
        );
    }
}
