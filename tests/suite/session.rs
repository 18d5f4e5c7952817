//! Properties of a session on the tiny checkpoints, from picture files to text: what is in a batch with a request,
//! how far it is padded, how its pictures were encoded, and which thread asks never change an answer.
//!
//! Cases are drawn from a fixed stream: the checkpoints are random, and a tie between two tokens that rounding
//! decides would otherwise fail once in many thousand runs.

use blip2_model::blip2::retrieval::first_token;
use blip2_model::checkpoint::DtypePolicy;
use blip2_model::generate::GenerateOptions;
use blip2_model::language::LanguageModel;
use blip2_model::nn::{Context, Kernels, PadMask};
use blip2_model::processor::RgbImage;
use blip2_model::session::{Answer, Request, Session, TextPiece, ignore, rows_to_host};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::on_every_backend;
use crate::support::{fixture, max_diff};

fn open<B: Kernels>(name: &str, device: &B::Device) -> Session<B> {
    Session::open(
        &fixture(&format!("parity/{name}")),
        DtypePolicy::f32(),
        false,
        device,
    )
    .unwrap_or_else(|e| panic!("{e}"))
}

fn picture<B: Kernels>(index: usize) -> RgbImage {
    let name = ["boat", "house", "fruit"][index % 3];
    Session::<B>::read_image(&fixture(&format!("parity/images/{name}.png"))).expect("a picture")
}

/// `cases` cases on flex, the same in every run; a quarter of them on other CPU backends, which share all code above
/// the tensor operations, and one on a software GPU, where a token takes a second.
fn for_cases<B: Kernels, S: Strategy>(
    cases: u32,
    device: &B::Device,
    strategy: S,
    mut check: impl FnMut(S::Value),
) {
    let cases = match B::name(device) {
        name if name.contains("wgpu") => 1,
        name if name.contains("flex") => cases,
        _ => cases / 4,
    };
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    for _ in 0..cases {
        let value = strategy.new_tree(&mut runner).expect("a value").current();
        check(value);
    }
}

/// A prompt of known words, possibly empty.
fn prompt() -> impl Strategy<Value = String> {
    let words = [
        "a photo of",
        "Question:",
        "how many boats",
        "are there?",
        "the house",
        "Answer:",
        "red",
    ];
    proptest::collection::vec(proptest::sample::select(words.to_vec()), 0..5).prop_map(|w| w.join(" "))
}

/// A picture, a prompt, and one of four ways to generate.
fn request() -> impl Strategy<Value = (usize, String, u8, u64)> {
    (0..3usize, prompt(), 0..4u8, 0..1000u64)
}

fn options<B: Kernels>(session: &Session<B>, way: u8, seed: u64) -> GenerateOptions {
    let base = GenerateOptions {
        max_new_tokens: 9,
        min_new_tokens: 2,
        ..session.generation.clone().expect("generation settings")
    };
    match way {
        0 => base,
        1 => GenerateOptions {
            num_beams: 3,
            num_return_sequences: 2,
            length_penalty: -1.0,
            ..base
        },
        2 => GenerateOptions {
            do_sample: true,
            top_p: 0.9,
            seed,
            ..base
        },
        _ => GenerateOptions {
            repetition_penalty: 1.3,
            no_repeat_ngram_size: 2,
            ..base
        },
    }
}

fn requests<B: Kernels>(session: &Session<B>, drawn: &[(usize, String, u8, u64)]) -> Vec<Request> {
    drawn
        .iter()
        .map(|(image, prompt, way, seed)| Request {
            image: image.to_string(),
            prompt: prompt.clone(),
            question: String::new(),
            options: options(session, *way, *seed),
        })
        .collect()
}

fn ids(answer: &Answer) -> Vec<&[i64]> {
    answer.outputs.iter().map(|o| o.token_ids.as_slice()).collect()
}

fn a_batch_is_its_singles<B: Kernels>(device: &B::Device) {
    for name in ["opt", "t5"] {
        let session = open::<B>(name, device);
        let batches = proptest::collection::vec(request(), 2..5);
        for_cases::<B, _>(100, device, batches, |drawn| {
            let requests = requests(&session, &drawn);
            let images: Vec<RgbImage> = drawn.iter().map(|d| picture::<B>(d.0)).collect();
            let together = session.answer(&images, &requests).expect("answers");
            for (i, answer) in together.iter().enumerate() {
                let alone = session
                    .answer(&images[i..=i], &requests[i..=i])
                    .expect("an answer");
                assert_eq!(ids(answer), ids(&alone[0]), "{name}: {:?} in {drawn:?}", drawn[i]);
                assert_eq!(answer.outputs[0].text, alone[0].outputs[0].text);
            }
        });
    }
}

