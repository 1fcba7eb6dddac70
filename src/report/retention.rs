//! What training changed: how far parts of the network moved, what was forgotten, how tasks fared.

use serde_json::{Map, Value, json};

use super::Bench;
use super::cells::{Cells, draw};
use super::table::share;
use crate::train::Quality;
use crate::train::drift::GroupDrift;
use crate::train::evaluate::TaskQuality;
use crate::train::forgetting::Forgetting;
use crate::train::retention::Retention;

/// All that `train` measured of this.
pub struct RunRetention {
    pub retention: Retention,
    /// None where there are no evaluation rows, or nobody asked.
    pub tasks: Option<TaskRetention>,
}

/// The tasks of a run.
pub struct TaskRetention {
    /// Before training, of all tasks.
    pub before: Quality,
    /// After it, on the same rows.
    pub after: Quality,
    /// After it, on as many training rows at most.
    pub train: Quality,
    pub heads: Vec<HeadState>,
}

/// A task's head.
#[derive(Clone, Copy, Debug)]
pub struct HeadState {
    /// Whether the model had it before training.
    pub is_in_model: bool,
    pub is_frozen: bool,
}

impl RunRetention {
    /// The keys that `train --json` has of this, null for what nobody asked for.
    pub fn document(run: Option<&Self>) -> Map<String, Value> {
        let forgetting = run.map(|run| &run.retention.forgetting).filter(|all| !all.is_empty());
        let drift = run.and_then(|run| run.retention.drift.as_ref());
        let tasks = run.and_then(|run| run.tasks.as_ref());
        let keys = [
            ("forgetting", json!(forgetting)),
            ("drift", json!(drift)),
            ("gap", json!(tasks.map(TaskRetention::gaps))),
            ("before", json!(tasks.map(TaskRetention::scores_before))),
        ];
        keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// Tables for people.
    pub fn text(&self) -> String {
        let mut tables = Vec::new();
        if let Some(tasks) = &self.tasks {
            tables.push(tasks.table());
        }
        if let Some(drift) = &self.retention.drift {
            tables.push(drift_table(drift));
        }
        if !self.retention.forgetting.is_empty() {
            tables.push(forgetting_table(&self.retention.forgetting));
        }
        tables.join("\n")
    }
}

impl TaskRetention {
    fn rows(&self) -> impl Iterator<Item = (HeadState, [&TaskQuality; 3])> {
        let qualities = self.before.tasks.iter().zip(&self.after.tasks).zip(&self.train.tasks);
        let heads = self.heads.iter().copied();
        heads.zip(qualities.map(|((before, after), train)| [before, after, train]))
    }

    /// `{task: {"train_accuracy", "test_accuracy", "gap"}}`.
    fn gaps(&self) -> Value {
        let one = |(_, [_, test, train]): (HeadState, [&TaskQuality; 3])| {
            let [test_accuracy, train_accuracy] = [test, train].map(|q| q.confusion.accuracy());
            let value = json!({
                "train_accuracy": train_accuracy,
                "test_accuracy": test_accuracy,
                "gap": difference(train_accuracy, test_accuracy),
            });
            (test.task.clone(), value)
        };
        self.rows().map(one).collect::<Map<_, _>>().into()
    }

    /// `{task: {"accuracy", "macro_f1", "head_frozen"}}`, null for a task whose head is new.
    fn scores_before(&self) -> Value {
        let one = |(head, [before, ..]): (HeadState, [&TaskQuality; 3])| {
            let value = head.is_in_model.then(|| {
                json!({
                    "accuracy": before.confusion.accuracy(),
                    "macro_f1": before.confusion.macro_f1(),
                    "head_frozen": head.is_frozen,
                })
            });
            (before.task.clone(), json!(value))
        };
        self.rows().map(one).collect::<Map<_, _>>().into()
    }

