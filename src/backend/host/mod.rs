//! Runs a plan over host memory. Which arithmetic is done is the business of an [`Ops`] table.

mod available;
mod dispatch;
mod frame;
pub mod ops;

use std::sync::Arc;
use std::time::Instant;

pub use self::available::{available_bytes, refuse_if_short};
use self::frame::Memory;
pub use self::ops::{Element, Ops};
use super::{Backend, Bound, KernelLaunch, PrefixRows, StepState, StepTimes, Timing};
use crate::Result;
use crate::batch::Batch;
use crate::model::ParamId;
use crate::plan::{BufId, Layout, Op, Plan};
use crate::tensor::DType;

/// What [`HostBackend::run`] needs of an op at every step, worked out once.
struct Operands {
    reads: Vec<BufId>,
    writes: Vec<BufId>,
}

/// A backend in this process's memory.
pub struct HostBackend<O: Ops> {
    ops: O,
    memory: Memory<O::Element>,
    operands: Vec<Arc<Vec<Operands>>>,
    prefix: Option<PrefixRows>,
    /// Batch of the last run, whose live counts say how much of a buffer means anything.
    live: (usize, usize),
}

impl<O: Ops> HostBackend<O> {
    /// A backend without parameters.
    pub fn new(ops: O) -> Self {
        Self { ops, memory: Memory::default(), operands: Vec::new(), prefix: None, live: (0, 0) }
    }
}

impl<O: Ops> Backend for HostBackend<O> {
    fn name(&self) -> &'static str {
        self.ops.name()
    }

    fn bind(&mut self, plan: Arc<Plan>, layout: Arc<Layout>) -> Result<Bound> {
        if let Some(free) = available_bytes() {
            let missing = self.memory.missing_bytes(&plan, &layout);
            refuse_if_short(missing, free, plan.capacity, &layout)?;
        }
        self.memory.make_room(&plan, &layout);
        let operands = plan.ops.iter().map(|op| match op {
            // The optimizer's ops go over the parameters' own storage.
            Op::AdamwStep { .. } | Op::GradNorm { .. } => {
                Operands { reads: Vec::new(), writes: op.writes() }
            }
            _ => Operands { reads: op.reads(), writes: op.writes() },
        });
        self.operands.push(Arc::new(operands.collect()));
        Ok(Bound { plan, layout, index: self.operands.len() - 1 })
    }

    fn write_value(&mut self, param: ParamId, _dtype: DType, values: Vec<f32>) -> Result<()> {
        self.memory.set_value(param, values);
        Ok(())
    }

    fn read_value(&mut self, param: ParamId) -> Result<Vec<f32>> {
        Ok(self.memory.value(param))
    }

    fn set_prefix(&mut self, prefix: PrefixRows, _capacity_rows: usize) -> Result<()> {
        self.prefix = Some(prefix);
        Ok(())
    }

    fn read_moments(&mut self, param: ParamId) -> Result<Option<[Vec<f32>; 2]>> {
        Ok(self.memory.moments(param))
    }

    fn write_moments(&mut self, param: ParamId, moments: [Vec<f32>; 2]) -> Result<()> {
        self.memory.set_moments(param, moments);
        Ok(())
    }

    fn run(
        &mut self,
        bound: &Bound,
        batch: &Batch,
        state: &StepState,
        timing: Timing,
    ) -> Result<StepTimes> {
        assert!(bound.plan.capacity.serves(batch), "the batch is larger than the plan's capacity");
        self.live = (batch.n_tokens(), batch.n_sequences());
        // On a thread of the pool itself, so that no op has to wake the pool and wait for it.
        Ok(rayon::scope(|_| self.run_ops(bound, batch, state, timing)))
    }

    fn launches(&self, _bound: &Bound) -> &[Vec<KernelLaunch>] {
        &[]
    }

    fn used_bytes(&self) -> Result<Option<usize>> {
        Ok(None)
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        Ok(None)
    }

    fn capture(&mut self, _on: bool) -> Result<()> {
        Ok(())
    }

    fn read(&mut self, bound: &Bound, buf: BufId) -> Result<Vec<f32>> {
        Ok(self.memory.read(&bound.plan, &bound.layout, buf, self.live))
    }
}

impl<O: Ops> HostBackend<O> {
    /// Runs one op of a bound plan.
    pub(super) fn perform(&mut self, bound: &Bound, op: usize, batch: &Batch, state: &StepState) {
        self.live = (batch.n_tokens(), batch.n_sequences());
        let operands = self.operands[bound.index].clone();
        self.run_op(bound, &bound.plan.ops[op], &operands[op], batch, state);
    }

    /// Sets the live elements of a buffer of a bound plan.
    pub(super) fn write(&mut self, bound: &Bound, buf: BufId, values: Vec<f32>) {
        self.memory.write(&bound.plan, &bound.layout, buf, values);
    }

    fn run_ops(
        &mut self,
        bound: &Bound,
        batch: &Batch,
        state: &StepState,
        timing: Timing,
    ) -> StepTimes {
        let operands = self.operands[bound.index].clone();
        let mut times = StepTimes::default();
        let mut last = Instant::now();
        for (op, operands) in bound.plan.ops.iter().zip(operands.iter()) {
            self.run_op(bound, op, operands, batch, state);
            if timing != Timing::Off {
                let now = Instant::now();
                times.phases[op.phase() as usize] += now - last;
                if timing == Timing::Ops {
                    times.ops.push(now - last);
                }
                last = now;
            }
        }
        times
    }
}
