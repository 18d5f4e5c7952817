//! Speed of every kernel on one thread, in processor time (other load on the machine does not count):
//! `RAYON_NUM_THREADS=1 cargo run --release -p blip2-kernels --example kernels`.
//!
//! Sizes are those of a ViT-L layer on one picture and of a 2.7B language model.

use std::hint::black_box;

use blip2_kernels::attention::{self, Heads, Scores};
use blip2_kernels::gemm::{self, Epilogue, Mat};
use blip2_kernels::quant::{self, Bits, Packed};
use blip2_kernels::skinny::{self, Plain};
use blip2_kernels::{Act, act, norm};
use half::bf16;

/// Processor time of this process in seconds (user and system, 10 ms resolution); Linux only.
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("needs Linux");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks: f64 = [11, 12]
        .iter()
        .map(|&i| fields[i].parse::<f64>().unwrap_or(0.0))
        .sum();
    ticks / 100.0
}

/// Runs `f` for a fifth of a second and reports work per second of processor time.
fn time<T>(what: &str, work: f64, unit: &str, mut f: impl FnMut() -> T) {
    black_box(f());
    let (start, mut calls) = (processor_time(), 0u32);
    while processor_time() - start < 0.2 {
        black_box(f());
        calls += 1;
    }
    let each = (processor_time() - start) / f64::from(calls);
    println!(
        "{what:<44} {:>9.3} ms {:>8.1} {unit}",
        each * 1e3,
        work / each / 1e9
    );
}

fn values(n: usize) -> Vec<f32> {
    let mut x = 1u32;
    (0..n)
        .map(|_| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

fn main() {
    eprintln!("{:?}", blip2_kernels::level::Level::detect());
    let only = std::env::args().nth(1).unwrap_or_default();
    let wanted = |name: &str| name.contains(&only);
    let (m, d, h) = (257, 1024, 4096);
    let x = values(m * h);
    let w = values(d * h);
    let half: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
    let bias = values(h);
    if wanted("norm") {
        time("layer norm 257 x 1024", (m * d * 8) as f64, "GB/s", || {
            norm::layer_norm(&x[..m * d], &bias[..d], &bias[..d], 1e-5)
        });
        time("layer norm backward", (m * d * 12) as f64, "GB/s", || {
            norm::layer_norm_backward(&x[..m * d], &bias[..d], &x[..m * d], 1e-5)
        });
    }
    if wanted("act") {
        for kind in [Act::Gelu, Act::GeluTanh, Act::Silu, Act::Relu] {
            time(
                &format!("{kind:?} 257 x 4096"),
                (m * h * 8) as f64,
                "GB/s",
                || act::forward(kind, &x),
            );
        }
        time("Gelu backward", (m * h * 12) as f64, "GB/s", || {
            act::backward(Act::Gelu, &x, &x)
        });
    }
    if wanted("gemm") {
        for (m, k, n) in [
            (257, 1024, 4096),
            (257, 4096, 1024),
            (257, 1024, 1024),
            (32, 768, 768),
            (64, 1024, 4096),
        ] {
            let flop = 2.0 * (m * k * n) as f64;
            let a = Mat::new(&x[..m * k], m, k);
            let epilogue = Epilogue {
                bias: Some(&bias[..n]),
                act: Act::Gelu,
            };
            let b = Mat::new(&w[..n * k], n, k).transposed();
            time(
                &format!("f32 {m} x {k} x {n}, W^T, bias, gelu"),
                flop,
                "GFLOP/s",
                || gemm::matmul(a, b, epilogue),
            );
            time(&format!("f32 {m} x {k} x {n}, W"), flop, "GFLOP/s", || {
                gemm::matmul(a, Mat::new(&w[..n * k], k, n), Epilogue::NONE)
            });
            let b = Mat::new(&half[..n * k], n, k).transposed();
            time(
                &format!("bf16 {m} x {k} x {n}, W^T, bias, gelu"),
                flop,
                "GFLOP/s",
                || gemm::matmul_bf16(a, b, epilogue),
            );
        }
    }
    if wanted("skinny") {
        let (k, n) = (2560, 10240);
        let w = values(k * n);
        let half: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
        let packed = [Bits::Eight, Bits::Four].map(|bits| (bits, quant::pack(bits, &w, [n, k])));
        for (bits, (data, scales)) in &packed {
            for m in [1, 5, 16, 40] {
                let bytes = data.len() + 4 * scales.len();
                time(
                    &format!("{bits:?} bits {m} x {k} x {n}"),
                    bytes as f64,
                    "GB/s",
                    || {
                        let w = Packed::new(*bits, data, scales, [n, k]);
                        quant::linear(&x[..m * k], m, w, Epilogue::NONE)
                    },
                );
            }
        }
        for m in [1, 2, 5, 8, 16, 32] {
            let x = &x[..m * k];
            time(
                &format!("f32 {m} x {k} x {n}"),
                (4 * k * n) as f64,
                "GB/s",
                || skinny::linear_f32(x, m, Plain::new(&w, [n, k], k), Epilogue::NONE),
            );
            time(
                &format!("bf16 {m} x {k} x {n}"),
                (2 * k * n) as f64,
                "GB/s",
                || skinny::linear_bf16_rounded(x, m, Plain::new(&half, [n, k], k), Epilogue::NONE),
            );
        }
    }
    if wanted("attention") {
        for (heads, t, s, d) in [
            (16, 257, 257, 64),
            (16, 257, 257, 88),
            (12, 32, 257, 64),
            (32, 1, 64, 80),
        ] {
            let (q, k) = (values(heads * t * d), values(heads * s * d));
            let q = Heads::new(&q, [1, heads, t, d], [0, d, heads * d]);
            let k = Heads::new(&k, [1, heads, s, d], [0, d, heads * d]);
            let scores = Scores {
                scale: 0.1,
                mask: None,
                factors: None,
            };
            let flop = (4 * heads * t * s * d) as f64;
            time(
                &format!("attention {heads} x {t} x {s} x {d}"),
                flop,
                "GFLOP/s",
                || attention::attend(q, k, k, scores),
            );
            time(
                &format!("attention backward {heads} x {t} x {s} x {d}"),
                2.5 * flop,
                "GFLOP/s",
                || attention::attend_backward(q, k, k, scores, q),
            );
        }
    }
}
