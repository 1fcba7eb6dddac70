//! The tasks that share the rows of one file: which rows count, for what, and with which labels.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::labels::{Cells, LabelIndex, label_order};
use super::random::SplitMix64;
use super::table::Table;
use super::{SourceCount, TaskInfo, TaskSource};
use crate::{Error, Result};

/// Groups in the order of the tasks, over tables of which each is read once.
#[derive(Default)]
pub(super) struct Groups {
    tables: HashMap<PathBuf, Rc<Table>>,
    groups: Vec<Group>,
}

impl Groups {
    /// Adds a task to the group that shares its rows, or begins one, and returns its index.
    ///
    /// With `own`, `source` is a file for the evaluation of the task, and columns that it leaves
    /// open are those of the task's own source. `known` are the labels that a model already has for the task.
    ///
    /// # Errors
    /// A file that cannot be read, a column that it does not have, a label that is no text.
    pub(super) fn add(
        &mut self,
        source: &TaskSource,
        id: usize,
        own: Option<&TaskSource>,
        known: Option<&[String]>,
    ) -> Result<usize> {
        let table = self.read(&source.path)?;
        let text = source.text_column.as_ref().or(own.and_then(|own| own.text_column.as_ref()));
        let (text_column, pair_column) = table.text_columns(text.map(String::as_str))?;
        let label = source.label_column.as_ref().or(own.and_then(|own| own.label_column.as_ref()));
        let label_column = match label {
            Some(name) => table.column(name)?,
            None => match table.find_column(&source.name) {
                Some(column) => column,
                None => table.column("label")?,
            },
        };
        let for_eval = own.is_some();
        let cells = (0..table.n_rows())
            .map(|row| table.value(row, label_column))
            .collect::<Result<Vec<&str>>>()?;
        let cells = Cells::of(cells.iter().copied(), known.unwrap_or_default());
        let task = TaskColumn { id, column: label_column, cells };
        let shares = |group: &Group| {
            Rc::ptr_eq(&group.table, &table)
                && (group.text_column, group.pair_column) == (text_column, pair_column)
                && group.for_eval == for_eval
        };
        if let Some(group) = self.groups.iter().position(shares) {
            self.groups[group].tasks.push(task);
            return Ok(group);
        }
        self.groups.push(Group {
            table,
            text_column,
            pair_column,
            split_column: None,
            tasks: vec![task],
            for_eval,
            rows: Vec::new(),
            blank_texts: 0,
            unlabelled: 0,
        });
        Ok(self.groups.len() - 1)
    }

    pub(super) fn into_vec(self) -> Vec<Group> {
        self.groups
    }

    fn read(&mut self, path: &Path) -> Result<Rc<Table>> {
        // One file may be named in several ways; a pipe has its own name alone.
        let key = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if let Some(table) = self.tables.get(&key) {
            return Ok(Rc::clone(table));
        }
        let table = Rc::new(Table::read(path)?);
        self.tables.insert(key, Rc::clone(&table));
        Ok(table)
    }
}

/// A task's labels in a table.
struct TaskColumn {
    /// Index into the tasks.
    id: usize,
    column: usize,
    /// What the column's cells are.
    cells: Cells,
}

/// A row that has a text and a label.
pub(super) struct Row {
    /// Row of the table.
    index: usize,
    /// Whether it is for evaluation rather than training.
    pub(super) eval: bool,
}

/// The tasks that share a file's rows.
pub(super) struct Group {
    table: Rc<Table>,
    text_column: usize,
    /// The column of second texts.
    pair_column: Option<usize>,
    /// The column `split`, unless it is a task's text or label.
    split_column: Option<usize>,
    tasks: Vec<TaskColumn>,
    /// Whether the file was named for evaluation only.
    for_eval: bool,
    rows: Vec<Row>,
    blank_texts: usize,
    unlabelled: usize,
}

impl Group {
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    pub(super) fn text(&self, row: &Row) -> Result<&str> {
        self.table.value(row.index, self.text_column)
    }

    /// The second text; a blank one is none.
    pub(super) fn pair(&self, row: &Row) -> Result<Option<&str>> {
        self.table.pair(row.index, self.pair_column)
    }

    /// Indices of the tasks.
    pub(super) fn task_ids(&self) -> impl Iterator<Item = usize> {
        self.tasks.iter().map(|task| task.id)
    }

    pub(super) fn is_for_eval(&self) -> bool {
        self.for_eval
    }

    /// Whether a column says which rows are for evaluation; known once the rows are read.
    pub(super) fn has_split(&self) -> bool {
        self.split_column.is_some()
    }

    /// Fills `rows` and the counts of those left out. The split is a row's own or training.
    pub(super) fn read_rows(&mut self) -> Result<()> {
        let taken = |split: &usize| {
            *split == self.text_column
                || Some(*split) == self.pair_column
                || self.tasks.iter().any(|task| task.column == *split)
        };
        self.split_column = self.table.find_column("split").filter(|split| !taken(split));
        for index in 0..self.table.n_rows() {
            let eval = match self.split_column {
                None => false,
                Some(column) => self.is_eval(index, column)?,
            };
            if self.table.value(index, self.text_column)?.trim().is_empty() {
                self.blank_texts += 1;
                continue;
            }
            let mut labelled = false;
            for task in &self.tasks {
                labelled |= self.label(index, task)?.is_some();
            }
            if labelled {
                self.rows.push(Row { index, eval });
            } else {
                self.unlabelled += 1;
            }
        }
        Ok(())
    }

