//! The classes of a task: which field values count as labels, and in which order they stand.

use std::collections::{BTreeSet, HashMap};

use super::table::quoted_list;

/// The label in a field, without the white space around it; none if the field is empty or holds
/// PyTorch's `ignore_index`.
pub(super) fn label_in(field: &str) -> Option<&str> {
    Some(field.trim()).filter(|label| !label.is_empty() && *label != "-100")
}

/// The order of classes for the labels of a task: by number if every label is an integer (so that
/// class ids 0, 1, 2, ... stay what they are), else by bytes.
pub(super) fn label_order<'a>(labels: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let distinct: BTreeSet<&str> = labels.into_iter().collect();
    let numbers: Option<Vec<i64>> = distinct.iter().map(|label| label.parse().ok()).collect();
    let mut order: Vec<&str> = distinct.into_iter().collect();
    if let Some(numbers) = numbers {
        let mut numbered: Vec<(i64, &str)> = numbers.into_iter().zip(order).collect();
        // By number, then by bytes: `1` and `01` are two labels.
        numbered.sort_unstable();
        order = numbered.into_iter().map(|(_, label)| label).collect();
    }
    order.into_iter().map(str::to_owned).collect()
}

/// Finds a label's class.
pub(super) struct LabelIndex<'a> {
    classes: HashMap<&'a str, u32>,
    labels: &'a [String],
    origin: &'static str,
}

impl<'a> LabelIndex<'a> {
    /// `origin` says in messages where the labels are from.
    pub(super) fn new(labels: &'a [String], origin: &'static str) -> Self {
        let classes = (0..).zip(labels).map(|(class, label)| (label.as_str(), class)).collect();
        LabelIndex { classes, labels, origin }
    }

    pub(super) fn class(&self, label: &str) -> Option<u32> {
        self.classes.get(label).copied()
    }

    /// The labels and their origin for a message, cut short where a mistaken column would fill the
    /// screen.
    pub(super) fn listed(&self) -> String {
        const SHOWN: usize = 30;
        let more = self.labels.len().saturating_sub(SHOWN);
        let list = quoted_list(&self.labels[..self.labels.len() - more]);
        let origin = self.origin;
        if more == 0 {
            format!("{origin} {list}")
        } else {
            format!("{origin} {list} and {more} more")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_order(labels: &[&str], expected: &[&str]) {
        assert_eq!(label_order(labels.iter().copied()), expected);
    }

    #[test]
    fn integers_are_ordered_by_value_and_all_else_by_bytes() {
        check_order(&["10", "2", "0", "1", "2"], &["0", "1", "2", "10"]);
        check_order(&["2", "0", "1"], &["0", "1", "2"]);
        check_order(&["5", "-1", "3"], &["-1", "3", "5"]);
        check_order(&["1", "01", "0"], &["0", "01", "1"]);
        check_order(&["10", "2", "x"], &["10", "2", "x"]);
        check_order(&["b", "é", "B", "a"], &["B", "a", "b", "é"]);
        check_order(&[], &[]);
    }

    #[test]
    fn fields_without_a_label() {
        for field in ["", "  ", "-100", " -100 "] {
            assert_eq!(label_in(field), None, "{field:?}");
        }
        assert_eq!(label_in(" sport "), Some("sport"));
        assert_eq!(label_in("100"), Some("100"));
    }

    #[test]
    fn long_lists_are_cut() {
        let labels: Vec<String> = (0..33).map(|label| label.to_string()).collect();
        let index = LabelIndex::new(&labels, "named");
        assert_eq!(index.class("32"), Some(32));
        assert_eq!(index.class("33"), None);
        assert!(index.listed().ends_with("`29` and 3 more"), "{}", index.listed());
        assert_eq!(LabelIndex::new(&labels[..2], "named").listed(), "named `0`, `1`");
    }
}
