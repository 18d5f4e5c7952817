//! The settings of a `preprocessor_config.json`, under their Hugging Face names.
//!
//! Mirrors the constructor arguments of transformers' `BlipImageProcessor` and `CLIPImageProcessor`. A value that
//! would change the pixels in a way that is not implemented is an error, never ignored.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::error::ProcessorError;
use super::filter::Filter;
use super::resize::Resampling;

/// Channel means of CLIP's training pictures, on a scale of 0 to 1.
pub const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
/// Channel standard deviations of CLIP's training pictures, on a scale of 0 to 1.
pub const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Target of the resize step, pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResizeTo {
    /// Exactly this size; the aspect ratio is not kept.
    Exact {
        /// Rows.
        height: u32,
        /// Columns.
        width: u32,
    },
    /// The shorter side gets this length, the longer one follows.
    ShortestEdge(u32),
}

/// The settings of `preprocessor_config.json`, under their Hugging Face names.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageProcessorConfig {
    /// Whether to resize.
    pub do_resize: bool,
    /// Target of the resize.
    pub size: ResizeTo,
    /// Kernel of the resize (`resample` in the file), and the order of its passes.
    pub resample: Resampling,
    /// `(height, width)` of the middle to cut out, pixels (`crop_size`, if `do_center_crop`); a smaller image gets a
    /// black border.
    pub center_crop: Option<(u32, u32)>,
    /// Whether to multiply by `rescale_factor`.
    pub do_rescale: bool,
    /// Factor on 8-bit values.
    pub rescale_factor: f64,
    /// Whether to subtract `image_mean` and divide by `image_std`.
    pub do_normalize: bool,
    /// Mean per channel (R, G, B).
    pub image_mean: [f64; 3],
    /// Standard deviation per channel (R, G, B).
    pub image_std: [f64; 3],
}

impl ImageProcessorConfig {
    /// What every published BLIP-2 checkpoint uses: `size` x `size`, bicubic, CLIP statistics.
    pub fn blip2(size: u32) -> Self {
        Self {
            do_resize: true,
            size: ResizeTo::Exact {
                height: size,
                width: size,
            },
            resample: Filter::Bicubic.into(),
            center_crop: None,
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: CLIP_MEAN,
            image_std: CLIP_STD,
        }
    }

    /// Reads the text of a `preprocessor_config.json`. `path` stands for the file in errors.
    ///
    /// # Errors
    /// [`ProcessorError::InvalidJson`]; [`ProcessorError::UnsupportedSetting`] for a value that would change the
    /// result in a way that is not implemented. Fields without influence on the result are ignored.
    pub fn from_json(text: &str, path: &Path) -> Result<Self, ProcessorError> {
        let json: Map<String, Value> =
            serde_json::from_str(text).map_err(|source| ProcessorError::InvalidJson {
                path: path.into(),
                source,
            })?;
        let fields = Fields(json);
        let kind = fields
            .get("image_processor_type")
            .or_else(|| fields.get("feature_extractor_type"));
        let clip = match kind.map(|v| (v, v.as_str())) {
            None => false,
            Some((_, Some("BlipImageProcessor" | "BlipImageProcessorFast"))) => false,
            Some((_, Some("CLIPImageProcessor" | "CLIPImageProcessorFast" | "CLIPFeatureExtractor"))) => true,
            Some((found, _)) => {
                return Err(unsupported(
                    "image_processor_type",
                    found,
                    "BlipImageProcessor or CLIPImageProcessor",
                ));
            }
        };
        fields.refuse_unknown_steps()?;

        let mut config = Self::blip2(if clip { 224 } else { 384 });
        if clip {
            config.size = ResizeTo::ShortestEdge(224);
        }
        config.do_resize = fields.flag("do_resize", true)?;
        if let Some(size) = fields.get("size") {
            config.size = parse_size("size", size, !clip)?;
        }
        if let Some(code) = fields.get("resample") {
            config.resample = code
                .as_u64()
                .and_then(Filter::from_pillow)
                .map(Resampling::from)
                .ok_or_else(|| unsupported("resample", code, "a Pillow filter number, 0 to 5"))?;
        }
        let do_center_crop = fields.flag("do_center_crop", clip)?;
        if do_center_crop && !clip {
            // transformers' slow class ignores this flag, its fast class obeys it
            return Err(unsupported(
                "do_center_crop",
                &Value::Bool(true),
                "false, or image_processor_type CLIPImageProcessor",
            ));
        }
        let crop_size = match fields
            .get("crop_size")
            .map(|v| (v, parse_size("crop_size", v, true)))
        {
            None => (224, 224),
            Some((_, Ok(ResizeTo::Exact { height, width }))) => (height, width),
            Some((found, _)) => return Err(unsupported("crop_size", found, "height and width")),
        };
        config.center_crop = do_center_crop.then_some(crop_size);
        config.do_rescale = fields.flag("do_rescale", true)?;
        if let Some(factor) = fields.get("rescale_factor") {
            let finite = factor.as_f64().filter(|f| f.is_finite());
            config.rescale_factor =
                finite.ok_or_else(|| unsupported("rescale_factor", factor, "a number"))?;
        }
        config.do_normalize = fields.flag("do_normalize", true)?;
        config.image_mean = fields.per_channel("image_mean", CLIP_MEAN)?;
        config.image_std = fields.per_channel("image_std", CLIP_STD)?;
        if config.do_normalize && config.image_std.contains(&0.0) {
            return Err(unsupported(
                "image_std",
                &json!(config.image_std),
                "numbers other than 0",
            ));
        }
        Ok(config)
    }

