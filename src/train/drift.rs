//! How far training moved a network, part by part: its weights, and what its layers say of texts.

use rayon::prelude::*;
use serde::Serialize;

use crate::Result;
use crate::data::{Corpus, Split};
use crate::features::{Features, layer_means};
use crate::model::{Group, Network};
use crate::session::Session;
use crate::sums::dot;

/// What one part of the network became.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupDrift {
    /// `embeddings`, `layer 0`, ..., `pooler`, or `head NAME`.
    pub group: String,
    /// `‖w - w₀‖ / ‖w₀‖` over all its values: 0 exactly where none changed, infinite (null in JSON) where all were 0.
    pub weights: f64,
    /// Linear CKA of its output before and after training: 1 where it says the same of texts up to rotation and
    /// scale. None for the pooler and the heads, and where it says the same of all texts.
    pub cka: Option<f64>,
    /// Texts that `cka` is over: of fewer than its output has columns it is near 1 whatever training did, of two
    /// exactly 1. None where there is no `cka`.
    pub rows: Option<usize>,
}

/// Texts at most whose hidden states are compared.
const MOST_TEXTS: usize = 512;

/// The hidden states of a network before training, to be compared with those after it.
pub struct HiddenBefore<'a> {
    corpus: &'a Corpus,
    split: &'a Split,
    examples: Vec<usize>,
    means: Vec<Features>,
}

impl<'a> HiddenBefore<'a> {
    /// The network of `session` as it is now, on evaluation rows (training rows where there is none), 512 at most.
    ///
    /// # Errors
    /// When the device lacks the memory, or fails.
    pub fn of(session: &mut Session, corpus: &'a Corpus) -> Result<Self> {
        let split = if corpus.eval.is_empty() { &corpus.train } else { &corpus.eval };
        let examples = split.spread(MOST_TEXTS);
        let means = layer_means(session, corpus, split, &examples)?;
        Ok(Self { corpus, split, examples, means })
    }

    /// How far the network of `session` is from `initial`, its values in table order before training.
    ///
    /// # Errors
    /// As [`HiddenBefore::of`].
    pub fn drift(&self, session: &mut Session, initial: &[Vec<f32>]) -> Result<Vec<GroupDrift>> {
        let network = session.network().clone();
        let means = layer_means(session, self.corpus, self.split, &self.examples)?;
        let cka = |at: usize| linear_cka(&self.means[at], &means[at]);
        let mut drifts = Vec::new();
        for group in groups(&network) {
            let mut change = Change::default();
            for id in network.param_ids().filter(|id| network.param(*id).group == group) {
                change.add(&initial[id.0], &session.value(id)?);
            }
            let cka = match group {
                Group::Embeddings => cka(0),
                Group::Layer(layer) => cka(layer + 1),
                Group::Pooler | Group::Head(_) => None,
            };
            drifts.push(GroupDrift {
                group: name(group, &network),
                weights: change.relative(),
                cka,
                rows: cka.map(|_| self.examples.len()),
            });
        }
        Ok(drifts)
    }
}

