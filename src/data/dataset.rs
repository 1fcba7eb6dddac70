//! Examples with a label for each task, their order of classes, and what is trained on and what is
//! held out.
//!
//! Tasks that name the same file and text column share its rows: one example carries the labels of
//! all of them. Every other file is a source of its own, whose examples have no label for the tasks
//! of other files.

use std::path::PathBuf;

use super::TaskSource;
use super::group::Groups;
use super::labels::LabelIndex;
use super::random::SplitMix64;
use super::table::quoted_list;
use crate::batch::ABSENT_LABEL;
use crate::{Error, Result};

/// A text and what is known about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Never blank.
    pub text: String,
    /// A second text, for tasks on pairs; never blank.
    pub pair: Option<String>,
    /// For each task of the data set the class, if the text has one.
    pub labels: Vec<Option<u32>>,
    /// Index into [`Dataset::sources`].
    pub source: usize,
}

impl Example {
    /// The label of a task as a [`Batch`](crate::batch::Batch) has it.
    pub fn label(&self, task: usize) -> i32 {
        self.labels[task].map_or(ABSENT_LABEL, |class| class as i32)
    }
}

/// A task and its classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskInfo {
    /// As in `heads.<name>.weight`.
    pub name: String,
    /// Class `c` is called `labels[c]`. Two or more.
    pub labels: Vec<String>,
    /// Where its training rows come from.
    pub path: PathBuf,
}

/// What became of the rows of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceCount {
    pub path: PathBuf,
    pub text_column: String,
    /// Rows in the file, the header apart.
    pub rows_read: usize,
    /// Rows that became no example: their text is blank, or no task has a label on them, or they
    /// are training rows of a file that was named for evaluation.
    pub rows_skipped: usize,
    /// Of the skipped rows those whose text is blank.
    pub blank_texts: usize,
    /// Of the skipped rows those with a text and no label.
    pub unlabelled: usize,
    /// Rows that became training examples.
    pub train: usize,
    /// Rows that became evaluation examples.
    pub eval: usize,
}

/// All tasks' examples, split into training and evaluation.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// In the order they were asked for.
    pub tasks: Vec<TaskInfo>,
    /// Source by source, each in its file's order.
    pub train: Vec<Example>,
    /// Source by source, each in its file's order; empty where nothing was held out.
    pub eval: Vec<Example>,
    /// The tasks' files in the order they were named, then the files of evaluation rows.
    pub sources: Vec<SourceCount>,
}

