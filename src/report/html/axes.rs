//! Charts of points: a field with axes, and points that are cost and gain.

use super::svg::{Anchor, Scale, Svg};
use crate::report::cells::shortened;

/// Of all charts.
pub const WIDTH: f64 = 960.0;

/// A round value, with no more digits than it needs.
pub fn tick_text(value: f64) -> String {
    // Steps of 0.1 add up to 0.30000000000000004.
    format!("{}", (value * 1e9).round() / 1e9)
}

/// What fits beside a bar or a point.
pub fn short_name(text: &str) -> String {
    shortened(text, 30)
}

/// The frame of a chart of points: axes with their names.
pub fn frame(
    svg: &mut Svg,
    [x, y]: [&Scale; 2],
    [left, right, top, bottom]: [f64; 4],
    names: [&str; 2],
) {
    for tick in x.ticks() {
        let at = x.at(tick);
        svg.line([at, top], [at, bottom], "grid");
        svg.text([at, bottom + 16.0], Anchor::Middle, "faint", &tick_text(tick));
    }
    for tick in y.ticks() {
        let at = y.at(tick);
        svg.line([left, at], [right, at], "grid");
        svg.text([left - 6.0, at + 4.0], Anchor::End, "faint", &tick_text(tick));
    }
    svg.text([right, bottom + 34.0], Anchor::End, "faint", names[0]);
    svg.text([left, top - 8.0], Anchor::Start, "faint", names[1]);
}

/// The part of a chart of points that holds them: left, right, top, bottom.
pub const FIELD: [f64; 4] = [60.0, WIDTH - 190.0, 30.0, 330.0];
pub const HEIGHT: f64 = 375.0;

/// Points that no other beats in both: less cost, more gain. In order of cost.
fn pareto(points: &[[f64; 2]]) -> Vec<usize> {
    let is_beaten = |[cost, gain]: [f64; 2]| {
        points.iter().any(|&[c, g]| c <= cost && g >= gain && (c < cost || g > gain))
    };
    let mut front: Vec<usize> = (0..points.len()).filter(|&at| !is_beaten(points[at])).collect();
    front.sort_by(|&a, &b| points[a][0].total_cmp(&points[b][0]));
    front
}

/// A named point of a chart.
pub struct Point {
    pub name: String,
    /// Cost and gain.
    pub at: [f64; 2],
    /// What it is drawn in.
    pub class: String,
    /// What it says when pointed at.
    pub title: String,
    /// Whether it may stand on the front.
    pub is_comparable: bool,
}

/// Gain against cost, with the front that no point beats; None without points.
pub fn scatter(points: &[Point], axes: [&str; 2], label: &str) -> Option<String> {
    let places: Vec<[f64; 2]> = points.iter().map(|point| point.at).collect();
    let (_, most) = ends(places.iter().map(|place| place[0]))?;
    let (low, high) = ends(places.iter().map(|place| place[1]))?;
    let [left, right, top, bottom] = FIELD;
    let mut svg = Svg::new(WIDTH, HEIGHT);
    let x = Scale::linear([0.0, most], [left, right]);
    let y = Scale::linear([(low - 0.02).max(0.0), (high + 0.02).min(1.0)], [bottom, top]);
    frame(&mut svg, [&x, &y], FIELD, axes);
    let place = |[cost, gain]: [f64; 2]| [x.at(cost), y.at(gain)];
    let comparable = points.iter().filter(|point| point.is_comparable);
    let comparable: Vec<[f64; 2]> = comparable.map(|point| point.at).collect();
    let front: Vec<[f64; 2]> =
        pareto(&comparable).into_iter().map(|at| place(comparable[at])).collect();
    svg.polyline(&front, "outline");
    let mut labels: Vec<[f64; 2]> = Vec::new();
    for point in points {
        let at = place(point.at);
        svg.dot(at, &point.class, &point.title);
        // Below a label that is in the way.
        let mut label = [at[0] + 9.0, at[1] + 4.0];
        let is_near = |other: &&[f64; 2], label: [f64; 2]| {
            (other[0] - label[0]).abs() < 150.0 && (other[1] - label[1]).abs() < 13.0
        };
        while let Some(other) = labels.iter().find(|other| is_near(other, label)) {
            label[1] = other[1] + 13.0;
        }
        labels.push(label);
        svg.text(label, Anchor::Start, "", &short_name(&point.name));
    }
    Some(svg.finish(label))
}

/// The least and the greatest of some values; None of none.
pub fn ends(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |ends, value| match ends {
        None => Some((value, value)),
        Some((low, high)) => Some((f64::min(low, value), f64::max(high, value))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beaten_in_nothing_stays() {
        let points = [[10.0, 0.8], [5.0, 0.8], [7.0, 0.9], [1.0, 0.1], [5.0, 0.7], [1.0, 0.1]];
        assert_eq!(pareto(&points), [3, 5, 1, 2]);
        assert_eq!(pareto(&[]), [0; 0]);
    }
}
