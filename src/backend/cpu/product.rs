//! Products the size of an attention head, on the thread that asks.
//!
//! A product of a few hundred rows spends more on a general library's bookkeeping than on arithmetic.
//! Here `b` is packed into panels of two vectors' columns, `a` is read where it lies (its columns are
//! packed only if it is transposed), and a tile of the output stays in registers over the whole inner
//! dimension, which for a head is its size or a sequence's length.

use pulp::{Arch, Simd, WithSimd};

use super::gemm::{MatMut, MatRef, Write};

/// Vectors of a tile's row.
const VECTORS: usize = 2;

/// Panels of packed operands, kept from one product to the next.
#[derive(Default)]
pub struct Scratch {
    a: Vec<f32>,
    b: Vec<f32>,
}

/// `c = scale · a · b`, or `c += scale · a · b`.
pub fn product(a: MatRef, b: MatRef, c: MatMut, scale: f32, write: Write, scratch: &mut Scratch) {
    assert_eq!((a.rows, b.rows, b.cols), (c.rows, a.cols, c.cols), "the shapes must agree");
    Arch::new().dispatch(Product { a, b, c, scale, write, scratch });
}

struct Product<'a, 'b> {
    a: MatRef<'a>,
    b: MatRef<'a>,
    c: MatMut<'b>,
    scale: f32,
    write: Write,
    scratch: &'b mut Scratch,
}

impl WithSimd for Product<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Rows of a tile: as many as leave registers for a row of `b` and one broadcast of `a`.
        match S::F32_LANES {
            16 => self.tiles::<S, 12>(simd),
            8 => self.tiles::<S, 6>(simd),
            _ => self.tiles::<S, 4>(simd),
        }
    }
}

impl Product<'_, '_> {
    #[inline(always)]
    fn tiles<S: Simd, const ROWS: usize>(self, simd: S) {
        let Self { a, b, mut c, scale, write, scratch } = self;
        let (k, width) = (a.cols, VECTORS * S::F32_LANES);
        if k == 0 {
            return c.clear(write);
        }
        // A panel of `b` runs along its columns, one of `a` along its rows.
        pack(b.t(), width, &mut scratch.b);
        if a.col_stride != 1 {
            pack(a, ROWS, &mut scratch.a);
        }
        for (panel, b) in scratch.b.chunks_exact(k * width).enumerate() {
            let b = S::as_simd_f32s(b).0;
            let first_col = panel * width;
            let n_cols = width.min(c.cols - first_col);
            for first_row in (0..c.rows).step_by(ROWS) {
                let sums = if a.col_stride == 1 {
                    // Below the last row the last row is read again, and not written.
                    let row = |i: usize| (first_row + i).min(a.rows - 1) * a.row_stride;
                    let rows: [&[f32]; ROWS] = std::array::from_fn(|i| &a.data[row(i)..][..k]);
                    tile(simd, b, (0..k).map(|at| rows.map(|row| row[at])))
                } else {
                    let panel = &scratch.a[first_row * k..][..ROWS * k];
                    tile(simd, b, panel.as_chunks::<ROWS>().0.iter().copied())
                };
                for (row, sums) in (first_row..c.rows).zip(sums) {
                    let out = &mut c.data[row * c.row_stride + first_col..][..n_cols];
                    write_row(simd, sums, scale, write, out);
                }
            }
        }
    }
}

/// The sums of one tile: for each of `ROWS` rows, `VECTORS` vectors.
#[inline(always)]
fn tile<S: Simd, const ROWS: usize>(
    simd: S,
    b: &[S::f32s],
    a: impl Iterator<Item = [f32; ROWS]>,
) -> [[S::f32s; VECTORS]; ROWS] {
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
    for (b, a) in b.as_chunks::<VECTORS>().0.iter().zip(a) {
        for (sums, a) in sums.iter_mut().zip(a) {
            let a = simd.splat_f32s(a);
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = simd.mul_add_f32s(a, *b, *sum);
            }
        }
    }
    sums
}

/// Writes a tile's row into `out`, which ends where the matrix does.
#[inline(always)]
fn write_row<S: Simd>(
    simd: S,
    sums: [S::f32s; VECTORS],
    scale: f32,
    write: Write,
    out: &mut [f32],
) {
    let scale = simd.splat_f32s(scale);
    let value = |sum, old| match write {
        Write::Overwrite => simd.mul_f32s(scale, sum),
        Write::Add => simd.mul_add_f32s(scale, sum, old),
    };
    let (full, tail) = S::as_mut_simd_f32s(out);
    let n_full = full.len();
    for (sum, out) in sums.iter().zip(full) {
        *out = value(*sum, *out);
    }
    if !tail.is_empty() {
        let old = simd.partial_load_f32s(tail);
        simd.partial_store_f32s(tail, value(sums[n_full], old));
    }
}

/// Cuts the rows of a matrix into panels of `width` rows, element (row, col) of a panel at
/// `col * width + row`; rows that are missing from the last one are zero.
#[inline(always)]
fn pack(from: MatRef, width: usize, to: &mut Vec<f32>) {
    let MatRef { data, rows, cols, row_stride, col_stride } = from;
    to.resize(rows.div_ceil(width) * width * cols, 0.0);
    for (panel, to) in to.chunks_exact_mut(width * cols).enumerate() {
        let data = &data[panel * width * row_stride..];
        let n_rows = width.min(rows - panel * width);
        if n_rows < width {
            to.fill(0.0);
        }
        if row_stride == 1 {
            for (col, to) in to.chunks_exact_mut(width).enumerate() {
                to[..n_rows].copy_from_slice(&data[col * col_stride..][..n_rows]);
            }
        } else {
            for row in 0..n_rows {
                let from = data[row * row_stride..].iter().step_by(col_stride);
                let to = to[row..].iter_mut().step_by(width);
                to.zip(from).for_each(|(to, from)| *to = *from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::gemm::tests::check;
    use super::*;

    #[test]
    fn agrees_with_plain_sums() {
        let mut scratch = Scratch::default();
        check(|a, b, c| product(a, b, c, 1.0, Write::Overwrite, &mut scratch));
    }

    #[test]
    fn scales_and_adds() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 2.0, 1.0]);
        let mut c = [10.0; 4];
        let (a, b) = (MatRef::new(&a, 2), MatRef::new(&b, 2));
        product(a, b, MatMut::new(&mut c, 2), 0.5, Write::Add, &mut Scratch::default());
        assert_eq!(c, [12.5, 11.0, 15.5, 12.0]);
    }

    #[test]
    fn an_empty_sum_is_zero() {
        let (a, b) = (MatRef { rows: 2, ..MatRef::new(&[], 1) }, MatRef::new(&[], 3));
        let a = MatRef { cols: 0, ..a };
        let mut c = [f32::NAN; 6];
        let to = MatMut::new(&mut c, 3);
        product(a, b, to, 1.0, Write::Overwrite, &mut Scratch::default());
        assert_eq!(c, [0.0; 6]);
    }
}
