//! Where epochs end. Batches of so many sequences give every epoch the same number of steps; batches of so many tokens
//! do not.

use super::TrainOptions;
use crate::data::{BatchLimit, Corpus};
use crate::{Error, Result};

/// The steps of a run, epoch by epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Epochs {
    lengths: Lengths,
    n_steps: u64,
}

#[derive(Clone, Debug, PartialEq)]
enum Lengths {
    /// Steps of every epoch.
    Equal(u64),
    /// Steps before the end of each epoch.
    Ends(Vec<u64>),
}

/// More epochs than anybody cuts into batches beforehand.
const MOST_EPOCHS: usize = 1_000_000;

impl Epochs {
    /// The epochs of a run over the corpus's training rows.
    ///
    /// # Errors
    /// More steps than can be counted; a text that alone exceeds a limit of tokens.
    pub fn new(options: &TrainOptions, corpus: &Corpus) -> Result<Self> {
        let length = |epoch: u64| -> Result<u64> { Ok(options.epoch(corpus, epoch)?.len() as u64) };
        let too_many =
            || Error::usage(format!("--num-train-epochs {}: too many to count", options.n_epochs));
        if let BatchLimit::Sequences(_) = options.limit {
            let of_each = length(0)?;
            let n_steps = match options.max_steps {
                Some(n) => n,
                None => options.n_epochs.checked_mul(of_each).ok_or_else(too_many)?,
            };
            return Ok(Epochs { lengths: Lengths::Equal(of_each), n_steps });
        }
        let mut ends: Vec<u64> = Vec::new();
        let end = |ends: &[u64]| ends.last().copied().unwrap_or(0);
        while match options.max_steps {
            Some(n) => end(&ends) < n,
            None => (ends.len() as u64) < options.n_epochs,
        } {
            if ends.len() == MOST_EPOCHS {
                return Err(too_many());
            }
            ends.push(end(&ends) + length(ends.len() as u64)?);
        }
        let n_steps = options.max_steps.unwrap_or(end(&ends));
        Ok(Epochs { lengths: Lengths::Ends(ends), n_steps })
    }

    /// Steps of the run.
    pub fn n_steps(&self) -> u64 {
        self.n_steps
    }

    /// The epoch that the step behind `n_done` belongs to, and the steps of that epoch that are done.
    pub fn place(&self, n_done: u64) -> (u64, u64) {
        match &self.lengths {
            Lengths::Equal(of_each) => (n_done / of_each.max(&1), n_done % of_each.max(&1)),
            Lengths::Ends(ends) => {
                let epoch = ends.partition_point(|end| *end <= n_done);
                let begin = epoch.checked_sub(1).map_or(0, |before| ends[before]);
                (epoch as u64, n_done - begin)
            }
        }
    }

    /// Epochs behind `n_done` steps, with the share of one that is not done.
    pub fn after(&self, n_done: u64) -> f64 {
        match &self.lengths {
            Lengths::Equal(of_each) => n_done as f64 / (*of_each).max(1) as f64,
            Lengths::Ends(ends) => {
                let (epoch, within) = self.place(n_done);
                let share = ends
                    .get(epoch as usize)
                    .map_or(0.0, |end| within as f64 / (end - (n_done - within)) as f64);
                epoch as f64 + share
            }
        }
    }

    /// Whether an epoch ends with step `n_done`.
    pub fn is_end(&self, n_done: u64) -> bool {
        n_done > 0 && self.place(n_done).1 == 0
    }

    /// Steps before an epoch; None where they are too many to count, or the run has no such epoch.
    pub fn begin(&self, epoch: u64) -> Option<u64> {
        match (&self.lengths, epoch) {
            (Lengths::Equal(of_each), epoch) => epoch.checked_mul(*of_each),
            (Lengths::Ends(_), 0) => Some(0),
            (Lengths::Ends(ends), epoch) => ends.get(usize::try_from(epoch).ok()? - 1).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_of_one_length() {
        let epochs = Epochs { lengths: Lengths::Equal(4), n_steps: 10 };
        let places: Vec<_> = [0, 3, 4, 9].map(|n| epochs.place(n)).to_vec();
        assert_eq!(places, [(0, 0), (0, 3), (1, 0), (2, 1)]);
        assert_eq!((epochs.after(3), epochs.after(10)), (0.75, 2.5));
        assert_eq!([0, 3, 4, 8].map(|n| epochs.is_end(n)), [false, false, true, true]);
        assert_eq!(
            (epochs.begin(0), epochs.begin(3), epochs.begin(u64::MAX)),
            (Some(0), Some(12), None)
        );
    }

    #[test]
    fn epochs_of_several_lengths() {
        let epochs = Epochs { lengths: Lengths::Ends(vec![4, 7, 12]), n_steps: 12 };
        let places: Vec<_> = [0, 3, 4, 6, 7, 11, 12].map(|n| epochs.place(n)).to_vec();
        assert_eq!(places, [(0, 0), (0, 3), (1, 0), (1, 2), (2, 0), (2, 4), (3, 0)]);
        let after = [0, 2, 4, 6, 7, 12].map(|n| epochs.after(n));
        assert_eq!(after, [0.0, 0.5, 1.0, 1.0 + 2.0 / 3.0, 2.0, 3.0]);
        assert_eq!(
            [0, 3, 4, 7, 8, 12].map(|n| epochs.is_end(n)),
            [false, false, true, true, false, true]
        );
        let begins = [0, 1, 2, 3, 4].map(|epoch| epochs.begin(epoch));
        assert_eq!(begins, [Some(0), Some(4), Some(7), Some(12), None]);
    }
}
