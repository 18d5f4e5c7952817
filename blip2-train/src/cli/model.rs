//! Which model a verb loads, and where it runs.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use blip2_model::backend::SelectDevice;
use blip2_model::checkpoint::{DtypePolicy, PartDtype};
use blip2_model::nn::Kernels;
use blip2_model::session::Session;
use blip2_model::weights::hub;
use clap::Args;

use super::share::device;

/// Backend and dtype; the model itself is named by the verb.
#[derive(Clone, Debug, Args)]
pub struct DeviceArgs {
    /// Backend of this build to run on [default: the first one compiled in]
    #[arg(long)]
    pub backend: Option<String>,
    /// Device of the backend [default: LOCAL_RANK in a group of processes, else 0]
    #[arg(long)]
    pub device: Option<usize>,
    /// Dtype of the frozen parts' matrices: auto (as in the file), f32, f16 or bf16
    #[arg(long, default_value = "auto")]
    pub dtype: PartDtype,
    /// Dtype of the language model alone
    #[arg(long, value_name = "DTYPE")]
    pub dtype_llm: Option<PartDtype>,
    /// Dtype of the Q-Former's matrices, which the other options leave in f32: also f16 or bf16
    #[arg(long, value_name = "DTYPE", value_parser = PartDtype::unpacked)]
    pub dtype_qformer: Option<PartDtype>,
    /// Never ask the network for a model
    #[arg(long)]
    pub offline: bool,
}

impl DeviceArgs {
    /// The device that the options or a launcher name.
    pub fn select<B: SelectDevice>(&self) -> Result<B::Device> {
        Ok(B::open_device(device(self.device)?)?)
    }

    /// The folder of `model`: a path, or downloaded if it is a hub id.
    pub fn folder(&self, model: &str) -> Result<PathBuf> {
        if hub::is_local(model) {
            return Ok(PathBuf::from(model));
        }
        let id = model
            .parse::<hub::HubId>()
            .with_context(|| format!("--model {model}"))?;
        let mut settings = hub::HubSettings::from_env();
        settings.offline |= self.offline;
        Ok(hub::resolve(&id, &settings, &mut ())?.folder)
    }

    /// Loads a folder.
    pub fn open<B: Kernels>(&self, folder: &Path, device: &B::Device) -> Result<Session<B>> {
        let policy = DtypePolicy::frozen(self.dtype).but(self.dtype_qformer, self.dtype_llm);
        Ok(Session::open(folder, policy, false, device)?)
    }
}
