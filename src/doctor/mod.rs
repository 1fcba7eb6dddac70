//! Runs every kernel and whole training steps on a device of this machine, and holds each against the
//! reference.

mod cases;

use std::collections::BTreeSet;
use std::sync::Arc;

pub use self::cases::Extent;
use self::cases::{Case, cases, value};
use crate::Result;
use crate::backend::cuda::{CudaBackend, Device, embedded};
use crate::backend::shadow::{Comparison, SAMPLED_FLOPS, shadow};
use crate::backend::{Backend, Bound, KernelLaunch, PrefixRows, StepState, Timing};
use crate::philox::normal;
use crate::plan::{Layout, Plan, Role};

const STATE: StepState = StepState {
    step: 3,
    learning_rate: 1e-3,
    head_learning_rate: 2e-3,
    weight_decay: 0.01,
    seed: 42,
};

/// Steps that are run once as launches and once as replays of recorded graphs. The first is never a replay: it loads
/// kernels, which a recording must not.
const N_REPLAYED_STEPS: u64 = 2;

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
    pub comparisons: Vec<Comparison>,
    pub replays: Vec<Replay>,
    /// The kernels that were launched, by symbol.
    pub launched: BTreeSet<String>,
}

impl Findings {
    /// Outputs and replays that are wrong.
    pub fn n_wrong(&self) -> usize {
        self.comparisons.iter().filter(|one| !one.passes()).count()
            + self.replays.iter().filter(|one| !one.passes()).count()
    }

    /// Kernels in this program that were not launched.
    pub fn never_launched(&self) -> BTreeSet<String> {
        embedded::kernel_names().difference(&self.launched).cloned().collect()
    }
}

/// Compares every output of every op of whole steps, fused and not, over several batches, and with a cached prefix, in
/// both types; and steps that are replayed as recorded graphs with steps that are launched.
///
/// `backend` loses whatever it held; `progress` is told what comes next.
///
/// # Errors
/// When the device fails.
pub fn check<D: Device>(
    backend: &mut CudaBackend<D>,
    extent: Extent,
    mut progress: impl FnMut(&str),
) -> Result<Findings> {
    let mut findings = Findings::default();
    for case in cases(extent, backend.device().n_processors())? {
        progress(&case.name);
        let prefix = case.open(backend, false)?;
        for plan in &case.plans {
            let bound = bind(backend, plan)?;
            let launches = backend.launches(&bound).iter().flatten();
            findings.launched.extend(launches.map(|launch| launch.kernel.clone()));
            let (batch, prefix) = (&case.batch, Some(&prefix));
            let compared = shadow(backend, &bound, batch, &STATE, prefix, SAMPLED_FLOPS)?;
            findings.comparisons.extend(compared);
        }
        if case.is_replayed {
            progress(&format!("{}, replayed", case.name));
            findings.replays.push(case.replay(backend)?);
        }
    }
    backend.clear(false)?;
    Ok(findings)
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

    /// Runs some steps of the first plan as launches, and again as recorded graphs.
    fn replay<D: Device>(&self, backend: &mut CudaBackend<D>) -> Result<Replay> {
        let launched = self.left_by_steps(backend, false)?;
        let replayed = self.left_by_steps(backend, true)?;
        let differs = |(a, b): &(&f32, &f32)| a.to_bits() != b.to_bits() || !a.is_finite();
        let n_common = launched.len().min(replayed.len());
        let n_longer = launched.len().max(replayed.len());
        let n_different = launched.iter().zip(&replayed).filter(differs).count();
        Ok(Replay {
            case: self.name.clone(),
            n_values: n_longer,
            n_different: n_different + n_longer - n_common,
        })
    }

    /// Losses, parameters and moments after some steps of the first plan.
    fn left_by_steps<D: Device>(
        &self,
        backend: &mut CudaBackend<D>,
        use_graphs: bool,
    ) -> Result<Vec<f32>> {
        self.open(backend, use_graphs)?;
        let plan = &self.plans[0];
        let bound = bind(backend, plan)?;
        let mut left = Vec::new();
        for step in 1..=N_REPLAYED_STEPS {
            let state = StepState { step, ..STATE };
            backend.run(&bound, &self.batch, &state, Timing::Off)?;
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
