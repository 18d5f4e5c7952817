//! The fused operations under reverse-mode differentiation: one node each, whose backward pass is the
//! backend's own. Nothing but the inputs is kept for it.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorMetadata};

use super::{unwrap, wrap};
use crate::nn::kernels::{Scores, as_dtype, attend_by_tensor_ops};
use crate::nn::{Activation, Kernels};

impl<B: Kernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    const PACKS: bool = B::PACKS;

    fn compute_dtype(stored: DType) -> DType {
        B::compute_dtype(stored)
    }

    fn matmul<const D: usize>(a: Tensor<Self, D>, b: Tensor<Self, D>) -> Tensor<Self, D> {
        let (a, b) = (unwrap(a), unwrap(b));
        let y = unwrap(B::matmul::<D>(
            wrap(a.primitive.clone()),
            wrap(b.primitive.clone()),
        ));
        let parents = [a.node.clone(), b.node.clone()];
        wrap(
            match ProductNode::<D>.prepare::<C>(parents).compute_bound().stateful() {
                OpsKind::Tracked(mut prep) => {
                    let state = (prep.checkpoint(&a), prep.checkpoint(&b));
                    prep.finish(state, y)
                }
                OpsKind::UnTracked(prep) => prep.finish(y),
            },
        )
    }

    fn random_mask<const D: usize>(
        dims: [usize; D],
        keep: f64,
        seed: u64,
        device: &Self::Device,
    ) -> Tensor<Self, D> {
        Tensor::from_inner(B::random_mask(dims, keep, seed, device))
    }

    fn contiguous<const D: usize>(x: Tensor<Self, D>) -> Tensor<Self, D> {
        let x = unwrap(x);
        let y = unwrap(B::contiguous(wrap::<B, D>(x.primitive)));
        let node = ContiguousNode::<D>.prepare::<C>([x.node]);
        wrap(match node.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        })
    }

    fn activate<const D: usize>(x: Tensor<Self, D>, act: Activation) -> Tensor<Self, D> {
        let x = unwrap(x);
        let y = unwrap(B::activate(wrap::<B, D>(x.primitive.clone()), act));
        let node = ActivateNode::<D>.prepare::<C>([x.node.clone()]);
        wrap(match node.compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), act);
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        })
    }

    fn log_sum_exp(x: Tensor<Self, 2>) -> Tensor<Self, 1> {
        let x = unwrap(x);
        let y = unwrap(B::log_sum_exp(wrap(x.primitive.clone())));
        let node = LogSumExpNode.prepare::<C>([x.node.clone()]);
        wrap(match node.compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), y.clone());
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        })
    }

    fn linear_act(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
        act: Activation,
    ) -> Tensor<Self, 2> {
        let [x, weight] = [unwrap(x), unwrap(weight)];
        let bias = bias.map(unwrap);
        // without a bias the weight's node stands in its place, and nothing is registered for it
        let third = bias
            .as_ref()
            .map_or_else(|| weight.node.clone(), |b| b.node.clone());
        let parents = [x.node.clone(), weight.node.clone(), third];
        let learns = parents.iter().any(|node| !node.requirement.is_none());
        let bias_values = bias.as_ref().map(|b| wrap(b.primitive.clone()));
        // the backward pass of the activation starts from its input, which fusion would not keep
        let fused = if learns { Activation::Identity } else { act };
        let values = (wrap(x.primitive.clone()), wrap(weight.primitive.clone()));
        let y = unwrap(B::linear_act(values.0, values.1, bias_values, fused));
        let y = wrap(
            match LinearNode.prepare::<C>(parents).compute_bound().stateful() {
                OpsKind::Tracked(mut prep) => {
                    let state = LinearState {
                        x: prep.checkpoint(&x),
                        weight: prep.checkpoint(&weight),
                        weight_dtype: weight.primitive.dtype(),
                        bias_dtype: bias.as_ref().map(|b| b.primitive.dtype()),
                    };
                    prep.finish(state, y)
                }
                OpsKind::UnTracked(prep) => prep.finish(y),
            },
        );
        if learns { act.apply(y) } else { y }
    }

    fn embed(table: Tensor<Self, 2>, ids: Tensor<Self, 2, Int>) -> Tensor<Self, 3> {
        let table = unwrap(table);
        let values: Tensor<B, 2> = wrap(table.primitive.clone());
        let ids: Tensor<B, 2, Int> = Tensor::from_primitive(ids.into_primitive());
        let (rows, dtype) = (values.dims()[0], values.dtype());
        let y = unwrap(B::embed(values, ids.clone()));
        let node = EmbeddingNode.prepare::<C>([table.node.clone()]);
        wrap(match node.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(EmbeddingState { ids, rows, dtype }, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        })
    }

    fn layer_norm_f32<const D: usize>(
        x: Tensor<Self, D>,
        weight: Tensor<Self, 1>,
        bias: Tensor<Self, 1>,
        eps: f64,
    ) -> Tensor<Self, D> {
        let (x, weight, bias) = (unwrap(x), unwrap(weight), unwrap(bias));
        let y = unwrap(B::layer_norm_f32(
            wrap::<B, D>(x.primitive.clone()),
            wrap(weight.primitive.clone()),
            wrap(bias.primitive.clone()),
            eps,
        ));
        let parents = [x.node.clone(), weight.node.clone(), bias.node.clone()];
        wrap(
            match LayerNormNode::<D>
                .prepare::<C>(parents)
                .compute_bound()
                .stateful()
            {
                OpsKind::Tracked(mut prep) => {
                    let state = (prep.checkpoint(&x), prep.checkpoint(&weight), eps);
                    prep.finish(state, y)
                }
                OpsKind::UnTracked(prep) => prep.finish(y),
            },
        )
    }

    fn attend_scores(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        scores: Scores<Self>,
    ) -> Tensor<Self, 4> {
        // a mask that learns (the relative bias of T5) needs the scores in the graph
        if scores
            .mask
            .as_ref()
            .is_some_and(|mask| !mask.clone().into_primitive().tensor().node.requirement.is_none())
        {
            return attend_by_tensor_ops(q, k, v, scores);
        }
        let scores = Scores {
            scale: scores.scale,
            mask: scores.mask.map(|mask| wrap(unwrap(mask).primitive)),
            factors: scores.factors.map(|factors| wrap(unwrap(factors).primitive)),
        };
        let [q, k, v] = [q, k, v].map(unwrap);
        let [pq, pk, pv] = [&q, &k, &v].map(|x| wrap(x.primitive.clone()));
        let y = unwrap(B::attend_scores(pq, pk, pv, scores.clone()));
        let parents = [q.node.clone(), k.node.clone(), v.node.clone()];
        wrap(
            match AttendNode.prepare::<C>(parents).compute_bound().stateful() {
                OpsKind::Tracked(mut prep) => {
                    let qkv = [&q, &k, &v].map(|x| prep.checkpoint(x));
                    prep.finish(AttendState { qkv, scores }, y)
                }
                OpsKind::UnTracked(prep) => prep.finish(y),
            },
        )
    }

    fn rms_norm_f32<const D: usize>(
        x: Tensor<Self, D>,
        weight: Tensor<Self, 1>,
        eps: f64,
    ) -> Tensor<Self, D> {
        let (x, weight) = (unwrap(x), unwrap(weight));
        let y = unwrap(B::rms_norm_f32(
            wrap::<B, D>(x.primitive.clone()),
            wrap(weight.primitive.clone()),
            eps,
        ));
        let parents = [x.node.clone(), weight.node.clone()];
        wrap(
            match RmsNormNode::<D>.prepare::<C>(parents).compute_bound().stateful() {
                OpsKind::Tracked(mut prep) => {
                    let state = (prep.checkpoint(&x), prep.checkpoint(&weight), eps);
                    prep.finish(state, y)
                }
                OpsKind::UnTracked(prep) => prep.finish(y),
            },
        )
    }
}

