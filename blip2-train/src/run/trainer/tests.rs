//! The loop on tiny models: accumulation, processes, exact resume, guard, interrupt, best checkpoint.

mod killed;

use std::path::Path;

use blip2_model::backend::Flex;
use blip2_model::checkpoint::huggingface;
use blip2_model::config::Blip2Config;
use blip2_model::qformer::Bridge;
use burn::backend::Autodiff;
use burn::tensor::backend::BackendTypes;

use super::*;
use crate::distributed::local;
use crate::optim::{AdamWConfig, ScalerConfig, Schedule, Shape};
use crate::run::{LossValidation, SourceError};
use crate::stage::testing::*;
use crate::stage::{Frozen, Images, LmBatch, PairBatch, Stage1, Stage1Config, Stage2, Stage2Config};

type Ad = Autodiff<Flex>;
type Module = Bridge<Ad>;

fn device() -> <Ad as BackendTypes>::Device {
    Default::default()
}

fn keys() -> Keys {
    huggingface::keys(&Blip2Config::from_json("{}").unwrap())
}

fn config(steps: u64) -> TrainerConfig {
    TrainerConfig {
        steps,
        accumulate: 1,
        clip_norm: Some(5.0),
        optimizer: AdamWConfig::default(),
        schedule: Schedule {
            peak: 3e-3,
            min: 1e-4,
            warmup_from: 1e-4,
            warmup_steps: 3,
            shape: Shape::Cosine,
        },
        scaler: None,
        token_mean: TokenMean::Global,
        seed: 11,
        log_every: 1,
        validate_every: 0,
        checkpoint_every: 0,
        keep_last: 2,
        best: None,
        flops: None,
    }
}

/// Batches `0, 1, 2, ...` of an endless set; `stride` and `first` share them among processes.
struct Counter<T> {
    next: usize,
    batch: usize,
    first: usize,
    stride: usize,
    make: fn(usize, usize) -> T,
}

impl<T> Counter<T> {
    fn new(batch: usize, make: fn(usize, usize) -> T) -> Self {
        Self {
            next: 0,
            batch,
            first: 0,
            stride: batch,
            make,
        }
    }
}

impl<T> BatchSource<T> for Counter<T> {
    fn next_batch(&mut self) -> Result<T, SourceError> {
        let first = self.next * self.stride + self.first;
        self.next += 1;
        Ok((self.make)(first, self.batch))
    }

    fn cursor(&self) -> Value {
        self.next.into()
    }

    fn seek(&mut self, cursor: &Value) -> Result<(), SourceError> {
        self.next = cursor.as_u64().ok_or("a cursor is a number")? as usize;
        Ok(())
    }
}

type Captioning = Stage2<Ad, Module, ToyLm<Ad>>;

fn captioning() -> (Captioning, Module) {
    let llm = Frozen::new::<Ad>(toy_lm::<Ad>(&device()));
    let options = Stage2Config { llm_dropout: false };
    let module = stage2_bridge(without_dropout(qformer()), &device());
    (Stage2::new(encoder(&device()), llm, options, device()), module)
}

fn contrasting(dropout: bool) -> (Stage1<Ad, Module>, Module) {
    let sizes = if dropout {
        qformer()
    } else {
        without_dropout(qformer())
    };
    let options = Stage1Config {
        dec_token: DEC,
        ..Stage1Config::default()
    };
    let module = stage1_bridge(sizes, &device());
    (Stage1::new(encoder(&device()), options, device()), module)
}

fn host_values(module: &Module) -> BTreeMap<String, Vec<f32>> {
    let values = params::values(module).into_iter();
    values
        .map(|(name, value)| (name, params::to_host(&value)))
        .collect()
}

/// How far apart two runs from `start` have come, relative to how far they went (Euclidean norms).
fn distance(start: &Module, a: &Module, b: &Module) -> f64 {
    let (start, a, b) = (host_values(start), host_values(a), host_values(b));
    let (mut apart, mut way) = (0f64, 0f64);
    for (name, start) in &start {
        for ((s, a), b) in start.iter().zip(&a[name]).zip(&b[name]) {
            apart += f64::from(a - b).powi(2);
            way += f64::from(a - s).powi(2);
        }
    }
    (apart / way).sqrt()
}

