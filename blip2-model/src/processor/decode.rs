//! Image files to 8-bit RGB.
//!
//! Mirrors `PIL.Image.open(f).convert("RGB")` followed by `ImageOps.exif_transpose`, which is how transformers'
//! `load_image` reads a file. PNG and WebP give the same bytes. JPEG does not: the format leaves rounding and chroma
//! interpolation to the decoder, and this one is up to 4 levels off libjpeg-turbo in single pixels (mean 0.4 with
//! 4:2:0 chroma, 0.02 without subsampling). One deliberate difference: 16-bit grey keeps its high byte, where Pillow
//! clips everything above 255 to white.

use std::io::Cursor;
use std::path::Path;

use image::error::DecodingError;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};

use super::error::ProcessorError;
use super::guard::guard;

/// What to do with transparency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Alpha {
    /// Keep the stored colours and forget the alpha channel, as `convert("RGB")` does.
    #[default]
    Drop,
    /// Lay the picture on a white ground.
    OnWhite,
}

/// How files are read.
#[derive(Debug, Clone)]
pub struct DecodeOptions {
    /// Largest `width * height` that is decoded. Default 178,956,970: where Pillow raises
    /// `DecompressionBombError`.
    pub max_pixels: u64,
    /// Turn the picture as its EXIF orientation says. Default true (transformers); LAVIS does not.
    pub apply_orientation: bool,
    /// Transparency. Default [`Alpha::Drop`].
    pub alpha: Alpha,
    /// Accept JPEG data that ends early; the missing part is grey. Default false.
    pub allow_truncated: bool,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self {
            max_pixels: 178_956_970,
            apply_orientation: true,
            alpha: Alpha::Drop,
            allow_truncated: false,
        }
    }
}

/// What the header of an image says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageHeader {
    /// File format.
    pub format: ImageFormat,
    /// Stored width, pixels, before any EXIF rotation.
    pub width: u32,
    /// Stored height, pixels.
    pub height: u32,
}

/// Reads and decodes a file.
///
/// # Errors
/// See [`decode_bytes`]; also [`ProcessorError::Read`].
pub fn decode_file(path: impl AsRef<Path>, options: &DecodeOptions) -> Result<RgbImage, ProcessorError> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|source| ProcessorError::Read {
        path: path.into(),
        source,
    })?;
    decode_bytes(&bytes, &path.display().to_string(), options)
}

/// Reads the header only. `label` stands for the file name in errors.
///
/// # Errors
/// [`ProcessorError::EmptyImage`], [`ProcessorError::UnknownImageFormat`], [`ProcessorError::TruncatedImage`],
/// [`ProcessorError::DecodeImage`].
pub fn read_header(bytes: &[u8], label: &str) -> Result<ImageHeader, ProcessorError> {
    let format = format_of(bytes, label)?;
    let refuse = |e| refused(bytes, format, label, e);
    let decoder = open(bytes, format, Limits::no_limits()).map_err(refuse)?;
    let (width, height) = decoder.dimensions();
    Ok(ImageHeader {
        format,
        width,
        height,
    })
}

/// Decodes JPEG, PNG or WebP bytes (of an animation the first frame). `label` stands for the file name in errors.
///
/// # Errors
/// [`ProcessorError::EmptyImage`], [`ProcessorError::UnknownImageFormat`], [`ProcessorError::ImageTooLarge`]
/// (decided by the header alone), [`ProcessorError::TruncatedImage`], [`ProcessorError::DecodeImage`].
pub fn decode_bytes(bytes: &[u8], label: &str, options: &DecodeOptions) -> Result<RgbImage, ProcessorError> {
    let format = format_of(bytes, label)?;
    let refuse = |e| refused(bytes, format, label, e);

    // 8 bytes are the largest pixel (16-bit RGBA); the rest is for metadata and work space
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(options.max_pixels.saturating_mul(8).saturating_add(64 << 20));
    let mut decoder = open(bytes, format, limits).map_err(refuse)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > options.max_pixels {
        let image = label.to_owned();
        return Err(ProcessorError::ImageTooLarge {
            image,
            width,
            height,
            limit: options.max_pixels,
        });
    }
    if format == ImageFormat::Jpeg && !options.allow_truncated && !is_complete(bytes, format) {
        return Err(ProcessorError::TruncatedImage {
            image: label.to_owned(),
        });
    }
    // damaged metadata is no reason to lose a picture
    let orientation = guard(|| decoder.orientation())
        .unwrap_or(Ok(Orientation::NoTransforms))
        .unwrap_or(Orientation::NoTransforms);
    let decoded = guard(|| DynamicImage::from_decoder(decoder))
        .unwrap_or_else(|panic| Err(ImageError::Decoding(DecodingError::new(format.into(), panic))))
        .map_err(refuse)?;

    let rgb = to_rgb(decoded, options.alpha);
    if !options.apply_orientation || orientation == Orientation::NoTransforms {
        return Ok(rgb);
    }
    let mut turned = DynamicImage::ImageRgb8(rgb);
    turned.apply_orientation(orientation);
    Ok(turned.into_rgb8())
}

