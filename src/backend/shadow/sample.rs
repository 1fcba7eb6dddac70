//! Large products and attentions, whose reference would take minutes: only some rows and columns, and one or two heads
//! of each sequence, are computed again and compared.
//!
//! Of a product these are the first and last row and column of every stretch of 64, of which the sides of all tiles are
//! multiples; all that the last two stretches of 128 hold, of which one at least is whole; and some drawn at random.

use std::ops::Range;

use rayon::prelude::*;

use crate::Result;
use crate::backend::StepState;
use crate::backend::dropout::Mask;
use crate::backend::host::Ops;
use crate::backend::host::ops::{AttentionGradients, AttentionSaved, AttentionShape, Qkv};
use crate::backend::reference::Reference;
use crate::batch::Batch;
use crate::philox::{key_of, philox};
use crate::plan::op::Dropout;
use crate::plan::{BufId, Op, Plan};

/// Values of one output that are compared: where they stand in it, and what they should be.
pub(super) struct Sample {
    pub output: BufId,
    pub places: Vec<usize>,
    pub expected: Vec<f32>,
}

/// What an op has read, `[rows, cols]`.
struct Matrix {
    values: Vec<f32>,
    cols: usize,
}

impl Matrix {
    fn n_rows(&self) -> usize {
        self.values.len() / self.cols
    }

    /// The values at these rows and columns, row by row.
    fn at(&self, rows: &[usize], cols: &[usize]) -> Vec<f64> {
        let row = |&row: &usize| {
            let values = &self.values[row * self.cols..][..self.cols];
            cols.iter().map(|&col| f64::from(values[col]))
        };
        rows.iter().flat_map(row).collect()
    }

    /// Whole rows, one after the other.
    fn rows(&self, rows: &[usize]) -> Vec<f64> {
        let row = |&row: &usize| self.values[row * self.cols..][..self.cols].iter();
        rows.iter().flat_map(row).copied().map(f64::from).collect()
    }

    /// Whole columns, one after the other.
    fn columns(&self, cols: &[usize]) -> Vec<f64> {
        let column = |&col: &usize| self.values[col..].iter().step_by(self.cols);
        cols.iter().flat_map(column).copied().map(f64::from).collect()
    }

    /// The columns of one head for the tokens of one sequence.
    fn head(&self, tokens: &Range<usize>, cols: &Range<usize>) -> Vec<f64> {
        let row = |token: usize| &self.values[token * self.cols..][cols.clone()];
        tokens.clone().flat_map(row).copied().map(f64::from).collect()
    }
}

/// What sampling needs to know of a step.
pub(super) struct Sampler<'a> {
    pub plan: &'a Plan,
    pub batch: &'a Batch,
    pub state: &'a StepState,
}

