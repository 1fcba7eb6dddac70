//! What the rows of a task say before any model sees them: classes, repetitions, contradictions, leakage.
//!
//! Two rows are the same text where they agree in every character, second texts included.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::data::{Corpus, Split};
use crate::{Error, Result};

/// Labelled training rows of a task below which nothing is advised. Each is tested once, by a probe of four fifths of
/// them: one that guesses between two even classes gets all ten right once in 1,024 times. Below that a perfect score may
/// well be luck.
pub const LEAST_ROWS: usize = 10;

/// The labelled rows of one task. Training rows, where nothing else is said.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RowProfile {
    pub task: String,
    pub rows: usize,
    /// In the order of the classes; a model's own class may have no row.
    pub classes: Vec<ClassRows>,
    /// The largest class over the smallest that has rows.
    pub imbalance: f64,
    /// Entropy of the classes that have rows over that of as many equal ones (Pielou, 1966): 1 is balanced, and one
    /// class alone has 0.
    pub evenness: f64,
    /// The share of the largest class: the accuracy of always naming it.
    pub majority_share: f64,
    pub distinct_texts: usize,
    /// Rows beyond the first of their text.
    pub repeated_rows: usize,
    /// Rows whose text stands in other rows with another label.
    pub contradicting_rows: usize,
    /// Fewest labels that must be wrong if a text has but one right label: of each text's rows those that are not of
    /// its commonest class. No classifier can get them right.
    pub least_wrong_labels: usize,
    /// Labelled evaluation rows.
    pub eval_rows: usize,
    /// Evaluation rows whose text is a training row's too, so that their score is one of memory.
    pub leaked_eval_rows: usize,
}

/// A class and its rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassRows {
    pub label: String,
    pub rows: usize,
}

/// A text and the second one of a pair.
type Text<'a> = (&'a str, Option<&'a str>);

/// The rows of a split with a label of a task: their texts and classes.
fn labelled(split: &Split, task: usize) -> impl Iterator<Item = (Text<'_>, usize)> {
    (0..split.len())
        .filter_map(move |example| Some((split.text(example), split.class(example, task)?)))
}

/// The class of each row of a split in a task; None without one, and for a row whose text has had the class before: a
/// probe that is tested on a text that it was fitted on shows what it remembers.
pub(super) fn distinct_classes(split: &Split, task: usize) -> Vec<Option<usize>> {
    let mut seen = HashSet::new();
    let class = |row| {
        let class = split.class(row, task)?;
        seen.insert((split.text(row), class)).then_some(class)
    };
    (0..split.len()).map(class).collect()
}

impl RowProfile {
    /// Profiles the rows of a task that [`check`] has passed; `task` is its place in the corpus.
    pub fn new(corpus: &Corpus, task: usize) -> Self {
        let info = &corpus.tasks[task];
        let mut counts = vec![0; info.labels.len()];
        let mut by_text: HashMap<Text<'_>, HashMap<usize, usize>> = HashMap::new();
        for (text, class) in labelled(&corpus.train, task) {
            counts[class] += 1;
            *by_text.entry(text).or_default().entry(class).or_default() += 1;
        }
        let rows: usize = counts.iter().sum();
        let (mut contradicting_rows, mut least_wrong_labels) = (0, 0);
        for classes in by_text.values().filter(|classes| classes.len() > 1) {
            let of_text: usize = classes.values().sum();
            contradicting_rows += of_text;
            least_wrong_labels += of_text - classes.values().max().unwrap_or(&0);
        }
        let eval: Vec<_> = labelled(&corpus.eval, task).collect();
        let largest = counts.iter().copied().max().unwrap_or(0);
        let smallest = counts.iter().copied().filter(|count| *count > 0).min().unwrap_or(0);
        let classes = (info.labels.iter().zip(&counts))
            .map(|(label, rows)| ClassRows { label: label.clone(), rows: *rows })
            .collect();
        Self {
            task: info.name.clone(),
            rows,
            classes,
            imbalance: largest as f64 / smallest as f64,
            evenness: evenness(&counts),
            majority_share: largest as f64 / rows as f64,
            distinct_texts: by_text.len(),
            repeated_rows: rows - by_text.len(),
            contradicting_rows,
            least_wrong_labels,
            eval_rows: eval.len(),
            leaked_eval_rows: eval.iter().filter(|(text, _)| by_text.contains_key(text)).count(),
        }
    }
}

