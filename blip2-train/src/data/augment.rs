//! Training and evaluation transforms on pictures (section 6.6 and appendix B of the format notes).
//!
//! Every random number comes from a generator keyed by (seed, pass, sample key), so a picture is augmented alike
//! whichever thread does it. Normalisation is not here: a batch stays 8-bit until it is on the device.

use blip2_model::processor::{Filter, PixelBox, ProcessorError, resize, resize_crop};
use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::pil::{self, Affine};
use super::rng::KeyedRng;
use super::sample::DataError;

/// RandomResizedCrop as torchvision defines it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandomCrop {
    /// Share of the area that is kept, drawn uniformly.
    pub scale: (f64, f64),
    /// Width / height, drawn log-uniformly.
    pub ratio: (f64, f64),
}

impl Default for RandomCrop {
    fn default() -> Self {
        Self {
            scale: (0.5, 1.0),
            ratio: (3.0 / 4.0, 4.0 / 3.0),
        }
    }
}

impl RandomCrop {
    /// The box to cut from a `width` x `height` picture: ten tries, then the largest central box of allowed ratio.
    pub fn draw(&self, width: u32, height: u32, rng: &mut KeyedRng) -> PixelBox {
        let (w, h) = (f64::from(width), f64::from(height));
        let boxed = |left: u32, top: u32, width: u32, height: u32| PixelBox {
            left,
            top,
            right: left + width,
            bottom: top + height,
        };
        for _ in 0..10 {
            let area = w * h * rng.uniform(self.scale.0, self.scale.1);
            let ratio = rng.uniform(self.ratio.0.ln(), self.ratio.1.ln()).exp();
            let cut_w = (area * ratio).sqrt().round_ties_even() as u32;
            let cut_h = (area / ratio).sqrt().round_ties_even() as u32;
            if (1..=width).contains(&cut_w) && (1..=height).contains(&cut_h) {
                let top = rng.below(u64::from(height - cut_h) + 1) as u32;
                let left = rng.below(u64::from(width - cut_w) + 1) as u32;
                return boxed(left, top, cut_w, cut_h);
            }
        }
        let ratio = (w / h).clamp(self.ratio.0, self.ratio.1);
        let cut_w = if w / h > ratio {
            (h * ratio).round_ties_even() as u32
        } else {
            width
        }
        .clamp(1, width);
        let cut_h = if w / h < ratio {
            (w / ratio).round_ties_even() as u32
        } else {
            height
        }
        .clamp(1, height);
        boxed((width - cut_w) / 2, (height - cut_h) / 2, cut_w, cut_h)
    }
}

/// The operations RandAugment draws from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Nothing.
    Identity,
    /// [`pil::autocontrast`].
    AutoContrast,
    /// [`pil::brightness`].
    Brightness,
    /// [`pil::sharpness`].
    Sharpness,
    /// [`pil::equalize`].
    Equalize,
    /// Horizontal shear.
    ShearX,
    /// Vertical shear.
    ShearY,
    /// Horizontal shift.
    TranslateX,
    /// Vertical shift.
    TranslateY,
    /// Rotation about the middle.
    Rotate,
}

/// All operations, each as likely as the others.
pub const OPS: [Op; 10] = [
    Op::Identity,
    Op::AutoContrast,
    Op::Brightness,
    Op::Sharpness,
    Op::Equalize,
    Op::ShearX,
    Op::ShearY,
    Op::TranslateX,
    Op::TranslateY,
    Op::Rotate,
];

impl Op {
    /// The warp of a geometric operation at `level` of 10, for one sign.
    ///
    /// Shear 0.3, shift 10 px and rotation 30 degrees are the values at level 10.
    pub fn warp(self, level: f64, negative: bool, width: u32, height: u32) -> Option<Affine> {
        let amount = level / 10.0 * if negative { -1.0 } else { 1.0 };
        // Maps from output to input, pixel centres at integers: the inverses of the matrices in appendix B.
        let map = match self {
            Self::ShearX => [1.0, -0.3 * amount, 0.0, 0.0, 1.0, 0.0],
            Self::ShearY => [1.0, 0.0, 0.0, -0.3 * amount, 1.0, 0.0],
            Self::TranslateX => [1.0, 0.0, 10.0 * amount, 0.0, 1.0, 0.0],
            Self::TranslateY => [1.0, 0.0, 0.0, 0.0, 1.0, 10.0 * amount],
            Self::Rotate => {
                let (sin, cos) = (30.0 * amount).to_radians().sin_cos();
                let (x, y) = (f64::from(width) / 2.0, f64::from(height) / 2.0);
                [
                    cos,
                    -sin,
                    (1.0 - cos) * x + sin * y,
                    sin,
                    cos,
                    (1.0 - cos) * y - sin * x,
                ]
            }
            _ => return None,
        };
        Some(Affine::from_centre_integers(map))
    }

    /// Applies the operation at `level` of 10; `negative` turns a warp the other way.
    pub fn apply(self, image: &mut RgbImage, level: f64, negative: bool) {
        let factor = (level / 10.0 * 1.8 + 0.1) as f32; // exactly 1 at level 5: no change
        match self {
            Self::Identity => {}
            Self::AutoContrast => pil::autocontrast(image),
            Self::Equalize => pil::equalize(image),
            Self::Brightness => pil::brightness(image, factor),
            Self::Sharpness => pil::sharpness(image, factor),
            _ => {
                if let Some(map) = self.warp(level, negative, image.width(), image.height()) {
                    *image = pil::affine(image, map);
                }
            }
        }
    }
}

