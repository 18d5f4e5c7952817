//! `config.json` of a BLIP-2 folder -> typed configuration (`transformers/models/blip_2/configuration_blip_2.py`).
//!
//! Hugging Face field names. A value that this engine cannot honour is an error, never ignored.
