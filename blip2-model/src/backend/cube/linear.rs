//! Linear maps: a plane per output where few rows read a whole matrix, tiles where many do, and the pass that adds a
//! bias and applies the activation.

use std::sync::LazyLock;

use burn::tensor::{DType, Shape};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::ir::features::Tma;
use cubecl::prelude::*;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems, MatmulSetupError};
use cubek::matmul::launch::{Strategy, launch_ref};
use cubek::std::InputBinding;

use super::launch::{as_rows, contiguous, empty, has_planes, rows_grid, switched_on, vector_size};
use crate::nn::Activation;

/// Rows from which planes that only copy pay.
const MANY_ROWS: usize = 1024;
/// Rows whose sums a plane keeps in registers.
const BLOCK_ROWS: usize = 8;
/// Rows up to which a plane per output is faster than tensor cores.
const MOST_ROWS: usize = 48;
/// The same for f32, which tensor cores would cut short.
const MOST_ROWS_F32: usize = 320;
/// Planes of a cube.
const PLANES: usize = 4;

/// `2 sqrt(2 / pi)`.
const GELU_TANH: f32 = 2.0 * std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;

/// The functions of [`Activation`], in f32.
#[cube]
fn activate<N: Size>(x: Vector<f32, N>, #[comptime] act: Activation) -> Vector<f32, N> {
    match comptime!(act) {
        Activation::Identity => x,
        Activation::Gelu => {
            let half = Vector::<f32, N>::new(0.5);
            let erf = Vector::erf(x * Vector::<f32, N>::new(std::f32::consts::FRAC_1_SQRT_2));
            half * x * (Vector::<f32, N>::new(1.0) + erf)
        }
        // 0.5 (1 + tanh(u)) = sigmoid(2 u)
        Activation::GeluTanh => {
            let cubic = x * x * x * Vector::<f32, N>::new(0.044715);
            x * sigmoid::<N>((x + cubic) * Vector::<f32, N>::new(GELU_TANH))
        }
        Activation::QuickGelu => x * sigmoid::<N>(x * Vector::<f32, N>::new(1.702)),
        Activation::Relu => max(x, Vector::<f32, N>::new(0.0)),
        Activation::Silu => x * sigmoid::<N>(x),
    }
}

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    // not `-x`: the CUDA compiler of cubecl 0.10 leaves the sign of a vector to C++, which has none
    let one = Vector::<f32, N>::new(1.0);
    one / (one + Vector::exp(x * Vector::<f32, N>::new(-1.0)))
}

/// `act(x + bias)` of rows of `vectors` vectors, as wide as the bias and `step` vectors apart.
#[cube(launch_unchecked)]
fn bias_act<F: Float, W: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    bias: &Tensor<Vector<W, N>>,
    out: &mut Tensor<Vector<F, N>>,
    total: usize,
    step: usize,
    vectors: usize,
    #[comptime] biased: bool,
    #[comptime] act: Activation,
    #[define(F, W)] _dtypes: [StorageType; 2],
) {
    let i = ABSOLUTE_POS;
    if i >= total {
        terminate!();
    }
    let column = i % vectors;
    let mut value = Vector::<f32, N>::cast_from(x[i / vectors * step + column]);
    if comptime!(biased) {
        value += Vector::<f32, N>::cast_from(bias[column]);
    }
    out[i] = Vector::cast_from(activate::<N>(value, act));
}

