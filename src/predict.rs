//! Inference: what the heads say of texts, and the vectors that they read. The step is that of the freeze `all`.

use crate::Result;
use crate::backend::{StepState, Timing};
use crate::batch::IGNORED_LABEL;
use crate::data::{Encoded, Packer};
use crate::freeze::FreezeMask;
use crate::plan::{Capacity, StepOptions};
use crate::session::{Session, Step};

/// What the network says of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// For each task the probabilities of its labels, in the order of the head's rows.
    pub probabilities: Vec<Vec<f64>>,
    /// What the heads read: the pooled vector, `[D]`.
    pub pooled: Vec<f32>,
}

/// Runs texts through a network.
pub struct Predictor {
    session: Session,
    packer: Packer,
    /// With room for the largest batch so far.
    step: Option<Step>,
}

impl Predictor {
    /// A predictor that cuts texts into batches as `packer` says.
    pub fn new(session: Session, packer: Packer) -> Self {
        Self { session, packer, step: None }
    }

    /// One prediction a text, in order.
    ///
    /// # Errors
    /// When the device lacks the memory, or fails.
    pub fn predict(&mut self, texts: &Encoded) -> Result<Vec<Prediction>> {
        let order: Vec<usize> = (0..texts.len()).collect();
        let mut predictions = Vec::with_capacity(texts.len());
        for range in self.packer.batches(&order, &texts.lengths())? {
            // A row whose label is ignored has logits and no loss.
            let batch = self.packer.pack(&order[range], texts, |_, _| IGNORED_LABEL);
            let step = match self.step.take() {
                Some(step) if step.plan().capacity.serves(&batch) => step,
                _ => self.compile(Capacity::of([&batch]))?,
            };
            self.session.run(&step, &batch, &StepState::FORWARD, Timing::Off)?;
            let n = batch.n_sequences();
            let pooled = self.session.pooled(&step)?;
            let logits = (0..self.packer.n_tasks)
                .map(|task| self.session.logits(&step, task))
                .collect::<Result<Vec<_>>>()?;
            for row in 0..n {
                let of_row = |values: &[f32]| {
                    let width = values.len() / n;
                    values[row * width..(row + 1) * width].to_vec()
                };
                predictions.push(Prediction {
                    probabilities: logits.iter().map(|all| softmax(&of_row(all))).collect(),
                    pooled: of_row(&pooled),
                });
            }
            self.step = Some(step);
        }
        Ok(predictions)
    }

    /// A step for batches of this size and somewhat larger ones, so that few are ever compiled.
    fn compile(&mut self, least: Capacity) -> Result<Step> {
        let longest = self.session.network().config.max_length();
        let capacity = Capacity {
            tokens: least.tokens.next_power_of_two(),
            sequences: least.sequences.next_power_of_two(),
            max_length: least.max_length.next_power_of_two().min(longest),
        };
        let options = StepOptions::plain(capacity, self.session.compute());
        let mask = FreezeMask::all(self.session.network().params.len());
        self.session.compile(&mask, &options)
    }
}

/// Probabilities of logits.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|logit| f64::from(logit - highest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_of_logits() {
        let expected = [0.25, 0.75];
        for shift in [0.0, 100.0, -100.0] {
            let got = softmax(&[shift, 3.0_f32.ln() + shift]);
            let is_close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-5;
            assert!(got.iter().zip(&expected).all(is_close), "{got:?}");
        }
    }
}
