//! Numbers of a step: from the device, over processes, into the logs.

use super::*;
use crate::run::memory;
use crate::run::progress::Split;

impl<B: AutodiffBackend, S: Stage<B>> Trainer<'_, B, S> {
    /// Mean over micro-batches and processes.
    pub(super) fn mean_losses(
        &self,
        names: &[&'static str],
        per_micro: &[Vec<f64>],
    ) -> Result<Vec<(&'static str, f64)>, RunError> {
        let mean = |i: usize| per_micro.iter().map(|l| l[i]).sum::<f64>() / per_micro.len() as f64;
        let local: Vec<f32> = (0..names.len()).map(|i| mean(i) as f32).collect();
        let collective = self.parts.collective;
        if collective.world_size() == 1 {
            return Ok(names
                .iter()
                .enumerate()
                .map(|(i, name)| (*name, mean(i)))
                .collect());
        }
        let local = Tensor::from_data(TensorData::new(local, [names.len()]), &self.device);
        let mean = params::to_host(&collective.all_reduce_mean(local)?);
        Ok(names
            .iter()
            .zip(mean)
            .map(|(name, loss)| (*name, f64::from(loss)))
            .collect())
    }

    /// What all processes passed over so far; they ask together.
    pub(super) fn skips(&self, source: &dyn BatchSource<S::Batch>) -> Result<Option<Skips>, RunError> {
        Ok(Skips::of(&self.gather_cursors(source.cursor())?))
    }

    /// The last line of a run that passed anything over.
    pub(super) fn say_skips(&self, source: &dyn BatchSource<S::Batch>) -> Result<(), RunError> {
        if let Some(skips) = self.skips(source)?.filter(|skips| !skips.is_empty()) {
            self.parts.progress.note(&format!("in all: {skips}"));
        }
        Ok(())
    }

    pub(super) fn write_numbers(
        &self,
        log: &mut Option<MetricsLog>,
        numbers: &StepNumbers,
        skips: Option<Skips>,
        since: (Instant, u64, u64),
    ) -> Result<(), RunError> {
        let Some(log) = log else { return Ok(()) };
        let seconds = since.0.elapsed().as_secs_f64().max(1e-9);
        let steps = (self.step - since.1).max(1) as f64;
        let total: f64 = numbers.losses.iter().map(|(_, loss)| loss).sum();
        let mut values = vec![("loss".to_string(), total)];
        let parts = numbers
            .losses
            .iter()
            .map(|(name, loss)| (name.to_string(), *loss));
        values.extend(parts);
        values.push(("learning_rate".into(), numbers.rate));
        values.push(("gradient_norm".into(), numbers.norm));
        values.push(("seconds_per_step".into(), seconds / steps));
        values.push((
            "images_per_second".into(),
            (self.samples - since.2) as f64 / seconds,
        ));
        if let Some((flops, peak)) = self.config.flops {
            values.push(("flops_utilisation".into(), flops * steps / seconds / peak));
        }
        if let Some(scaler) = &self.scaler {
            values.push(("loss_scale".into(), scaler.scale()));
            values.push(("applied".into(), f64::from(u8::from(numbers.applied))));
        }
        if let Some((resident, peak)) = memory::resident() {
            values.push(("memory_gib".into(), resident as f64 / (1u64 << 30) as f64));
            values.push(("memory_peak_gib".into(), peak as f64 / (1u64 << 30) as f64));
        }
        let mut shown = values.len();
        if let Some(skips) = skips {
            values.push(("samples_skipped".into(), skips.samples as f64));
            values.push(("shards_lost".into(), skips.lost.len() as f64));
            // the line on the terminal has no room for what did not happen
            if !skips.is_empty() {
                shown = values.len();
            }
        }
        self.parts
            .progress
            .numbers(self.step, Split::Train, &values[..shown]);
        log.write(self.step, "train", &values)
    }
}

/// Loss values per micro-batch, in one read from the device.
pub(super) fn read_losses<B: AutodiffBackend>(
    losses: Vec<crate::stage::LossParts<B::InnerBackend>>,
) -> (Vec<&'static str>, Vec<Vec<f64>>) {
    let names: Vec<_> = losses
        .first()
        .into_iter()
        .flatten()
        .map(|(name, _)| *name)
        .collect();
    let width = names.len().max(1);
    let all: Vec<_> = losses.into_iter().flatten().map(|(_, loss)| loss).collect();
    if all.is_empty() {
        return (names, Vec::new());
    }
    let values = params::to_host(&Tensor::cat(all, 0));
    let rows = values
        .chunks(width)
        .map(|row| row.iter().map(|&v| f64::from(v)).collect());
    (names, rows.collect())
}
