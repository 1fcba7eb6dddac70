//! Whether two rankings agree: how far cheap scores order depths as a measured sweep does.

/// Spearman's rank correlation of two lists (The American Journal of Psychology 15, 1904), as `scipy.stats.spearmanr`
/// has it: Pearson's correlation of their ranks, equal values sharing the mean of theirs. 1 where both order alike, -1
/// where one turns the other around.
///
/// None for lists of different lengths or of less than three values, which are in order or turned around by chance half
/// of the time; for a value that is not finite; and where all values of a list are equal and order nothing.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    let is_ordered = a.len() == b.len() && a.len() >= 3;
    if !is_ordered || a.iter().chain(b).any(|value| !value.is_finite()) {
        return None;
    }
    // Of all ranks from 1 to n, shared or not.
    let mean = (a.len() as f64 + 1.0) / 2.0;
    let centred = |values| ranks(values).into_iter().map(|rank| rank - mean).collect();
    let (a, b): (Vec<f64>, Vec<f64>) = (centred(a), centred(b));
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scale = (product(&a, &a) * product(&b, &b)).sqrt();
    (scale > 0.0).then(|| product(&a, &b) / scale)
}

/// The rank of each value, from 1; equal values have the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let rank = |value: &f64| {
        let n_below = values.iter().filter(|other| *other < value).count();
        let n_equal = values.iter().filter(|other| *other == value).count();
        n_below as f64 + (n_equal as f64 + 1.0) / 2.0
    };
    values.iter().map(rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_scipy() {
        // scipy.stats.spearmanr(a, b).statistic of scipy 1.17.1.
        let cases: [(&[f64], &[f64], f64); 5] = [
            (&[1.0, 2.0, 3.0, 4.0, 5.0], &[5.0, 6.0, 7.0, 8.0, 7.0], 0.820_782_681_668_123_3),
            (
                &[0.5, 0.5, 0.7, 0.9, 0.1, 0.7],
                &[3.0, 1.0, 4.0, 4.0, 2.0, 2.0],
                0.636_363_636_363_636_2,
            ),
            (&[1.0, 2.0, 3.0], &[3.0, 1.0, 2.0], -0.5),
            (&[10.0, 20.0, 30.0, 40.0], &[4.0, 3.0, 2.0, 1.0], -1.0),
            (
                &[0.81, 0.79, 0.83, 0.83, 0.80, 0.77, 0.83],
                &[0.90, 0.88, 0.91, 0.93, 0.93, 0.85, 0.90],
                0.622_752_368_779_527_8,
            ),
        ];
        for (a, b, expected) in cases {
            for found in [spearman(a, b).unwrap(), spearman(b, a).unwrap()] {
                // A few roundings of numbers of order 1.
                assert!((found - expected).abs() <= 1e-14, "{a:?} {b:?}: {found}, not {expected}");
            }
        }
    }

    #[test]
    fn what_orders_nothing_agrees_with_nothing() {
        assert_eq!(spearman(&[1.0, 1.0, 1.0], &[1.0, 2.0, 3.0]), None);
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[0.3; 3]), None);
        assert_eq!(spearman(&[1.0, 2.0], &[1.0, 2.0]), None);
        assert_eq!(spearman(&[], &[]), None);
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0, 4.0]), None);
        assert_eq!(spearman(&[1.0, f64::NAN, 3.0], &[1.0, 2.0, 3.0]), None);
    }

    #[test]
    fn equal_values_share_their_ranks() {
        assert_eq!(ranks(&[2.0, 1.0, 2.0, 5.0, 2.0]), [3.0, 1.0, 3.0, 5.0, 3.0]);
    }
}
