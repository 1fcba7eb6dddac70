//! What a probe minimises: cross-entropy with a ridge, over standardised features.

use nalgebra::Cholesky;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::lanes::{BLOCK, Product, add_rows, dots, pad, padded, rows_at, unpad};
use crate::sums::{dot, gram};

/// Rows whose share of a sum is made in one go. The pieces are the same for every number of threads, and so are the
/// sums.
const PIECE: usize = 128;

/// Shift and scale of each column, by the training rows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scaling {
    mean: Vec<f64>,
    /// 0 for a column that does not vary: it says nothing, and stays at 0.
    inverse_deviation: Vec<f64>,
}

impl Scaling {
    /// The scaling that gives the columns of `features`, `[N, D]`, mean 0 and standard deviation 1.
    pub(super) fn of(features: &[f32], cols: usize) -> Self {
        let n = (features.len() / cols) as f64;
        let column = |at: usize| features[at..].iter().step_by(cols).map(|x| f64::from(*x));
        let mean: Vec<f64> = (0..cols).map(|at| column(at).sum::<f64>() / n).collect();
        let inverse = |at: usize| {
            // A mean is rounded: only equality says that nothing varies.
            let first = f64::from(features[at]);
            if column(at).all(|x| x == first) {
                return 0.0;
            }
            let variance = column(at).map(|x| (x - mean[at]).powi(2)).sum::<f64>() / n;
            1.0 / variance.sqrt()
        };
        let inverse_deviation = (0..cols).map(inverse).collect();
        Self { mean, inverse_deviation }
    }

    /// The features scaled, `[N, D]`.
    pub(super) fn apply(&self, features: &[f32]) -> Vec<f64> {
        let row = |row: &[f32]| -> Vec<f64> {
            let columns = self.mean.iter().zip(&self.inverse_deviation);
            row.iter().zip(columns).map(|(x, (mean, by))| (f64::from(*x) - mean) * by).collect()
        };
        features.chunks_exact(self.mean.len()).flat_map(row).collect()
    }
}

/// `Σ_n -log softmax(W x_n + b)[y_n] + ½ ridge ‖W‖²`, as scikit-learn's LogisticRegression with C = 1 / ridge and
/// several labels.
pub(super) struct Objective {
    /// `[N, D + 1]`, padded: scaled, and a 1 for the intercept behind them.
    rows: Vec<f64>,
    /// The class of each row, below `n_classes`.
    classes: Vec<usize>,
    n_classes: usize,
    /// D + 1, the parameters of a class: its row of W, and its intercept behind it.
    stride: usize,
    ridge: f64,
    /// Whether all threads take part in a sum, or the calling one makes it.
    in_parallel: bool,
}

impl Objective {
    /// The objective of scaled `features`, `[N, D]`, and their classes.
    pub(super) fn new(
        features: &[f64],
        cols: usize,
        classes: Vec<usize>,
        n_classes: usize,
        ridge: f64,
        in_parallel: bool,
    ) -> Self {
        Self {
            rows: with_ones(features, cols),
            classes,
            n_classes,
            stride: cols + 1,
            ridge,
            in_parallel,
        }
    }

    /// Parameters in all.
    pub(super) fn n_parameters(&self) -> usize {
        self.n_classes * self.stride
    }

    /// Value and gradient at `point`, `[n_classes, D + 1]`.
    pub(super) fn at(&self, point: &[f64]) -> (f64, Vec<f64>) {
        let (weights, stride) = (pad(point, self.stride), padded(self.stride));
        let piece = |(rows, classes): (&[f64], &[usize])| {
            let mut gradient = vec![0.0; weights.len()];
            let weights = &weights;
            let sums = Sums { rows, classes, weights, stride, gradient: &mut gradient };
            (pulp::Arch::new().dispatch(sums), gradient)
        };
        let pieces: Vec<(f64, Vec<f64>)> = if self.in_parallel {
            let rows = self.rows.par_chunks(PIECE * stride);
            rows.zip(self.classes.par_chunks(PIECE)).map(piece).collect()
        } else {
            let rows = self.rows.chunks(PIECE * stride);
            rows.zip(self.classes.chunks(PIECE)).map(piece).collect()
        };
        let (mut value, mut total) = (0.0, vec![0.0; weights.len()]);
        for (own, part) in pieces {
            value += own;
            total.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        let mut gradient = unpad(&total, self.stride);
        let rows = point.chunks(self.stride).zip(gradient.chunks_mut(self.stride));
        for (weights, gradient) in rows {
            let weights = &weights[..self.stride - 1];
            value += 0.5 * self.ridge * dot(weights, weights);
            gradient.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += self.ridge * weight);
        }
        (value, gradient)
    }
}