fn train_captions(config: TrainerConfig, batch: usize, folder: &Path) -> Module {
    let (stage, module) = captioning();
    let parts = RunParts::new(folder, keys());
    let mut trainer = Trainer::open(config, parts, stage, module, device()).unwrap();
    trainer.run(&mut Counter::new(batch, captions), &mut ()).unwrap();
    trainer.module().clone()
}

/// Options under which an update is as exact as its gradient.
///
/// AdamW's first update is `lr g / (|g| + eps)`: with the usual epsilon of 1e-8 it has the sign of a gradient that is
/// nothing but rounding and the full size of the learning rate. The key biases' gradient is that (softmax does not change
/// when a number is added to a whole row), and at the start, where all embeddings are alike, so nearly are the gradients
/// of the projections: runs that add up in another order lie 1e-3 apart there, measured, although no gradient is wrong.
/// With `eps` far above the noise of a gradient the update is continuous in it; with 1 it is proportional to it.
fn smooth(eps: f64) -> TrainerConfig {
    TrainerConfig {
        optimizer: AdamWConfig {
            eps,
            ..AdamWConfig::default()
        },
        ..config(3)
    }
}

#[test]
fn accumulated_micro_batches_equal_one_large_batch() {
    let folder = tempfile::tempdir().unwrap();
    let whole = train_captions(smooth(1e-4), 6, &folder.path().join("whole"));
    let parts = TrainerConfig {
        accumulate: 3,
        ..smooth(1e-4)
    };
    let parts = train_captions(parts, 2, &folder.path().join("parts"));
    // sums in another order: 5e-7
    let error = distance(&captioning().1, &whole, &parts);
    assert!(error < 1e-5, "{error}");
    // and the batches differ in their token counts, so a mean of means would be something else
    let counts: Vec<_> = (0..3)
        .map(|i| captioning().0.target_count(&captions(2 * i, 2)))
        .collect();
    assert!(counts.iter().any(|&n| n != counts[0]), "{counts:?}");
}

/// Stage 1 in one process with eight pairs a step and in four with two each; their logged losses agree to 1e-5.
fn one_and_four(config: &TrainerConfig) -> (Module, Module) {
    let folder = tempfile::tempdir().unwrap();
    let one = {
        let (stage, module) = contrasting(false);
        let parts = RunParts::new(folder.path().join("one"), keys());
        let mut trainer = Trainer::open(config.clone(), parts, stage, module, device()).unwrap();
        trainer.run(&mut Counter::new(8, pairs), &mut ()).unwrap();
        trainer.module().clone()
    };
    let four = local::run(4, |me| {
        let (stage, module) = contrasting(false);
        let parts = RunParts {
            collective: me,
            ..RunParts::new(folder.path().join("four"), keys())
        };
        let rank = Collective::<Flex>::rank(me);
        let mut source = Counter {
            first: 2 * rank,
            stride: 8,
            ..Counter::new(2, pairs)
        };
        let mut trainer = Trainer::open(config.clone(), parts, stage, module, device()).unwrap();
        trainer.run(&mut source, &mut ()).unwrap();
        trainer.module().clone()
    });
    for module in &four[1..] {
        assert_eq!(
            host_values(module),
            host_values(&four[0]),
            "processes drifted apart"
        );
    }
    let losses = |run: &str| -> Vec<(usize, &str, f64)> {
        let rows = super::super::log::read(&folder.path().join(run)).unwrap();
        let names = ["itc", "itm", "itg", "gradient_norm"];
        rows.iter()
            .enumerate()
            .flat_map(|(row, values)| names.map(|name| (row, name, values[name].as_f64().unwrap())))
            .collect()
    };
    for ((row, name, one), (_, _, four)) in losses("one").into_iter().zip(losses("four")) {
        assert!(
            (one - four).abs() < 1e-5 * one,
            "{name} of row {row}: {one} and {four}"
        );
    }
    let four = four.into_iter().next().unwrap();
    (one, four)
}

