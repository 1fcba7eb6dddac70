//! Elementary functions in f32 without branches or calls, so that loops over them become vector code.
//! NaN goes through all of them. Products are fused with the sums that they go into, which is an
//! instruction wherever the loops are vectorised.

/// Lanes of the running sums: enough independent chains to keep the adders of a 512-bit unit busy.
const LANES: usize = 32;

/// A polynomial at `x`, highest power first (Horner).
#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[0];
    for coefficient in &coefficients[1..] {
        sum = sum.mul_add(x, *coefficient);
    }
    sum
}

/// `e^x` for `x` up to 88, to 2 ulp; 0 below the smallest normal number's logarithm. A softmax and a
/// normal density ask for no more.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const SMALLEST: f32 = -87.336_54;
    /// Adding it rounds to a whole number, which then stands in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; the first has few enough bits that its multiples are exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    // Taylor's series to r^7 on |r| <= ln 2 / 2: the remainder is 5e-9.
    let series = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5];
    let value = (polynomial(r, series) * r).mul_add(r, r + 1.0);
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    let power = f32::from_bits(exponent.wrapping_add(127) << 23);
    if x < SMALLEST { 0.0 } else { value * power }
}

/// The error function, to 4e-7: a rational fit of erf(x) / x in x² on [0, 3.9] (the fit itself is off
/// by 1.5e-8), beyond which erf is 1 to f32's precision.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    const END: f32 = 3.9;
    const P: [f32; 6] = [
        2.050_392_4e-6,
        2.874_553_6e-4,
        3.836_813_4e-3,
        5.296_673e-2,
        1.919_396e-1,
        std::f32::consts::FRAC_2_SQRT_PI,
    ];
    const Q: [f32; 6] =
        [3.823_069e-5, 1.181_718_2e-3, 1.510_908_2e-2, 1.147_576_2e-1, 5.034_338e-1, 1.0];
    let x = if x > END { END } else { x };
    let x = if x < -END { -END } else { x };
    let u = x * x;
    x * polynomial(u, P) / polynomial(u, Q)
}

/// `Φ(x)`.
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    erf(x * std::f32::consts::FRAC_1_SQRT_2).mul_add(0.5, 0.5)
}

/// `x Φ(x)`.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    x * normal_cdf(x)
}

/// `Φ(x) + x φ(x)`.
#[inline(always)]
pub fn gelu_gradient(x: f32) -> f32 {
    /// 1 / √(2π)
    const DENSITY: f32 = 0.398_942_3;
    (x * DENSITY).mul_add(exp(-0.5 * x * x), normal_cdf(x))
}

/// Goes through pairs of elements of two slices of one length, `step(lane, x, y)` into one of
/// [`LANES`] lanes and `join` over the lanes, in an order that depends on the length alone.
#[inline(always)]
fn reduce(
    (x, y): (&[f32], &[f32]),
    start: f32,
    step: impl Fn(f32, f32, f32) -> f32,
    join: impl Fn(f32, f32) -> f32,
) -> f32 {
    let mut lanes = [start; LANES];
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in x.iter().zip(y) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane = step(*lane, *x, *y);
        }
    }
    for ((lane, x), y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
        *lane = step(*lane, *x, *y);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] = join(lanes[lane], lanes[lane + width]);
        }
    }
    lanes[0]
}

/// The sum of a slice.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    reduce((x, x), 0.0, |sum, x, _| sum + x, |a, b| a + b)
}

/// The inner product of two slices of one length.
#[inline(always)]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    reduce((x, &y[..x.len()]), 0.0, |sum, x, y| x.mul_add(y, sum), |a, b| a + b)
}

/// The sum of `(x - mean)²`.
#[inline(always)]
pub fn sum_squares_about(x: &[f32], mean: f32) -> f32 {
    let step = |sum: f32, x: f32, _| (x - mean).mul_add(x - mean, sum);
    reduce((x, x), 0.0, step, |a, b| a + b)
}

/// The largest element; NaN if one is NaN.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    // A NaN on either side is kept: from the right by the second test, on the left since none is larger.
    let larger = |a: f32, b: f32| if b > a || b.is_nan() { b } else { a };
    reduce((x, x), f32::NEG_INFINITY, |top, x, _| larger(top, x), larger)
}

/// `to += x`.
#[inline(always)]
pub fn add(x: &[f32], to: &mut [f32]) {
    for (to, x) in to.iter_mut().zip(x) {
        *to += x;
    }
}

/// `to += scale · x`.
#[inline(always)]
pub fn add_scaled(scale: f32, x: &[f32], to: &mut [f32]) {
    for (to, x) in to.iter_mut().zip(x) {
        *to = x.mul_add(scale, *to);
    }
}

/// `to *= x`.
#[inline(always)]
pub fn multiply(x: &[f32], to: &mut [f32]) {
    for (to, x) in to.iter_mut().zip(x) {
        *to *= x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::reference::math as exact;

    fn sweep(low: f32, high: f32) -> impl Iterator<Item = f32> {
        let n = 200_000;
        (0..=n).map(move |i| low + (high - low) * i as f32 / n as f32)
    }

    #[test]
    fn exp_is_within_two_ulp() {
        for x in sweep(-87.3, 88.0) {
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error <= 2.4e-7, "exp({x}) is off by {error}");
        }
        for (x, expected) in [(-100.0, 0.0), (f32::NEG_INFINITY, 0.0), (0.0, 1.0)] {
            assert_eq!(exp(x), expected);
        }
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn erf_and_gelu_are_close() {
        for x in sweep(-9.0, 9.0) {
            let wide = f64::from(x);
            assert!((f64::from(erf(x)) - exact::erf(wide)).abs() <= 4e-7, "erf({x})");
            let gelu_error = (f64::from(gelu(x)) - wide * exact::normal_cdf(wide)).abs();
            // Half of erf's error times x, and a rounding.
            assert!(gelu_error <= 3e-7 * (1.0 + wide.abs()), "gelu({x}) is off by {gelu_error}");
            let gradient = exact::normal_cdf(wide) + wide * exact::normal_pdf(wide);
            let error = (f64::from(gelu_gradient(x)) - gradient).abs();
            assert!(error <= 6e-7, "gelu'({x}) is off by {error}");
        }
        assert!(erf(f32::NAN).is_nan() && gelu(f32::NAN).is_nan());
        assert!(gelu_gradient(f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_maxima_of_ragged_lengths() {
        for n in [0, 1, 31, 32, 33, 100] {
            let x: Vec<f32> = (0..n).map(|i| i as f32 - 7.0).collect();
            let expected: f32 = x.iter().sum();
            assert_eq!(sum(&x), expected);
            assert_eq!(dot(&x, &x), sum_squares_about(&x, 0.0));
            let top = if n == 0 { f32::NEG_INFINITY } else { n as f32 - 8.0 };
            assert_eq!(max(&x), top);
        }
    }

    #[test]
    fn a_nan_anywhere_is_the_maximum() {
        for at in [0, 5, 31, 40, 64, 69] {
            let mut x = vec![1.0; 70];
            x[at] = f32::NAN;
            assert!(max(&x).is_nan(), "{at}");
        }
    }
}
