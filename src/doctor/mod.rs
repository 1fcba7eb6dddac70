//! Runs every kernel and whole training steps on a device of this machine, and holds each against the
//! reference.

mod cases;

use std::collections::BTreeSet;
use std::sync::Arc;

pub use self::cases::Extent;
use self::cases::{Case, cases, value};
use crate::backend::cuda::{CudaBackend, Device, embedded};
use crate::backend::shadow::{Comparison, SAMPLED_FLOPS, shadow};
use crate::backend::{Backend, Bound, KernelLaunch, PrefixRows, StepState, Timing};
use crate::philox::normal;
use crate::plan::{Layout, Plan, Role};
use crate::{Error, Result};

const STATE: StepState = StepState {
    step: 3,
    learning_rate: 1e-3,
    head_learning_rate: 2e-3,
    weight_decay: 0.01,
    seed: 42,
};

/// Steps that are run once as launches and once as replays of recorded graphs. The first is never a replay: it loads
/// kernels, which a recording must not. The second is recorded, and those after it are of another size, seed and rate.
const N_REPLAYED_STEPS: u64 = 4;

/// Recorded steps beside launched ones.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Replay {
    /// The network, in words.
    pub case: String,
    /// Losses, parameters and moments after the last step.
    pub n_values: usize,
    /// How many of them differ in any bit, or are not finite.
    pub n_different: usize,
}

impl Replay {
    /// Whether recorded steps did what launched ones do.
    pub fn passes(&self) -> bool {
        self.n_values > 0 && self.n_different == 0
    }
}

/// What doctor has found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Of every output of every op.
    pub comparisons: Vec<Comparison>,
    /// Of those the ones that do not pass, each with its case in words.
    pub failures: Vec<(String, Comparison)>,
    /// Recorded steps beside launched ones.
    pub replays: Vec<Replay>,
    /// The kernels that were launched, by symbol.
    pub launched: BTreeSet<String>,
}

impl Findings {
    /// Outputs and replays that are wrong.
    pub fn n_wrong(&self) -> usize {
        self.failures.len() + self.replays.iter().filter(|one| !one.passes()).count()
    }

    /// Kernels in this program that were not launched.
    pub fn never_launched(&self) -> BTreeSet<String> {
        embedded::kernel_names().difference(&self.launched).cloned().collect()
    }
}

/// Compares every output of every op of whole steps, fused and not, over several batches, and with a cached prefix, in
/// both types; and steps that are replayed as recorded graphs with steps that are launched.
///
/// `backend` loses whatever it held; `progress` is told what comes next. `findings` has what was found up to an error
/// too.
///
/// # Errors
/// When the device fails: with the case that it failed in.
pub fn check<D: Device>(
    backend: &mut CudaBackend<D>,
    extent: Extent,
    findings: &mut Findings,
    mut progress: impl FnMut(&str),
) -> Result<()> {
    for case in cases(extent, backend.device().n_processors())? {
        progress(&case.name);
        case.check(backend, findings).map_err(|error| case.fault(error))?;
        if !case.replayed.is_empty() {
            progress(&format!("{}, replayed", case.name));
            let replay = case.replay(backend).map_err(|error| case.fault(error))?;
            findings.replays.push(replay);
        }
    }
    backend.clear(false)
}

/// What [`check`] would launch: nothing runs.
///
/// # Errors
/// When the device fails.
pub fn launches<D: Device>(
    backend: &mut CudaBackend<D>,
    extent: Extent,
) -> Result<Vec<KernelLaunch>> {
    let mut launches = Vec::new();
    for case in cases(extent, backend.device().n_processors())? {
        case.open(backend, false)?;
        for plan in &case.plans {
            let bound = bind(backend, plan)?;
            launches.extend(backend.launches(&bound).iter().flatten().cloned());
        }
    }
    backend.clear(false)?;
    Ok(launches)
}