    fn is_eval(&self, row: usize, column: usize) -> Result<bool> {
        let value = self.table.value(row, column)?;
        match value.trim().to_ascii_lowercase().as_str() {
            "" | "train" | "training" => Ok(false),
            "test" | "eval" | "validation" | "valid" | "dev" => Ok(true),
            _ => Err(self.table.fault(
                row,
                format!(
                    "`split` is `{value}`; expected train, training, test, eval, validation, \
                     valid, dev or nothing"
                ),
            )),
        }
    }

    fn label(&self, row: usize, task: &TaskColumn) -> Result<Option<&str>> {
        self.table.value(row, task.column).map(|cell| task.cells.label(cell))
    }

    /// Keeps what is for evaluation: every row, or where there is a column `split`, what it says.
    pub(super) fn use_for_eval(&mut self) -> Result<()> {
        if self.split_column.is_some() {
            self.rows.retain(|row| row.eval);
        }
        self.rows.iter_mut().for_each(|row| row.eval = true);
        if self.rows.is_empty() {
            return Err(Error::content(self.table.path(), "no labelled rows for evaluation"));
        }
        Ok(())
    }

    /// Fails if the file has evaluation rows, for a file beside it was named for that.
    pub(super) fn check_no_eval_rows(&self) -> Result<()> {
        match self.rows.iter().find(|row| row.eval) {
            None => Ok(()),
            Some(row) => Err(self.table.fault(
                row.index,
                "`split` makes this an evaluation row, but a file of its own was named for the \
                 evaluation of this task; expected one or the other",
            )),
        }
    }

    /// Marks a fraction of the rows, at least one and not all, but never the last row of a class.
    pub(super) fn hold_out(&mut self, fraction: f64, mut random: SplitMix64) -> Result<()> {
        if self.rows.is_empty() {
            // The task that has no row at all is a clearer complaint.
            return Ok(());
        }
        let wanted = (self.rows.len() as f64 * fraction).round() as usize;
        let wanted = wanted.min(self.rows.len() - 1).max(1);
        let mut left: HashMap<(usize, String), usize> = HashMap::new();
        for row in &self.rows {
            for key in self.row_labels(row.index)? {
                *left.entry(key).or_default() += 1;
            }
        }
        let mut order: Vec<usize> = (0..self.rows.len()).collect();
        random.shuffle(&mut order);
        let mut held = 0;
        for row in order {
            if held == wanted {
                break;
            }
            let labels = self.row_labels(self.rows[row].index)?;
            if labels.iter().any(|key| left[key] == 1) {
                continue;
            }
            for key in labels {
                *left.entry(key).or_default() -= 1;
            }
            self.rows[row].eval = true;
            held += 1;
        }
        if held == 0 {
            return Err(Error::content(
                self.table.path(),
                format!(
                    "no row of {} can be held out for evaluation without losing a class; give more \
                     rows, evaluation rows of their own (--eval), or --holdout 0",
                    self.rows.len()
                ),
            ));
        }
        Ok(())
    }

    /// A row's labels, each with its task.
    fn row_labels(&self, row: usize) -> Result<Vec<(usize, String)>> {
        let mut labels = Vec::new();
        for task in &self.tasks {
            labels.extend(self.label(row, task)?.map(|label| (task.id, label.to_owned())));
        }
        Ok(labels)
    }

    /// The labels of a task whose own file this is, in the order of the classes: `known` if there
    /// is such an order already, else that of the training rows.
    pub(super) fn task_labels(
        &self,
        id: usize,
        name: &str,
        known: Option<&[String]>,
    ) -> Result<Vec<String>> {
        let mut seen = Vec::new();
        let mut column = "";
        // There is one such task: its own file is of one group only.
        for task in self.tasks.iter().filter(|task| task.id == id) {
            column = &self.table.columns()[task.column];
            for row in self.rows.iter().filter(|row| !row.eval) {
                seen.extend(self.label(row.index, task)?);
            }
        }
        let fault = |problem: &str| {
            let problem = format!("task `{name}`: {problem} in column `{column}`");
            Error::content(self.table.path(), problem)
        };
        if seen.is_empty() {
            return Err(fault("no training row has a label"));
        }
        if let Some(known) = known {
            return Ok(known.to_vec());
        }
        let labels = label_order(seen);
        match labels.as_slice() {
            [only] => Err(fault(&format!("`{only}` is the only class of the training rows"))),
            _ => Ok(labels),
        }
    }

    /// The classes of a row, for every task of the data set.
    pub(super) fn classes(
        &self,
        row: &Row,
        infos: &[TaskInfo],
        indices: &[LabelIndex],
    ) -> Result<Vec<Option<u32>>> {
        let mut classes = vec![None; infos.len()];
        for task in &self.tasks {
            if let Some(label) = self.label(row.index, task)? {
                let index = &indices[task.id];
                let class = index.class(label).ok_or_else(|| {
                    let name = &infos[task.id].name;
                    let problem =
                        format!("`{label}` is no label of task `{name}`, {}", index.listed());
                    self.table.fault(row.index, problem)
                })?;
                classes[task.id] = Some(class);
            }
        }
        Ok(classes)
    }

    pub(super) fn count(&self) -> SourceCount {
        let eval = self.rows.iter().filter(|row| row.eval).count();
        SourceCount {
            path: self.table.path().to_owned(),
            text_column: self.table.columns()[self.text_column].clone(),
            rows_read: self.table.n_rows(),
            rows_skipped: self.table.n_rows() - self.rows.len(),
            blank_texts: self.blank_texts,
            unlabelled: self.unlabelled,
            train: self.rows.len() - eval,
            eval,
        }
    }
}
