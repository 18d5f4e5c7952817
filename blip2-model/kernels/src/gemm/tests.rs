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
fn check<T: Element>(a: Mat<'_, f32>, b: Mat<'_, T>, got: &[f32], bias: Option<&[f32]>, rounding: f64) {
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
