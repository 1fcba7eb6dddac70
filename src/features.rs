//! Vectors of texts: what the heads read, and what lies behind the embeddings and every layer, as the mean over the
//! tokens and as the first token's.

use crate::batch::Batch;
use crate::data::{Corpus, Split};
use crate::model::Group;
use crate::plan::{Capacity, StepOptions};
use crate::session::Session;
use crate::{Error, Result};

/// One vector a text, `[N, D]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    pub values: Vec<f32>,
    /// D.
    pub cols: usize,
}

impl Features {
    fn unset(n: usize, cols: usize) -> Self {
        Self { values: vec![f32::NAN; n * cols], cols }
    }

    fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.cols..(row + 1) * self.cols]
    }
}

/// Sequences of a batch of which pooled vectors are kept: a forward pass alone may be large.
const POOLED_SEQUENCES: usize = 64;
/// Sequences of a batch of which the hidden states of every layer are kept at once.
const HIDDEN_SEQUENCES: usize = 16;

/// The pooled vectors of some examples of a split of any corpus, in the order in which they are given, without
/// dropout.
///
/// # Errors
/// When the device lacks the memory, or fails.
pub fn pooled(
    session: &mut Session,
    corpus: &Corpus,
    split: &Split,
    examples: &[usize],
) -> Result<Features> {
    let cols = session.network().config.hidden_size;
    let mut features = Features::unset(examples.len(), cols);
    let (batches, options) = batches(session, corpus, split, examples, POOLED_SEQUENCES);
    // What the first head reads, dropout apart, is what all of them do.
    let step = session.compile_prefix(Group::Head(0), &options)?;
    for (places, batch) in &batches {
        let rows = session.prefix_rows(&step, batch)?;
        for (row, place) in rows.chunks_exact(cols).zip(places) {
            features.row_mut(*place).copy_from_slice(row);
        }
    }
    Ok(features)
}

/// What one depth of the network says of texts, read in two ways.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerVectors {
    /// The mean over all tokens of a text.
    pub mean: Features,
    /// The vector of its first token, `[CLS]` or `<s>`.
    pub cls: Features,
}

/// The mean over its tokens of every hidden state of some examples of a split of any corpus: behind the embeddings,
/// then behind each layer, L + 1 in all, without dropout.
///
/// # Errors
/// As [`pooled`].
pub fn layer_means(
    session: &mut Session,
    corpus: &Corpus,
    split: &Split,
    examples: &[usize],
) -> Result<Vec<Features>> {
    let vectors = hidden_vectors(session, corpus, split, examples, |_| {})?;
    Ok(vectors.into_iter().map(|vectors| vectors.mean).collect())
}

/// As [`layer_means`], with the vector of the first token beside every mean; `progress` is told of examples done.
///
/// # Errors
/// As [`pooled`], and a vector that is not finite, named by its layer and example.
pub fn layer_vectors(
    session: &mut Session,
    corpus: &Corpus,
    split: &Split,
    examples: &[usize],
    progress: impl Fn(usize),
) -> Result<Vec<LayerVectors>> {
    let vectors = hidden_vectors(session, corpus, split, examples, progress)?;
    for (layer, vectors) in vectors.iter().enumerate() {
        check_finite(layer, vectors, examples)?;
    }
    Ok(vectors)
}

fn hidden_vectors(
    session: &mut Session,
    corpus: &Corpus,
    split: &Split,
    examples: &[usize],
    progress: impl Fn(usize),
) -> Result<Vec<LayerVectors>> {
    let (cols, n_layers) = (session.network().config.hidden_size, session.network().layers.len());
    let unset = || Features::unset(examples.len(), cols);
    let mut vectors = vec![LayerVectors { mean: unset(), cls: unset() }; n_layers + 1];
    let (batches, options) = batches(session, corpus, split, examples, HIDDEN_SEQUENCES);
    let step = session.compile_hidden(&options)?;
    for (places, batch) in &batches {
        let states = session.hidden_states(&step, batch)?;
        for (state, vectors) in states.iter().zip(&mut vectors) {
            for (ends, place) in batch.cu_seqlens.windows(2).zip(places) {
                let tokens = &state[ends[0] as usize * cols..ends[1] as usize * cols];
                mean(tokens, vectors.mean.row_mut(*place));
                vectors.cls.row_mut(*place).copy_from_slice(&tokens[..cols]);
            }
        }
        progress(places.len());
    }
    Ok(vectors)
}

/// `examples` are those of the rows of `vectors`, which lie behind `layer` layers.
fn check_finite(layer: usize, vectors: &LayerVectors, examples: &[usize]) -> Result<()> {
    for features in [&vectors.mean, &vectors.cls] {
        if let Some(at) = features.values.iter().position(|value| !value.is_finite()) {
            let (value, example) = (features.values[at], examples[at / features.cols]);
            let depth = match layer {
                0 => "the embeddings give".to_owned(),
                layer => format!("layer {} gives", layer - 1),
            };
            return Err(Error::Run(format!("{depth} {value} for row {example}")));
        }
    }
    Ok(())
}

/// The mean of rows, summed in f64.
fn mean(rows: &[f32], mean: &mut [f32]) {
    let (cols, n) = (mean.len(), rows.len() / mean.len());
    for (col, mean) in mean.iter_mut().enumerate() {
        let sum: f64 = rows[col..].iter().step_by(cols).map(|x| f64::from(*x)).sum();
        *mean = (sum / n as f64) as f32;
    }
}

/// Batches of the examples, each with the places of its sequences among them, and the options of a step for all.
fn batches(
    session: &Session,
    corpus: &Corpus,
    split: &Split,
    examples: &[usize],
    n_sequences: usize,
) -> (Vec<(Vec<usize>, Batch)>, StepOptions) {
    let n_tasks = session.network().heads.len();
    let batch = |places: &[usize]| {
        let examples: Vec<usize> = places.iter().map(|place| examples[*place]).collect();
        (places.to_vec(), corpus.pack_unlabelled(split, &examples, n_tasks))
    };
    let batches: Vec<(Vec<usize>, Batch)> =
        split.by_length(examples).chunks(n_sequences).map(batch).collect();
    let capacity = Capacity::of(batches.iter().map(|(_, batch)| batch));
    let options = StepOptions::plain(capacity, session.compute());
    (batches, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_of_rows() {
        let mut found = [f32::NAN; 2];
        mean(&[1.0, -2.0, 3.0, 4.0, 5.0, 1.0], &mut found);
        assert_eq!(found, [3.0, 1.0]);
    }

    #[test]
    fn vectors_that_are_not_finite_are_named() {
        let features = |values: [f32; 4]| Features { values: values.to_vec(), cols: 2 };
        let whole = features([1.0, 2.0, 3.0, 4.0]);
        let vectors = LayerVectors { mean: whole.clone(), cls: whole.clone() };
        assert!(check_finite(1, &vectors, &[7, 5]).is_ok());
        let broken = features([1.0, 2.0, f32::NAN, 4.0]);
        let vectors = LayerVectors { mean: whole, cls: broken };
        for (layer, depth) in [(0, "the embeddings give"), (2, "layer 1 gives")] {
            let message = check_finite(layer, &vectors, &[7, 5]).unwrap_err().to_string();
            assert!(message.contains(&format!("{depth} NaN for row 5")), "{message}");
        }
    }
}
