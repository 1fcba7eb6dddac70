//! What a probe minimises: cross-entropy with a ridge, over standardised features.

use rayon::prelude::*;

use crate::sums::dot;

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

/// `Σ_n -log softmax(W x_n + b)[y_n] + ½ ‖W‖²`, as scikit-learn's LogisticRegression with C = 1 and several labels.
pub(super) struct Objective {
    /// `[N, D]`, scaled.
    pub features: Vec<f64>,
    pub cols: usize,
    /// The class of each row, below `n_classes`.
    pub classes: Vec<usize>,
    pub n_classes: usize,
}

impl Objective {
    /// Parameters of a class: its row of W, and its intercept behind it.
    pub(super) fn stride(&self) -> usize {
        self.cols + 1
    }

    /// Value and gradient at `point`, `[n_classes, D + 1]`.
    pub(super) fn at(&self, point: &[f64]) -> (f64, Vec<f64>) {
        let rows = self.features.par_chunks(PIECE * self.cols);
        let pieces: Vec<(f64, Vec<f64>)> = rows
            .zip(self.classes.par_chunks(PIECE))
            .map(|(features, classes)| self.piece(point, features, classes))
            .collect();
        let (mut value, mut gradient) = (0.0, vec![0.0; point.len()]);
        for (own, part) in pieces {
            value += own;
            gradient.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        for (weights, gradient) in
            point.chunks(self.stride()).zip(gradient.chunks_mut(self.stride()))
        {
            let weights = &weights[..self.cols];
            value += 0.5 * dot(weights, weights);
            gradient.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += weight);
        }
        (value, gradient)
    }

    fn piece(&self, point: &[f64], features: &[f64], classes: &[usize]) -> (f64, Vec<f64>) {
        let (mut value, mut gradient) = (0.0, vec![0.0; point.len()]);
        for (x, &class) in features.chunks_exact(self.cols).zip(classes) {
            let mut scores = scores(point, x);
            let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|score| (score - highest).exp()).sum();
            let log_sum = highest + sum.ln();
            value += log_sum - scores[class];
            scores.iter_mut().for_each(|score| *score = (*score - log_sum).exp());
            scores[class] -= 1.0;
            for (slope, row) in scores.iter().zip(gradient.chunks_mut(self.stride())) {
                row.iter_mut().zip(x).for_each(|(sum, x)| *sum += slope * x);
                row[self.cols] += slope;
            }
        }
        (value, gradient)
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
        let features = normal(1, 0, n * cols, 1.0).into_iter().map(f64::from).collect();
        let classes = (0..n).map(|row| row * row % n_classes).collect();
        let objective = Objective { features, cols, classes, n_classes };
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

    #[test]
    fn threads_change_no_bit() {
        let (n, cols) = (5 * PIECE + 3, 17);
        let features: Vec<f64> = normal(3, 0, n * cols, 1.0).into_iter().map(f64::from).collect();
        let point: Vec<f64> =
            normal(4, 0, 4 * (cols + 1), 1.0).into_iter().map(f64::from).collect();
        let classes: Vec<usize> = (0..n).map(|row| row % 4).collect();
        let objective = Objective { features, cols, classes, n_classes: 4 };
        let on = |n_threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            let (value, gradient) = pool.install(|| objective.at(&point));
            let bits: Vec<u64> = gradient.into_iter().map(f64::to_bits).collect();
            (value.to_bits(), bits)
        };
        assert_eq!(on(1), on(2));
        assert_eq!(on(1), on(3));
    }
}
