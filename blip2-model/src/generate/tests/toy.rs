//! A language model without weights: the logits are row `h % rows` of a table, where `h` mixes the prompt with
//! every token so far and its position. All it knows comes out of the [`DecodeState`], so a cache row
//! that follows the wrong beam changes the answer. Same function as in `tests/fixtures/gen/generate.py`.

use burn::tensor::{Int, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::backend::Flex;
use crate::generate::{
    GenerateError, GenerateOptions, Generation, Sequence, generate, generate_after, stream,
};
use crate::language::{Architecture, DecodeState, LanguageModel, Prompt};
use crate::nn::{Context, KvCache, PadMask};

pub struct Toy {
    pub table: Vec<Vec<f32>>,
    pub architecture: Architecture,
}

impl Toy {
    /// A random table in which the tokens below `ends` are likely enough to end sequences of every length.
    pub fn random(seed: u64, vocab: usize, ends: usize, architecture: Architecture) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut logit = |token| {
            let boost = if token < ends { 1.5 } else { 0.0 };
            rng.random_range(-4.0..4.0) + boost
        };
        let table = (0..71).map(|_| (0..vocab).map(&mut logit).collect());
        Self {
            table: table.collect(),
            architecture,
        }
    }

    pub fn row(&self, prompt: i64, tokens: &[i64]) -> &[f32] {
        let mixed: i64 = tokens
            .iter()
            .zip(0..)
            .map(|(token, i): (&i64, i64)| (token + 1) * (i * i + 3 * i + 7))
            .sum();
        &self.table[(prompt * 31 + mixed) as usize % self.table.len()]
    }

    fn logits(&self, rows: &[(i64, Vec<i64>)]) -> Tensor<Flex, 2> {
        let flat: Vec<f32> = rows
            .iter()
            .flat_map(|(prompt, tokens)| self.row(*prompt, tokens).to_vec())
            .collect();
        Tensor::from_data(
            TensorData::new(flat, [rows.len(), self.vocab_size()]),
            &Default::default(),
        )
    }

    /// One prompt per row.
    pub fn prompt(prompts: &[i64]) -> Prompt<Flex> {
        let embeds: Vec<f32> = prompts.iter().map(|&prompt| prompt as f32).collect();
        Prompt {
            embeds: column(&embeds).reshape([prompts.len(), 1, 1]),
            mask: PadMask::ones(prompts.len(), 1),
        }
    }

    pub fn run(
        &self,
        prompts: &[i64],
        options: &[GenerateOptions],
    ) -> Result<Vec<Generation>, GenerateError> {
        let prompt = Self::prompt(prompts);
        generate(self, prompt, options, &Context::eval(), &mut stream::ignore)
    }

    pub fn run_after(
        &self,
        prompts: &[i64],
        prompt_ids: &[Vec<i64>],
        options: &[GenerateOptions],
    ) -> Result<Vec<Generation>, GenerateError> {
        let prompt = Self::prompt(prompts);
        let (ctx, mut ignore) = (Context::eval(), stream::ignore);
        generate_after(self, prompt, prompt_ids, options, &ctx, &mut ignore)
    }

    pub fn run_one(&self, prompt: i64, options: &GenerateOptions) -> Vec<Sequence> {
        let mut all = self.run(&[prompt], std::slice::from_ref(options)).unwrap();
        all.remove(0).sequences
    }
}

/// `[R] -> [R, 1, 1, 1]`, the shape of cached keys.
fn column(values: &[f32]) -> Tensor<Flex, 4> {
    let data = TensorData::new(values.to_vec(), [values.len(), 1, 1, 1]);
    Tensor::from_data(data, &Default::default())
}

fn host(tensor: Tensor<Flex, 4>) -> Vec<Vec<i64>> {
    let width = tensor.dims()[2];
    let flat: Vec<f32> = tensor.into_data().into_vec().unwrap();
    let rows = flat.chunks(width);
    rows.map(|row| row.iter().map(|&x| x as i64).collect()).collect()
}

impl LanguageModel<Flex> for Toy {
    fn architecture(&self) -> Architecture {
        self.architecture
    }

    fn embed_size(&self) -> usize {
        1
    }

    fn vocab_size(&self) -> usize {
        self.table[0].len()
    }

    fn embed(&self, ids: Tensor<Flex, 2, Int>) -> Tensor<Flex, 3> {
        ids.float().unsqueeze_dim(2)
    }

    fn prefill(
        &self,
        prompt: Prompt<Flex>,
        max_new_tokens: usize,
        _ctx: &Context,
    ) -> (DecodeState<Flex>, Tensor<Flex, 2>) {
        let [batch, len, _] = prompt.embeds.dims();
        let embeds = prompt.embeds.reshape([batch, 1, len, 1]);
        let prompts: Vec<(i64, Vec<i64>)> = host(embeds.clone())
            .into_iter()
            .map(|row| (row[0], Vec::new()))
            .collect();
        // the last token is never fed back, hence room for one less
        let mut state = DecodeState {
            self_attention: vec![KvCache::new(max_new_tokens.max(2) - 1)],
            cross_attention: Vec::new(),
            mask: prompt.mask,
        };
        match self.architecture {
            Architecture::DecoderOnly => {
                let mut cache = KvCache::new(len + max_new_tokens - 1);
                cache.append(embeds.clone(), embeds);
                state.self_attention = vec![cache];
            }
            Architecture::EncoderDecoder => state.cross_attention = vec![(embeds.clone(), embeds)],
        }
        (state, self.logits(&prompts))
    }

    fn step(&self, tokens: &[i64], state: &mut DecodeState<Flex>, _ctx: &Context) -> Tensor<Flex, 2> {
        let new = column(&tokens.iter().map(|&token| token as f32).collect::<Vec<_>>());
        let (keys, values) = state.self_attention[0].append(new.clone(), new);
        assert_eq!(host(keys.clone()), host(values), "keys and values move together");
        let rows = match self.architecture {
            Architecture::DecoderOnly => {
                state.mask.push_real();
                host(keys)
                    .into_iter()
                    .map(|row| (row[0], row[1..].to_vec()))
                    .collect::<Vec<_>>()
            }
            Architecture::EncoderDecoder => {
                let prompts = host(state.cross_attention[0].0.clone());
                let prompts = prompts.into_iter().map(|row| row[0]);
                prompts.zip(host(keys)).collect()
            }
        };
        assert_eq!(state.mask.batch(), rows.len(), "the mask moves with the cache");
        self.logits(&rows)
    }

    fn teacher_forced(
        &self,
        prompt: Prompt<Flex>,
        ids: &[Vec<i64>],
        _mask: &PadMask,
        _ctx: &Context,
    ) -> Tensor<Flex, 3> {
        let [batch, len, _] = prompt.embeds.dims();
        let prompts = host(prompt.embeds.reshape([batch, 1, len, 1]));
        let rows: Vec<(i64, Vec<i64>)> = prompts
            .iter()
            .zip(ids)
            .flat_map(|(prompt, ids)| (0..ids.len()).map(|t| (prompt[0], ids[..t].to_vec())))
            .collect();
        let logits = self.logits(&rows);
        logits.reshape([batch, ids[0].len(), self.vocab_size()])
    }
}
