//! Against `torch.optim.AdamW` (`tests/fixtures/gen/optim.py`).

use super::*;
use crate::optim::{clip_to_norm, global_norm};
use blip2_model::backend::Flex;
use blip2_model::weights::{TensorSource, safetensors::SafetensorsFile};
use burn::backend::Autodiff;
use burn::module::Param;
use burn::tensor::TensorData;

type Ad = Autodiff<Flex>;

#[derive(Module, Debug)]
struct Toy<B: Backend> {
    weight: Param<Tensor<B, 2>>,
    bias: Param<Tensor<B, 1>>,
    temp: Param<Tensor<B, 1>>,
    idle: Param<Tensor<B, 2>>,
}

fn fixture() -> SafetensorsFile {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/fixtures/optim/adamw.safetensors"
    );
    SafetensorsFile::open(std::path::Path::new(path)).unwrap()
}

fn values(file: &SafetensorsFile, name: &str) -> Vec<f32> {
    file.get(name).unwrap().to_f32_vec().unwrap()
}

#[test]
fn twenty_steps_equal_pytorch() {
    let file = fixture();
    let device = Default::default();
    let zeros = |shape: [usize; 2]| Param::from_tensor(Tensor::<Ad, 2>::zeros(shape, &device));
    let module = Toy::<Ad> {
        weight: zeros([4, 3]),
        bias: Param::from_tensor(Tensor::zeros([4], &device)),
        temp: Param::from_tensor(Tensor::zeros([1], &device)),
        idle: zeros([2, 2]),
    };
    let mut module = params::replace(module, |info| {
        let start = values(&file, &format!("start.{}", info.name));
        Some(TensorData::new(start, info.shape.clone()))
    });
    let mut optimizer = AdamW::<Flex>::new(AdamWConfig::default());
    for step in 0..20 {
        let mut gradients = Named::new();
        for name in ["weight", "bias", "temp"] {
            let all = values(&file, &format!("grad.{name}"));
            let n = all.len() / 20;
            let gradient = &all[step * n..(step + 1) * n];
            gradients.insert(name.to_string(), Tensor::from_data(gradient, &device));
        }
        // a parameter that gets its first gradient late starts its own count then
        if step >= 15 {
            let ones = Tensor::<Flex, 1>::ones([4], &device);
            gradients.insert("idle".into(), ones);
        }
        let norm = global_norm(&gradients);
        let want = f64::from(values(&file, "norm")[step]);
        assert!((norm - want).abs() < 1e-5 * want, "norm of step {step}");
        let gradients = clip_to_norm(gradients, norm, 3.0);
        let lr = f64::from(values(&file, "lr")[step]);
        module = optimizer.step::<Ad, _>(module, gradients, lr, &GroupRule::default());
        for (name, value) in params::values(&module) {
            let want = values(&file, &format!("after.{name}"));
            let n = want.len() / 20;
            let want = &want[step * n..(step + 1) * n];
            for (a, b) in params::to_host(&value).iter().zip(want) {
                // each step moves by about the rate (0.01); f32 rounding of values of order 1 adds up to a few ulp
                assert!((a - b).abs() <= 2e-6, "step {step}, {name}: {a} for {b}");
            }
        }
    }
}
