//! Reads a file of rows and named columns: CSV, TSV, JSON lines or Parquet, by its extension.
//!
//! A table knows where each of its rows stood, so that whoever finds fault with a value can say
//! where it is. It does not know which columns hold texts and labels.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::formats::{Parsed, parse_csv, parse_json, parse_tsv, utf8};
use crate::{Error, Result};

/// A file's rows as text. Every row has a value for every column, which may be empty.
#[derive(Debug)]
pub struct Table {
    path: PathBuf,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
    /// For each row the line that it begins on (of Parquet: its number), counted from 1.
    lines: Vec<usize>,
    /// What `lines` counts: "line" or "row".
    unit: &'static str,
    /// What stands in place of a text in a JSON line, by row and column: "an array", "a boolean".
    not_text: HashMap<(usize, usize), &'static str>,
    /// The same for whole columns, of Parquet files.
    not_text_columns: HashMap<usize, &'static str>,
}

/// Extensions of tables, in lower case.
const EXTENSIONS: [&str; 6] = ["csv", "tsv", "jsonl", "ndjson", "json", "parquet"];

/// A path's extension in lower case, of a compressed file that before `.gz`.
fn extension(path: &Path) -> String {
    let of = |path: &Path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.unwrap_or("").to_ascii_lowercase()
    };
    if is_compressed(path) { of(&path.with_extension("")) } else { of(path) }
}

fn is_compressed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz"))
}

/// Reads a file, and unpacks it where its name ends in `.gz`.
fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).map_err(|error| Error::io(path, error))?;
    if !is_compressed(path) {
        return Ok(bytes);
    }
    let mut unpacked = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes.as_slice())
        .read_to_end(&mut unpacked)
        .map_err(|error| Error::content(path, format!("is not a whole gzip file: {error}")))?;
    Ok(unpacked)
}

/// The extension that a table without one should have, by how it begins: what comes through a pipe has no name of its
/// own.
fn guessed_extension(bytes: &[u8]) -> &'static str {
    let header = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    match bytes.trim_ascii_start().first() {
        Some(b'{' | b'[') => "json",
        _ if header.contains(&b'\t') => "tsv",
        _ => "csv",
    }
}

impl Table {
    /// Whether a path has the extension of a table.
    pub fn is_named(path: &Path) -> bool {
        EXTENSIONS.contains(&extension(path).as_str())
    }

