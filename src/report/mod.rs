//! Renderings of what was measured: tables for people ([`table`], drawn by [`cells`]), one JSON document for programs
//! ([`json`]), what others read ([`export`]), a page of pictures ([`html`]), a step op by op ([`profile`]), what
//! training changed ([`retention`]), and what to freeze ([`advice`]).

pub mod advice;
pub mod cells;
pub mod environment;
pub mod export;
pub mod html;
pub mod json;
pub mod profile;
pub mod retention;
pub mod table;
pub mod tensorboard;

use serde_json::Value;

use crate::Result;
use crate::measure::findings::findings;
use crate::measure::power::Clocks;
use crate::measure::scenarios::Measurement;
use crate::measure::stats::median;
use crate::measure::{Ceilings, Interval};
use crate::train::retention::Retention;
use crate::train::{LogLine, Quality};

/// All that one `bench` measured, and on what.
pub struct Bench {
    pub environment: environment::Environment,
    /// What the run was asked for.
    pub settings: Value,
    pub ceilings: Ceilings,
    /// Parameters of the network.
    pub n_values: usize,
    pub shapes: Vec<Shape>,
    /// Shape by shape, the baseline first.
    pub rows: Vec<Row>,
}

impl Bench {
    /// The baseline of a row's shape.
    pub fn baseline<'a>(&'a self, row: &'a Row) -> &'a Measurement {
        let first = self.rows.iter().find(|other| other.shape == row.shape);
        &first.unwrap_or(row).measurement
    }

    /// The shape of a row.
    pub fn shape(&self, row: &Row) -> &Shape {
        &self.shapes[row.shape]
    }

    /// Where savings did not come, in words.
    pub fn findings(&self, row: &Row) -> Vec<String> {
        findings(&row.measurement, self.baseline(row))
    }
}

/// Batches of one size.
#[derive(serde::Serialize)]
pub struct Shape {
    /// None where batches are filled by tokens.
    pub batch_size: Option<usize>,
    pub batch_tokens: Option<usize>,
    /// Tokens that a sequence has at most.
    pub max_length: usize,
    /// Tokens of a batch.
    pub mean_tokens: f64,
    /// Of each batch.
    pub batch_lengths: Vec<Vec<usize>>,
    /// Rounds that did not count.
    pub warmup_rounds: usize,
    /// Of a GPU during the rounds, where they could be read.
    pub clocks: Option<Clocks>,
    /// The baseline against itself, if asked for.
    pub aa: Option<AgainstItself>,
}

impl Shape {
    /// Sequences times their longest length, or tokens times that.
    pub fn label(&self) -> String {
        match (self.batch_size, self.batch_tokens) {
            (Some(n), _) => format!("{n} x {}", self.max_length),
            (None, n) => format!("{} tokens, {}", n.unwrap_or(0), self.max_length),
        }
    }
}

/// What an A/A test showed.
#[derive(Clone, Debug, serde::Serialize)]
pub struct AgainstItself {
    /// The 95 % interval of each repeat.
    pub intervals: Vec<Interval>,
    /// The share of the intervals that hold 1.
    pub coverage: f64,
    /// The median width of an interval.
    pub width: f64,
}

impl AgainstItself {
    /// The summary of these intervals.
    ///
    /// # Errors
    /// Without intervals.
    pub fn new(intervals: Vec<Interval>) -> Result<Self> {
        let holds_one = |interval: &&Interval| interval.low <= 1.0 && 1.0 <= interval.high;
        let coverage = intervals.iter().filter(holds_one).count() as f64 / intervals.len() as f64;
        let widths: Vec<f64> = intervals.iter().map(|one| one.high - one.low).collect();
        Ok(Self { coverage, width: median(&widths)?, intervals })
    }

    /// One sentence.
    pub fn text(&self) -> String {
        let (width, n) = (self.width, self.intervals.len());
        match self.intervals.as_slice() {
            [Interval { low, median, high }] => format!(
                "the baseline against itself: {median:.3} ({low:.3} to {high:.3}); what differs by less than \
                 {width:.3} cannot be told from chance here"
            ),
            _ => format!(
                "the baseline against itself: {:.1} % of {n} intervals hold 1; their median width is {width:.3}",
                100.0 * self.coverage
            ),
        }
    }
}