/// The same pictures encoded once, in another order, or kept on the host in between.
fn how_pictures_were_encoded_changes_nothing<B: Kernels>(device: &B::Device) {
    for name in ["opt", "t5"] {
        let session = open::<B>(name, device);
        let pictures: Vec<RgbImage> = (0..3).map(picture::<B>).collect();
        let encoded = session.encode_once(&pictures).expect("encoded");
        let kept = session
            .encoded_from_queries(&encoded.queries_to_host())
            .expect("kept");
        let tokens = rows_to_host(&session.features(&encoded).expect("tokens").embeds);
        let tokens = session.features_from_tokens(&tokens).expect("kept tokens");
        let tokens = session.encoded_from_features(tokens);
        for_cases::<B, _>(40, device, proptest::collection::vec(request(), 1..5), |drawn| {
            let requests = requests(&session, &drawn);
            let rows: Vec<usize> = drawn.iter().map(|d| d.0).collect();
            let images: Vec<RgbImage> = rows.iter().map(|&i| pictures[i].clone()).collect();
            let want = session.answer(&images, &requests).expect("answers");
            let mut streamed = vec![String::new(); drawn.len()];
            let got = session
                .answer_encoded(
                    &encoded,
                    &rows,
                    &requests,
                    &mut |TextPiece { row, text, .. }| {
                        streamed[row] += text;
                        std::ops::ControlFlow::Continue(())
                    },
                )
                .expect("answers");
            let again = session
                .answer_encoded(&kept, &rows, &requests, &mut ignore)
                .expect("answers");
            let from_tokens = session
                .answer_encoded(&tokens, &rows, &requests, &mut ignore)
                .expect("answers");
            for (i, want) in want.iter().enumerate() {
                assert_eq!(ids(&from_tokens[i]), ids(want), "{name} tokens {:?}", drawn[i]);
                assert_eq!(ids(&got[i]), ids(want), "{name} {:?}", drawn[i]);
                assert_eq!(ids(&again[i]), ids(want), "{name} kept {:?}", drawn[i]);
                assert_eq!(streamed[i], got[i].outputs[0].text, "{name} {:?}", drawn[i]);
            }
        });
    }
}

/// Greedy tokens are the maxima of one pass over everything, which uses no cache.
fn decoding_with_a_cache_is_decoding_without<B: Kernels>(device: &B::Device) {
    for name in ["opt", "t5"] {
        let session = open::<B>(name, device);
        let language = session.model.language().expect("a language model");
        for_cases::<B, _>(100, device, (0..3usize, prompt()), |(image, prompt)| {
            let picture = [picture::<B>(image)];
            let request = Request {
                image: String::new(),
                prompt: prompt.clone(),
                question: String::new(),
                options: options(&session, 0, 0),
            };
            let answer = session.answer(&picture, &[request]).expect("an answer");
            let tokens = answer[0].outputs[0].token_ids.clone();
            let ctx = Context::eval();
            let image = session.encode(&picture, &ctx).expect("encoded");
            let soft = session.model.soft_tokens(&image, &ctx).expect("soft tokens");
            let text = session.tokenize_prompts(&[prompt]).expect("ids");
            let prompt = session.model.prompt(soft, &text).expect("a prompt");
            let mask = PadMask::ones(1, tokens.len());
            let logits = language.teacher_forced(prompt, std::slice::from_ref(&tokens), &mask, &ctx);
            let vocab = logits.dims()[2];
            let logits: Vec<f32> = logits.into_data().convert::<f32>().to_vec().expect("f32");
            let eos = &session.generation.as_ref().expect("settings").eos_token_ids;
            for (t, row) in logits.chunks(vocab).enumerate() {
                let allowed = |id: &usize| t >= 2 || !eos.contains(&(*id as i64));
                let best = (0..vocab)
                    .filter(allowed)
                    .max_by(|&a, &b| row[a].total_cmp(&row[b]));
                assert_eq!(best.map(|id| id as i64), Some(tokens[t]), "{name} step {t}");
            }
        });
    }
}

/// https://github.com/salesforce/LAVIS/issues/424: scores must not depend on how far a text is padded.
fn scores_do_not_depend_on_padding<B: Kernels>(device: &B::Device) {
    let session = open::<B>("itm", device);
    let ctx = Context::eval();
    let image = session
        .encode(&[picture::<B>(0), picture::<B>(1)], &ctx)
        .expect("encoded");
    for_cases::<B, _>(100, device, proptest::collection::vec(prompt(), 2..5), |texts| {
        let texts: Vec<String> = texts.into_iter().map(|t| format!("a {t}")).collect();
        let all = session.tokenize_texts(&texts, None).expect("ids");
        let together = session.model.itc(&image, &all, &ctx).expect("scores");
        let embedded = session.model.embed_texts(&all, &ctx).expect("embedded");
        let embedded: Vec<f32> = first_token(embedded.raw)
            .into_data()
            .convert::<f32>()
            .to_vec()
            .expect("f32");
        let width = embedded.len() / texts.len();
        for (i, text) in texts.iter().enumerate() {
            let one = session
                .tokenize_texts(std::slice::from_ref(text), None)
                .expect("ids");
            let alone = session.model.itc(&image, &one, &ctx).expect("scores");
            // f32 rounding in another order of summation, on unit vectors and logits of order one
            for row in 0..2 {
                let diff = (together[row][i].cosine - alone[row][0].cosine).abs();
                assert!(diff < 1e-5, "{text}: cosine {diff}");
            }
            let itm_all = session
                .model
                .itm(&image.select(&vec![1; texts.len()]), &all, &ctx)
                .expect("scores");
            let itm = session
                .model
                .itm(&image.select(&[1]), &one, &ctx)
                .expect("scores");
            assert!(max_diff(&itm_all[i].logits, &itm[0].logits) < 1e-5, "{text}");
            let raw = session.model.embed_texts(&one, &ctx).expect("embedded").raw;
            let raw: Vec<f32> = first_token(raw)
                .into_data()
                .convert::<f32>()
                .to_vec()
                .expect("f32");
            let diff = max_diff(&embedded[i * width..(i + 1) * width], &raw);
            assert!(diff < 1e-4, "{text}: embedding {diff}");
        }
    });
}

