//! Matrix products through the `gemm` crate, behind checked views.
//!
//! Its blocking of the inner dimension depends on shapes and caches, never on the number of threads,
//! so that results do not either.

use gemm::Parallelism;

/// A matrix that is read: element (row, col) is `data[row * row_stride + col * col_stride]`.
#[derive(Clone, Copy)]
pub struct MatRef<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl<'a> MatRef<'a> {
    /// A row-major matrix of `cols` columns.
    pub fn new(data: &'a [f32], cols: usize) -> Self {
        Self { data, rows: data.len() / cols, cols, row_stride: cols, col_stride: 1 }
    }

    /// Columns `start..start + cols` of a row-major matrix whose rows are `width` long.
    pub fn columns(data: &'a [f32], width: usize, start: usize, cols: usize) -> Self {
        let rows = data.len() / width;
        Self { data: &data[start..], rows, cols, row_stride: width, col_stride: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        let Self { data, rows, cols, row_stride, col_stride } = self;
        Self { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }
}

/// A matrix that is written.
pub struct MatMut<'a> {
    pub data: &'a mut [f32],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// A row-major matrix of `cols` columns.
    pub fn new(data: &'a mut [f32], cols: usize) -> Self {
        Self { rows: data.len() / cols, cols, row_stride: cols, data }
    }

    /// Columns `start..start + cols` of a row-major matrix whose rows are `width` long.
    pub fn columns(data: &'a mut [f32], width: usize, start: usize, cols: usize) -> Self {
        let rows = data.len() / width;
        Self { data: &mut data[start..], rows, cols, row_stride: width }
    }

    /// What a product with an empty inner dimension leaves: zeros, or the old values.
    pub fn clear(&mut self, write: Write) {
        if write == Write::Overwrite {
            for row in 0..self.rows {
                self.data[row * self.row_stride..][..self.cols].fill(0.0);
            }
        }
    }
}

/// What becomes of the output's old values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Write {
    Overwrite,
    Add,
}

/// `c = a · b`, or `c += a · b`, with all threads of the pool.
pub fn gemm(a: MatRef, b: MatRef, c: MatMut, write: Write) {
    let (m, n, k) = (c.rows, c.cols, a.cols);
    assert_eq!((a.rows, b.rows, b.cols), (m, k, n), "the shapes of a product must agree");
    if m == 0 || n == 0 {
        return;
    }
    let last = |rows: usize, cols: usize, row_stride: usize, col_stride: usize| {
        if rows * cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
    };
    assert!(last(a.rows, a.cols, a.row_stride, a.col_stride) <= a.data.len());
    assert!(last(b.rows, b.cols, b.row_stride, b.col_stride) <= b.data.len());
    assert!(last(m, n, c.row_stride, 1) <= c.data.len());
    assert!(n <= c.row_stride, "rows of the output must not overlap");
    let parallelism = match rayon::current_num_threads() {
        1 => Parallelism::None,
        n_threads => Parallelism::Rayon(n_threads),
    };
    let accumulate = write == Write::Add;
    // SAFETY: the asserts above keep every element that the strides reach inside its slice, the
    // output's rows do not overlap, and the borrows make it disjoint from the inputs.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.data.as_mut_ptr(),
            1,
            c.row_stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::normal;

    fn naive(a: &[f32], b: &[f32], (m, n, k): (usize, usize, usize)) -> Vec<f64> {
        let mut c = vec![0.0; m * n];
        for (at, c) in c.iter_mut().enumerate() {
            let (row, col) = (at / n, at % n);
            *c = (0..k).map(|i| f64::from(a[row * k + i]) * f64::from(b[i * n + col])).sum();
        }
        c
    }

    #[test]
    fn ragged_products_in_all_layouts() {
        for (m, n, k) in [(1, 1, 1), (7, 3, 129), (129, 17, 5), (33, 65, 64), (2, 130, 700)] {
            let (a, b) = (normal(1, 0, m * k, 1.0), normal(2, 0, k * n, 1.0));
            let expected = naive(&a, &b, (m, n, k));
            let transposed: Vec<f32> = (0..n * k).map(|at| b[at % k * n + at / k]).collect();
            for b in [MatRef::new(&b, n), MatRef::new(&transposed, k).t()] {
                let mut c = vec![f32::NAN; m * n];
                let a = MatRef::new(&a, k);
                gemm(a, b, MatMut::new(&mut c, n), Write::Overwrite);
                gemm(a, b, MatMut::new(&mut c, n), Write::Add);
                for (c, expected) in c.iter().zip(&expected) {
                    // k products of unit normals, each rounded to 6e-8 of sums of order sqrt(k).
                    let error = (f64::from(*c) - 2.0 * expected).abs();
                    assert!(error <= 1e-6 * k as f64, "{m}x{n}x{k}: {error}");
                }
            }
        }
    }

    #[test]
    fn columns_of_wider_matrices() {
        let wide: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let mut out = vec![-1.0; 3 * 5];
        // Columns 1 and 2 of a [3, 4] matrix, times their own transpose, into columns 1 to 3.
        let part = MatRef::columns(&wide, 4, 1, 2);
        let to = MatMut::columns(&mut out, 5, 1, 3);
        gemm(part, part.t(), to, Write::Overwrite);
        assert_eq!(out[..5], [-1.0, 5.0, 17.0, 29.0, -1.0]);
        assert_eq!(out[10..], [-1.0, 29.0, 105.0, 181.0, -1.0]);
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let (m, n, k) = (190, 515, 777);
        let (a, b) = (normal(1, 0, m * k, 1.0), normal(2, 0, n * k, 1.0));
        let run = |n_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            let mut c = vec![f32::NAN; m * n];
            pool.install(|| {
                let (a, b) = (MatRef::new(&a, k), MatRef::new(&b, k).t());
                gemm(a, b, MatMut::new(&mut c, n), Write::Overwrite);
            });
            c
        };
        let one = run(1);
        assert!(one.iter().all(|v| v.is_finite()));
        for n_threads in [2, 3, 5] {
            assert!(run(n_threads) == one, "{n_threads} threads");
        }
    }
}
