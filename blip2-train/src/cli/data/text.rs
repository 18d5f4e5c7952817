//! Reports of `data` for people.

use crate::data::facts::Histogram;
use crate::data::stats::Stats;
use crate::data::verify::{Duplicates, Verification};

pub(super) fn verification_text(found: &Verification) -> String {
    let mut text = format!("{} samples, {} good\n", found.seen, found.good);
    for (kind, count) in &found.kinds {
        text += &format!("  {kind}: {count}\n");
    }
    for bad in &found.bad {
        text += &format!("  {} `{}`: {}\n", bad.name.shard, bad.name.key, bad.reason);
    }
    let mut duplicates = |what: &str, d: &Duplicates| {
        text += &format!(
            "{what}: {} groups, {} beyond the first of each\n",
            d.groups, d.extra
        );
        for (one, other) in &d.examples {
            text += &format!(
                "  {} `{}` = {} `{}`\n",
                one.shard, one.key, other.shard, other.key
            );
        }
    };
    duplicates("same picture and caption", &found.same_pair);
    duplicates(
        "same picture",
        &Duplicates {
            examples: Vec::new(),
            ..found.same_image.clone()
        },
    );
    duplicates(
        "same caption",
        &Duplicates {
            examples: Vec::new(),
            ..found.same_caption.clone()
        },
    );
    text
}

pub(super) fn stats_text(found: &Stats) -> String {
    // counted in classes of 64 pixels, too coarse for a median
    let side = |h: &Histogram| format!("{} to {} pixels, mean {:.1}", h.min, h.max, h.mean());
    let range = |h: &Histogram| {
        format!(
            "{} to {}, mean {:.1}, median {}",
            h.min,
            h.max,
            h.mean(),
            h.quantile(0.5)
        )
    };
    let mut text = format!(
        "{} samples in {} files, {:.1} MB of pictures\n",
        found.samples,
        found.shards.len(),
        found.image_bytes as f64 / 1e6
    );
    for (kind, n) in &found.bad {
        let first = found.reasons.get(kind).map(String::as_str).unwrap_or_default();
        text += &format!("  not usable, {kind}: {n}, such as {first}\n");
    }
    found
        .formats
        .iter()
        .for_each(|(format, n)| text += &format!("  {format}: {n}\n"));
    text += &format!(
        "width   {}\nheight  {}\n",
        side(&found.width),
        side(&found.height)
    );
    text += &format!("captions per sample  {}\n", range(&found.captions_per_sample));
    if found.questions > 0 {
        let answers = range(&found.answers_per_question);
        text += &format!("questions  {}; distinct answers  {answers}\n", found.questions);
    }
    text += &format!(
        "words per caption  {}; {} distinct captions\n",
        range(&found.caption_words),
        found.distinct_captions
    );
    let most = found.caption_words.classes.values().max().copied().unwrap_or(1);
    for (words, n) in &found.caption_words.classes {
        text += &format!(
            "{words:>4} words  {n:>9}  {}\n",
            "#".repeat((n * 50).div_ceil(most) as usize)
        );
    }
    found
        .top_captions
        .iter()
        .for_each(|(caption, n)| text += &format!("{n:>6} x  {caption}\n"));
    text
}
