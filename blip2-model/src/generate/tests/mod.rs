//! Tests of generation on a stand-in model whose logits are table rows.

mod batching;
mod huggingface;
mod ranking;
mod sampling;
mod toy;