/// A scenario with all that was measured of it.
pub struct Row {
    /// Index of its shape.
    pub shape: usize,
    pub measurement: Measurement,
    /// Growth of the process's resident memory at its peak, where the system tells it.
    pub peak_measured: Option<usize>,
    /// With `--train`.
    pub training: Option<Training>,
}

/// What training a scenario gave.
pub struct Training {
    /// On the evaluation rows.
    pub eval: Quality,
    /// On the training rows.
    pub train: Quality,
    /// On the evaluation rows before training, for a scenario that starts from trained heads.
    pub before: Option<Quality>,
    pub seconds: f64,
    /// What happened on the way.
    pub log: Vec<LogLine>,
    /// Frozen tensors that were compared with the file.
    pub n_proven: usize,
    /// With `--forgetting`.
    pub retention: Option<Retention>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batch;
    use crate::freeze::FreezeSpec;
    use crate::measure::power::tests::Fake;
    use crate::measure::scenarios::{MeasureOptions, Scenario, measure};
    use crate::model::{Config, Network, Pooling};
    use crate::report::environment::Environment;
    use crate::session::Engine;

    /// A step of one sequence of two tokens, with clocks and energy.
    #[test]
    fn clocks_and_energy_stand_beside_the_times() {
        let mut config = Config::published("minilm-l6").unwrap();
        (config.vocab_size, config.n_layers) = (10, 1);
        let network =
            Network::new(&config, None, &[("topic".to_owned(), 2)], Pooling::Cls).unwrap();
        let values =
            network.param_ids().map(|id| vec![0.0; network.param(id).n_elements()]).collect();
        let scenarios = ["none", "all"].map(|freeze| Scenario {
            is_cached: false,
            freeze: freeze.to_owned(),
            mask: FreezeSpec::parse(freeze).unwrap().mask(&network).unwrap(),
        });
        let batch = Batch {
            input_ids: vec![1, 2],
            token_type_ids: vec![0, 0],
            position_ids: vec![0, 1],
            cu_seqlens: vec![0, 2],
            labels: vec![vec![0]],
            ..Batch::default()
        };
        let ceilings =
            Ceilings { gemm_flops_per_second: 1e11, copy_bytes_per_second: 1e10, op_seconds: 1e-6 };
        let options = MeasureOptions {
            n_rounds: 3,
            n_warmup: Some(1),
            learning_rate: 0.0,
            head_learning_rate: 0.0,
            weight_decay: 0.0,
            max_grad_norm: None,
            seed: 1,
            with_energy: true,
        };
        let mut session = Engine::CPU.session(network, values).unwrap();
        let (mut fake, batches) = (Fake(0.0), [batch]);
        let measured = measure(
            &mut session,
            &scenarios,
            &batches,
            &ceilings,
            &options,
            Some(&mut fake),
            |_, _| {},
        );
        let measured = measured.unwrap();
        let shape = Shape {
            batch_size: Some(1),
            batch_tokens: None,
            max_length: 2,
            mean_tokens: 2.0,
            batch_lengths: vec![vec![2]],
            warmup_rounds: 1,
            clocks: measured.clocks,
            aa: None,
        };
        let row = |measurement| Row { shape: 0, measurement, peak_measured: None, training: None };
        let bench = Bench {
            environment: Environment::of(Engine::CPU).unwrap(),
            settings: serde_json::Value::Null,
            ceilings,
            n_values: 0,
            shapes: vec![shape],
            rows: measured.scenarios.into_iter().map(row).collect(),
        };
        let text = table::text(&bench);
        assert!(text.contains("1 x 2: multiprocessors at 1980 to 1980 MHz"), "{text}");
        let energy = table::energy(&bench).unwrap();
        assert_eq!(energy.rows.len(), 2);
        assert_eq!(energy.rows[0][3], "100.0 %");
        assert!(energy.rows[1][2].parse::<f64>().unwrap() > 0.0, "{text}");
        let document = json::document(&bench);
        assert!(document["scenarios"][1]["energy"]["watts"].as_f64().unwrap() > 0.0);
        assert_eq!(document["shapes"][0]["clocks"]["moved"], false);
    }
}
