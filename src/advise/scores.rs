//! How well features suit a task, without fitting anything to them: LogME and the H-score.
//!
//! Both are made for comparing features on the same rows, here those of different layers: their values mean nothing
//! by themselves. Sums are in f64, on the calling thread alone.

use nalgebra::{Cholesky, DMatrix, Dyn, SymmetricEigen};

use crate::sums::{dot, gram};

/// Why there is no score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoScore {
    #[error("there are no rows")]
    Empty,
    #[error("a feature is not finite")]
    NotFinite,
    #[error("all features are 0")]
    AllZero,
    #[error("no feature varies")]
    Constant,
    #[error("all rows have the same label")]
    OneLabel,
    /// Two rows, of which no shrinkage can be told.
    #[error("the covariance of the features has no inverse")]
    Singular,
    /// Eigenvalues that the search did not find, a result beyond the range of numbers.
    #[error("the features are out of range")]
    OutOfRange,
}

/// Iterations of LogME's fixed point, and the relative change at which it ends before, as published.
const MAX_ITERATIONS: usize = 11;
const TOLERANCE: f64 = 1e-3;
/// What LogME adds to its divisors.
const EPSILON: f64 = 1e-5;

/// Steps of the search for eigenvalues, a multiple of their number: it takes about two each.
const STEPS_PER_EIGENVALUE: usize = 100;

/// What the scores need of features, made once for all tasks of the same rows.
pub struct Scores {
    features: Vec<f64>,
    cols: usize,
    spectrum: Result<Spectrum, NoScore>,
    covariance: Result<Covariance, NoScore>,
}

/// Squares of the singular values above 0, and the vectors of the shorter side.
struct Spectrum {
    squares: Vec<f64>,
    /// A column for each: `[D, k]`, or `[N, k]` where there are fewer rows than columns.
    vectors: DMatrix<f64>,
}

/// The shrunk covariance of the features.
struct Covariance {
    mean: Vec<f64>,
    shrinkage: f64,
    factor: Cholesky<f64, Dyn>,
}

impl Scores {
    /// Of `features`, `[N, D]`.
    ///
    /// It takes the order of `N D²` and `min(N, D)³` operations.
    ///
    /// # Panics
    /// For features that are no rows of `cols`.
    pub fn of(features: &[f32], cols: usize) -> Self {
        assert!(features.len().is_multiple_of(cols), "rows are {cols} wide");
        let features: Vec<f64> = features.iter().map(|x| f64::from(*x)).collect();
        let problem = match features.iter().all(|x| x.is_finite()) {
            _ if features.is_empty() => Some(NoScore::Empty),
            true => None,
            false => Some(NoScore::NotFinite),
        };
        let (spectrum, covariance) = match problem {
            Some(problem) => (Err(problem), Err(problem)),
            None => (Spectrum::of(&features, cols), Covariance::of(&features, cols)),
        };
        Self { features, cols, spectrum, covariance }
    }

    /// LogME (You et al., "LogME: Practical Assessment of Pre-trained Models for Transfer Learning", ICML 2021, arXiv
    /// 2102.11005): the evidence of a Bayesian linear regression on the features as they are, one label against all
    /// others, by row, at the best precisions of weights and noise; the mean over the labels that rows have. More is
    /// better.
    ///
    /// The fixed point is the authors' published one: from 1 and 1, at most 11 iterations, until the quotient of the
    /// precisions changes by no more than 1e-3 of itself. Where the features have a rank k below D, the prior counts
    /// for k weights, as the evidence has it; the published code counts D of them there.
    ///
    /// # Errors
    /// Why there is none.
    ///
    /// # Panics
    /// For another number of classes than rows.
    pub fn logme(&self, classes: &[usize]) -> Result<f64, NoScore> {
        assert_eq!(classes.len() * self.cols, self.features.len(), "a class a row");
        let spectrum = self.spectrum.as_ref().map_err(|problem| *problem)?;
        let labels = labels(classes)?;
        let evidence = |label: &usize| {
            let squares = spectrum.projections(&self.features, self.cols, classes, *label);
            let n_own = classes.iter().filter(|class| *class == label).count();
            evidence(&spectrum.squares, &squares, n_own as f64, classes.len() as f64)
        };
        finite(labels.iter().map(evidence).sum::<f64>() / labels.len() as f64)
    }