    /// The `preprocessor_config.json` that transformers reads back to the same settings.
    pub fn to_json(&self) -> Value {
        let size = match self.size {
            ResizeTo::Exact { height, width } => json!({"height": height, "width": width}),
            ResizeTo::ShortestEdge(edge) => json!({"shortest_edge": edge}),
        };
        let clip = self.center_crop.is_some() || matches!(self.size, ResizeTo::ShortestEdge(_));
        let mut json = json!({
            "do_convert_rgb": true,
            "do_normalize": self.do_normalize,
            "do_rescale": self.do_rescale,
            "do_resize": self.do_resize,
            "image_mean": self.image_mean,
            "image_processor_type": if clip { "CLIPImageProcessor" } else { "BlipImageProcessor" },
            "image_std": self.image_std,
            "processor_class": "Blip2Processor",
            "resample": self.resample.filter.to_pillow(),
            "rescale_factor": self.rescale_factor,
            "size": size,
        });
        if clip {
            json["do_center_crop"] = self.center_crop.is_some().into();
        }
        if let Some((height, width)) = self.center_crop {
            json["crop_size"] = json!({"height": height, "width": width});
        }
        json
    }
}

/// The parsed file; `null` counts as absent.
struct Fields(Map<String, Value>);

impl Fields {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    fn flag(&self, name: &'static str, default: bool) -> Result<bool, ProcessorError> {
        let parse = |v: &Value| v.as_bool().ok_or_else(|| unsupported(name, v, "true or false"));
        self.get(name).map_or(Ok(default), parse)
    }

    fn per_channel(&self, name: &'static str, default: [f64; 3]) -> Result<[f64; 3], ProcessorError> {
        let Some(value) = self.get(name) else {
            return Ok(default);
        };
        if let Some(same) = value.as_f64() {
            return Ok([same; 3]);
        }
        let numbers: Option<Vec<f64>> = value
            .as_array()
            .and_then(|a| a.iter().map(Value::as_f64).collect());
        numbers
            .and_then(|n| n.try_into().ok())
            .ok_or_else(|| unsupported(name, value, "one or three numbers"))
    }

    /// Every step of a Hugging Face image processor is switched on by a `do_` flag.
    fn refuse_unknown_steps(&self) -> Result<(), ProcessorError> {
        const KNOWN: [&str; 5] = [
            "do_resize",
            "do_center_crop",
            "do_rescale",
            "do_normalize",
            "do_convert_rgb",
        ];
        for (name, value) in &self.0 {
            let off = value.is_null() || value == &Value::Bool(false);
            if name.starts_with("do_") && !KNOWN.contains(&name.as_str()) && !off {
                return Err(unsupported(name, value, "false: this step is not implemented"));
            }
        }
        match self.get("data_format") {
            Some(layout) if layout != "channels_first" => {
                Err(unsupported("data_format", layout, "channels_first"))
            }
            _ => Ok(()),
        }
    }
}

