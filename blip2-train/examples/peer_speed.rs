//! Our side of `tests/peers/speed`: loads a checkpoint and does one task per line of standard input.
//!
//! `peer_speed BACKEND FOLDER DTYPE [DTYPE_LLM]` answers each line `{"task": "vision", "batch": 1}` with
//! `{"wall_ms": .., "cpu_ms": .., "peak_mb": ..}`. A task ends when the device has done its work. Linux only (times
//! and memory, that of the host, come from `/proc`).

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};
use blip2_model::backend::{BackendKind, SelectDevice};
use blip2_model::blip2::Blip2;
use blip2_model::checkpoint::{DtypePolicy, PartDtype};
use blip2_model::config::Blip2Config;
use blip2_model::generate::{self, GenerateOptions};
use blip2_model::language::{LanguageModel, Prompt};
use blip2_model::nn::kernels::as_dtype;
use blip2_model::nn::{Context, Kernels, PadMask};
use blip2_model::qformer::{Bridge, BridgeConfig, QFormerConfig};
use blip2_model::session::{Request, Session};
use blip2_model::vision::{EvaVitConfig, ImageEncoder, VisionConfig};
use blip2_model::weights::checkpoint_dir;
use blip2_model::with_backend;
use blip2_train::distributed::Single;
use blip2_train::initial::{bridge_rule, initialise};
use blip2_train::losses::{HardNegatives, lm};
use blip2_train::stage::{Images, PairBatch, Stage, Stage1, Stage1Config, StepContext, TextBatch};
use burn::backend::Autodiff;
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Tensor, TensorData};
use serde_json::{Value, json};

/// Processor time of this process in milliseconds (10 ms resolution).
fn processor_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<f64> = after_name
        .split_whitespace()
        .map(|f| f.parse().unwrap_or(0.0))
        .collect();
    (fields.get(11).unwrap_or(&0.0) + fields.get(12).unwrap_or(&0.0)) * 10.0
}

/// Largest resident set so far, in MB.
fn peak_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    let kb = line.and_then(|line| line.split_whitespace().nth(1));
    kb.and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// Values in [-1, 1) that both sides draw alike.
fn noise(n: usize) -> Vec<f32> {
    (0..n)
        .map(|i| ((i as u64 * 7919) % 2003) as f32 / 1001.5 - 1.0)
        .collect()
}

fn pixels<B: Kernels>(batch: usize, config: &Blip2Config, device: &B::Device) -> Tensor<B, 4> {
    let side = config.vision_config.image_size();
    let shape = [batch, 3, side, side];
    Tensor::from_data(
        TensorData::new(noise(shape.iter().product()), shape),
        (device, DType::F32),
    )
}

/// Shape `[B, N, C]` of what the encoder makes of pictures.
fn encoded(batch: usize, config: &Blip2Config) -> [usize; 3] {
    let vision = &config.vision_config;
    [batch, vision.num_tokens(), vision.hidden_size()]
}

/// `[soft tokens ; text ids]`
fn prompt<B: Kernels>(model: &Blip2<B>, soft: Tensor<B, 3>, text: &[i64]) -> Result<Prompt<B>> {
    let rows = vec![text.to_vec(); soft.dims()[0]];
    let mask = PadMask::ones(rows.len(), text.len());
    let batch = blip2_model::blip2::conditional::TokenBatch { ids: rows, mask };
    Ok(model.prompt(soft, &batch)?)
}

/// Turns gradients on.
struct Learn;

impl<B: burn::tensor::backend::Backend> ModuleMapper<B> for Learn {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        param.set_require_grad(true)
    }
}

struct Worker<B: Kernels> {
    folder: std::path::PathBuf,
    policy: DtypePolicy,
    session: Session<B>,
    learner: Option<Blip2<Autodiff<B>>>,
    stage1: Option<Bridge<Autodiff<B>>>,
}

const TEXT: [i64; 8] = [2, 45, 5, 9, 12, 7, 33, 21];