    /// Reads `path` as the format that its extension names: `.csv` (RFC 4180: a quoted field may
    /// hold commas, line breaks and doubled quotation marks; separated by semicolons or tabs where the
    /// header has no comma), `.tsv` (no quoting: a quotation mark is text), `.jsonl`, `.ndjson`, `.json`
    /// (an object a line, or an array of objects), each also with `.gz` behind it, or, where that was
    /// built in, `.parquet` (strings, numbers and truth values; Snappy or no compression). A pipe is
    /// read as what it begins like.
    ///
    /// A byte order mark, CRLF and blank lines between rows are accepted. A JSON line that lacks a
    /// key that other lines have, or holds null there, has an empty value.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, else [`Error::Content`] with the line: an unknown
    /// extension, an empty file or header, a column named twice, a row with more or fewer fields
    /// than the header, a quoted field that never ends, bytes that are not UTF-8, invalid JSON and
    /// JSON that is no object, invalid Parquet.
    pub fn read(path: &Path) -> Result<Table> {
        let mut extension = extension(path);
        if extension == "parquet" && !is_compressed(path) {
            return read_parquet(path);
        }
        // Before an unknown kind of file is read.
        let is_pipe = fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir());
        if !is_pipe && !EXTENSIONS.contains(&extension.as_str()) {
            let problem = format!(
                "unknown extension `{extension}`; expected .csv, .tsv, .jsonl (also .ndjson, .json), each also with \
                 .gz, or .parquet"
            );
            return Err(Error::content(path, problem));
        }
        let bytes = read_bytes(path)?;
        if is_pipe {
            extension = guessed_extension(&bytes).to_owned();
        }
        let parse = match extension.as_str() {
            "csv" => parse_csv,
            "tsv" => parse_tsv,
            "parquet" => {
                return Err(Error::content(path, "is a compressed Parquet file: unpack it"));
            }
            _ => parse_json,
        };
        let text = utf8(&bytes).map_err(|problem| Error::content(path, problem))?;
        if text.is_empty() {
            return Err(Error::content(path, "the file is empty"));
        }
        let mut table = Table::empty(path, "line");
        parse(text, &mut table).map_err(|problem| Error::content(path, problem))?;
        Ok(table)
    }

    fn empty(path: &Path, unit: &'static str) -> Table {
        Table {
            path: path.to_owned(),
            columns: Vec::new(),
            rows: Vec::new(),
            lines: Vec::new(),
            unit,
            not_text: HashMap::new(),
            not_text_columns: HashMap::new(),
        }
    }

    /// The file that was read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The columns' names, in the file's order (JSON lines: in alphabetical order).
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Number of rows, the header apart.
    pub fn n_rows(&self) -> usize {
        self.rows.len()
    }

    /// The line that a row begins on, counted from 1, the header included; of Parquet the row's
    /// number, counted from 1.
    pub fn line(&self, row: usize) -> usize {
        self.lines[row]
    }

    /// The index of a column, if there is one of that name.
    pub fn find_column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }

    /// The index of a column.
    ///
    /// # Errors
    /// [`Error::Content`] that names the columns there are.
    pub fn column(&self, name: &str) -> Result<usize> {
        self.find_column(name).ok_or_else(|| {
            let problem =
                format!("no column `{name}`; the columns are {}", quoted_list(&self.columns));
            Error::content(&self.path, problem)
        })
    }

    /// The columns of texts: `asked`, which may be two names joined by `+`; else `text`, and `text_pair` where there is
    /// one.
    ///
    /// # Errors
    /// As [`Table::column`].
    pub fn text_columns(&self, asked: Option<&str>) -> Result<(usize, Option<usize>)> {
        let Some(name) = asked else {
            return Ok((self.column("text")?, self.find_column("text_pair")));
        };
        match (self.find_column(name), name.split_once('+')) {
            (None, Some((text, pair))) => Ok((self.column(text)?, Some(self.column(pair)?))),
            _ => Ok((self.column(name)?, None)),
        }
    }

    /// The second text of a row, where there is a column of them; a blank one is none.
    ///
    /// # Errors
    /// As [`Table::value`].
    pub fn pair(&self, row: usize, column: Option<usize>) -> Result<Option<&str>> {
        let pair = column.map(|column| self.value(row, column)).transpose()?;
        Ok(pair.filter(|pair| !pair.trim().is_empty()))
    }

    /// The value of a row in a column; empty where a JSON line or a Parquet file has none.
    ///
    /// # Errors
    /// [`Error::Content`] if a JSON object holds an array or an object there, or a Parquet file's column is of a type
    /// that is no text, number or truth value.
    pub fn value(&self, row: usize, column: usize) -> Result<&str> {
        match self.not_text.get(&(row, column)).or_else(|| self.not_text_columns.get(&column)) {
            None => Ok(&self.rows[row][column]),
            Some(kind) => Err(self.fault(
                row,
                format!(
                    "`{}` is {kind}; expected a string, a number, true, false or null",
                    self.columns[column]
                ),
            )),
        }
    }

    /// An error about the content of a row, with file and line (or row).
    pub fn fault(&self, row: usize, problem: impl std::fmt::Display) -> Error {
        Error::content(&self.path, format!("{} {}: {problem}", self.unit, self.lines[row]))
    }

    /// Names the columns; `line` is where they stand, where they do so in a line.
    pub(super) fn set_header(&mut self, line: Option<usize>, columns: Vec<String>) -> Parsed<()> {
        let place = line.map_or(String::new(), |line| format!("line {line}: "));
        if columns.iter().all(String::is_empty) {
            return Err(format!("{place}no header; it must name the columns"));
        }
        let mut seen = HashSet::new();
        // Nameless columns are common (a saved index) and cannot be asked for.
        for name in columns.iter().filter(|name| !name.is_empty()) {
            if !seen.insert(name) {
                return Err(format!("{place}the header names column `{name}` twice"));
            }
        }
        self.columns = columns;
        Ok(())
    }

    /// Counts rows, not lines.
    pub(super) fn count_rows(&mut self) {
        self.unit = "row";
    }

    /// Notes what a JSON line has in place of a text, to be said if anyone asks for it.
    pub(super) fn set_not_text(&mut self, row: usize, column: usize, kind: &'static str) {
        self.not_text.insert((row, column), kind);
    }

    /// Notes what a whole column holds in place of texts.
    #[cfg(feature = "parquet")]
    pub(super) fn set_column_not_text(&mut self, column: usize, kind: &'static str) {
        self.not_text_columns.insert(column, kind);
    }

    pub(super) fn push_row(&mut self, line: usize, row: Vec<String>) -> Parsed<()> {
        if row.len() != self.columns.len() {
            return Err(format!(
                "line {line}: expected {} fields as in the header, found {}",
                self.columns.len(),
                row.len()
            ));
        }
        self.rows.push(row);
        self.lines.push(line);
        Ok(())
    }
}

#[cfg(feature = "parquet")]
fn read_parquet(path: &Path) -> Result<Table> {
    let mut table = Table::empty(path, "row");
    super::parquet::read(path, &mut table)?;
    Ok(table)
}

#[cfg(not(feature = "parquet"))]
fn read_parquet(path: &Path) -> Result<Table> {
    let problem =
        "this frostline was built without Parquet files: build it with `--features parquet`";
    Err(Error::content(path, problem))
}

