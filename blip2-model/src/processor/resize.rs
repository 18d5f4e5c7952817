//! Pillow-exact resampling of 8-bit RGB images.
//!
//! Mirrors `Image.resize` of Pillow (`src/libImaging/Resample.c`, and the affine path of `Geometry.c` for
//! nearest): two separable passes, each with weights in 22-bit fixed point and rounding to
//! 8 bits; the kernel is widened when shrinking. Results are equal byte for byte.

use image::RgbImage;

use super::error::ProcessorError;
use super::filter::{Filter, Taps};
use super::passes::{View, horizontal_pass, vertical_pass};

/// Which side is resampled first. Each pass rounds to 8 bits, so the order shows in single pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PassOrder {
    /// Pillow 13: vertical first if the height shrinks by more than twice as many pixels as the width.
    #[default]
    Pillow13,
    /// Pillow up to 12, with which the published checkpoints were trained: always horizontal first.
    HorizontalFirst,
}

/// How to resample: a [`Filter`] alone means the default order of passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resampling {
    /// The kernel.
    pub filter: Filter,
    /// The order of passes.
    pub order: PassOrder,
}

impl From<Filter> for Resampling {
    fn from(filter: Filter) -> Self {
        Self {
            filter,
            order: PassOrder::default(),
        }
    }
}

impl Resampling {
    /// Pillow compares whole images, even where only a box is resampled.
    fn vertical_first(self, view: &View<'_>, width: u32, height: u32) -> bool {
        let lost = |from: u32, to: u32| u64::from(from.saturating_sub(to));
        self.order == PassOrder::Pillow13 && lost(view.height, height) > 2 * lost(view.width, width)
    }
}

/// A rectangle of pixels: `left` and `top` inside, `right` and `bottom` just outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelBox {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Column after the last.
    pub right: u32,
    /// Row after the last.
    pub bottom: u32,
}

impl PixelBox {
    fn whole(image: &RgbImage) -> Self {
        Self {
            left: 0,
            top: 0,
            right: image.width(),
            bottom: image.height(),
        }
    }
}

/// `image.resize((width, height), filter)`: the aspect ratio is not kept.
///
/// # Errors
/// [`ProcessorError::ResizeBox`] if the image or the target has no pixels.
pub fn resize(
    image: &RgbImage,
    width: u32,
    height: u32,
    how: impl Into<Resampling>,
) -> Result<RgbImage, ProcessorError> {
    resize_box(image, PixelBox::whole(image), width, height, how)
}

/// `image.resize((width, height), filter, box=region)`: pixels outside the box still weigh in at its edges.
///
/// # Errors
/// [`ProcessorError::ResizeBox`] if the box leaves the image or any side is 0.
pub fn resize_box(
    image: &RgbImage,
    region: PixelBox,
    width: u32,
    height: u32,
    how: impl Into<Resampling>,
) -> Result<RgbImage, ProcessorError> {
    check(image, region, width, height)?;
    let view = View {
        data: image.as_raw(),
        stride: image.width() as usize * 3,
        width: image.width(),
        height: image.height(),
    };
    Ok(resample(view, region, width, height, how.into()))
}

/// `image.crop(region).resize((width, height), filter)` without the copy: pixels outside the box do not count.
///
/// This is what torchvision's `RandomResizedCrop` does.
///
/// # Errors
/// [`ProcessorError::ResizeBox`] if the box leaves the image or any side is 0.
pub fn resize_crop(
    image: &RgbImage,
    region: PixelBox,
    width: u32,
    height: u32,
    how: impl Into<Resampling>,
) -> Result<RgbImage, ProcessorError> {
    check(image, region, width, height)?;
    let stride = image.width() as usize * 3;
    let view = View {
        data: &image.as_raw()[region.top as usize * stride + region.left as usize * 3..],
        stride,
        width: region.right - region.left,
        height: region.bottom - region.top,
    };
    let whole = PixelBox {
        left: 0,
        top: 0,
        right: view.width,
        bottom: view.height,
    };
    Ok(resample(view, whole, width, height, how.into()))
}

fn check(image: &RgbImage, b: PixelBox, out_width: u32, out_height: u32) -> Result<(), ProcessorError> {
    let (width, height) = image.dimensions();
    let inside = b.left < b.right && b.top < b.bottom && b.right <= width && b.bottom <= height;
    if inside && out_width > 0 && out_height > 0 {
        return Ok(());
    }
    let PixelBox {
        left,
        top,
        right,
        bottom,
    } = b;
    Err(ProcessorError::ResizeBox {
        left,
        top,
        right,
        bottom,
        width,
        height,
        out_width,
        out_height,
    })
}