    /// The H-score (Bao et al., "An Information-Theoretic Approach to Transferability in Task Transfer Learning", ICIP
    /// 2019): how much of the features' variance lies between labels, each direction by its own measure,
    /// `tr(Σ⁻¹ Σ_z)` with Σ_z the covariance of the labels' means. It is 0 where the means are equal, and never above
    /// the number of labels less 1.
    ///
    /// The covariance is always shrunk as Ledoit and Wolf (2004) have it, and the score with it (Ibrahim et al., "Newer
    /// is not always better", arXiv 2110.06893): `(1 - α) tr(Σ_α⁻¹ Σ_z)` with `Σ_α = (1 - α) Σ + α tr(Σ) / D`. As it
    /// was first published the score cannot be computed of fewer rows than columns, and favours wide features where
    /// there are few more; with many rows α goes to 0.
    ///
    /// # Errors
    /// Why there is none.
    ///
    /// # Panics
    /// For another number of classes than rows.
    pub fn h_score(&self, classes: &[usize]) -> Result<f64, NoScore> {
        assert_eq!(classes.len() * self.cols, self.features.len(), "a class a row");
        let covariance = self.covariance.as_ref().map_err(|problem| *problem)?;
        let mut total = 0.0;
        for label in labels(classes)? {
            let (sum, n_own) = sum_of(&self.features, self.cols, classes, label);
            let apart = sum.iter().zip(&covariance.mean).map(|(sum, mean)| sum / n_own - mean);
            let apart = DMatrix::from_iterator(self.cols, 1, apart);
            let solved = covariance.factor.solve(&apart);
            total += n_own * dot(apart.as_slice(), solved.as_slice());
        }
        finite((1.0 - covariance.shrinkage) * total / classes.len() as f64)
    }
}

/// The labels that rows have, ascending.
fn labels(classes: &[usize]) -> Result<Vec<usize>, NoScore> {
    let mut labels = classes.to_vec();
    labels.sort_unstable();
    labels.dedup();
    if labels.len() > 1 { Ok(labels) } else { Err(NoScore::OneLabel) }
}

/// The sum of a label's rows, and their number.
fn sum_of(features: &[f64], cols: usize, classes: &[usize], label: usize) -> (Vec<f64>, f64) {
    let (mut sum, mut n) = (vec![0.0; cols], 0.0);
    for (row, _) in features.chunks_exact(cols).zip(classes).filter(|(_, own)| **own == label) {
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        n += 1.0;
    }
    (sum, n)
}

fn finite(score: f64) -> Result<f64, NoScore> {
    if score.is_finite() { Ok(score) } else { Err(NoScore::OutOfRange) }
}

impl Spectrum {
    fn of(features: &[f64], cols: usize) -> Result<Self, NoScore> {
        let n = features.len() / cols;
        let products = if n < cols {
            let by_column = DMatrix::from_column_slice(cols, n, features).transpose();
            gram(by_column.as_slice(), n)
        } else {
            gram(features, cols)
        };
        let n_values = products.nrows();
        let steps = STEPS_PER_EIGENVALUE * n_values;
        let found = SymmetricEigen::try_new(products, f64::EPSILON, steps);
        let found = found.ok_or(NoScore::OutOfRange)?;
        let largest = found.eigenvalues.iter().copied().fold(0.0, f64::max);
        // Below it, roundings of the sums are all that there is.
        let least = largest * f64::EPSILON * n.max(cols) as f64;
        let kept: Vec<usize> = (0..n_values).filter(|at| found.eigenvalues[*at] > least).collect();
        if kept.is_empty() {
            return Err(NoScore::AllZero);
        }
        let squares = kept.iter().map(|at| found.eigenvalues[*at]).collect();
        Ok(Self { squares, vectors: found.eigenvectors.select_columns(&kept) })
    }

    /// Squares of `Uᵀ y`, y 1 on the rows of a label and 0 on all others.
    fn projections(
        &self,
        features: &[f64],
        cols: usize,
        classes: &[usize],
        label: usize,
    ) -> Vec<f64> {
        if self.vectors.nrows() == cols && classes.len() >= cols {
            // U is F V over the singular values.
            let (sum, _) = sum_of(features, cols, classes, label);
            let along = self.vectors.tr_mul(&DMatrix::from_vec(cols, 1, sum));
            along.iter().zip(&self.squares).map(|(x, square)| x * x / square).collect()
        } else {
            let is_own = classes.iter().map(|class| f64::from(u8::from(*class == label)));
            let own = DMatrix::from_iterator(classes.len(), 1, is_own);
            self.vectors.tr_mul(&own).iter().map(|x| x * x).collect()
        }
    }
}