/// What the backward pass of a linear map needs.
#[derive(Clone, Debug)]
struct LinearState {
    x: NodeId,
    weight: NodeId,
    weight_dtype: DType,
    bias_dtype: Option<DType>,
}

#[derive(Debug)]
struct LinearNode;

impl<B: Kernels> Backward<B, 3> for LinearNode {
    type State = LinearState;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let state = ops.state;
        let x: B::FloatTensorPrimitive = checkpointer.retrieve_node_output(state.x);
        let weight: B::FloatTensorPrimitive = checkpointer.retrieve_node_output(state.weight);
        let grad: Tensor<B, 2> = wrap(grads.consume::<B>(&ops.node));
        let [to_x, to_weight, to_bias] = ops.parents;
        if let (Some(parent), Some(dtype)) = (to_bias, state.bias_dtype) {
            let bias = as_dtype(B::sum_rows(grad.clone()), dtype);
            grads.register::<B>(parent.id, unwrap(bias));
        }
        if let Some(parent) = to_weight {
            let weight = as_dtype(B::linear_weight_grad(grad.clone(), wrap(x)), state.weight_dtype);
            grads.register::<B>(parent.id, unwrap(weight));
        }
        if let Some(parent) = to_x {
            grads.register::<B>(parent.id, unwrap(B::linear_input_grad(grad, wrap(weight))));
        }
    }
}

/// What the backward pass of a look-up needs of the table, and which rows it was.
#[derive(Clone, Debug)]
struct EmbeddingState<B: Backend> {
    ids: Tensor<B, 2, Int>,
    rows: usize,
    dtype: DType,
}

#[derive(Debug)]
struct EmbeddingNode;

impl<B: Kernels> Backward<B, 1> for EmbeddingNode {
    type State = EmbeddingState<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let EmbeddingState { ids, rows, dtype } = ops.state;
        let grad: Tensor<B, 3> = wrap(grads.consume::<B>(&ops.node));
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            let table = B::embed_grad(grad.flatten(0, 1), ids.flatten(0, 1), rows);
            grads.register::<B>(parent.id, unwrap(as_dtype(table, dtype)));
        }
    }
}

