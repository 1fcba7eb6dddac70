//! What a user says about a task's data: `NAME=FILE[:TEXT_COLUMN[:LABEL_COLUMN]]`.

use std::path::PathBuf;

use crate::{Error, Result};

/// A task, the file that has its examples, and the columns if they are not the usual ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskSource {
    /// The task's name, as in `heads.<name>.weight`.
    pub name: String,
    /// CSV, TSV, JSON lines or Parquet.
    pub path: PathBuf,
    /// The column with the texts, or two joined by `+` for pairs; `text` if not given, with `text_pair` where there is
    /// one.
    pub text_column: Option<String>,
    /// The column with the labels; if not given the one called like the task, else `label`.
    pub label_column: Option<String>,
}

impl TaskSource {
    /// Parses `NAME=FILE[:TEXT_COLUMN[:LABEL_COLUMN]]`. An empty text column between two colons
    /// stands for the usual one. The colon of a Windows drive (`C:\data.csv`) belongs to the file.
    ///
    /// # Errors
    /// [`Error::Usage`] that quotes the argument and says what is wrong with it.
    pub fn parse(argument: &str) -> Result<TaskSource> {
        let fault = |problem: &str| {
            Error::usage(format!(
                "`{argument}`: {problem}; expected NAME=FILE[:TEXT_COLUMN[:LABEL_COLUMN]]"
            ))
        };
        let (name, rest) = argument.split_once('=').ok_or_else(|| fault("no `=`"))?;
        check_task_name(name)?;
        let drive = match rest.as_bytes() {
            [letter, b':', b'\\' | b'/', ..] if letter.is_ascii_alphabetic() => 2,
            _ => 0,
        };
        let file_end = rest[drive..].find(':').map_or(rest.len(), |colon| drive + colon);
        let file = &rest[..file_end];
        if file.is_empty() {
            return Err(fault("no file"));
        }
        let mut columns = rest[file_end..].split(':').skip(1);
        let (text, label) = (columns.next(), columns.next());
        if columns.next().is_some() {
            return Err(fault("more than two columns"));
        }
        if label == Some("") || (label.is_none() && text == Some("")) {
            return Err(fault("an empty column name at the end"));
        }
        Ok(TaskSource {
            name: name.to_owned(),
            path: file.into(),
            text_column: text.filter(|text| !text.is_empty()).map(str::to_owned),
            label_column: label.map(str::to_owned),
        })
    }
}

/// Checks that a task's name can stand in a tensor's name, `heads.<name>.weight`.
///
/// # Errors
/// [`Error::Usage`] if it is empty or has anything but ASCII letters, digits, `_` and `-`.
pub fn check_task_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || !name.chars().all(allowed) {
        return Err(Error::usage(format!(
            "task name `{name}`: expected one or more letters, digits, `_` or `-`"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(argument: &str, name: &str, path: &str, text: Option<&str>, label: Option<&str>) {
        let expected = TaskSource {
            name: name.to_owned(),
            path: path.into(),
            text_column: text.map(str::to_owned),
            label_column: label.map(str::to_owned),
        };
        assert_eq!(TaskSource::parse(argument).unwrap(), expected, "{argument}");
    }

    #[test]
    fn files_and_columns() {
        check("topic=a.tsv", "topic", "a.tsv", None, None);
        check("a-b_2=d/a=b.csv:body", "a-b_2", "d/a=b.csv", Some("body"), None);
        check("t=a.csv:body:class", "t", "a.csv", Some("body"), Some("class"));
        check("t=a.csv::class", "t", "a.csv", None, Some("class"));
        check(r"t=C:\a.csv:body", "t", r"C:\a.csv", Some("body"), None);
        check("t=c:/a.csv", "t", "c:/a.csv", None, None);
        check("t=c:body", "t", "c", Some("body"), None);
    }

    #[test]
    fn faults_quote_the_argument() {
        let cases = [
            ("topic", "no `=`"),
            ("=a.csv", "task name ``"),
            ("a.b=a.csv", "task name `a.b`"),
            ("größe=a.csv", "task name `größe`"),
            ("t=", "no file"),
            ("t=:text", "no file"),
            ("t=a.csv:", "empty column"),
            ("t=a.csv:text:", "empty column"),
            ("t=a.csv::", "empty column"),
            ("t=a.csv:a:b:c", "more than two columns"),
        ];
        for (argument, problem) in cases {
            let error = TaskSource::parse(argument).unwrap_err();
            assert!(matches!(error, Error::Usage(_)), "{argument}");
            assert!(error.to_string().contains(problem), "{argument}: {error}");
        }
    }
}
