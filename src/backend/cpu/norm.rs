//! LayerNorm, forward and backward.

use std::ops::Range;

use super::math;
use super::parallel::{for_each_piece, optional_pieces, rows_per_piece};
use super::vectorised::vectorised;
use crate::backend::host::ops::{NormDparams, NormDx, NormOutputs, NormParams, NormSaved, RowMask};
use crate::backend::reference::place_of_row;

/// Normalises every row of what `fill(row, sum)` writes.
pub fn layernorm_fwd(
    norm: &NormParams<f32>,
    to: NormOutputs<f32>,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) {
    let width = norm.gamma.len();
    let n_rows = rows_per_piece(width);
    let n_pieces = to.out.len().div_ceil(n_rows * width);
    let xhat = optional_pieces(to.xhat, n_rows * width, n_pieces);
    let rstd = optional_pieces(to.rstd, n_rows, n_pieces);
    let pieces: Vec<_> =
        to.out.chunks_mut(n_rows * width).zip(xhat.into_iter().zip(rstd)).collect();
    for_each_piece(pieces, |piece, (out, (mut xhat, mut rstd))| {
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            fill(piece * n_rows + row, out);
            let xhat = xhat.as_mut().map(|xhat| &mut xhat[row * width..][..width]);
            let row_rstd = normalise(out, xhat, norm);
            if let Some(rstd) = &mut rstd {
                rstd[row] = row_rstd;
            }
        }
    });
}

vectorised! {
    /// `out` holds the sum before, the normalised row after; returns 1 / standard deviation.
    fn normalise<'a>(
        out: &'a mut [f32],
        xhat: Option<&'a mut [f32]>,
        norm: &'a NormParams<'a, f32>,
    ) -> f32 {
        let n = out.len() as f32;
        let mean = math::sum(out) / n;
        let variance = math::sum_squares_about(out, mean) / n;
        let rstd = 1.0 / (variance + norm.eps).sqrt();
        for out in out.iter_mut() {
            *out = (*out - mean) * rstd;
        }
        if let Some(xhat) = xhat {
            xhat.copy_from_slice(out);
        }
        for (out, (gamma, beta)) in out.iter_mut().zip(norm.gamma.iter().zip(norm.beta)) {
            *out = out.mul_add(*gamma, *beta);
        }
        rstd
    }

    /// Writes `dropout(x) + residual` of one row.
    pub fn branch_and_residual<'a>(
        x: &'a [f32],
        residual: Option<&'a [f32]>,
        mask: Option<RowMask<'a>>,
        row: usize,
        sum: &'a mut [f32],
    ) {
        let start = row * sum.len();
        dropped(&x[start..][..sum.len()], mask, row, sum);
        if let Some(residual) = residual {
            math::add(&residual[start..], sum);
        }
    }
}

/// `out = dropout(x)` of one row.
#[inline(always)]
fn dropped(x: &[f32], mask: Option<RowMask>, row: usize, out: &mut [f32]) {
    match mask {
        Some(RowMask { mask, cu_seqlens }) => {
            let (sequence, local) = place_of_row(cu_seqlens, row);
            mask.row(sequence, local, out);
            math::multiply(x, out);
        }
        None => out.copy_from_slice(x),
    }
}

/// Rows whose parameter gradients are summed before the sums are added up: a fixed number, so that
/// the order of additions is fixed.
const ROWS_PER_SUM: usize = 64;

