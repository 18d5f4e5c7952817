use super::*;

fn values(n: usize, seed: usize) -> Vec<f32> {
    (0..n)
        .map(|i| ((i + seed) * 2_654_435_761 % 10_007) as f32 / 5_003.5 - 1.0)
        .collect()
}

/// Everything in f64, `[B, H, T, d]` tensors given as functions; the result as `[B, T, H, d]`.
struct Case {
    dims: [usize; 4],
    keys: usize,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    mask: Option<Vec<f64>>,
    factors: Option<Vec<f64>>,
    scale: f64,
}

impl Case {
    fn forward(&self) -> Vec<f64> {
        let ([batch, heads, queries, d], keys) = (self.dims, self.keys);
        let mut out = vec![0.0; batch * queries * heads * d];
        for b in 0..batch {
            for h in 0..heads {
                for t in 0..queries {
                    let q = &self.q[((b * heads + h) * queries + t) * d..][..d];
                    let mut p: Vec<f64> = (0..keys)
                        .map(|s| {
                            let k = &self.k[((b * heads + h) * keys + s) * d..][..d];
                            let dot: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                            // a mask [B, 1, T, S]
                            let mask = self
                                .mask
                                .as_ref()
                                .map_or(0.0, |m| m[(b * queries + t) * keys + s]);
                            dot * self.scale + mask
                        })
                        .collect();
                    let largest = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    p.iter_mut().for_each(|p| *p = (*p - largest).exp());
                    let sum: f64 = p.iter().sum();
                    for s in 0..keys {
                        let factor = self
                            .factors
                            .as_ref()
                            .map_or(1.0, |f| f[((b * heads + h) * queries + t) * keys + s]);
                        for i in 0..d {
                            out[((b * queries + t) * heads + h) * d + i] +=
                                p[s] / sum * factor * self.v[((b * heads + h) * keys + s) * d + i];
                        }
                    }
                }
            }
        }
        out
    }
}

/// `[B, H, T, d] -> [B, T, H, d]`
fn swapped<T: Copy>(x: &[T], [batch, heads, len, d]: [usize; 4]) -> Vec<T> {
    let mut out = Vec::with_capacity(x.len());
    for b in 0..batch {
        for t in 0..len {
            for h in 0..heads {
                out.extend_from_slice(&x[((b * heads + h) * len + t) * d..][..d]);
            }
        }
    }
    out
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

fn close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*g) - w).abs() < tolerance, "{what} {i}: {g} {w}");
    }
}

fn dense(x: &[f32], [b, h, t, d]: [usize; 4]) -> Heads<'_> {
    Heads::new(x, [b, h, t, d], [h * t * d, t * d, d])
}

#[test]
fn equals_f64_with_masks_dropout_and_odd_sizes() {
    for (dims, keys) in [
        ([1, 1, 1, 1], 1),
        ([2, 3, 1, 20], 37),
        ([1, 2, 5, 8], 65),
        ([2, 2, 33, 17], 70),
        ([1, 1, 700, 16], 40),
    ] {
        let [batch, heads, queries, d] = dims;
        let kd = [batch, heads, keys, d];
        let (q, k, v) = (
            values(batch * heads * queries * d, 1),
            values(batch * heads * keys * d, 2),
            values(batch * heads * keys * d, 3),
        );
        let hidden: Vec<f32> = (0..batch * queries * keys)
            .map(|i| {
                if i % 3 == 1 {
                    f32::MIN / 2.0
                } else {
                    (i % 5) as f32 * 0.1
                }
            })
            .collect();
        let kept: Vec<f32> = (0..batch * heads * queries * keys)
            .map(|i| if i % 4 == 2 { 0.0 } else { 4.0 / 3.0 })
            .collect();
        for (masked, dropped) in [(false, false), (true, false), (true, true)] {
            let scale = 1.7 / (d as f32).sqrt();
            let scores = Scores {
                scale,
                mask: masked.then(|| Mask::new(&hidden, [queries * keys, 0, keys], keys)),
                factors: dropped.then_some(&kept[..]),
            };
            let case = Case {
                dims,
                keys,
                q: wide(&q),
                k: wide(&k),
                v: wide(&v),
                mask: masked.then(|| wide(&hidden)),
                factors: dropped.then(|| wide(&kept)),
                scale: f64::from(scale),
            };
            let want = case.forward();
            // a weighted mean of values below one: a few f32 roundings
            let got = attend(dense(&q, dims), dense(&k, kd), dense(&v, kd), scores);
            close(&got, &want, 2e-6, "dense");
            // the same in [B, T, H, d] memory, as projections leave it
            let (qs, ks, vs) = (swapped(&q, dims), swapped(&k, kd), swapped(&v, kd));
            let view = |x, [b, h, t, d]: [usize; 4]| Heads::new(x, [b, h, t, d], [t * h * d, d, h * d]);
            let got = attend(view(&qs, dims), view(&ks, kd), view(&vs, kd), scores);
            close(&got, &want, 2e-6, "strided");
        }
    }
}

