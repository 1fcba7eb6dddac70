//! Advice as tables, for a terminal, as Markdown and on a page.

use serde_json::{Value, json};

use super::cells::Cells;
use super::environment::Environment;
use super::table::{digits, grouped};
use crate::advise::costs::{CacheCost, DepthCost};
use crate::advise::figures::{duration, megabytes};
use crate::advise::revise::Agreement;
use crate::advise::separability::ClassSeparability;
use crate::advise::survey::{ModelAdvice, SuspectText, TaskAdvice};
use crate::advise::sweep::SweepOutcome;
use crate::advise::verdict::{DepthSummary, Trial};
use crate::advise::words::Fragmentation;
use crate::model::Pooling;

/// All that one `advise` found out, and on what.
pub struct Advice {
    pub environment: Environment,
    /// What the run was asked for.
    pub settings: Value,
    pub models: Vec<ModelAdvice>,
}

/// A table with its title and what to know about it.
pub struct Titled {
    pub title: String,
    pub note: String,
    pub cells: Cells,
}

impl Advice {
    /// The document of `--json`.
    pub fn document(&self) -> Value {
        json!({
            "environment": self.environment,
            "settings": self.settings,
            "models": self.models,
        })
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.environment.line());
        for model in &self.models {
            text += &format!("\n{}\n", headline(model));
            for Titled { title, note, cells } in tables(model) {
                text += &format!("\n{}\n{}", with_note(&title, &note), cells.text());
            }
            text += &format!("\n{}", closing(model));
        }
        if let Some(Titled { title, note, cells }) = comparison(&self.models) {
            text += &format!("\n{}\n{}", with_note(&title, &note), cells.text());
        }
        text
    }

    /// The same tables as Markdown.
    pub fn markdown(&self) -> String {
        let one = |table: Titled| {
            format!("\n{}\n\n{}", with_note(&table.title, &table.note), table.cells.markdown())
        };
        let mut text = String::new();
        for model in &self.models {
            text += &format!("{}\n", headline(model));
            text.extend(tables(model).into_iter().map(one));
            text += &format!("\n{}\n", closing(model));
        }
        text.extend(comparison(&self.models).map(one));
        text
    }
}

fn with_note(title: &str, note: &str) -> String {
    match note {
        "" => title.to_owned(),
        note => format!("{title} ({note})"),
    }
}

/// What a model is.
pub fn headline(model: &ModelAdvice) -> String {
    format!(
        "{}: {} layers of {}, {} parameters, heads read {} pooling",
        model.model,
        model.n_layers,
        model.hidden_size,
        grouped(model.n_values),
        model.pooling.name()
    )
}

/// All tables of a model, in the order in which they are shown.
pub fn tables(model: &ModelAdvice) -> Vec<Titled> {
    let mut tables = vec![words(model), rows(model)];
    for task in &model.tasks {
        tables.push(layers(model, task));
        tables.push(classes(model, task));
        tables.extend(suspects(task));
    }
    tables.push(costs(model));
    tables.extend(model.sweep.as_ref().map(sweep));
    tables.extend(agreement(model));
    tables
}

fn words(model: &ModelAdvice) -> Titled {
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

fn rows(model: &ModelAdvice) -> Titled {
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
fn layers(model: &ModelAdvice, task: &TaskAdvice) -> Titled {
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
                point.logme.map_or("-".to_owned(), |value| format!("{value:.3}")),
                point.h_score.map_or("-".to_owned(), |value| format!("{value:.3}")),
            ]);
        }
        cells
    };
    let curve = &task.curve;
    Titled {
        title: format!("What the frozen encoder tells of {}", curve.task),
        note: format!(
            "a linear probe in {} folds over {} rows; the commonest label alone {:.3}; > is where a curve flattens",
            curve.n_folds,
            grouped(curve.n_rows),
            curve.majority
        ),
        cells: Cells::of(&header, (0..=model.n_layers).map(row).collect()),
    }
}

/// Classes that a table shows; the document has all.
const SHOWN_CLASSES: usize = 8;

