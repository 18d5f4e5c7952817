//! The kernels of flex and the fused nodes of autodiff against plain tensor operations.

use blip2_kernels::level::rounds_inputs;
use burn::backend::Autodiff;
use burn::tensor::{DType, Distribution, Int, Tensor, backend::Backend};

use super::{Flex, NdArray};
use crate::nn::kernels::{
    Scores, WeightBits, as_dtype, attend_by_tensor_ops, embed_grad_by_tensor_ops, layer_norm_by_tensor_ops,
    linear_by_matmul, rms_norm_by_tensor_ops,
};
use crate::nn::{Activation, Kernels};

fn random<B: Backend, const D: usize>(dims: [usize; D]) -> Tensor<B, D> {
    Tensor::random(dims, Distribution::Normal(0.0, 1.0), &Default::default())
}

fn close<A: Backend, B: Backend, const D: usize>(a: Tensor<A, D>, b: Tensor<B, D>, bound: f32, what: &str) {
    assert_eq!(a.dims(), b.dims(), "{what}");
    let [a, b] = [a.into_data(), b.into_data()].map(|d| d.convert::<f32>().to_vec::<f32>().expect("f32"));
    for (i, (a, b)) in a.iter().zip(&b).enumerate() {
        assert!((a - b).abs() <= bound * (1.0 + b.abs()), "{what} {i}: {a} {b}");
    }
}

#[test]
fn linear_maps_in_every_form() {
    // inputs rounded to 8 bits are off by 0.4 u = 0.4 * 2^-8 in the root mean square: 0.33 u after 70 products of size
    // 0.1, which 30,000 values exceed by a factor of at most 5
    let bf16 = if rounds_inputs() { 2f32.powi(-7) } else { 3e-6 };
    for rows in [1, 3, 5, 6, 16, 17, 40] {
        let x: Tensor<Flex, 2> = random([rows, 70]);
        // a view whose rows have gaps, and one that is transposed
        let wide: Tensor<Flex, 2> = random([rows, 100]);
        let turned: Tensor<Flex, 2> = random([70, rows]);
        let weight: Tensor<Flex, 2> = random([51, 70]) * 0.1;
        let bias: Tensor<Flex, 1> = random([51]);
        for x in [x, wide.narrow(1, 13, 70), turned.transpose()] {
            for act in Activation::ALL {
                let bias = (act != Activation::Silu).then(|| bias.clone());
                let want = linear_by_matmul(x.clone(), weight.clone(), bias.clone(), act);
                let got = Flex::linear_act(x.clone(), weight.clone(), bias.clone(), act);
                // 70 products in another order
                close(got, want, 3e-6, "f32");
                let half = weight.clone().cast(DType::F16);
                let want = linear_by_matmul(x.clone(), half.clone(), bias.clone(), act);
                close(
                    Flex::linear_act(x.clone(), half, bias.clone(), act),
                    want,
                    3e-6,
                    "f16",
                );
                let half = weight.clone().cast(DType::BF16);
                let want = linear_by_matmul(x.clone(), half.clone(), bias.clone(), act);
                let got = Flex::linear_act(x.clone(), half, bias, act);
                close(got, want, bf16, "bf16");
            }
        }
        let turned: Tensor<Flex, 2> = random([70, 51]) * 0.1;
        let x: Tensor<Flex, 2> = random([rows, 70]);
        let want = linear_by_matmul(x.clone(), turned.clone().transpose(), None, Activation::Identity);
        let got = Flex::linear_act(x, turned.transpose(), None, Activation::Identity);
        close(got, want, 3e-6, "weight seen through its transpose");
    }
}

