//! A set of frozen parameters.

use crate::model::ParamId;

/// For each parameter of a network whether it is frozen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FreezeMask {
    frozen: Vec<bool>,
}

impl FreezeMask {
    /// Nothing frozen, over `n_params` parameters.
    pub fn none(n_params: usize) -> Self {
        Self { frozen: vec![false; n_params] }
    }

    /// Everything frozen, over `n_params` parameters.
    pub fn all(n_params: usize) -> Self {
        Self { frozen: vec![true; n_params] }
    }

    /// Freezes a parameter, or lets it train again.
    pub fn set(&mut self, id: ParamId, frozen: bool) {
        self.frozen[id.0] = frozen;
    }

    /// Whether the parameter is frozen.
    pub fn is_frozen(&self, id: ParamId) -> bool {
        self.frozen[id.0]
    }
}
