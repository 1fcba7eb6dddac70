//! What each depth costs, and what training at it gave.

use super::{Titled, percent};
use crate::advise::costs::{CacheCost, DepthCost};
use crate::advise::figures::{duration, megabytes};
use crate::advise::revise::Agreement;
use crate::advise::survey::{ModelAdvice, TaskAdvice};
use crate::advise::sweep::SweepOutcome;
use crate::advise::verdict::{DepthSummary, Trial};
use crate::report::cells::Cells;
use crate::report::table::{digits, grouped, share};
use crate::sums::mean;

pub(super) fn costs(model: &ModelAdvice) -> Titled {
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
            format!(
                "{}{}",
                duration(cost.run_seconds),
                if cost.run_is_cached { ", cached" } else { "" }
            ),
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
            "predicted from the plan; {}; memory: of a step, to which a process adds its own and a cache in memory; \
             expected: points of accuracy against training everything, a rule of thumb",
            model.pace.ceilings.line()
        ),
        cells: Cells::of(&header, model.costs.iter().map(row).collect()),
    }
}

/// What was measured of each depth.
pub(super) fn sweep(model: &ModelAdvice, sweep: &SweepOutcome) -> Titled {
    let tasks: Vec<&str> = sweep
        .trials
        .iter()
        .take(1)
        .flat_map(|trial| &trial.tasks)
        .map(|t| t.task.as_str())
        .collect();
    let mut header = ["freeze", "", "trainings", "steps", &sweep.metric, "behind\nthe best"]
        .map(str::to_owned)
        .to_vec();
    header.extend(tasks.iter().map(|task| format!("accuracy\n{task}")));
    header.extend(["seconds\nof one".to_owned(), "\npredicted".to_owned()]);
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let row = |depth: &DepthSummary| {
        let longest = sweep.longest(&depth.freeze);
        let accuracy = |task: usize| {
            let of = |trial: &&Trial| trial.tasks[task].accuracy;
            mean(longest.iter().map(of).collect::<Option<Vec<f64>>>()?)
        };
        let freeze = &depth.freeze;
        let mut marks = Vec::new();
        if *freeze == sweep.verdict.cheapest {
            marks.push("chosen");
        }
        if *freeze == sweep.verdict.winner {
            marks.push("best");
        }
        if model.advised.as_ref() == Some(freeze) {
            marks.push("by scores");
        }
        let deviation = depth.sd.map_or(String::new(), |sd| format!(" ±{sd:.3}"));
        let mut cells = vec![
            freeze.clone(),
            marks.join(", "),
            longest.len().to_string(),
            longest.first().map_or(0, |trial| trial.n_steps).to_string(),
            format!("{}{deviation}", share(mean(longest.iter().map(|trial| trial.score)))),
            depth.behind.map_or(String::new(), |behind| {
                format!("{:.3} ±{:.3}", behind.difference, behind.standard_error)
            }),
        ];
        cells.extend((0..tasks.len()).map(|task| share(accuracy(task))));
        let seconds = |of: fn(&Trial) -> f64| {
            mean(longest.iter().map(|trial| of(trial))).map_or("-".to_owned(), digits)
        };
        cells.extend([seconds(|trial| trial.seconds), seconds(|trial| trial.predicted_seconds)]);
        cells
    };
    let plain = sweep.forecast.plain_seconds;
    let taken = sweep.trial_seconds + sweep.fill_seconds;
    Titled {
        title: "The sweep".to_owned(),
        note: format!(
            "the longest trainings of each depth, ± over seeds; behind the best ± the standard error of a difference on the \
             same rows, and chosen is the most frozen depth within that; {} in all, {} of it for caches; every depth with \
             every seed and nothing cached should take {}",
            duration(taken),
            duration(sweep.fill_seconds),
            duration(plain)
        ),
        cells: Cells::of(&header, sweep.verdict.depths.iter().map(row).collect()),
    }
}

/// Whether scores rank depths as the sweep does; None without one.
pub(super) fn agreement(model: &ModelAdvice) -> Option<Titled> {
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
