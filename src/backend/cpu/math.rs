//! Elementary functions in f32 without branches or calls, so that loops over them become vector code.
//! NaN goes through all of them.

/// Lanes of the running sums: enough independent chains to keep the adders of a 512-bit unit busy.
const LANES: usize = 32;

/// `e^x` to 2 ulp; 0 below the smallest normal number's logarithm, infinity above the largest's.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LARGEST: f32 = 88.722_84;
    const SMALLEST: f32 = -87.336_54;
    /// Adding it rounds to a whole number, which then stands in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; the first has few enough bits that its multiples are exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    // Taylor's series to r^7 on |r| <= ln 2 / 2: the remainder is 5e-9.
    let series = 1.0 / 5040.0;
    let series = series * r + 1.0 / 720.0;
    let series = series * r + 1.0 / 120.0;
    let series = series * r + 1.0 / 24.0;
    let series = series * r + 1.0 / 6.0;
    let series = series * r + 0.5;
    let value = series * r * r + r + 1.0;
    // 2^n in two factors: n = 128 alone would overflow.
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = exponent >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    let value = value * power(half) * power(exponent - half);
    let value = if x < SMALLEST { 0.0 } else { value };
    if x > LARGEST { f32::INFINITY } else { value }
}

/// The error function, to 4e-7: a rational fit of erf(x) / x in x² on [0, 3.9] (the fit itself is off
/// by 1.5e-8), beyond which erf is 1 to f32's precision.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    const END: f32 = 3.9;
    let x = if x > END { END } else { x };
    let x = if x < -END { -END } else { x };
    let u = x * x;
    let p = 2.050_392_4e-6;
    let p = p * u + 2.874_553_6e-4;
    let p = p * u + 3.836_813_4e-3;
    let p = p * u + 5.296_673e-2;
    let p = p * u + 1.919_396e-1;
    let p = p * u + std::f32::consts::FRAC_2_SQRT_PI;
    let q = 3.823_069e-5;
    let q = q * u + 1.181_718_2e-3;
    let q = q * u + 1.510_908_2e-2;
    let q = q * u + 1.147_576_2e-1;
    let q = q * u + 5.034_338e-1;
    let q = q * u + 1.0;
    x * p / q
}

/// `x Φ(x)`.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// `Φ(x) + x φ(x)`.
#[inline(always)]
pub fn gelu_gradient(x: f32) -> f32 {
    /// 1 / √(2π)
    const DENSITY: f32 = 0.398_942_3;
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * DENSITY * exp(-0.5 * x * x)
}

/// Adds `term(i)` for `i` in `0..n`, in an order that depends on `n` alone.
#[inline(always)]
fn sum_by(n: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let whole = n - n % LANES;
    let mut at = 0;
    while at < whole {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(at + lane);
        }
        at += LANES;
    }
    for (lane, at) in (whole..n).enumerate() {
        lanes[lane] += term(at);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

/// The sum of a slice.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    sum_by(x.len(), |i| x[i])
}

/// The inner product of two slices of one length.
#[inline(always)]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    let y = &y[..x.len()];
    sum_by(x.len(), |i| x[i] * y[i])
}

/// The sum of `(x - mean)²`.
#[inline(always)]
pub fn sum_squares_about(x: &[f32], mean: f32) -> f32 {
    sum_by(x.len(), |i| (x[i] - mean) * (x[i] - mean))
}

/// The largest element; NaN if one is NaN.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (top, &value) in lanes.iter_mut().zip(chunk) {
            // A NaN on either side is kept: from the right by the comparison, from the left by itself.
            let larger = if *top >= value { *top } else { value };
            *top = if top.is_nan() { *top } else { larger };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |top, &value| {
        if top >= value || top.is_nan() { top } else { value }
    })
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
        for x in sweep(-87.3, 88.7) {
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error <= 2.4e-7, "exp({x}) is off by {error}");
        }
        assert_eq!((exp(-100.0), exp(f32::NEG_INFINITY), exp(0.0)), (0.0, 0.0, 1.0));
        assert_eq!(exp(89.0), f32::INFINITY);
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