#[derive(Debug)]
struct ProductNode<const D: usize>;

impl<B: Kernels, const D: usize> Backward<B, 2> for ProductNode<D> {
    type State = (NodeId, NodeId);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (a, b) = ops.state;
        let a: Tensor<B, D> = wrap(checkpointer.retrieve_node_output::<B::FloatTensorPrimitive>(a));
        let b: Tensor<B, D> = wrap(checkpointer.retrieve_node_output::<B::FloatTensorPrimitive>(b));
        let grad: Tensor<B, D> = wrap(grads.consume::<B>(&ops.node));
        let [to_a, to_b] = ops.parents;
        if let Some(parent) = to_a {
            let grad = B::matmul(grad.clone(), b.swap_dims(D - 2, D - 1));
            grads.register::<B>(parent.id, unwrap(grad));
        }
        if let Some(parent) = to_b {
            let grad = B::matmul(a.swap_dims(D - 2, D - 1), grad);
            grads.register::<B>(parent.id, unwrap(grad));
        }
    }
}

/// Inputs and scores of an attention; the mask and the dropout factors are constants.
#[derive(Clone, Debug)]
struct AttendState<B: Backend> {
    qkv: [NodeId; 3],
    scores: Scores<B>,
}

#[derive(Debug)]
struct AttendNode;

impl<B: Kernels> Backward<B, 3> for AttendNode {
    type State = AttendState<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let AttendState { qkv, scores } = ops.state;
        let grad = wrap(grads.consume::<B>(&ops.node));
        let [q, k, v] =
            qkv.map(|id| wrap::<B, 4>(checkpointer.retrieve_node_output::<B::FloatTensorPrimitive>(id)));
        let found = B::attend_backward(q, k, v, scores, grad);
        for (parent, grad) in ops.parents.into_iter().zip(found) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, unwrap(grad));
            }
        }
    }
}

type NodeId = burn::backend::autodiff::NodeId;

#[derive(Debug)]
struct ContiguousNode<const D: usize>;

impl<B: Kernels, const D: usize> Backward<B, 1> for ContiguousNode<D> {
    type State = ();

    fn backward(self, ops: Ops<(), 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            grads.register::<B>(parent.id, unwrap(B::contiguous(wrap::<B, D>(grad))));
        }
    }
}

#[derive(Debug)]
struct LogSumExpNode;

impl<B: Kernels> Backward<B, 1> for LogSumExpNode {
    type State = (NodeId, B::FloatTensorPrimitive);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (x, y) = ops.state;
        let x: B::FloatTensorPrimitive = checkpointer.retrieve_node_output(x);
        let grad = grads.consume::<B>(&ops.node);
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            let grad = B::log_sum_exp_backward(wrap(x), wrap(y), wrap(grad));
            grads.register::<B>(parent.id, unwrap(grad));
        }
    }
}

#[derive(Debug)]
struct ActivateNode<const D: usize>;

impl<B: Kernels, const D: usize> Backward<B, 1> for ActivateNode<D> {
    type State = (NodeId, Activation);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (x, act) = ops.state;
        let x: B::FloatTensorPrimitive = checkpointer.retrieve_node_output(x);
        let grad = grads.consume::<B>(&ops.node);
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            let grad = B::activate_backward(wrap::<B, D>(x), wrap(grad), act);
            grads.register::<B>(parent.id, unwrap(grad));
        }
    }
}

#[derive(Debug)]
struct LayerNormNode<const D: usize>;

impl<B: Kernels, const D: usize> Backward<B, 3> for LayerNormNode<D> {
    type State = (NodeId, NodeId, f64);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (x, weight, eps) = ops.state;
        let x: B::FloatTensorPrimitive = checkpointer.retrieve_node_output(x);
        let weight: B::FloatTensorPrimitive = checkpointer.retrieve_node_output(weight);
        let grad = grads.consume::<B>(&ops.node);
        let found = B::layer_norm_backward(wrap::<B, D>(x), wrap(weight), wrap(grad), eps);
        let found = [unwrap(found.x), unwrap(found.weight), unwrap(found.bias)];
        for (parent, grad) in ops.parents.into_iter().zip(found) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

#[derive(Debug)]
struct RmsNormNode<const D: usize>;

impl<B: Kernels, const D: usize> Backward<B, 2> for RmsNormNode<D> {
    type State = (NodeId, NodeId, f64);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (x, weight, eps) = ops.state;
        let x: B::FloatTensorPrimitive = checkpointer.retrieve_node_output(x);
        let weight: B::FloatTensorPrimitive = checkpointer.retrieve_node_output(weight);
        let grad = grads.consume::<B>(&ops.node);
        let (dx, dw) = B::rms_norm_backward(wrap::<B, D>(x), wrap(weight), wrap(grad), eps);
        for (parent, grad) in ops.parents.into_iter().zip([unwrap(dx), unwrap(dw)]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}
