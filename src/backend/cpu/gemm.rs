//! Matrix products through the `gemm` crate, behind checked views.
//!
//! Outputs are cut into tiles, each of which one thread computes and at once takes through an epilogue
//! (bias, GELU) while it lies in that core's cache. Neither the tiles nor the crate's blocking of the
//! inner dimension depends on the number of threads, so that results do not either.

use std::marker::PhantomData;

use gemm::Parallelism;
use rayon::prelude::*;

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

    /// Rows `start..start + rows`.
    pub fn row_range(self, start: usize, rows: usize) -> Self {
        assert!(start + rows <= self.rows);
        // An empty matrix may have no element where its rows would begin.
        let first = (start * self.row_stride).min(self.data.len());
        Self { data: &self.data[first..], rows, ..self }
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

/// One of several products that are computed together: `out = Σ a · b` over its terms.
pub struct Product<'a> {
    /// Pairs of factors, at least one.
    pub terms: Vec<(MatRef<'a>, MatRef<'a>)>,
    pub out: MatMut<'a>,
    /// A second output of the same shape, which is the epilogue's to write.
    pub side: Option<MatMut<'a>>,
}

impl<'a> Product<'a> {
    /// `out = a · b`.
    pub fn new(a: MatRef<'a>, b: MatRef<'a>, out: MatMut<'a>) -> Self {
        Self { terms: vec![(a, b)], out, side: None }
    }

    /// # Panics
    /// Where the shapes do not agree.
    fn check(&self) {
        let Self { terms, out, side } = self;
        let sizes = |matrix: &MatMut| (matrix.rows, matrix.cols);
        assert!(!terms.is_empty(), "a product has terms");
        for (a, b) in terms {
            assert_eq!((a.rows, a.cols, b.cols), (out.rows, b.rows, out.cols), "shapes must agree");
        }
        assert!(side.as_ref().is_none_or(|side| sizes(side) == sizes(out)), "shapes must agree");
    }
}

/// Part of a product's output, finished but for the epilogue.
pub struct Tile<'a> {
    /// Number of the product.
    pub product: usize,
    /// Place of the tile's first element in the product's output.
    pub row: usize,
    pub col: usize,
    pub out: Window<'a>,
    pub side: Option<Window<'a>>,
}

/// A rectangle of a matrix, which nobody else writes meanwhile.
pub struct Window<'a> {
    first: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    of: PhantomData<&'a mut [f32]>,
}

// SAFETY: a window is the only way to its elements while it lives, like the exclusive borrow it holds.
#[allow(unsafe_code)]
unsafe impl Send for Window<'_> {}

impl<'a> Window<'a> {
    /// Cuts a matrix into windows of `size`, row by row of windows.
    fn cut(matrix: MatMut<'a>, size: (usize, usize)) -> Vec<Window<'a>> {
        let MatMut { data, rows, cols, row_stride } = matrix;
        assert!(cols <= row_stride, "rows of the output must not overlap");
        assert!(reach(rows, cols, row_stride, 1) <= data.len(), "an output lies in its slice");
        let first = data.as_mut_ptr();
        let mut windows = Vec::new();
        for row in (0..rows).step_by(size.0) {
            for col in (0..cols).step_by(size.1) {
                windows.push(Window {
                    // In the slice, by the assertion above; wrapping only so that no block is needed.
                    first: first.wrapping_add(row * row_stride + col),
                    rows: size.0.min(rows - row),
                    cols: size.1.min(cols - col),
                    row_stride,
                    of: PhantomData,
                });
            }
        }
        windows
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.rows
    }

    /// A row of the window.
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows);
        // SAFETY: `cut` keeps all rows of the window inside the matrix and apart from other windows;
        // the borrow of the window keeps this row from being handed out twice.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(self.first.add(row * self.row_stride), self.cols)
        }
    }

    /// `self = a · b`, or `self += a · b`, on this thread. What a row becomes does not depend on the rows beside it.
    fn multiply(&mut self, a: MatRef, b: MatRef, write: Write) {
        // The library sums single rows, and outputs of so few elements, in another order.
        const FEW_ELEMENTS: usize = 256;
        let enough_rows = (FEW_ELEMENTS / self.cols.max(1) + 1).max(2);
        if self.rows >= enough_rows || self.rows * self.cols == 0 {
            return self.multiply_at_once(a, b, write);
        }
        let mut padded = vec![0.0; enough_rows * a.cols];
        for row in 0..a.rows {
            for col in 0..a.cols {
                padded[row * a.cols + col] = a.data[row * a.row_stride + col * a.col_stride];
            }
        }
        let mut sums = vec![0.0; enough_rows * self.cols];
        let size = (enough_rows, self.cols);
        for mut window in Window::cut(MatMut::new(&mut sums, self.cols), size) {
            window.multiply_at_once(MatRef::new(&padded, a.cols), b, Write::Overwrite);
        }
        for (row, sums) in (0..self.rows).zip(sums.chunks_exact(self.cols)) {
            for (to, sum) in self.row(row).iter_mut().zip(sums) {
                *to = if write == Write::Add { *to + sum } else { *sum };
            }
        }
    }

    fn multiply_at_once(&mut self, a: MatRef, b: MatRef, write: Write) {
        assert!(reach(a.rows, a.cols, a.row_stride, a.col_stride) <= a.data.len());
        assert!(reach(b.rows, b.cols, b.row_stride, b.col_stride) <= b.data.len());
        assert_eq!((a.rows, a.cols, b.cols), (self.rows, b.rows, self.cols));
        // SAFETY: the assertions keep every element that the strides reach inside its slice, and `cut`
        // does for the window, which no input overlaps since it is borrowed exclusively.
        #[allow(unsafe_code)]
        unsafe {
            gemm::gemm(
                self.rows,
                self.cols,
                a.cols,
                self.first,
                1,
                self.row_stride as isize,
                write == Write::Add,
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
                Parallelism::None,
            );
        }
    }
}