impl Dataset {
    /// Reads the files of all tasks and decides on classes and splits.
    ///
    /// - A file's column `split` says which rows are for evaluation (`test`, `eval`, `validation`,
    ///   `valid`, `dev`; `train`, `training` or nothing for the others). Without one, the files in
    ///   `evals` are for evaluation and all of the task's own file is for training. Without either,
    ///   the fraction `holdout` of a file's rows is held out, at least one and not all, drawn by
    ///   `seed`; the last row of a class is never held out. 0 holds nothing out.
    /// - Classes are numbered as `known_labels` has them (a model's tasks and label orders); else
    ///   by value if every label is an integer, else by their bytes.
    /// - A cell that is empty, null, NaN or `-100` is no label. In a column of whole numbers 1, 1.0 and "1" are the label
    ///   `1`, and in a column of truth values True and true are `true`, in every format; everything else is text as it
    ///   stands, without the white space around it. Labels that a model has already keep matching as they are spelled.
    ///
    /// # Errors
    /// [`Error::Usage`] for task names that are repeated or unknown, and a `holdout` that is no
    /// fraction. [`Error::Io`] and [`Error::Content`] for files, with line, column and value: see
    /// [`Table::read`](super::Table::read), missing columns, unknown splits, tasks with no or only
    /// one class, labels that the model does not know or that only evaluation rows have.
    pub fn load(
        tasks: &[TaskSource],
        evals: &[TaskSource],
        holdout: f64,
        seed: u64,
        known_labels: Option<&[(String, Vec<String>)]>,
    ) -> Result<Dataset> {
        check_names(tasks, evals)?;
        if !(0.0..1.0).contains(&holdout) {
            return Err(Error::usage(format!(
                "--holdout {holdout}: expected at least 0 and less than 1"
            )));
        }
        let mut groups = Groups::default();
        let mut evaluated = vec![false; tasks.len()];
        let mut own_groups = Vec::new();
        let known_of = |task: &TaskSource| {
            let mut known = known_labels.unwrap_or_default().iter();
            let found = known.find(|(name, _)| *name == task.name);
            found.map(|(_, labels)| labels.as_slice())
        };
        for (id, task) in tasks.iter().enumerate() {
            own_groups.push(groups.add(task, id, None, known_of(task))?);
        }
        for (id, task) in tasks.iter().enumerate() {
            if let Some(eval) = evals.iter().find(|eval| eval.name == task.name) {
                groups.add(eval, id, Some(task), known_of(task))?;
                evaluated[id] = true;
            }
        }

        let mut groups = groups.into_vec();
        for (source, group) in groups.iter_mut().enumerate() {
            group.read_rows()?;
            let has_file = group.task_ids().any(|id| evaluated[id]);
            if group.is_for_eval() {
                group.use_for_eval()?;
            } else if has_file {
                group.check_no_eval_rows()?;
            } else if !group.has_split() && holdout > 0.0 {
                group.hold_out(holdout, SplitMix64::stream(seed, source as u64))?;
            }
        }

        let mut infos = Vec::new();
        let mut origins = Vec::new();
        for (id, task) in tasks.iter().enumerate() {
            let known = known_of(task);
            let labels = groups[own_groups[id]].task_labels(id, &task.name, known)?;
            infos.push(TaskInfo { name: task.name.clone(), labels, path: task.path.clone() });
            origins.push(match known {
                Some(_) => "whose labels in the model are",
                None => "whose labels in the training rows are",
            });
        }
        let indices: Vec<LabelIndex> = infos
            .iter()
            .zip(origins)
            .map(|(info, origin)| LabelIndex::new(&info.labels, origin))
            .collect();
        let (mut train, mut eval, mut sources) = (Vec::new(), Vec::new(), Vec::new());
        for (source, group) in groups.iter().enumerate() {
            for row in group.rows() {
                let labels = group.classes(row, &infos, &indices)?;
                let text = group.text(row)?.to_owned();
                let split = if row.eval { &mut eval } else { &mut train };
                let pair = group.pair(row)?.map(str::to_owned);
                split.push(Example { text, pair, labels, source });
            }
            sources.push(group.count());
        }
        Ok(Dataset { tasks: infos, train, eval, sources })
    }
}

