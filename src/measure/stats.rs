//! Medians, their uncertainty, and outliers, for times whose noise is one-sided and heavy-tailed.
//!
//! Intervals come from the bootstrap (Efron, 1979): the values are drawn again with replacement, and
//! the spread of the resamples' medians stands for the spread of the median. Draws follow from the
//! seed alone, so that a report can be made again from its raw times.

use crate::data::SplitMix64;
use crate::{Error, Result};

/// Resamples of an interval: 50 beyond each end of a 95 % interval.
const N_RESAMPLES: usize = 2000;

/// Modified z-score beyond which a value is called an outlier (Iglewicz and Hoaglin, "How to Detect
/// and Handle Outliers", 1993). Nothing is dropped on account of it, so a sharp eye costs nothing.
const OUTLIER_SCORE: f64 = 3.5;

/// A median between the ends of its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Interval {
    pub low: f64,
    pub median: f64,
    pub high: f64,
}

/// The middle value, or the mean of the two middle values.
///
/// # Errors
/// [`Error::Run`] for no values, and for a value that is not finite.
pub fn median(values: &[f64]) -> Result<f64> {
    quantile(values, 0.5)
}

/// The value below which the share `q` of `values` lies, for `q` in 0 to 1.
///
/// Between neighbouring values it is interpolated linearly at position `q (n - 1)`, which is type 7 of
/// Hyndman and Fan (1996) and the default of NumPy and R.
///
/// # Errors
/// As [`median`], and for a `q` outside 0 to 1.
pub fn quantile(values: &[f64], q: f64) -> Result<f64> {
    if !(0.0..=1.0).contains(&q) {
        return Err(Error::Run(format!("a quantile of {q} was asked for, not one in 0 to 1")));
    }
    Ok(quantile_of_sorted(&sorted(values)?, q))
}

/// The median distance from the median, in the unit of the values and without the factor 1.4826 that
/// makes it a normal distribution's standard deviation.
///
/// # Errors
/// As [`median`].
pub fn median_absolute_deviation(values: &[f64]) -> Result<f64> {
    let center = median(values)?;
    median(&distances(values, center))
}

/// The median of `times` and its 95 % interval, by the percentile bootstrap.
///
/// One value is its own interval, and below six values an interval covers the truth in less than 95 %
/// of cases, for all n of them lie on one side of it in 2^(1 - n).
///
/// # Errors
/// As [`median`].
pub fn median_interval(times: &[f64], seed: u64) -> Result<Interval> {
    let times = sorted(times)?;
    let mut random = SplitMix64::new(seed);
    let n = times.len();
    let mut drawn = vec![0; n];
    let mut medians: Vec<f64> = (0..N_RESAMPLES)
        .map(|_| {
            drawn.fill_with(|| random.below(n));
            // The values are sorted, so that their order is that of their indices.
            drawn.sort_unstable();
            midpoint(times[drawn[(n - 1) / 2]], times[drawn[n / 2]])
        })
        .collect();
    medians.sort_unstable_by(f64::total_cmp);
    Ok(Interval {
        low: quantile_of_sorted(&medians, 0.025),
        median: quantile_of_sorted(&times, 0.5),
        high: quantile_of_sorted(&medians, 0.975),
    })
}

/// How many times as fast `other` is as `baseline`, and the 95 % interval of that.
///
/// Value i of both comes from round i, in which they ran close together: what slows a whole round
/// cancels in its ratio `baseline / other`. The estimate is the median of the rounds' ratios, and the
/// bootstrap draws rounds.
///
/// # Errors
/// [`Error::Run`] for no rounds, lists of different lengths, and times that are not finite and above
/// zero.
pub fn ratio_interval(baseline: &[f64], other: &[f64], seed: u64) -> Result<Interval> {
    if baseline.len() != other.len() {
        let (n, m) = (baseline.len(), other.len());
        return Err(Error::Run(format!("{n} rounds of the baseline against {m} of the other")));
    }
    if let Some(time) = baseline.iter().chain(other).find(|&&time| !is_time(time)) {
        return Err(Error::Run(format!("a round took {time}, which is no time")));
    }
    let ratios: Vec<f64> = baseline.iter().zip(other).map(|(b, o)| b / o).collect();
    median_interval(&ratios, seed)
}