fn bind<D: Device>(backend: &mut CudaBackend<D>, plan: &Plan) -> Result<Bound> {
    let layout = Arc::new(Layout::new(plan));
    backend.bind(Arc::new(plan.clone()), layout)
}

impl Case {
    fn fault(&self, error: Error) -> Error {
        match error {
            Error::Run(problem) => Error::Run(format!("{}: {problem}", self.name)),
            other => other,
        }
    }

    /// Compares every output of every op of the plans.
    fn check<D: Device>(
        &self,
        backend: &mut CudaBackend<D>,
        findings: &mut Findings,
    ) -> Result<()> {
        let prefix = self.open(backend, false)?;
        for plan in &self.plans {
            let bound = bind(backend, plan)?;
            let launches = backend.launches(&bound).iter().flatten();
            findings.launched.extend(launches.map(|launch| launch.kernel.clone()));
            let compared =
                shadow(backend, &bound, &self.batch, &STATE, Some(&prefix), SAMPLED_FLOPS)?;
            let wrong = compared.iter().filter(|one| !one.passes());
            findings.failures.extend(wrong.map(|one| (self.name.clone(), one.clone())));
            findings.comparisons.extend(compared);
        }
        Ok(())
    }

    /// Empties the backend and gives it this case's parameters and the cache that is returned.
    fn open<D: Device>(
        &self,
        backend: &mut CudaBackend<D>,
        use_graphs: bool,
    ) -> Result<PrefixRows> {
        backend.clear(use_graphs)?;
        for id in self.network.param_ids() {
            let dtype = self.network.param(id).dtype(self.compute);
            backend.write_value(id, dtype, value(&self.network, id))?;
        }
        let (cols, n_rows) = (self.network.config.hidden_size, self.batch.n_tokens());
        let values = Arc::new(normal(6, 0, n_rows * cols, 1.0));
        let prefix = PrefixRows { cols, values, on_device: true };
        backend.set_prefix(prefix.clone(), self.capacity.tokens)?;
        Ok(prefix)
    }

    /// Runs some steps of each plan as launches, and again as recorded graphs.
    fn replay<D: Device>(&self, backend: &mut CudaBackend<D>) -> Result<Replay> {
        let mut replay = Replay { case: self.name.clone(), n_values: 0, n_different: 0 };
        for plan in &self.replayed {
            let launched = self.left_by_steps(backend, plan, false)?;
            let replayed = self.left_by_steps(backend, plan, true)?;
            let differs = |(a, b): &(&f32, &f32)| a.to_bits() != b.to_bits() || !a.is_finite();
            let n_different = launched.iter().zip(&replayed).filter(differs).count();
            replay.n_values += launched.len().max(replayed.len());
            replay.n_different += n_different + launched.len().abs_diff(replayed.len());
        }
        Ok(replay)
    }

    /// Losses, parameters and moments after some steps of a plan.
    fn left_by_steps<D: Device>(
        &self,
        backend: &mut CudaBackend<D>,
        plan: &Plan,
        use_graphs: bool,
    ) -> Result<Vec<f32>> {
        self.open(backend, use_graphs)?;
        let bound = bind(backend, plan)?;
        let mut left = Vec::new();
        for step in 1..=N_REPLAYED_STEPS {
            let state = StepState {
                step,
                seed: STATE.seed + step,
                learning_rate: STATE.learning_rate / step as f32,
                ..STATE
            };
            let batch = if step == 3 { &self.smaller } else { &self.batch };
            backend.run(&bound, batch, &state, Timing::Off)?;
            for task in &plan.tasks {
                left.extend(backend.read(&bound, task.loss)?);
            }
        }
        for buffer in &plan.buffers {
            if let Role::Value(id) = buffer.role {
                left.extend(backend.read_value(id)?);
                left.extend(backend.read_moments(id)?.into_iter().flatten().flatten());
            }
        }
        Ok(left)
    }
}
