//! Against pycocoevalcap 1.2 and independent Python; data by `tests/fixtures/gen/eval_*.py`.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::results::{Answer, Id};
use super::retrieval::{CaptionMap, NOT_RANKED, RetrievalScores, rank_of_best, rerank_row};
use super::vqa::{self, Annotation, Rule, normalise};
use super::*;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/eval")
}

fn load<T: DeserializeOwned>(path: &Path) -> T {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_reader(std::io::BufReader::new(GzDecoder::new(file))).unwrap()
}

#[derive(Deserialize)]
struct Corpus {
    items: Vec<Item>,
    tokenized: Vec<Item>,
    corpus: Metrics,
    each: Vec<Metrics>,
}

#[derive(Deserialize)]
struct Item {
    references: Vec<String>,
    caption: String,
}

/// The project's promise. What is seen is 1e-10, the digits that the fixtures keep: both sides compute in f64.
const TOLERANCE: f64 = 1e-6;

fn assert_close(ours: &Metrics, theirs: &Metrics, what: &str) {
    let list = |m: &Metrics| [&m.bleu[..], &[m.rouge_l, m.cider_d, m.cider]].concat();
    for (a, b) in list(ours).into_iter().zip(list(theirs)) {
        assert!(
            (a - b).abs() <= TOLERANCE,
            "{what}: {ours:?}, pycocoevalcap has {theirs:?}"
        );
    }
}

fn check_corpus(path: &Path) -> usize {
    let corpus: Corpus = load(path);
    let name = path.file_name().unwrap().to_string_lossy();
    let references: Vec<&[String]> = corpus.items.iter().map(|i| i.references.as_slice()).collect();
    let captions: Vec<&str> = corpus.items.iter().map(|i| i.caption.as_str()).collect();
    let flat: Vec<&String> = corpus.items.iter().flat_map(|i| &i.references).collect();
    let expected: Vec<&String> = corpus.tokenized.iter().flat_map(|i| &i.references).collect();
    for ((text, ours), theirs) in flat.iter().zip(ptb::tokenize_all(&flat)).zip(expected) {
        assert_eq!(&ours, theirs, "{name}: {text:?}");
    }
    for ((text, ours), theirs) in captions
        .iter()
        .zip(ptb::tokenize_all(&captions))
        .zip(&corpus.tokenized)
    {
        assert_eq!(ours, theirs.caption, "{name}: {text:?}");
    }
    let started = std::time::Instant::now();
    let scores = CaptionScores::compute(&references, &captions).unwrap();
    println!(
        "{name}: {} captions scored in {:?}",
        flat.len() + captions.len(),
        started.elapsed()
    );
    assert_close(&scores.corpus, &corpus.corpus, &name);
    assert_eq!(scores.items.len(), corpus.each.len());
    for (i, (ours, theirs)) in scores.items.iter().zip(&corpus.each).enumerate() {
        assert_close(ours, theirs, &format!("{name}, item {i}"));
    }
    flat.len() + captions.len()
}

#[test]
fn caption_metrics_equal_pycocoevalcap() {
    for name in ["scenes", "facts", "stress"] {
        let captions = check_corpus(&fixtures().join(format!("captions-{name}.json.gz")));
        assert!(captions >= 1000, "{name} has {captions} captions");
    }
}

/// Corpora of real text that are not committed: `eval_captions.py FOLDER SOURCE...`.
#[test]
#[ignore = "needs BLIP2_EVAL_CORPORA"]
fn caption_metrics_equal_pycocoevalcap_on_further_corpora() {
    let folder = std::env::var_os("BLIP2_EVAL_CORPORA").expect("BLIP2_EVAL_CORPORA names a folder");
    let mut checked = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().ends_with(".json.gz") {
            check_corpus(&path);
            checked += 1;
        }
    }
    assert!(checked > 0, "no corpus in the folder");
}

