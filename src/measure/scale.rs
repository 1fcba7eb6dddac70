//! Data-parallel training on paper: every GPU runs the whole step on its own batch, and gradients are averaged
//! by a ring all-reduce. Only trained gradients travel.
//!
//! A ring moves `2 (N - 1) / N` times the gradients' bytes out of every GPU and as many into it, which no
//! all-reduce can undercut (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
//! workstations", 2009). Latency is left out: it is small beside the transfer of a whole encoder's gradients,
//! and not for a head's.

use super::Ceilings;
use super::ceilings::predicted_phase_seconds;
use crate::plan::{Counts, Phase, Plan};

/// How many GPUs there are, and how they are joined.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cluster {
    pub n_gpus: usize,
    /// What one GPU can send while it receives as much.
    pub interconnect_bytes_per_second: f64,
}

/// What exchanging gradients costs.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct AllReduce {
    /// Trained gradients, in f32.
    pub gradient_bytes: usize,
    /// What every GPU sends, and receives, in a step.
    pub bytes_a_gpu: f64,
    pub seconds: f64,
}

impl AllReduce {
    /// The exchange of `gradient_bytes` in `cluster`.
    pub fn new(gradient_bytes: usize, cluster: Cluster) -> Self {
        let n = cluster.n_gpus as f64;
        let bytes_a_gpu = 2.0 * (n - 1.0) / n * gradient_bytes as f64;
        let seconds = bytes_a_gpu / cluster.interconnect_bytes_per_second;
        Self { gradient_bytes, bytes_a_gpu, seconds }
    }
}

/// The time of a step on several GPUs.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct ParallelStep {
    /// On one GPU alone.
    pub single_seconds: f64,
    /// Where the exchange waits for the backward pass.
    pub seconds: f64,
    /// Where it goes on while the backward pass does, bucket by bucket, as in PyTorch's DistributedDataParallel
    /// (Li et al., 2020): the longer of the two counts.
    pub overlapped_seconds: f64,
    /// Throughput of all GPUs over as many times that of one, without and with overlap.
    pub efficiency: f64,
    pub overlapped_efficiency: f64,
}

impl ParallelStep {
    /// The step of `plan` on batches of `counts` a GPU, each GPU as fast as `ceilings` allow.
    pub fn new(plan: &Plan, counts: &Counts, ceilings: &Ceilings, exchange: AllReduce) -> Self {
        let phase = |phase| predicted_phase_seconds(plan, phase, counts, ceilings);
        Self::of_phases(Phase::ALL.map(phase), exchange.seconds)
    }

    fn of_phases([forward, backward, optimizer]: [f64; 3], exchange: f64) -> Self {
        let single_seconds = forward + backward + optimizer;
        let seconds = single_seconds + exchange;
        let overlapped_seconds = forward + backward.max(exchange) + optimizer;
        Self {
            single_seconds,
            seconds,
            overlapped_seconds,
            efficiency: single_seconds / seconds,
            overlapped_efficiency: single_seconds / overlapped_seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_sends_each_byte_almost_twice() {
        let of = |n_gpus| {
            let cluster = Cluster { n_gpus, interconnect_bytes_per_second: 50.0 };
            let exchange = AllReduce::new(400, cluster);
            (exchange.bytes_a_gpu, exchange.seconds)
        };
        assert_eq!(of(1), (0.0, 0.0));
        assert_eq!(of(2), (400.0, 8.0));
        assert_eq!(of(8), (700.0, 14.0));
    }

    #[test]
    fn an_exchange_hides_behind_the_backward_pass() {
        let hidden = ParallelStep::of_phases([1.0, 2.0, 1.0], 1.0);
        assert_eq!((hidden.single_seconds, hidden.seconds), (4.0, 5.0));
        assert_eq!((hidden.overlapped_seconds, hidden.overlapped_efficiency), (4.0, 1.0));
        assert_eq!(hidden.efficiency, 0.8);
        let too_long = ParallelStep::of_phases([1.0, 2.0, 1.0], 6.0);
        assert_eq!((too_long.overlapped_seconds, too_long.overlapped_efficiency), (8.0, 0.5));
    }
}
