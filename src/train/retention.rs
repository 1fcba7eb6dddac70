//! What a freeze is said to protect, measured: a model before training, held against what it became.

use super::drift::{GroupDrift, HiddenBefore};
use super::forgetting::{Forgetting, ForgettingSet, ProbeScore};
use crate::Result;
use crate::data::Corpus;
use crate::session::Session;
use crate::sums::mean;

/// A model before training.
pub struct Before<'a> {
    /// None where nobody asks for the drift.
    hidden: Option<HiddenBefore<'a>>,
    sets: &'a [ForgettingSet],
    scores: Vec<ProbeScore>,
}

/// What training changed.
#[derive(Clone, Debug, Default)]
pub struct Retention {
    /// Part by part, from the bottom up; None where nobody asked.
    pub drift: Option<Vec<GroupDrift>>,
    /// Set by set, in the order in which they were named.
    pub forgetting: Vec<Forgetting>,
}

impl<'a> Before<'a> {
    /// Measures the network of `session` on `sets`, and with `has_drift` on the corpus that it will train on.
    ///
    /// # Errors
    /// When the device lacks the memory or fails, or a probe cannot be fitted.
    pub fn of(
        session: &mut Session,
        corpus: &'a Corpus,
        sets: &'a [ForgettingSet],
        has_drift: bool,
    ) -> Result<Self> {
        let hidden = match has_drift {
            true => Some(HiddenBefore::of(session, corpus)?),
            false => None,
        };
        let scores = sets.iter().map(|set| set.score(session)).collect::<Result<_>>()?;
        Ok(Self { hidden, sets, scores })
    }

    /// Measures the trained network of `session` likewise; `initial` are the values that training began with, in
    /// table order.
    ///
    /// # Errors
    /// As [`Before::of`].
    pub fn compare(&self, session: &mut Session, initial: &[Vec<f32>]) -> Result<Retention> {
        let drift = match &self.hidden {
            Some(hidden) => Some(hidden.drift(session, initial)?),
            None => None,
        };
        let one = |(set, before): (&ForgettingSet, &ProbeScore)| {
            Ok(set.compare(*before, set.score(session)?))
        };
        let forgetting = self.sets.iter().zip(&self.scores).map(one).collect::<Result<_>>()?;
        Ok(Retention { drift, forgetting })
    }
}

impl Retention {
    /// The CKA of the last layer; None where it has none, or nobody asked.
    pub fn last_cka(&self) -> Option<f64> {
        let is_layer = |one: &&GroupDrift| one.group.starts_with("layer ");
        self.drift.iter().flatten().rfind(is_layer)?.cka
    }

    /// The mean relative change of the weights of the embeddings and the layers.
    pub fn encoder_change(&self) -> Option<f64> {
        let is_encoder =
            |one: &&GroupDrift| one.group == "embeddings" || one.group.starts_with("layer ");
        mean(self.drift.iter().flatten().filter(is_encoder).map(|one| one.weights))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_layer_speaks_for_itself() {
        let part = |group: &str, cka| GroupDrift {
            group: group.to_owned(),
            weights: 0.5,
            cka,
            rows: cka.map(|_| 8),
        };
        let of = |last| Retention {
            drift: Some(vec![
                part("embeddings", Some(0.75)),
                part("layer 0", Some(0.5)),
                part("layer 1", last),
                part("pooler", None),
                part("head topic", None),
            ]),
            forgetting: Vec::new(),
        };
        assert_eq!(of(Some(0.25)).last_cka(), Some(0.25));
        assert_eq!(of(None).last_cka(), None);
        assert_eq!(Retention::default().last_cka(), None);
    }
}