/// `act(x + bias)` for `x [.., width]`, `bias [width]`, in the dtype of `x`.
pub fn add_bias<R: CubeRuntime>(
    x: CubeTensor<R>,
    bias: Option<CubeTensor<R>>,
    act: Activation,
) -> CubeTensor<R> {
    if bias.is_none() && act == Activation::Identity {
        return x;
    }
    let (x, step) = as_rows(x);
    let shape: Shape = x.meta.shape().clone();
    let width = shape[shape.num_dims() - 1];
    let size = vector_size(&x, &[width, step]);
    let size = bias
        .as_ref()
        .map_or(size, |bias| size.min(vector_size(bias, &[width])));
    let total = shape.num_elements() / size;
    let biased = bias.is_some();
    let bias = bias.map_or_else(|| x.clone(), contiguous);
    let out = empty(&x, shape, x.dtype);
    let dtypes = [x.dtype.into(), bias.dtype.into()];
    let client = x.client.clone();
    let dim = CubeDim::new_1d(256);
    // SAFETY: indices are below the number of vectors
    unsafe {
        bias_act::launch_unchecked::<R>(
            &client,
            rows_grid(total.div_ceil(256)),
            dim,
            size,
            x.into_tensor_arg(),
            bias.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            total,
            step / size,
            width / size,
            biased,
            act,
            dtypes,
        );
    }
    out
}

/// `act(x W^T + b)`: a plane reads one row of `W` and meets a block of rows of `x`. Cubes that follow each other take the
/// other blocks, so that these find the rows of `W` in the cache.
#[cube(launch_unchecked)]
fn few_rows<X: Float, W: Float, V: Float, N: Size>(
    x: &Tensor<Vector<X, N>>,
    weight: &Tensor<Vector<W, N>>,
    bias: &Tensor<V>,
    out: &mut Tensor<X>,
    total: usize,
    blocks: usize,
    outputs: usize,
    step: usize,
    vectors: usize,
    #[comptime] rows: usize,
    #[comptime] biased: bool,
    #[comptime] act: Activation,
    #[define(X, W, V)] _dtypes: [StorageType; 3],
) {
    let output = CUBE_POS / blocks * PLANES + UNIT_POS_Y as usize;
    if output >= outputs {
        terminate!();
    }
    let start = output * step;
    let first = CUBE_POS % blocks * rows;
    // the last block reads its last row again where it has fewer
    let mut at = Array::<usize>::new(rows);
    #[unroll]
    for row in 0..rows {
        at[row] = min(first + row, total - 1) * vectors;
    }
    let mut sums = Array::<Vector<f32, N>>::new(rows);
    #[unroll]
    for row in 0..rows {
        sums[row] = Vector::<f32, N>::new(0.0);
    }
    let lanes = PLANE_DIM as usize;
    let mut i = UNIT_POS_X as usize;
    while i < vectors {
        let w = Vector::<f32, N>::cast_from(weight[start + i]);
        #[unroll]
        for row in 0..rows {
            sums[row] += w * Vector::<f32, N>::cast_from(x[at[row] + i]);
        }
        i += lanes;
    }
    #[unroll]
    for row in 0..rows {
        let sum = plane_sum(f32::cast_from(Vector::vector_sum(sums[row])));
        if UNIT_POS_X == 0 && first + row < total {
            let mut value = sum;
            if comptime!(biased) {
                value += f32::cast_from(bias[output]);
            }
            let size!(ONE) = 1;
            let value = activate::<ONE>(Vector::<f32, ONE>::new(value), act);
            out[(first + row) * outputs + output] = X::cast_from(value[0]);
        }
    }
}

/// [`few_rows`] if shapes and device are made for it.
pub fn try_few_rows<R: CubeRuntime>(
    x: &CubeTensor<R>,
    weight: &CubeTensor<R>,
    bias: Option<&CubeTensor<R>>,
    act: Activation,
) -> Option<CubeTensor<R>> {
    let [rows, width] = [x.meta.shape()[0], x.meta.shape()[1]];
    let outputs = weight.meta.shape()[0];
    let [step, one] = [weight.meta.strides()[0], weight.meta.strides()[1]];
    let most = if x.dtype == DType::F32 {
        MOST_ROWS_F32
    } else {
        MOST_ROWS
    };
    if rows > most || one != 1 {
        return None;
    }
    let lanes = has_planes(x)?;
    let x = contiguous(x.clone());
    let size = vector_size(&x, &[width, step]).min(vector_size(weight, &[width, step]));
    let biased = bias.is_some();
    let bias = bias.map_or_else(|| x.clone(), |bias| contiguous(bias.clone()));
    let out = empty(&x, Shape::new([rows, outputs]), x.dtype);
    let blocks = rows.div_ceil(BLOCK_ROWS);
    let dtypes = [x.dtype.into(), weight.dtype.into(), bias.dtype.into()];
    let client = x.client.clone();
    // SAFETY: a plane whose output does not exist ends at once; the rest follows from the shapes
    unsafe {
        few_rows::launch_unchecked::<R>(
            &client,
            rows_grid(outputs.div_ceil(PLANES) * blocks),
            CubeDim::new_2d(lanes as u32, PLANES as u32),
            size,
            x.into_tensor_arg(),
            weight.clone().into_tensor_arg(),
            bias.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            rows,
            blocks,
            outputs,
            step / size,
            width / size,
            rows.min(BLOCK_ROWS),
            biased,
            act,
            dtypes,
        );
    }
    Some(out)
}

