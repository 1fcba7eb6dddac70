//! Just enough SVG for charts: shapes and texts with the page's classes, and axes with round ticks.

use std::fmt::Write;

/// Text as HTML and SVG may hold it.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Where a text stands against its point.
#[derive(Clone, Copy)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

/// A picture under construction; lengths are in its own units.
pub struct Svg {
    width: f64,
    height: f64,
    body: String,
}

impl Svg {
    /// An empty picture.
    pub fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    fn push(&mut self, text: std::fmt::Arguments) {
        // Writing to a String cannot fail.
        let _ = self.body.write_fmt(text);
        self.body.push('\n');
    }

    /// A rectangle that says `title` when pointed at.
    pub fn rect(&mut self, [x, y, width, height]: [f64; 4], class: &str, title: &str) {
        let title = escaped(title);
        self.push(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" class="{class}"><title>{title}</title></rect>"#
        ));
    }

    /// A line from one point to another.
    pub fn line(&mut self, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2], class: &str) {
        self.push(format_args!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" class="{class}"/>"#
        ));
    }

    /// A line through points.
    pub fn polyline(&mut self, points: &[[f64; 2]], class: &str) {
        let points: Vec<String> = points.iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
        let points = points.join(" ");
        self.push(format_args!(r#"<polyline points="{points}" class="{class}"/>"#));
    }

    /// A dot that says `title` when pointed at.
    pub fn dot(&mut self, [x, y]: [f64; 2], class: &str, title: &str) {
        let title = escaped(title);
        self.push(format_args!(
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="4.5" class="{class}"><title>{title}</title></circle>"#
        ));
    }

    /// A text.
    pub fn text(&mut self, [x, y]: [f64; 2], anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escaped(text);
        self.push(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" class="{class}">{text}</text>"#
        ));
    }

    /// Names of colours, from left to right at height `y`.
    pub fn legend(&mut self, x: f64, y: f64, names: &[&str]) {
        let mut x = x;
        for (at, name) in names.iter().enumerate() {
            self.rect([x, y - 9.0, 11.0, 11.0], &fill(at), name);
            self.text([x + 16.0, y], Anchor::Start, "", name);
            x += 34.0 + 6.6 * name.chars().count() as f64;
        }
    }

    /// The finished picture, which readers of screens call `label`.
    pub fn finish(self, label: &str) -> String {
        let Self { width, height, body } = self;
        let label = escaped(label);
        format!(
            "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{label}\">\n{body}</svg>\n"
        )
    }
}

/// The class that fills with colour `at`.
pub fn fill(at: usize) -> String {
    format!("f{}", at % 7)
}

/// The class that draws with colour `at`.
pub fn stroke(at: usize) -> String {
    format!("s{}", at % 7)
}

/// From values to lengths.
pub struct Scale {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
    is_logarithmic: bool,
}

impl Scale {
    /// Values `from..=to` at lengths `start..=end`; a span of nothing is widened.
    pub fn linear([from, to]: [f64; 2], [start, end]: [f64; 2]) -> Self {
        let to = if to > from { to } else { from + 1.0 };
        Self { from, to, start, end, is_logarithmic: false }
    }

    /// The same for logarithms of values above 0.
    pub fn logarithmic([from, to]: [f64; 2], [start, end]: [f64; 2]) -> Self {
        Self { from: from.log10(), to: to.log10(), start, end, is_logarithmic: true }
    }

    /// Where a value lies.
    pub fn at(&self, value: f64) -> f64 {
        let value = if self.is_logarithmic { value.log10() } else { value };
        self.start + (value - self.from) / (self.to - self.from) * (self.end - self.start)
    }

    /// Round values within the scale: powers of ten where it is logarithmic, else about six steps of 1, 2 or 5
    /// times a power of ten.
    pub fn ticks(&self) -> Vec<f64> {
        if self.is_logarithmic {
            let powers = self.from.ceil() as i32..=self.to.floor() as i32;
            return powers.map(|power| 10.0_f64.powi(power)).collect();
        }
        let rough = (self.to - self.from) / 6.0;
        let power = 10.0_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
        let step = step.into_iter().find(|step| *step >= rough).unwrap_or(10.0 * power);
        let first = (self.from / step - 1e-9).ceil() as i64;
        let last = (self.to / step + 1e-9).floor() as i64;
        (first..=last).map(|n| n as f64 * step).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_and_ticks() {
        let scale = Scale::linear([0.0, 50.0], [100.0, 200.0]);
        assert_eq!((scale.at(0.0), scale.at(25.0), scale.at(50.0)), (100.0, 150.0, 200.0));
        assert_eq!(scale.ticks(), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        let shares = Scale::linear([0.71, 0.79], [0.0, 1.0]).ticks();
        assert_eq!(shares.len(), 4, "{shares:?}");
        assert!((shares[0] - 0.72).abs() <= 1e-12);
        // A span of nothing is still one.
        assert!(Scale::linear([3.0, 3.0], [0.0, 1.0]).at(3.0).is_finite());
        let powers = Scale::logarithmic([0.5, 2000.0], [0.0, 1.0]);
        assert_eq!(powers.ticks(), [1.0, 10.0, 100.0, 1000.0]);
    }

    #[test]
    fn what_a_user_wrote_stays_text() {
        let mut svg = Svg::new(10.0, 10.0);
        svg.text([0.0, 0.0], Anchor::Start, "", "name:<b>&\"");
        assert!(svg.finish("a\"b").contains("name:&lt;b&gt;&amp;&quot;"));
    }
}
