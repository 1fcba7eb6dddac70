//! What was found out of the data and of each task.

use super::{Titled, percent};
use crate::advise::separability::ClassSeparability;
use crate::advise::survey::{ModelAdvice, SuspectText, TaskAdvice};
use crate::advise::words::Fragmentation;
use crate::model::Pooling;
use crate::report::cells::{Cells, shortened};
use crate::report::table::{digits, grouped, share};

/// Classes that a table shows; the document has all.
const SHOWN_CLASSES: usize = 8;
/// Characters of a text that a table shows.
const SHOWN_CHARACTERS: usize = 60;

pub(super) fn words(model: &ModelAdvice) -> Titled {
    let texts = &model.texts;
    let of = |fragmentation: Option<Fragmentation>, show: fn(&Fragmentation) -> String| {
        fragmentation.as_ref().map_or("-".to_owned(), show)
    };
    let line = |name: &str, fragmentation, coverage: Option<f64>, n_words: usize| {
        vec![
            name.to_owned(),
            grouped(n_words),
            of(fragmentation, |one| format!("{:.2}", one.subwords_per_word)),
            of(fragmentation, |one| percent(one.continued_share)),
            of(fragmentation, |one| percent(one.unknown_share)),
            coverage.map_or("-".to_owned(), percent),
        ]
    };
    let reference = &texts.reference;
    let rows = vec![
        line("these texts", texts.fragmentation, texts.coverage, texts.running_words),
        line(
            "  words with digits",
            texts.fragmentation_with_digits,
            None,
            texts.running_words_with_digits,
        ),
        line(
            "general English",
            Some(reference.fragmentation),
            Some(reference.coverage),
            reference.words,
        ),
    ];
    let header =
        ["words", "number", "tokens\na word", "split", "unknown", "among the 10,000\ncommonest"];
    let mut note = Vec::new();
    if let Some(lengths) = &texts.lengths {
        note.push(format!(
            "{} rows of {:.0} tokens in the middle, 95 % up to {:.0}, the longest {}{}",
            grouped(texts.rows),
            lengths.median,
            lengths.percentile_95,
            lengths.longest,
            match lengths.cut_share {
                share if share > 0.0 => format!(", {} cut", percent(share)),
                _ => String::new(),
            }
        ));
    }
    let lacking: Vec<&str> = texts.lacking.iter().map(|one| one.word.as_str()).collect();
    if !lacking.is_empty() {
        note.push(format!("not among the commonest: {}", lacking.join(", ")));
    }
    if !texts.reference_applies {
        note.push("not general English: the comparison says nothing".to_owned());
    }
    Titled { title: "Words".to_owned(), note: note.join("; "), cells: Cells::of(&header, rows) }
}

pub(super) fn rows(model: &ModelAdvice) -> Titled {
    let header = [
        "task",
        "rows",
        "labels",
        "commonest",
        "largest /\nsmallest",
        "repeated\nrows",
        "contra-\ndicting",
        "labels in doubt\n(estimate)",
        "test rows",
        "seen in\ntraining",
    ];
    let row = |task: &TaskAdvice| {
        let rows = &task.rows;
        vec![
            rows.task.clone(),
            grouped(rows.rows),
            rows.classes.iter().filter(|class| class.rows > 0).count().to_string(),
            percent(rows.majority_share),
            digits(rows.imbalance),
            grouped(rows.repeated_rows),
            grouped(rows.contradicting_rows),
            percent(task.noise.share),
            grouped(rows.eval_rows),
            grouped(rows.leaked_eval_rows),
        ]
    };
    Titled {
        title: "Rows".to_owned(),
        note: "doubt by confident learning on the probe's held-out probabilities: where features are weak it counts too \
               many"
            .to_owned(),
        cells: Cells::of(&header, model.tasks.iter().map(row).collect()),
    }
}