impl<B: Kernels> Worker<B> {
    fn run(&mut self, task: &str, batch: usize, tokens: usize, beams: usize, image: &str) -> Result<()> {
        let ctx = Context::eval();
        let model = &self.session.model;
        let device = model.device.clone();
        match task {
            "vision" => {
                let vision = model.vision.as_ref().ok_or_else(|| anyhow!("no encoder"))?;
                let _ = vision.forward(
                    as_dtype(pixels(batch, &model.config, &device), vision.compute_dtype()),
                    &ctx,
                );
            }
            "qformer" => {
                let shape = encoded(batch, &model.config);
                let data = TensorData::new(noise(shape.iter().product()), shape);
                let features = model.image_features(Tensor::from_data(data, &device), &ctx);
                let _ = model.soft_tokens(&features, &ctx)?;
            }
            "generate" => {
                let language = model.language()?;
                let shape = [batch, model.config.num_query_tokens, language.embed_size()];
                let soft = TensorData::new(noise(shape.iter().product()), shape);
                let prompt = prompt(model, Tensor::from_data(soft, &device), &TEXT)?;
                let options = GenerateOptions {
                    max_new_tokens: tokens,
                    min_new_tokens: tokens,
                    num_beams: beams,
                    decoder_start_token_id: Some(0),
                    ..GenerateOptions::default()
                };
                let options = vec![options; batch];
                generate::generate(language, prompt, &options, &ctx, &mut generate::stream::ignore)?;
            }
            "caption" => {
                let picture = Session::<B>::read_image(Path::new(image))?;
                let request = Request {
                    image: image.to_string(),
                    prompt: "a photo of".into(),
                    question: String::new(),
                    options: GenerateOptions {
                        max_new_tokens: tokens,
                        min_new_tokens: tokens,
                        num_beams: beams,
                        decoder_start_token_id: Some(0),
                        ..GenerateOptions::default()
                    },
                };
                self.session.answer(&[picture], &[request])?;
            }
            "load" => {
                Session::<B>::open(&self.folder, self.policy, false, &device)?;
            }
            "train" => self.train(batch)?,
            "stage1" => self.pretrain(batch)?,
            other => bail!("unknown task {other}"),
        }
        Ok(())
    }

    /// Stage 2: frozen encoder and language model, gradients of the Q-Former and the projection.
    fn train(&mut self, batch: usize) -> Result<()> {
        let device = self.session.model.device.clone();
        if self.learner.is_none() {
            let opened = checkpoint_dir::open(&self.folder)?;
            let config = Blip2Config::from_json(opened.config_json.as_deref().context("config.json")?)?;
            let source = opened.source.as_ref();
            let (mut model, _) = Blip2::<Autodiff<B>>::load(config, source, self.policy, false, &device)?;
            model.bridge = model.bridge.map(&mut Learn);
            self.learner = Some(model);
        }
        let model = self.learner.as_ref().context("just made")?;
        let ctx = Context::eval();
        let features = model.encode_images(pixels::<Autodiff<B>>(batch, &model.config, &device), &ctx)?;
        let soft = model.soft_tokens(&features, &ctx)?;
        let mask = PadMask::ones(batch, model.config.num_query_tokens);
        let ids = vec![TEXT.to_vec(); batch];
        let text = PadMask::ones(batch, TEXT.len());
        let prompt = Prompt { embeds: soft, mask };
        let logits = model.language()?.teacher_forced(prompt, &ids, &text, &ctx);
        let loss = lm(logits, &ids, (batch * TEXT.len()) as f64);
        let grads = loss.backward();
        let queries = model.bridge.query_tokens.val();
        queries.grad(&grads).context("the queries have no gradient")?;
        Ok(())
    }
}

