//! Figures inside sentences.

/// An accuracy or a share: `0.787`.
pub(super) fn share(value: f64) -> String {
    format!("{value:.3}")
}

/// A share in percent: `12 %`.
pub(super) fn percent(value: f64) -> String {
    format!("{:.0} %", 100.0 * value)
}

/// A difference of accuracies in points: `0.9`.
pub(super) fn points(value: f64) -> String {
    format!("{:.1}", 100.0 * value)
}

/// A time, in the unit that people would choose.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 0.95 => format!("{:.0} ms", 1e3 * s),
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 99.5 => format!("{s:.0} s"),
        s if s < 9.95 * 60.0 => format!("{:.1} min", s / 60.0),
        s if s < 99.5 * 60.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Memory in megabytes: `412 MB`.
pub fn megabytes(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_people_say_them() {
        let cases = [
            (0.0004, "0 ms"),
            (0.94, "940 ms"),
            (0.96, "1.0 s"),
            (9.94, "9.9 s"),
            (9.96, "10 s"),
            (99.4, "99 s"),
            (100.0, "1.7 min"),
            (600.0, "10 min"),
            (5400.0, "90 min"),
            (7200.0, "2.0 h"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
    }
}