/// The same values for a view and for its gradient, which arrives as another view; neither has gaps afterwards.
#[test]
fn contiguous_views_and_their_gradients() {
    let values: Tensor<Flex, 4> = random([2, 5, 3, 8]);
    let factors: Tensor<Flex, 4> = random([2, 3, 4, 8]);
    let x = Tensor::<Autodiff<Flex>, 4>::from_inner(values.clone()).require_grad();
    let part = |x: Tensor<Flex, 4>| x.narrow(1, 1, 4);
    let y = Autodiff::<Flex>::contiguous(x.clone().narrow(1, 1, 4));
    close(y.clone().inner(), part(values.clone()), 0.0, "values");
    let is_contiguous = |x: Tensor<Flex, 4>| x.into_primitive().tensor().is_contiguous();
    assert!(!is_contiguous(part(values)) && is_contiguous(y.clone().inner()));
    let grads = (y.swap_dims(1, 2) * Tensor::from_inner(factors.clone()))
        .sum()
        .backward();
    let got = x.grad(&grads).expect("it learns");
    let zeros = Tensor::zeros([2, 1, 3, 8], &Default::default());
    let want = Tensor::cat(vec![zeros, factors.swap_dims(1, 2)], 1);
    close(got, want, 0.0, "gradient");
    // along the wrong axis, and half precision, go burn-flex's way
    let odd: Tensor<Flex, 2> = random([6, 9]);
    let turned = odd.clone().transpose();
    close(Flex::contiguous(turned.clone()), turned.clone(), 0.0, "turned");
    let half = Flex::contiguous(turned.cast(DType::F16));
    close(half.cast(DType::F32), odd.transpose(), 1e-3, "half precision");
}

#[test]
fn log_sum_exp_and_its_gradient() {
    let values: Tensor<Flex, 2> = random::<Flex, 2>([9, 130]) * 8.0;
    let factors: Tensor<Flex, 1> = random([9]);
    let of = |f: fn(Tensor<Autodiff<Flex>, 2>) -> Tensor<Autodiff<Flex>, 1>| {
        let x = Tensor::<Autodiff<Flex>, 2>::from_inner(values.clone()).require_grad();
        let y = f(x.clone());
        let grads = (y.clone() * Tensor::from_inner(factors.clone())).sum().backward();
        (y.inner(), x.grad(&grads).expect("it learns"))
    };
    let (y, grad) = of(<Autodiff<Flex> as Kernels>::log_sum_exp);
    let (y_want, grad_want) = of(|x| x.exp().sum_dim(1).log().squeeze_dim(1));
    // f32 sums of exponentials up to e^30 in another order, and the gradient is a quotient of such
    close(y, y_want, 2e-6, "values");
    close(grad, grad_want, 2e-5, "gradient");
}

#[test]
fn gradients_of_a_table_add_up_where_rows_repeat() {
    let ids = [[3, 0, 3], [6, 3, 0]];
    let values: Tensor<Flex, 2> = random([7, 5]);
    let factors: Tensor<Flex, 3> = random([2, 3, 5]);
    let ids_of = Tensor::<Autodiff<Flex>, 2, Int>::from_ints;
    let table = Tensor::<Autodiff<Flex>, 2>::from_inner(values.clone()).require_grad();
    let rows = Autodiff::<Flex>::embed(table.clone(), ids_of(ids, &Default::default()));
    let want = values.select(0, Tensor::from_ints([3, 0, 3, 6, 3, 0], &Default::default()));
    close(rows.clone().inner(), want.reshape([2, 3, 5]), 0.0, "rows");
    let grads = (rows * Tensor::from_inner(factors.clone())).sum().backward();
    let got = table.grad(&grads).expect("the table learns");
    // the same sums in the same order
    let flat = factors.reshape([6, 5]);
    let want = embed_grad_by_tensor_ops(
        flat,
        Tensor::from_ints([3, 0, 3, 6, 3, 0], &Default::default()),
        7,
    );
    close(got, want, 0.0, "gradient");
}

#[test]
fn packed_weights_multiply_as_what_they_stand_for() {
    for (bits, bound) in [(WeightBits::Eight, 0.02), (WeightBits::Four, 0.35)] {
        for rows in [1, 4, 30] {
            let x: Tensor<Flex, 2> = random([rows, 96]);
            let weight: Tensor<Flex, 2> = random([40, 96]) * 0.1;
            let bias: Tensor<Flex, 1> = random([40]);
            let want = linear_by_matmul(x.clone(), weight.clone(), Some(bias.clone()), Activation::Gelu);
            let packed = Flex::pack_weight(weight, bits);
            assert_eq!(packed.dims(), [40, 96]);
            let got = Flex::linear_act(x, packed, Some(bias), Activation::Gelu);
            // half a step of 127 or 8 per largest weight of a group, summed over 96 products
            close(got, want, bound, "packed");
        }
    }
}

