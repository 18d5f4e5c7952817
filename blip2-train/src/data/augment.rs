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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rng(i: u64) -> KeyedRng {
        KeyedRng::numbered(3, "test", &[i])
    }

    /// A dot at (x, y) on black.
    fn dot(x: u32, y: u32) -> RgbImage {
        RgbImage::from_fn(40, 30, |i, j| {
            image::Rgb(if (i, j) == (x, y) { [255; 3] } else { [0; 3] })
        })
    }

    /// Centre of the light in an otherwise black picture (fill ignored).
    fn centre(image: &RgbImage) -> (f64, f64) {
        let (mut sum, mut x, mut y) = (0.0, 0.0, 0.0);
        for (i, j, p) in image.enumerate_pixels().filter(|(_, _, p)| p.0 != pil::FILL) {
            let v = f64::from(p.0[0]);
            (sum, x, y) = (sum + v, x + v * f64::from(i), y + v * f64::from(j));
        }
        (x / sum, y / sum)
    }

    #[test]
    fn warps_move_points_as_the_matrices_of_appendix_b_do() {
        let moved = |op: Op, negative, x: f64, y: f64| -> (f64, f64) {
            let s = if negative { -1.0 } else { 1.0 };
            let (sin, cos) = (15.0f64 * s).to_radians().sin_cos();
            match op {
                Op::ShearX => (x + 0.15 * s * y, y),
                Op::ShearY => (x, y + 0.15 * s * x),
                Op::TranslateX => (x - 5.0 * s, y),
                Op::TranslateY => (x, y - 5.0 * s),
                // OpenCV's getRotationMatrix2D about (W/2, H/2), counter-clockwise
                _ => (
                    cos * x + sin * y + (1.0 - cos) * 20.0 - sin * 15.0,
                    -sin * x + cos * y + sin * 20.0 + (1.0 - cos) * 15.0,
                ),
            }
        };
        for op in [Op::ShearX, Op::ShearY, Op::TranslateX, Op::TranslateY, Op::Rotate] {
            for negative in [false, true] {
                let mut image = dot(22, 13);
                op.apply(&mut image, 5.0, negative);
                let (got, want) = (centre(&image), moved(op, negative, 22.0, 13.0));
                // bilinear spreading of one dot and truncation shift its centre by a few hundredths
                assert!(
                    (got.0 - want.0).abs() < 0.1 && (got.1 - want.1).abs() < 0.1,
                    "{op:?} {got:?} {want:?}"
                );
            }
        }
    }

    #[test]
    fn level_five_leaves_brightness_and_sharpness_alone() {
        let image = RgbImage::from_fn(9, 9, |x, y| image::Rgb([(x * 20) as u8, (y * 20) as u8, 7]));
        for op in [Op::Brightness, Op::Sharpness, Op::Identity] {
            let mut out = image.clone();
            op.apply(&mut out, 5.0, false);
            assert_eq!(out, image, "{op:?}");
        }
    }

    #[test]
    fn crops_follow_their_distribution() {
        let crop = RandomCrop::default();
        let (mut areas, mut logs) = (Vec::new(), Vec::new());
        for i in 0..4000 {
            let b = crop.draw(1000, 1000, &mut rng(i));
            let (w, h) = (f64::from(b.right - b.left), f64::from(b.bottom - b.top));
            areas.push(w * h / 1e6);
            logs.push((w / h).ln());
        }
        let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
        // the log ratio is symmetric about 0, sd 0.166 at most: 4000 draws give +- 0.0105 at 4 sigma
        assert!(mean(&logs).abs() < 0.0105, "{}", mean(&logs));
        // Boxes that stick out are redrawn: with |ln ratio| uniform on [0, 0.2877], an area a above 0.75 stays with
        // probability -ln a / 0.2877, which makes the mean 0.6915; sd 0.115 over 4000 draws, 4 sigma = 0.0073.
        assert!((mean(&areas) - 0.6915).abs() < 0.0073, "{}", mean(&areas));
        assert!(areas.iter().all(|a| (0.498..=1.0).contains(a)));
    }

    proptest! {
        #[test]
        fn any_picture_gives_the_asked_size(w in 1u32..90, h in 1u32..90, seed in any::<u64>(), name in 0usize..4) {
            let image = RgbImage::from_fn(w, h, |x, y| image::Rgb([x as u8, y as u8, 9]));
            let transform = Transform::named(TRANSFORMS[name], 32).unwrap();
            let run = || transform.apply(image.clone(), &mut rng(seed)).unwrap();
            let out = run();
            prop_assert_eq!(out.dimensions(), (32, 32));
            prop_assert_eq!(out, run());
            let b = RandomCrop::default().draw(w, h, &mut rng(seed));
            prop_assert!(b.left < b.right && b.right <= w && b.top < b.bottom && b.bottom <= h);
        }
    }

    #[test]
    fn settings_are_checked() {
        assert!(Transform::named("blip_image", 224).is_err());
        let train = |crop, flip| {
            Transform::Train {
                size: 224,
                crop,
                flip,
                rand_augment: None,
            }
            .check()
        };
        assert!(train(RandomCrop::default(), 0.5).is_ok());
        assert!(
            train(
                RandomCrop {
                    scale: (0.9, 0.5),
                    ..RandomCrop::default()
                },
                0.5
            )
            .is_err()
        );
        assert!(
            train(
                RandomCrop {
                    ratio: (0.0, 1.0),
                    ..RandomCrop::default()
                },
                0.5
            )
            .is_err()
        );
        assert!(train(RandomCrop::default(), f64::NAN).is_err());
        assert!(Transform::Resize { size: 0 }.check().is_err());
    }
}
