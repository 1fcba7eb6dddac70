//! How much each row counts in the loss: weights of tasks and of classes, and one mean over all batches of a step.

use serde::Serialize;

use crate::batch::Batch;
use crate::data::{Corpus, TaskInfo};
use crate::{Error, Result};

/// What counts how much, as it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LossOptions {
    /// Label smoothing (Szegedy et al., 2016): the share of each target that all classes get alike.
    pub smoothing: f32,
    /// What a task's loss is multiplied with, by its name; 1 for the others.
    pub task_weights: Vec<(String, f32)>,
    pub class_weights: Vec<ClassWeights>,
}

/// Weights of classes, of one task or of all.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassWeights {
    pub task: Option<String>,
    pub weights: Weights,
}

/// Weights of classes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Weights {
    /// `rows / (classes * rows of the class)`, over the training rows (scikit-learn's `balanced`).
    Balanced,
    /// By label; 1 for the others.
    Given(Vec<(String, f32)>),
}

impl LossOptions {
    /// Whether anything but the mean over the labelled rows is asked for.
    pub fn is_weighted(&self) -> bool {
        !self.task_weights.is_empty() || !self.class_weights.is_empty()
    }
}

/// The weights of a run's rows, by task and class.
#[derive(Clone, Debug, PartialEq)]
pub struct RowWeights {
    tasks: Vec<TaskWeights>,
}

#[derive(Clone, Debug, PartialEq)]
struct TaskWeights {
    of_task: f64,
    of_class: Vec<f64>,
}

impl RowWeights {
    /// What the options say for the tasks and classes of a corpus.
    ///
    /// # Errors
    /// A task or a label that there is not; `balanced` where a class has no training row.
    pub fn new(options: &LossOptions, corpus: &Corpus) -> Result<Self> {
        let mut tasks: Vec<TaskWeights> = (corpus.tasks.iter())
            .map(|task| TaskWeights { of_task: 1.0, of_class: vec![1.0; task.labels.len()] })
            .collect();
        for (at, (name, weight)) in options.task_weights.iter().enumerate() {
            if options.task_weights[..at].iter().any(|(earlier, _)| earlier == name) {
                return Err(Error::usage(format!("--task-weight {name}: is given twice")));
            }
            let task = find_task("--task-weight", &corpus.tasks, name)?;
            tasks[task].of_task = f64::from(*weight);
        }
        let mut is_weighted = vec![false; tasks.len()];
        for ClassWeights { task, weights } in &options.class_weights {
            let chosen = match task {
                Some(name) => {
                    let at = find_task("--class-weights", &corpus.tasks, name)?;
                    at..at + 1
                }
                None => 0..tasks.len(),
            };
            if let Weights::Given(given) = weights {
                check_labels(&corpus.tasks[chosen.clone()], given)?;
            }
            for at in chosen {
                let info = &corpus.tasks[at];
                if std::mem::replace(&mut is_weighted[at], true) {
                    let problem =
                        format!("--class-weights: labels of task {} are weighted twice", info.name);
                    return Err(Error::usage(problem));
                }
                tasks[at].of_class = match weights {
                    Weights::Balanced => balanced(corpus, at)?,
                    Weights::Given(given) => by_label(info, given),
                };
            }
        }
        Ok(RowWeights { tasks })
    }

    /// Gives the rows of all batches of one step their weights: those of a task add up to its own weight over the
    /// whole step, so that several batches give the loss and the gradients of one that has all their rows.
    pub fn weigh(&self, batches: &mut [Batch]) {
        for (at, task) in self.tasks.iter().enumerate() {
            let weight = |label: &i32| usize::try_from(*label).map_or(0.0, |c| task.of_class[c]);
            let labels = batches.iter().flat_map(|batch| &batch.labels[at]);
            let sum: f64 = labels.map(weight).sum();
            let scale = if sum > 0.0 { task.of_task / sum } else { 0.0 };
            for batch in batches.iter_mut() {
                let weights = batch.labels[at].iter().map(|label| (scale * weight(label)) as f32);
                let weights = weights.collect();
                batch.loss_weights.push(weights);
            }
        }
    }
}

fn find_task(option: &str, tasks: &[TaskInfo], name: &str) -> Result<usize> {
    tasks.iter().position(|task| task.name == name).ok_or_else(|| {
        let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
        Error::usage(format!("{option} {name}: no such task; the tasks are {}", names.join(", ")))
    })
}

fn balanced(corpus: &Corpus, task: usize) -> Result<Vec<f64>> {
    let TaskInfo { name, labels, .. } = &corpus.tasks[task];
    let mut counts = vec![0usize; labels.len()];
    for row in 0..corpus.train.len() {
        if let Some(class) = corpus.train.class(row, task) {
            counts[class] += 1;
        }
    }
    if let Some(class) = counts.iter().position(|&n| n == 0) {
        return Err(Error::usage(format!(
            "--class-weights balanced: label {} of task {name} has no training row",
            labels[class]
        )));
    }
    let n_rows: usize = counts.iter().sum();
    Ok(counts.iter().map(|&n| n_rows as f64 / (labels.len() * n) as f64).collect())
}

/// Every label must be one of some task's.
fn check_labels(tasks: &[TaskInfo], given: &[(String, f32)]) -> Result<()> {
    for (label, weight) in given {
        if tasks.iter().all(|task| !task.labels.contains(label)) {
            let known =
                |task: &TaskInfo| format!("those of {} are {}", task.name, task.labels.join(", "));
            return Err(Error::usage(format!(
                "--class-weights {label}:{weight}: there is no such label; {}",
                tasks.iter().map(known).collect::<Vec<_>>().join("; ")
            )));
        }
    }
    Ok(())
}

fn by_label(task: &TaskInfo, given: &[(String, f32)]) -> Vec<f64> {
    let weight = |label: &String| given.iter().rev().find(|(name, _)| name == label);
    task.labels.iter().map(|label| weight(label).map_or(1.0, |(_, w)| f64::from(*w))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{ABSENT_LABEL, IGNORED_LABEL};

    fn batch(labels: &[i32]) -> Batch {
        Batch { labels: vec![labels.to_vec()], ..Batch::default() }
    }

    #[test]
    fn rows_of_a_step_add_up_to_the_weight_of_their_task() {
        let tasks = vec![TaskWeights { of_task: 0.5, of_class: vec![1.0, 3.0] }];
        let mut batches = [batch(&[0, 1, IGNORED_LABEL]), batch(&[ABSENT_LABEL]), batch(&[1])];
        RowWeights { tasks }.weigh(&mut batches);
        // 1 + 3 + 3 shares of a half.
        let share = 0.5 / 7.0;
        let expected = [share, 3.0 * share, 0.0, 0.0, 3.0 * share];
        let found: Vec<f32> =
            batches.iter().flat_map(|batch| batch.loss_weights[0].clone()).collect();
        assert_eq!(found.len(), expected.len());
        // One rounding to f32.
        assert!(
            found.iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() <= 1e-8),
            "{found:?}"
        );
    }

    #[test]
    fn a_step_without_labels_weighs_nothing() {
        let tasks = vec![TaskWeights { of_task: 1.0, of_class: vec![1.0, 1.0] }];
        let mut batches = [batch(&[IGNORED_LABEL, ABSENT_LABEL])];
        RowWeights { tasks }.weigh(&mut batches);
        assert_eq!(batches[0].loss_weights, [[0.0, 0.0]]);
    }
}