#[test]
fn gradients_are_difference_quotients_of_f64() {
    for (dims, keys) in [([1, 2, 3, 4], 5), ([2, 1, 11, 3], 9)] {
        let [batch, heads, queries, d] = dims;
        let kd = [batch, heads, keys, d];
        let (q, k, v, g) = (
            values(batch * heads * queries * d, 1),
            values(batch * heads * keys * d, 2),
            values(batch * heads * keys * d, 3),
            values(batch * heads * queries * d, 4),
        );
        let bias: Vec<f32> = (0..batch * queries * keys)
            .map(|i| (i % 5) as f32 * 0.1)
            .collect();
        let kept: Vec<f32> = (0..batch * heads * queries * keys)
            .map(|i| if i % 4 == 2 { 0.0 } else { 4.0 / 3.0 })
            .collect();
        for dropped in [false, true] {
            let scores = Scores {
                scale: 0.6,
                mask: Some(Mask::new(&bias, [queries * keys, 0, keys], keys)),
                factors: dropped.then_some(&kept[..]),
            };
            let grads = attend_backward(
                dense(&q, dims),
                dense(&k, kd),
                dense(&v, kd),
                scores,
                dense(&g, dims),
            );
            let case = || Case {
                dims,
                keys,
                q: wide(&q),
                k: wide(&k),
                v: wide(&v),
                mask: Some(wide(&bias)),
                factors: dropped.then(|| wide(&kept)),
                scale: f64::from(0.6f32),
            };
            let weights = swapped(&wide(&g), dims);
            let value = |case: &Case| -> f64 {
                let y = case.forward();
                y.iter().zip(&weights).map(|(y, g)| y * g).sum()
            };
            let h = 1e-5;
            let numeric = |pick: fn(&mut Case) -> &mut Vec<f64>| -> Vec<f64> {
                let n = pick(&mut case()).len();
                (0..n)
                    .map(|i| {
                        let moved = |delta: f64| {
                            let mut case = case();
                            pick(&mut case)[i] += delta;
                            value(&case)
                        };
                        (moved(h) - moved(-h)) / (2.0 * h)
                    })
                    .collect()
            };
            // f32 sums of a dozen products against quotients good to 1e-9
            close(&grads.q, &swapped(&numeric(|c| &mut c.q), dims), 3e-6, "dq");
            close(&grads.k, &swapped(&numeric(|c| &mut c.k), kd), 3e-6, "dk");
            close(&grads.v, &swapped(&numeric(|c| &mut c.v), kd), 3e-6, "dv");
        }
    }
}

#[test]
fn a_row_that_sees_nothing_is_uniform() {
    let (q, k, v) = (values(4, 1), values(8, 2), values(8, 3));
    let hidden = [f32::MIN / 2.0; 2];
    let scores = Scores {
        scale: 1.0,
        mask: Some(Mask::new(&hidden, [0, 0, 0], 2)),
        factors: None,
    };
    let kd = [1, 1, 2, 4];
    let out = attend(dense(&q, [1, 1, 1, 4]), dense(&k, kd), dense(&v, kd), scores);
    for i in 0..4 {
        assert!((out[i] - (v[i] + v[i + 4]) / 2.0).abs() < 1e-6);
    }
}

#[test]
fn no_queries_and_no_batch() {
    let scores = Scores {
        scale: 1.0,
        mask: None,
        factors: None,
    };
    let k = values(8, 2);
    let kd = [1, 1, 2, 4];
    assert!(attend(dense(&[], [1, 1, 0, 4]), dense(&k, kd), dense(&k, kd), scores).is_empty());
    let none = dense(&[], [0, 1, 3, 4]);
    assert!(attend(none, none, none, scores).is_empty());
}
