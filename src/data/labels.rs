//! The classes of a task: which field values count as labels, and in which order they stand.

use std::collections::{BTreeSet, HashMap};

use super::table::quoted_list;

/// What the cells of a column of labels are. It follows from all of them, so that one table gives the same labels in every
/// format: a program that has to mark missing cells writes whole numbers as 1.0 here and as 1 there, and truth values as
/// True or true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cells {
    /// All are whole numbers: 1, 1.0 and 1.00 are the label `1`.
    Whole,
    /// All are true or false in some spelling of capitals: the labels are these words in small letters.
    Truth,
    /// Text as it stands.
    Text,
}

/// A cell as text without the white space around it; none if there is nothing.
fn trimmed(cell: &str) -> Option<&str> {
    Some(cell.trim()).filter(|cell| !cell.is_empty())
}

/// The whole number in a cell, without the zeros behind a point; none where it is none, or has zeros before it.
fn whole(cell: &str) -> Option<&str> {
    let (number, fraction) = cell.split_once('.').unwrap_or((cell, "0"));
    let digits = number.strip_prefix('-').unwrap_or(number);
    let is_digits = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    let is_plain = digits == "0" || !digits.starts_with('0');
    let is_zero = !fraction.is_empty() && fraction.bytes().all(|digit| digit == b'0');
    (is_digits && is_plain && is_zero).then_some(number)
}

fn truth(cell: &str) -> Option<&'static str> {
    ["true", "false"].into_iter().find(|word| cell.eq_ignore_ascii_case(word))
}

impl Cells {
    /// What these cells are. A model's labels that are spelled otherwise, as older versions took them from files, keep
    /// matching: then cells stay as they stand.
    pub(super) fn of<'a>(cells: impl Iterator<Item = &'a str> + Clone, known: &[String]) -> Self {
        let all = |is: fn(&str) -> bool| {
            let mut present = cells.clone().filter_map(trimmed).peekable();
            present.peek().is_some() && present.all(is)
        };
        let found = if all(|cell| whole(cell).is_some()) {
            Cells::Whole
        } else if all(|cell| truth(cell).is_some()) {
            Cells::Truth
        } else {
            Cells::Text
        };
        let is_kept = |label: &String| found.label(label) == Some(label);
        if known.iter().all(is_kept) { found } else { Cells::Text }
    }

    /// The label in a cell of such a column; none if there is nothing in it, or PyTorch's `ignore_index`.
    pub(super) fn label(self, cell: &str) -> Option<&str> {
        let cell = trimmed(cell)?;
        let label = match self {
            Cells::Whole => whole(cell).unwrap_or(cell),
            Cells::Truth => truth(cell).unwrap_or(cell),
            Cells::Text => cell,
        };
        Some(label).filter(|label| *label != "-100")
    }
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

    fn labels<'a>(cells: &'a [&'a str], known: &[&str]) -> Vec<Option<&'a str>> {
        let known: Vec<String> = known.iter().map(|&label| label.to_owned()).collect();
        let kind = Cells::of(cells.iter().copied(), &known);
        cells.iter().map(|cell| kind.label(cell)).collect()
    }

    #[test]
    fn whole_numbers_have_one_spelling() {
        let expected = [Some("1"), Some("1"), Some("-2"), None, Some("0"), None, None];
        assert_eq!(labels(&["1", " 1.0", "-2.00", "", "0.0", "-100", "-100.0"], &[]), expected);
        // One cell that is none, and all stay as they stand.
        for other in ["1.5", "x", "01", "1.", "1e3", ".0", "-"] {
            assert_eq!(labels(&["1.0", other], &[]), [Some("1.0"), Some(other)]);
        }
    }

    #[test]
    fn truth_values_have_one_spelling() {
        assert_eq!(
            labels(&["True", "false", "", "TRUE"], &[]),
            [Some("true"), Some("false"), None, Some("true")]
        );
        assert_eq!(labels(&["True", "yes"], &[]), [Some("True"), Some("yes")]);
    }

    #[test]
    fn labels_that_a_model_has_keep_matching() {
        assert_eq!(labels(&["1.0", "2.0"], &["1.0", "2.0"]), [Some("1.0"), Some("2.0")]);
        assert_eq!(labels(&["True", "False"], &["False", "True"]), [Some("True"), Some("False")]);
        assert_eq!(labels(&["1.0", "2.0"], &["1", "2"]), [Some("1"), Some("2")]);
    }

    #[test]
    fn cells_without_a_label() {
        for cell in ["", "  ", "-100", " -100 "] {
            assert_eq!(labels(&[cell, "sport"], &[])[0], None, "{cell:?}");
        }
        assert_eq!(labels(&[" sport ", "100"], &[]), [Some("sport"), Some("100")]);
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