/// One more than the largest index that a matrix of these sizes and strides has.
fn reach(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows * cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
}

/// Rows and columns of a tile at most: its output stays in a core's own cache until the epilogue has
/// seen it, and packing its factors costs little beside its arithmetic.
const TILE: (usize, usize) = (512, 192);

/// The size of a tile: as even as can be, so that no thread waits long for the last one.
fn tile_size(rows: usize, cols: usize) -> (usize, usize) {
    let even = |n: usize, most: usize| n.div_ceil(n.div_ceil(most).max(1)).max(1);
    (even(rows, TILE.0), even(cols, TILE.1))
}

/// Computes all products with all threads, tile by tile, and calls `epilogue` for each tile as soon as
/// it is there.
pub fn products(products: Vec<Product>, epilogue: impl Fn(Tile) + Sync) {
    let mut tasks = Vec::new();
    for (number, product) in products.into_iter().enumerate() {
        product.check();
        let (rows, cols) = (product.out.rows, product.out.cols);
        let size = tile_size(rows, cols);
        let out = Window::cut(product.out, size);
        let sides: Vec<Option<Window>> = match product.side {
            Some(side) => Window::cut(side, size).into_iter().map(Some).collect(),
            None => out.iter().map(|_| None).collect(),
        };
        let n_across = cols.div_ceil(size.1);
        for (at, (out, side)) in out.into_iter().zip(sides).enumerate() {
            let (row, col) = (at / n_across * size.0, at % n_across * size.1);
            let terms: Vec<_> = (product.terms.iter())
                .map(|(a, b)| (a.row_range(row, out.rows), b.t().row_range(col, out.cols).t()))
                .collect();
            tasks.push((terms, Tile { product: number, row, col, out, side }));
        }
    }
    tasks.into_par_iter().with_max_len(1).for_each(|(terms, mut tile)| {
        for (at, (a, b)) in terms.into_iter().enumerate() {
            tile.out.multiply(a, b, if at == 0 { Write::Overwrite } else { Write::Add });
        }
        epilogue(tile);
    });
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::philox::normal;

    fn gemm(a: MatRef, b: MatRef, c: MatMut) {
        products(vec![Product::new(a, b, c)], |_| {});
    }

    /// Holds a product, which overwrites its output, against plain sums: ragged sizes, all layouts of
    /// the factors, and columns of wider matrices.
    pub fn check(mut multiply: impl FnMut(MatRef, MatRef, MatMut)) {
        let sizes =
            [(1, 1, 1), (7, 3, 129), (33, 65, 64), (129, 17, 5), (13, 130, 70), (2, 130, 700)];
        for (m, n, k) in sizes {
            let (a, b) = (normal(1, 0, m * k, 1.0), normal(2, 0, k * n, 1.0));
            let transposed = |from: &[f32], rows: usize, cols: usize| -> Vec<f32> {
                (0..rows * cols).map(|at| from[at % rows * cols + at / rows]).collect()
            };
            let (a_t, b_t) = (transposed(&a, m, k), transposed(&b, k, n));
            for a_view in [MatRef::new(&a, k), MatRef::new(&a_t, m).t()] {
                for b_view in [MatRef::new(&b, n), MatRef::new(&b_t, k).t()] {
                    let mut c = vec![f32::NAN; m * n];
                    multiply(a_view, b_view, MatMut::new(&mut c, n));
                    for (at, c) in c.iter().enumerate() {
                        let (row, col) = (at / n, at % n);
                        let term = |i| f64::from(a[row * k + i]) * f64::from(b[i * n + col]);
                        let expected: f64 = (0..k).map(term).sum();
                        // k products of unit normals, each rounded to 6e-8 of sums of order sqrt(k).
                        let error = (f64::from(*c) - expected).abs();
                        assert!(error <= 1e-6 * k as f64, "{m}x{n}x{k}: {error}");
                    }
                }
            }
        }
        // Columns 1 and 2 of a [3, 4] matrix, times their own transpose, into columns 1 to 3.
        let wide: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let mut out = vec![-1.0; 3 * 5];
        let part = MatRef::columns(&wide, 4, 1, 2);
        multiply(part, part.t(), MatMut::columns(&mut out, 5, 1, 3));
        assert_eq!(out[..5], [-1.0, 5.0, 17.0, 29.0, -1.0]);
        assert_eq!(out[10..], [-1.0, 29.0, 105.0, 181.0, -1.0]);
    }

    #[test]
    fn agrees_with_plain_sums() {
        check(gemm);
    }

    #[test]
    fn products_are_cut_into_tiles_and_every_tile_meets_the_epilogue_once() {
        let (m, n, k) = (600, 401, 3);
        let (a, b) = (normal(1, 0, m * k, 1.0), normal(2, 0, n * k, 1.0));
        let (mut whole, mut plain) = (vec![f32::NAN; m * n], vec![f32::NAN; m * n]);
        let (mut side, mut small) = (vec![f32::NAN; m * n], vec![f32::NAN; 2 * n]);
        let (a, b) = (MatRef::new(&a, k), MatRef::new(&b, k).t());
        gemm(a, b, MatMut::new(&mut plain, n));
        let twice = Product {
            terms: vec![(a, b), (a, b)],
            out: MatMut::new(&mut whole, n),
            side: Some(MatMut::new(&mut side, n)),
        };
        let other = Product::new(a.row_range(5, 2), b, MatMut::new(&mut small, n));
        products(vec![twice, other], |mut tile| {
            for row in 0..tile.out.n_rows() {
                let place = ((tile.row + row) * n + tile.col) as f32;
                for (col, out) in tile.out.row(row).iter_mut().enumerate() {
                    *out += if tile.product == 0 { place + col as f32 } else { 0.0 };
                }
                if let Some(side) = &mut tile.side {
                    side.row(row).copy_from_slice(tile.out.row(row));
                }
            }
        });
        assert!(small == plain[5 * n..7 * n], "the second product");
        assert!(side == whole, "the second output");
        for (at, (out, plain)) in whole.iter().zip(&plain).enumerate() {
            // Numbers up to 2.4e5 to which some of order 1 were added: half a unit in the last place.
            let error = (out - at as f32 - 2.0 * plain).abs();
            assert!(error <= 0.02, "{at}: {out}");
        }
    }

    #[test]
    fn nothing_is_a_product_too() {
        gemm(MatRef::new(&[], 3), MatRef::new(&[1.0; 6], 3).t(), MatMut::new(&mut [], 2));
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
                gemm(a, b, MatMut::new(&mut c, n));
            });
            c
        };
        let one = run(1);
        assert!(one.iter().all(|v| v.is_finite()));
        for n_threads in [2, 3, 5] {
            assert!(run(n_threads) == one, "{n_threads} threads");
        }
    }

    /// A cache of a frozen prefix is filled from other batches than those that read it.
    #[test]
    fn bits_of_a_row_do_not_depend_on_the_rows_beside_it() {
        for (k, n) in [(16, 36), (36, 16), (384, 384), (384, 1536), (1536, 384)] {
            let (a, b) = (normal(1, 0, 200 * k, 1.0), normal(2, 0, n * k, 1.0));
            let run = |rows: std::ops::Range<usize>| {
                let mut out = vec![f32::NAN; rows.len() * n];
                let a = MatRef::new(&a, k).row_range(rows.start, rows.len());
                let product = Product::new(a, MatRef::new(&b, k).t(), MatMut::new(&mut out, n));
                products(vec![product], |_| ());
                out
            };
            let whole = run(0..200);
            for m in (1..70).chain([128, 199]) {
                let start = 200 - m;
                let part = run(start..200);
                assert!(part == whole[start * n..], "{m} rows of [{k}, {n}]");
            }
        }
    }
}
