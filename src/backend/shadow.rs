//! A step on a device held against the reference, op by op: what an op read on the device is given to the
//! reference, and what both wrote is compared. Each kernel is so checked on the data that it meets in a
//! real step, and no error adds up with another.

use std::sync::Arc;

use super::cuda::{CudaBackend, Device};
use super::host::HostBackend;
use super::reference::Reference;
use super::{Backend, Bound, PrefixRows, StepState};
use crate::Result;
use crate::batch::Batch;
use crate::plan::{BufId, Layout, Op, Plan, Role};
use crate::tensor::DType;

/// One output of one op, beside the reference's.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Comparison {
    pub op: &'static str,
    /// The buffer's name.
    pub output: String,
    pub shape: [usize; 2],
    pub dtype: DType,
    /// ‖device - reference‖ / ‖reference‖, or over the norm of what was summed where that is larger: a
    /// key's bias gradient is the sum of terms that cancel to nothing. NaN where the device wrote a NaN,
    /// or left out or wrote an element that the reference did not.
    pub error: f64,
    pub tolerance: f64,
}

impl Comparison {
    /// Whether the device is right.
    pub fn passes(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// Runs one step of a plan bound to `backend` and compares every output of every op; `prefix` is the cache that the
/// backend has been given, for plans that read one.
///
/// # Errors
/// When the device fails.
pub fn shadow<D: Device>(
    backend: &mut CudaBackend<D>,
    bound: &Bound,
    batch: &Batch,
    state: &StepState,
    prefix: Option<&PrefixRows>,
) -> Result<Vec<Comparison>> {
    let mut reference = HostBackend::new(Reference);
    if let Some(prefix) = prefix {
        reference.set_prefix(prefix.clone(), 0)?;
    }
    // The reference computes in f64 whatever a plan says, in places that are laid out for f32.
    let wide = Arc::new(widened(&bound.plan));
    let layout = Arc::new(Layout::new(&wide));
    for buffer in &bound.plan.buffers {
        if let Role::Value(id) = buffer.role {
            reference.write_value(id, DType::F32, backend.read_value(id)?)?;
        }
    }
    let shadowed = reference.bind(wide, layout)?;
    let mut comparisons = Vec::new();
    backend.begin(bound, batch, state)?;
    for (at, op) in bound.plan.ops.iter().enumerate() {
        for (from, to) in sources(op) {
            if !matches!(bound.plan.buffer(from).role, Role::Input(_)) {
                reference.write(&shadowed, to, backend.read(bound, from)?);
            }
        }
        for buf in op.writes() {
            backend.poison(bound, buf)?;
            let n = bound.plan.buffer(buf).n_elements(batch.n_tokens(), batch.n_sequences());
            reference.write(&shadowed, buf, vec![f32::NAN; n]);
        }
        reference.perform(&shadowed, at, batch, state);
        backend.perform(bound, at..at + 1)?;
        for (output, truth) in outputs(op) {
            let buffer = bound.plan.buffer(output);
            let found = backend.read(bound, output)?;
            let expected = reference.read(&shadowed, truth)?;
            let summed = match summands(op, output) {
                Some(buf) => norm(&reference.read(&shadowed, buf)?),
                None => 0.0,
            };
            comparisons.push(Comparison {
                op: op.name(),
                output: buffer.name.clone(),
                shape: [found.len() / buffer.cols.max(1), buffer.cols],
                dtype: buffer.dtype,
                error: relative_error(&found, &expected, summed),
                tolerance: tolerance(op, buffer.dtype),
            });
        }
    }
    Ok(comparisons)
}

/// `plan` with every floating buffer in f32.
fn widened(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    for buffer in &mut plan.buffers {
        if buffer.dtype != DType::I32 {
            buffer.dtype = DType::F32;
        }
    }
    plan
}

/// What an op reads, and the reference's buffer for it: a value that has a master is the master's.
fn sources(op: &Op) -> Vec<(BufId, BufId)> {
    let mut sources: Vec<(BufId, BufId)> = op.reads().into_iter().map(|buf| (buf, buf)).collect();
    match op {
        Op::GradAccumulate { begins: false, items } => {
            sources.extend(items.iter().map(|item| (item.sum, item.sum)));
        }
        Op::AdamwStep { items, .. } => {
            for item in items {
                sources.push((item.master.unwrap_or(item.value), item.value));
                sources.push((item.moment1, item.moment1));
                sources.push((item.moment2, item.moment2));
            }
        }
        _ => {}
    }
    sources
}

/// What an op writes or changes, and the reference's buffer for it.
fn outputs(op: &Op) -> Vec<(BufId, BufId)> {
    let mut outputs: Vec<(BufId, BufId)> = op.writes().into_iter().map(|buf| (buf, buf)).collect();
    match op {
        Op::GradAccumulate { begins: false, items } => {
            outputs.extend(items.iter().map(|item| (item.sum, item.sum)));
        }
        Op::AdamwStep { items, .. } => {
            for item in items {
                outputs.extend(item.master.map(|master| (master, item.value)));
                outputs.extend([item.value, item.moment1, item.moment2].map(|buf| (buf, buf)));
            }
        }
        _ => {}
    }
    outputs
}

/// The matrix whose columns `output` of an op sums up, if it does.
fn summands(op: &Op, output: BufId) -> Option<BufId> {
    match op {
        Op::BiasGrad { dout, .. } => Some(*dout),
        Op::GemmWgrad { parts, .. } => {
            parts.iter().find(|part| part.dbias == Some(output)).map(|part| part.dout)
        }
        _ => None,
    }
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// `‖found - expected‖` over the larger of `‖expected‖` and `scale`.
fn relative_error(found: &[f32], expected: &[f32], scale: f64) -> f64 {
    if found.len() != expected.len() || found.is_empty() {
        return f64::NAN;
    }
    let (mut difference, mut squares) = (0.0, 0.0);
    for (&found, &expected) in found.iter().zip(expected) {
        // Both left it out: a row that takes no part in a task.
        if found.is_nan() && expected.is_nan() {
            continue;
        }
        difference += (f64::from(found) - f64::from(expected)).powi(2);
        squares += f64::from(expected).powi(2);
    }
    let norm = squares.sqrt().max(scale);
    // Where all is zero, any difference counts in full.
    if norm == 0.0 { difference.sqrt() } else { difference.sqrt() / norm }
}

/// Rounding of f32: 6e-8 at most, added up over the sums of an op.
const F32: f64 = 2e-6;
/// Rounding of an output to bf16 is 2e-3 on average; sums before it are in f32 over exact products.
const BF16: f64 = 4e-3;

/// The error that an op may have in one output, given exactly the inputs that the reference had.
fn tolerance(op: &Op, output: DType) -> f64 {
    match (op, output) {
        // Differences of nearly equal sums: the key's gradient of a head that looks everywhere alike.
        (Op::AttentionBwd { .. }, DType::Bf16) => 1e-2,
        (Op::AttentionBwd { .. }, _) => 1e-5,
        // Probabilities are rounded to bf16 before they meet the values.
        (Op::AttentionFwd { .. }, DType::Bf16) => 8e-3,
        (_, DType::Bf16) => BF16,
        (_, _) => F32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_wrong_passes_unseen() {
        let error = |found: &[f32], expected: &[f32]| relative_error(found, expected, 0.0);
        assert_eq!(error(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
        assert_eq!(error(&[f32::NAN, 2.0], &[f32::NAN, 2.0]), 0.0);
        // A missing element, one too many, a zero, a swapped pair, nothing at all.
        assert!(error(&[f32::NAN, 2.0], &[1.0, 2.0]).is_nan());
        assert!(error(&[1.0, 2.0], &[f32::NAN, 2.0]).is_nan());
        assert!(error(&[0.0, 0.0], &[1.0, 2.0]) == 1.0);
        assert!(error(&[2.0, 1.0], &[1.0, 2.0]) > 0.5);
        assert!(error(&[1e-3], &[0.0]) > 0.0);
        assert!(error(&[], &[]).is_nan());
    }
}
