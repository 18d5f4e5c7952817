//! RGB image to normalised pixel values, as a checkpoint's `preprocessor_config.json` asks.
//!
//! Mirrors transformers' slow `BlipImageProcessor` (and `CLIPImageProcessor` for shortest-edge resizing with a
//! centre crop) bit for bit: resize -> crop -> rescale in f64, rounded to f32 -> normalise in f32. An 8-bit
//! image allows only 256 values per channel, so the last two steps are a table.

use std::path::Path;

use image::RgbImage;
use rayon::prelude::*;

use super::decode::DecodeOptions;
use super::error::ProcessorError;
use super::image_config::{ImageProcessorConfig, ResizeTo};
use super::resize;

/// Pixel values of a batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PixelBatch {
    /// `[B, 3, height, width]`, row-major.
    pub values: Vec<f32>,
    /// Images.
    pub batch: usize,
    /// Rows per image.
    pub height: usize,
    /// Columns per image.
    pub width: usize,
}

/// Turns RGB images into the numbers that a vision encoder takes.
#[derive(Debug, Clone)]
pub struct ImageProcessor {
    config: ImageProcessorConfig,
    /// Result for each channel and 8-bit value.
    table: [[f32; 256]; 3],
}

impl ImageProcessor {
    /// A processor with these settings.
    pub fn new(config: ImageProcessorConfig) -> Self {
        let value = |channel: usize, level: usize| {
            let scaled = if config.do_rescale {
                level as f64 * config.rescale_factor
            } else {
                level as f64
            } as f32;
            if !config.do_normalize {
                return scaled;
            }
            (scaled - config.image_mean[channel] as f32) / config.image_std[channel] as f32
        };
        let table = std::array::from_fn(|c| std::array::from_fn(|level| value(c, level)));
        Self { config, table }
    }

    /// See [`ImageProcessorConfig::blip2`].
    pub fn blip2(size: u32) -> Self {
        Self::new(ImageProcessorConfig::blip2(size))
    }

    /// From the text of a `preprocessor_config.json`.
    ///
    /// # Errors
    /// See [`ImageProcessorConfig::from_json`].
    pub fn from_json_str(text: &str) -> Result<Self, ProcessorError> {
        ImageProcessorConfig::from_json(text, Path::new("preprocessor_config.json")).map(Self::new)
    }

    /// From a `preprocessor_config.json`.
    ///
    /// # Errors
    /// See [`ImageProcessorConfig::from_json`]; also [`ProcessorError::Read`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ProcessorError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|source| ProcessorError::Read {
            path: path.into(),
            source,
        })?;
        ImageProcessorConfig::from_json(&text, path).map(Self::new)
    }

    /// The settings.
    pub fn config(&self) -> &ImageProcessorConfig {
        &self.config
    }

    /// `(height, width)` of the result for an image of `height` x `width` pixels.
    pub fn output_size(&self, height: u32, width: u32) -> (u32, u32) {
        self.config
            .center_crop
            .unwrap_or_else(|| self.resized(height, width))
    }

    fn resized(&self, height: u32, width: u32) -> (u32, u32) {
        match self.config.size {
            _ if !self.config.do_resize => (height, width),
            ResizeTo::Exact { height, width } => (height, width),
            ResizeTo::ShortestEdge(edge) => {
                let (short, long) = (height.min(width), height.max(width));
                // Python divides integers in f64 and cuts the fraction
                let long = ((f64::from(edge) * f64::from(long)) / f64::from(short)) as u32;
                if width <= height {
                    (long, edge)
                } else {
                    (edge, long)
                }
            }
        }
    }

    /// Refuses images without pixels, and ones so narrow that the longer side would fill the memory.
    fn check(&self, image: &RgbImage) -> Result<(), ProcessorError> {
        if image.as_raw().is_empty() {
            return resize::resize(image, 1, 1, self.config.resample).map(drop);
        }
        let (height, width) = self.resized(image.height(), image.width());
        let limit = DecodeOptions::default().max_pixels;
        if u64::from(height) * u64::from(width) > limit {
            let image = format!("a {} x {} image, once resized,", image.width(), image.height());
            return Err(ProcessorError::ImageTooLarge {
                image,
                width,
                height,
                limit,
            });
        }
        Ok(())
    }

    /// Pixel values `[3, height, width]` of one image, row-major; see [`Self::output_size`].
    ///
    /// # Errors
    /// [`ProcessorError::ResizeBox`] for an image without pixels, [`ProcessorError::ImageTooLarge`] for one whose
    /// longer side explodes when the shorter one is resized.
    pub fn preprocess(&self, image: &RgbImage) -> Result<Vec<f32>, ProcessorError> {
        self.check(image)?;
        let (height, width) = self.output_size(image.height(), image.width());
        let mut values = vec![0.0; 3 * height as usize * width as usize];
        self.write(image, &mut values)?;
        Ok(values)
    }

    /// Pixel values of several images, worked on in parallel. An empty batch has size 0 x 0.
    ///
    /// # Errors
    /// [`ProcessorError::MixedBatch`] if the results differ in size; see also [`Self::preprocess`].
    pub fn preprocess_batch(&self, images: &[RgbImage]) -> Result<PixelBatch, ProcessorError> {
        images.iter().try_for_each(|i| self.check(i))?;
        let sizes = images.iter().map(|i| self.output_size(i.height(), i.width()));
        let Some(first) = sizes.clone().next() else {
            return Ok(PixelBatch::default());
        };
        if let Some((index, (height, width))) = sizes.enumerate().find(|(_, s)| *s != first) {
            let (first_height, first_width) = first;
            return Err(ProcessorError::MixedBatch {
                index,
                height,
                width,
                first_height,
                first_width,
            });
        }
        let (height, width) = (first.0 as usize, first.1 as usize);
        let mut values = vec![0.0; images.len() * 3 * height * width];
        let slices = values.par_chunks_exact_mut(3 * height * width);
        images
            .par_iter()
            .zip(slices)
            .try_for_each(|(image, out)| self.write(image, out))?;
        Ok(PixelBatch {
            values,
            batch: images.len(),
            height,
            width,
        })
    }

    fn write(&self, image: &RgbImage, out: &mut [f32]) -> Result<(), ProcessorError> {
        let (height, width) = self.resized(image.height(), image.width());
        let resized = resize::resize(image, width, height, self.config.resample)?;
        let cropped = match self.config.center_crop {
            Some(size) => center_crop(&resized, size),
            None => resized,
        };
        let plane = cropped.width() as usize * cropped.height() as usize;
        let (red, rest) = out.split_at_mut(plane);
        let (green, blue) = rest.split_at_mut(plane);
        let planes = red.iter_mut().zip(green).zip(blue);
        for (((r, g), b), pixel) in planes.zip(cropped.as_raw().chunks_exact(3)) {
            *r = self.table[0][usize::from(pixel[0])];
            *g = self.table[1][usize::from(pixel[1])];
            *b = self.table[2][usize::from(pixel[2])];
        }
        Ok(())
    }
}