/// Indices of values far from the median, in order: modified z-score `0.6745 |x - median| / MAD` above
/// 3.5. Where more than half of the values are equal and the MAD is 0, the mean absolute deviation
/// takes its place, with its own factor 0.7979.
///
/// # Errors
/// As [`median`].
pub fn outliers(values: &[f64]) -> Result<Vec<usize>> {
    // Both factors make the deviation of a normal distribution its standard deviation.
    const PER_MEDIAN_DEVIATION: f64 = 0.6745;
    const PER_MEAN_DEVIATION: f64 = 0.7979;
    let distances = distances(values, median(values)?);
    let mad = median(&distances)?;
    let unit = if mad > 0.0 {
        mad / PER_MEDIAN_DEVIATION
    } else {
        distances.iter().sum::<f64>() / distances.len() as f64 / PER_MEAN_DEVIATION
    };
    let is_far = |distance: f64| distance > OUTLIER_SCORE * unit;
    Ok((0..values.len()).filter(|&index| is_far(distances[index])).collect())
}

fn is_time(seconds: f64) -> bool {
    seconds.is_finite() && seconds > 0.0
}

fn distances(values: &[f64], center: f64) -> Vec<f64> {
    values.iter().map(|value| (value - center).abs()).collect()
}

fn sorted(values: &[f64]) -> Result<Vec<f64>> {
    if values.is_empty() {
        return Err(Error::Run("there are no values to take a median of".into()));
    }
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        let value = values[index];
        return Err(Error::Run(format!("value {index} of a measurement is {value}")));
    }
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    Ok(sorted)
}

fn midpoint(a: f64, b: f64) -> f64 {
    // Half of each, for the sum of two large values may overflow.
    if a == b { a } else { 0.5 * a + 0.5 * b }
}

