//! What follows: the recommendation, and models side by side.

use super::Titled;
use crate::advise::costs::DepthCost;
use crate::advise::figures::{duration, megabytes};
use crate::advise::survey::{ModelAdvice, TaskAdvice};
use crate::report::cells::Cells;
use crate::report::table::{grouped, share};

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
    text += &list("What is not known:", &advice.doubts);
    if !advice.alternatives.is_empty() {
        text += &list("What else could be done:", &advice.alternatives);
    }
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
            let point = model.last_point(task);
            cells.extend([
                point.map_or("-".to_owned(), |p| {
                    format!("{:.3} ±{:.3}", p.accuracy, p.standard_error)
                }),
                share(point.and_then(|p| p.logme)),
            ]);
        }
        cells
    };
    let logme = |model: &ModelAdvice, task: usize| model.last_point(&model.tasks[task])?.logme;
    let first = |(at, task): (usize, &TaskAdvice)| {
        let scored = models.iter().filter_map(|model| Some((&model.model, logme(model, at)?)));
        let (best, _) = scored.max_by(|a, b| a.1.total_cmp(&b.1))?;
        Some(format!("{best} for {}", task.curve.task))
    };
    let first: Vec<String> = models[0].tasks.iter().enumerate().filter_map(first).collect();
    Some(Titled {
        title: "Models side by side".to_owned(),
        note: match first.as_slice() {
            [] => String::new(),
            first => format!(
                "LogME, which was made for this choice and in most published setups agreed with what training then gave, \
                 puts first: {}",
                first.join(", ")
            ),
        },
        cells: Cells::of(&header, models.iter().map(row).collect()),
    })
}
