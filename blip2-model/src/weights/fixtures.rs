//! The files of `tests/fixtures/weights` (made by `tests/fixtures/gen/weights.py`) and what they hold.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::source::TensorSource;

#[derive(Deserialize)]
struct Expected {
    dtype: String,
    shape: Vec<usize>,
    hex: String,
}

/// Path of a fixture.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/weights")
        .join(name)
}

/// Asserts that a source holds exactly the tensors noted for a fixture, bit for bit.
pub fn assert_holds(source: &dyn TensorSource, fixture: &str) {
    let text = std::fs::read_to_string(path("expected.json")).unwrap();
    let mut all: BTreeMap<String, BTreeMap<String, Expected>> = serde_json::from_str(&text).unwrap();
    let expected = all.remove(fixture).unwrap();
    let mut names: Vec<&str> = source.infos().iter().map(|info| info.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        expected.keys().map(String::as_str).collect::<Vec<_>>(),
        "{fixture}"
    );
    for (name, Expected { dtype, shape, hex }) in expected {
        let info = source.info(&name).unwrap();
        let tensor = source.get(&name).unwrap();
        assert_eq!(
            (info.dtype, info.shape.as_slice()),
            (tensor.dtype(), tensor.shape()),
            "{fixture}: {name}"
        );
        assert_eq!(
            (info.dtype.to_string(), &info.shape),
            (dtype, &shape),
            "{fixture}: {name}"
        );
        let found: String = tensor.bytes().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(found, hex, "{fixture}: {name}");
    }
}

/// Fetches every tensor; only for its not panicking.
pub fn read_all(source: &dyn TensorSource) {
    for info in source.infos() {
        let _ = source.get(&info.name);
        source.release(&info.name);
    }
}
