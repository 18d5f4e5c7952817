//! Published figures of BLIP-2, to print beside a result.
//!
//! Recipes bear LAVIS's names where LAVIS has one; the paper's other rows are named alike. Figures are in points (CIDEr
//! 145.8, not 1.458). Where paper and LAVIS's recorded figure differ, both are listed.

use std::fmt;

use super::results::Score;

/// Where a figure was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The paper's tables (Li et al. 2023, arXiv 2301.12597).
    Paper,
    /// Head of the recipe's YAML file in LAVIS.
    Lavis,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Paper => "paper",
            Self::Lavis => "LAVIS",
        })
    }
}

/// Figures of one recipe from one source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// Name of the recipe.
    pub recipe: &'static str,
    /// What it is measured on.
    pub data: &'static str,
    /// Where it was published.
    pub source: Source,
    /// Names and values.
    pub figures: &'static [(&'static str, f64)],
}

/// Figures of a recipe, the paper's first.
pub fn of_recipe(recipe: &str) -> impl Iterator<Item = &'static Expected> + '_ {
    TABLE.iter().filter(move |row| row.recipe == recipe)
}

/// Published figure of one metric: LAVIS's own record where there is one, as it was made with the released checkpoint.
pub fn figure(recipe: &str, metric: &str) -> Option<(f64, Source)> {
    let find = |source| {
        let mut rows = of_recipe(recipe).filter(|row| row.source == source);
        rows.find_map(|row| row.figures.iter().find(|(name, _)| *name == metric))
            .map(|(_, value)| (*value, source))
    };
    find(Source::Lavis).or_else(|| find(Source::Paper))
}

/// Puts published figures beside measured ones.
pub fn annotate(recipe: &str, scores: &mut [Score]) {
    for score in scores {
        score.published = figure(recipe, &score.metric).map(|(value, _)| value);
    }
}

/// Plain-text table of a recipe's published figures with the measured ones, for `eval --expected`.
pub fn table(recipe: &str, measured: &[Score]) -> String {
    let mut lines = vec![format!(
        "{:<12} {:>9} {:>9} {:>7}  {}",
        "metric", "published", "measured", "diff", "source"
    )];
    for row in of_recipe(recipe) {
        for (metric, published) in row.figures {
            let score = measured.iter().find(|s| s.metric == *metric).map(|s| s.value);
            let (value, difference) = match score {
                Some(value) => (format!("{value:.2}"), format!("{:+.2}", value - published)),
                None => ("-".to_string(), "-".to_string()),
            };
            let source = format!("{}, {}", row.source, row.data);
            lines.push(format!(
                "{metric:<12} {published:>9.2} {value:>9} {difference:>7}  {source}"
            ));
        }
    }
    if lines.len() == 1 {
        lines = vec![format!("no figure was published for `{recipe}`; known recipes:")];
        let mut names: Vec<_> = TABLE.iter().map(|row| row.recipe).collect();
        names.dedup();
        lines.extend(names.into_iter().map(|name| format!("  {name}")));
    }
    lines.join("\n")
}

const CAPTION: &str = "COCO Karpathy test";
const NOCAPS: &str = "NoCaps val";
const VQA: &str = "VQAv2 val";
const OKVQA: &str = "OK-VQA test";
const GQA: &str = "GQA balanced test-dev";
const COCO: &str = "COCO 5K test";
const FLICKR: &str = "Flickr30K 1K test";

const fn row(
    recipe: &'static str,
    data: &'static str,
    source: Source,
    figures: &'static [(&'static str, f64)],
) -> Expected {
    Expected {
        recipe,
        data,
        source,
        figures,
    }
}

use Source::{Lavis, Paper};