/// Input and parameter gradients in one pass over the rows; whatever is absent is not computed.
pub fn layernorm_bwd(
    dout: &[&[f32]],
    xhat: Option<&[f32]>,
    dx: Option<(&NormSaved<f32>, NormDx<f32>)>,
    dparams: NormDparams<f32>,
    width: usize,
) {
    let n_rows = dout[0].len() / width;
    let n_pieces = n_rows.div_ceil(ROWS_PER_SUM);
    let (saved, to) = match dx {
        Some((saved, to)) => (Some(saved), to),
        None => (None, NormDx { dx: None, dresidual: None }),
    };
    let wants = (dparams.dgamma.is_some(), dparams.dbeta.is_some());
    let mut gamma_sums = vec![0.0; if wants.0 { n_pieces * width } else { 0 }];
    let mut beta_sums = vec![0.0; if wants.1 { n_pieces * width } else { 0 }];
    let piece = ROWS_PER_SUM * width;
    let dx = optional_pieces(to.dx, piece, n_pieces);
    let dresidual = optional_pieces(to.dresidual, piece, n_pieces);
    let gammas = optional_pieces(wants.0.then_some(&mut gamma_sums), width, n_pieces);
    let betas = optional_pieces(wants.1.then_some(&mut beta_sums), width, n_pieces);
    let pieces: Vec<_> = dx.into_iter().zip(dresidual).zip(gammas.into_iter().zip(betas)).collect();
    for_each_piece(pieces, |piece, ((dx, dresidual), (dgamma, dbeta))| {
        let first = piece * ROWS_PER_SUM;
        let rows = first..(first + ROWS_PER_SUM).min(n_rows);
        let dparams = NormDparams { dgamma, dbeta };
        rows_backward(dout, xhat, rows, width, saved, NormDx { dx, dresidual }, dparams);
    });
    add_up(&gamma_sums, dparams.dgamma);
    add_up(&beta_sums, dparams.dbeta);
}

vectorised! {
    /// The backward pass over some rows; `to` and `dparams`, which is added to, are those rows' own.
    fn rows_backward<'a>(
        dout: &'a [&'a [f32]],
        xhat: Option<&'a [f32]>,
        rows: Range<usize>,
        width: usize,
        saved: Option<&'a NormSaved<'a, f32>>,
        to: NormDx<'a, f32>,
        dparams: NormDparams<'a, f32>,
    ) {
        let (mut to, mut dparams) = (to, dparams);
        let mut sum = vec![f32::NAN; width];
        let first = rows.start;
        for row in rows {
            let start = row * width;
            sum.copy_from_slice(&dout[0][start..][..width]);
            for more in &dout[1..] {
                math::add(&more[start..], &mut sum);
            }
            if let Some(dbeta) = &mut dparams.dbeta {
                math::add(&sum, dbeta);
            }
            if let (Some(dgamma), Some(xhat)) = (&mut dparams.dgamma, xhat) {
                for ((total, d), x) in dgamma.iter_mut().zip(&sum).zip(&xhat[start..]) {
                    *total = d.mul_add(*x, *total);
                }
            }
            let Some(saved) = saved else { continue };
            let local = (row - first) * width;
            input_gradient(saved, row, &mut sum);
            if let Some(dresidual) = &mut to.dresidual {
                dresidual[local..][..width].copy_from_slice(&sum);
            }
            if let Some(dx) = &mut to.dx {
                dropped(&sum, saved.mask, row, &mut dx[local..][..width]);
            }
        }
    }
}

/// Turns the gradient at a row's output into that at LayerNorm's sum.
#[inline(always)]
fn input_gradient(saved: &NormSaved<f32>, row: usize, dout: &mut [f32]) {
    let width = dout.len();
    let xhat = &saved.xhat[row * width..][..width];
    math::multiply(saved.gamma, dout);
    let mean = math::sum(dout) / width as f32;
    let mean_xhat = math::dot(dout, xhat) / width as f32;
    let rstd = saved.rstd[row];
    for (d, x) in dout.iter_mut().zip(xhat) {
        *d = rstd * (*d - mean - x * mean_xhat);
    }
}

vectorised! {
    /// Adds the pieces' sums in their order.
    fn add_up<'a>(sums: &'a [f32], to: Option<&'a mut [f32]>) {
        if let Some(to) = to {
            to.fill(0.0);
            for piece in sums.chunks_exact(to.len()) {
                math::add(piece, to);
            }
        }
    }
}