#[test]
fn four_processes_with_two_pairs_each_equal_one_with_eight() {
    let start = contrasting(false).1;
    // the steps of a training run, up to 3e-3 long: no weight differs by more than 1e-5 (9e-7)
    let (one, four) = one_and_four(&smooth(1e-4));
    let (one, four) = (host_values(&one), host_values(&four));
    for (name, one) in &one {
        for (one, four) in one.iter().zip(&four[name]) {
            assert!((one - four).abs() < 1e-5, "{name}: {one} and {four}");
        }
    }
    // updates proportional to gradients: within 1e-5 of their length (7e-7); every tensor by itself within five times
    // that (5e-6), but for the key biases, whose gradient is zero, and for the last bit of what is stored: that is a
    // thousandth of the way of the temperature
    let (one, four) = one_and_four(&smooth(1.0));
    let error = distance(&start, &one, &four);
    assert!(error < 1e-5, "{error}");
    let (start, one, four) = (host_values(&start), host_values(&one), host_values(&four));
    let norm = |a: &[f32], b: &[f32]| {
        let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
        squares.sum::<f64>().sqrt()
    };
    for (name, start) in &start {
        let (way, apart) = (norm(start, &one[name]), norm(&one[name], &four[name]));
        let last_bit = norm(start, &vec![0.0; start.len()]) * f64::from(f32::EPSILON);
        match name.ends_with("key.bias") {
            true => assert!(way < 1e-12, "{name} moved by {way}"),
            false => assert!(apart < 5e-5 * way + last_bit, "{name}: {apart} apart after {way}"),
        }
    }
}

/// Eight pairs are learnt by heart, as far as label smoothing allows.
///
/// All embeddings are alike at first, so the contrastive loss stays at ln 8 until the projections tear them apart within a
/// few steps of large gradients, and how far it has come soon after that depends on rounding (1.2 to 1.6 at step 60).
/// With gradients clipped to 1, and 200 steps, three roundings end at 0.47 to 0.51, and at 1.23 to 1.24 for generation.
#[test]
fn training_learns() {
    let folder = tempfile::tempdir().unwrap();
    let (stage, module) = contrasting(false);
    let parts = RunParts::new(folder.path(), keys());
    let config = TrainerConfig {
        clip_norm: Some(1.0),
        ..config(200)
    };
    let mut trainer = Trainer::open(config, parts, stage, module, device()).unwrap();
    // the same eight pairs again and again
    let mut source = Counter {
        stride: 0,
        ..Counter::new(8, pairs)
    };
    trainer.run(&mut source, &mut ()).unwrap();
    let rows = super::super::log::read(folder.path()).unwrap();
    let loss = |row: usize, name: &str| rows[row][name].as_f64().unwrap();
    // at the start nothing is known: ln 8, ln 40
    assert!((loss(0, "itc") - 8f64.ln()).abs() < 0.3, "{}", loss(0, "itc"));
    assert!((loss(0, "itg") - 40f64.ln()).abs() < 0.3, "{}", loss(0, "itg"));
    for (name, share) in [("itc", 0.4), ("itg", 0.45)] {
        assert!(
            loss(199, name) < share * loss(0, name),
            "{name}: {}",
            loss(199, name)
        );
    }
}

#[test]
fn an_interrupted_run_saves_and_goes_on_to_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let whole = train_captions(config(4), 3, &folder.path().join("whole"));

    let (stage, module) = captioning();
    let parts = RunParts::new(folder.path().join("parts"), keys());
    parts.interrupt.request();
    let mut trainer = Trainer::open(config(4), parts, stage, module, device()).unwrap();
    let outcome = trainer.run(&mut Counter::new(3, captions), &mut ()).unwrap();
    assert_eq!(outcome, Outcome::Interrupted { step: 1 });
    let parts = train_captions(config(4), 3, &folder.path().join("parts"));
    assert_eq!(host_values(&whole), host_values(&parts));
    let rows = super::super::log::read(&folder.path().join("parts")).unwrap();
    let steps: Vec<_> = rows.iter().map(|row| row["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [1, 2, 3, 4]);
}

#[test]
fn a_power_of_two_on_the_loss_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let plain = train_captions(config(3), 3, &folder.path().join("plain"));
    let scaled = TrainerConfig {
        scaler: Some(ScalerConfig::default()),
        ..config(3)
    };
    let scaled = train_captions(scaled, 3, &folder.path().join("scaled"));
    assert_eq!(host_values(&plain), host_values(&scaled));
}

/// The batches of the given numbers.
struct Chosen(std::vec::IntoIter<usize>);

