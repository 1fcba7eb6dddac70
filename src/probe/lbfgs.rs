//! L-BFGS (Nocedal, 1980): minimises a smooth function by its values and gradients.

use std::collections::VecDeque;

use crate::sums::dot;

/// Steps that are remembered.
const MEMORY: usize = 10;
/// Evaluations of one line search.
const MAX_EVALUATIONS: usize = 40;
/// The share of the promised decrease that a step must bring (Armijo), and the share of the slope that it may leave.
const DECREASE: f64 = 1e-4;
const SLOPE: f64 = 0.9;

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Of the largest component of the gradient.
    pub tolerance: f64,
    pub max_iterations: usize,
}

/// Where the search ended.
#[derive(Clone, Debug)]
pub(super) struct Minimum {
    pub point: Vec<f64>,
    pub value: f64,
    pub n_iterations: usize,
    pub is_converged: bool,
}

/// A step that was taken, and how it changed the gradient.
struct Step {
    moved: Vec<f64>,
    turned: Vec<f64>,
    /// Their product, above 0.
    curvature: f64,
}

/// Minimises `function`, which gives value and gradient, from `start`.
///
/// `precondition` multiplies by a guess of the inverse Hessian, symmetric and positive: the nearer to it, up to a
/// factor, the fewer the iterations. Where the search ends it has no say in.
///
/// It ends converged where no component of the gradient is above the tolerance, else at the limit of iterations or
/// where no step along the search direction helps (as where the function is not finite).
pub(super) fn minimise(
    start: Vec<f64>,
    limits: Limits,
    precondition: impl Fn(&[f64]) -> Vec<f64>,
    mut function: impl FnMut(&[f64]) -> (f64, Vec<f64>),
) -> Minimum {
    let mut point = start;
    let (mut value, mut gradient) = function(&point);
    let mut steps: VecDeque<Step> = VecDeque::with_capacity(MEMORY);
    let mut n_iterations = 0;
    while largest(&gradient) > limits.tolerance && n_iterations < limits.max_iterations {
        n_iterations += 1;
        let direction = direction(&gradient, &steps, &precondition);
        let Some((next, next_value, next_gradient)) =
            search(&point, value, &gradient, &direction, &mut function)
        else {
            break;
        };
        let moved = difference(&next, &point);
        let turned = difference(&next_gradient, &gradient);
        let curvature = dot(&moved, &turned);
        if curvature > 0.0 {
            if steps.len() == MEMORY {
                steps.pop_front();
            }
            steps.push_back(Step { moved, turned, curvature });
        }
        (point, value, gradient) = (next, next_value, next_gradient);
    }
    let is_converged = largest(&gradient) <= limits.tolerance;
    Minimum { point, value, n_iterations, is_converged }
}

/// The largest component, infinite where one is no number.
fn largest(gradient: &[f64]) -> f64 {
    gradient.iter().fold(0.0, |most: f64, part| match part.is_nan() {
        true => f64::INFINITY,
        false => most.max(part.abs()),
    })
}