/// transformers' `center_crop`: a side that is too short gets black on both ends, one more in front if odd.
fn center_crop(image: &RgbImage, (height, width): (u32, u32)) -> RgbImage {
    // first source position of the crop; negative = border
    let offset = |size: u32, crop: u32| {
        let (size, crop) = (i64::from(size), i64::from(crop));
        if crop <= size {
            (size - crop) / 2
        } else {
            -((crop - size + 1) / 2)
        }
    };
    let (top, left) = (offset(image.height(), height), offset(image.width(), width));
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (i64::from(x) + left, i64::from(y) + top);
        let inside =
            (0..i64::from(image.width())).contains(&x) && (0..i64::from(image.height())).contains(&y);
        if inside {
            *image.get_pixel(x as u32, y as u32)
        } else {
            image::Rgb([0; 3])
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{json, numbers, sha, synthetic};
    use super::*;

    fn processor(config: &serde_json::Value) -> ImageProcessor {
        ImageProcessor::from_json_str(&config.to_string()).unwrap()
    }

    /// Bit for bit: the arithmetic is the same, step by step.
    #[test]
    fn pixel_values_equal_transformers() {
        let fixture = json("pixel_values.json");
        for case in fixture["cases"].as_array().unwrap() {
            let processor = processor(&fixture["configs"][case["config"].as_str().unwrap()]);
            let size = numbers(&case["size"]);
            let image = synthetic(size[0], size[1]);
            let (height, width) = processor.output_size(image.height(), image.width());
            assert_eq!([3, height, width], numbers(&case["shape"])[..], "{case}");
            let values = processor.preprocess(&image).unwrap();
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!(
                sha(&bytes),
                case["sha256"].as_str().unwrap(),
                "{case}: {:?}",
                &values[..4]
            );
        }
    }

    #[test]
    fn batch_equals_singles() {
        let processor = ImageProcessor::blip2(28);
        let images = [synthetic(40, 30), synthetic(30, 50), synthetic(5, 5)];
        let batch = processor.preprocess_batch(&images).unwrap();
        assert_eq!((batch.batch, batch.height, batch.width), (3, 28, 28));
        let singles: Vec<f32> = images
            .iter()
            .flat_map(|i| processor.preprocess(i).unwrap())
            .collect();
        assert_eq!(batch.values, singles);
        assert_eq!(processor.preprocess_batch(&[]).unwrap(), PixelBatch::default());
    }

    #[test]
    fn unusable_images_are_errors() {
        let json = r#"{"image_processor_type": "CLIPImageProcessor", "do_center_crop": false}"#;
        let shortest = ImageProcessor::from_json_str(json).unwrap();
        let mixed = shortest
            .preprocess_batch(&[synthetic(9, 9), synthetic(9, 18)])
            .unwrap_err();
        assert!(
            matches!(
                mixed,
                ProcessorError::MixedBatch {
                    index: 1,
                    height: 448,
                    ..
                }
            ),
            "{mixed}"
        );
        let sliver = shortest.preprocess(&RgbImage::new(1, 65535)).unwrap_err();
        assert!(matches!(sliver, ProcessorError::ImageTooLarge { .. }), "{sliver}");
        for processor in [shortest, ImageProcessor::blip2(28)] {
            let empty = RgbImage::new(0, 7);
            assert!(matches!(
                processor.preprocess(&empty),
                Err(ProcessorError::ResizeBox { .. })
            ));
            assert!(processor.preprocess_batch(&[empty]).is_err());
        }
    }
}