impl BatchSource<LmBatch> for Chosen {
    fn next_batch(&mut self) -> Result<LmBatch, SourceError> {
        Ok(captions(3 * self.0.next().ok_or("no more")?, 3))
    }

    fn cursor(&self) -> Value {
        Value::Null
    }

    fn seek(&mut self, _: &Value) -> Result<(), SourceError> {
        Err("it cannot".into())
    }
}

/// A scale so high that f32 overflows, as f16 does under the usual ones: what is skipped, what the scale does, and that
/// in the end nothing but the skipped batches is missing.
#[test]
fn steps_that_overflow_are_skipped_and_the_scale_recovers() {
    // 2^129 itself is beyond f32, so the first steps overflow whatever their gradients are
    let scaler = ScalerConfig {
        initial: 2f64.powi(129),
        interval: 3,
        ..ScalerConfig::default()
    };
    let config = |steps, scaler| TrainerConfig {
        schedule: Schedule {
            peak: 1e-3,
            min: 1e-3,
            warmup_from: 1e-3,
            warmup_steps: 0,
            shape: Shape::Constant,
        },
        scaler,
        ..config(steps)
    };
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, config: TrainerConfig, batches: Vec<usize>| {
        let (stage, module) = captioning();
        let start = host_values(&module);
        let parts = RunParts::new(folder.path().join(name), keys());
        let mut trainer = Trainer::open(config, parts, stage, module, device()).unwrap();
        trainer.run(&mut Chosen(batches.into_iter()), &mut ()).unwrap();
        let after = host_values(trainer.module());
        assert_eq!(
            trainer.optimizer.state().is_empty(),
            start == after,
            "moments without an update"
        );
        (start, after)
    };
    let rows = |name: &str| -> (Vec<bool>, Vec<f64>) {
        let rows = super::super::log::read(&folder.path().join(name)).unwrap();
        let number = |name: &'static str| rows.iter().map(move |row| row[name].as_f64().unwrap());
        (
            number("applied").map(|applied| applied == 1.0).collect(),
            number("loss_scale").collect(),
        )
    };

    // one step: half the scale; weights and moments as if it had not been
    let (start, after) = run("skipped", config(1, Some(scaler)), vec![0]);
    assert_eq!(start, after);
    assert_eq!(rows("skipped"), (vec![false], vec![2f64.powi(128)]));

    // more steps: the scale falls until it fits, and after three good steps in a row it is tried higher again
    let steps = 12;
    let (_, scaled) = run(
        "recovers",
        config(steps, Some(scaler)),
        (0..steps as usize).collect(),
    );
    let (applied, scales) = rows("recovers");
    assert!(applied.iter().any(|applied| *applied), "{scales:?}");
    assert!(
        scales.windows(2).any(|pair| pair[1] == 2.0 * pair[0]),
        "{scales:?}"
    );
    let mut rule = LossScaler::new(scaler);
    for (step, applied) in applied.iter().enumerate() {
        rule.update(*applied);
        assert_eq!(scales[step], rule.scale(), "step {step}");
    }

    // a power of two changes no bit of a gradient, so a run over the batches that were applied gives the same weights
    let chosen: Vec<usize> = (0..steps as usize).filter(|&step| applied[step]).collect();
    let (_, plain) = run("plain", config(chosen.len() as u64, None), chosen);
    assert_eq!(plain, scaled);
}

#[test]
fn a_step_that_is_not_finite_stops_the_run_and_names_the_samples() {
    fn poisoned(first: usize, batch: usize) -> LmBatch {
        let mut batch = captions(first, batch);
        if let (4, Images::Pixels(pixels)) = (first, &mut batch.images) {
            let mut values: Vec<f32> = pixels.iter::<f32>().collect();
            values[7] = f32::NAN;
            *pixels = TensorData::new(values, pixels.shape.clone());
        }
        batch
    }
    let folder = tempfile::tempdir().unwrap();
    let (stage, module) = captioning();
    let parts = RunParts::new(folder.path(), keys());
    let mut trainer = Trainer::open(config(9), parts, stage, module, device()).unwrap();
    let error = trainer.run(&mut Counter::new(2, poisoned), &mut ()).unwrap_err();
    let RunError::NotFinite { step: 2, report } = error else {
        panic!("{error}");
    };
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    assert_eq!(
        report["micro_batches"][0]["keys"],
        serde_json::json!(["pair-4", "pair-5"])
    );
    assert_eq!(report["micro_batches"][0]["losses"][0][1], "NaN");
    // the weights are still those of the last good step
    assert!(
        host_values(trainer.module())
            .values()
            .flatten()
            .all(|v| v.is_finite())
    );
}