#[test]
fn lists_must_fit() {
    let refs = vec![vec!["a".to_string()]];
    let fault = |r: &[Vec<String>], c: &[&str]| CaptionScores::compute(r, c).unwrap_err().to_string();
    assert!(fault(&refs, &[]).contains("nothing to score"));
    assert!(fault(&refs, &["a", "b"]).contains("2 captions for 1"));
    assert!(fault(&[vec![]], &["a"]).contains("item 0"));
}

#[test]
fn the_report_is_in_points() {
    let refs = vec![vec!["a red bus".to_string()], vec!["two cats".to_string()]];
    let scores = CaptionScores::compute(&refs, &["a red bus", "two cats"])
        .unwrap()
        .report();
    let names: Vec<&str> = scores.iter().map(|s| s.metric.as_str()).collect();
    assert_eq!(
        names,
        [
            "BLEU-1",
            "BLEU-2",
            "BLEU-3",
            "BLEU-4",
            "ROUGE-L",
            "CIDEr",
            "CIDEr-plain"
        ]
    );
    assert_eq!(scores[4].value, 100.0);
}

#[derive(Deserialize)]
struct VqaCases {
    strings: Vec<VqaString>,
    questions: Vec<VqaQuestion>,
    overall: f64,
    per_answer_type: BTreeMap<String, f64>,
    per_question_type: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct VqaString {
    text: String,
    punctuation: String,
    words: String,
    both: String,
}

#[derive(Deserialize)]
struct VqaQuestion {
    question_id: Id,
    answer_type: String,
    question_type: String,
    prediction: String,
    answers: Vec<String>,
    vqa: f64,
    aokvqa: f64,
    gqa: f64,
}

#[test]
fn vqa_normalisation_and_accuracy() {
    let cases: VqaCases = load(&fixtures().join("vqa.json.gz"));
    for case in &cases.strings {
        assert_eq!(
            normalise::punctuation(&case.text),
            case.punctuation,
            "{:?}",
            case.text
        );
        assert_eq!(normalise::words(&case.text), case.words, "{:?}", case.text);
        assert_eq!(normalise::prediction(&case.text), case.both, "{:?}", case.text);
    }
    for q in &cases.questions {
        let what = format!("{:?} to {:?}", q.prediction, q.answers);
        // the same sums in the same order
        assert_eq!(
            vqa::accuracy(Rule::Vqa, &q.prediction, &q.answers),
            q.vqa,
            "{what}"
        );
        assert_eq!(
            vqa::accuracy(Rule::AOkvqa, &q.prediction, &q.answers),
            q.aokvqa,
            "{what}"
        );
        assert_eq!(
            vqa::accuracy(Rule::Gqa, &q.prediction, &q.answers[..1]),
            q.gqa,
            "{what}"
        );
    }
    let annotations: Vec<Annotation> = cases
        .questions
        .iter()
        .map(|q| Annotation {
            question_id: q.question_id.clone(),
            answers: q.answers.clone(),
            answer_type: Some(q.answer_type.clone()),
            question_type: Some(q.question_type.clone()),
        })
        .collect();
    let answer = |q: &VqaQuestion| Answer {
        question_id: q.question_id.clone(),
        answer: q.prediction.clone(),
    };
    let predictions: Vec<Answer> = cases.questions.iter().rev().map(answer).collect();
    let scores = vqa::score(Rule::Vqa, &annotations, &predictions).unwrap();
    let round = |table: BTreeMap<String, f64>| table.into_iter().map(|(k, v)| (k, vqa::rounded(v))).collect();
    assert_eq!(vqa::rounded(scores.overall), cases.overall);
    let per_answer_type: BTreeMap<String, f64> = round(scores.per_answer_type);
    assert_eq!(per_answer_type, cases.per_answer_type);
    let per_question_type: BTreeMap<String, f64> = round(scores.per_question_type);
    assert_eq!(per_question_type, cases.per_question_type);
}

#[derive(Deserialize)]
struct Retrieval {
    image_ids: Vec<i64>,
    captions_of: Vec<Vec<usize>>,
    k: usize,
    itc: Recalls,
    itm: Recalls,
    itm_text_ranks: Vec<usize>,
    itm_image_ranks: Vec<usize>,
}

#[derive(Deserialize)]
struct Recalls {
    #[serde(flatten)]
    scores: RetrievalScores,
    text_rank_sum: usize,
    image_rank_sum: usize,
}

/// The scores of `eval_retrieval.py`, bit for bit.
struct Synthetic {
    image_of: Vec<usize>,
}

impl Synthetic {
    fn uniform(seed: u64, index: u64) -> f32 {
        let x = index.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed);
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 40) as f32 * 2f32.powi(-24)
    }

    fn pair(&self, image: usize, caption: usize, seeds: (u64, u64), share: f32) -> f32 {
        let index = (image * self.image_of.len() + caption) as u64;
        if self.image_of[caption] == image {
            let draw = Self::uniform(seeds.1, index);
            1.0 - share * draw * draw
        } else {
            Self::uniform(seeds.0, index)
        }
    }

    fn similarity(&self, image: usize, caption: usize) -> f32 {
        self.pair(image, caption, (1, 2), 0.01)
    }

    fn itm(&self, image: usize, caption: usize) -> f32 {
        4.0 * self.pair(image, caption, (3, 4), 0.1)
    }
}