#[test]
fn attention_on_views_with_every_form_of_mask() {
    let (b, h, t, s, d) = (2, 3, 5, 9, 8);
    // as projections leave heads, and as a cache shows its filled part
    let q: Tensor<Flex, 4> = random([b, t, h, d]).swap_dims(1, 2);
    let k: Tensor<Flex, 4> = random([b, h, s + 4, d]).narrow(2, 0, s);
    let v: Tensor<Flex, 4> = random([b, h, d, s]).swap_dims(2, 3);
    let masks = [
        [b, 1, 1, s],
        [1, 1, t, s],
        [b, h, t, s],
        [b, 1, t, 1],
        [1, h, 1, s],
    ];
    for mask in std::iter::once(None).chain(masks.map(Some)) {
        let scores = Scores {
            scale: 0.3,
            mask: mask.map(random),
            factors: None,
        };
        let want = attend_by_tensor_ops(q.clone(), k.clone(), v.clone(), scores.clone());
        let got = Flex::attend_scores(q.clone(), k.clone(), v.clone(), scores);
        close(got, want, 2e-6, "attention");
    }
}

#[test]
fn a_cache_is_written_in_place_and_a_second_holder_keeps_the_old_one() {
    let before: Tensor<Flex, 4> = random([2, 3, 6, 4]);
    let new: Tensor<Flex, 4> = random([2, 2, 3, 4]).swap_dims(1, 2);
    let held = before.clone();
    let want = before.clone().slice_assign([0..2, 0..3, 3..5, 0..4], new.clone());
    let got = Flex::cache_write(before, new.clone(), 3);
    close(got.clone(), want, 0.0, "written");
    assert_ne!(
        held.into_data(),
        got.clone().into_data(),
        "the other holder saw the write"
    );
    let address = |t: &Tensor<Flex, 4>| t.clone().into_primitive().tensor().bytes().as_ptr();
    let place = address(&got);
    let again = Flex::cache_write(got, new, 1);
    assert_eq!(
        place,
        address(&again),
        "a cache that nobody else holds was copied"
    );
}

/// Gradients of `sum(y * weight)` for a fused and a composed form of the same function.
fn same_gradients<B: Kernels, const N: usize, const D: usize>(
    inputs: [Tensor<B, D>; N],
    fused: impl Fn([Tensor<Autodiff<B>, D>; N]) -> Tensor<Autodiff<B>, D>,
    plain: impl Fn([Tensor<Autodiff<B>, D>; N]) -> Tensor<Autodiff<B>, D>,
    bound: f32,
    what: &str,
) {
    let leaves = || {
        inputs
            .clone()
            .map(|x| Tensor::<Autodiff<B>, D>::from_inner(x).require_grad())
    };
    let (a, b) = (leaves(), leaves());
    let (ya, yb) = (fused(a.clone()), plain(b.clone()));
    close(ya.clone(), yb.clone(), bound, what);
    let weight = Tensor::<Autodiff<B>, D>::from_inner(random::<B, D>(ya.dims()));
    let ga = (ya * weight.clone()).sum().backward();
    let gb = (yb * weight).sum().backward();
    for (i, (a, b)) in a.iter().zip(&b).enumerate() {
        let (a, b) = (
            a.grad(&ga).expect("fused gradient"),
            b.grad(&gb).expect("plain gradient"),
        );
        close(a, b, bound, &format!("{what}, gradient {i}"));
    }
}