/// Features `[N, D]`, a 1 behind each row, padded.
fn with_ones(features: &[f64], cols: usize) -> Vec<f64> {
    let rows = features.chunks_exact(cols);
    let rows: Vec<f64> = rows.flat_map(|row| row.iter().copied().chain([1.0])).collect();
    pad(&rows, cols + 1)
}

/// The share of some rows in value (its result) and gradient, ridge apart.
struct Sums<'a> {
    rows: &'a [f64],
    classes: &'a [usize],
    weights: &'a [f64],
    /// The length of a row, and of the weights of a class, with what pads them.
    stride: usize,
    gradient: &'a mut [f64],
}

impl WithSimd for Sums<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let Self { rows, classes, weights, stride, gradient } = self;
        let mut slopes = vec![[0.0; BLOCK]; weights.len() / stride];
        let mut singles = vec![[0.0]; slopes.len()];
        let mut value = 0.0;
        let (blocks, rest) = classes.as_chunks::<BLOCK>();
        for (at, classes) in blocks.iter().enumerate() {
            let rows = rows_at(rows, stride, at * BLOCK);
            value += block(simd, rows, *classes, weights, gradient, &mut slopes);
        }
        for (at, class) in rest.iter().enumerate() {
            let row = rows_at(rows, stride, blocks.len() * BLOCK + at);
            value += block(simd, row, [*class], weights, gradient, &mut singles);
        }
        value
    }
}

/// The share of R rows; `slopes` has room for those of every class.
#[inline(always)]
fn block<S: Simd, const R: usize>(
    simd: S,
    rows: [&[f64]; R],
    classes: [usize; R],
    weights: &[f64],
    gradient: &mut [f64],
    slopes: &mut [[f64; R]],
) -> f64 {
    let stride = rows[0].len();
    for (slopes, weights) in slopes.iter_mut().zip(weights.chunks_exact(stride)) {
        *slopes = dots(simd, rows, weights);
    }
    let mut value = 0.0;
    for (row, class) in classes.into_iter().enumerate() {
        let highest = slopes.iter().map(|of| of[row]).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = slopes.iter().map(|of| (of[row] - highest).exp()).sum();
        let log_sum = highest + sum.ln();
        value += log_sum - slopes[class][row];
        slopes.iter_mut().for_each(|of| of[row] = (of[row] - log_sum).exp());
        slopes[class][row] -= 1.0;
    }
    for (slopes, gradient) in slopes.iter().zip(gradient.chunks_exact_mut(stride)) {
        add_rows(simd, gradient, *slopes, rows);
    }
    value
}

/// A guess of the inverse Hessian: the inverse of `c XᵀX + ridge`, the same for every class.
///
/// Were all labels equally probable on all rows, the Hessian would be `XᵀX` times a constant and the ridge, on all
/// that a gradient may be (its sum over classes is 0); Böhning ("Multinomial logistic regression algorithm", 1992)
/// bounds it by that. Features are standardised and intercepts stand apart.
#[derive(Clone, Debug)]
pub struct Preconditioner {
    /// `[D + 1, D + 1]`, padded.
    inverse: Vec<f64>,
    /// D + 1.
    stride: usize,
    pub(super) ridge: f64,
}

/// c: mean products `p (1 - p)` of probabilities lie about there. Any between 0.02 and 0.25 takes nearly the same
/// number of iterations.
const SPREAD: f64 = 0.1;

impl Preconditioner {
    /// For fits with a ridge above 0 on these rows, `[N, D]`, or on most of them.
    ///
    /// # Panics
    /// For rows that are not finite, or a ridge that is not above 0.
    pub fn of(features: &[f32], cols: usize, ridge: f64) -> Self {
        Self::of_scaled(&Scaling::of(features, cols).apply(features), cols, ridge)
    }

    pub(super) fn of_scaled(features: &[f64], cols: usize, ridge: f64) -> Self {
        let n = features.len() / cols;
        let mut hessian = SPREAD * gram(features, cols);
        (0..cols).for_each(|at| hessian[(at, at)] += ridge);
        let inverse = Cholesky::new(hessian).expect("at least the ridge: positive").inverse();
        let stride = cols + 1;
        let mut rows = vec![0.0; stride * stride];
        for (to, column) in rows.chunks_exact_mut(stride).zip(inverse.column_iter()) {
            to[..cols].copy_from_slice(column.as_slice());
        }
        // Centred columns have no product with the intercept's ones.
        rows[stride * stride - 1] = 1.0 / (SPREAD * n as f64);
        Self { inverse: pad(&rows, stride), stride, ridge }
    }