/// What each layer of the frozen encoder tells of a task.
pub(super) fn layers(model: &ModelAdvice, task: &TaskAdvice) -> Titled {
    let header = [
        "behind",
        "mean pooling:\naccuracy",
        "\nmacro F1",
        "\nLogME",
        "\nH-score",
        "cls pooling:\naccuracy",
        "\nmacro F1",
        "\nLogME",
        "\nH-score",
    ];
    let row = |layer: usize| {
        let mut cells = vec![match layer {
            0 => "embeddings".to_owned(),
            n => format!("layer {n}"),
        }];
        for pooling in [Pooling::Mean, Pooling::Cls] {
            let Some(point) = task.curve.point(layer, pooling) else {
                cells.extend(["-"; 4].map(str::to_owned));
                continue;
            };
            let flat = task.curve.flattens_at(pooling).map(|point| point.layer);
            let mark = match flat == Some(layer) {
                true => "> ",
                false => "",
            };
            cells.extend([
                format!("{mark}{:.3} ±{:.3}", point.accuracy, point.standard_error),
                format!("{:.3}", point.macro_f1),
                share(point.logme),
                share(point.h_score),
            ]);
        }
        cells
    };
    let curve = &task.curve;
    Titled {
        title: format!("What the frozen encoder tells of {}", curve.task),
        note: format!(
            "a linear probe in {} folds over {} rows; the commonest label alone {:.3}; > is where a curve flattens{}{}",
            curve.n_folds,
            grouped(curve.n_validated),
            curve.majority,
            match curve.unvalidated.as_slice() {
                [] => String::new(),
                labels => format!("; never held out, with a single row: {}", labels.join(", ")),
            },
            match model.pooling {
                Pooling::Pooler => "; the pooler itself is not probed, cls is what it reads",
                Pooling::Mean | Pooling::Cls => "",
            }
        ),
        cells: Cells::of(&header, (0..=model.n_layers).map(row).collect()),
    }
}

pub(super) fn classes(model: &ModelAdvice, task: &TaskAdvice) -> Titled {
    // Labels without a row that was held out come last.
    let recall = |class: &ClassSeparability| class.recall.unwrap_or(f64::INFINITY);
    let mut classes: Vec<_> = task.classes.iter().collect();
    classes.sort_by(|a, b| recall(a).total_cmp(&recall(b)));
    let n_left = classes.len().saturating_sub(SHOWN_CLASSES);
    classes.truncate(SHOWN_CLASSES);
    let row = |class: &&ClassSeparability| {
        let mistake = class.mistaken_for.as_ref();
        vec![
            class.label.clone(),
            class.n_rows.to_string(),
            share(class.recall),
            share(class.precision),
            share(class.f1),
            mistake.map_or("-".to_owned(), |one| format!("{} ({})", one.label, percent(one.share))),
        ]
    };
    let more = match n_left {
        0 => String::new(),
        n => format!("; {n} more are in the document of --json"),
    };
    Titled {
        title: format!(
            "Labels of {}, those that the frozen encoder tells worst first",
            task.curve.task
        ),
        note: format!("behind the last layer, {} pooling{more}", model.probe_pooling().name()),
        cells: Cells::of(
            &["label", "rows", "recall", "precision", "F1", "mistaken for"],
            classes.iter().map(row).collect(),
        ),
    }
}

/// Texts whose labels the probe does not believe; None where it believes all.
pub(super) fn suspects(task: &TaskAdvice) -> Option<Titled> {
    let row = |suspect: &SuspectText| {
        vec![
            shortened(&suspect.text, SHOWN_CHARACTERS),
            suspect.given.clone(),
            format!("{:.2}", suspect.probability_given),
            suspect.suggested.clone(),
            format!("{:.2}", suspect.probability_suggested),
        ]
    };
    let suspects = &task.noise.suspects;
    (!suspects.is_empty()).then(|| Titled {
        title: format!("Labels of {} to look at first", task.curve.task),
        note: "what a probe that did not see the text gives its label, and another".to_owned(),
        cells: Cells::of(
            &["text", "label", "probability", "rather", "probability"],
            suspects.iter().map(row).collect(),
        ),
    })
}
