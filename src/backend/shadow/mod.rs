//! A step on a device held against the reference, op by op: what an op read on the device is given to the
//! reference, and what both wrote is compared. Each kernel is so checked on the data that it meets in a
//! real step, and no error adds up with another. An op that changes nothing in place runs twice, and must write
//! the same bits. Of large products and attentions a sample is compared.

mod difference;
mod sample;
mod tolerance;

use std::sync::Arc;

use self::difference::Difference;
use self::sample::{Sample, Sampler};
use self::tolerance::tolerances;

use super::cuda::{CudaBackend, Device};
use super::host::HostBackend;
use super::reference::Reference;
use super::{Backend, Bound, PrefixRows, StepState};
use crate::Result;
use crate::batch::Batch;
use crate::plan::{BufId, Counts, Layout, Op, Plan, Role};
use crate::tensor::DType;

/// One output of one op, beside the reference's.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Comparison {
    pub op: &'static str,
    /// The kernels that the op launched, by symbol.
    pub kernels: Vec<String>,
    /// The buffer's name.
    pub output: String,
    pub shape: [usize; 2],
    pub dtype: DType,
    /// ‖device - reference‖ / ‖reference‖, or over the norm of what was summed where that is larger: a
    /// key's bias gradient is the sum of terms that cancel to nothing. NaN where the device wrote a NaN,
    /// or left out or wrote an element that the reference did not.
    pub error: f64,
    pub tolerance: f64,
    /// The largest difference of a single value, as a share of it or of the usual value where that is larger.
    pub deviation: f64,
    pub deviation_tolerance: f64,
    /// Values that were compared; of a large product or attention, some.
    pub n_compared: usize,
    /// Whether a second run of the op wrote the same bits; true of ops that change what they read, which run once.
    pub repeats: bool,
}

impl Comparison {
    /// Whether the device is right.
    pub fn passes(&self) -> bool {
        self.error <= self.tolerance && self.deviation <= self.deviation_tolerance && self.repeats
    }
}

/// FLOPs from which on a product or an attention is sampled: the plain loops of the reference take a tenth of a second.
pub const SAMPLED_FLOPS: u64 = 100_000_000;

/// Runs one step of a plan bound to `backend` and compares every output of every op; `prefix` is the cache that the
/// backend has been given, for plans that read one. Of products and attentions of `sampled_flops` or more a sample is
/// compared.
///
/// # Errors
/// When the device fails.
pub fn shadow<D: Device>(
    backend: &mut CudaBackend<D>,
    bound: &Bound,
    batch: &Batch,
    state: &StepState,
    prefix: Option<&PrefixRows>,
    sampled_flops: u64,
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
    let mut shadow = Shadow {
        backend,
        bound,
        batch,
        state,
        reference,
        shadowed,
        kernels: Vec::new(),
        comparisons: Vec::new(),
    };
    let counts = Counts::of(batch);
    shadow.backend.begin(bound, batch, state)?;
    for (at, op) in bound.plan.ops.iter().enumerate() {
        let is_sampled = bound.plan.cost(op, &counts).flops >= sampled_flops;
        shadow.op(at, op, is_sampled)?;
    }
    Ok(shadow.comparisons)
}

/// A step while it is compared.
struct Shadow<'a, D: Device> {
    backend: &'a mut CudaBackend<D>,
    bound: &'a Bound,
    batch: &'a Batch,
    state: &'a StepState,
    reference: HostBackend<Reference>,
    /// The plan on the reference.
    shadowed: Bound,
    /// Of the op that is being compared.
    kernels: Vec<String>,
    comparisons: Vec<Comparison>,
}