/// https://github.com/huggingface/transformers/issues/37103: every mix of dtypes per part runs, and agrees with f32
/// within its rounding. A device that lacks a dtype keeps f32 instead of failing.
fn every_dtype_of_every_part_runs<B: Kernels>(device: &B::Device) {
    use blip2_model::checkpoint::PartDtype::{BF16, F16, F32};
    let exact = open::<B>("opt", device);
    let pictures = [picture::<B>(0)];
    let want = exact.encode_once(&pictures).expect("encoded").queries_to_host();
    let scale = want[0].iter().fold(0f32, |m, v| m.max(v.abs()));
    for (vision, qformer) in [
        (F32, F32),
        (F32, F16),
        (F32, BF16),
        (F16, F32),
        (BF16, F32),
        (BF16, BF16),
    ] {
        for llm in [F32, F16, BF16] {
            let policy = DtypePolicy {
                vision,
                qformer,
                llm,
                ..DtypePolicy::f32()
            };
            let session = Session::<B>::open(&fixture("parity/opt"), policy, false, device)
                .unwrap_or_else(|e| panic!("{e}"));
            let encoded = session.encode_once(&pictures).expect("encoded");
            // 8 bits of mantissa over three layers: a few units in the last place of the largest value
            let bound = match [vision, qformer] {
                [BF16, _] | [_, BF16] => 0.05,
                [F16, _] | [_, F16] => 0.01,
                _ => 1e-4,
            };
            let diff = max_diff(&encoded.queries_to_host()[0], &want[0]) / scale;
            assert!(diff < bound, "{vision:?} {qformer:?} {llm:?}: {diff}");
            let request = Request {
                image: String::new(),
                prompt: "a photo of".into(),
                question: String::new(),
                options: options(&session, 0, 0),
            };
            let answer = session.answer(&pictures, &[request]).expect("an answer");
            assert!(
                answer[0].outputs[0].token_ids.len() >= 2,
                "{vision:?} {qformer:?} {llm:?}"
            );
        }
    }
}

/// A prompt that the position table does not cover is an error with the numbers, not a panic on some backends and
/// garbage on others.
fn too_long_a_prompt_is_an_error<B: Kernels>(device: &B::Device) {
    let session = open::<B>("opt", device);
    let request = Request {
        image: String::new(),
        prompt: "a photo of ".repeat(60),
        question: String::new(),
        options: options(&session, 0, 0),
    };
    let error = session
        .answer(&[picture::<B>(0)], &[request])
        .expect_err("too long");
    assert!(error.to_string().contains("96"), "{error}");
}

on_every_backend!(
    a_batch_is_its_singles,
    how_pictures_were_encoded_changes_nothing,
    decoding_with_a_cache_is_decoding_without,
    scores_do_not_depend_on_padding,
    every_dtype_of_every_part_runs,
    too_long_a_prompt_is_an_error,
);

/// One session serves many threads, and each gets what it would get alone.
#[cfg(feature = "flex")]
#[test]
fn threads_share_a_session() {
    use blip2_model::backend::Flex;
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Session<Flex>>();
    let session = open::<Flex>("opt", &Default::default());
    let ask = |i: usize| {
        let request = Request {
            image: i.to_string(),
            prompt: ["", "a photo of", "Question: how many boats Answer:"][i % 3].into(),
            question: String::new(),
            options: options(&session, (i % 4) as u8, i as u64),
        };
        let answers = session
            .answer(&[picture::<Flex>(i)], &[request])
            .expect("an answer");
        answers[0].outputs[0].token_ids.clone()
    };
    let alone: Vec<Vec<i64>> = (0..12).map(ask).collect();
    let ask = &ask;
    let shared: Vec<Vec<i64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|t| scope.spawn(move || (3 * t..3 * t + 3).map(ask).collect::<Vec<_>>()))
            .collect();
        let results = threads.into_iter().map(|t| t.join().expect("no panic"));
        results.flatten().collect()
    });
    assert_eq!(shared, alone);
}
