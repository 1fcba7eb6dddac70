//! What a data set was taken to be, in a few lines, and what is doubtful about it: people should see before a training
//! that a column was the wrong one.

use std::collections::{BTreeMap, HashSet};

use super::{Dataset, Example};

/// A task as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskOutline {
    pub name: String,
    /// Rows with a label, to train on and to evaluate.
    pub n_train: usize,
    pub n_eval: usize,
    /// Each label with its training rows, in the order of the classes.
    pub labels: Vec<(String, usize)>,
    /// What may be wrong, a sentence each.
    pub doubts: Vec<String>,
}

/// Labels that are shown one by one; of more the rarest are.
const SHOWN: usize = 12;

/// Rows for a label below which a column with that many labels looks like one of numbers or names.
const ROWS_OF_A_LABEL: usize = 2;

impl TaskOutline {
    /// The tasks of a data set.
    pub fn of(dataset: &Dataset) -> Vec<TaskOutline> {
        let tasks = dataset.tasks.iter().enumerate();
        tasks
            .map(|(at, task)| {
                let count = |examples: &[Example]| {
                    let mut counts = vec![0; task.labels.len()];
                    for class in examples.iter().filter_map(|example| example.labels[at]) {
                        counts[class as usize] += 1;
                    }
                    counts
                };
                let (train, eval) = (count(&dataset.train), count(&dataset.eval));
                let labels: Vec<(String, usize)> =
                    task.labels.iter().cloned().zip(train.iter().copied()).collect();
                TaskOutline {
                    name: task.name.clone(),
                    n_train: train.iter().sum(),
                    n_eval: eval.iter().sum(),
                    doubts: doubts(&labels),
                    labels,
                }
            })
            .collect()
    }

    /// One line: the rows, and the labels with theirs.
    pub fn line(&self) -> String {
        let TaskOutline { name, n_train, n_eval, labels, .. } = self;
        let mut shown: Vec<&(String, usize)> = labels.iter().collect();
        let mut more = String::new();
        if labels.len() > SHOWN {
            shown.sort_by_key(|(_, n_rows)| *n_rows);
            shown.truncate(SHOWN);
            more = format!("the {SHOWN} rarest: ");
        }
        let shown: Vec<String> =
            shown.into_iter().map(|(label, n_rows)| format!("{label} {n_rows}")).collect();
        format!(
            "task {name}: {n_train} rows to train, {n_eval} to evaluate; {} labels, {more}{}",
            labels.len(),
            shown.join(", ")
        )
    }
}

/// Texts that are both trained on and evaluated.
pub fn n_shared_texts(dataset: &Dataset) -> usize {
    let key = |example: &Example| (example.text.clone(), example.pair.clone());
    let trained: HashSet<_> = dataset.train.iter().map(key).collect();
    dataset.eval.iter().filter(|example| trained.contains(&key(example))).count()
}

fn doubts(labels: &[(String, usize)]) -> Vec<String> {
    let mut doubts = Vec::new();
    let n_rows: usize = labels.iter().map(|(_, n_rows)| n_rows).sum();
    for (label, n_rows) in labels {
        let is_missing = ["nan", "none", "null", "na", "n/a", "<na>", "?"];
        if is_missing.contains(&label.to_lowercase().as_str()) {
            doubts.push(format!(
                "`{label}` ({n_rows} rows) is taken for a label; where it stands for none, leave the cell empty"
            ));
        }
        if label == "-1" {
            doubts.push(format!(
                "`-1` ({n_rows} rows) is taken for a label; where it stands for none, leave the cell empty or write -100"
            ));
        }
    }
    let mut spellings: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (label, _) in labels {
        let spelling = label.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
        spellings.entry(spelling).or_default().push(label);
    }
    for alike in spellings.into_values().filter(|alike| alike.len() > 1) {
        doubts.push(format!("`{}` are different labels", alike.join("`, `")));
    }
    let is_fraction = |label: &str| label.parse::<f64>().is_ok_and(|value| value.fract() != 0.0);
    let n_fractions = labels.iter().filter(|(label, _)| is_fraction(label)).count();
    if 2 * n_fractions > labels.len() {
        doubts.push(
            "the labels are numbers with fractions: scores, of which each is a class of its own here; make classes of \
             ranges of them"
                .to_owned(),
        );
    } else if labels.len() > SHOWN && n_rows < ROWS_OF_A_LABEL * labels.len() {
        doubts.push(format!(
            "{} labels for {n_rows} rows: is this the column of labels, or one of numbers or names of rows?",
            labels.len()
        ));
    }
    let single: Vec<&str> =
        labels.iter().filter(|(_, n_rows)| *n_rows == 1).map(|(label, _)| label.as_str()).collect();
    if !single.is_empty() {
        let shown = &single[..single.len().min(SHOWN)];
        let more = single.len() - shown.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        doubts.push(format!("one training row has the label `{}`{more}", shown.join("`, `")));
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(labels: &[(&str, usize)]) -> Vec<String> {
        let labels: Vec<(String, usize)> =
            labels.iter().map(|&(label, n_rows)| (label.to_owned(), n_rows)).collect();
        doubts(&labels)
    }

    #[track_caller]
    fn check(labels: &[(&str, usize)], part: &str) {
        let found = of(labels);
        assert!(found.len() == 1 && found[0].contains(part), "{found:?}");
    }

    #[test]
    fn what_is_doubtful_is_said_and_nothing_else() {
        assert_eq!(of(&[("bad", 3), ("good", 2), ("none of these", 2)]), [""; 0]);
        assert_eq!(of(&[("0", 3), ("1", 2)]), [""; 0]);
        for missing in ["nan", "NaN", "None", "null", "N/A", "?"] {
            check(&[(missing, 3), ("good", 2)], missing);
        }
        check(&[("-1", 3), ("0", 4), ("1", 2)], "-100");
        check(&[("Good", 3), ("good", 4), ("bad", 2)], "`Good`, `good` are different");
        check(&[("very  good", 3), ("Very good", 4)], "different");
        check(&[("0.5", 3), ("1.0", 4), ("0.25", 2)], "scores");
        check(&[("bad", 1), ("good", 2)], "`bad`");
        let ids: Vec<String> = (0..30).map(|id| format!("row {id}")).collect();
        let ids: Vec<(&str, usize)> = ids.iter().map(|id| (id.as_str(), 1)).collect();
        let found = of(&ids);
        assert!(found[0].contains("30 labels for 30 rows"), "{found:?}");
        assert!(found[1].ends_with("and 18 more"), "{found:?}");
    }

    #[test]
    fn of_many_labels_the_rarest_are_shown() {
        let labels = (0..20).map(|at| (format!("l{at}"), 40 - at)).collect();
        let outline =
            TaskOutline { name: "t".into(), n_train: 9, n_eval: 1, labels, doubts: Vec::new() };
        let line = outline.line();
        assert!(
            line.starts_with(
                "task t: 9 rows to train, 1 to evaluate; 20 labels, the 12 rarest: l19 21"
            ),
            "{line}"
        );
        assert!(!line.contains("l0 "), "{line}");
    }
}
