//! The depths that a frost line can have, from everything frozen below the heads to nothing.

use crate::Result;
use crate::freeze::{FreezeMask, FreezeSpec, FreezeState};
use crate::model::{Network, Pooling};

/// A depth.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The freeze spec.
    pub freeze: String,
    pub mask: FreezeMask,
    /// Layers below the frost line, 0 where nothing is frozen: the first trained layer reads the hidden state behind
    /// so many layers.
    pub n_frozen_layers: usize,
    /// What the heads' learning rate is multiplied with: alone above frozen features they bear more.
    pub head_rate_scale: f32,
}

/// That scale where the heads train alone, by the guide's measurements.
pub const HEADS_ALONE: f32 = 3.0;

impl Candidate {
    /// A whole training at this depth.
    pub fn state(&self) -> FreezeState {
        FreezeState::always(self.freeze.clone(), self.mask.clone())
    }
}

/// The depths of a network, the most frozen first: `backbone`, `lower:L` where a pooler then still trains,
/// `lower:L-1` to `lower:1`, `none`.
///
/// # Errors
/// None that a network of one layer or more could cause.
pub fn candidates(network: &Network) -> Result<Vec<Candidate>> {
    let n_layers = network.layers.len();
    let deepest_lower = match network.pooling {
        Pooling::Pooler => n_layers,
        Pooling::Mean | Pooling::Cls => n_layers - 1,
    };
    let lower = (1..=deepest_lower).rev().map(|n| (format!("lower:{n}"), n));
    let all = [("backbone".to_owned(), n_layers)];
    let all = all.into_iter().chain(lower).chain([("none".to_owned(), 0)]);
    all.map(|(freeze, n_frozen_layers)| {
        let mask = FreezeSpec::parse(&freeze)?.mask(network)?;
        let head_rate_scale = if freeze == "backbone" { HEADS_ALONE } else { 1.0 };
        Ok(Candidate { freeze, mask, n_frozen_layers, head_rate_scale })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Config;

    fn specs(n_layers: usize, pooling: Pooling) -> Vec<(String, usize)> {
        let config = Config { n_layers, ..Config::published("minilm-l6").unwrap() };
        let network = Network::new(&config, None, &[("task".to_owned(), 2)], pooling).unwrap();
        let all = candidates(&network).unwrap();
        all.into_iter().map(|one| (one.freeze, one.n_frozen_layers)).collect()
    }

    #[test]
    fn every_depth_once() {
        let expected = |all: &[(&str, usize)]| -> Vec<(String, usize)> {
            all.iter().map(|(freeze, n)| (freeze.to_string(), *n)).collect()
        };
        let without = [("backbone", 3), ("lower:2", 2), ("lower:1", 1), ("none", 0)];
        assert_eq!(specs(3, Pooling::Mean), expected(&without));
        let with = [("backbone", 2), ("lower:2", 2), ("lower:1", 1), ("none", 0)];
        assert_eq!(specs(2, Pooling::Pooler), expected(&with));
        assert_eq!(specs(1, Pooling::Cls), expected(&[("backbone", 1), ("none", 0)]));
    }
}