impl Sampler<'_> {
    /// The samples of all outputs of an op; None where the op is one that is cheap to compute again as a whole. `read`
    /// gives what a buffer holds on the device.
    pub fn samples(
        &self,
        op: &Op,
        read: &mut dyn FnMut(BufId) -> Result<Vec<f32>>,
    ) -> Result<Option<Vec<Sample>>> {
        let mut matrix = |buf: BufId| -> Result<Matrix> {
            let matrix = Matrix { values: read(buf)?, cols: self.plan.buffer(buf).cols };
            Ok(matrix)
        };
        let samples = match op {
            Op::GemmFwd { x, parts } => {
                let x = matrix(*x)?;
                let mut samples = Vec::new();
                for part in parts {
                    let (weight, bias) = (matrix(part.weight)?, matrix(part.bias)?);
                    let grid = Grid::new(x.n_rows(), weight.n_rows());
                    samples.push(grid.sample(part.out, &grid.linear(&x, &weight, &bias)));
                }
                samples
            }
            Op::GemmGeluFwd { x, weight, bias, pre, out } => {
                let (x, weight, bias) = (matrix(*x)?, matrix(*weight)?, matrix(*bias)?);
                let grid = Grid::new(x.n_rows(), weight.n_rows());
                let sums = grid.linear(&x, &weight, &bias);
                let mut activations = vec![f64::NAN; sums.len()];
                Reference.gelu_fwd(&sums, &mut activations);
                let mut samples = vec![grid.sample(*out, &activations)];
                samples.extend(pre.map(|pre| grid.sample(pre, &sums)));
                samples
            }
            Op::GemmDgrad { parts, dx } => {
                let mut grid = Grid::default();
                let mut sums = Vec::new();
                for part in parts {
                    let (dout, weight) = (matrix(part.dout)?, matrix(part.weight)?);
                    grid = Grid::new(dout.n_rows(), weight.cols);
                    let more = grid.gradient(&dout, &weight);
                    sums.resize(more.len(), 0.0);
                    sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
                }
                vec![grid.sample(*dx, &sums)]
            }
            Op::GemmGeluDgrad { dout, weight, pre, dx } => {
                let (dout, weight, pre) = (matrix(*dout)?, matrix(*weight)?, matrix(*pre)?);
                let grid = Grid::new(dout.n_rows(), weight.cols);
                let sums = grid.gradient(&dout, &weight);
                let mut gradient = vec![f64::NAN; sums.len()];
                Reference.gelu_bwd(&pre.at(&grid.rows, &grid.cols), &sums, &mut gradient);
                vec![grid.sample(*dx, &gradient)]
            }
            Op::GemmWgrad { x, parts } => {
                let x = matrix(*x)?;
                let mut samples = Vec::new();
                for part in parts {
                    let dout = matrix(part.dout)?;
                    let grid = Grid::new(dout.cols, x.cols);
                    let columns = dout.columns(&grid.rows);
                    let sums = dot_products(&columns, &x.columns(&grid.cols), x.n_rows());
                    samples.push(grid.sample(part.dweight, &sums));
                    samples.extend(part.dbias.map(|dbias| {
                        Sample {
                            output: dbias,
                            places: grid.rows.clone(),
                            expected: columns
                                .chunks(x.n_rows())
                                .map(|column| column.iter().sum::<f64>() as f32)
                                .collect(),
                        }
                    }));
                }
                samples
            }
            Op::AttentionFwd { q, k, v, n_heads, dropout, out, lse, .. } => {
                let [q, k, v] = [matrix(*q)?, matrix(*k)?, matrix(*v)?];
                let heads = self.heads(*n_heads, q.cols);
                let mut samples = vec![heads.empty_sample(*out)];
                samples.extend(lse.map(|lse| heads.empty_sample(lse)));
                for head in &heads.chosen {
                    let [q, k, v] = [&q, &k, &v].map(|m| m.head(&head.tokens, &head.cols));
                    let qkv = Qkv { q: &q, k: &k, v: &v };
                    let ends = head.cu_seqlens();
                    let shape = self.head_shape(&heads, head, &ends, *dropout);
                    let mut out = vec![f64::NAN; q.len()];
                    let mut lse = vec![f64::NAN; head.tokens.len()];
                    Reference.attention_fwd(&qkv, &shape, &mut out, Some(&mut lse));
                    samples[0].extend(heads.places(head), &out);
                    if let Some(sample) = samples.get_mut(1) {
                        sample.extend(heads.lse_places(head), &lse);
                    }
                }
                samples
            }
            Op::AttentionBwd { dout, lse, q, k, v, n_heads, dropout, dq, dk, dv, .. } => {
                let needs_scores = dq.is_some() || dk.is_some();
                let [dout, lse, q, k] = [matrix(*dout)?, matrix(*lse)?, matrix(*q)?, matrix(*k)?];
                let v = if needs_scores { Some(matrix(*v)?) } else { None };
                let heads = self.heads(*n_heads, q.cols);
                let outputs: Vec<BufId> = [dq, dk, dv].into_iter().copied().flatten().collect();
                let mut samples: Vec<Sample> =
                    outputs.iter().map(|output| heads.empty_sample(*output)).collect();
                for head in &heads.chosen {
                    let of = |matrix: &Matrix| matrix.head(&head.tokens, &head.cols);
                    let own_lse = lse.head(&head.tokens, &(head.number..head.number + 1));
                    let (dout, q, k, v) = (of(&dout), of(&q), of(&k), v.as_ref().map(of));
                    let v = v.as_deref();
                    let saved = AttentionSaved { dout: &dout, lse: &own_lse, q: &q, k: &k, v };
                    let ends = head.cu_seqlens();
                    let shape = self.head_shape(&heads, head, &ends, *dropout);
                    let gradient = |wanted: &Option<BufId>| wanted.map(|_| vec![f64::NAN; q.len()]);
                    let [mut own_dq, mut own_dk, mut own_dv] = [dq, dk, dv].map(gradient);
                    let to = AttentionGradients {
                        dq: own_dq.as_deref_mut(),
                        dk: own_dk.as_deref_mut(),
                        dv: own_dv.as_deref_mut(),
                    };
                    Reference.attention_bwd(&saved, &shape, to);
                    let gradients = [own_dq, own_dk, own_dv].into_iter().flatten();
                    for (sample, gradient) in samples.iter_mut().zip(gradients) {
                        sample.extend(heads.places(head), &gradient);
                    }
                }
                samples
            }
            _ => return Ok(None),
        };
        Ok(Some(samples))
    }

    /// One head of every sequence, another each time; of the longest sequence and the last also the last head.
    fn heads(&self, n_heads: usize, width: usize) -> Heads {
        let size = width / n_heads;
        let lengths: Vec<usize> = self.batch.lengths().collect();
        let longest = (0..lengths.len()).max_by_key(|&sequence| lengths[sequence]);
        let mut chosen = Vec::new();
        for (sequence, ends) in self.batch.cu_seqlens.windows(2).enumerate() {
            let mut numbers = vec![sequence % n_heads];
            if Some(sequence) == longest || sequence + 1 == lengths.len() {
                numbers.push(n_heads - 1);
                numbers.dedup();
            }
            chosen.extend(numbers.into_iter().map(|number| Head {
                sequence,
                number,
                tokens: ends[0] as usize..ends[1] as usize,
                cols: number * size..(number + 1) * size,
            }));
        }
        Heads { n_heads, width, chosen }
    }

    /// The shape of an attention of one head over one sequence, with the masks of that head and sequence.
    fn head_shape<'a>(
        &self,
        heads: &Heads,
        head: &Head,
        cu_seqlens: &'a [i32],
        dropout: Option<Dropout>,
    ) -> AttentionShape<'a> {
        let mask =
            |dropout| Mask::new(dropout, self.state.seed, self.state.step).from_head(head.number);
        let width = heads.width / heads.n_heads;
        AttentionShape { cu_seqlens, n_heads: 1, width, mask: dropout.map(mask) }
    }
}

