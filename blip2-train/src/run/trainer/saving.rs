//! The trainer's side of checkpoints: what goes in, and how it comes back.

use super::*;

impl<B: AutodiffBackend, S: Stage<B>> Trainer<'_, B, S> {
    /// Writes a checkpoint of this moment; `cursor` is this process's place in the data.
    pub(super) fn save(&self, cursor: Value) -> Result<(), RunError> {
        let cursors = self.gather_cursors(cursor)?;
        if self.is_first() {
            let values = params::values(&self.module);
            let moments = self.optimizer.state();
            let model = self
                .infos
                .iter()
                .map(|info| {
                    let value = &values[&info.name];
                    Ok(Pending {
                        name: self.file_name(info)?,
                        shape: info.shape.clone(),
                        fetch: Box::new(move || params::to_host(value)),
                    })
                })
                .collect::<Result<_, CheckpointError>>()?;
            let optimizer = moments.iter().flat_map(|(name, moments)| {
                [("m", &moments.m), ("v", &moments.v)].map(|(kind, tensor)| Pending {
                    name: format!("{kind}.{name}"),
                    shape: vec![tensor.dims()[0]],
                    fetch: Box::new(move || params::to_host(tensor)),
                })
            });
            self.store.save(Contents {
                state: TrainState {
                    version: 0,
                    step: self.step,
                    samples: self.samples,
                    seed: self.config.seed,
                    scaler: self.scaler,
                    best: self.best,
                    cursors,
                    updates: moments.iter().map(|(name, m)| (name.clone(), m.step)).collect(),
                    config: self.parts.config.clone(),
                    frozen: self.parts.frozen.clone(),
                    files: BTreeMap::new(),
                },
                model,
                optimizer: optimizer.collect(),
                config_json: self.parts.config_json.as_deref(),
            })?;
        }
        // nobody runs ahead of a checkpoint that is not there yet
        self.barrier()
    }

    /// Every process's place in the data, in rank order, on all of them.
    pub(super) fn gather_cursors(&self, cursor: Value) -> Result<Vec<Value>, RunError> {
        let collective = self.parts.collective;
        if collective.world_size() == 1 {
            return Ok(vec![cursor]);
        }
        let bytes: Vec<i64> = cursor.to_string().bytes().map(i64::from).collect();
        let lengths = collective.all_gather_ids(&[bytes.len() as i64], &self.device)?;
        let longest = lengths.iter().copied().max().unwrap_or(0) as usize;
        let mut padded = bytes;
        padded.resize(longest, 0);
        let all = collective.all_gather_ids(&padded, &self.device)?;
        let cursors = all.chunks(longest.max(1)).zip(lengths).map(|(bytes, length)| {
            let text: Vec<u8> = bytes[..length as usize].iter().map(|&b| b as u8).collect();
            serde_json::from_slice(&text).unwrap_or(Value::Null)
        });
        Ok(cursors.collect())
    }

    fn file_name(&self, info: &ParamInfo) -> Result<String, CheckpointError> {
        let name = self.module.file_name(&self.parts.keys, &info.name);
        name.ok_or_else(|| CheckpointError::Unnamed {
            path: info.name.clone(),
        })
    }

    /// Continues from a checkpoint.
    pub(super) fn restore(&mut self, found: Found) -> Result<(), RunError> {
        let Found { folder, state } = found;
        for (part, digest) in &self.parts.frozen {
            if state.frozen.get(part).is_some_and(|old| old != digest) {
                return Err(CheckpointError::FrozenChanged { part: part.clone() }.into());
            }
        }
        let model = checkpoint::read_tensors(&folder.join(MODEL))?;
        self.check_names(&model)?;
        let mut names = BTreeMap::new();
        for info in &self.infos {
            names.insert(info.name.clone(), self.file_name(info)?);
        }
        let module = self.module.clone();
        self.module = params::replace(module, |info| {
            let (shape, values) = model.get(&names[&info.name])?;
            Some(TensorData::new(values.clone(), shape.clone()))
        });
        let moments = checkpoint::read_tensors(&folder.join(OPTIMIZER))?;
        let tensor = |name: String| {
            let (_, values) = moments.get(&name).ok_or_else(|| CheckpointError::Mismatch {
                missing: vec![name],
                unknown: Vec::new(),
                reshaped: Vec::new(),
            })?;
            Ok::<_, CheckpointError>(Tensor::from_data(values.as_slice(), &self.device))
        };
        let mut restored = BTreeMap::new();
        for (name, &step) in &state.updates {
            let (m, v) = (tensor(format!("m.{name}"))?, tensor(format!("v.{name}"))?);
            restored.insert(name.clone(), Moments { m, v, step });
        }
        self.optimizer.restore(restored);
        self.step = state.step;
        self.samples = state.samples;
        self.scaler = self.scaler.and(state.scaler).or(self.scaler);
        self.best = state.best;
        self.resume_cursors = Some(state.cursors);
        Ok(())
    }

    fn check_names(&self, model: &checkpoint::Tensors) -> Result<(), RunError> {
        let mut expected = BTreeMap::new();
        for info in &self.infos {
            expected.insert(self.file_name(info)?, &info.shape);
        }
        let missing: Vec<_> = expected
            .keys()
            .filter(|n| !model.contains_key(*n))
            .cloned()
            .collect();
        let unknown: Vec<_> = model
            .keys()
            .filter(|n| !expected.contains_key(*n))
            .cloned()
            .collect();
        let reshaped: Vec<_> = expected
            .iter()
            .filter_map(|(name, shape)| {
                let (found, _) = model.get(name)?;
                (found != *shape).then(|| (name.clone(), shape.to_vec(), found.clone()))
            })
            .collect();
        if missing.is_empty() && unknown.is_empty() && reshaped.is_empty() {
            return Ok(());
        }
        Err(CheckpointError::Mismatch {
            missing,
            unknown,
            reshaped,
        }
        .into())
    }
}
