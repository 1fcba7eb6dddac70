//! How good the heads are on a split.

use serde::{Deserialize, Serialize};

use super::metrics::{Confusion, argmax};
use crate::Result;
use crate::backend::{StepState, Timing};
use crate::cache::PrefixCache;
use crate::data::{BatchLimit, Corpus, Split};
use crate::freeze::FreezeMask;
use crate::plan::{Capacity, StepOptions};
use crate::session::{Session, Step};

/// One task's result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskQuality {
    pub task: String,
    pub confusion: Confusion,
    /// Mean cross-entropy over the rows with a label.
    pub loss: f64,
    /// Of each row with a label whether it was right, in an order that is the same for all evaluations of the same rows;
    /// none in logs and checkpoints.
    #[serde(skip)]
    pub hits: Vec<bool>,
}

/// The results of all tasks, in head order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Quality {
    pub tasks: Vec<TaskQuality>,
}

impl Quality {
    /// The sum over the tasks of their mean cross-entropy.
    pub fn loss(&self) -> f64 {
        self.tasks.iter().map(|task| task.loss).sum()
    }

    /// What logs keep.
    pub fn without_hits(&self) -> Self {
        let of = |task: &TaskQuality| TaskQuality {
            task: task.task.clone(),
            confusion: task.confusion.clone(),
            loss: task.loss,
            hits: Vec::new(),
        };
        Self { tasks: self.tasks.iter().map(of).collect() }
    }

    /// `{task: {"accuracy", "macro_f1"}}`, null where a task has no row.
    pub fn shares(&self) -> serde_json::Value {
        let shares = |task: &TaskQuality| {
            let (accuracy, macro_f1) = (task.confusion.accuracy(), task.confusion.macro_f1());
            let value = serde_json::json!({"accuracy": accuracy, "macro_f1": macro_f1});
            (task.task.clone(), value)
        };
        self.tasks.iter().map(shares).collect::<serde_json::Map<_, _>>().into()
    }
}

/// An evaluation batch: no gradient is kept, so that it may be large.
const LIMIT: BatchLimit = BatchLimit::Sequences(64);

/// Measures the network on one split, as often as asked.
pub struct Evaluator<'a> {
    corpus: &'a Corpus,
    split: &'a Split,
    rows: Vec<usize>,
    step: Step,
    /// Of the frozen part's output for the rows of the corpus that are for evaluation.
    cache: Option<&'a PrefixCache>,
}

impl<'a> Evaluator<'a> {
    /// Makes room for the batches of `split`.
    ///
    /// # Errors
    /// When the device lacks the memory.
    pub fn new(session: &mut Session, corpus: &'a Corpus, split: &'a Split) -> Result<Self> {
        Self::of_rows(session, corpus, split, (0..split.len()).collect())
    }

    /// As [`Evaluator::new`], for some examples of the split.
    ///
    /// # Errors
    /// As [`Evaluator::new`].
    pub fn of_rows(
        session: &mut Session,
        corpus: &'a Corpus,
        split: &'a Split,
        rows: Vec<usize>,
    ) -> Result<Self> {
        let mask = FreezeMask::all(session.network().params.len());
        let options = StepOptions::plain(Self::capacity(split), session.compute());
        let step = session.compile(&mask, &options)?;
        Ok(Evaluator { corpus, split, rows, step, cache: None })
    }

    /// As [`Evaluator::new`] for the evaluation rows of the corpus, whose frozen part is read from a cache that the
    /// session has been given; results are the same.
    ///
    /// # Errors
    /// As [`Evaluator::new`].
    pub fn cached(
        session: &mut Session,
        corpus: &'a Corpus,
        cache: &'a PrefixCache,
    ) -> Result<Self> {
        let options = StepOptions::plain(Self::capacity(&corpus.eval), session.compute());
        let step = session.compile_cached_forward(cache.above(), &options)?;
        let rows = (0..corpus.eval.len()).collect();
        Ok(Evaluator { corpus, split: &corpus.eval, rows, step, cache: Some(cache) })
    }

    /// The most that a batch of `split` holds.
    pub fn capacity(split: &Split) -> Capacity {
        super::largest_batch(split, LIMIT)
    }

    /// The batches in which rows of a split are evaluated, as their examples.
    ///
    /// # Errors
    /// None: batches of so many sequences hold any text.
    pub fn batches(corpus: &Corpus, split: &Split, rows: Vec<usize>) -> Result<Vec<Vec<usize>>> {
        corpus.cut(split, rows, LIMIT)
    }

    /// Runs its rows through the network as it is now, without dropout, `n_done` training steps behind it.
    ///
    /// # Errors
    /// When the device fails, or a loss is not finite.
    pub fn evaluate(&self, session: &mut Session, n_done: u64) -> Result<Quality> {
        let state = StepState { step: n_done, ..StepState::FORWARD };
        let mut tasks: Vec<TaskQuality> = (session.network().heads.iter())
            .map(|head| TaskQuality {
                task: head.task.clone(),
                confusion: Confusion::new(head.n_labels),
                loss: 0.0,
                hits: Vec::new(),
            })
            .collect();
        for indices in Self::batches(self.corpus, self.split, self.rows.clone())? {
            let mut batch = self.corpus.pack(self.split, &indices);
            if let Some(cache) = self.cache {
                batch.prefix_rows = cache.eval_rows(self.corpus, &indices);
            }
            let outcome = session.run(&self.step, &batch, &state, Timing::Off)?;
            for (at, task) in tasks.iter_mut().enumerate() {
                let logits = session.logits(&self.step, at)?;
                let n_labels = logits.len() / batch.n_sequences();
                let mut n_labelled = 0;
                for (logits, &label) in logits.chunks_exact(n_labels).zip(&batch.labels[at]) {
                    if let Ok(label) = usize::try_from(label) {
                        let predicted = argmax(logits);
                        task.confusion.add(label, predicted);
                        task.hits.push(predicted == Some(label));
                        n_labelled += 1;
                    }
                }
                task.loss += f64::from(outcome.losses[at]) * f64::from(n_labelled);
            }
        }
        for task in &mut tasks {
            task.loss /= (task.confusion.n_rows() as f64).max(1.0);
        }
        Ok(Quality { tasks })
    }
}
