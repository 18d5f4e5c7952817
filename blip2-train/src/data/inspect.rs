//! A contact sheet: pictures of a data set with their captions, in one PNG.

use std::sync::Arc;

use blip2_model::processor::{Alpha, DecodeOptions, Filter, decode_bytes, resize};
use font8x8::{BASIC_FONTS, LATIN_FONTS, UnicodeFonts};
use image::{Rgb, RgbImage};
use serde::Serialize;

use super::mixture::{Mixture, MixtureConfig, Source, Start};
use super::pipeline::{Capacity, Pipeline, Work};
use super::prepare::Preparation;
use super::sample::{DataError, Problem, Question, Sample, Skipped};
use super::stream::Order;

/// Side of a glyph, pixels.
const GLYPH: u32 = 8;
/// Space between cells, pixels.
const GAP: u32 = 8;
const PAPER: Rgb<u8> = Rgb([255; 3]);
const INK: Rgb<u8> = Rgb([20; 3]);
const GREY: Rgb<u8> = Rgb([120; 3]);

/// How the sheet is laid out.
#[derive(Clone, Copy, Debug)]
pub struct SheetOptions {
    /// Samples shown.
    pub count: usize,
    /// Pictures side by side.
    pub columns: u32,
    /// Largest side of a picture on the sheet, pixels.
    pub side: u32,
    /// Lines of text under a picture.
    pub lines: u32,
    /// Take them in shuffled order of this seed; in file order when absent.
    pub shuffle: Option<u64>,
}

impl Default for SheetOptions {
    fn default() -> Self {
        Self {
            count: 40,
            columns: 8,
            side: 160,
            lines: 5,
            shuffle: None,
        }
    }
}

/// What the sheet shows of a sample, for the terminal.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    /// File it is in.
    pub shard: String,
    /// Key inside it.
    pub key: String,
    /// Stored size, pixels.
    pub width: u32,
    /// Stored size, pixels.
    pub height: u32,
    /// All captions.
    pub captions: Vec<String>,
    /// Question and answers.
    pub question: Option<Question>,
    /// Identifier of the picture.
    pub image_id: Option<String>,
}

/// A contact sheet and what is on it.
pub struct Sheet {
    /// The picture.
    pub image: RgbImage,
    /// Samples in the order shown, row by row.
    pub shown: Vec<Shown>,
    /// Samples passed over on the way.
    pub skipped: Vec<Skipped>,
}

/// Draws the first samples of `source`.
pub fn inspect(source: &Source, options: SheetOptions) -> Result<Sheet, DataError> {
    let bad = |field, value: u32, remedy| {
        Err(DataError::Setting {
            field,
            value: value.to_string(),
            remedy,
        })
    };
    let SheetOptions {
        count,
        columns,
        side,
        lines,
        shuffle,
    } = options;
    match () {
        () if !(1..=10_000).contains(&count) => return bad("count", count as u32, "1 to 10000"),
        () if !(1..=64).contains(&columns) => return bad("columns", columns, "1 to 64"),
        () if !(16..=1024).contains(&side) => return bad("side", side, "16 to 1024 pixels"),
        () if lines > 40 => return bad("lines", lines, "at most 40"),
        () => {}
    }
    let defaults = Order::default();
    let order = Order {
        shuffle: shuffle.is_some(),
        seed: shuffle.unwrap_or(defaults.seed),
        ..defaults
    };
    let config = MixtureConfig {
        order,
        ..MixtureConfig::default()
    };
    let mixture = Mixture::new(std::slice::from_ref(source), config, Start::Epoch(0))?;
    let work: Work<(Shown, RgbImage)> = Arc::new(move |_, _, sample| thumbnail(sample, side));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let (mut shown, mut pictures, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
    for item in Pipeline::new(
        mixture,
        Vec::new(),
        Capacity {
            threads,
            in_flight: count.min(64),
        },
        work,
    ) {
        match item?.outcome {
            Ok((entry, picture)) => {
                shown.push(entry);
                pictures.push(picture);
            }
            Err(problem) => skipped.push(problem),
        }
        if shown.len() == count {
            break;
        }
    }
    Ok(Sheet {
        image: draw(&shown, &pictures, options),
        shown,
        skipped,
    })
}

fn thumbnail(sample: Sample, side: u32) -> Result<(Shown, RgbImage), Problem> {
    let limits = Preparation::default();
    let options = DecodeOptions {
        max_pixels: limits.max_pixels,
        alpha: Alpha::OnWhite, // for the eye
        ..DecodeOptions::default()
    };
    let refused = |e| Problem::Decode(Arc::new(e));
    let image = decode_bytes(&sample.image.read(limits.max_bytes)?, "image", &options).map_err(refused)?;
    let (width, height) = image.dimensions();
    let scale = f64::from(side) / f64::from(width.max(height));
    let fit = |length: u32| ((f64::from(length) * scale).round() as u32).clamp(1, side);
    let small = resize(&image, fit(width), fit(height), Filter::Bicubic).map_err(refused)?;
    let shown = Shown {
        shard: sample.shard.to_string(),
        key: sample.key,
        width,
        height,
        captions: sample.captions,
        question: sample.question,
        image_id: sample.image_id,
    };
    Ok((shown, small))
}

fn draw(shown: &[Shown], pictures: &[RgbImage], options: SheetOptions) -> RgbImage {
    let SheetOptions {
        columns, side, lines, ..
    } = options;
    let line = GLYPH + 2;
    let (cell_w, cell_h) = (side + GAP, side + (lines + 1) * line + GAP);
    let rows = (shown.len() as u32).div_ceil(columns).max(1);
    let mut sheet = RgbImage::from_pixel(columns * cell_w + GAP, rows * cell_h + GAP, PAPER);
    for (i, (entry, picture)) in (0u32..).zip(shown.iter().zip(pictures)) {
        let (left, top) = (GAP + i % columns * cell_w, GAP + i / columns * cell_h);
        let (dx, dy) = ((side - picture.width()) / 2, (side - picture.height()) / 2);
        image::imageops::replace(&mut sheet, picture, i64::from(left + dx), i64::from(top + dy));
        let per_line = (side / GLYPH) as usize;
        let tail: Vec<char> = entry.key.chars().rev().take(per_line).collect();
        text(
            &mut sheet,
            left,
            top + side + 2,
            &tail.into_iter().rev().collect::<String>(),
            GREY,
        );
        for (n, words) in (0u32..lines).zip(wrap(&caption_text(entry), per_line)) {
            text(&mut sheet, left, top + side + 2 + (n + 1) * line, &words, INK);
        }
    }
    sheet
}

fn caption_text(entry: &Shown) -> String {
    let question = entry.question.as_ref().map(|q| {
        let answers: Vec<&str> = q.answers.iter().map(|a| a.text.as_str()).collect();
        format!("Q: {} A: {}", q.text, answers.join(", "))
    });
    let parts: Vec<&str> = entry
        .captions
        .iter()
        .map(String::as_str)
        .chain(question.as_deref())
        .collect();
    parts.join(" | ")
}

/// Lines of at most `width` characters, broken between words where possible.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        while !word.is_empty() {
            let used = lines.last().map_or(width, |l| l.chars().count());
            if used > 0 && used + 1 + word.len() <= width {
                let last = lines.last_mut().expect("used < width only with a line");
                last.push(' ');
                last.extend(word.drain(..));
            } else {
                let rest = word.split_off(word.len().min(width.max(1)));
                lines.push(word.into_iter().collect());
                word = rest;
            }
        }
    }
    lines
}