    fn table(&self) -> String {
        let header =
            ["task", "head", "accuracy\nbefore", "\nafter", "\nchange", "\ntrain", "train\n- test"];
        let row = |(head, [before, after, train]): (HeadState, [&TaskQuality; 3])| {
            let known = head.is_in_model.then(|| before.confusion.accuracy()).flatten();
            let [after_accuracy, train] = [after, train].map(|q| q.confusion.accuracy());
            let state = if head.is_frozen { "frozen" } else { "trained" };
            let mut cells = vec![after.task.clone(), state.to_owned()];
            cells.extend([
                share(known),
                share(after_accuracy),
                signed(difference(after_accuracy, known)),
                share(train),
                signed(difference(train, after_accuracy)),
            ]);
            cells
        };
        draw(&header, self.rows().map(row).collect())
    }
}

fn drift_table(drift: &[GroupDrift]) -> String {
    let row = |one: &GroupDrift| vec![one.group.clone(), weights(one.weights), cka(one.cka)];
    let n_rows = drift.iter().find_map(|one| one.rows);
    let over = n_rows.map_or(String::new(), |n| format!("\n({n} rows)"));
    let cka = format!("CKA of\nits output{over}");
    draw(&["part", "relative change\nof weights", &cka], drift.iter().map(row).collect())
}

fn forgetting_table(all: &[Forgetting]) -> String {
    let header = [
        "forgetting",
        "rows\ntrain",
        "\ntest",
        "accuracy\nbefore",
        "\nafter",
        "\nchange",
        "macro-F1\nbefore",
        "\nafter",
        "\nchange",
    ];
    let row = |one: &Forgetting| {
        let mut cells =
            vec![one.name.clone(), one.rows_train.to_string(), one.rows_test.to_string()];
        let (before, after, change) = (one.before, one.after, one.change);
        for (before, after, change) in [
            (before.accuracy, after.accuracy, change.accuracy),
            (before.macro_f1, after.macro_f1, change.macro_f1),
        ] {
            cells.extend([share(Some(before)), share(Some(after)), signed(Some(change))]);
        }
        cells
    };
    let mut text = draw(&header, all.iter().map(row).collect());
    for one in all.iter().filter(|one| !(one.before.converged && one.after.converged)) {
        text += &format!("{}: the search for the best probe was given up\n", one.name);
    }
    text
}

/// What each scenario of a bench changed; None where that was not measured.
pub(super) fn scenarios(bench: &Bench) -> Option<Cells> {
    let first = bench.rows.iter().find_map(|row| row.training.as_ref()?.retention.as_ref())?;
    let mut header: Vec<String> = (first.forgetting.iter())
        .flat_map(|one| [format!("{}\naccuracy", one.name), "\nchange".into()])
        .collect();
    header.push("CKA of the\nlast layer".to_owned());
    header.push("mean relative\nweight change".to_owned());
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    Some(Cells::new(bench, &header, |row| {
        let Some(retention) = row.training.as_ref().and_then(|one| one.retention.as_ref()) else {
            // Nothing trains here.
            return vec!["-".to_owned(); header.len()];
        };
        let mut cells: Vec<String> = (retention.forgetting.iter())
            .flat_map(|one| [share(Some(one.after.accuracy)), signed(Some(one.change.accuracy))])
            .collect();
        cells.push(cka(retention.last_cka()));
        cells.push(retention.encoder_change().map_or("-".into(), weights));
        cells
    }))
}

fn difference(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    a.zip(b).map(|(a, b)| a - b)
}

fn signed(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:+.3}"))
}

fn cka(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.4}"))
}

/// A relative change: 0 is exactly none.
fn weights(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        v if v < 0.001 => format!("{value:.1e}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::forgetting::ProbeScore;

    #[test]
    fn changes_of_nothing_and_of_little() {
        assert_eq!(weights(0.0), "0");
        assert_eq!(weights(0.000_012_3), "1.2e-5");
        assert_eq!(weights(0.012_34), "0.0123");
        assert_eq!(weights(f64::NAN), "NaN");
        assert_eq!((signed(Some(-0.25)), signed(None)), ("-0.250".into(), "-".into()));
    }

    #[test]
    fn the_drift_says_of_how_many_rows() {
        let part = |group: &str, cka| GroupDrift {
            group: group.to_owned(),
            weights: 0.5,
            cka,
            rows: cka.map(|_| 14),
        };
        let table = drift_table(&[part("embeddings", Some(0.75)), part("pooler", None)]);
        assert!(table.contains("(14 rows)"), "{table}");
        assert!(!drift_table(&[part("pooler", None)]).contains("rows"));
    }

    #[test]
    fn what_did_not_converge_is_said() {
        let score = |converged| ProbeScore { accuracy: 0.5, macro_f1: 0.25, converged };
        let set = |converged| Forgetting::new("news", [40, 10], score(true), score(converged));
        assert!(!forgetting_table(&[set(true)]).contains("given up"));
        assert!(
            forgetting_table(&[set(false)])
                .contains("news: the search for the best probe was given up")
        );
    }
}
