//! The page of an advice: what each layer tells of each task, what depths cost and give, and what follows.

use super::axes::{FIELD, HEIGHT, Point, WIDTH, ends, frame, scatter};
use super::page::{Page, environment, figure};
use super::svg::{Anchor, Scale, Svg, escaped, fill, stroke};
use crate::advise::figures::duration;
use crate::advise::survey::{ModelAdvice, TaskAdvice};
use crate::advise::sweep::SweepOutcome;
use crate::model::Pooling;
use crate::report::advice::{Advice, Titled, closing, comparison, headline, tables};
use crate::sums::mean;

/// The whole page.
pub fn advice_page(advice: &Advice) -> String {
    let names: Vec<&str> = advice.models.iter().map(|model| model.model.as_str()).collect();
    let title = format!("Where to put the frost line: {}", names.join(", "));
    let note = format!("{}, {}", advice.environment.line(), advice.environment.date());
    let mut page = Page::new(&title, &note, &summary(advice));
    for model in &advice.models {
        let of = match advice.models.len() {
            1 => String::new(),
            _ => format!(": {}", escaped(&model.model)),
        };
        page.section(
            &format!("Recommendation{of}"),
            &escaped(&headline(model)),
            &format!("<pre>{}</pre>\n", escaped(&closing(model))),
        );
        let curves: String =
            model.tasks.iter().filter_map(|task| curve(model, task)).map(figure).collect();
        page.section(
            &format!("What each layer tells{of}"),
            "Cross-validated accuracy of a linear probe on frozen features, with its standard error.",
            &curves,
        );
        let sweep = model.sweep.as_ref().and_then(|sweep| proof(model, sweep));
        if let Some(chart) = sweep {
            page.section(
                &format!("Accuracy against cost{of}"),
                "Measured: the longest trainings of each depth, caches apart. The dashed line joins the depths at full length \
                 that no other beats in both; grey ones were left behind after short trainings.",
                &figure(chart),
            );
        }
        let tables: String = tables(model).iter().map(table).collect();
        page.section(&format!("Figures{of}"), "", &tables);
    }
    if let Some(models) = comparison(&advice.models) {
        page.section("Models", "", &table(&models));
    }
    if let Some(model) = advice.models.first() {
        let facts =
            environment(&advice.environment, &model.pace.ceilings, &advice.settings["data"]);
        page.section("How it was measured", "", &facts);
    }
    page.finish()
}

fn table(titled: &Titled) -> String {
    let Titled { title, note, cells } = titled;
    let (title, note) = (escaped(title), escaped(note));
    format!(
        "<h3>{title}</h3>\n<p class=\"note\">{note}</p>\n<div class=\"wide\">{}</div>\n",
        cells.html()
    )
}

fn summary(advice: &Advice) -> String {
    let one = |model: &ModelAdvice| {
        let Some(freeze) = &model.recommendation.freeze else {
            return format!("{}: no depth stays within the limits.", model.model);
        };
        let cost = model.costs.iter().find(|cost| cost.freeze == *freeze);
        let cost = cost.map(|cost| {
            format!(
                ": about {} of training with {:.0} % of a full step's arithmetic",
                duration(cost.run_seconds),
                100.0 * cost.flops_share
            )
        });
        format!(
            "{}: freeze {freeze} (confidence: {}){}.",
            model.model,
            model.recommendation.confidence.name(),
            cost.unwrap_or_default()
        )
    };
    advice.models.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// A task's probes by layer.
fn curve(model: &ModelAdvice, task: &TaskAdvice) -> Option<String> {
    let curve = &task.curve;
    let poolings = [Pooling::Mean, Pooling::Cls];
    let of = |pooling| {
        let points = (0..=model.n_layers).filter_map(move |layer| curve.point(layer, pooling));
        points.collect::<Vec<_>>()
    };
    let accuracies = curve.points.iter().map(|point| point.accuracy);
    let (low, high) = ends(accuracies.chain([curve.majority]))?;
    let [left, right, top, bottom] = FIELD;
    let x = Scale::linear([0.0, model.n_layers as f64], [left, right]);
    let y = Scale::linear([(low - 0.02).max(0.0), (high + 0.02).min(1.0)], [bottom, top]);
    let mut svg = Svg::new(WIDTH, HEIGHT);
    let name = format!("accuracy, {}", curve.task);
    frame(&mut svg, [&x, &y], FIELD, ["layers below", &name]);
    let majority = y.at(curve.majority);
    svg.polyline(&[[left, majority], [right, majority]], "outline");
    svg.text([right + 10.0, majority + 4.0], Anchor::Start, "faint", "the commonest label");
    for (at, pooling) in poolings.into_iter().enumerate() {
        let points = of(pooling);
        let place = |layer: usize, accuracy: f64| [x.at(layer as f64), y.at(accuracy)];
        let line: Vec<[f64; 2]> =
            points.iter().map(|point| place(point.layer, point.accuracy)).collect();
        svg.polyline(&line, &format!("curve {}", stroke(at)));
        for point in points {
            let (layer, accuracy, error) = (point.layer, point.accuracy, point.standard_error);
            let [ends_low, ends_high] =
                [accuracy - error, accuracy + error].map(|end| place(layer, end));
            svg.line(ends_low, ends_high, &stroke(at));
            let title = format!("layer {layer}, {}: {accuracy:.3} ±{error:.3}", pooling.name());
            svg.dot(place(layer, accuracy), &fill(at), &title);
        }
        let (x, y) = (right + 20.0, top + 8.0 + 20.0 * at as f64);
        svg.rect([x, y - 9.0, 11.0, 11.0], &fill(at), pooling.name());
        svg.text([x + 16.0, y], Anchor::Start, "", &format!("{} pooling", pooling.name()));
    }
    Some(svg.finish(&format!("Accuracy of a probe for {} by layer", curve.task)))
}

/// Every depth of a sweep by its longest trainings: what one takes, and what it gives.
fn proof(model: &ModelAdvice, sweep: &SweepOutcome) -> Option<String> {
    let point = |freeze: &String| {
        let longest = sweep.longest(freeze);
        let n_steps = longest.first()?.n_steps;
        let seconds = mean(longest.iter().map(|trial| trial.seconds))?;
        let score = mean(longest.iter().map(|trial| trial.score))?;
        let is_short = n_steps < sweep.n_steps;
        let is_chosen = *freeze == sweep.verdict.cheapest;
        let mut name = freeze.clone();
        if is_short {
            name += &format!(", {n_steps} steps");
        }
        if is_chosen {
            name += " (chosen)";
        }
        if model.advised.as_ref() == Some(freeze) {
            name += " (by scores)";
        }
        let title =
            format!("{name}: {}, {score:.3} in {} trainings", duration(seconds), longest.len());
        let colour = match (is_chosen, is_short) {
            (true, _) => 1,
            (false, true) => 4,
            (false, false) => 0,
        };
        let (class, at) = (fill(colour), [seconds, score]);
        Some(Point { name, at, class, title, is_comparable: !is_short })
    };
    let points: Vec<Point> =
        sweep.verdict.depths.iter().filter_map(|depth| point(&depth.freeze)).collect();
    let gain = format!("{}, mean over seeds", sweep.metric);
    scatter(&points, ["seconds of a training", &gain], "Accuracy of each depth against its cost")
}