/// Entropy over that of as many equal classes as there are with rows.
fn evenness(counts: &[usize]) -> f64 {
    let all: usize = counts.iter().sum();
    let shares: Vec<f64> = (counts.iter().filter(|count| **count > 0))
        .map(|count| *count as f64 / all as f64)
        .collect();
    if shares.len() < 2 {
        return 0.0;
    }
    -shares.iter().map(|share| share * share.ln()).sum::<f64>() / (shares.len() as f64).ln()
}

/// Checks that advice on a data set can mean anything.
///
/// A class with a single row is no fault where two others have more.
///
/// # Errors
/// [`Error::Content`] for the file of the first task whose labelled training rows all have the same text, are all of one
/// class, have no second class with two rows (one to fit a probe on, one to test it), or are fewer than [`LEAST_ROWS`];
/// rows that repeat a text with its label do not count.
pub fn check(corpus: &Corpus) -> Result<()> {
    for (task, info) in corpus.tasks.iter().enumerate() {
        let name = &info.name;
        let refused = |problem: String| Err(Error::content(&info.path, problem));
        let texts: Vec<Text> = labelled(&corpus.train, task).map(|(text, _)| text).collect();
        let rows = texts.len();
        let mut counts = vec![0_usize; info.labels.len()];
        for class in distinct_classes(&corpus.train, task).into_iter().flatten() {
            counts[class] += 1;
        }
        if rows >= LEAST_ROWS && texts.iter().all(|text| *text == texts[0]) {
            return refused(format!(
                "task `{name}`: all {rows} labelled training rows have the same text; is that the right text column \
                 (--task NAME=FILE:TEXT:LABEL)?"
            ));
        }
        let n_distinct: usize = counts.iter().sum();
        if n_distinct < LEAST_ROWS {
            return refused(format!(
                "task `{name}` has {n_distinct} labelled training rows that repeat no other; advice needs at least \
                 {LEAST_ROWS}"
            ));
        }
        let repeated: Vec<usize> = (0..counts.len()).filter(|class| counts[*class] > 1).collect();
        let present = counts.iter().filter(|count| **count > 0).count();
        match repeated[..] {
            [only] if present == 1 => {
                return refused(format!(
                    "task `{name}`: all {rows} labelled training rows are of class `{}`; advice needs two classes",
                    info.labels[only]
                ));
            }
            [] | [_] => {
                return refused(format!(
                    "task `{name}`: advice needs two classes with two training rows or more, one to learn from and \
                     one to test with; there are {} such classes among {present}",
                    repeated.len()
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advise::words::tests::{Row, corpus};

    /// Checks what [`check`] says where ten rows are a sound first task's, and the second task, of three classes, has
    /// rows of these classes, all with their own text or all with one.
    fn check_classes(classes: &[Option<u32>], same_text: bool, fault: Option<&[&str]>) {
        let texts: Vec<String> = (0..10 + classes.len())
            .map(|row| format!("cat {}", if same_text { row.min(10) } else { row }))
            .collect();
        let sound = (0..10).map(|row| vec![Some(row % 2), None]);
        let labels: Vec<Vec<Option<u32>>> =
            sound.chain(classes.iter().map(|class| vec![None, *class])).collect();
        let rows: Vec<Row> = (texts.iter().zip(&labels))
            .map(|(text, labels)| (text.as_str(), None, labels.as_slice()))
            .collect();
        let (corpus, _) = corpus(&[2, 3], [&rows, &[]], 8);
        match (check(&corpus), fault) {
            (Ok(()), None) => {}
            (Err(error @ Error::Content { .. }), Some(parts)) => {
                for part in parts {
                    assert!(error.to_string().starts_with("rows1.csv: "), "{error}");
                    assert!(error.to_string().contains(part), "`{part}` is not in: {error}");
                }
            }
            (found, _) => panic!("{classes:?}: {found:?}"),
        }
    }

    #[test]
    fn what_advice_can_be_given_on() {
        let classes = |counts: [usize; 3]| {
            let mut classes = Vec::new();
            for (class, count) in (0..).zip(counts) {
                classes.extend(vec![Some(class); count]);
            }
            classes
        };
        check_classes(&classes([5, 5, 0]), false, None);
        check_classes(&classes([7, 2, 1]), false, None);
        check_classes(
            &classes([4, 5, 0]),
            false,
            Some(&["task `t1` has 9 labelled", "at least 10"]),
        );
        let mut unlabelled = classes([4, 5, 0]);
        unlabelled.extend([None; 20]);
        check_classes(&unlabelled, false, Some(&["task `t1` has 9 labelled"]));
        check_classes(&[None; 12], false, Some(&["task `t1` has 0 labelled"]));
        check_classes(&classes([5, 5, 0]), true, Some(&["task `t1`", "all 10", "the same text"]));
        check_classes(&classes([0, 12, 0]), false, Some(&["task `t1`", "all 12", "class `c1`"]));
        check_classes(&classes([11, 1, 0]), false, Some(&["`t1`", "1 such classes among 2"]));
        check_classes(&classes([1, 10, 1]), false, Some(&["`t1`", "1 such classes among 3"]));
    }

    #[test]
    fn rows_counted_by_hand() {
        let train: [Row; 10] = [
            ("a", None, &[Some(0), Some(0)]),
            ("a", None, &[Some(0), Some(1)]),
            ("a", None, &[Some(1), None]),
            ("a", Some("p"), &[Some(1), None]),
            ("b", None, &[Some(0), None]),
            ("b", None, &[Some(0), None]),
            ("A", None, &[Some(0), None]),
            ("c", None, &[None, Some(1)]),
            ("d", Some("p"), &[Some(0), Some(0)]),
            ("d", Some("q"), &[Some(1), Some(1)]),
        ];
        let eval: [Row; 5] = [
            ("a", None, &[Some(2), None]),
            ("c", None, &[Some(0), Some(0)]),
            ("d", Some("q"), &[Some(0), None]),
            ("d", None, &[Some(0), None]),
            ("b", None, &[None, Some(1)]),
        ];
        let (corpus, _) = corpus(&[3, 2], [&train, &eval], 8);
        let profile = RowProfile::new(&corpus, 0);
        let class = |label: &str, rows| ClassRows { label: label.to_owned(), rows };
        assert_eq!(profile.classes, [class("c0", 6), class("c1", 3), class("c2", 0)]);
        assert_eq!((profile.task.as_str(), profile.rows, profile.imbalance), ("t0", 9, 2.0));
        assert_eq!(profile.majority_share, 6.0 / 9.0);
        // Two classes at 2/3 and 1/3, in bits.
        let entropy =
            -(2.0_f64 / 3.0 * (2.0_f64 / 3.0).log2() + 1.0 / 3.0 * (1.0_f64 / 3.0).log2());
        assert!((profile.evenness - entropy).abs() < 1e-12, "the same sums in another base");
        assert_eq!((profile.distinct_texts, profile.repeated_rows), (6, 3));
        assert_eq!((profile.contradicting_rows, profile.least_wrong_labels), (3, 1));
        // `c` is no training row of this task, and `d` alone is another text than the pairs.
        assert_eq!((profile.eval_rows, profile.leaked_eval_rows), (4, 2));

        let other = RowProfile::new(&corpus, 1);
        assert_eq!((other.rows, other.repeated_rows, other.contradicting_rows), (5, 1, 2));
        assert_eq!((other.least_wrong_labels, other.eval_rows, other.leaked_eval_rows), (1, 2, 1));
        assert_eq!(serde_json::to_value(&other).unwrap()["classes"][1]["rows"], 3);
    }

    #[test]
    fn a_text_counts_once_with_each_label() {
        let train: [Row; 6] = [
            ("a", None, &[Some(0)]),
            ("a", None, &[Some(0)]),
            ("a", None, &[Some(1)]),
            ("a", Some("p"), &[Some(0)]),
            ("b", None, &[None]),
            ("a", Some("p"), &[Some(0)]),
        ];
        let (corpus, _) = corpus(&[2], [&train, &[]], 8);
        let expected = [Some(0), None, Some(1), Some(0), None, None];
        assert_eq!(distinct_classes(&corpus.train, 0), expected);
    }

    #[test]
    fn evenness_of_classes() {
        assert_eq!(evenness(&[5]), 0.0);
        assert_eq!(evenness(&[0, 7]), 0.0);
        assert!((evenness(&[4, 4, 0, 4, 4]) - 1.0).abs() < 1e-12, "one sum's rounding");
        assert!(evenness(&[100, 1]) < 0.1);
    }
}
