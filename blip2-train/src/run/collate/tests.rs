//! Layouts of texts, with the tokenizers of the tiny checkpoints in `tests/fixtures/parity`.

use blip2_model::processor::{RgbImage, TokenizerKind};

use super::*;
use crate::data::sample::{Answer, Question};

fn tokenizer(name: &str, kind: TokenizerKind) -> TextTokenizer {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/parity");
    TextTokenizer::from_folder(std::path::Path::new(folder).join(name), kind).unwrap()
}

fn example(key: &str, caption: &str) -> Example {
    Example {
        key: key.into(),
        shard: "shard".into(),
        source: 1,
        image: RgbImage::new(8, 8),
        caption: caption.into(),
        captions: vec![caption.into()],
        question: None,
        image_id: None,
        image_index: Some(7),
    }
}

fn lm(layout: LmLayout, task: LmTask) -> LmCollate {
    let tokenizer = match layout {
        LmLayout::DecoderOnly => tokenizer("opt", TokenizerKind::Opt),
        LmLayout::DecoderOnlyEos => tokenizer("opt", TokenizerKind::Opt),
        LmLayout::EncoderDecoder => tokenizer("t5", TokenizerKind::T5),
    };
    LmCollate {
        pictures: Pictures::normalised(8),
        tokenizer,
        layout,
        task,
        max_tokens: 32,
        qformer_tokenizer: None,
        seed: 1,
    }
}

/// Text of the labels that count.
fn predicted(collate: &LmCollate, labels: &[i64]) -> String {
    let ids: Vec<u32> = labels
        .iter()
        .filter(|&&id| id != IGNORE)
        .map(|&id| id as u32)
        .collect();
    collate.tokenizer.decode(&ids, false).unwrap()
}

#[test]
fn pairs_are_padded_to_one_length_and_pictures_keep_their_data_set() {
    let collate = PairCollate {
        pictures: Pictures::normalised(8),
        tokenizer: tokenizer("itm", TokenizerKind::Bert),
        max_tokens: 6,
    };
    let batch = collate
        .pairs(&[
            example("a", "a red house"),
            example("b", "fruit on the table and more of it"),
        ])
        .unwrap();
    let special = collate.tokenizer.special();
    let (cls, sep) = (i64::from(special.cls.unwrap()), i64::from(special.sep.unwrap()));
    assert!(batch.text.ids.iter().all(|row| row.len() == 6 && row[0] == cls));
    // the longer one is cut, and still ends
    assert_eq!(batch.text.ids[1][5], sep);
    assert_eq!(batch.image_ids.unwrap(), [(1 << 32) + 7, (1 << 32) + 7]);
    assert_eq!(batch.keys, ["shard#a", "shard#b"]);
    let Images::Pixels(pixels) = batch.images else {
        panic!("pixels")
    };
    // black, normalised by CLIP's mean and deviation of red
    let first: f32 = pixels.iter::<f32>().next().unwrap();
    assert!((first + 0.48145466 / 0.26862954).abs() < 1e-6);
}

#[test]
fn without_a_prompt_opt_predicts_everything_and_ends_with_a_line_feed() {
    let collate = lm(
        LmLayout::DecoderOnly,
        LmTask::Caption {
            prompt: String::new(),
        },
    );
    let batch = collate
        .targets(&[example("a", "a red house"), example("b", "fruit")], 0)
        .unwrap();
    assert!(batch.prompt.is_none());
    assert_eq!(predicted(&collate, &batch.labels[0]), "</s>a red house\n");
    assert_eq!(predicted(&collate, &batch.labels[1]), "</s>fruit\n");
    assert_eq!(batch.labels[0].len(), batch.labels[1].len());
}

#[test]
fn a_prompt_is_read_and_not_predicted() {
    let task = LmTask::Caption {
        prompt: "a photo of".into(),
    };
    let collate = lm(LmLayout::DecoderOnly, task);
    let batch = collate.targets(&[example("a", "a red house")], 0).unwrap();
    assert_eq!(predicted(&collate, &batch.labels[0]), " a red house\n");
    // the two parts make the tokens of the whole
    let whole = collate
        .tokenizer
        .encode("a photo of a red house\n", &EncodeOptions::default())
        .unwrap();
    assert_eq!(batch.target.ids[0], wide(whole));
}

#[test]
fn prefix_language_modelling_cuts_between_words_and_repeats_itself() {
    let collate = lm(LmLayout::EncoderDecoder, LmTask::Prefix);
    let caption = "a small boat on the blue water";
    let mut cuts = std::collections::BTreeSet::new();
    for epoch in 0..40 {
        let batch = collate.targets(&[example("a", caption)], epoch).unwrap();
        let text = |ids: &[i64]| {
            let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
            collate.tokenizer.decode(&ids, true).unwrap()
        };
        let prompt = text(&batch.prompt.as_ref().unwrap().ids[0]);
        let target = text(&batch.target.ids[0]);
        assert_eq!(format!("{prompt} {target}").trim(), caption);
        assert!(!target.is_empty());
        assert_eq!(batch.labels[0].last(), Some(&1), "the end is predicted");
        cuts.insert(prompt);
        let again = collate.targets(&[example("a", caption)], epoch).unwrap();
        assert_eq!(again.target.ids, batch.target.ids);
    }
    // seven words, seven places to cut, all of them found in forty epochs
    assert_eq!(cuts.len(), 7);
}

#[test]
fn answers_are_drawn_by_their_share() {
    let task = LmTask::Answer {
        template: "Question: {} Answer:".into(),
    };
    let collate = lm(LmLayout::DecoderOnly, task);
    let answer = |text: &str, weight| Answer {
        text: text.into(),
        count: 1,
        weight,
    };
    let mut sample = example("a", "");
    sample.question = Some(Question {
        text: "what is on the table?".into(),
        answers: vec![answer("fruit", 0.75), answer("boat", 0.25), answer("house", 0.0)],
        ..Question::default()
    });
    let mut fruit = 0;
    for epoch in 0..200 {
        let batch = collate.targets(std::slice::from_ref(&sample), epoch).unwrap();
        match predicted(&collate, &batch.labels[0]).as_str() {
            " fruit\n" => fruit += 1,
            " boat\n" => {}
            other => panic!("{other:?}"),
        }
    }
    // binomial deviation 6.1 around 150, four of them
    assert!((126..=174).contains(&fruit), "{fruit}");
}

/// As InstructBLIP trains Vicuna: the prompt is masked, the text follows without a beginning of its own and ends
/// with the end of text.
#[test]
fn llama_texts_end_with_the_end_of_text() {
    let task = LmTask::Caption {
        prompt: "a photo of".into(),
    };
    let collate = lm(LmLayout::DecoderOnlyEos, task);
    let batch = collate.targets(&[example("a", "a red house")], 0).unwrap();
    let eos = i64::from(collate.tokenizer.special().eos.unwrap());
    assert_eq!(*batch.target.ids[0].last().unwrap(), eos);
    assert_eq!(*batch.labels[0].last().unwrap(), eos);
    assert_eq!(batch.labels[0][0], IGNORE, "the prompt is given");
    let text = predicted(&collate, &batch.labels[0]);
    assert!(text.starts_with("a red house") && !text.contains('\n'), "{text}");
}