/// Whether f32 may be cut to TF32, which keeps 11 bits.
static TF32: LazyLock<bool> = LazyLock::new(|| switched_on("BLIP2_TF32"));

/// `a b` for the last two axes, the leading ones alike. Numbers that are f32 are multiplied as f32, unless asked otherwise:
/// burn would hand them to tensor cores, which cut them short.
///
/// On an H200, bf16, 2056 x 1408 x 6144: 85 TFLOP/s as burn chooses, 176 with copying planes; 257 rows take those longer
/// than 2056 take burn's choice. f32: 18 exact, 42 to 66 as TF32.
pub fn matmul<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>) -> CubeTensor<R> {
    let dtype = a.dtype;
    let mut shape: Shape = a.meta.shape().clone();
    let last = shape.num_dims() - 1;
    shape[last] = b.meta.shape()[last];
    let rows = shape[last - 1];
    let out = empty(&a, shape, dtype);
    // what holds for a matrix that lies transposed was not tried
    let in_rows = a.meta.strides()[last] == 1;
    let large = rows >= MANY_ROWS && in_rows && suits_copy_engine(&a) && suits_copy_engine(&b);
    let auto = Strategy::Auto;
    // first choice, and another if the device refuses it; burn's own choice would cut f32 short
    let (strategy, otherwise) = match (dtype, large) {
        (DType::F32, _) if !*TF32 => (Strategy::SimpleUnit(Default::default()), Strategy::Naive),
        (DType::F32, true) => (Strategy::SimpleTmaMma(Default::default()), auto),
        (_, true) => (Strategy::SpecializedTmaMma(Default::default()), auto),
        (_, false) => (auto.clone(), auto),
    };
    let launched =
        launch_matmul(&strategy, &a, &b, &out).or_else(|_| launch_matmul(&otherwise, &a, &b, &out));
    launched.expect("shapes that fit");
    out
}

/// Whether the units that copy tiles on their own (Hopper and later) can read this matrix: no batch, and rows that start at
/// multiples of 16 bytes.
fn suits_copy_engine<R: CubeRuntime>(x: &CubeTensor<R>) -> bool {
    let [rows, columns] = match x.meta.strides()[..] {
        [rows, columns] => [rows, columns],
        _ => return false,
    };
    let step = if columns == 1 { rows } else { columns };
    x.client.properties().features.tma.contains(Tma::Base)
        && rows.min(columns) == 1
        && (step * x.dtype.size()).is_multiple_of(16)
}

fn launch_matmul<R: CubeRuntime>(
    strategy: &Strategy,
    a: &CubeTensor<R>,
    b: &CubeTensor<R>,
    out: &CubeTensor<R>,
) -> Result<(), MatmulSetupError> {
    let dtype = a.dtype;
    let mut elements = MatmulElems::from_globals(&MatmulGlobalElems {
        lhs: dtype.into(),
        rhs: dtype.into(),
        out: dtype.into(),
    });
    let [left, right] = [a, b].map(|x| InputBinding::new(x.clone().binding(), dtype.into()));
    launch_ref(
        strategy,
        &a.client,
        left,
        right,
        out.clone().binding(),
        &mut elements,
    )
}
