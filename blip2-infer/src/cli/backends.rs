//! `blip2 backends`

use anyhow::Result;
use blip2_model::backend::BackendKind;

pub(super) fn run() -> Result<()> {
    for kind in BackendKind::ALL {
        let state = if kind.is_compiled() {
            "in this build"
        } else {
            "not in this build"
        };
        println!("{:<8} {state}", kind.name());
    }
    Ok(())
}