impl<D: Device> Shadow<'_, D> {
    /// Runs an op on the device and compares what it wrote.
    fn op(&mut self, at: usize, op: &Op, is_sampled: bool) -> Result<()> {
        let samples = if is_sampled { self.samples(op)? } else { None };
        if samples.is_none() {
            self.prepare(op)?;
        }
        self.run(at, op)?;
        let launches = &self.backend.launches(self.bound)[at];
        self.kernels = launches.iter().map(|launch| launch.kernel.clone()).collect();
        self.kernels.dedup();
        let found = (outputs(op).into_iter())
            .map(|(output, _)| self.backend.read(self.bound, output))
            .collect::<Result<Vec<_>>>()?;
        let repeats = self.repeat(at, op, &found)?;
        match samples {
            Some(samples) => self.compare_samples(op, &samples, &found, &repeats),
            None => self.compare(at, op, &found, &repeats),
        }
    }

    /// What some values of an op's outputs should be; None where it is no op to be sampled.
    fn samples(&mut self, op: &Op) -> Result<Option<Vec<Sample>>> {
        let (plan, backend, bound) = (&*self.bound.plan, &mut *self.backend, self.bound);
        let sampler = Sampler { plan, batch: self.batch, state: self.state };
        sampler.samples(op, &mut |buf| backend.read(bound, buf))
    }

    /// Gives the reference what the op will read on the device, and nothing but NaN where it is to write.
    fn prepare(&mut self, op: &Op) -> Result<()> {
        let plan = &self.bound.plan;
        for (from, to) in sources(op) {
            if !matches!(plan.buffer(from).role, Role::Input(_)) {
                let values = self.backend.read(self.bound, from)?;
                self.reference.write(&self.shadowed, to, values);
            }
        }
        for buf in op.writes() {
            let n = plan.buffer(buf).n_elements(self.batch.n_tokens(), self.batch.n_sequences());
            self.reference.write(&self.shadowed, buf, vec![f32::NAN; n]);
        }
        Ok(())
    }

    /// Runs an op on the device, over outputs of nothing but NaN.
    fn run(&mut self, at: usize, op: &Op) -> Result<()> {
        for buf in op.writes() {
            self.backend.poison(self.bound, buf)?;
        }
        self.backend.perform(self.bound, at..at + 1)
    }

    /// Whether another run writes the same bits, output by output; an op that changes what it reads has no other run.
    fn repeat(&mut self, at: usize, op: &Op, found: &[Vec<f32>]) -> Result<Vec<bool>> {
        if !op.updates().is_empty() {
            return Ok(vec![true; found.len()]);
        }
        self.run(at, op)?;
        let same_bits = |(output, found): ((BufId, BufId), &Vec<f32>)| {
            let again = self.backend.read(self.bound, output.0)?;
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
            Ok(bits(&again) == bits(found))
        };
        outputs(op).into_iter().zip(found).map(same_bits).collect()
    }

    fn compare(&mut self, at: usize, op: &Op, found: &[Vec<f32>], repeats: &[bool]) -> Result<()> {
        self.reference.perform(&self.shadowed, at, self.batch, self.state);
        for (((output, truth), found), &repeats) in outputs(op).into_iter().zip(found).zip(repeats)
        {
            let expected = self.reference.read(&self.shadowed, truth)?;
            let summed = match summands(op, output) {
                Some(buf) => norm(&self.reference.read(&self.shadowed, buf)?),
                None => 0.0,
            };
            // Only these leave out rows, of sequences that take no part in a task.
            let may_leave_out = matches!(op, Op::HeadFwd { .. } | Op::XentFwd { .. });
            let difference = match may_leave_out || expected.iter().all(|v| v.is_finite()) {
                true => Difference::of(found, &expected, summed),
                false => Difference::UNBOUNDED,
            };
            self.note(op, output, found.len(), difference, found.len(), repeats);
        }
        Ok(())
    }

    fn compare_samples(
        &mut self,
        op: &Op,
        samples: &[Sample],
        found: &[Vec<f32>],
        repeats: &[bool],
    ) -> Result<()> {
        for (((output, _), found), &repeats) in outputs(op).into_iter().zip(found).zip(repeats) {
            let sample = samples.iter().find(|sample| sample.output == output);
            let sample = sample.expect("a sampled op has a sample of each of its outputs");
            let chosen: Vec<f32> = sample.places.iter().map(|&place| found[place]).collect();
            // Of as many summands as were chosen, so that their norm is theirs.
            let summed = match summands(op, output) {
                Some(buf) => {
                    let all = self.backend.read(self.bound, buf)?;
                    let cols = self.bound.plan.buffer(buf).cols;
                    let of_column = |&col: &usize| all[col..].iter().step_by(cols).copied();
                    norm(&sample.places.iter().flat_map(of_column).collect::<Vec<f32>>())
                }
                None => 0.0,
            };
            // What was not chosen must at least have been written.
            let difference = match found.iter().all(|value| value.is_finite()) {
                true => Difference::of(&chosen, &sample.expected, summed),
                false => Difference::UNBOUNDED,
            };
            self.note(op, output, found.len(), difference, chosen.len(), repeats);
        }
        Ok(())
    }

    fn note(
        &mut self,
        op: &Op,
        output: BufId,
        n_found: usize,
        difference: Difference,
        n_compared: usize,
        repeats: bool,
    ) {
        let plan = &self.bound.plan;
        let buffer = plan.buffer(output);
        let [tolerance, deviation_tolerance] = tolerances(plan, op, output, self.batch.n_tokens());
        self.comparisons.push(Comparison {
            op: op.name(),
            kernels: self.kernels.clone(),
            output: buffer.name.clone(),
            shape: [n_found / buffer.cols.max(1), buffer.cols],
            dtype: buffer.dtype,
            error: difference.error,
            tolerance,
            deviation: difference.deviation,
            deviation_tolerance,
            n_compared,
            repeats,
        });
    }
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