/// The evidence by row of y with `‖y‖² = length`, whose squared projections on the singular vectors are `x2`, of the
/// singular values' squares.
fn evidence(squares: &[f64], x2: &[f64], length: f64, n: f64) -> f64 {
    let pairs = || squares.iter().zip(x2);
    let sum = |term: &dyn Fn(f64, f64) -> f64| pairs().map(|(s, x2)| term(*s, *x2)).sum::<f64>();
    // What no feature reaches; roundings must not make it negative.
    let beyond = (length - x2.iter().sum::<f64>()).max(0.0);
    let k = squares.len() as f64;
    let (mut alpha, mut beta) = (1.0, 1.0);
    let (mut m2, mut residual) = (0.0, 0.0);
    for _ in 0..MAX_ITERATIONS {
        let t: f64 = alpha / beta;
        let effective = sum(&|s, _| s / (s + t));
        m2 = sum(&|s, x2| s * x2 / (s + t).powi(2));
        residual = sum(&|s, x2| x2 / (1.0 + s / t).powi(2)) + beyond;
        alpha = effective / (m2 + EPSILON);
        // N less the effective number of weights, which may be all but N.
        let free = n - k + sum(&|s, _| t / (s + t));
        beta = free / (residual + EPSILON);
        if (alpha / beta - t).abs() <= TOLERANCE * t {
            break;
        }
    }
    let log_determinant = sum(&|s, _| (alpha + beta * s).ln());
    let evidence = k * alpha.ln() + n * beta.ln()
        - log_determinant
        - beta * residual
        - alpha * m2
        - n * std::f64::consts::TAU.ln();
    evidence / (2.0 * n)
}

impl Covariance {
    /// Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004.
    fn of(features: &[f64], cols: usize) -> Result<Self, NoScore> {
        let n = (features.len() / cols) as f64;
        let first = &features[..cols];
        // Means are rounded: only equality says that nothing varies.
        if features.chunks_exact(cols).all(|row| row == first) {
            return Err(NoScore::Constant);
        }
        let mut mean = vec![0.0; cols];
        for row in features.chunks_exact(cols) {
            mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x / n);
        }
        let rows = features.chunks_exact(cols);
        let centred: Vec<f64> =
            rows.flat_map(|row| row.iter().zip(&mean).map(|(x, mean)| x - mean)).collect();
        let mut covariance = gram(&centred, cols) / n;
        let width = cols as f64;
        let variance = covariance.trace() / width;
        let square = dot(covariance.as_slice(), covariance.as_slice());
        // The mean squared distance of a row's own product from the covariance, over N, and that of the covariance
        // from the multiple of the identity nearest to it.
        let fourth: f64 = centred.chunks_exact(cols).map(|row| dot(row, row).powi(2)).sum::<f64>();
        let noise = ((fourth / n - square) / n / width).max(0.0);
        let distance = (square / width - variance * variance).max(0.0);
        let shrinkage = if noise == 0.0 { 0.0 } else { (noise / distance).min(1.0) };
        covariance *= 1.0 - shrinkage;
        (0..cols).for_each(|at| covariance[(at, at)] += shrinkage * variance);
        let factor = Cholesky::new(covariance).ok_or(NoScore::Singular)?;
        Ok(Self { mean, shrinkage, factor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::normal;

    #[test]
    fn scores_that_cannot_be_say_why() {
        let of = |features: &[f32], classes: &[usize]| {
            let scores = Scores::of(features, 2);
            (scores.logme(classes).err(), scores.h_score(classes).err())
        };
        let both = |problem| (Some(problem), Some(problem));
        assert_eq!(of(&[], &[]), both(NoScore::Empty));
        assert_eq!(of(&[1.0, f32::NAN, 2.0, 3.0], &[0, 1]), both(NoScore::NotFinite));
        assert_eq!(of(&[1.0, 0.5, 2.0, 3.0, 5.0, 1.0], &[1, 1, 1]), both(NoScore::OneLabel));
        assert_eq!(of(&[1.0, 0.5, 2.0, 3.0], &[0, 1]), (None, Some(NoScore::Singular)));
        assert_eq!(of(&[0.0; 4], &[0, 1]), (Some(NoScore::AllZero), Some(NoScore::Constant)));
        // Features that do not vary still have a length.
        assert_eq!(of(&[3.0; 4], &[0, 1]), (None, Some(NoScore::Constant)));
    }

    /// Of any scale, with columns that do not vary or repeat others, of more columns than rows, and of a label with
    /// one row.
    #[test]
    fn scores_of_odd_features_are_finite() {
        for (n, cols) in [(10, 4), (10, 10), (10, 40), (3, 2), (3, 5)] {
            for scale in [1e-30, 1.0, 1e15] {
                let mut features = normal(1, 1, n * cols, scale);
                for row in features.chunks_exact_mut(cols) {
                    row[0] = scale;
                    row[cols - 1] = row[1];
                }
                let scores = Scores::of(&features, cols);
                let classes: Vec<usize> = (0..n).map(|row| usize::from(row == 0)).collect();
                let figures = [scores.logme(&classes).unwrap(), scores.h_score(&classes).unwrap()];
                assert!(figures.iter().all(|figure| figure.is_finite()), "{n} {cols} {figures:?}");
                assert!((-1e-9..=1.0 + 1e-9).contains(&figures[1]), "{n} {cols} {figures:?}");
            }
        }
    }
}
