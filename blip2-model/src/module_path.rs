//! Names of parameters: the dotted path of fields and indices at which a module visitor or mapper stands.

/// The names entered so far.
#[derive(Clone, Debug, Default)]
pub struct ModulePath(Vec<String>);

impl ModulePath {
    /// A path below `root`.
    pub fn under(root: &str) -> Self {
        Self(vec![root.to_string()])
    }

    /// To be called by `enter_module`. The variant of an enum is a choice of module, not a level of its own.
    pub fn enter(&mut self, name: &str, container_type: &str) {
        if !container_type.starts_with("Enum:") {
            self.0.push(name.to_string());
        }
    }

    /// To be called by `exit_module`.
    pub fn exit(&mut self, container_type: &str) {
        if !container_type.starts_with("Enum:") {
            self.0.pop();
        }
    }

    /// Such as `bridge.qformer.layers.0.attention.query.weight`.
    pub fn name(&self) -> String {
        self.0.join(".")
    }
}
