//! Filling caches: every row of both splits goes through the frozen part once, for as many depths as one likes.

use super::{Starts, n_rows, n_rows_of};
use crate::batch::Batch;
use crate::data::{Corpus, Split};
use crate::model::Group;
use crate::plan::prefix::Prefix;
use crate::plan::{Capacity, StepOptions};
use crate::session::Session;
use crate::{Error, Result};

/// Sequences of a batch that fills one cache: it is a forward pass alone and may be large.
const SEQUENCES_OF_ONE: usize = 64;
/// Sequences of a batch that fills several, whose rows are all kept at once.
const SEQUENCES_OF_SEVERAL: usize = 16;

/// The examples of a split, cut into the batches in which `n_depths` caches are filled: texts of a length together.
pub fn fill_batches(split: &Split, n_depths: usize) -> Vec<Vec<usize>> {
    let all: Vec<usize> = (0..split.len()).collect();
    let n_sequences = if n_depths == 1 { SEQUENCES_OF_ONE } else { SEQUENCES_OF_SEVERAL };
    split.by_length(&all).chunks(n_sequences).map(<[usize]>::to_vec).collect()
}

/// Runs every row through the prefixes, all in one pass; gives the values of each, `[rows, cols]`. `progress` is told of
/// examples done.
///
/// # Errors
/// Values that are not finite, a device that lacks the memory or fails, what `progress` ends it with.
pub(super) fn fill(
    session: &mut Session,
    corpus: &Corpus,
    prefixes: &[Prefix],
    step: &StepOptions,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<Vec<f32>>> {
    let above: Vec<Group> = prefixes.iter().map(|prefix| prefix.above).collect();
    let starts: Vec<Starts> =
        prefixes.iter().map(|prefix| Starts::new(corpus, prefix.rows)).collect();
    let mut all: Vec<Vec<f32>> = (prefixes.iter())
        .map(|prefix| vec![f32::NAN; n_rows(corpus, prefix.rows) * prefix.cols])
        .collect();
    let plain = StepOptions::plain(step.capacity, step.compute);
    // Training rows go through the training step's prefix, whose dropout its own pruning removes here as there;
    // evaluation knows no dropout. It makes a difference where activations are narrower than the residual stream:
    // a dropout behind the embeddings leaves a narrow stream.
    for (split, options, is_train) in [(&corpus.train, step, true), (&corpus.eval, &plain, false)] {
        if split.is_empty() {
            continue;
        }
        let examples = fill_batches(split, prefixes.len());
        let batches: Vec<Batch> =
            examples.iter().map(|examples| corpus.pack(split, examples)).collect();
        let options = StepOptions { capacity: Capacity::of(&batches), ..*options };
        let compiled = session.compile_prefixes(&above, &options)?;
        for (batch, examples) in batches.iter().zip(&examples) {
            let found = session.all_prefix_rows(&compiled, batch)?;
            for (at, (rows, prefix)) in found.iter().zip(prefixes).enumerate() {
                let starts = if is_train { &starts[at].train } else { &starts[at].eval };
                let mut rest = rows.as_slice();
                for &example in examples {
                    let n_values = n_rows_of(split, example, prefix.rows) * prefix.cols;
                    let (own, behind) = rest.split_at(n_values);
                    all[at][starts[example] * prefix.cols..][..n_values].copy_from_slice(own);
                    rest = behind;
                }
            }
            progress(examples.len())?;
        }
    }
    for (values, prefix) in all.iter().zip(prefixes) {
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let (value, row) = (values[at], at / prefix.cols);
            return Err(Error::Run(format!("the frozen part gives {value} in row {row}")));
        }
    }
    Ok(all)
}
