//! Sums over the devices of one process by NCCL, which CubeCL loads when the first one is asked for. It is what burn's
//! feature `distributed` calls for gradients; here the stages ask for it, which also gather features and tokens.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::device::Device as _;
use cubecl::server::ReduceOperation;

/// Puts the sum over `devices` in the place of `x [n]`, whose memory nobody else holds.
pub fn sum_across<R: CubeRuntime>(x: CubeTensor<R>, devices: &[R::Device]) -> CubeTensor<R> {
    let x = into_contiguous(x);
    let ids = devices.iter().map(|device| device.to_id()).collect();
    let (from, to) = (x.handle.clone(), x.handle.clone());
    let mut client = x.client.clone();
    client.all_reduce(from, to, x.dtype.into(), ids, ReduceOperation::Sum);
    // what follows on the device's own queue waits for the sum; the host does not
    client.sync_collective();
    x
}
