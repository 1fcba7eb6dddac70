//! Learning rates of single parameters: discriminative rates (Howard and Ruder, 2018), which fall from layer to
//! layer towards the embeddings, and rates by name.

use serde::Serialize;

use crate::freeze::Glob;
use crate::model::{Group, Network, Param};
use crate::{Error, Result};

/// What parameters learn at, beside the rates of the step.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RateRules {
    /// Each layer's rate is this share of that of the layer above it; the embeddings count as the lowest.
    pub layer_decay: Option<f32>,
    /// Rates of the tensors that a glob matches, whatever else applies; the last that matches counts.
    pub by_name: Vec<(Glob, f32)>,
}

impl RateRules {
    /// What multiplies each parameter's base rate, in table order: `learning_rate`, or `head_learning_rate` for those
    /// of heads.
    ///
    /// # Errors
    /// A glob that matches nothing; a rate by name beside a base rate of 0, of which nothing is a multiple.
    pub fn scales(
        &self,
        network: &Network,
        learning_rate: f32,
        head_learning_rate: f32,
    ) -> Result<Vec<f32>> {
        let n_layers = network.layers.len() as i32;
        let by_depth = |param: &Param| match (self.layer_decay, param.group) {
            (Some(decay), Group::Embeddings) => decay.powi(n_layers),
            (Some(decay), Group::Layer(layer)) => decay.powi(n_layers - 1 - layer as i32),
            _ => 1.0,
        };
        let mut scales: Vec<f32> = network.params.iter().map(by_depth).collect();
        for (glob, rate) in &self.by_name {
            let mut n_matched = 0;
            for (param, scale) in network.params.iter().zip(&mut scales) {
                if !glob.matches(&param.name) {
                    continue;
                }
                n_matched += 1;
                let is_head = matches!(param.group, Group::Head(_));
                let base = if is_head { head_learning_rate } else { learning_rate };
                if base == 0.0 {
                    return Err(Error::usage(format!(
                        "--param-learning-rate {glob}={rate}: {} has a learning rate of 0, which must be \
                         above 0 where rates are given by name",
                        param.name
                    )));
                }
                *scale = rate / base;
            }
            if n_matched == 0 {
                return Err(Error::usage(format!(
                    "--param-learning-rate {glob}={rate}: no tensor of the model has such a name"
                )));
            }
        }
        Ok(scales)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Config, Pooling};

    fn network() -> Network {
        let config = Config::published("minilm-l6").unwrap();
        Network::new(&config, None, &[("topic".to_owned(), 4)], Pooling::Mean).unwrap()
    }

    fn scale_of(rules: &RateRules, name: &str) -> f32 {
        let network = network();
        let scales = rules.scales(&network, 1e-4, 1e-2).unwrap();
        let at = network.params.iter().position(|param| param.name.ends_with(name)).unwrap();
        scales[at]
    }

    #[test]
    fn rates_fall_towards_the_embeddings() {
        let rules = RateRules { layer_decay: Some(0.5), by_name: Vec::new() };
        assert_eq!(scale_of(&rules, "layer.5.output.dense.weight"), 1.0);
        assert_eq!(scale_of(&rules, "layer.4.output.dense.weight"), 0.5);
        assert_eq!(scale_of(&rules, "layer.0.output.dense.weight"), 1.0 / 32.0);
        assert_eq!(scale_of(&rules, "word_embeddings.weight"), 1.0 / 64.0);
        assert_eq!(scale_of(&rules, "heads.topic.weight"), 1.0);
        assert_eq!(scale_of(&RateRules::default(), "word_embeddings.weight"), 1.0);
    }

    #[test]
    fn names_come_before_depth_and_the_last_counts() {
        let rules = |by_name: &[(&str, f32)]| RateRules {
            layer_decay: Some(0.5),
            by_name: by_name.iter().map(|(glob, rate)| (Glob::new(*glob), *rate)).collect(),
        };
        let both = rules(&[("*.bias", 1e-3), ("heads.*", 2e-2)]);
        assert!((scale_of(&both, "layer.0.output.dense.bias") - 10.0).abs() <= 1e-5);
        assert!((scale_of(&both, "heads.topic.bias") - 2.0).abs() <= 1e-6);
        let message = |rules: RateRules, base| rules.scales(&network(), base, 1.0).unwrap_err();
        let none = message(rules(&[("nothing*", 0.1)]), 1.0).to_string();
        assert!(none.contains("nothing*=0.1: no tensor"), "{none}");
        let zero = message(rules(&[("*", 0.1)]), 0.0).to_string();
        assert!(zero.contains("learning rate of 0"), "{zero}");
    }
}