#[test]
fn recalls_on_the_structure_of_coco_5k() {
    let case: Retrieval = load(&fixtures().join("retrieval.json.gz"));
    let map = CaptionMap::new(case.captions_of.clone()).unwrap();
    assert_eq!(
        (map.images(), map.captions(), case.image_ids.len()),
        (5000, 25_000, 5000)
    );
    let mut image_of = vec![0; map.captions()];
    for (image, captions) in case.captions_of.iter().enumerate() {
        captions.iter().for_each(|c| image_of[*c] = image);
    }
    let synthetic = Synthetic { image_of };
    // both tables would take 1 GB, so they are made and ranked by rows
    let ranks = |row: Vec<f32>, wanted: &[usize], itm: &dyn Fn(usize) -> f32| {
        let mut reranked = vec![NOT_RANKED; row.len()];
        rerank_row(&row, case.k, itm, &mut reranked);
        (rank_of_best(&row, wanted), rank_of_best(&reranked, wanted))
    };
    let text: Vec<(usize, usize)> = (0..map.images())
        .into_par_iter()
        .map(|image| {
            let row = (0..map.captions())
                .map(|caption| synthetic.similarity(image, caption))
                .collect();
            ranks(row, &case.captions_of[image], &|caption| {
                synthetic.itm(image, caption)
            })
        })
        .collect();
    let image: Vec<(usize, usize)> = (0..map.captions())
        .into_par_iter()
        .map(|caption| {
            let row = (0..map.images())
                .map(|image| synthetic.similarity(image, caption))
                .collect();
            ranks(row, &[synthetic.image_of[caption]], &|image| {
                synthetic.itm(image, caption)
            })
        })
        .collect();
    let (itc_text, itm_text): (Vec<usize>, Vec<usize>) = text.into_iter().unzip();
    let (itc_image, itm_image): (Vec<usize>, Vec<usize>) = image.into_iter().unzip();
    assert_eq!(itm_text[..200], case.itm_text_ranks);
    assert_eq!(itm_image[..200], case.itm_image_ranks);
    for (text, image, expected) in [(itc_text, itc_image, case.itc), (itm_text, itm_image, case.itm)] {
        assert_eq!(text.iter().sum::<usize>(), expected.text_rank_sum);
        assert_eq!(image.iter().sum::<usize>(), expected.image_rank_sum);
        let (ours, theirs) = (RetrievalScores::from_ranks(&text, &image), expected.scores);
        let list =
            |s: RetrievalScores| [&s.text[..], &s.image, &[s.text_mean, s.image_mean, s.mean]].concat();
        for (a, b) in list(ours).into_iter().zip(list(theirs)) {
            assert!(
                (a - b).abs() < 1e-10,
                "{ours:?} {theirs:?}: means of the same counts, rounded in another order"
            );
        }
    }
}
