//! LayerNorm, forward and backward.

use super::math;
use super::parallel::{for_each_piece, optional_pieces, rows_per_piece};
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
    let arch = pulp::Arch::new();
    for_each_piece(pieces, |piece, (out, (mut xhat, mut rstd))| {
        arch.dispatch(|| {
            for (row, out) in out.chunks_exact_mut(width).enumerate() {
                fill(piece * n_rows + row, out);
                let xhat = xhat.as_mut().map(|xhat| &mut xhat[row * width..][..width]);
                let row_rstd = normalise(out, xhat, norm);
                if let Some(rstd) = &mut rstd {
                    rstd[row] = row_rstd;
                }
            }
        });
    });
}

/// `out` holds the sum before, the normalised row after; returns 1 / standard deviation.
#[inline(always)]
fn normalise(out: &mut [f32], xhat: Option<&mut [f32]>, norm: &NormParams<f32>) -> f32 {
    let n = out.len() as f32;
    let mean = math::sum(out) / n;
    let variance = math::sum_squares_about(out, mean) / n;
    let rstd = 1.0 / (variance + norm.eps).sqrt();
    let scaled = out.iter_mut().zip(norm.gamma.iter().zip(norm.beta));
    match xhat {
        Some(xhat) => {
            for ((out, (gamma, beta)), xhat) in scaled.zip(xhat) {
                *xhat = (*out - mean) * rstd;
                *out = *xhat * gamma + beta;
            }
        }
        None => {
            for (out, (gamma, beta)) in scaled {
                *out = (*out - mean) * rstd * gamma + beta;
            }
        }
    }
    rstd
}

/// Writes `dropout(x) + residual` of one row.
#[inline(always)]
pub fn branch_and_residual(
    x: &[f32],
    residual: Option<&[f32]>,
    mask: Option<RowMask>,
    row: usize,
    sum: &mut [f32],
) {
    let start = row * sum.len();
    let x = &x[start..][..sum.len()];
    match mask {
        Some(RowMask { mask, cu_seqlens }) => {
            let (sequence, local) = place_of_row(cu_seqlens, row);
            mask.row(sequence, local, sum);
            sum.iter_mut().zip(x).for_each(|(sum, x)| *sum *= x);
        }
        None => sum.copy_from_slice(x),
    }
    if let Some(residual) = residual {
        sum.iter_mut().zip(&residual[start..]).for_each(|(sum, r)| *sum += r);
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
    let arch = pulp::Arch::new();
    for_each_piece(pieces, |piece, ((mut dx, mut dresidual), (mut dgamma, mut dbeta))| {
        let first = piece * ROWS_PER_SUM;
        let last = (first + ROWS_PER_SUM).min(n_rows);
        let mut sum = vec![f32::NAN; width];
        arch.dispatch(|| {
            for row in first..last {
                let start = row * width;
                sum.copy_from_slice(&dout[0][start..][..width]);
                for more in &dout[1..] {
                    sum.iter_mut().zip(&more[start..]).for_each(|(sum, d)| *sum += d);
                }
                if let Some(dbeta) = &mut dbeta {
                    dbeta.iter_mut().zip(&sum).for_each(|(total, d)| *total += d);
                }
                if let (Some(dgamma), Some(xhat)) = (&mut dgamma, xhat) {
                    let terms = sum.iter().zip(&xhat[start..]);
                    dgamma.iter_mut().zip(terms).for_each(|(total, (d, x))| *total += d * x);
                }
                let Some(saved) = saved else { continue };
                let local = start - first * width;
                input_gradient(saved, row, &mut sum);
                if let Some(dresidual) = &mut dresidual {
                    dresidual[local..][..width].copy_from_slice(&sum);
                }
                if let Some(dx) = &mut dx {
                    branch_and_residual_gradient(saved, row, &sum, &mut dx[local..][..width]);
                }
            }
        });
    });
    add_up(&gamma_sums, dparams.dgamma);
    add_up(&beta_sums, dparams.dbeta);
}

/// Turns the gradient at a row's output into that at LayerNorm's sum.
#[inline(always)]
fn input_gradient(saved: &NormSaved<f32>, row: usize, dout: &mut [f32]) {
    let width = dout.len();
    let xhat = &saved.xhat[row * width..][..width];
    dout.iter_mut().zip(saved.gamma).for_each(|(d, gamma)| *d *= gamma);
    let mean = math::sum(dout) / width as f32;
    let mean_xhat = math::dot(dout, xhat) / width as f32;
    let rstd = saved.rstd[row];
    for (d, x) in dout.iter_mut().zip(xhat) {
        *d = rstd * (*d - mean - x * mean_xhat);
    }
}

/// The gradient at the branch: through the dropout mask.
#[inline(always)]
fn branch_and_residual_gradient(saved: &NormSaved<f32>, row: usize, dsum: &[f32], dx: &mut [f32]) {
    match saved.mask {
        Some(RowMask { mask, cu_seqlens }) => {
            let (sequence, local) = place_of_row(cu_seqlens, row);
            mask.row(sequence, local, dx);
            dx.iter_mut().zip(dsum).for_each(|(dx, d)| *dx *= d);
        }
        None => dx.copy_from_slice(dsum),
    }
}

/// Adds the pieces' sums in their order.
fn add_up(sums: &[f32], to: Option<&mut [f32]>) {
    let Some(to) = to else { return };
    to.fill(0.0);
    for piece in sums.chunks_exact(to.len()) {
        to.iter_mut().zip(piece).for_each(|(to, sum)| *to += sum);
    }
}
