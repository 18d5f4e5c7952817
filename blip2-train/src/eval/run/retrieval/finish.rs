//! From the journals of a retrieval evaluation to recalls.

use std::collections::HashMap;

use rayon::prelude::*;

use super::{Contrastive, Pairs, RetrievalTask};
use crate::eval::EvalError;
use crate::eval::results::{self, Id, Score};
use crate::eval::retrieval::{NOT_RANKED, RECALL_AT, RetrievalScores, best, rank_of_best};
use crate::eval::run::RunError;
use crate::eval::run::pictures::{Picture, Pictures};
use crate::eval::run::publish::{Case, Finished, Publisher};

impl RetrievalTask {
    /// Scores what the journals hold.
    pub fn finish(&self, pictures: &Pictures, publisher: &mut Publisher) -> Result<Finished, RunError> {
        let list: Vec<&Picture> = pictures
            .list
            .iter()
            .filter(|picture| !picture.captions.is_empty() && !publisher.is_skipped(&picture.id))
            .collect();
        let texts = self.texts(&list)?;
        let path = publisher.folder().join("contrastive.json");
        let first: Contrastive = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(EvalError::json(&path))?,
            Err(_) => {
                publisher.all_done(0, list.len())?;
                return Err(EvalError::Empty.into());
            }
        };
        let contrastive = RetrievalScores::from_ranks(&first.text_ranks, &first.image_ranks);
        let mut finished = Finished {
            items: list.len(),
            sorted_by: "1 / rank of the picture's best caption",
            ..Finished::default()
        };
        let (text_ranks, best_texts, image_ranks, best_images);
        if self.k == 0 {
            finished.scores = figures("", &contrastive);
            (text_ranks, best_texts, image_ranks, best_images) = (
                first.text_ranks,
                first.best_texts,
                first.image_ranks,
                first.best_images,
            );
        } else {
            let (lines, _) = results::merge(results::read_journals::<Pairs>(publisher.folder(), "pairs")?);
            let lines: HashMap<&Id, &Pairs> = lines.iter().map(|pairs| (&pairs.image_id, pairs)).collect();
            let rows: Vec<&Pairs> = list
                .iter()
                .filter_map(|picture| lines.get(&picture.id).copied())
                .collect();
            publisher.all_done(rows.len(), list.len())?;
            let by_image = ranking(rows.len(), texts.texts.len(), |row| pairs_of(rows[row], 1));
            let mut columns: Vec<Vec<(usize, f32)>> = vec![Vec::new(); texts.texts.len()];
            for (image, pairs) in rows.iter().enumerate() {
                for (text, score) in pairs_of(pairs, 2) {
                    columns[text].push((image, score));
                }
            }
            let by_text = ranking(columns.len(), list.len(), |text| columns[text].iter().copied());
            text_ranks = by_image
                .iter()
                .enumerate()
                .map(|(i, row)| rank_of_best(row, texts.map.captions_of(i)))
                .collect();
            image_ranks = by_text
                .iter()
                .enumerate()
                .map(|(t, row)| rank_of_best(row, texts.map.images_of(t)))
                .collect();
            best_texts = by_image.iter().map(|row| best(row, 10)).collect();
            best_images = by_text.iter().map(|row| best(row, 10)).collect();
            let reranked = RetrievalScores::from_ranks(&text_ranks, &image_ranks);
            finished.scores = figures("", &reranked);
            finished.scores.extend(figures("ITC ", &contrastive));
        }
        let ids: Vec<&Id> = list.iter().map(|picture| &picture.id).collect();
        publisher.write(
            "predictions.json",
            &predictions(
                &ids,
                &texts.texts,
                &text_ranks,
                &best_texts,
                &image_ranks,
                &best_images,
            ),
        )?;
        finished.cases = list
            .iter()
            .enumerate()
            .map(|(i, picture)| Case {
                picture: picture.id.clone(),
                question: None,
                prediction: best_texts[i]
                    .first()
                    .map_or(String::new(), |&text| texts.texts[text].clone()),
                references: picture.captions.clone(),
                score: 1.0 / (text_ranks[i] + 1) as f64,
            })
            .collect();
        Ok(finished)
    }
}

