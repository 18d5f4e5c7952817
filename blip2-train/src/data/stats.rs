//! Numbers of a data set: captions, pictures, formats. Reads headers only, decodes nothing.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::facts::{Facts, Histogram, Look, survey};
use super::mixture::Source;
use super::prepare::Needs;
use super::sample::DataError;

/// What `data stats` reports.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Stats {
    /// Samples that have what is needed.
    pub samples: u64,
    /// Others, by kind of problem.
    pub bad: BTreeMap<&'static str, u64>,
    /// The first of each kind in words.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub reasons: BTreeMap<&'static str, String>,
    /// Samples in each file.
    pub shards: BTreeMap<String, u64>,
    /// Encoded pictures, bytes in all.
    pub image_bytes: u64,
    /// Pictures by format.
    pub formats: BTreeMap<&'static str, u64>,
    /// Widths, classes of 64 pixels.
    pub width: Histogram,
    /// Heights, classes of 64 pixels.
    pub height: Histogram,
    /// Captions per sample.
    pub captions_per_sample: Histogram,
    /// Words per caption.
    pub caption_words: Histogram,
    /// Characters per caption, classes of 10.
    pub caption_characters: Histogram,
    /// Captions that differ.
    pub distinct_captions: u64,
    /// Samples with a question.
    pub questions: u64,
    /// Distinct answers per question.
    pub answers_per_question: Histogram,
    /// The most frequent captions.
    pub top_captions: Vec<(String, u64)>,
}

impl Stats {
    fn add(&mut self, facts: Facts, captions: &mut HashMap<String, u64>) {
        self.samples += 1;
        *self.shards.entry(facts.shard.to_string()).or_default() += 1;
        self.image_bytes += facts.bytes;
        *self.formats.entry(facts.format).or_default() += 1;
        self.width
            .add(facts.width.into(), u64::from(facts.width) / 64 * 64);
        self.height
            .add(facts.height.into(), u64::from(facts.height) / 64 * 64);
        let count = facts.captions.len() as u64;
        self.captions_per_sample.add(count, count);
        if facts.question {
            self.questions += 1;
            self.answers_per_question
                .add(facts.answers.into(), facts.answers.into());
        }
        for caption in facts.captions {
            let words = caption.split_whitespace().count() as u64;
            let characters = caption.chars().count() as u64;
            self.caption_words.add(words, words);
            self.caption_characters.add(characters, characters / 10 * 10);
            *captions.entry(caption).or_default() += 1;
        }
    }
}

/// Goes through `source` once. `progress` is called with the samples seen so far.
pub fn stats(
    source: &Source,
    needs: Needs,
    threads: usize,
    progress: &dyn Fn(u64),
) -> Result<Stats, DataError> {
    let look = Look {
        decode: false,
        needs,
        max_pixels: u64::MAX,
        max_bytes: 1 << 30,
        threads,
    };
    let (mut stats, mut captions, mut seen) = (Stats::default(), HashMap::new(), 0);
    survey(source, look, &mut |outcome| {
        match outcome {
            Ok(facts) => stats.add(facts, &mut captions),
            Err(skipped) => {
                let kind = skipped.problem.kind();
                *stats.bad.entry(kind).or_default() += 1;
                stats.reasons.entry(kind).or_insert_with(|| skipped.to_string());
            }
        }
        seen += 1;
        progress(seen);
    })?;
    stats.distinct_captions = captions.len() as u64;
    let mut top: Vec<(String, u64)> = captions.into_iter().filter(|&(_, n)| n > 1).collect();
    top.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    top.truncate(10);
    stats.top_captions = top;
    Ok(stats)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::stream::Data;
    use super::super::testing::picture_shards;
    use super::*;

    #[test]
    fn counts_of_a_small_set() {
        let (_dir, set) = picture_shards(&[7, 5], 0);
        let source = Source {
            name: "s".into(),
            data: Data::Shards(Arc::new(set)),
            ratio: None,
        };
        let got = stats(&source, Needs::Caption, 2, &|_| {}).unwrap();
        // a PNG cut in half still has its header
        assert_eq!((got.samples, got.bad.len(), got.formats["png"]), (12, 0, 12));
        assert_eq!(got.shards.values().copied().collect::<Vec<_>>(), [7, 5]);
        assert_eq!((got.width.min, got.width.max, got.height.mean()), (20, 31, 30.0));
        assert_eq!((got.caption_words.mean(), got.distinct_captions), (2.0, 12));
        assert!(got.top_captions.is_empty());
        let none = stats(&source, Needs::Question, 2, &|_| {}).unwrap();
        assert_eq!((none.samples, none.bad["missing_question"]), (0, 12));
        assert!(
            none.reasons["missing_question"].contains("s0-0"),
            "{:?}",
            none.reasons
        );
    }
}