/// Rows and columns of a product's output.
#[derive(Default)]
struct Grid {
    n_cols: usize,
    rows: Vec<usize>,
    cols: Vec<usize>,
}

impl Grid {
    fn new(n_rows: usize, n_cols: usize) -> Self {
        Grid { n_cols, rows: chosen(n_rows, 0), cols: chosen(n_cols, 1) }
    }

    /// `x · weightᵀ + bias`.
    fn linear(&self, x: &Matrix, weight: &Matrix, bias: &Matrix) -> Vec<f64> {
        let mut sums = dot_products(&x.rows(&self.rows), &weight.rows(&self.cols), x.cols);
        for row in sums.chunks_mut(self.cols.len()) {
            for (sum, &col) in row.iter_mut().zip(&self.cols) {
                *sum += f64::from(bias.values[col]);
            }
        }
        sums
    }

    /// `dout · weight`.
    fn gradient(&self, dout: &Matrix, weight: &Matrix) -> Vec<f64> {
        dot_products(&dout.rows(&self.rows), &weight.columns(&self.cols), dout.cols)
    }

    fn sample(&self, output: BufId, expected: &[f64]) -> Sample {
        let place = |&row: &usize| self.cols.iter().map(move |col| row * self.n_cols + col);
        Sample {
            output,
            places: self.rows.iter().flat_map(place).collect(),
            expected: expected.iter().map(|&value| value as f32).collect(),
        }
    }
}

/// Products of each of the rows of `a` with each of `b`, both of `k` values, row by row.
fn dot_products(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    a.par_chunks(k).flat_map_iter(|row| b.chunks(k).map(move |other| dot(row, other))).collect()
}

/// The rows (stream 0) or columns (stream 1) of `n` that are compared, in order.
fn chosen(n: usize, stream: u32) -> Vec<usize> {
    /// Sides of all tiles are multiples of it.
    const STRETCH: usize = 64;
    /// The side of the largest tile.
    const TILE: usize = 128;
    const N_RANDOM: u32 = 32;
    let last_two = n.saturating_sub(n % TILE + TILE);
    let edges = (0..n).step_by(STRETCH).flat_map(|first| [first, (first + STRETCH - 1).min(n - 1)]);
    let random = (0..N_RANDOM).map(|draw| philox(key_of(11), [draw, stream, 0, 0])[0] as usize % n);
    let mut all: Vec<usize> = edges.chain(last_two..n).chain(random).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// One head of one sequence.
struct Head {
    sequence: usize,
    number: usize,
    tokens: Range<usize>,
    cols: Range<usize>,
}

impl Head {
    /// Ends of sequences of which all before this one are empty, so that it keeps its number.
    fn cu_seqlens(&self) -> Vec<i32> {
        let mut ends = vec![0; self.sequence + 1];
        ends.push(self.tokens.len() as i32);
        ends
    }
}

/// The heads of an attention that are compared.
struct Heads {
    n_heads: usize,
    width: usize,
    chosen: Vec<Head>,
}

impl Heads {
    fn empty_sample(&self, output: BufId) -> Sample {
        Sample { output, places: Vec::new(), expected: Vec::new() }
    }

    /// Where the values of a head stand in a matrix as wide as all heads.
    fn places(&self, head: &Head) -> Vec<usize> {
        let row = |token: usize| head.cols.clone().map(move |col| token * self.width + col);
        head.tokens.clone().flat_map(row).collect()
    }

    /// Where its logarithms of sums stand.
    fn lse_places(&self, head: &Head) -> Vec<usize> {
        head.tokens.clone().map(|token| token * self.n_heads + head.number).collect()
    }
}

impl Sample {
    fn extend(&mut self, places: Vec<usize>, expected: &[f64]) {
        self.places.extend(places);
        self.expected.extend(expected.iter().map(|&value| value as f32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_and_the_last_tiles_are_among_what_is_chosen() {
        for n in [1, 63, 64, 65, 128, 129, 768, 2893] {
            let rows = chosen(n, 0);
            assert!(rows.windows(2).all(|pair| pair[0] < pair[1]) && rows.iter().all(|&r| r < n));
            let has = |row: usize| rows.binary_search(&row).is_ok();
            assert!((0..n).filter(|row| row % 64 == 0 || row % 64 == 63).all(has), "{n}");
            // The last tile, however few rows it has, and the one before it.
            assert!((n.saturating_sub(129)..n).all(has), "{n}");
        }
        assert_ne!(chosen(2893, 0), chosen(2893, 1));
        assert!(chosen(2893, 0).len() < 450);
    }
}