fn difference(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

fn add_scaled(to: &mut [f64], scale: f64, what: &[f64]) {
    to.iter_mut().zip(what).for_each(|(to, what)| *to += scale * what);
}

/// The gradient times an approximation of the inverse Hessian, downhill (the two loops of Nocedal's algorithm).
fn direction(
    gradient: &[f64],
    steps: &VecDeque<Step>,
    precondition: &impl Fn(&[f64]) -> Vec<f64>,
) -> Vec<f64> {
    let mut direction: Vec<f64> = gradient.iter().map(|part| -part).collect();
    let mut shares = Vec::with_capacity(steps.len());
    for step in steps.iter().rev() {
        let share = dot(&step.moved, &direction) / step.curvature;
        add_scaled(&mut direction, -share, &step.turned);
        shares.push(share);
    }
    let mut direction = precondition(&direction);
    if let Some(last) = steps.back() {
        let scale = last.curvature / dot(&last.turned, &precondition(&last.turned));
        direction.iter_mut().for_each(|part| *part *= scale);
    }
    for (step, share) in steps.iter().zip(shares.into_iter().rev()) {
        let back = dot(&step.turned, &direction) / step.curvature;
        add_scaled(&mut direction, share - back, &step.moved);
    }
    direction
}

/// A step along `direction` that fulfils Wolfe's conditions, found by bisection; None where there is none.
fn search(
    point: &[f64],
    value: f64,
    gradient: &[f64],
    direction: &[f64],
    function: &mut impl FnMut(&[f64]) -> (f64, Vec<f64>),
) -> Option<(Vec<f64>, f64, Vec<f64>)> {
    let slope = dot(gradient, direction);
    let (mut low, mut high, mut length) = (0.0, None, 1.0);
    for _ in 0..MAX_EVALUATIONS {
        let mut next = point.to_vec();
        add_scaled(&mut next, length, direction);
        let (next_value, next_gradient) = function(&next);
        let is_lower = next_value <= value + DECREASE * length * slope;
        if is_lower && dot(&next_gradient, direction) >= SLOPE * slope {
            return Some((next, next_value, next_gradient));
        }
        if is_lower {
            low = length
        } else {
            high = Some(length)
        }
        length = high.map_or(2.0 * length, |high| 0.5 * (low + high));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { tolerance: 1e-8, max_iterations: 500 };

    /// Rosenbrock's valley, whose minimum is 0 at (1, 1).
    fn rosenbrock(at: &[f64]) -> (f64, Vec<f64>) {
        let (x, y) = (at[0], at[1]);
        let valley = y - x * x;
        let gradient = vec![2.0 * (x - 1.0) - 400.0 * x * valley, 200.0 * valley];
        ((1.0 - x).powi(2) + 100.0 * valley * valley, gradient)
    }

    #[test]
    fn finds_the_end_of_a_curved_valley() {
        let found = minimise(vec![-1.2, 1.0], LIMITS, <[f64]>::to_vec, rosenbrock);
        assert!(found.is_converged, "{found:?}");
        assert!(found.point.iter().all(|x| (x - 1.0).abs() <= 1e-8), "{found:?}");
    }

    /// Many dimensions of very different scale: more steps than are remembered.
    #[test]
    fn finds_the_centre_of_a_long_ellipsoid() {
        let scale = |at: usize| 1.25_f64.powi(at as i32);
        let ellipsoid = |point: &[f64]| {
            let off = |(at, x): (usize, &f64)| x - at as f64;
            let square = |pair| off(pair).powi(2) * scale(pair.0);
            let value = point.iter().enumerate().map(square).sum::<f64>();
            let slope = |pair| 2.0 * off(pair) * scale(pair.0);
            (value, point.iter().enumerate().map(slope).collect())
        };
        let found = minimise(vec![0.0; 25], LIMITS, <[f64]>::to_vec, ellipsoid);
        assert!(found.is_converged, "{found:?}");
        let is_close = |(at, x): (usize, &f64)| (x - at as f64).abs() <= 1e-7;
        assert!(found.point.iter().enumerate().all(is_close), "{found:?}");
    }

    /// With the inverse Hessian itself, the first step ends at the minimum.
    #[test]
    fn a_good_preconditioner_saves_iterations() {
        let bowl = |x: &[f64]| {
            let gradient = vec![x[0] - 1.0, 1e6 * (x[1] - 2.0)];
            (0.5 * (gradient[0].powi(2) + gradient[1].powi(2) / 1e6), gradient)
        };
        let inverse = |x: &[f64]| vec![x[0], x[1] / 1e6];
        let found = minimise(vec![0.0; 2], LIMITS, inverse, bowl);
        assert!(found.is_converged && found.n_iterations == 1, "{found:?}");
    }

    #[test]
    fn what_does_not_converge_says_so() {
        let limits = Limits { max_iterations: 3, ..LIMITS };
        let found = minimise(vec![-1.2, 1.0], limits, <[f64]>::to_vec, rosenbrock);
        assert!(!found.is_converged && found.n_iterations == 3, "{found:?}");
        // A slope without an end, and no function at all.
        let slope = minimise(vec![0.0], limits, <[f64]>::to_vec, |x| (-x[0], vec![-1.0]));
        assert!(!slope.is_converged, "{slope:?}");
        let nothing = minimise(vec![0.0], limits, <[f64]>::to_vec, |_| (f64::NAN, vec![f64::NAN]));
        assert!(!nothing.is_converged, "{nothing:?}");
    }
}