/// RandAugment as LAVIS sets it: operations drawn with replacement, each applied with a probability.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandAugment {
    /// Operations drawn.
    pub ops: u32,
    /// Probability that a drawn one is applied.
    pub probability: f64,
    /// Strength, 0 to 10.
    pub level: f64,
}

impl Default for RandAugment {
    fn default() -> Self {
        Self {
            ops: 2,
            probability: 0.5,
            level: 5.0,
        }
    }
}

impl RandAugment {
    /// Applies the drawn operations in order.
    pub fn apply(&self, image: &mut RgbImage, rng: &mut KeyedRng) {
        for _ in 0..self.ops {
            let op = OPS[rng.below(OPS.len() as u64) as usize];
            let (applied, negative) = (rng.chance(self.probability), rng.chance(0.5));
            if applied {
                op.apply(image, self.level, negative);
            }
        }
    }
}

/// From a decoded picture to the model's input size, 8 bits a channel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Transform {
    /// The picture as it is.
    Keep,
    /// Stretched to a square, bicubic (`blip_image_eval`).
    Resize {
        /// Side, pixels.
        size: u32,
    },
    /// Random crop stretched to a square, bicubic; then flip; then RandAugment.
    Train {
        /// Side, pixels.
        size: u32,
        /// What is cut.
        #[serde(default)]
        crop: RandomCrop,
        /// Probability of a horizontal flip.
        #[serde(default = "half")]
        flip: f64,
        /// Photometric and geometric noise.
        #[serde(default)]
        rand_augment: Option<RandAugment>,
    },
}

fn half() -> f64 {
    0.5
}

/// Names of the LAVIS processors that [`Transform::named`] knows.
pub const TRANSFORMS: [&str; 4] = [
    "blip_image_eval",
    "blip2_image_train",
    "blip_image_train",
    "clip_image_train",
];

impl Transform {
    /// A LAVIS image processor by name, for pictures of `size` x `size`.
    pub fn named(name: &str, size: u32) -> Result<Self, DataError> {
        let (crop, flip) = (RandomCrop::default(), half());
        let train = Self::Train {
            size,
            crop,
            flip,
            rand_augment: None,
        };
        Ok(match name {
            "blip_image_eval" => Self::Resize { size },
            "blip2_image_train" => train,
            "blip_image_train" => Self::Train {
                size,
                crop,
                flip,
                rand_augment: Some(RandAugment::default()),
            },
            "clip_image_train" => Self::Train {
                size,
                crop: RandomCrop {
                    scale: (0.9, 1.0),
                    ..crop
                },
                flip: 0.0,
                rand_augment: None,
            },
            _ => {
                return Err(DataError::Setting {
                    field: "image processor",
                    value: name.to_owned(),
                    remedy: "blip_image_eval, blip2_image_train, blip_image_train or clip_image_train",
                });
            }
        })
    }

    /// Checks the ranges of all settings.
    pub fn check(&self) -> Result<(), DataError> {
        let bad = |field, value: String, remedy| Err(DataError::Setting { field, value, remedy });
        let (Self::Resize { size } | Self::Train { size, .. }) = *self else {
            return Ok(());
        };
        if !(1..=8192).contains(&size) {
            return bad("image size", size.to_string(), "1 to 8192 pixels");
        }
        let Self::Train {
            crop: RandomCrop { scale, ratio },
            flip,
            rand_augment,
            ..
        } = *self
        else {
            return Ok(());
        };
        let ordered = |(low, high): (f64, f64)| 0.0 < low && low <= high && high.is_finite();
        let RandAugment {
            ops,
            probability,
            level,
        } = rand_augment.unwrap_or_default();
        match () {
            () if !ordered(scale) || scale.1 > 1.0 => {
                bad("crop scale", format!("{scale:?}"), "0 < low <= high <= 1")
            }
            () if !ordered(ratio) => bad("crop ratio", format!("{ratio:?}"), "0 < low <= high"),
            () if !(0.0..=1.0).contains(&flip) => bad("flip", flip.to_string(), "a probability"),
            () if !(0.0..=1.0).contains(&probability) => {
                bad("probability", probability.to_string(), "0 to 1")
            }
            () if !(0.0..=10.0).contains(&level) => bad("level", level.to_string(), "0 to 10"),
            () if ops > 100 => bad("ops", ops.to_string(), "at most 100"),
            () => Ok(()),
        }
    }

    /// Transforms `image`; the same `rng` state gives the same bytes.
    pub fn apply(&self, image: RgbImage, rng: &mut KeyedRng) -> Result<RgbImage, ProcessorError> {
        match *self {
            Self::Keep => Ok(image),
            Self::Resize { size } => resize(&image, size, size, Filter::Bicubic),
            Self::Train {
                size,
                crop,
                flip,
                rand_augment,
            } => {
                if image.width() == 0 || image.height() == 0 {
                    return resize(&image, size, size, Filter::Bicubic); // its error says it all
                }
                let region = crop.draw(image.width(), image.height(), rng);
                let mut out = resize_crop(&image, region, size, size, Filter::Bicubic)?;
                if rng.chance(flip) {
                    image::imageops::flip_horizontal_in_place(&mut out);
                }
                if let Some(noise) = rand_augment {
                    noise.apply(&mut out, rng);
                }
                Ok(out)
            }
        }
    }
}

#[cfg(test)]
mod tests;