fn format_of(bytes: &[u8], label: &str) -> Result<ImageFormat, ProcessorError> {
    let image = label.to_owned();
    if bytes.is_empty() {
        return Err(ProcessorError::EmptyImage { image });
    }
    match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP)) => Ok(format),
        _ => Err(ProcessorError::UnknownImageFormat { image }),
    }
}

fn open(bytes: &[u8], format: ImageFormat, limits: Limits) -> Result<impl ImageDecoder + '_, ImageError> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    guard(|| reader.into_decoder())
        .unwrap_or_else(|panic| Err(ImageError::Decoding(DecodingError::new(format.into(), panic))))
}

fn refused(bytes: &[u8], format: ImageFormat, label: &str, source: ImageError) -> ProcessorError {
    let image = label.to_owned();
    if ends_early(&source) || !is_complete(bytes, format) {
        return ProcessorError::TruncatedImage { image };
    }
    ProcessorError::DecodeImage { image, source }
}

/// Decoders wrap the end of their input in different layers.
fn ends_early(error: &ImageError) -> bool {
    let is_end = |e: &std::io::Error| e.kind() == std::io::ErrorKind::UnexpectedEof;
    if let ImageError::IoError(io) = error {
        return is_end(io);
    }
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.downcast_ref().is_some_and(is_end) {
            return true;
        }
        cause = error.source();
    }
    false
}

fn to_rgb(decoded: DynamicImage, alpha: Alpha) -> RgbImage {
    // Pillow reads 16-bit colour as its high bytes
    let decoded = match decoded {
        DynamicImage::ImageLuma16(i) => DynamicImage::ImageLuma8(high_bytes(i)),
        DynamicImage::ImageLumaA16(i) => DynamicImage::ImageLumaA8(high_bytes(i)),
        DynamicImage::ImageRgb16(i) => DynamicImage::ImageRgb8(high_bytes(i)),
        DynamicImage::ImageRgba16(i) => DynamicImage::ImageRgba8(high_bytes(i)),
        other => other,
    };
    if alpha == Alpha::Drop || !decoded.color().has_alpha() {
        return decoded.into_rgb8();
    }
    let rgba = decoded.into_rgba8();
    let (width, height) = rgba.dimensions();
    let over = |colour: u8, a: u8| {
        // Pillow's `alpha_composite` on an opaque ground: 7 extra bits, division by 255 by shifts
        let (colour, a) = (u32::from(colour), u32::from(a));
        let scaled = ((colour * a + 255 * (255 - a)) << 7) + (0x80 << 7);
        ((((scaled >> 8) + scaled) >> 8) >> 7) as u8
    };
    let raw = rgba
        .pixels()
        .flat_map(|p| [over(p[0], p[3]), over(p[1], p[3]), over(p[2], p[3])])
        .collect();
    RgbImage::from_raw(width, height, raw).expect("three bytes for each pixel")
}

fn high_bytes<W, N>(image: image::ImageBuffer<W, Vec<u16>>) -> image::ImageBuffer<N, Vec<u8>>
where
    W: image::Pixel<Subpixel = u16>,
    N: image::Pixel<Subpixel = u8>,
{
    let (width, height) = image.dimensions();
    let raw = image.into_raw().into_iter().map(|v| (v >> 8) as u8).collect();
    image::ImageBuffer::from_raw(width, height, raw).expect("as many channels as before")
}

/// Whether a file is as long as it says, for the formats whose decoders do not report that.
fn is_complete(bytes: &[u8], format: ImageFormat) -> bool {
    match (format, bytes) {
        (ImageFormat::Jpeg, _) => jpeg_is_complete(bytes),
        // RIFF: the length after the first eight bytes
        (ImageFormat::WebP, [_, _, _, _, a, b, c, d, rest @ ..]) => {
            rest.len() as u64 >= u64::from(u32::from_le_bytes([*a, *b, *c, *d]))
        }
        _ => true,
    }
}

/// Whether the data reaches an end-of-image marker.
///
/// The decoder fills missing rows with grey and reports success, so the end is looked for here: markers are
/// walked by their lengths, which skips thumbnails; inside entropy-coded data a marker is an 0xFF that is
/// followed neither by 0 (stuffing) nor by a restart code.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        at += memchr::memchr(0xFF, rest).unwrap_or(rest.len());
        while bytes.get(at) == Some(&0xFF) {
            at += 1;
        }
        let Some(&marker) = bytes.get(at) else {
            return false;
        };
        at += 1;
        match marker {
            0xD9 => return true,
            // no payload: stuffing, TEM, restart, start of image
            0x00 | 0x01 | 0xD0..=0xD8 => {}
            _ => {
                let Some(length) = bytes.get(at..at + 2) else {
                    return false;
                };
                at += usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
            }
        }
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