fn classes(model: &ModelAdvice, task: &TaskAdvice) -> Titled {
    // Labels without a row that was held out come last.
    let recall = |class: &ClassSeparability| class.recall.unwrap_or(f64::INFINITY);
    let mut classes: Vec<_> = task.classes.iter().collect();
    classes.sort_by(|a, b| recall(a).total_cmp(&recall(b)));
    let n_left = classes.len().saturating_sub(SHOWN_CLASSES);
    classes.truncate(SHOWN_CLASSES);
    let show = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
    let row = |class: &&ClassSeparability| {
        let mistake = class.mistaken_for.as_ref();
        vec![
            class.label.clone(),
            class.n_rows.to_string(),
            show(class.recall),
            show(class.precision),
            show(class.f1),
            mistake.map_or("-".to_owned(), |one| format!("{} ({})", one.label, percent(one.share))),
        ]
    };
    let more = match n_left {
        0 => String::new(),
        n => format!("; {n} that are told better are left out"),
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
fn suspects(task: &TaskAdvice) -> Option<Titled> {
    let row = |suspect: &SuspectText| {
        vec![
            shortened(&suspect.text),
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

/// At most 60 characters, so that tables keep their width.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

fn costs(model: &ModelAdvice) -> Titled {
    let mut header = vec![
        "freeze",
        "trained",
        "values\na row",
        "FLOPs",
        "ms a step",
        "from\na cache",
        "cache",
        "fill",
        "whole run",
        "memory",
        "fits",
    ];
    let names: Vec<String> =
        model.tasks.iter().map(|task| format!("expected\n{}", task.curve.task)).collect();
    header.extend(names.iter().map(String::as_str));
    let row = |cost: &DepthCost| {
        let is_chosen = model.recommendation.freeze.as_deref() == Some(cost.freeze.as_str());
        let cache = cost.cache.as_ref();
        let of_cache = |show: fn(&CacheCost) -> String| cache.map_or("-".to_owned(), show);
        let mut cells = vec![
            format!("{}{}", if is_chosen { "> " } else { "" }, cost.freeze),
            grouped(cost.trainable_parameters),
            digits(cost.parameters_per_row),
            percent(cost.flops_share),
            digits(1e3 * cost.step_seconds),
            of_cache(|cache| digits(1e3 * cache.step_seconds)),
            of_cache(|cache| megabytes(cache.bytes)),
            of_cache(|cache| duration(cache.fill_seconds)),
            duration(cost.run_seconds),
            megabytes(cost.memory_bytes),
            (if cost.fits { "yes" } else { "no" }).to_owned(),
        ];
        let loss = |task: &TaskAdvice| match cost.n_frozen_layers {
            0 => "0".to_owned(),
            n => format!("-{:.1}", 100.0 * task.expected_loss(n, model.n_layers)),
        };
        cells.extend(model.tasks.iter().map(loss));
        cells
    };
    Titled {
        title: "Cost of each depth on this machine".to_owned(),
        note: format!(
            "predicted from the plan; {}; expected: points of accuracy against training everything, a rule of thumb",
            model.pace.ceilings.line()
        ),
        cells: Cells::of(&header, model.costs.iter().map(row).collect()),
    }
}

/// What was measured of each depth.
fn sweep(sweep: &SweepOutcome) -> Titled {
    let tasks: Vec<&str> = sweep
        .trials
        .iter()
        .take(1)
        .flat_map(|trial| &trial.tasks)
        .map(|t| t.task.as_str())
        .collect();
    let mut header =
        vec!["freeze".to_owned(), "trainings".to_owned(), "steps".to_owned(), sweep.metric.clone()];
    header.extend(tasks.iter().map(|task| format!("accuracy\n{task}")));
    header.extend(["seconds".to_owned(), "predicted".to_owned()]);
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let row = |depth: &DepthSummary| {
        let trials = || sweep.trials.iter().filter(|trial| trial.freeze == depth.freeze);
        // Those of the most steps, which are what a depth is judged by.
        let n_steps = trials().map(|trial| trial.n_steps).max().unwrap_or(0);
        let longest: Vec<_> = trials().filter(|trial| trial.n_steps == n_steps).collect();
        let mean = |of: &dyn Fn(usize) -> Option<f64>| {
            let values: Option<Vec<f64>> = (0..longest.len()).map(of).collect();
            let values = values.filter(|values| !values.is_empty())?;
            Some(values.iter().sum::<f64>() / values.len() as f64)
        };
        let show = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
        let mark = match depth.freeze {
            ref freeze if *freeze == sweep.verdict.cheapest => "> ",
            ref freeze if *freeze == sweep.verdict.winner => "* ",
            _ => "",
        };
        let deviation = depth.sd.map_or(String::new(), |sd| format!(" ±{sd:.3}"));
        let mut cells = vec![
            format!("{mark}{}", depth.freeze),
            longest.len().to_string(),
            n_steps.to_string(),
            format!("{}{deviation}", show(mean(&|at| Some(longest[at].score)))),
        ];
        cells.extend(
            (0..tasks.len()).map(|task| show(mean(&|at| longest[at].tasks[task].accuracy))),
        );
        let sum = |of: fn(&Trial) -> f64| trials().map(of).sum::<f64>();
        cells.extend([
            digits(sum(|trial| trial.seconds)),
            digits(sum(|trial| trial.predicted_seconds)),
        ]);
        cells
    };
    let plain = sweep.forecast.plain_seconds;
    let taken = sweep.trial_seconds + sweep.fill_seconds;
    Titled {
        title: "The sweep".to_owned(),
        note: format!(
            "* best, > the most frozen that cannot be told from it; {} in all, every depth with every seed and nothing \
             cached should take {}",
            duration(taken),
            duration(plain)
        ),
        cells: Cells::of(&header, sweep.verdict.depths.iter().map(row).collect()),
    }
}

/// Whether scores rank depths as the sweep does; None without one.
fn agreement(model: &ModelAdvice) -> Option<Titled> {
    let first = model.agreement.first()?;
    let row = |one: &Agreement| {
        let correlation = one.rank_correlation;
        vec![
            one.task.clone(),
            one.score.to_owned(),
            correlation.map_or("-".to_owned(), |value| format!("{value:+.2}")),
        ]
    };
    Some(Titled {
        title: "Do scores rank depths as the sweep does?".to_owned(),
        note: format!(
            "Spearman's rank correlation over {} depths, of the score behind the frozen layers and the accuracy after {} \
             steps; +1: the same order, -1: the reverse",
            first.n_depths, first.n_steps
        ),
        cells: Cells::of(
            &["task", "score", "rank correlation"],
            model.agreement.iter().map(row).collect(),
        ),
    })
}

/// The recommendation with its reasons, and a command that follows it.
pub fn closing(model: &ModelAdvice) -> String {
    let advice = &model.recommendation;
    let mut text = match &advice.freeze {
        Some(freeze) => format!(
            "Recommended: --freeze {freeze} --learning-rate {:e} --head-learning-rate {:e} (confidence: {})\n",
            advice.learning_rate,
            advice.head_learning_rate,
            advice.confidence.name()
        ),
        None => "Recommended: nothing, see below\n".to_owned(),
    };
    if let Some(schedule) = &advice.schedule {
        text += &format!(
            "Worth a try, uncached: --schedule \"{schedule}\", heads first, so that they do not pull a good encoder \
             apart while they are random\n"
        );
    }
    let list = |title: &str, lines: &[String]| -> String {
        let lines: String = lines.iter().map(|line| format!("- {line}\n")).collect();
        format!("{title}\n{lines}")
    };
    text += &list("Why:", &advice.reasons);
    text += &list("What is not known, and what would change it:", &advice.doubts);
    if let Some(head) = &model.head {
        text += &list("One head does better than another:", std::slice::from_ref(&head.text));
    }
    text
}

/// Models side by side; None of a single one.
pub fn comparison(models: &[ModelAdvice]) -> Option<Titled> {
    if models.len() < 2 {
        return None;
    }
    let mut header =
        vec!["model".to_owned(), "parameters".to_owned(), "freeze".to_owned(), "run".to_owned()];
    header.push("memory".to_owned());
    for task in &models[0].tasks {
        header.push(format!("{}:\nfrozen", task.curve.task));
        header.push("\nLogME".to_owned());
    }
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let row = |model: &ModelAdvice| {
        let chosen = model.recommendation.freeze.as_deref();
        let cost = model.costs.iter().find(|cost| Some(cost.freeze.as_str()) == chosen);
        let of_cost = |show: &dyn Fn(&DepthCost) -> String| cost.map_or("-".to_owned(), show);
        let mut cells = vec![
            model.model.clone(),
            grouped(model.n_values),
            chosen.unwrap_or("none that fits").to_owned(),
            of_cost(&|cost| duration(cost.run_seconds)),
            of_cost(&|cost| megabytes(cost.memory_bytes)),
        ];
        for task in &model.tasks {
            let point = task.curve.point(model.n_layers, model.probe_pooling());
            cells.extend([
                point.map_or("-".to_owned(), |p| {
                    format!("{:.3} ±{:.3}", p.accuracy, p.standard_error)
                }),
                point.and_then(|p| p.logme).map_or("-".to_owned(), |value| format!("{value:.3}")),
            ]);
        }
        cells
    };
    let logme = |model: &ModelAdvice, task: usize| {
        model.tasks[task].curve.point(model.n_layers, model.probe_pooling())?.logme
    };
    let first = |(at, task): (usize, &TaskAdvice)| {
        let scored = models.iter().filter_map(|model| Some((&model.model, logme(model, at)?)));
        let (best, _) = scored.max_by(|a, b| a.1.total_cmp(&b.1))?;
        Some(format!("{best} for {}", task.curve.task))
    };
    let first: Vec<String> = models[0].tasks.iter().enumerate().filter_map(first).collect();
    Some(Titled {
        title: "Models side by side".to_owned(),
        note: format!(
            "LogME, which was made for this choice and in most published setups agreed with what training then gave, puts \
             first: {}",
            first.join(", ")
        ),
        cells: Cells::of(&header, models.iter().map(row).collect()),
    })
}

fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    match percent {
        p if p > 0.0 && p < 0.95 => format!("{p:.1} %"),
        p => format!("{p:.0} %"),
    }
}
