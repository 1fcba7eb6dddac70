//! How far two arrays are apart, so that neither a small error everywhere nor a large one in a single place passes.

/// The distance of what a device wrote from what the reference did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Difference {
    /// ‖found - expected‖ / ‖expected‖.
    pub error: f64,
    /// The largest difference of a single value, as a share of that value or of the root of the mean square of all,
    /// whichever is larger.
    pub deviation: f64,
}

impl Difference {
    /// What no tolerance allows.
    pub const UNBOUNDED: Difference = Difference { error: f64::NAN, deviation: f64::NAN };

    /// The difference of two arrays. Where `scale` is larger than ‖expected‖, it takes its place.
    ///
    /// NaN stands in both arrays where a row takes no part; a NaN in one of them makes both figures NaN, and so do
    /// different lengths and arrays of nothing.
    pub fn of(found: &[f32], expected: &[f32], scale: f64) -> Self {
        if found.len() != expected.len() || found.is_empty() {
            return Self::UNBOUNDED;
        }
        let pairs = || {
            (found.iter().zip(expected))
                .filter(|(found, expected)| !(found.is_nan() && expected.is_nan()))
                .map(|(&found, &expected)| (f64::from(found), f64::from(expected)))
        };
        let (mut n, mut difference, mut squares) = (0, 0.0, 0.0);
        for (found, expected) in pairs() {
            n += 1;
            difference += (found - expected).powi(2);
            squares += expected.powi(2);
        }
        // Rows that take no part have nothing to compare: somebody must.
        if n == 0 {
            return Self::UNBOUNDED;
        }
        let norm = squares.sqrt().max(scale);
        let usual = norm / f64::from(n).sqrt();
        // Where all is zero, any difference counts in full.
        let share = |difference: f64, of: f64| if of == 0.0 { difference } else { difference / of };
        let mut deviation = 0.0;
        for (found, expected) in pairs() {
            let one = share((found - expected).abs(), expected.abs().max(usual));
            if one.is_nan() {
                return Self::UNBOUNDED;
            }
            deviation = f64::max(deviation, one);
        }
        Difference { error: share(difference.sqrt(), norm), deviation }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(found: &[f32], expected: &[f32]) -> Difference {
        Difference::of(found, expected, 0.0)
    }

    #[test]
    fn nothing_wrong_passes_unseen() {
        assert_eq!(of(&[1.0, 2.0], &[1.0, 2.0]), Difference { error: 0.0, deviation: 0.0 });
        assert_eq!(of(&[f32::NAN, 2.0], &[f32::NAN, 2.0]).error, 0.0);
        // A missing value, one too many, different lengths, nothing at all.
        for (found, expected) in [
            (&[f32::NAN, 2.0][..], &[1.0, 2.0][..]),
            (&[1.0, 2.0], &[f32::NAN, 2.0]),
            (&[f32::INFINITY, 2.0], &[f32::INFINITY, 2.0]),
            (&[f32::NAN, f32::NAN], &[f32::NAN, f32::NAN]),
            (&[1.0], &[1.0, 2.0]),
            (&[], &[]),
        ] {
            let Difference { error, deviation } = of(found, expected);
            assert!(error.is_nan() && deviation.is_nan(), "{found:?} {expected:?}");
        }
        // A zero, a swapped pair, something where nothing should be.
        assert!(of(&[0.0, 0.0], &[1.0, 2.0]).error == 1.0);
        assert!(of(&[2.0, 1.0], &[1.0, 2.0]).error > 0.5);
        assert!(of(&[1e-3], &[0.0]).error > 0.0 && of(&[1e-3], &[0.0]).deviation > 0.0);
    }

    /// One wrong value of a million moves the norm by a thousandth, and is the whole of itself.
    #[test]
    fn a_single_wrong_value_stands_out() {
        let expected = vec![1.0; 1 << 20];
        let mut found = expected.clone();
        found[777] = 0.0;
        let Difference { error, deviation } = of(&found, &expected);
        assert!(error < 1e-3 && deviation == 1.0, "{error} {deviation}");
    }

    #[test]
    fn small_values_are_held_against_the_usual_one_and_the_scale() {
        // The root of the mean square of 3 and 4e-6 is 2.12.
        let Difference { deviation, .. } = of(&[3.0, 6e-6], &[3.0, 4e-6]);
        assert!((deviation - 2e-6 / 2.1213).abs() <= 1e-10, "{deviation}");
        let scaled = Difference::of(&[1e-8, 0.0], &[0.0, 0.0], 2.0);
        assert!((scaled.error - 5e-9).abs() <= 1e-15, "{scaled:?}");
    }
}
