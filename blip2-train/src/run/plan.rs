//! What a step of a recipe costs on a cluster, from counts alone: bytes between processes, bytes of memory, seconds.
//!
//! Step time `T = F / R + V / S + n L`: `F` floating-point operations of a process, `R` what its device really
//! does in a second, `V` bytes it sends (and receives), `S` bytes a second of its link, `n` exchanges of latency `L`.

use serde::Serialize;

/// Numbers of one process's step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepShape {
    /// Number of processes, `W`.
    pub world: usize,
    /// Pictures of a micro-batch on one process, `B`.
    pub batch: usize,
    /// Micro-batches.
    pub accumulate: usize,
    /// Queries, `Q`.
    pub queries: usize,
    /// Text tokens, `T`.
    pub text: usize,
    /// Image tokens, `N`.
    pub image_tokens: usize,
    /// Width of image tokens, `C`.
    pub image_width: usize,
    /// Width of the contrastive space, `E`.
    pub embed: usize,
    /// Trained parameters, `P`.
    pub trained: usize,
    /// Whether this is stage 1, whose losses span all processes.
    pub global_losses: bool,
    /// Whether the image encoder trains.
    pub train_vision: bool,
}

/// A kind of exchange within a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exchange {
    /// What for.
    pub what: &'static str,
    /// Bytes of the vector that is summed.
    pub vector_bytes: f64,
    /// How often in a step.
    pub times: usize,
}

impl StepShape {
    /// Everything that is summed over processes in a step, in f32.
    pub fn exchanges(&self) -> Vec<Exchange> {
        if self.world == 1 {
            return Vec::new();
        }
        let f = |count: usize| 4.0 * count as f64;
        let all = self.world * self.batch;
        let mut list = vec![Exchange {
            what: "gradients",
            vector_bytes: f(self.trained),
            times: 1,
        }];
        if self.global_losses {
            let tokens = f(all * self.image_tokens * self.image_width);
            let micro = self.accumulate;
            let mut add = |what, vector_bytes, times| {
                list.push(Exchange {
                    what,
                    vector_bytes,
                    times,
                });
            };
            add("image tokens, for negatives", tokens, micro);
            if self.train_vision {
                add("their gradients", tokens, micro);
            }
            add("query features", f(all * self.queries * self.embed), micro);
            add("text features", f(all * self.embed), micro);
            // a whole number travels as four floats
            add("token ids and masks", f(4 * all * self.text), 2 * micro);
        }
        list
    }

    /// Bytes one process sends in a step: a sum over `W` processes costs `2 (W - 1) / W` of its vector.
    pub fn sent_bytes(&self) -> f64 {
        let share = 2.0 * (self.world - 1) as f64 / self.world as f64;
        self.exchanges()
            .iter()
            .map(|e| share * e.vector_bytes * e.times as f64)
            .sum()
    }

    /// Exchanges in a step; each has two rounds.
    pub fn rounds(&self) -> usize {
        2 * self.exchanges().iter().map(|e| e.times).sum::<usize>()
    }
}

/// What the machines can do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cluster {
    /// Floating-point operations per second that a device really reaches on this work.
    pub flops: f64,
    /// Bytes per second that a process can send while it receives as many.
    pub bandwidth: f64,
    /// Seconds of one exchange without contents.
    pub latency: f64,
}

/// Seconds of a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepTime {
    /// Computing.
    pub compute: f64,
    /// Sending.
    pub transfer: f64,
    /// Waiting for the first byte.
    pub latency: f64,
}

impl StepTime {
    /// Sum of all, as nothing overlaps here.
    pub fn total(&self) -> f64 {
        self.compute + self.transfer + self.latency
    }
}

/// The formula of the module documentation; `flops` are those of a step of one process.
pub fn step_time(shape: &StepShape, flops: f64, cluster: &Cluster) -> StepTime {
    StepTime {
        compute: flops / cluster.flops,
        transfer: shape.sent_bytes() / cluster.bandwidth,
        latency: shape.rounds() as f64 * cluster.latency,
    }
}

/// Bytes that a transformer keeps of `rows` sequences of `length` tokens for its backward pass, in f32: per layer
/// and token `68 width + 10 heads length` (Korthikanti et al. 2022, equation 2, with twice their two bytes).
pub fn activation_bytes(rows: usize, length: usize, width: usize, heads: usize, layers: usize) -> f64 {
    let (s, h, a) = (length as f64, width as f64, heads as f64);
    rows as f64 * layers as f64 * s * (68.0 * h + 10.0 * a * s)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(world: usize) -> StepShape {
        StepShape {
            world,
            batch: 105,
            accumulate: 1,
            queries: 32,
            text: 32,
            image_tokens: 257,
            image_width: 1408,
            embed: 256,
            trained: 186_705_470,
            global_losses: true,
            train_vision: false,
        }
    }

    #[test]
    fn one_process_sends_nothing_and_many_send_twice_the_vector() {
        assert_eq!(shape(1).sent_bytes(), 0.0);
        let stage2 = StepShape {
            global_losses: false,
            ..shape(16)
        };
        let want = 2.0 * 15.0 / 16.0 * 4.0 * 186_705_470.0;
        assert!((stage2.sent_bytes() / want - 1.0).abs() < 1e-12);
        // stage 1 of the paper: 1680 pictures of 257 x 1408 tokens outweigh the gradients
        let tokens = 4.0 * 1680.0 * 257.0 * 1408.0;
        let list = shape(16).exchanges();
        let found = list.iter().find(|e| e.what.starts_with("image tokens")).unwrap();
        assert_eq!(found.vector_bytes, tokens);
        assert!(shape(16).sent_bytes() > stage2.sent_bytes() + 1.8 * tokens);
    }

    #[test]
    fn the_formula_adds_up() {
        let cluster = Cluster {
            flops: 1e12,
            bandwidth: 1e9,
            latency: 1e-3,
        };
        let stage2 = StepShape {
            global_losses: false,
            trained: 1000,
            ..shape(2)
        };
        let time = step_time(&stage2, 3e12, &cluster);
        assert_eq!(time.compute, 3.0);
        assert_eq!(time.transfer, 4000.0 / 1e9);
        assert_eq!(time.latency, 2e-3);
        assert_eq!(time.total(), 3.0 + 4e-6 + 2e-3);
    }
}