/// All of it; rows of one recipe stand together.
pub const TABLE: &[Expected] = &[
    row(
        "caption_coco_opt2.7b",
        CAPTION,
        Paper,
        &[("BLEU-4", 43.7), ("CIDEr", 145.8)],
    ),
    row(
        "caption_coco_opt2.7b",
        CAPTION,
        Lavis,
        &[
            ("BLEU-1", 83.2),
            ("BLEU-2", 69.1),
            ("BLEU-3", 55.6),
            ("BLEU-4", 43.8),
            ("METEOR", 31.7),
            ("ROUGE-L", 62.0),
            ("CIDEr", 146.1),
            ("SPICE", 25.2),
        ],
    ),
    row(
        "caption_coco_opt6.7b",
        CAPTION,
        Paper,
        &[("BLEU-4", 43.5), ("CIDEr", 145.2)],
    ),
    row(
        "caption_coco_opt6.7b",
        CAPTION,
        Lavis,
        &[
            ("BLEU-1", 83.1),
            ("BLEU-2", 68.9),
            ("BLEU-3", 55.2),
            ("BLEU-4", 43.4),
            ("METEOR", 31.6),
            ("ROUGE-L", 61.8),
            ("CIDEr", 145.1),
            ("SPICE", 25.1),
        ],
    ),
    row(
        "caption_coco_flant5xl",
        CAPTION,
        Paper,
        &[("BLEU-4", 42.4), ("CIDEr", 144.5)],
    ),
    row(
        "caption_nocaps_opt2.7b",
        NOCAPS,
        Paper,
        &[("CIDEr", 119.7), ("SPICE", 15.4)],
    ),
    row(
        "caption_nocaps_opt6.7b",
        NOCAPS,
        Paper,
        &[("CIDEr", 121.0), ("SPICE", 15.3)],
    ),
    row(
        "caption_nocaps_flant5xl",
        NOCAPS,
        Paper,
        &[("CIDEr", 121.6), ("SPICE", 15.8)],
    ),
    row(
        "caption_nocaps_in_domain_opt2.7b",
        NOCAPS,
        Paper,
        &[("CIDEr", 123.0), ("SPICE", 15.8)],
    ),
    row(
        "caption_nocaps_in_domain_opt6.7b",
        NOCAPS,
        Paper,
        &[("CIDEr", 123.7), ("SPICE", 15.8)],
    ),
    row(
        "caption_nocaps_in_domain_flant5xl",
        NOCAPS,
        Paper,
        &[("CIDEr", 123.7), ("SPICE", 16.3)],
    ),
    row(
        "caption_nocaps_near_domain_opt2.7b",
        NOCAPS,
        Paper,
        &[("CIDEr", 117.8), ("SPICE", 15.4)],
    ),
    row(
        "caption_nocaps_near_domain_opt6.7b",
        NOCAPS,
        Paper,
        &[("CIDEr", 119.2), ("SPICE", 15.3)],
    ),
    row(
        "caption_nocaps_near_domain_flant5xl",
        NOCAPS,
        Paper,
        &[("CIDEr", 120.2), ("SPICE", 15.9)],
    ),
    row(
        "caption_nocaps_out_domain_opt2.7b",
        NOCAPS,
        Paper,
        &[("CIDEr", 123.4), ("SPICE", 15.1)],
    ),
    row(
        "caption_nocaps_out_domain_opt6.7b",
        NOCAPS,
        Paper,
        &[("CIDEr", 124.4), ("SPICE", 14.8)],
    ),
    row(
        "caption_nocaps_out_domain_flant5xl",
        NOCAPS,
        Paper,
        &[("CIDEr", 124.8), ("SPICE", 15.1)],
    ),
    row("vqav2_zeroshot_opt2.7b_vitL", VQA, Paper, &[("overall", 50.1)]),
    row("vqav2_zeroshot_opt2.7b", VQA, Paper, &[("overall", 53.5)]),
    row("vqav2_zeroshot_opt2.7b", VQA, Lavis, &[("overall", 51.88)]),
    row("vqav2_zeroshot_opt6.7b", VQA, Paper, &[("overall", 54.3)]),
    row("vqav2_zeroshot_flant5xl_vitL", VQA, Paper, &[("overall", 62.6)]),
    row("vqav2_zeroshot_flant5xl", VQA, Paper, &[("overall", 63.1)]),
    row(
        "vqav2_zeroshot_flant5xl",
        VQA,
        Lavis,
        &[
            ("overall", 63.13),
            ("other", 52.90),
            ("yes/no", 84.28),
            ("number", 41.01),
        ],
    ),
    row("vqav2_zeroshot_flant5xxl", VQA, Paper, &[("overall", 65.2)]),
    row("okvqa_zeroshot_opt2.7b_vitL", OKVQA, Paper, &[("overall", 30.2)]),
    row("okvqa_zeroshot_opt2.7b", OKVQA, Paper, &[("overall", 31.7)]),
    row("okvqa_zeroshot_opt6.7b", OKVQA, Paper, &[("overall", 36.4)]),
    row("okvqa_zeroshot_flant5xl_vitL", OKVQA, Paper, &[("overall", 39.4)]),
    row("okvqa_zeroshot_flant5xl", OKVQA, Paper, &[("overall", 40.7)]),
    row("okvqa_zeroshot_flant5xl", OKVQA, Lavis, &[("overall", 41.22)]),
    row("okvqa_zeroshot_flant5xxl", OKVQA, Paper, &[("overall", 45.9)]),
    row("gqa_zeroshot_opt2.7b_vitL", GQA, Paper, &[("overall", 33.9)]),
    row("gqa_zeroshot_opt2.7b", GQA, Paper, &[("overall", 34.6)]),
    row("gqa_zeroshot_opt6.7b", GQA, Paper, &[("overall", 36.4)]),
    row("gqa_zeroshot_flant5xl_vitL", GQA, Paper, &[("overall", 44.4)]),
    row("gqa_zeroshot_flant5xl", GQA, Paper, &[("overall", 44.2)]),
    row("gqa_zeroshot_flant5xl", GQA, Lavis, &[("overall", 43.98)]),
    row("gqa_zeroshot_flant5xxl", GQA, Paper, &[("overall", 44.7)]),
    row(
        "ret_coco",
        COCO,
        Paper,
        &[
            ("TR@1", 85.4),
            ("TR@5", 97.0),
            ("TR@10", 98.5),
            ("IR@1", 68.3),
            ("IR@5", 87.7),
            ("IR@10", 92.6),
        ],
    ),
    row(
        "ret_coco_vitL",
        COCO,
        Paper,
        &[
            ("TR@1", 83.5),
            ("TR@5", 96.0),
            ("TR@10", 98.0),
            ("IR@1", 66.3),
            ("IR@5", 86.5),
            ("IR@10", 91.8),
        ],
    ),
    row(
        "ret_flickr",
        FLICKR,
        Paper,
        &[
            ("TR@1", 97.6),
            ("TR@5", 100.0),
            ("TR@10", 100.0),
            ("IR@1", 89.7),
            ("IR@5", 98.1),
            ("IR@10", 98.9),
        ],
    ),
    row(
        "ret_flickr_vitL",
        FLICKR,
        Paper,
        &[
            ("TR@1", 96.9),
            ("TR@5", 100.0),
            ("TR@10", 100.0),
            ("IR@1", 88.6),
            ("IR@5", 97.6),
            ("IR@10", 98.9),
        ],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_in_points_and_named_once() {
        for row in TABLE {
            for (at, (metric, value)) in row.figures.iter().enumerate() {
                assert!((10.0..150.0).contains(value), "{} {metric}", row.recipe);
                assert!(
                    row.figures[..at].iter().all(|(other, _)| other != metric),
                    "{} {metric}",
                    row.recipe
                );
            }
        }
        let mut pairs: Vec<_> = TABLE
            .iter()
            .map(|row| (row.recipe, row.source.to_string()))
            .collect();
        pairs.sort();
        pairs.dedup();
        assert_eq!(pairs.len(), TABLE.len(), "one row for each recipe and source");
    }

    #[test]
    fn the_released_checkpoints_record_comes_first() {
        assert_eq!(
            figure("caption_coco_opt2.7b", "CIDEr"),
            Some((146.1, Source::Lavis))
        );
        assert_eq!(
            figure("caption_coco_flant5xl", "CIDEr"),
            Some((144.5, Source::Paper))
        );
        assert_eq!(figure("caption_coco_flant5xl", "METEOR"), None);
    }

    #[test]
    fn the_table_shows_both_and_their_difference() {
        let mut scores = vec![Score {
            metric: "overall".into(),
            value: 63.0,
            published: None,
        }];
        annotate("vqav2_zeroshot_flant5xl", &mut scores);
        assert_eq!(scores[0].published, Some(63.13));
        let text = table("vqav2_zeroshot_flant5xl", &scores);
        assert!(
            text.contains("-0.13") && text.contains("-0.10") && text.contains("yes/no"),
            "{text}"
        );
        assert!(table("nonesuch", &[]).contains("ret_coco"));
    }
}