    /// Its product with a gradient `[n_classes, D + 1]`.
    pub(super) fn apply(&self, gradient: &[f64]) -> Vec<f64> {
        let (vectors, stride) = (pad(gradient, self.stride), padded(self.stride));
        let product = Product { matrix: &self.inverse, vectors: &vectors, stride };
        pulp::Arch::new().dispatch(product)
    }
}

/// The score of each class for one scaled row.
pub(super) fn scores(point: &[f64], x: &[f64]) -> Vec<f64> {
    let score = |row: &[f64]| dot(&row[..x.len()], x) + row[x.len()];
    point.chunks_exact(x.len() + 1).map(score).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::normal;

    #[test]
    fn scaled_columns() {
        let features = [1.0, 7.0, 0.1, 3.0, 7.0, 0.1, 5.0, 7.0, 0.1];
        let scaled = Scaling::of(&features, 3).apply(&features);
        // The deviation of 1, 3, 5 is √(8/3).
        let end = 2.0 / (8.0_f64 / 3.0).sqrt();
        let expected = [-end, 0.0, 0.0, 0.0, 0.0, 0.0, end, 0.0, 0.0];
        assert!(scaled.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-15), "{scaled:?}");
    }

    /// Central differences: their error is the third derivative, of order 1, times the square of the distance.
    #[test]
    fn the_gradient_is_that_of_the_value() {
        let (n, cols, n_classes) = (2 * PIECE + 5, 4, 3);
        let features: Vec<f64> = normal(1, 0, n * cols, 1.0).into_iter().map(f64::from).collect();
        let classes = (0..n).map(|row| row * row % n_classes).collect();
        let objective = Objective::new(&features, cols, classes, n_classes, 3.0, true);
        let point: Vec<f64> =
            normal(2, 0, n_classes * (cols + 1), 1.0).into_iter().map(f64::from).collect();
        let (_, gradient) = objective.at(&point);
        let distance = 1e-4;
        for at in 0..point.len() {
            let value = |by: f64| {
                let mut other = point.clone();
                other[at] += by;
                objective.at(&other).0
            };
            let slope = (value(distance) - value(-distance)) / (2.0 * distance);
            let error = (slope - gradient[at]).abs();
            assert!(error <= 1e-5 * gradient[at].abs().max(1.0), "{at}: {slope} {}", gradient[at]);
        }
    }

    /// It is the inverse of what it says.
    #[test]
    fn a_preconditioner_of_few_columns() {
        let (n, cols) = (9, 3);
        let features = normal(5, 0, n * cols, 2.0);
        let scaled = Scaling::of(&features, cols).apply(&features);
        let found = Preconditioner::of(&features, cols, 2.0).apply(&[1.0, -2.0, 0.5, 3.0]);
        let hessian = SPREAD * gram(&scaled, cols);
        for row in 0..cols {
            let product: f64 = (0..cols).map(|col| hessian[(row, col)] * found[col]).sum();
            let expected = [1.0, -2.0, 0.5][row];
            assert!((product + 2.0 * found[row] - expected).abs() <= 1e-12, "{found:?}");
        }
        assert!((found[3] - 3.0 / (SPREAD * n as f64)).abs() <= 1e-12, "{found:?}");
    }

    #[test]
    fn threads_change_no_bit() {
        let (n, cols) = (5 * PIECE + 3, 17);
        let features: Vec<f64> = normal(3, 0, n * cols, 1.0).into_iter().map(f64::from).collect();
        let point: Vec<f64> =
            normal(4, 0, 4 * (cols + 1), 1.0).into_iter().map(f64::from).collect();
        let classes: Vec<usize> = (0..n).map(|row| row % 4).collect();
        let mut objective = Objective::new(&features, cols, classes, 4, 1.0, true);
        let bits = |(value, gradient): (f64, Vec<f64>)| {
            let bits: Vec<u64> = gradient.into_iter().map(f64::to_bits).collect();
            (value.to_bits(), bits)
        };
        let on = |n_threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            bits(pool.install(|| objective.at(&point)))
        };
        let on_one = on(1);
        assert_eq!(on_one, on(2));
        assert_eq!(on_one, on(3));
        objective.in_parallel = false;
        assert_eq!(on_one, bits(objective.at(&point)));
    }
}
