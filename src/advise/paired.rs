//! How far apart two depths may be by chance, where both are evaluated on the same rows.

use super::verdict::Trial;
use crate::sums::mean;
use crate::train::Metric;

/// The standard error of the difference of two depths' scores, each the mean of its trials; None without rows.
///
/// Most rows are right at both depths, or wrong: those on which they differ alone say which is better. A row counts by d,
/// the share of the one depth's trials that have it right less that of the other's, and half a row more speaks for either,
/// so that no difference is beyond doubt: `√(Σ d² + 1 - (Σ d)² / (N + 2)) / (N + 2)`. With one trial each this is the error
/// of matched proportions of Agresti and Min (Statistics in Medicine 24, 2005), who add half a row to each of the four
/// cells.
///
/// The error of a mean over tasks is the mean of their errors, and no more than that whatever the tasks, often on the same
/// rows, have to do with each other. A macro F1 has no such formula and takes its accuracy's, which is too small where
/// labels are rare. What other seeds would change is not in it.
pub fn paired_error(metric: &Metric, these: &[&Trial], those: &[&Trial]) -> Option<f64> {
    let tasks = these.first()?.tasks.iter().enumerate();
    let asked = tasks.filter(|(_, task)| metric.task().is_none_or(|name| name == task.task));
    mean(asked.filter_map(|(task, _)| error_of_task(task, these, those)))
}

fn error_of_task(task: usize, these: &[&Trial], those: &[&Trial]) -> Option<f64> {
    let share = |trials: &[&Trial], row: usize| {
        mean(trials.iter().map(|trial| f64::from(u8::from(trial.tasks[task].hits[row]))))
    };
    let n_rows = these.first()?.tasks[task].hits.len();
    let (mut sum, mut squares) = (0.0, 0.0);
    for row in 0..n_rows {
        let difference = share(these, row)? - share(those, row)?;
        sum += difference;
        squares += difference * difference;
    }
    let n = n_rows as f64 + 2.0;
    (n_rows > 0).then(|| (squares + 1.0 - sum * sum / n).sqrt() / n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advise::verdict::TaskScore;
    use crate::advise::verdict::tests::trial;

    fn with_tasks(tasks: &[(&str, &[u8])]) -> Trial {
        let task = |(name, hits): &(&str, &[u8])| TaskScore {
            task: name.to_string(),
            accuracy: None,
            macro_f1: None,
            hits: hits.iter().map(|hit| *hit == 1).collect(),
        };
        Trial { tasks: tasks.iter().map(task).collect(), ..trial("none", (0, 1), (0, 0)) }
    }

    #[test]
    fn rows_that_differ_count() {
        let first = with_tasks(&[("a", &[1, 1, 0, 1, 0, 1]), ("b", &[1, 1]), ("c", &[])]);
        let second = with_tasks(&[("a", &[1, 0, 1, 1, 0, 0]), ("b", &[1, 1]), ("c", &[])]);
        let of = |metric: &Metric| paired_error(metric, &[&first], &[&second]);
        // In a of eight rows two and a half speak for the first and one and a half against it, in b half a row for either.
        let variance = |for_it: f64, against: f64, n: f64| {
            ((for_it + against) / n - ((for_it - against) / n).powi(2)) / n
        };
        let (a, b) = (variance(2.5, 1.5, 8.0).sqrt(), variance(0.5, 0.5, 4.0).sqrt());
        for (metric, expected) in [
            (Metric::Accuracy(Some("a".into())), a),
            (Metric::MacroF1(Some("b".into())), b),
            (Metric::Accuracy(None), (a + b) / 2.0),
        ] {
            // A few roundings.
            assert!((of(&metric).unwrap() - expected).abs() <= 1e-12, "{metric:?}");
        }
        assert_eq!(of(&Metric::Accuracy(Some("c".into()))), None, "no rows");
        assert_eq!(paired_error(&Metric::Accuracy(None), &[&first], &[]), None, "no trials");
    }

    #[test]
    fn seeds_are_shares_of_a_row() {
        let with = |hits: &[u8]| with_tasks(&[("a", hits)]);
        let (one, two, other) = (with(&[1, 1, 0, 0]), with(&[1, 0, 0, 0]), with(&[0, 0, 0, 1]));
        let found = paired_error(&Metric::Accuracy(None), &[&one, &two], &[&other]).unwrap();
        // d: 1, 1/2, 0, -1.
        let expected = (2.25_f64 + 1.0 - 0.25 / 6.0).sqrt() / 6.0;
        assert!((found - expected).abs() <= 1e-12, "{found}, not {expected}");
    }
}