/// Scores of the pairs that are among the best in one direction.
fn pairs_of(pairs: &Pairs, direction: u8) -> impl Iterator<Item = (usize, f32)> + '_ {
    let all = pairs
        .texts
        .iter()
        .zip(&pairs.among)
        .zip(pairs.itm.iter().zip(&pairs.cosine));
    all.filter(move |((_, among), _)| **among & direction != 0)
        .map(|((text, _), (itm, cosine))| (*text, itm + cosine))
}

/// Rows of scores with [`NOT_RANKED`] where there is no pair.
fn ranking<I: Iterator<Item = (usize, f32)>>(
    rows: usize,
    columns: usize,
    pairs: impl Fn(usize) -> I + Sync,
) -> Vec<Vec<f32>> {
    (0..rows)
        .into_par_iter()
        .map(|row| {
            let mut scores = vec![NOT_RANKED; columns];
            pairs(row).for_each(|(column, score)| scores[column] = score);
            scores
        })
        .collect()
}

fn figures(prefix: &str, scores: &RetrievalScores) -> Vec<Score> {
    let mut figures = Vec::new();
    for (name, values) in [("TR", scores.text), ("IR", scores.image)] {
        for (at, value) in RECALL_AT.iter().zip(values) {
            figures.push((format!("{prefix}{name}@{at}"), value));
        }
    }
    // LAVIS's `txt_r_mean`, `img_r_mean` and `r_mean`
    figures.push((format!("{prefix}TR mean"), scores.text_mean));
    figures.push((format!("{prefix}IR mean"), scores.image_mean));
    figures.push((format!("{prefix}mean"), scores.mean));
    // what LAVIS picks checkpoints by
    figures.extend(
        prefix
            .is_empty()
            .then(|| ("agg_metrics".to_owned(), scores.text_mean)),
    );
    let score = |(metric, value)| Score {
        metric,
        value,
        published: None,
    };
    figures.into_iter().map(score).collect()
}

fn predictions(
    ids: &[&Id],
    texts: &[String],
    text_ranks: &[usize],
    best_texts: &[Vec<usize>],
    image_ranks: &[usize],
    best_images: &[Vec<usize>],
) -> serde_json::Value {
    let by_image = ids.iter().enumerate().map(|(i, id)| {
        let best: Vec<&String> = best_texts[i].iter().map(|&text| &texts[text]).collect();
        serde_json::json!({"image_id": id, "rank": text_ranks[i] + 1, "captions": best})
    });
    let by_text = texts.iter().enumerate().map(|(t, text)| {
        let best: Vec<&Id> = best_images[t].iter().map(|&image| ids[image]).collect();
        serde_json::json!({"caption_id": t, "caption": text, "rank": image_ranks[t] + 1, "image_ids": best})
    });
    serde_json::json!({
        "image_to_text": by_image.collect::<Vec<_>>(),
        "text_to_image": by_text.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_stand_under_the_names_that_lavis_has_for_them() {
        let scores = RetrievalScores::from_ranks(&[0, 3], &[0, 0, 7, 20]);
        let value = |prefix: &str, metric: &str| {
            let figures = figures(prefix, &scores);
            figures.iter().find(|f| f.metric == metric).map(|f| f.value)
        };
        let (text, image) = ((50.0 + 100.0 + 100.0) / 3.0, (50.0 + 50.0 + 75.0) / 3.0);
        assert_eq!(value("", "TR mean"), Some(text));
        assert_eq!(value("", "IR mean"), Some(image));
        assert_eq!(value("", "mean"), Some((text + image) / 2.0));
        assert_eq!(value("", "agg_metrics"), Some(text), "of the texts alone");
        assert_eq!(value("ITC ", "ITC TR mean"), Some(text));
        assert_eq!(value("ITC ", "agg_metrics"), None);
    }

    #[test]
    fn an_equal_caption_of_another_picture_is_right_only_where_that_is_asked_for() {
        let task = |shared| RetrievalTask {
            k: 0,
            clean: true,
            max_length: 35,
            shared,
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        let row = |image: &str| format!("{{\"image\":\"{image}.png\",\"caption\":\"the same\"}}\n");
        std::fs::write(&path, row("a") + &row("b")).unwrap();
        let config = crate::data::source::SourceConfig::new(path.to_string_lossy());
        let pictures = Pictures::open(&config, &Default::default(), 1).unwrap();
        let list: Vec<&Picture> = pictures.list.iter().collect();
        assert_eq!(task(false).texts(&list).unwrap().map.captions_of(0), [0]);
        assert_eq!(task(true).texts(&list).unwrap().map.captions_of(0), [0, 1]);
    }
}
