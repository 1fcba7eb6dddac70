//! The three formats that a table is read from: CSV, TSV and JSON, a line an object or an array of them.
//!
//! A problem is a message that begins with the line; whoever knows the path adds it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::table::Table;

/// What was parsed, or what is wrong with the content.
pub(super) type Parsed<T> = std::result::Result<T, String>;

/// The text without its byte order mark.
pub(super) fn utf8(bytes: &[u8]) -> Parsed<&str> {
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(
            "is UTF-16; `iconv -f UTF-16 -t UTF-8 FILE > NEW` makes a file that can be read"
                .to_owned(),
        );
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
        format!(
            "line {line}: byte 0x{:02x} at position {column} is not UTF-8; save the file as UTF-8",
            bytes[error.valid_up_to()]
        )
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// The lines that are not blank, with their numbers; a line ends with LF or CRLF.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(i, line)| (i + 1, line)).filter(|(_, line)| !line.is_empty())
}

pub(super) fn parse_tsv(text: &str, table: &mut Table) -> Parsed<()> {
    let fields = |line: &str| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
    let mut lines = lines(text);
    let (number, header) = lines.next().ok_or("no header: the file has only blank lines")?;
    table.set_header(Some(number), fields(header))?;
    lines.try_for_each(|(number, line)| table.push_row(number, fields(line)))
}

pub(super) fn parse_csv(text: &str, table: &mut Table) -> Parsed<()> {
    let delimiter = delimiter_of(text);
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .from_reader(text.as_bytes());
    let mut record = csv::StringRecord::new();
    // The reader places a record before the blank lines in front of it, so lines are counted here.
    let (mut start, mut line) = (0, 1);
    while reader.read_record(&mut record).map_err(|error| error.to_string())? {
        let end = reader.position().byte() as usize;
        let before = &text[start..end];
        let blank = before.len() - before.trim_start_matches(['\r', '\n']).len();
        line += newlines(&before[..blank]);
        let fields = record.iter().map(str::to_owned).collect();
        if end == text.len() && quote_stays_open(&before[blank..], delimiter) {
            return Err(format!("line {line}: a quoted field that begins in this row never ends"));
        }
        if table.columns().is_empty() {
            table.set_header(Some(line), fields)?;
        } else {
            table.push_row(line, fields)?;
        }
        line += newlines(&before[blank..]);
        start = end;
    }
    if table.columns().is_empty() {
        return Err("no header: the file has only blank lines".to_owned());
    }
    Ok(())
}

/// What separates the fields of a CSV file: a comma, unless the header has none and has a semicolon (as spreadsheets write
/// where the comma is a decimal point) or a tab.
fn delimiter_of(text: &str) -> u8 {
    let header = text.trim_start_matches(['\r', '\n']).lines().next().unwrap_or_default();
    // Within quotation marks all three are text.
    let outside: String = header.split('"').step_by(2).collect();
    let is_there = |delimiter: &u8| outside.as_bytes().contains(delimiter);
    [b',', b';', b'\t'].into_iter().find(|delimiter| is_there(delimiter)).unwrap_or(b',')
}

fn newlines(text: &str) -> usize {
    text.bytes().filter(|&byte| byte == b'\n').count()
}

/// Whether the text of one CSV record ends inside quotation marks: the parser takes the end of the
/// file for the end of the field, and all rows after a stray mark would silently be one.
fn quote_stays_open(record: &str, delimiter: u8) -> bool {
    let mut field_begins = true;
    let mut quoted = false;
    // A doubled mark leaves the quotes and enters them again, and so counts for nothing.
    let mut may_reopen = false;
    for byte in record.bytes() {
        if quoted {
            quoted = byte != b'"';
            may_reopen = !quoted;
        } else {
            quoted = byte == b'"' && (field_begins || may_reopen);
            field_begins = byte == delimiter || matches!(byte, b'\n' | b'\r');
            may_reopen = false;
        }
    }
    quoted
}

pub(super) fn parse_json(text: &str, table: &mut Table) -> Parsed<()> {
    let objects = match text.trim_start().starts_with('[') {
        true => json_array(text, table)?,
        false => json_lines(text)?,
    };
    let columns: BTreeSet<&String> = objects.iter().flat_map(|(_, object)| object.keys()).collect();
    if objects.is_empty() {
        return Err("no rows: the file has only blank lines".to_owned());
    }
    if columns.is_empty() {
        return Err("no columns: every object is empty".to_owned());
    }
    let columns: Vec<String> = columns.into_iter().cloned().collect();
    table.set_header(Some(objects[0].0), columns.clone())?;
    for (row, (number, mut object)) in objects.into_iter().enumerate() {
        let mut values = Vec::with_capacity(columns.len());
        for (column, name) in columns.iter().enumerate() {
            values.push(match object.remove(name) {
                Some(Value::String(text)) => text,
                Some(Value::Number(number)) => number.to_string(),
                Some(Value::Bool(value)) => value.to_string(),
                None | Some(Value::Null) => String::new(),
                Some(other) => {
                    table.set_not_text(row, column, kind(&other));
                    String::new()
                }
            });
        }
        table.push_row(number, values)?;
    }
    Ok(())
}

type Object = serde_json::Map<String, Value>;

/// An object a line, each with its line.
fn json_lines(text: &str) -> Parsed<Vec<(usize, Object)>> {
    let lines = lines(text).filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            let value: Value = serde_json::from_str(line).map_err(|error| {
                format!("line {number}: not a JSON object on one line ({error})")
            })?;
            match value {
                Value::Object(object) => Ok((number, object)),
                other => Err(format!(
                    "line {number}: expected a JSON object on each line, found {}",
                    kind(&other)
                )),
            }
        })
        .collect()
}

