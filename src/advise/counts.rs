//! What the batches of a training hold, which is all that predictions need to know of them.

use crate::Result;
use crate::cache::fill_batches;
use crate::data::{Corpus, Split};
use crate::plan::Counts;
use crate::train::{Evaluator, TrainOptions};

fn of_batches(corpus: &Corpus, split: &Split, batches: &[Vec<usize>]) -> Vec<Counts> {
    batches.iter().map(|examples| Counts::of(&corpus.pack(split, examples))).collect()
}

/// The batches of the first epoch's steps, of no more than `most` of them.
///
/// # Errors
/// A text that alone exceeds a limit of tokens.
pub(super) fn epoch(
    corpus: &Corpus,
    options: &TrainOptions,
    most: usize,
) -> Result<Vec<Vec<Counts>>> {
    let steps = options.epoch(corpus, 0)?;
    let taken = steps.iter().take(most);
    Ok(taken.map(|batches| of_batches(corpus, &corpus.train, batches)).collect())
}

/// The batches of an evaluation of all rows.
///
/// # Errors
/// As [`Evaluator::batches`].
pub(super) fn evaluation(corpus: &Corpus) -> Result<Vec<Counts>> {
    let rows = (0..corpus.eval.len()).collect();
    let batches = Evaluator::batches(corpus, &corpus.eval, rows)?;
    Ok(of_batches(corpus, &corpus.eval, &batches))
}

/// The batches that fill so many caches at once: of training rows, and of evaluation rows.
pub(super) fn fill(corpus: &Corpus, n_depths: usize) -> [Vec<Counts>; 2] {
    [&corpus.train, &corpus.eval]
        .map(|split| of_batches(corpus, split, &fill_batches(split, n_depths)))
}