fn resample(view: View<'_>, b: PixelBox, width: u32, height: u32, how: Resampling) -> RgbImage {
    let (w, h) = (width as usize, height as usize);
    if how.filter == Filter::Nearest {
        return nearest(view, b, width, height);
    }
    let whole = |from: u32, to: u32, size: u32, out: u32| from == 0 && to == size && size == out;
    let columns = || Taps::new(view.width, b.left..b.right, w, how.filter);
    let rows = || Taps::new(view.height, b.top..b.bottom, h, how.filter);
    let out = match (
        whole(b.left, b.right, view.width, width),
        whole(b.top, b.bottom, view.height, height),
    ) {
        (true, true) => (0..h).flat_map(|y| view.row(y)).copied().collect(),
        (false, true) => horizontal_pass(&view, 0..h, &columns()),
        (true, false) => vertical_pass(&view, 0, &rows()),
        (false, false) if how.vertical_first(&view, width, height) => {
            let middle = vertical_pass(&view, 0, &rows());
            horizontal_pass(&View::packed(&middle, view.width), 0..h, &columns())
        }
        (false, false) => {
            let rows = rows();
            let span = rows.span();
            let first = span.start;
            let middle = horizontal_pass(&view, span, &columns());
            vertical_pass(&View::packed(&middle, width), first, &rows)
        }
    };
    RgbImage::from_raw(width, height, out).expect("buffer was sized from the dimensions")
}

/// Source columns are found by repeated addition in f64, whose rounding is part of the result.
fn nearest(view: View<'_>, b: PixelBox, width: u32, height: u32) -> RgbImage {
    let positions = |from: u32, to: u32, size: u32, out: u32| -> Vec<usize> {
        let step = f64::from(to - from) / f64::from(out);
        let mut at = f64::from(from) + step * 0.5;
        let mut next = || {
            let here = (at as u32).min(size - 1) as usize;
            at += step;
            here
        };
        (0..out).map(|_| next()).collect()
    };
    let columns = positions(b.left, b.right, view.width, width);
    let mut out = Vec::with_capacity(width as usize * height as usize * 3);
    for y in positions(b.top, b.bottom, view.height, height) {
        let row = view.row(y);
        for &x in &columns {
            out.extend_from_slice(&row[x * 3..x * 3 + 3]);
        }
    }
    RgbImage::from_raw(width, height, out).expect("buffer was sized from the dimensions")
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{json, numbers, sha, synthetic};
    use super::*;

    fn region(value: &serde_json::Value) -> PixelBox {
        let [left, top, right, bottom] = numbers(value).try_into().unwrap();
        PixelBox {
            left,
            top,
            right,
            bottom,
        }
    }

    #[test]
    fn bytes_equal_pillow() {
        let cases = json("resize.json");
        let mut image = synthetic(1, 1);
        for case in cases.as_array().unwrap() {
            let (size, out) = (numbers(&case["size"]), numbers(&case["out"]));
            if image.dimensions() != (size[0], size[1]) {
                image = synthetic(size[0], size[1]);
            }
            let filter = Filter::from_pillow(case["filter"].as_u64().unwrap()).unwrap();
            let mut how = Resampling::from(filter);
            if case["horizontal_first"].as_bool().unwrap() {
                how.order = PassOrder::HorizontalFirst;
            }
            let resized = if !case["box"].is_null() {
                resize_box(&image, region(&case["box"]), out[0], out[1], how)
            } else if !case["crop"].is_null() {
                resize_crop(&image, region(&case["crop"]), out[0], out[1], how)
            } else {
                resize(&image, out[0], out[1], how)
            };
            assert_eq!(
                sha(resized.unwrap().as_raw()),
                case["sha256"].as_str().unwrap(),
                "{case}"
            );
        }
        assert!(cases.as_array().unwrap().len() > 100);
    }

    #[test]
    fn impossible_boxes_are_errors() {
        let image = synthetic(8, 6);
        let whole = PixelBox {
            left: 0,
            top: 0,
            right: 8,
            bottom: 6,
        };
        for (region, w, h) in [
            (PixelBox { right: 9, ..whole }, 4, 4),
            (PixelBox { bottom: 7, ..whole }, 4, 4),
            (PixelBox { left: 8, ..whole }, 4, 4),
            (PixelBox { top: 6, ..whole }, 4, 4),
            (whole, 0, 4),
            (whole, 4, 0),
        ] {
            for result in [
                resize_box(&image, region, w, h, Filter::Bicubic),
                resize_crop(&image, region, w, h, Filter::Nearest),
            ] {
                assert!(matches!(result, Err(ProcessorError::ResizeBox { .. })));
            }
        }
        assert!(resize(&RgbImage::new(0, 0), 4, 4, Filter::Bicubic).is_err());
    }
}
