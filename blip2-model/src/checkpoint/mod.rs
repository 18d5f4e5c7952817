//! Between files and modules: key tables (one per checkpoint family, used in both directions), dtype
//! policy, loading with a complete report, export. File formats themselves are in [`crate::weights`].

pub mod apply;
pub mod companions;
pub mod convert;
pub mod expected;
pub mod export;
pub mod files;
pub mod huggingface;
pub mod keys;
pub mod lavis;
pub mod policy;
pub mod view;

pub use apply::{LoadReport, Loader};
pub use companions::Companions;
pub use expected::{ExpectedTensor, expected_tensors};
pub use export::{ExportError, ExportOptions, export_folder};
pub use files::{FilesError, ModelFiles};
pub use keys::Keys;
pub use lavis::{LavisError, LavisParts};
pub use policy::{DtypePolicy, Part, PartDtype};