fn gradients_of_all<B: Kernels>() {
    let flat = |t: Tensor<Autodiff<B>, 2>| {
        let n = t.dims()[1];
        t.reshape([n])
    };
    let (x, w, c) = (
        random::<B, 2>([7, 33]),
        random::<B, 2>([1, 33]),
        random::<B, 2>([1, 33]),
    );
    same_gradients(
        [x.clone(), w.clone(), c],
        |[x, w, c]| Autodiff::<B>::layer_norm_f32(x, flat(w), flat(c), 1e-5),
        |[x, w, c]| layer_norm_by_tensor_ops(x, flat(w), flat(c), 1e-5),
        1e-5,
        "layer norm",
    );
    same_gradients(
        [x.clone(), w],
        |[x, w]| Autodiff::<B>::rms_norm_f32(x, flat(w), 1e-6),
        |[x, w]| rms_norm_by_tensor_ops(x, flat(w), 1e-6),
        1e-5,
        "rms norm",
    );
    for act in Activation::ALL {
        // burn differentiates GELU as if it were the tanh form, so the erf is spelled out
        let plain = |x: Tensor<Autodiff<B>, 2>| match act {
            Activation::Gelu => ((x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5 * x,
            act => act.by_tensor_ops(x),
        };
        let what = format!("{act:?}");
        same_gradients([x.clone()], |[x]| act.apply(x), |[x]| plain(x), 3e-6, &what);
        same_gradients(
            [x.clone(), random([20, 33]), random([1, 20])],
            |[x, w, c]| Autodiff::<B>::linear_act(x, w, Some(flat(c)), act),
            |[x, w, c]| plain(x.matmul(w.transpose()) + c),
            2e-5,
            &format!("linear with {act:?}"),
        );
    }
    same_gradients(
        [x, random([20, 33])],
        |[x, w]| Autodiff::<B>::linear_act(x, w, None, Activation::Identity),
        |[x, w]| x.matmul(w.transpose()),
        1e-5,
        "linear without bias",
    );
    same_gradients(
        [random::<B, 3>([3, 4, 5]), random([3, 5, 4])],
        |[a, b]| Autodiff::<B>::matmul(a, b),
        |[a, b]| a.matmul(b),
        1e-5,
        "product",
    );
    let (b, h, t, s, d) = (2, 2, 6, 11, 5);
    for dropped in [false, true] {
        let mask = random::<Autodiff<B>, 4>([b, 1, t, s]);
        let kept =
            Tensor::<Autodiff<B>, 4>::random([b, h, t, s], Distribution::Bernoulli(0.8), &Default::default());
        let scores = || Scores {
            scale: 0.4,
            mask: Some(mask.clone()),
            factors: dropped.then(|| kept.clone() / 0.8),
        };
        same_gradients(
            [
                random::<B, 4>([b, h, t, d]),
                random([b, h, s, d]),
                random([b, h, s, d]),
            ],
            |[q, k, v]| Autodiff::<B>::attend_scores(q, k, v, scores()),
            |[q, k, v]| attend_by_tensor_ops(q, k, v, scores()),
            1e-5,
            "attention",
        );
    }
}

#[test]
fn fused_gradients_equal_those_of_the_composition_on_flex() {
    gradients_of_all::<Flex>();
}

#[test]
fn fused_gradients_equal_those_of_the_composition_by_default() {
    gradients_of_all::<NdArray>();
}

#[test]
fn only_what_learns_gets_a_gradient_and_a_learning_mask_does() {
    type A = Autodiff<Flex>;
    let x = random::<A, 2>([4, 8]).require_grad();
    let frozen = random::<A, 2>([6, 8]);
    let halves = [DType::BF16, DType::F16].map(|dtype| frozen.clone().cast(dtype));
    for weight in std::iter::once(frozen).chain(halves) {
        let y = A::linear_act(x.clone(), weight.clone(), None, Activation::Relu);
        let grads = y.sum().backward();
        assert!(x.grad(&grads).is_some() && weight.grad(&grads).is_none());
    }
    let mask = random::<A, 4>([1, 1, 3, 3]).require_grad();
    let q = random::<A, 4>([1, 1, 3, 4]);
    let scores = Scores {
        scale: 1.0,
        mask: Some(mask.clone()),
        factors: None,
    };
    let y = A::attend_scores(q.clone(), q.clone(), q, scores);
    let grad = mask
        .grad(&y.powf_scalar(2.0).sum().backward())
        .expect("the mask learns");
    let size: f32 = as_dtype(grad, DType::F32).abs().sum().into_scalar();
    assert!(size > 1e-3);
}
