//! Averages of gradients, over micro-batches and over processes.

use burn::tensor::{Tensor, TensorData, backend::Backend};

use super::clip::scale;
use crate::distributed::{Collective, CollectiveError, host};
use crate::params::{Named, ParamInfo};

/// Sum of the gradients of micro-batches.
#[derive(Clone, Debug)]
pub struct Accumulator<B: Backend> {
    sum: Named<B>,
    count: usize,
}

impl<B: Backend> Default for Accumulator<B> {
    fn default() -> Self {
        Self {
            sum: Named::new(),
            count: 0,
        }
    }
}

impl<B: Backend> Accumulator<B> {
    /// Adds one micro-batch.
    pub fn add(&mut self, gradients: Named<B>) {
        self.count += 1;
        for (name, gradient) in gradients {
            let sum = match self.sum.remove(&name) {
                Some(sum) => sum + gradient,
                None => gradient,
            };
            self.sum.insert(name, sum);
        }
    }

    /// Mean over the micro-batches, times `factor` (the inverse of the loss scale).
    pub fn mean(self, factor: f64) -> Named<B> {
        scale(self.sum, factor / self.count.max(1) as f64)
    }
}

/// Mean over all processes. A parameter without a gradient here but with one elsewhere counts as zero
/// here; one without a gradient anywhere stays without. `infos` fixes the order, equal on all processes.
pub fn average_over_processes<B: Backend>(
    collective: &dyn Collective<B>,
    infos: &[ParamInfo],
    mut gradients: Named<B>,
    device: &B::Device,
) -> Result<Named<B>, CollectiveError> {
    if collective.world_size() == 1 {
        return Ok(gradients);
    }
    let present: Vec<f32> = infos
        .iter()
        .map(|info| f32::from(u8::from(gradients.contains_key(&info.name))))
        .collect();
    let present = Tensor::from_data(TensorData::new(present, [infos.len()]), device);
    let present = host(collective.all_reduce_sum(present)?);
    let used = infos.iter().zip(present).filter(|(_, n)| *n > 0.0);
    let mut averaged = Named::new();
    let (mut bucket, mut waiting) = (Vec::new(), 0);
    for (info, _) in used {
        let gradient = gradients.remove(&info.name);
        bucket.push((
            info,
            gradient.unwrap_or_else(|| Tensor::zeros([info.len()], device)),
        ));
        waiting += info.len();
        if waiting >= BUCKET {
            average(collective, std::mem::take(&mut bucket), &mut averaged)?;
            waiting = 0;
        }
    }
    average(collective, bucket, &mut averaged)?;
    Ok(averaged)
}

/// Gradients that travel together, values: an exchange takes time however little is in it.
const BUCKET: usize = 8 << 20;

fn average<B: Backend>(
    collective: &dyn Collective<B>,
    bucket: Vec<(&ParamInfo, Tensor<B, 1>)>,
    averaged: &mut Named<B>,
) -> Result<(), CollectiveError> {
    if bucket.is_empty() {
        return Ok(());
    }
    let (infos, gradients): (Vec<_>, Vec<_>) = bucket.into_iter().unzip();
    let mean = collective.all_reduce_mean(Tensor::cat(gradients, 0))?;
    let mut start = 0;
    for info in infos {
        let own = mean.clone().narrow(0, start, info.len());
        averaged.insert(info.name.clone(), own);
        start += info.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distributed::local;
    use crate::params::to_host;
    use blip2_model::backend::Flex;

    #[test]
    fn a_parameter_that_only_one_process_used_is_averaged_with_zero() {
        let infos = ["a", "b", "c"].map(|name| ParamInfo {
            name: name.into(),
            shape: vec![1],
        });
        let results = local::run(2, |me| {
            let device = Default::default();
            let one = |v: f32| Tensor::<Flex, 1>::from_data([v], &device);
            let mut mine = Named::from([("a".to_string(), one(1.0))]);
            if Collective::<Flex>::rank(me) == 1 {
                mine.insert("b".into(), one(4.0));
            }
            average_over_processes(me, &infos, mine, &device).unwrap()
        });
        for averaged in results {
            assert_eq!(averaged.keys().collect::<Vec<_>>(), ["a", "b"]);
            assert_eq!(to_host(&averaged["a"]), [1.0]);
            assert_eq!(to_host(&averaged["b"]), [2.0]);
        }
    }
}
