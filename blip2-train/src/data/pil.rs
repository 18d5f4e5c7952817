//! Pillow's 8-bit picture operations that RandAugment needs, equal byte for byte.
//!
//! Formulae: appendix B of the format notes and `ImageOps`, `ImageEnhance`, `libImaging/{Blend,Filter,Geometry}.c`.

use image::RgbImage;

/// Colour outside a warped picture.
pub const FILL: [u8; 3] = [128, 128, 128];

type Histogram = [[u32; 256]; 3];

fn histogram(image: &RgbImage) -> Histogram {
    let mut counts = [[0u32; 256]; 3];
    for pixel in image.pixels() {
        for (count, &value) in counts.iter_mut().zip(&pixel.0) {
            count[usize::from(value)] += 1;
        }
    }
    counts
}

fn look_up(image: &mut RgbImage, tables: &[[u8; 256]; 3]) {
    for pixel in image.pixels_mut() {
        for (value, table) in pixel.0.iter_mut().zip(tables) {
            *value = table[usize::from(*value)];
        }
    }
}

fn per_channel(image: &mut RgbImage, table: impl Fn(&[u32; 256]) -> [u8; 256]) {
    let counts = histogram(image);
    look_up(image, &counts.each_ref().map(table));
}

fn identity() -> [u8; 256] {
    std::array::from_fn(|i| i as u8)
}

/// `ImageOps.autocontrast(cutoff=0)`: each channel's range stretched to 0..=255, truncating.
pub fn autocontrast(image: &mut RgbImage) {
    per_channel(image, |counts| {
        let low = counts.iter().position(|&c| c > 0).unwrap_or(0);
        let high = counts.iter().rposition(|&c| c > 0).unwrap_or(0);
        if high <= low {
            return identity();
        }
        let scale = 255.0 / (high - low) as f64;
        let offset = -(low as f64) * scale;
        std::array::from_fn(|i| (i as f64 * scale + offset) as u8) // `as` truncates and clips
    });
}

/// `ImageOps.equalize`: each channel's histogram flattened.
pub fn equalize(image: &mut RgbImage) {
    per_channel(image, |counts| {
        let total: u32 = counts.iter().sum();
        let last = counts.iter().rev().find(|&&c| c > 0).copied().unwrap_or(0);
        let step = (total - last) / 255;
        if step == 0 {
            return identity();
        }
        let mut sum = step / 2;
        std::array::from_fn(|i| {
            let level = sum / step;
            sum += counts[i];
            level.min(255) as u8
        })
    });
}

/// `Image.blend` of one value: truncation inside 0..=1, clipping outside.
fn blend(from: u8, to: u8, alpha: f32) -> u8 {
    (f32::from(from) + alpha * (f32::from(to) - f32::from(from))) as u8
}

/// `ImageEnhance.Brightness(factor)`: blend with black.
pub fn brightness(image: &mut RgbImage, factor: f32) {
    if factor != 1.0 {
        look_up(image, &[std::array::from_fn(|i| blend(0, i as u8, factor)); 3]);
    }
}

/// `ImageEnhance.Sharpness(factor)`: blend with the picture smoothed by a 3 x 3 kernel (centre 5, others 1, over 13);
/// the outermost pixels stay as they are.
pub fn sharpness(image: &mut RgbImage, factor: f32) {
    let (width, height) = (image.width() as usize, image.height() as usize);
    if factor == 1.0 || width < 3 || height < 3 {
        return;
    }
    let source = image.as_raw().clone();
    let stride = width * 3;
    let out: &mut [u8] = image;
    for y in 1..height - 1 {
        for x in 3..stride - 3 {
            let at = y * stride + x;
            let row = |i: usize| u32::from(source[i - 3]) + u32::from(source[i]) + u32::from(source[i + 3]);
            let sum = row(at - stride) + row(at) + row(at + stride) + 4 * u32::from(source[at]);
            // rounding a thirteenth: no sum lies on a border, so integers do what Pillow's floats do
            let smooth = ((2 * sum + 13) / 26) as u8;
            out[at] = blend(smooth, source[at], factor);
        }
    }
}