fn text(sheet: &mut RgbImage, left: u32, top: u32, text: &str, ink: Rgb<u8>) {
    // characters outside Latin are shown as a box
    const BOX: [u8; 8] = [0, 0x7e, 0x42, 0x42, 0x42, 0x42, 0x7e, 0];
    for (n, c) in (0u32..).zip(text.chars()) {
        let c = plain(c);
        let glyph = BASIC_FONTS.get(c).or_else(|| LATIN_FONTS.get(c)).unwrap_or(BOX);
        for (y, row) in (0u32..).zip(glyph) {
            for x in (0..GLYPH).filter(|x| row >> x & 1 == 1) {
                let (x, y) = (left + n * GLYPH + x, top + y);
                if x < sheet.width() && y < sheet.height() {
                    sheet.put_pixel(x, y, ink);
                }
            }
        }
    }
}

/// Typographic marks that the font lacks, as the keyboard has them.
fn plain(c: char) -> char {
    match c {
        '\u{2018}' | '\u{2019}' => '\'',
        '\u{201c}' | '\u{201d}' => '"',
        '\u{2010}'..='\u{2015}' => '-',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::stream::Data;
    use super::super::testing::picture_shards;
    use super::*;

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrap("a cat on a mat", 8), ["a cat on", "a mat"]);
        assert_eq!(wrap("abcdefghij k", 4), ["abcd", "efgh", "ij k"]);
        assert!(wrap("  ", 4).is_empty());
    }

    #[test]
    fn a_sheet_holds_the_good_samples_and_their_text() {
        let (_dir, set) = picture_shards(&[12], 0);
        let source = Source {
            name: "s".into(),
            data: Data::Shards(Arc::new(set)),
            ratio: None,
        };
        let options = SheetOptions {
            count: 11,
            columns: 4,
            side: 64,
            lines: 2,
            shuffle: None,
        };
        let sheet = inspect(&source, options).unwrap();
        assert_eq!((sheet.shown.len(), sheet.skipped.len()), (11, 1));
        assert_eq!(sheet.image.dimensions(), (4 * 72 + 8, 3 * (64 + 30 + 8) + 8));
        assert_eq!(sheet.shown[10].key, "s0-11");
        assert_eq!((sheet.shown[1].width, sheet.shown[1].height), (21, 30));
        // caption "0 0" below the first picture: ink where the font has it, paper left of it
        let row: Vec<bool> = (0..24)
            .map(|x| (0..8).any(|y| *sheet.image.get_pixel(8 + x, 8 + 64 + 2 + 10 + y) == INK))
            .collect();
        assert!(row[..8].contains(&true) && row[16..].contains(&true) && !row[8..16].contains(&true));
        assert!(
            inspect(
                &source,
                SheetOptions {
                    columns: 0,
                    ..options
                }
            )
            .is_err()
        );
        let mixed = inspect(
            &source,
            SheetOptions {
                shuffle: Some(1),
                ..options
            },
        )
        .unwrap();
        assert_ne!(mixed.shown[0].key, sheet.shown[0].key);
    }
}
