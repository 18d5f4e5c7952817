use super::*;

fn values(n: usize, seed: usize) -> Vec<f32> {
    // a multiplicative sequence would correlate rows and columns; this mixes
    let mut x = seed as u32;
    (0..n)
        .map(|_| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let mixed = (x ^ (x >> 15)).wrapping_mul(2_246_822_519);
            (mixed >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

fn at<T: Element>(m: Mat<'_, T>, i: usize, j: usize) -> f64 {
    f64::from(m.data[i * m.row_stride + j * m.column_stride].wide())
}

/// Against sums in f64. `k` roundings of sums that grow like `sqrt(k / 9)`, which themselves add up like `sqrt(k)`,
/// give `2e-8 k` on average and five times that at worst; `rounding` is for inputs that are rounded first.
fn check<A: Element, B: Element>(
    a: Mat<'_, A>,
    b: Mat<'_, B>,
    got: &[f32],
    bias: Option<&[f32]>,
    rounding: f64,
) {
    assert_eq!(got.len(), a.rows * b.columns);
    for i in 0..a.rows {
        for j in 0..b.columns {
            let sum: f64 = (0..a.columns).map(|p| at(a, i, p) * at(b, p, j)).sum();
            let want = sum + bias.map_or(0.0, |bias| f64::from(bias[j]));
            let k = a.columns as f64;
            let tolerance = 1e-7 * k + rounding * k.sqrt() + 1e-6;
            let error = (f64::from(got[i * b.columns + j]) - want).abs();
            assert!(
                error < tolerance,
                "[{} {} {}] at {i} {j}: off by {error}",
                a.rows,
                a.columns,
                b.columns
            );
        }
    }
}

/// Sizes around every tile and block border, one row, one column, one step.
const SIZES: [[usize; 3]; 12] = [
    [1, 1, 1],
    [1, 7, 3],
    [3, 2, 50],
    [8, 16, 48],
    [9, 17, 49],
    [7, 33, 15],
    [17, 513, 97],
    [64, 88, 257],
    [257, 64, 64],
    [33, 1025, 193],
    [130, 31, 200],
    [5, 1100, 400],
];

#[test]
fn f32_products_in_every_layout() {
    for [m, k, n] in SIZES {
        let (a, b, bias) = (values(m * k, 1), values(k * n, 2), values(n, 3));
        for a in [Mat::new(&a, m, k), Mat::new(&a, k, m).transposed()] {
            for b in [Mat::new(&b, k, n), Mat::new(&b, n, k).transposed()] {
                let plain = matmul(a, b, Epilogue::NONE);
                check(a, b, &plain, None, 0.0);
                let epilogue = Epilogue {
                    bias: Some(&bias),
                    act: Act::Identity,
                };
                check(a, b, &matmul(a, b, epilogue), Some(&bias), 0.0);
            }
        }
    }
}

#[test]
fn bf16_weights_exact_and_with_rounded_input() {
    for [m, k, n] in SIZES {
        // exact in bf16 on both sides, so that only the sums round
        let a: Vec<f32> = values(m * k, 1)
            .iter()
            .map(|&x| bf16::from_f32(x).to_f32())
            .collect();
        let b: Vec<bf16> = values(k * n, 2).iter().map(|&x| bf16::from_f32(x)).collect();
        for a in [Mat::new(&a, m, k), Mat::new(&a, k, m).transposed()] {
            for b in [Mat::new(&b, k, n), Mat::new(&b, n, k).transposed()] {
                check(a, b, &matmul(a, b, Epilogue::NONE), None, 0.0);
                check(a, b, &matmul_bf16(a, b, Epilogue::NONE), None, 0.0);
            }
        }
        let exact: Vec<half::f16> = values(k * n, 4).iter().map(|&x| half::f16::from_f32(x)).collect();
        for b in [Mat::new(&exact, k, n), Mat::new(&exact, n, k).transposed()] {
            let a = Mat::new(&a, m, k);
            check(a, b, &matmul(a, b, Epilogue::NONE), None, 0.0);
        }
        // an input with more bits is rounded to 8: at most 2^-9 per product, five deviations
        let a = values(m * k, 5);
        let (a, b) = (Mat::new(&a, m, k), Mat::new(&b, k, n));
        check(a, b, &matmul_bf16(a, b, Epilogue::NONE), None, 4e-3);
    }
}

/// `n` values of bf16.
fn narrow(n: usize, seed: usize) -> Vec<bf16> {
    values(n, seed).iter().map(|&x| bf16::from_f32(x)).collect()
}

/// The instruction sets with products of bf16 pairs that this processor has; says which it cannot test.
fn pair_levels() -> Vec<Level> {
    let (has, lacks): (Vec<Level>, Vec<Level>) = match cfg!(target_arch = "aarch64") {
        true => vec![Level::NeonBf16],
        false => vec![Level::Avx512Bf16, Level::Amx],
    }
    .iter()
    .partition(|&&level| level <= Level::detect());
    for level in lacks {
        println!("skipped: this processor does not have {level:?}, or BLIP2_CPU forbids it");
    }
    has
}

/// `a b` with the instructions of `level`, in rows `stride` apart; what lies between them stays 7.
fn pairs_product(
    level: Level,
    a: Mat<'_, bf16>,
    b: Mat<'_, bf16>,
    stride: usize,
    epilogue: Epilogue<'_>,
) -> Vec<f32> {
    let tiles = Tiles::choose(level, true);
    assert!(
        tiles.pairs && (tiles.group > 1) == (level == Level::Amx),
        "not the code that is tested"
    );
    let mut out = vec![7f32; a.rows * stride];
    // SAFETY: `pair_levels` chose the level; room for all rows
    unsafe { product(level, a, b, Out(out.as_mut_ptr()), stride, epilogue, true) };
    let (rows, gaps): (Vec<_>, Vec<_>) = out.chunks(stride).map(|row| row.split_at(b.columns)).unzip();
    assert!(gaps.concat().iter().all(|&x| x == 7.0));
    rows.concat()
}

#[test]
fn pairs_of_bf16_on_every_instruction_set() {
    // around 16 and 32 rows and columns, 32 values along the contraction, and a second block of those
    let tails = [
        [15, 31, 15],
        [16, 32, 16],
        [17, 33, 17],
        [31, 63, 33],
        [32, 64, 32],
        [33, 65, 31],
        [48, 1023, 47],
        [65, 1025, 49],
        [40, 2050, 300],
        // weights read in place where they lie along the contraction
        [1, 32, 1],
        [15, 96, 33],
        [33, 64, 47],
        [96, 1056, 300],
        [97, 64, 31],
    ];
    for level in pair_levels() {
        for [m, k, n] in SIZES.into_iter().chain(tails) {
            let (a, b, bias) = (narrow(m * k, 1), narrow(k * n, 2), values(n, 3));
            for a in [Mat::new(&a, m, k), Mat::new(&a, k, m).transposed()] {
                for b in [Mat::new(&b, k, n), Mat::new(&b, n, k).transposed()] {
                    // exact in bf16 on both sides, so that only the sums round
                    check(
                        a,
                        b,
                        &pairs_product(level, a, b, n + 3, Epilogue::NONE),
                        None,
                        0.0,
                    );
                    let epilogue = Epilogue {
                        bias: Some(&bias),
                        act: Act::Identity,
                    };
                    check(a, b, &pairs_product(level, a, b, n, epilogue), Some(&bias), 0.0);
                }
            }
        }
    }
}

#[test]
fn pairs_of_bf16_finish_with_the_activation_after_the_last_block() {
    let (m, k, n) = (35, 1100, 70);
    let (a, b, bias) = (narrow(m * k, 1), narrow(k * n, 2), values(n, 3));
    let (a, b) = (Mat::new(&a, m, k), Mat::new(&b, n, k).transposed());
    for level in pair_levels() {
        let mut epilogue = Epilogue {
            bias: Some(&bias),
            act: Act::Identity,
        };
        let mut want = pairs_product(level, a, b, n, epilogue);
        act::apply(Act::Gelu, &mut want);
        epilogue.act = Act::Gelu;
        // the same operations on the same values
        assert_eq!(pairs_product(level, a, b, n, epilogue), want, "{level:?}");
    }
}

#[test]
fn pairs_of_bf16_give_the_same_bits_with_any_number_of_threads() {
    for [m, k, n] in [[1, 70, 700], [40, 64, 700], [300, 200, 40], [600, 1030, 333]] {
        let (a, b) = (narrow(m * k, 1), narrow(k * n, 2));
        let (a, b) = (Mat::new(&a, m, k), Mat::new(&b, n, k).transposed());
        for level in pair_levels() {
            let on = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                pool.unwrap()
                    .install(|| pairs_product(level, a, b, n + 1, Epilogue::NONE))
            };
            let one = on(1);
            // tasks split rows and columns, never a sum
            for threads in [2, 5, 16] {
                assert_eq!(on(threads), one, "{level:?} {m} {k} {n} on {threads}");
            }
        }
    }
}

/// Rows of weights that are apart, the last one cut off behind its last value; sizes with a strip and a panel that are not
/// full, with several chunks of the contraction, and with more rows than stay in cache.
#[cfg(target_arch = "x86_64")]
#[test]
fn weights_are_multiplied_where_they_lie() {
    for [m, k, n] in [[37, 160, 75], [300, 96, 70], [3, 5184, 41], [250, 2560, 33]] {
        let (a, b, bias) = (narrow(m * k, 1), narrow(n * (k + 9) - 9, 2), values(n, 3));
        let (a, b) = (Mat::new(&a, m, k), Mat::strided(&b, [k, n], [1, k + 9]));
        assert!(direct::applies(b));
        let epilogue = Epilogue {
            bias: Some(&bias),
            act: Act::Identity,
        };
        for level in pair_levels() {
            let product = pairs_product(level, a, b, n + 2, epilogue);
            check(a, b, &product, Some(&bias), 0.0);
        }
    }
    let b = narrow(6400, 2);
    assert!(
        !direct::applies(Mat::new(&b, 64, 100)),
        "contiguous along the wrong side"
    );
    assert!(
        !direct::applies(Mat::strided(&b, [50, 100], [1, 64])),
        "a part of a tile"
    );
}

#[cfg(target_arch = "x86_64")]
#[test]
fn few_rows_keep_sixteen_bits_and_what_is_not_finite() {
    if Level::detect() < Level::Amx {
        return;
    }
    let (k, n) = (2624, 70);
    let (weights, bias) = (narrow(n * k, 2), values(n, 3));
    let b = Mat::new(&weights, n, k).transposed();
    let epilogue = Epilogue {
        bias: Some(&bias),
        act: Act::Identity,
    };
    for m in [1, 5, 16, 17] {
        let mut x = values(m * k, 1);
        // SAFETY: detected
        let run = |x: &[f32]| unsafe { linear_strips(Mat::new(x, m, k), &b, epilogue) };
        // two parts leave 2^-18 of a value, one part 2^-9; a value is 0.6 and a weight 0.6 on average
        let rounding = if m <= 16 { 4e-6 } else { 2e-3 };
        check(Mat::new(&x, m, k), b, &run(&x), Some(&bias), rounding);
        x[(m - 1) * k + 7] = f32::INFINITY;
        let y = run(&x);
        assert!(y[(m - 1) * n..].iter().all(|y| !y.is_finite()));
        assert!(y[..(m - 1) * n].iter().all(|y| y.is_finite()));
    }
}

#[test]
fn infinity_reaches_its_own_row_and_column_only() {
    // sizes with padding on every side, which an infinity would turn into NaN
    let (m, k, n) = (19, 37, 21);
    let (mut a, mut b) = (narrow(m * k, 1), narrow(k * n, 2));
    (a[4 * k + 36], b[36 * n + 20]) = (bf16::INFINITY, bf16::INFINITY);
    for level in pair_levels() {
        let got = pairs_product(level, Mat::new(&a, m, k), Mat::new(&b, k, n), n, Epilogue::NONE);
        for (i, x) in got.iter().enumerate() {
            assert!(!x.is_nan(), "{level:?} at {i}");
            assert_eq!(x.is_infinite(), i / n == 4 || i % n == 20, "{level:?} at {i}");
        }
    }
}

#[test]
fn rounding_to_bf16_is_to_nearest_even() {
    let mut x = 1u32;
    for _ in 0..100_000 {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = f32::from_bits(x);
        assert_eq!(value.narrow(), bf16::from_f32(value).to_bits(), "{value}");
    }
    for x in [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::NAN] {
        assert_eq!(x.narrow(), bf16::from_f32(x).to_bits(), "{x}");
    }
}

#[test]
fn strided_views_and_gaps_between_rows() {
    let (m, k, n) = (19, 40, 21);
    let (a, b) = (values(m * 3 * k, 1), values(n * 2 * k, 2));
    let a = Mat::strided(&a[k..], [m, k], [3 * k, 1]);
    let b = Mat::strided(&b, [k, n], [2, 2 * k]);
    let stride = n + 5;
    let mut out = vec![7f32; m * stride];
    // SAFETY: room for 19 rows
    unsafe { matmul_into(a, b, out.as_mut_ptr(), stride) };
    let dense: Vec<f32> = out.chunks(stride).flat_map(|row| row[..n].to_vec()).collect();
    check(a, b, &dense, None, 0.0);
    assert!(out.chunks(stride).all(|row| row[n..].iter().all(|&x| x == 7.0)));
}

#[test]
fn the_activation_comes_after_the_bias() {
    let (x, w, bias) = ([1f32, -2.0], [1f32, 0.0, 0.0, 1.0], [-3f32, 5.0]);
    let epilogue = Epilogue {
        bias: Some(&bias),
        act: Act::Relu,
    };
    let y = matmul(Mat::new(&x, 1, 2), Mat::new(&w, 2, 2), epilogue);
    assert_eq!(y, [0.0, 3.0]);
}

#[test]
fn empty_sides() {
    let none: [f32; 0] = [];
    assert!(matmul(Mat::new(&none, 0, 4), Mat::new(&[0f32; 8], 4, 2), Epilogue::NONE).is_empty());
    assert!(matmul(Mat::new(&[0f32; 8], 2, 4), Mat::new(&none, 4, 0), Epilogue::NONE).is_empty());
    let epilogue = Epilogue {
        bias: Some(&[1.0, 2.0]),
        act: Act::Identity,
    };
    let y = matmul(Mat::new(&none, 2, 0), Mat::new(&none, 0, 2), epilogue);
    assert_eq!(y, [1.0, 2.0, 1.0, 2.0]);
}

#[test]
fn rounding_is_to_nearest_even_and_keeps_what_is_not_finite() {
    let mut x: Vec<f32> = (0..1000u32)
        .map(|i| {
            f32::from_bits(0x3f80_0000 + i * 0x0001_2345 % 0x0100_0000) * if i % 3 == 0 { -1.0 } else { 1.0 }
        })
        .collect();
    // halfway between two, of which the even one counts; too large; not numbers
    x.extend(
        [
            0x3f80_8000,
            0x3f81_8000,
            0x7f7f_ffff,
            0x7f80_0000,
            0xff80_0000,
            0x7f80_0001,
        ]
        .map(f32::from_bits),
    );
    x.extend([0.0, -0.0]);
    for n in [x.len(), 31, 32, 33, 0] {
        let x = &x[x.len() - n..];
        let mut out = vec![bf16::ZERO; n];
        round_row(x, &mut out);
        for (x, out) in x.iter().zip(&out) {
            let want = bf16::from_f32(*x);
            assert!(
                out.to_bits() == want.to_bits() || out.is_nan() && want.is_nan(),
                "{x}: {out} not {want}"
            );
        }
    }
}