/// The parts that have parameters, from the bottom up.
fn groups(network: &Network) -> Vec<Group> {
    let mut groups: Vec<Group> = network.params.iter().map(|param| param.group).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

fn name(group: Group, network: &Network) -> String {
    match group {
        Group::Embeddings => "embeddings".to_owned(),
        Group::Layer(layer) => format!("layer {layer}"),
        Group::Pooler => "pooler".to_owned(),
        Group::Head(head) => format!("head {}", network.heads[head].task),
    }
}

/// Sums of squares over the values of a group.
#[derive(Clone, Copy, Debug, Default)]
struct Change {
    moved: f64,
    before: f64,
}

impl Change {
    fn add(&mut self, before: &[f32], after: &[f32]) {
        for (before, after) in before.iter().zip(after) {
            let (before, after) = (f64::from(*before), f64::from(*after));
            self.moved += (after - before).powi(2);
            self.before += before.powi(2);
        }
    }

    fn relative(self) -> f64 {
        // Zeros that stayed have not moved either.
        if self.moved == 0.0 { 0.0 } else { (self.moved / self.before).sqrt() }
    }
}

/// Linear centred kernel alignment (Kornblith et al., 2019) of two sets of vectors of the same texts:
/// `‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖)` with Frobenius norms and centred columns, between 0 and 1, the same for X turned or scaled.
/// None where all vectors of one set are equal.
///
/// Sums are made in f64, and are the same for every number of threads.
///
/// # Panics
/// For sets of different numbers of vectors.
pub fn linear_cka(x: &Features, y: &Features) -> Option<f64> {
    let n = x.values.len() / x.cols;
    assert_eq!(n, y.values.len() / y.cols, "vectors of the same texts");
    let (x_columns, y_columns) = (centred(x), centred(y));
    // tr(XXᵀ YYᵀ) is ‖YᵀX‖²: of the products of texts and those of columns, the fewer.
    let (both, of_x, of_y) = if n <= x.cols.max(y.cols) {
        let (x_texts, y_texts) = (transposed(&x_columns, n), transposed(&y_columns, n));
        let (x, y) = (products(&x_texts, &x_texts), products(&y_texts, &y_texts));
        (dot(&x, &y), norm(&x), norm(&y))
    } else {
        let both = products(&y_columns, &x_columns);
        let of = |columns: &[Vec<f64>]| norm(&products(columns, columns));
        (dot(&both, &both), of(&x_columns), of(&y_columns))
    };
    let scale = of_x * of_y;
    // NaN is not 0, and stays.
    (scale != 0.0).then(|| both / scale)
}

/// The columns, each less its mean.
fn centred(features: &Features) -> Vec<Vec<f64>> {
    let column = |at: usize| {
        let values = features.values[at..].iter().step_by(features.cols);
        let column: Vec<f64> = values.map(|x| f64::from(*x)).collect();
        // Equal values have a mean that is rounded, and no variance.
        if column.iter().all(|x| *x == column[0]) {
            return vec![0.0; column.len()];
        }
        let mean = column.iter().sum::<f64>() / column.len() as f64;
        column.into_iter().map(|x| x - mean).collect()
    };
    (0..features.cols).map(column).collect()
}

fn transposed(columns: &[Vec<f64>], n: usize) -> Vec<Vec<f64>> {
    (0..n).map(|row| columns.iter().map(|column| column[row]).collect()).collect()
}

/// The inner products of all pairs.
fn products(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<f64> {
    a.par_iter().flat_map_iter(|a| b.iter().map(|b| dot(a, b))).collect()
}

fn norm(values: &[f64]) -> f64 {
    dot(values, values).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::normal;

    fn features(values: &[f32], cols: usize) -> Features {
        Features { values: values.to_vec(), cols }
    }

    fn cka(x: &[f32], x_cols: usize, y: &[f32], y_cols: usize) -> Option<f64> {
        linear_cka(&features(x, x_cols), &features(y, y_cols))
    }

    #[track_caller]
    fn assert_near(found: Option<f64>, expected: f64) {
        // f64 sums of a few values of order 1, read from f32.
        assert!((found.unwrap() - expected).abs() <= 1e-6, "{found:?}, not {expected}");
    }

    #[test]
    fn relative_changes() {
        let change = |before: &[f32], after: &[f32]| {
            let mut change = Change::default();
            change.add(before, after);
            change.relative()
        };
        assert_eq!(change(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert_eq!(change(&[0.0], &[0.0]), 0.0);
        // ‖(0, 1)‖ / ‖(3, 4)‖.
        assert!((change(&[3.0, 4.0], &[3.0, 5.0]) - 0.2).abs() <= 1e-15);
        assert_eq!(change(&[0.0], &[1.0]), f64::INFINITY);
        assert!(change(&[1.0, 2.0], &[1.0, f32::NAN]).is_nan());
        // Two tensors of one group.
        let mut both = Change::default();
        both.add(&[3.0], &[3.0]);
        both.add(&[4.0], &[7.0]);
        assert!((both.relative() - 0.6).abs() <= 1e-15);
    }

    /// Columns (-1, 0, 1) and (1, -2, 1) are centred and orthogonal, of squares 2 and 6. X has both, Y the first:
    /// ‖YᵀX‖² = 4, ‖XᵀX‖ = √40, ‖YᵀY‖ = 2.
    #[test]
    fn values_by_hand() {
        let x = [-1.0, 1.0, 0.0, -2.0, 1.0, 1.0];
        let y = [-1.0, 0.0, 1.0];
        assert_near(cka(&x, 2, &y, 1), 4.0 / (40.0_f64.sqrt() * 2.0));
        assert_near(cka(&[-1.0, 0.0, 1.0], 1, &[1.0, -2.0, 1.0], 1), 0.0);
        assert_near(cka(&y, 1, &[7.0, 9.0, 11.0], 1), 1.0);
        // More columns than texts: the same by the other way.
        let wide = [-1.0, 1.0, 0.0, 5.0, 0.0, -2.0, 0.0, 5.0, 1.0, 1.0, 0.0, 5.0];
        assert_near(cka(&wide, 4, &y, 1), 4.0 / (40.0_f64.sqrt() * 2.0));
    }

    /// Both ways, on the same vectors: columns of zeros change nothing.
    #[test]
    fn products_of_texts_and_of_columns_agree() {
        let (n, cols) = (20, 7);
        let (x, y) = (normal(1, 0, n * cols, 1.0), normal(2, 0, n * cols, 1.0));
        let padded = |values: &[f32]| -> Vec<f32> {
            let row = |row: &[f32]| row.iter().copied().chain([0.0; 20]).collect::<Vec<f32>>();
            values.chunks(cols).flat_map(row).collect()
        };
        let narrow = cka(&x, cols, &y, cols).unwrap();
        let wide = cka(&padded(&x), cols + 20, &padded(&y), cols + 20).unwrap();
        assert!(narrow > 0.05 && narrow < 0.95, "{narrow}");
        assert!((narrow - wide).abs() <= 1e-12, "{narrow} {wide}");
    }

    #[test]
    fn turning_and_scaling_change_nothing() {
        let (n, cols) = (12, 3);
        let x = normal(1, 0, n * cols, 1.0);
        // A rotation about two axes, three times as large, moved.
        let turned: Vec<f32> = (x.chunks(cols))
            .flat_map(|row| {
                let (a, b) = (0.6 * row[0] - 0.8 * row[1], 0.8 * row[0] + 0.6 * row[1]);
                let (a, c) = (0.28 * a - 0.96 * row[2], 0.96 * a + 0.28 * row[2]);
                [3.0 * a + 1.0, 3.0 * b - 5.0, 3.0 * c]
            })
            .collect();
        assert_near(cka(&x, cols, &turned, cols), 1.0);
        let stretched: Vec<f32> =
            x.chunks(cols).flat_map(|row| [9.0 * row[0], row[1], row[2]]).collect();
        assert!(cka(&x, cols, &stretched, cols).unwrap() < 0.99);
    }

    #[test]
    fn what_does_not_vary_has_no_cka_and_nan_stays() {
        assert_eq!(cka(&[0.1, 0.1, 0.1], 1, &[1.0, 2.0, 3.0], 1), None);
        assert_eq!(cka(&[1.0, 2.0], 2, &[1.0, 2.0], 2), None);
        // By products of columns, and of texts.
        let narrow = cka(&[1.0, f32::NAN, 3.0], 1, &[1.0, 2.0, 3.0], 1);
        let wide = cka(&[1.0, f32::NAN, 3.0, 4.0], 2, &[1.0, 2.0, 3.0, 5.0], 2);
        assert!(narrow.unwrap().is_nan() && wide.unwrap().is_nan(), "{narrow:?} {wide:?}");
    }
}