/// `sorted` is not empty, and `q` in 0 to 1.
fn quantile_of_sorted(sorted: &[f64], q: f64) -> f64 {
    let position = q * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
    if below == above {
        return below;
    }
    let weight = position.fract();
    (1.0 - weight) * below + weight * above
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::normal;

    #[test]
    fn known_medians_and_quantiles() {
        assert_eq!(median(&[7.0]).unwrap(), 7.0);
        assert_eq!(median(&[3.0, 1.0]).unwrap(), 2.0);
        assert_eq!(median(&[9.0, 1.0, 5.0]).unwrap(), 5.0);
        assert_eq!(median(&[4.0, 1.0, 100.0, 2.0]).unwrap(), 3.0);
        assert_eq!(median(&[f64::MAX, f64::MAX]).unwrap(), f64::MAX);
        // numpy.quantile([1, 2, 3, 4], [0, 0.25, 0.9, 1])
        for (q, expected) in [(0.0, 1.0), (0.25, 1.75), (0.9, 3.7), (1.0, 4.0)] {
            let found = quantile(&[4.0, 2.0, 1.0, 3.0], q).unwrap();
            // A few roundings of numbers below 4.
            assert!((found - expected).abs() <= 4e-15, "{q}: {found}");
        }
    }

    #[test]
    fn known_deviations() {
        assert_eq!(median_absolute_deviation(&[1.0, 1.0, 2.0, 2.0, 4.0, 6.0, 9.0]).unwrap(), 1.0);
        assert_eq!(median_absolute_deviation(&[5.0]).unwrap(), 0.0);
        assert_eq!(median_absolute_deviation(&[1.0, 4.0]).unwrap(), 1.5);
    }

    #[test]
    fn what_is_no_number_is_an_error() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let values = [1.0, bad, 2.0];
            assert!(median(&values).is_err());
            assert!(median_absolute_deviation(&values).is_err());
            assert!(median_interval(&values, 1).is_err());
            assert!(outliers(&values).is_err());
            assert!(ratio_interval(&values, &[1.0; 3], 1).is_err());
            assert!(ratio_interval(&[1.0; 3], &values, 1).is_err());
            assert!(quantile(&[1.0], bad).is_err());
        }
        assert!(median(&[]).is_err());
        assert!(median_interval(&[], 1).is_err());
        assert!(ratio_interval(&[], &[], 1).is_err());
        assert!(ratio_interval(&[1.0], &[1.0, 1.0], 1).is_err());
        assert!(ratio_interval(&[1.0], &[0.0], 1).is_err());
        let message = median(&[1.0, f64::NAN]).unwrap_err().to_string();
        assert_eq!(message, "value 1 of a measurement is NaN");
    }

    #[test]
    fn an_interval_holds_its_median_and_follows_from_the_seed() {
        let times: Vec<f64> = normal(4, 0, 31, 1.0).iter().map(|&v| 20.0 + f64::from(v)).collect();
        for n in 1..=times.len() {
            let interval = median_interval(&times[..n], 9).unwrap();
            assert_eq!(interval.median, median(&times[..n]).unwrap());
            assert!(interval.low <= interval.median && interval.median <= interval.high, "{n}");
            assert!(n == 1 || interval.low < interval.high, "{n}");
            assert_eq!(interval, median_interval(&times[..n], 9).unwrap());
        }
        let (one, other) = (median_interval(&times[..30], 1), median_interval(&times[..30], 2));
        assert_ne!(one.unwrap(), other.unwrap());
    }

    #[test]
    fn small_samples() {
        let one = median_interval(&[3.0], 5).unwrap();
        assert_eq!(one, Interval { low: 3.0, median: 3.0, high: 3.0 });
        // A quarter of the resamples is twice the one, a quarter twice the other.
        let two = median_interval(&[3.0, 5.0], 5).unwrap();
        assert_eq!(two, Interval { low: 3.0, median: 4.0, high: 5.0 });
        let same = ratio_interval(&[2.0, 7.0, 3.0], &[2.0, 7.0, 3.0], 5).unwrap();
        assert_eq!(same, Interval { low: 1.0, median: 1.0, high: 1.0 });
    }

    #[test]
    fn ratios_are_of_rounds_and_point_the_right_way() {
        // The machine is four times slower in the last rounds; the ratio within a round is 2.
        let other = [1.0, 1.1, 0.9, 4.0, 4.2];
        let baseline = other.map(|time| 2.0 * time);
        let ratio = ratio_interval(&baseline, &other, 3).unwrap();
        assert_eq!(ratio, Interval { low: 2.0, median: 2.0, high: 2.0 });
    }

    /// A against A: rounds that share a drift, each run with a noise of its own.
    #[test]
    fn the_ratio_of_equals_covers_one_as_often_as_it_says() {
        const N_RUNS: usize = 400;
        const N_ROUNDS: usize = 20;
        let covered = (0..N_RUNS).filter(|&run| {
            let draws = normal(100 + run as u64, 0, 3 * N_ROUNDS, 0.05);
            let time = |round: usize, which: usize| {
                let drift = 10.0 * draws[3 * round] + draws[3 * round + which];
                0.1 * f64::from(drift).exp()
            };
            let times = |which| (0..N_ROUNDS).map(|r| time(r, which)).collect::<Vec<f64>>();
            let ratio = ratio_interval(&times(1), &times(2), run as u64).unwrap();
            ratio.low <= 1.0 && 1.0 <= ratio.high
        });
        // 94 % is known of the percentile bootstrap of a median of 20, with 1.2 % noise in 400 runs.
        let share = covered.count() as f64 / N_RUNS as f64;
        assert!((0.92..=0.98).contains(&share), "{share}");
    }

    #[test]
    fn outliers_are_named_and_not_dropped() {
        let found = |values: &[f64]| outliers(values).unwrap();
        let none: [usize; 0] = [];
        let times = [1.0, 1.01, 0.99, 1.02, 3.0, 0.98, 1.0, 0.2];
        assert_eq!(found(&times), [4, 7]);
        assert_eq!(found(&[1.0, 2.0, 3.0, 4.0]), none);
        assert_eq!(found(&[5.0]), none);
        assert_eq!(found(&[5.0; 9]), none);
        // Score 0.6745 * 5.2 / 1 = 3.507, and with 5.1 it is 3.440.
        let with = |last| [-1.0, 0.0, 1.0, -1.0, 1.0, 0.0, last];
        assert_eq!(found(&with(5.2)), [6]);
        assert_eq!(found(&with(-5.2)), [6]);
        assert_eq!(found(&with(5.1)), none);
        // Most are equal: the mean deviation is 0.8, the score of 8 is 0.7979 * 8 / 0.8 = 7.979.
        let mut mostly_equal = [2.0; 10];
        mostly_equal[3] = 10.0;
        assert_eq!(found(&mostly_equal), [3]);
    }
}
