//! Where texts come from: a column of a table, or lines.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::data::Table;
use crate::{Error, Result};

/// Texts that are read, tokenised and labelled at a time.
const CHUNK: usize = 512;

/// What a pipe may hold: lines that are there are taken together.
const BUFFER_BYTES: usize = 1 << 16;

/// What some programs put in front of UTF-8.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// A text, and perhaps a second one.
pub type TextPair = (String, Option<String>);

pub enum Texts {
    Rows { table: Table, column: usize, pair: Option<usize>, next: usize },
    Lines { name: PathBuf, reader: BufReader<Box<dyn Read>>, n_lines: usize },
}

impl Texts {
    /// Opens `FILE[:COLUMN[+PAIR]]`, or stdin for `-`.
    ///
    /// # Errors
    /// What is wrong with the file, or a column that it does not have.
    pub fn open(argument: &str) -> Result<Self> {
        if argument == "-" {
            let (name, stdin) = (PathBuf::from("stdin"), Box::new(std::io::stdin()));
            let reader = BufReader::with_capacity(BUFFER_BYTES, stdin as Box<dyn Read>);
            return Ok(Texts::Lines { name, reader, n_lines: 0 });
        }
        let (path, column) = match argument.rsplit_once(':') {
            // A colon may belong to the file's name.
            Some((file, column)) if !Path::new(argument).exists() => (file, Some(column)),
            _ => (argument, None),
        };
        let path = PathBuf::from(path);
        if Table::is_named(&path) {
            let table = Table::read(&path)?;
            let (column, pair) = table.text_columns(column)?;
            return Ok(Texts::Rows { table, column, pair, next: 0 });
        }
        if let Some(column) = column {
            let problem = format!(
                "no column `{column}`: lines of texts have none, only .csv, .tsv, .jsonl and .parquet files have"
            );
            return Err(Error::content(&path, problem));
        }
        if path.is_dir() {
            return Err(Error::content(&path, "is a folder, not a file of texts"));
        }
        let file = File::open(&path).map_err(|e| Error::io(&path, e))?;
        let reader = BufReader::with_capacity(BUFFER_BYTES, Box::new(file) as Box<dyn Read>);
        Ok(Texts::Lines { name: path, reader, n_lines: 0 })
    }

    /// The file that is read, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Texts::Rows { table, .. } => Some(table.path()),
            Texts::Lines { name, .. } => name.is_file().then_some(name),
        }
    }

    /// How many there are, where that is known.
    pub fn n_rows(&self) -> Option<usize> {
        match self {
            Texts::Rows { table, .. } => Some(table.n_rows()),
            Texts::Lines { .. } => None,
        }
    }

    /// The next texts, each perhaps with a second one, None at the end: of lines those that are there already, so that one who types sees an
    /// answer to each.
    ///
    /// # Errors
    /// A value that is no text, bytes that are not UTF-8.
    pub fn next(&mut self) -> Result<Option<Vec<TextPair>>> {
        let mut texts = Vec::new();
        match self {
            Texts::Rows { table, column, pair, next } => {
                let end = table.n_rows().min(*next + CHUNK);
                for row in *next..end {
                    let pair = table.pair(row, *pair)?.map(str::to_owned);
                    texts.push((table.value(row, *column)?.to_owned(), pair));
                }
                *next = end;
            }
            Texts::Lines { name, reader, n_lines } => {
                while texts.len() < CHUNK && (texts.is_empty() || !reader.buffer().is_empty()) {
                    let mut line = Vec::new();
                    let n =
                        reader.read_until(b'\n', &mut line).map_err(|e| Error::io(&*name, e))?;
                    if n == 0 {
                        break;
                    }
                    *n_lines += 1;
                    if *n_lines == 1 && line.starts_with(BYTE_ORDER_MARK) {
                        line.drain(..BYTE_ORDER_MARK.len());
                    }
                    let text = String::from_utf8(line).map_err(|_| {
                        Error::content(&*name, format!("line {n_lines}: is not UTF-8"))
                    })?;
                    texts.push((text.trim_end_matches(['\n', '\r']).to_owned(), None));
                }
            }
        }
        Ok((!texts.is_empty()).then_some(texts))
    }
}