#[test]
fn the_best_checkpoint_outlives_newer_ones() {
    struct Peak;
    impl Validate<Ad, Captioning> for Peak {
        fn validate(
            &mut self,
            moment: &Moment<'_, Ad, Captioning>,
        ) -> Result<Vec<(String, f64)>, SourceError> {
            Ok(vec![("score".into(), -(moment.step as f64 - 2.0).abs())])
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let (stage, module) = captioning();
    let config = TrainerConfig {
        validate_every: 1,
        checkpoint_every: 1,
        keep_last: 1,
        best: Some(BestRule {
            metric: "score".into(),
            higher: true,
        }),
        ..config(5)
    };
    let parts = RunParts::new(folder.path(), keys());
    let mut trainer = Trainer::open(config, parts, stage, module, device()).unwrap();
    trainer.run(&mut Counter::new(2, captions), &mut Peak).unwrap();
    let store = CheckpointStore::open(folder.path(), 1).unwrap();
    assert_eq!(store.steps().unwrap(), [2, 5]);
}

#[test]
fn held_out_losses_are_those_of_the_batches_together() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, batches: Vec<LmBatch>| {
        let (stage, module) = captioning();
        let config = TrainerConfig {
            validate_every: 2,
            ..config(2)
        };
        let folder = folder.path().join(name);
        let parts = RunParts::new(&folder, keys());
        let mut trainer = Trainer::open(config, parts, stage, module, device()).unwrap();
        let mut validation = LossValidation::new(batches, 3);
        trainer
            .run(&mut Counter::new(2, captions), &mut validation)
            .unwrap();
        let rows = super::super::log::read(&folder).unwrap();
        let row = rows.iter().find(|row| row["kind"] == "validation").unwrap();
        row["lm"].as_f64().unwrap()
    };
    let one = run("one", vec![captions(50, 6)]);
    let three = run("three", vec![captions(50, 2), captions(52, 2), captions(54, 2)]);
    // the same sums in another order
    assert!((one - three).abs() < 1e-5, "{one} and {three}");
}

#[test]
fn a_checkpoint_loads_as_a_complete_bridge() {
    use blip2_model::checkpoint::{DtypePolicy, Loader};
    use blip2_model::weights::safetensors::SafetensorsFile;
    let folder = tempfile::tempdir().unwrap();
    let trained = train_captions(config(2), 2, folder.path());
    let path = folder.path().join("checkpoints/step-00000002").join(MODEL);
    let (file, keys) = (SafetensorsFile::open(&path).unwrap(), keys());
    let mut loader = Loader::new(&file, &keys, DtypePolicy::f32());
    let fresh = stage2_bridge::<Ad>(without_dropout(qformer()), &device());
    let loaded = loader.load(fresh, "bridge");
    loader.finish(false).unwrap();
    assert_eq!(host_values(&trained), host_values(&loaded));
}

#[test]
fn resuming_on_other_weights_or_another_architecture_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open = |digest: &str, stage, module| {
        let parts = RunParts {
            frozen: BTreeMap::from([("image encoder".to_string(), digest.to_string())]),
            ..RunParts::new(folder.path(), keys())
        };
        Trainer::<Ad, Captioning>::open(config(1), parts, stage, module, device())
    };
    let (stage, module) = captioning();
    let mut trainer = open("a", stage, module).unwrap();
    trainer.run(&mut Counter::new(2, captions), &mut ()).unwrap();

    let (stage, module) = captioning();
    let error = open("b", stage, module).err().unwrap();
    assert!(error.to_string().contains("image encoder"), "{error}");

    let (stage, _) = captioning();
    let mut deeper = without_dropout(qformer());
    deeper.num_hidden_layers = 4;
    let error = open("a", stage, stage2_bridge(deeper, &device())).err().unwrap();
    let RunError::Checkpoint(CheckpointError::Mismatch { missing, unknown, .. }) = error else {
        panic!("{error}");
    };
    assert!(unknown.is_empty() && missing.iter().all(|name| name.contains("layer.3")));
}
