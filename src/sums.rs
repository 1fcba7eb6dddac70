//! Sums in f64 whose order depends on nothing but their length.

use nalgebra::DMatrix;

/// Sums that go on side by side, so that vector instructions can make them.
const LANES: usize = 8;

/// The inner product of two slices of one length.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (mut a, mut b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let mut lanes = [0.0; LANES];
    for (a, b) in a.by_ref().zip(b.by_ref()) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    let rest = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b);
    lanes.iter().sum::<f64>() + rest.sum::<f64>()
}

/// `XᵀX` of rows X, `[N, cols]`: the inner products of all pairs of columns.
///
/// It is made on the calling thread alone.
pub fn gram(rows: &[f64], cols: usize) -> DMatrix<f64> {
    // Matrices are stored by columns: each row is one here.
    let transposed = DMatrix::from_column_slice(cols, rows.len() / cols, rows);
    // The crate's own product with a transposed matrix is a plain loop, several times as slow as a copy and this.
    let by_column = transposed.transpose();
    transposed * by_column
}

/// The place of the largest value, the first of equals; None without values.
pub fn largest(values: &[f64]) -> Option<usize> {
    (0..values.len()).reduce(|best, at| if values[at] > values[best] { at } else { best })
}

/// The mean; None of nothing.
pub fn mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut n) = (0.0, 0_u64);
    for value in values {
        sum += value;
        n += 1;
    }
    (n > 0).then(|| sum / n as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_columns() {
        let gram = gram(&[1.0, 2.0, -3.0, 4.0, 0.0, 5.0], 2);
        assert_eq!(gram.as_slice(), [10.0, -10.0, -10.0, 45.0]);
    }

    #[test]
    fn means() {
        assert_eq!((mean([1.0, 2.0, 6.0]), mean([])), (Some(3.0), None));
    }

    #[test]
    fn whole_lanes_and_rests() {
        for n in [0, 1, 7, 8, 9, 21] {
            let a: Vec<f64> = (0..n).map(f64::from).collect();
            let b: Vec<f64> = (0..n).map(|i| f64::from(i % 3)).collect();
            let expected: f64 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            // Whole numbers: every order gives the same.
            assert_eq!(dot(&a, &b), expected, "{n}");
        }
        assert!(dot(&[1.0, f64::NAN], &[1.0, 0.0]).is_nan());
    }
}