impl<B: Kernels> Worker<B> {
    /// Stage 1 from stored features, in the sizes of the checkpoint: the trainer's own step, without the optimizer.
    fn pretrain(&mut self, batch: usize) -> Result<()> {
        let device = self.session.model.device.clone();
        let config = &self.session.model.config;
        let qformer = QFormerConfig {
            hidden_dropout_prob: 0.0,
            attention_probs_dropout_prob: 0.0,
            ..config.qformer_config.clone()
        };
        let dec_token = qformer.vocab_size as i64 - 1;
        let (queries, shared) = (config.num_query_tokens, config.image_text_hidden_size);
        let bridge = self.stage1.get_or_insert_with(|| {
            let bridge = BridgeConfig::stage1(qformer, queries, 1e-5, shared).init::<Autodiff<B>>(&device);
            initialise(bridge, 1, bridge_rule)
        });
        let ids: Vec<i64> = [101].into_iter().chain(2000..2014).chain([102]).collect();
        let shape = encoded(batch, config);
        let features = TensorData::new(noise(shape.iter().product()), shape);
        let pairs = PairBatch {
            keys: (0..batch).map(|i| i.to_string()).collect(),
            images: Images::Features(features),
            text: TextBatch {
                mask: PadMask::ones(batch, ids.len()),
                ids: vec![ids; batch],
            },
            image_ids: None,
        };
        let turned = |by: usize| (0..batch).map(|i| Some((i + batch - by) % batch)).collect();
        let negatives = HardNegatives {
            images: turned(1),
            texts: turned(2),
        };
        // never called: the features are given
        let encoder = VisionConfig::Eva(EvaVitConfig {
            num_hidden_layers: 0,
            ..EvaVitConfig::default()
        });
        let options = Stage1Config {
            dec_token,
            ..Stage1Config::default()
        };
        let stage = Stage1::new(encoder.init(&device), options, device.clone()).with_negatives(negatives);
        let step = StepContext::<Autodiff<B>> {
            seed: 1,
            step: 0,
            micro: 0,
            train: true,
            normaliser: stage.target_count(&pairs) as f64,
            loss_scale: 1.0,
            collective: &Single,
        };
        let output = stage.step(bridge, &pairs, &step)?;
        anyhow::ensure!(output.gradients.len() > 100, "a step has gradients");
        Ok(())
    }
}

/// Loads, says how long that took, then answers jobs until the input ends.
fn serve<B: SelectDevice>(folder: &Path, policy: DtypePolicy) -> Result<()> {
    let device = B::select_device(0);
    let start = Instant::now();
    let session = Session::<B>::open(folder, policy, false, &device)?;
    let mut worker = Worker {
        folder: folder.into(),
        policy,
        session,
        learner: None,
        stage1: None,
    };
    B::sync(&device)?;
    println!("{}", json!({"load_ms": start.elapsed().as_secs_f64() * 1e3}));
    for line in std::io::stdin().lock().lines() {
        let job: Value = serde_json::from_str(&line?)?;
        let number = |name: &str, otherwise: u64| job[name].as_u64().unwrap_or(otherwise) as usize;
        let task = job["task"].as_str().unwrap_or_default().to_string();
        let image = job["image"].as_str().unwrap_or_default();
        let (start, cpu) = (Instant::now(), processor_ms());
        for _ in 0..number("repeat", 1) {
            worker.run(
                &task,
                number("batch", 1),
                number("tokens", 1),
                number("beams", 1),
                image,
            )?;
        }
        B::sync(&device)?;
        let answer = json!({
            "wall_ms": start.elapsed().as_secs_f64() * 1e3,
            "cpu_ms": processor_ms() - cpu,
            "peak_mb": peak_mb(),
        });
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: peer_speed BACKEND FOLDER DTYPE [DTYPE_LLM]";
    let kind = BackendKind::choose(Some(&args.next().context(usage)?))?;
    let folder = args.next().context(usage)?;
    let dtype: PartDtype = args.next().context(usage)?.parse()?;
    let llm = args.next().map(|llm| llm.parse::<PartDtype>()).transpose()?;
    // as transformers' `dtype`: for all parts
    let policy = DtypePolicy::frozen(dtype).but(Some(dtype), llm);
    with_backend!(kind, B => serve::<B>(Path::new(&folder), policy))
}
