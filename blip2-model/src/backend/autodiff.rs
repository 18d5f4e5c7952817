//! The fused operations under reverse-mode differentiation: one node each, whose backward pass is the
//! backend's own. Nothing but the inputs is kept for it.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorPrimitive};

use crate::nn::{Activation, Kernels};

fn wrap<B: Backend, const D: usize>(primitive: B::FloatTensorPrimitive) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

fn unwrap<B: Backend, const D: usize>(x: Tensor<B, D>) -> B::FloatTensorPrimitive {
    x.into_primitive().tensor()
}

impl<B: Kernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    fn compute_dtype(stored: DType) -> DType {
        B::compute_dtype(stored)
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
            match LayerNormNode::<D>.prepare::<C>(parents).compute_bound().stateful() {
                OpsKind::Tracked(mut prep) => {
                    let state = (prep.checkpoint(&x), prep.checkpoint(&weight), eps);
                    prep.finish(state, y)
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

type NodeId = burn::backend::autodiff::NodeId;

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
        let found = B::rms_norm_backward(wrap::<B, D>(x), wrap(weight), wrap(grad), eps);
        for (parent, grad) in ops.parents.into_iter().zip([unwrap(found.x), unwrap(found.weight)]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}
