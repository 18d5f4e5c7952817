//! Digests of frozen parts, so that a resumed run notices when the weights under it have changed.

pub use blip2_model::weights::fingerprint::hex;
use burn::module::Module;
use burn::tensor::backend::Backend;
use sha2::{Digest, Sha256};

use crate::params;

/// Hex digest of names, shapes, dtypes and values of all parameters of a module.
pub fn module_digest<B: Backend, M: Module<B>>(module: &M) -> String {
    let infos = params::list(module);
    let values = params::values(module);
    let mut hash = Sha256::new();
    for info in infos {
        let data = values[&info.name].clone().into_data();
        hash.update(format!("{}:{:?}:{:?};", info.name, info.shape, data.dtype));
        hash.update(data.as_bytes());
    }
    hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::testing::{encoder, toy_lm};
    use blip2_model::backend::{Flex, NdArray};
    use burn::tensor::TensorData;

    #[test]
    fn the_digest_sees_one_changed_value_and_not_the_backend() {
        let module = encoder::<Flex>(&Default::default());
        let digest = module_digest(&module);
        assert_eq!(digest, module_digest(&encoder::<NdArray>(&Default::default())));
        let mut changed = false;
        let module = params::replace(module, |info| {
            let first = !std::mem::replace(&mut changed, true);
            first.then(|| TensorData::zeros::<f32, _>(info.shape.clone()))
        });
        assert_ne!(digest, module_digest(&module));
        assert_ne!(digest, module_digest(&toy_lm::<Flex>(&Default::default())));
    }
}