/// One array of objects, as `DataFrame.to_json(orient="records")` writes it; rows are counted from 1.
fn json_array(text: &str, table: &mut Table) -> Parsed<Vec<(usize, Object)>> {
    table.count_rows();
    let values: Vec<Value> = serde_json::from_str(text)
        .map_err(|error| format!("not an array of JSON objects ({error})"))?;
    let object = |(at, value): (usize, Value)| match value {
        Value::Object(object) => Ok((at + 1, object)),
        other => Err(format!(
            "row {}: expected an array of JSON objects, found {} in it",
            at + 1,
            kind(&other)
        )),
    };
    values.into_iter().enumerate().map(object).collect()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::{check_error, read};

    /// The rows of a file, each with its line.
    fn rows(name: &str, content: &str) -> Vec<(usize, Vec<String>)> {
        let table = read(name, content.as_bytes()).unwrap();
        (0..table.n_rows())
            .map(|row| {
                let value = |column| table.value(row, column).unwrap().to_owned();
                (table.line(row), (0..table.columns().len()).map(value).collect())
            })
            .collect()
    }

    fn row(line: usize, fields: &[&str]) -> (usize, Vec<String>) {
        (line, fields.iter().map(|&field| field.to_owned()).collect())
    }

    #[test]
    fn csv_fields_may_hold_commas_quotation_marks_and_line_breaks() {
        let content = "text,label\n\"a, \"\"b\"\"\nc\",x\n\n\r\nplain 5\" disk,y\n";
        let expected = [row(2, &["a, \"b\"\nc", "x"]), row(6, &["plain 5\" disk", "y"])];
        assert_eq!(rows("a.csv", content), expected);
    }

    #[test]
    fn tsv_takes_quotation_marks_as_text() {
        let content = "text\tlabel\n\"a\tx\n\nb\"\"\t\n";
        assert_eq!(rows("a.tsv", content), [row(2, &["\"a", "x"]), row(4, &["b\"\"", ""])]);
    }

    #[test]
    fn byte_order_mark_crlf_and_a_missing_last_newline() {
        for (name, separator) in [("a.csv", ","), ("a.TSV", "\t")] {
            let content = format!("\u{feff}text{separator}label\r\na{separator}x\r\nb{separator}y");
            assert_eq!(rows(name, &content), [row(2, &["a", "x"]), row(3, &["b", "y"])]);
            let table = read(name, content.as_bytes()).unwrap();
            assert_eq!(table.columns(), ["text", "label"]);
        }
        let content = "\u{feff}{\"text\":\"a\"}\r\n{\"text\":\"b\"}\r\n";
        assert_eq!(rows("a.jsonl", content), [row(1, &["a"]), row(2, &["b"])]);
    }

    #[test]
    fn a_quoted_field_that_never_ends() {
        let stray = b"text,label\na,x\n\"b,y\nc,z\n";
        check_error("a.csv", stray, &["line 3", "never ends"]);
        check_error("a.csv", b"label,text\nx,\"a \"\" b\n", &["line 2", "never ends"]);
        let sound = [
            "label,text\nx,\"a\"\n",
            "label,text\nx,\"a\"\"\"",
            "label,text\nx,\"\"",
            "label,text\nx,5\"",
            "label,text\nx,a\"b\"\"",
        ];
        for content in sound {
            assert!(read("a.csv", content.as_bytes()).is_ok(), "{content}");
        }
    }

    #[test]
    fn bytes_that_are_not_utf8() {
        check_error("a.csv", b"text,label\na,x\nb\xe9,y\n", &["line 3", "0xe9", "position 2"]);
        check_error("a.jsonl", b"\xff\xfe{\0", &["UTF-16", "iconv"]);
        check_error("a.csv", b"\xfe\xff\0t", &["UTF-16", "iconv"]);
    }

    #[test]
    fn an_array_of_objects_is_a_table() {
        let content =
            "\u{feff}[{\"text\": \"a\", \"label\": 1.0},\n {\"text\": \"b\", \"label\": true}]";
        assert_eq!(rows("a.json", content), [row(1, &["1.0", "a"]), row(2, &["true", "b"])]);
    }

    #[test]
    fn csv_separated_by_semicolons_or_tabs() {
        for separator in [";", "\t"] {
            let content = format!("text{separator}label\n\"a{separator} b, c\"{separator}x\n");
            let text = format!("a{separator} b, c");
            assert_eq!(rows("a.csv", &content), [row(2, &[&text, "x"])]);
        }
        // A comma in the header is the separator, whatever else is in there.
        assert_eq!(rows("a.csv", "text;a,label\nb,x\n"), [row(2, &["b", "x"])]);
        assert_eq!(rows("a.csv", "\"text;a\"\nb\n"), [row(2, &["b"])]);
        check_error("a.csv", b"text;label\n\"b;y\n", &["line 2", "never ends"]);
    }

    #[test]
    fn bad_json() {
        check_error(
            "a.jsonl",
            b"{\"text\": \"a\"}\n{\"text\": \n",
            &["line 2", "not a JSON object"],
        );
        check_error("a.json", b"[{\"text\": 1},\n", &["not an array of JSON objects", "line 2"]);
        check_error("a.json", b"[{\"text\": 1}, 1]\n", &["row 2", "found an integer"]);
        check_error("a.json", b"[]", &["no rows"]);
        check_error("a.jsonl", b"{}\n\"text\"\n", &["line 2", "found a string"]);
    }
}