fn check_names(tasks: &[TaskSource], evals: &[TaskSource]) -> Result<()> {
    let twice = |sources: &[TaskSource]| {
        let repeated = |i: &usize| sources[..*i].iter().any(|s| s.name == sources[*i].name);
        (0..sources.len()).find(repeated).map(|i| sources[i].name.clone())
    };
    if let Some(name) = twice(tasks) {
        return Err(Error::usage(format!("task `{name}` is named twice")));
    }
    if let Some(name) = twice(evals) {
        return Err(Error::usage(format!("two evaluation files are named for task `{name}`")));
    }
    let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
    match evals.iter().find(|eval| !names.contains(&eval.name.as_str())) {
        None => Ok(()),
        Some(eval) => Err(Error::usage(format!(
            "evaluation file `{}` is for task `{}`; the tasks are {}",
            eval.path.display(),
            eval.name,
            quoted_list(&names)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder of files and the tasks that name them.
    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new(files: &[(&str, &str)]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            for (name, content) in files {
                fs::write(folder.path().join(name), content).unwrap();
            }
            Folder(folder)
        }

        fn sources(&self, arguments: &[&str]) -> Vec<TaskSource> {
            let parse = |argument: &&str| {
                let mut source = TaskSource::parse(argument).unwrap();
                source.path = self.0.path().join(source.path);
                source
            };
            arguments.iter().map(parse).collect()
        }

        fn load_with(
            &self,
            tasks: &[&str],
            evals: &[&str],
            holdout: f64,
            known: Option<&[(String, Vec<String>)]>,
        ) -> Result<Dataset> {
            Dataset::load(&self.sources(tasks), &self.sources(evals), holdout, 42, known)
        }

        fn load(&self, tasks: &[&str]) -> Result<Dataset> {
            self.load_with(tasks, &[], 0.0, None)
        }
    }

    fn check_message(result: Result<Dataset>, parts: &[&str]) {
        let message = result.unwrap_err().to_string();
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    }

    /// Checks that one table, named by both of its columns, is refused with these words.
    fn check_refused(content: &str, parts: &[&str]) {
        let folder = Folder::new(&[("a.tsv", content)]);
        check_message(folder.load(&["topic=a.tsv"]), parts);
    }

    fn texts(examples: &[Example]) -> Vec<&str> {
        examples.iter().map(|example| example.text.as_str()).collect()
    }

    const TWO_TASKS: &str = "text,topic,mood\na,x,0\nb,,1\nc,y,-100\nd,,\n ,x,1\ne,x,2\n";

    #[test]
    fn tasks_of_one_file_share_its_rows() {
        let folder = Folder::new(&[("a.csv", TWO_TASKS)]);
        // The file is the same under another name.
        let data = folder.load(&["topic=a.csv", "mood=./a.csv"]).unwrap();
        let task = |name: &str, labels: &[&str]| TaskInfo {
            name: name.to_owned(),
            labels: labels.iter().map(|&label| label.to_owned()).collect(),
            path: folder.0.path().join("a.csv"),
        };
        assert_eq!(data.tasks, [task("topic", &["x", "y"]), task("mood", &["0", "1", "2"])]);
        assert_eq!(texts(&data.train), ["a", "b", "c", "e"]);
        let labels: Vec<_> = data.train.iter().map(|e| (e.labels[0], e.labels[1])).collect();
        let expected = [(Some(0), Some(0)), (None, Some(1)), (Some(1), None), (Some(0), Some(2))];
        assert_eq!(labels, expected);
        assert_eq!((data.train[1].label(0), data.train[1].label(1)), (ABSENT_LABEL, 1));
        assert!(data.eval.is_empty());
        let [count] = data.sources.as_slice() else { panic!("{:?}", data.sources) };
        assert_eq!((count.rows_read, count.rows_skipped), (6, 2));
        assert_eq!((count.blank_texts, count.unlabelled), (1, 1));
        assert_eq!((count.train, count.eval), (4, 0));
        assert_eq!(count.text_column, "text");
    }

    #[test]
    fn other_files_and_other_text_columns_are_other_sources() {
        let folder = Folder::new(&[
            ("a.csv", "text,body,topic,label\na,A,x,p\nb,B,y,q\n"),
            ("b.jsonl", "{\"text\": \"c\", \"label\": 1}\n{\"text\": \"d\", \"label\": 0}\n"),
        ]);
        let data = folder.load(&["topic=a.csv", "mood=b.jsonl", "third=a.csv:body"]).unwrap();
        assert_eq!(texts(&data.train), ["a", "b", "c", "d", "A", "B"]);
        let sources: Vec<_> = data.train.iter().map(|example| example.source).collect();
        assert_eq!(sources, [0, 0, 1, 1, 2, 2]);
        assert_eq!(data.train[2].labels, [None, Some(1), None]);
        assert_eq!(data.train[5].labels, [None, None, Some(1)]);
        assert_eq!(data.tasks[2].labels, ["p", "q"]);
        assert_eq!(data.sources.len(), 3);
    }

    #[test]
    fn a_split_column_decides() {
        let folder = Folder::new(&[(
            "a.tsv",
            "text\ttopic\tsplit\na\tx\tTrain\nb\ty\t\nc\tx\ttest\nd\ty\tDEV\ne\tx\ttraining\n\
             f\tx\tvalid\ng\tx\tvalidation\nh\tx\teval\n",
        )]);
        let data = folder.load_with(&["topic=a.tsv"], &[], 0.5, None).unwrap();
        assert_eq!(texts(&data.train), ["a", "b", "e"]);
        assert_eq!(texts(&data.eval), ["c", "d", "f", "g", "h"]);
        assert_eq!((data.sources[0].train, data.sources[0].eval), (3, 5));
        // A column of that name may be a task's label.
        let data = Folder::new(&[("a.tsv", "text\tsplit\na\tx\nb\ty\n")]);
        assert_eq!(data.load(&["split=a.tsv"]).unwrap().train.len(), 2);
        let bad = "text\ttopic\tsplit\na\tx\ttrain\nb\ty\tholdout\n";
        check_refused(bad, &["a.tsv", "line 3", "`split` is `holdout`", "train, training, test"]);
    }

    #[test]
    fn files_for_evaluation() {
        let folder = Folder::new(&[
            ("a.tsv", "body\ttopic\tmood\na\tx\t0\nb\ty\t1\n"),
            ("b.tsv", "body\tlabel\tsplit\nc\ty\ttest\n\tx\ttest\nd\tx\ttrain\n"),
            ("c.tsv", "body\tmood\ne\t1\n"),
        ]);
        let tasks = ["topic=a.tsv:body", "mood=a.tsv:body"];
        let data = folder.load_with(&tasks, &["mood=c.tsv", "topic=b.tsv"], 0.5, None).unwrap();
        assert_eq!(texts(&data.train), ["a", "b"]);
        assert_eq!(texts(&data.eval), ["c", "e"]);
        assert_eq!(data.eval[0].labels, [Some(1), None]);
        assert_eq!(data.eval[1].labels, [None, Some(1)]);
        assert_eq!((data.eval[0].source, data.eval[1].source), (1, 2));
        let count = &data.sources[1];
        assert_eq!((count.rows_read, count.rows_skipped, count.eval), (3, 2, 1));

        let both = Folder::new(&[
            ("a.tsv", "text\ttopic\tsplit\na\tx\ttrain\nb\ty\ttrain\nc\ty\ttest\n"),
            ("b.tsv", "text\ttopic\nc\ty\n"),
            ("c.tsv", "text\ttopic\tsplit\nc\ty\ttrain\n"),
            ("d.tsv", "text\ttopic\tsplit\na\tx\ttrain\nb\ty\ttrain\n"),
        ]);
        let load = |train: &str, eval: &str| both.load_with(&[train], &[eval], 0.0, None);
        check_message(load("topic=a.tsv", "topic=b.tsv"), &["a.tsv", "line 4", "`split`"]);
        check_message(load("topic=d.tsv", "topic=c.tsv"), &["c.tsv", "no labelled rows"]);
        assert_eq!(load("topic=d.tsv", "topic=b.tsv").unwrap().eval.len(), 1);
    }

    #[test]
    fn a_fraction_is_held_out() {
        let rows: String = (0..20).map(|i| format!("t{i}\t{}\n", i % 2)).collect();
        let folder = Folder::new(&[("a.tsv", &format!("text\ttopic\n{rows}last\trare\n"))]);
        let load = |holdout| folder.load_with(&["topic=a.tsv"], &[], holdout, None);
        for (holdout, n_eval) in [(0.0, 0), (0.001, 1), (0.25, 5), (0.5, 11), (0.999, 18)] {
            let data = load(holdout).unwrap();
            assert_eq!(data.eval.len(), n_eval, "{holdout}");
            assert_eq!(data.train.len(), 21 - n_eval, "{holdout}");
            let mut all = [texts(&data.train), texts(&data.eval)].concat();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), 21, "{holdout}");
            assert!(texts(&data.train).contains(&"last"), "the only row of its class");
        }
        assert_eq!(texts(&load(0.25).unwrap().eval), texts(&load(0.25).unwrap().eval));
        let tasks = folder.sources(&["topic=a.tsv"]);
        let other = Dataset::load(&tasks, &[], 0.25, 43, None).unwrap();
        assert_ne!(texts(&load(0.25).unwrap().eval), texts(&other.eval));
        for holdout in [-0.1, 1.0, f64::NAN] {
            check_message(load(holdout), &["--holdout"]);
        }
        let few = Folder::new(&[("a.tsv", "text\ttopic\na\tx\nb\ty\n")]);
        let result = few.load_with(&["topic=a.tsv"], &[], 0.5, None);
        check_message(result, &["a.tsv", "no row of 2 can be held out"]);
    }

    #[test]
    fn labels_of_a_model_keep_their_order() {
        let folder = Folder::new(&[("a.csv", TWO_TASKS)]);
        let known = |labels: &[&str]| {
            vec![("topic".to_owned(), labels.iter().map(|&label| label.to_owned()).collect())]
        };
        let load = |labels: &[&str]| {
            folder.load_with(&["topic=a.csv", "mood=a.csv"], &[], 0.0, Some(&known(labels)))
        };
        let data = load(&["z", "y", "x"]).unwrap();
        assert_eq!(data.tasks[0].labels, ["z", "y", "x"]);
        assert_eq!(data.tasks[1].labels, ["0", "1", "2"]);
        assert_eq!(data.train[0].labels, [Some(2), Some(0)]);
        let parts = ["a.csv", "line 4", "`y` is no label of task `topic`", "in the model are `x`"];
        check_message(load(&["x"]), &parts);
        // The data may have one of the classes only.
        let folder = Folder::new(&[("a.csv", "text,topic\na,x\n")]);
        let data = folder.load_with(&["topic=a.csv"], &[], 0.0, Some(&known(&["w", "x"])));
        assert_eq!(data.unwrap().train[0].labels, [Some(1)]);
    }

    #[test]
    fn labels_that_only_evaluation_rows_have() {
        let content = "text\ttopic\tsplit\na\tx\t\nb\ty\t\nc\tz\ttest\n";
        check_refused(
            content,
            &["line 4", "`z` is no label of task `topic`", "in the training rows are `x`, `y`"],
        );
    }

    #[test]
    fn tasks_without_enough_labels() {
        check_refused("text\ttopic\na\tx\nb\tx\n", &["`topic`", "`x` is the only class", "column"]);
        check_refused("text\ttopic\na\t\n", &["a.tsv", "task `topic`", "no training row"]);
        check_refused("text\ttopic\n", &["a.tsv", "task `topic`", "no training row"]);
        let folder = Folder::new(&[("a.tsv", "text\ttopic\na\t\n")]);
        let held_out = folder.load_with(&["topic=a.tsv"], &[], 0.5, None);
        check_message(held_out, &["a.tsv", "task `topic`", "no training row"]);
        let only_eval = "text\ttopic\tsplit\na\tx\ttest\nb\ty\ttest\n";
        check_refused(only_eval, &["a.tsv", "task `topic`", "no training row"]);
    }

    #[test]
    fn missing_columns_and_files() {
        check_refused("body\ttopic\na\tx\n", &["a.tsv", "no column `text`", "`body`, `topic`"]);
        check_refused("text\tclass\na\tx\n", &["a.tsv", "no column `label`", "`text`, `class`"]);
        let folder = Folder::new(&[("a.tsv", "text\ttopic\na\tx\n")]);
        check_message(folder.load(&["topic=a.tsv:text:kind"]), &["no column `kind`"]);
        let error = folder.load(&["topic=b.tsv"]).unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("b.tsv")), "{error}");
        let folder = Folder::new(&[("a.jsonl", "{\"text\": \"a\", \"topic\": [1]}\n")]);
        check_message(folder.load(&["topic=a.jsonl"]), &["line 1", "`topic` is an array"]);
    }

    #[test]
    fn task_names() {
        let folder = Folder::new(&[("a.tsv", "text\ttopic\na\tx\nb\ty\n")]);
        let twice = ["topic=a.tsv", "topic=a.tsv"];
        check_message(folder.load(&twice), &["task `topic` is named twice"]);
        let evals = |evals: &[&str]| folder.load_with(&["topic=a.tsv"], evals, 0.0, None);
        check_message(evals(&["mood=a.tsv"]), &["a.tsv", "task `mood`", "the tasks are `topic`"]);
        check_message(evals(&twice), &["two evaluation files", "`topic`"]);
    }
}
