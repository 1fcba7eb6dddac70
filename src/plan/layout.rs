//! A place for every buffer of a step, and so its memory, known before anything runs.
//!
//! Parameters, their gradients and moments lie apart and stay. What a step makes lives in one arena,
//! where buffers whose lifetimes do not meet share their place.

use super::op::{Op, Phase};
use super::{BufId, Plan, Role};

/// Where a buffer of a step lies in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub offset_bytes: usize,
    pub size_bytes: usize,
}

/// Bytes by kind. Their sum is the peak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct MemoryUse {
    /// Parameters, and the masters of trained ones where the compute type is narrower.
    pub weights: usize,
    /// Gradients of parameters, and their sums where a step goes over several batches.
    pub gradients: usize,
    /// Both moments of trained parameters.
    pub optimizer: usize,
    /// What the forward pass keeps for the backward pass alone.
    pub activations: usize,
    /// Everything else: the batch, and the rest of the arena (gradients of activations, ...).
    pub workspace: usize,
}

impl MemoryUse {
    /// All kinds together.
    pub fn total(&self) -> usize {
        self.weights + self.gradients + self.optimizer + self.activations + self.workspace
    }
}

/// The memory of one plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// By buffer id; None for what does not lie in the arena or is not used.
    places: Vec<Option<Place>>,
    pub arena_bytes: usize,
    pub memory: MemoryUse,
}

/// Offsets are multiples of this: a cache line on any CPU, a coalesced access on any GPU.
const ALIGNMENT_BYTES: usize = 256;

/// First and last op that touches a buffer.
#[derive(Clone, Copy, Debug)]
struct Lifetime {
    first: usize,
    last: usize,
}

impl Lifetime {
    fn meets(self, other: Lifetime) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl Layout {
    /// Lays out `plan` at its capacity.
    pub fn new(plan: &Plan) -> Self {
        let lifetimes = lifetimes(plan);
        let size = |id: usize| {
            let buffer = &plan.buffers[id];
            let n = buffer.n_elements(plan.capacity.tokens, plan.capacity.sequences);
            n * buffer.dtype.size_bytes()
        };
        let mut in_arena: Vec<(usize, Lifetime)> = (lifetimes.iter().enumerate())
            .filter(|(id, _)| matches!(plan.buffers[*id].role, Role::Transient | Role::Result))
            .filter_map(|(id, lifetime)| lifetime.map(|lifetime| (id, lifetime)))
            .collect();
        // Largest first, each at the lowest offset that is free for as long as it lives.
        in_arena.sort_by_key(|&(id, lifetime)| (std::cmp::Reverse(size(id)), lifetime.first, id));
        let mut places: Vec<Option<Place>> = vec![None; plan.buffers.len()];
        let mut placed: Vec<(Place, Lifetime)> = Vec::with_capacity(in_arena.len());
        for (id, lifetime) in in_arena {
            let size_bytes = size(id).next_multiple_of(ALIGNMENT_BYTES);
            let mut offset_bytes = 0;
            // `placed` is sorted by offset, so the first gap that is wide enough is the lowest.
            for (place, other) in &placed {
                if !other.meets(lifetime) {
                    continue;
                }
                if offset_bytes + size_bytes <= place.offset_bytes {
                    break;
                }
                offset_bytes = offset_bytes.max(place.offset_bytes + place.size_bytes);
            }
            let place = Place { offset_bytes, size_bytes };
            let at = placed.partition_point(|(other, _)| other.offset_bytes <= offset_bytes);
            placed.insert(at, (place, lifetime));
            places[id] = Some(place);
        }
        let arena_bytes = placed
            .iter()
            .map(|(place, _)| place.offset_bytes + place.size_bytes)
            .max()
            .unwrap_or(0);
        let memory = memory_use(plan, &lifetimes, &places, arena_bytes, size);
        Self { places, arena_bytes, memory }
    }

    /// The buffer's place in the arena, if it lies there.
    pub fn place(&self, buf: BufId) -> Option<Place> {
        self.places[buf.0]
    }
}

fn lifetimes(plan: &Plan) -> Vec<Option<Lifetime>> {
    let mut lifetimes: Vec<Option<Lifetime>> = vec![None; plan.buffers.len()];
    for (at, op) in plan.ops.iter().enumerate() {
        for buf in op.reads().into_iter().chain(op.writes()).chain(op.updates()) {
            let lifetime = lifetimes[buf.0].get_or_insert(Lifetime { first: at, last: at });
            lifetime.last = at;
        }
    }
    for (buffer, lifetime) in plan.buffers.iter().zip(&mut lifetimes) {
        if let (Role::Result, Some(lifetime)) = (buffer.role, lifetime) {
            lifetime.last = plan.ops.len();
        }
    }
    // The last hidden state and the pooled vectors are read after a forward pass that computes nothing else with
    // them.
    if !plan.ops.iter().any(|op| op.phase() == Phase::Backward) {
        for buf in [plan.last_hidden, plan.pooled] {
            if let Some(lifetime) = &mut lifetimes[buf.0] {
                lifetime.last = plan.ops.len();
            }
        }
    }
    lifetimes
}

/// Whether a lifetime goes from the forward pass into what comes after it; in a plan that is a forward
/// pass alone, what is read behind its end is kept for nobody.
fn is_kept_for_backward(plan: &Plan) -> impl Fn(Lifetime) -> bool {
    let n_ops = plan.ops.len();
    let n_forward = plan.ops.iter().take_while(|op| op.phase() == Phase::Forward).count();
    move |life| life.first < n_forward && life.last >= n_forward && n_forward < n_ops
}

fn memory_use(
    plan: &Plan,
    lifetimes: &[Option<Lifetime>],
    places: &[Option<Place>],
    arena_bytes: usize,
    size: impl Fn(usize) -> usize,
) -> MemoryUse {
    let mut memory = MemoryUse::default();
    let is_kept = is_kept_for_backward(plan);
    for (id, buffer) in plan.buffers.iter().enumerate() {
        let is_used = lifetimes[id].is_some();
        match buffer.role {
            // Parameters are there whether or not an op reads them (an unused pooler).
            Role::Value(_) => memory.weights += size(id),
            Role::Master(_) if is_used => memory.weights += size(id),
            Role::Gradient(_) | Role::GradientSum(_) if is_used => memory.gradients += size(id),
            Role::Moment1(_) | Role::Moment2(_) if is_used => memory.optimizer += size(id),
            Role::Input(_) => memory.workspace += size(id),
            Role::Transient => {
                if let (Some(life), Some(place)) = (lifetimes[id], places[id])
                    && is_kept(life)
                {
                    memory.activations += place.size_bytes;
                }
            }
            _ => {}
        }
    }
    memory.workspace += arena_bytes - memory.activations;
    memory
}

impl Plan {
    /// Names of the activations that are kept from the forward pass for the backward pass.
    pub fn saved_activations(&self) -> Vec<&str> {
        let lifetimes = lifetimes(self);
        let is_kept = is_kept_for_backward(self);
        (self.buffers.iter().zip(&lifetimes))
            .filter(|(buffer, life)| buffer.role == Role::Transient && life.is_some_and(&is_kept))
            .map(|(buffer, _)| buffer.name.as_str())
            .collect()
    }

    /// The ops that make or change the gradient, the moments or the value of a parameter.
    pub fn ops_that_change(&self, role: impl Fn(Role) -> bool) -> Vec<&Op> {
        let changes = |op: &&Op| {
            (op.writes().into_iter().chain(op.updates())).any(|buf| role(self.buffer(buf).role))
        };
        self.ops.iter().filter(changes).collect()
    }
}