fn unsupported(field: &str, found: &Value, expected: &'static str) -> ProcessorError {
    ProcessorError::UnsupportedSetting {
        field: field.to_owned(),
        found: found.clone(),
        expected,
    }
}

/// A bare number is a square where `square`, else the shortest edge.
fn parse_size(field: &'static str, value: &Value, square: bool) -> Result<ResizeTo, ProcessorError> {
    let refuse = || {
        unsupported(
            field,
            value,
            "{height, width}, {shortest_edge} or one number, each from 1 to 16384",
        )
    };
    // 16384 squared is more than any pixel limit
    let side = |v: &Value| {
        v.as_u64()
            .filter(|n| (1..=16384).contains(n))
            .map(|n| n as u32)
            .ok_or_else(refuse)
    };
    if value.is_number() {
        let side = side(value)?;
        let exact = ResizeTo::Exact {
            height: side,
            width: side,
        };
        return Ok(if square {
            exact
        } else {
            ResizeTo::ShortestEdge(side)
        });
    }
    let pair = match value {
        Value::Object(o) if o.len() == 1 && o.contains_key("shortest_edge") => {
            return side(&o["shortest_edge"]).map(ResizeTo::ShortestEdge);
        }
        Value::Object(o) if o.len() == 2 => o.get("height").zip(o.get("width")),
        Value::Array(a) if a.len() == 2 => Some((&a[0], &a[1])),
        _ => None,
    };
    let (height, width) = pair.ok_or_else(refuse)?;
    Ok(ResizeTo::Exact {
        height: side(height)?,
        width: side(width)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::json;
    use super::*;

    fn parse(json: Value) -> Result<ImageProcessorConfig, ProcessorError> {
        ImageProcessorConfig::from_json(&json.to_string(), Path::new("preprocessor_config.json"))
    }

    #[test]
    fn published_file_is_the_preset() {
        let file = r#"{"do_convert_rgb": true, "do_normalize": true, "do_rescale": true, "do_resize": true,
            "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_processor_type": "BlipImageProcessor",
            "image_std": [0.26862954, 0.26130258, 0.27577711], "processor_class": "Blip2Processor",
            "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"height": 364, "width": 364}}"#;
        let config = ImageProcessorConfig::from_json(file, Path::new("x")).unwrap();
        assert_eq!(config, ImageProcessorConfig::blip2(364));
        assert_eq!(config.to_json(), serde_json::from_str::<Value>(file).unwrap());
    }

    #[test]
    fn written_files_read_back_the_same() {
        for (name, value) in json("pixel_values.json")["configs"].as_object().unwrap() {
            let config = parse(value.clone()).unwrap();
            assert_eq!(parse(config.to_json()).unwrap(), config, "{name}");
        }
    }

    #[test]
    fn unsupported_settings_are_named() {
        for (field, value) in [
            ("image_processor_type", json!("ViTImageProcessor")),
            ("do_pad", json!(true)),
            ("do_flip_channel_order", json!(true)),
            ("do_resize", json!("yes")),
            ("do_center_crop", json!(true)),
            ("size", json!({"longest_edge": 224})),
            ("size", json!({"height": 224})),
            ("size", json!({"height": 0, "width": 224})),
            ("size", json!({"height": 1e9, "width": 224})),
            ("size", json!("large")),
            ("crop_size", json!({"shortest_edge": 224})),
            ("resample", json!(6)),
            ("resample", json!("bicubic")),
            ("rescale_factor", json!("1/255")),
            ("image_mean", json!([0.5, 0.5])),
            ("image_std", json!([0.5, 0.0, 0.5])),
            ("data_format", json!("channels_last")),
        ] {
            let error = parse(json!({field: value})).unwrap_err();
            assert!(
                matches!(&error, ProcessorError::UnsupportedSetting { field: f, .. } if f == field),
                "{field}: {error}"
            );
        }
    }

    #[test]
    fn text_that_is_not_an_object_names_the_file() {
        for text in ["", "[]", "{\"size\": ", "3"] {
            let error = ImageProcessorConfig::from_json(text, Path::new("dir/p.json")).unwrap_err();
            assert!(error.to_string().contains("dir/p.json"), "{error}");
        }
    }
}