/// Output to input map: x' = a x + b y + c, y' = d x + e y + f, pixel centres at half-integers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine(pub [f64; 6]);

impl Affine {
    /// The map given for coordinates in which pixel centres are integers (OpenCV's convention).
    pub fn from_centre_integers([a, b, c, d, e, f]: [f64; 6]) -> Self {
        Self([a, b, c + 0.5 - 0.5 * (a + b), d, e, f + 0.5 - 0.5 * (d + e)])
    }
}

/// `image.transform(image.size, AFFINE, map, BILINEAR, fillcolor=FILL)`.
pub fn affine(image: &RgbImage, Affine([a, b, c, d, e, f]): Affine) -> RgbImage {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let source = image.as_raw();
    let mut out = RgbImage::from_pixel(image.width(), image.height(), image::Rgb(FILL));
    if width == 0 || height == 0 {
        return out;
    }
    let (right, bottom) = (width as f64, height as f64);
    for (y, row) in out.chunks_exact_mut(width * 3).enumerate() {
        for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
            let (xo, yo) = (x as f64 + 0.5, y as f64 + 0.5);
            let xin = a * xo + b * yo + c;
            let yin = d * xo + e * yo + f;
            if !(xin >= 0.0 && xin < right && yin >= 0.0 && yin < bottom) {
                continue;
            }
            let (xin, yin) = (xin - 0.5, yin - 0.5);
            let (left, top) = (xin.floor(), yin.floor());
            let (dx, dy) = (xin - left, yin - top);
            let (left, top) = (left as isize, top as isize);
            let column = |i: isize| i.clamp(0, width as isize - 1) as usize * 3;
            let line = |i: isize| i.clamp(0, height as isize - 1) as usize * width * 3;
            let (x0, x1, y0, y1) = (column(left), column(left + 1), line(top), line(top + 1));
            for (channel, value) in pixel.iter_mut().enumerate() {
                let at = |line: usize, column: usize| f64::from(source[line + column + channel]);
                let upper = at(y0, x0) + (at(y0, x1) - at(y0, x0)) * dx;
                let lower = at(y1, x0) + (at(y1, x1) - at(y1, x0)) * dx;
                *value = (upper + (lower - upper) * dy) as u8;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::augment::{OPS, Op};
    use super::*;
    use serde_json::Value;
    use sha2::{Digest, Sha256};

    /// The picture that tests/fixtures/gen/augment.py makes.
    fn picture(seed: u32, width: u32, height: u32, low: u32, high: u32) -> RgbImage {
        let mut state = seed;
        let mut data = Vec::new();
        for y in 0..height {
            for x in 0..width {
                for c in 0..3 {
                    state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                    let value = (state >> 24) / 4 + (x * 3 + y * 2) / (c + 1);
                    data.push((low + value % (high - low + 1)) as u8);
                }
            }
        }
        RgbImage::from_raw(width, height, data).unwrap()
    }

    #[test]
    fn bytes_equal_pillows() {
        let text = include_str!("../../../tests/fixtures/augment/pil_ops.json");
        let cases: Vec<Value> = serde_json::from_str(text).unwrap();
        assert!(cases.len() > 300);
        for case in &cases {
            let p: Vec<u32> = case["picture"]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_u64().unwrap() as u32)
                .collect();
            let op: Op = *OPS.iter().find(|op| format!("{op:?}") == case["op"]).unwrap();
            let mut image = picture(p[0], p[1], p[2], p[3], p[4]);
            op.apply(
                &mut image,
                case["level"].as_f64().unwrap(),
                case["negative"].as_bool().unwrap(),
            );
            let digest: String = Sha256::digest(image.as_raw())
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            assert_eq!(digest, case["sha256"], "{case}");
        }
    }
}