/// Names for a message: "`a`, `b`".
pub(super) fn quoted_list<S: AsRef<str>>(names: &[S]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{}`", name.as_ref())).collect();
    quoted.join(", ")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::data) fn read(name: &str, content: &[u8]) -> Result<Table> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        Table::read(&path)
    }

    /// Checks that the message names the file and holds every part.
    pub(in crate::data) fn check_error(name: &str, content: &[u8], parts: &[&str]) {
        let message = read(name, content).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    }

    #[test]
    fn json_values_are_strings_integers_or_null() {
        let content = "{\"text\": \"a\\nb\", \"label\": 3, \"extra\": [1]}\n\n\
                       {\"label\": null, \"text\": \"c\"}\n";
        for name in ["a.jsonl", "a.ndjson", "a.json"] {
            let table = read(name, content.as_bytes()).unwrap();
            assert_eq!(table.columns(), ["extra", "label", "text"]);
            let (label, text) = (table.column("label").unwrap(), table.column("text").unwrap());
            assert_eq!(table.value(0, label).unwrap(), "3");
            assert_eq!(table.value(0, text).unwrap(), "a\nb");
            assert_eq!(table.value(1, label).unwrap(), "");
            assert_eq!(table.value(1, 0).unwrap(), "");
            assert_eq!(table.line(1), 3);
            let message = table.value(0, 0).unwrap_err().to_string();
            assert!(message.contains("line 1: `extra` is an array"), "{message}");
        }
    }

    #[test]
    fn other_json_values_are_named() {
        for (value, named) in [("[1]", "an array"), ("{}", "an object")] {
            let table = read("a.jsonl", format!("{{\"label\": {value}}}").as_bytes()).unwrap();
            let message = table.value(0, 0).unwrap_err().to_string();
            assert!(message.contains(&format!("line 1: `label` is {named}")), "{message}");
        }
    }

    #[test]
    fn missing_files_and_unknown_extensions() {
        let missing = Path::new("no-such-folder/no-such-file.csv");
        let error = Table::read(missing).unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if path == missing), "{error}");
        check_error("a.xlsx", b"x", &["`xlsx`", ".csv", ".tsv", ".jsonl", ".parquet"]);
        check_error("noextension", b"x", &["``", ".csv", ".tsv", ".jsonl"]);
    }

    #[test]
    fn compressed_files_are_unpacked() {
        use std::io::Write;
        let pack = |text: &str| {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(text.as_bytes()).unwrap();
            packer.finish().unwrap()
        };
        // Two parts, as `cat a.gz b.gz` makes them.
        let packed = [pack("text,label\na,x\n"), pack("b,y\n")].concat();
        for name in ["a.csv.gz", "a.CSV.GZ"] {
            let table = read(name, &packed).unwrap();
            assert_eq!((table.n_rows(), table.value(1, 0).unwrap()), (2, "b"));
            assert!(Table::is_named(Path::new(name)));
        }
        check_error("a.csv.gz", &packed[..packed.len() - 9], &["not a whole gzip file"]);
        check_error("a.csv.gz", b"text,label\na,x\n", &["not a whole gzip file"]);
    }

    #[test]
    fn what_has_no_name_is_known_by_how_it_begins() {
        for (text, extension) in [
            ("text,label\n", "csv"),
            ("text\tlabel\n", "tsv"),
            (" [{}]", "json"),
            ("{}\n", "json"),
            ("", "csv"),
        ] {
            assert_eq!(guessed_extension(text.as_bytes()), extension, "{text:?}");
        }
    }

    #[cfg(not(feature = "parquet"))]
    #[test]
    fn without_the_feature() {
        for name in ["a.parquet", "a.PARQUET"] {
            check_error(name, b"PAR1", &["without Parquet", "--features parquet"]);
        }
    }

    #[test]
    fn empty_files_and_headers() {
        for name in ["a.csv", "a.tsv", "a.jsonl"] {
            check_error(name, b"", &["empty"]);
            check_error(name, b"\xef\xbb\xbf", &["empty"]);
            check_error(name, b"\n\r\n", &["blank lines"]);
        }
        check_error("a.csv", b"\n,\na,b\n", &["line 2: no header"]);
        check_error("a.csv", b"\"\"\na\n", &["line 1: no header"]);
        check_error("a.tsv", b"\t\na\tb\n", &["line 1: no header"]);
        check_error("a.jsonl", b"{}\n{}\n", &["no columns"]);
        check_error("a.tsv", b"text\ttext\n", &["line 1", "`text` twice"]);
        assert!(read("a.csv", b",,text\n0,0,a\n").is_ok(), "nameless columns");
    }

    #[test]
    fn ragged_rows() {
        let csv = b"text,label\n\"a\nb\",x\n\nc\n";
        check_error("a.csv", csv, &["line 5", "expected 2 fields", "found 1"]);
        check_error("a.tsv", b"text\tlabel\r\na\tx\ty\r\n", &["line 2", "expected 2", "found 3"]);
    }

    #[test]
    fn missing_columns() {
        let table = read("a.csv", b"text,topic\na,x\n").unwrap();
        let message = table.column("label").unwrap_err().to_string();
        assert!(
            message.ends_with("no column `label`; the columns are `text`, `topic`"),
            "{message}"
        );
    }
}
