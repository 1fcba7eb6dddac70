//! All that is found out of a model and its data without training anything.

use std::time::Instant;

use serde::Serialize;

use super::candidates::{Candidate, candidates};
use super::costs::{CostOptions, DepthCost, Limits, costs};
use super::heads::{HeadAdvice, head_advice};
use super::layers::{ClassSeparability, TaskCurve, curves};
use super::noise::{LabelNoise, label_noise};
use super::recommend::{
    Recommendation, Signals, TaskSignal, WordSignal, expected_loss, recommend,
};
use super::revise::Agreement;
use super::rows::RowProfile;
use super::sweep::SweepOutcome;
use super::words::TextProfile;
use crate::Result;
use crate::batch::Batch;
use crate::data::{Corpus, Tokenizer};
use crate::features::layer_vectors;
use crate::measure::{Ceilings, Pace};
use crate::model::{Network, Pooling};
use crate::session::Session;
use crate::train::{TrainOptions, step_options};

/// Rows of a task, at most, that its probes see.
const PROBE_ROWS: usize = 3000;

/// What is asked about one model.
pub struct Question<'a> {
    /// What reports call it.
    pub model: String,
    pub network: &'a Network,
    pub corpus: &'a Corpus,
    pub tokenizer: &'a Tokenizer,
    /// By task, whether the model has a head for it.
    pub has_head: Vec<bool>,
    pub train: &'a TrainOptions,
    pub ceilings: Ceilings,
    /// Bytes that a cache may have at most.
    pub cache_limit_bytes: u64,
    pub limits: Limits,
}

/// A part of a survey that takes a while, told before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The forward pass over so many texts.
    Vectors { n_texts: usize },
    /// So many fits.
    Probes { n_fits: usize },
    Costs,
}

/// Told of a survey as it goes on.
pub trait SurveyObserver: Sync {
    /// Before a part begins.
    fn begin(&self, stage: Stage);
    /// So many units of the part are done.
    fn done(&self, n: usize);
}

/// All that is said about one model.
#[derive(Clone, Debug, Serialize)]
pub struct ModelAdvice {
    pub model: String,
    pub n_layers: usize,
    pub hidden_size: usize,
    pub n_values: usize,
    pub pooling: Pooling,
    pub texts: TextProfile,
    pub tasks: Vec<TaskAdvice>,
    pub pace: Pace,
    /// The most frozen first.
    pub costs: Vec<DepthCost>,
    /// The freeze that the scores recommended.
    pub advised: Option<String>,
    /// What is recommended: by the sweep where there was one.
    pub recommendation: Recommendation,
    pub head: Option<HeadAdvice>,
    pub sweep: Option<SweepOutcome>,
    /// How scores and sweep agree; empty without one.
    pub agreement: Vec<Agreement>,
    /// Of the survey, the sweep apart.
    pub seconds: f64,
}

/// All that is said about one task.
#[derive(Clone, Debug, Serialize)]
pub struct TaskAdvice {
    pub rows: RowProfile,
    pub curve: TaskCurve,
    /// Behind the last layer.
    pub classes: Vec<ClassSeparability>,
    pub noise: Option<NoiseAdvice>,
}

/// Labels that may be wrong.
#[derive(Clone, Debug, Serialize)]
pub struct NoiseAdvice {
    pub estimated_share: f64,
    pub suspects: Vec<Suspect>,
}

/// A text whose label the probe does not believe.
#[derive(Clone, Debug, Serialize)]
pub struct Suspect {
    pub text: String,
    pub label: String,
    pub suggested: String,
    /// The probe's probability of the suggested label, without this row.
    pub probability: f64,
}

impl ModelAdvice {
    /// The pooling whose probes stand for what the heads read.
    pub fn probe_pooling(&self) -> Pooling {
        probe_pooling(self.pooling)
    }
}

impl TaskAdvice {
    /// The expected loss with so many layers frozen, see [`expected_loss`].
    pub fn expected_loss(&self, n_frozen: usize, n_layers: usize) -> f64 {
        expected_loss(self.curve.accuracy, n_frozen, n_layers)
    }
}

/// The pooling of a probe that stands for what heads read: a pooler reads the first token.
fn probe_pooling(pooling: Pooling) -> Pooling {
    match pooling {
        Pooling::Mean => Pooling::Mean,
        Pooling::Cls | Pooling::Pooler => Pooling::Cls,
    }
}
