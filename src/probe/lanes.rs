//! Rows of f64 in vector registers, and the two products of a probe with them.

use pulp::{Simd, WithSimd};

/// Values that rows are filled up to a multiple of: no CPU's register holds more of them.
const LANES: usize = 8;

/// Rows that are read together: each value of a vector that meets them is then loaded once for all, and their sums do
/// not wait for each other.
pub(super) const BLOCK: usize = 8;

/// The length of a row of `cols` values that is filled up with zeros.
pub(super) fn padded(cols: usize) -> usize {
    cols.next_multiple_of(LANES)
}

/// Rows `[N, cols]`, each filled up with zeros.
pub(super) fn pad(rows: &[f64], cols: usize) -> Vec<f64> {
    let mut all = vec![0.0; rows.len() / cols * padded(cols)];
    for (to, row) in all.chunks_exact_mut(padded(cols)).zip(rows.chunks_exact(cols)) {
        to[..cols].copy_from_slice(row);
    }
    all
}

/// Rows `[N, cols]` without what filled them up.
pub(super) fn unpad(rows: &[f64], cols: usize) -> Vec<f64> {
    rows.chunks_exact(padded(cols)).flat_map(|row| &row[..cols]).copied().collect()
}

/// R padded rows, the first at `first`.
#[inline(always)]
pub(super) fn rows_at<const R: usize>(rows: &[f64], stride: usize, first: usize) -> [&[f64]; R] {
    std::array::from_fn(|at| &rows[(first + at) * stride..(first + at + 1) * stride])
}

/// The inner products of padded rows with a padded vector.
#[inline(always)]
pub(super) fn dots<S: Simd, const R: usize>(
    simd: S,
    rows: [&[f64]; R],
    vector: &[f64],
) -> [f64; R] {
    let vector = S::as_simd_f64s(vector).0;
    // Of one length in the compiler's eyes: no checks in the loop.
    let rows = rows.map(|row| &S::as_simd_f64s(row).0[..vector.len()]);
    let mut sums = [simd.splat_f64s(0.0); R];
    for at in 0..vector.len() {
        for row in 0..R {
            sums[row] = simd.mul_add_f64s(rows[row][at], vector[at], sums[row]);
        }
    }
    // A loop: closures are compiled for the oldest CPU.
    let mut products = [0.0; R];
    for row in 0..R {
        products[row] = simd.reduce_sum_f64s(sums[row]);
    }
    products
}

/// Adds padded rows times their factors to a padded vector.
#[inline(always)]
pub(super) fn add_rows<S: Simd, const R: usize>(
    simd: S,
    sum: &mut [f64],
    factors: [f64; R],
    rows: [&[f64]; R],
) {
    let sum = S::as_mut_simd_f64s(sum).0;
    let rows = rows.map(|row| &S::as_simd_f64s(row).0[..sum.len()]);
    let factors = factors.map(|factor| simd.splat_f64s(factor));
    for at in 0..sum.len() {
        // Of its own: it stays in a register.
        let mut own = sum[at];
        for row in 0..R {
            own = simd.mul_add_f64s(rows[row][at], factors[row], own);
        }
        sum[at] = own;
    }
}

/// The products of a matrix's rows with each of some vectors, all padded: `[vectors, rows]`.
pub(super) struct Product<'a> {
    pub matrix: &'a [f64],
    pub vectors: &'a [f64],
    /// The length of each of them.
    pub stride: usize,
}

impl WithSimd for Product<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f64> {
        let Self { matrix, vectors, stride } = self;
        let n_rows = matrix.len() / stride;
        let mut products = vec![0.0; vectors.len() / stride * n_rows];
        let whole = n_rows - n_rows % BLOCK;
        for first in (0..whole).step_by(BLOCK) {
            let rows = rows_at::<BLOCK>(matrix, stride, first);
            let each = products.chunks_exact_mut(n_rows).zip(vectors.chunks_exact(stride));
            for (to, vector) in each {
                to[first..first + BLOCK].copy_from_slice(&dots(simd, rows, vector));
            }
        }
        for at in whole..n_rows {
            let row = rows_at::<1>(matrix, stride, at);
            let each = products.chunks_exact_mut(n_rows).zip(vectors.chunks_exact(stride));
            for (to, vector) in each {
                [to[at]] = dots(simd, row, vector);
            }
        }
        products
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_they_were() {
        for cols in [1, 7, 8, 9] {
            let rows: Vec<f64> = (0..3 * cols).map(|at| at as f64).collect();
            let all = pad(&rows, cols);
            assert_eq!(all.len(), 3 * padded(cols));
            assert_eq!(unpad(&all, cols), rows);
        }
    }

    struct Add<'a>(&'a mut [f64], [&'a [f64]; 2]);

    impl WithSimd for Add<'_> {
        type Output = ();

        fn with_simd<S: Simd>(self, simd: S) {
            add_rows(simd, self.0, [2.0, -3.0], self.1);
        }
    }

    /// Whole numbers: every order gives the same.
    #[test]
    fn products_and_sums_of_blocks_and_rests() {
        let (n_rows, cols) = (BLOCK + 2, 11);
        let value = |at: usize| (at * at % 13) as f64 - 5.0;
        let rows: Vec<f64> = (0..n_rows * cols).map(value).collect();
        let vectors: Vec<f64> = (0..2 * cols).map(|at| value(at + 3)).collect();
        let (matrix, stride) = (pad(&rows, cols), padded(cols));
        let product = Product { matrix: &matrix, vectors: &pad(&vectors, cols), stride };
        let found = pulp::Arch::new().dispatch(product);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let expected: Vec<f64> = (vectors.chunks(cols))
            .flat_map(|vector| rows.chunks(cols).map(move |row| dot(row, vector)))
            .collect();
        assert_eq!(found, expected);

        let mut sum = pad(&vectors[..cols], cols);
        pulp::Arch::new().dispatch(Add(&mut sum, rows_at(&matrix, stride, 0)));
        let expected: Vec<f64> =
            (0..cols).map(|col| vectors[col] + 2.0 * rows[col] - 3.0 * rows[cols + col]).collect();
        assert_eq!(unpad(&sum, cols), expected);
    }
}
