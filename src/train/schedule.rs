//! How the learning rate changes over a run, as transformers' `get_scheduler` has it.

/// Steps over which the rate rises from 0.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub enum Warmup {
    Steps(u64),
    /// A share of all steps, rounded up.
    Ratio(f64),
}

impl Warmup {
    /// Steps of warm-up in a run of `n_steps`.
    pub fn steps(self, n_steps: u64) -> u64 {
        match self {
            Warmup::Steps(n) => n,
            Warmup::Ratio(ratio) => (ratio * n_steps as f64).ceil() as u64,
        }
    }
}

/// What the rate does behind the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Falls to 0 on a line.
    Linear,
    /// Falls to 0 on half a cosine.
    Cosine,
    /// Stays.
    Constant,
}

impl Schedule {
    /// The factor on the learning rate in the step after `done` steps of `n_steps`.
    pub fn factor(self, done: u64, n_steps: u64, warmup_steps: u64) -> f64 {
        if done < warmup_steps {
            return done as f64 / warmup_steps as f64;
        }
        let n_behind = n_steps.saturating_sub(warmup_steps).max(1);
        let progress = ((done - warmup_steps) as f64 / n_behind as f64).min(1.0);
        match self {
            Schedule::Linear => 1.0 - progress,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Schedule::Constant => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_rises_and_falls() {
        let factors: Vec<f64> = (0..10).map(|done| Schedule::Linear.factor(done, 10, 2)).collect();
        let expected = [0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125];
        assert_eq!(factors, expected);
    }

    #[test]
    fn others_and_edges() {
        assert_eq!(Schedule::Constant.factor(7, 10, 2), 1.0);
        assert!((Schedule::Cosine.factor(6, 10, 2) - 0.5).abs() <= 1e-12);
        assert_eq!(Schedule::Linear.factor(0, 1, 0), 1.0);
        assert_eq!(Schedule::Linear.factor(3, 3, 5), 0.6);
        assert_eq!(Warmup::Ratio(0.1).steps(11), 2);
        assert_eq!(Warmup::Steps(4).steps(11), 4);
    }
}
