//! Reads Parquet files, column by column; their rows are counted from 1.

mod guard;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::DataType;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::{Length, SerializedPageReader};
use parquet::schema::types::Type;

use super::formats::Parsed;
use super::table::{Table, quoted_list};
use crate::{Error, Result};
use guard::{Pages, PagesFile, guarded};

/// Values that are decoded at a time.
const CHUNK: usize = 1024;

/// Fills `table`, which is empty, from a Parquet file that is compressed with Snappy or not at all. Strings, numbers and
/// truth values are values, null and NaN empty ones; columns of other types are noted as such and not read.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; else [`Error::Content`] with column and row: what is no Parquet file, or is
/// not whole or damaged, another compression, a string that is not UTF-8, no column of strings, numbers or truth values.
pub(super) fn read(path: &Path, table: &mut Table) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    if file.metadata().map_err(|e| Error::io(path, e))?.is_dir() {
        return Err(Error::content(path, "is a folder, not a file"));
    }
    let all = || {
        let metadata = ParquetMetaDataReader::new()
            .parse_and_finish(&file)
            .map_err(|e| format!("is not a whole Parquet file: {e}"))?;
        fill(&Arc::new(PagesFile(file)), &metadata, table)
    };
    guarded(all).map_err(|problem| Error::content(path, problem))
}

fn fill(file: &Arc<PagesFile>, metadata: &ParquetMetaData, table: &mut Table) -> Parsed<()> {
    let schema = metadata.file_metadata().schema_descr();
    let fields = schema.root_schema().get_fields();
    let names: Vec<String> = fields.iter().map(|field| field.name().to_owned()).collect();
    table.set_header(None, names.clone())?;
    let mut columns: Vec<Option<Vec<String>>> = Vec::new();
    for (at, field) in fields.iter().enumerate() {
        let kind = not_text(field);
        columns.push(kind.is_none().then(Vec::new));
        if let Some(kind) = kind {
            table.set_column_not_text(at, kind);
        }
    }
    if columns.iter().all(Option::is_none) {
        let names = quoted_list(&names);
        return Err(format!(
            "no column holds strings, numbers or truth values; the columns are {names}"
        ));
    }
    let mut n_rows: usize = 0;
    for group in metadata.row_groups() {
        let n_new = usize::try_from(group.num_rows()).unwrap_or_default();
        n_rows = n_rows.saturating_add(n_new);
        // A column of nested values has several leaves, or is one leaf below another name.
        for leaf in 0..schema.num_columns() {
            let at = schema.get_column_root_idx(leaf);
            let (Some(column), name) = (&mut columns[at], &names[at]) else { continue };
            let chunk = group.column(leaf);
            let codec = chunk.compression_codec();
            if !matches!(codec.into(), Compression::UNCOMPRESSED | Compression::SNAPPY) {
                return Err(format!(
                    "`{name}` is compressed with {codec:?}; expected Snappy or none, as \
                     compression=\"snappy\" writes it"
                ));
            }
            let pages = check_place(chunk, file.len()).and_then(|()| {
                SerializedPageReader::new(file.clone(), chunk, n_new, None)
                    .map_err(|e| e.to_string())
            });
            let pages = pages
                .map_err(|e| format!("row {}: `{name}` cannot be read: {e}", column.len() + 1))?;
            let reader = get_column_reader(schema.column(leaf), Box::new(Pages(pages)));
            read_column(reader, &fields[at], n_rows, column)?;
            if column.len() != n_rows {
                let found = column.len();
                return Err(format!(
                    "row {found}: `{name}` ends there, the file has {n_rows} rows"
                ));
            }
        }
    }
    let mut columns: Vec<_> =
        columns.into_iter().map(|column| column.map(Vec::into_iter)).collect();
    for row in 1..=n_rows {
        let next = |column: &mut Option<std::vec::IntoIter<String>>| {
            column.as_mut().and_then(Iterator::next).unwrap_or_default()
        };
        table.push_row(row, columns.iter_mut().map(next).collect())?;
    }
    Ok(())
}

/// Checks that a column's pages lie in a file of `n_bytes`.
fn check_place(chunk: &ColumnChunkMetaData, n_bytes: u64) -> Parsed<()> {
    let start = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
    let length = chunk.compressed_size();
    let end = u64::try_from(start).ok().zip(u64::try_from(length).ok());
    match end.and_then(|(start, length)| start.checked_add(length)) {
        Some(end) if end <= n_bytes => Ok(()),
        _ => Err(format!("{length} bytes from {start} on are not in a file of {n_bytes}")),
    }
}

/// What a column's values are where they are neither strings nor numbers nor truth values.
fn not_text(field: &Type) -> Option<&'static str> {
    let info = field.get_basic_info();
    let (logical, converted) = (info.logical_type_ref(), info.converted_type());
    let is_repeated = info.has_repetition() && info.repetition() == Repetition::REPEATED;
    if is_repeated || converted == ConvertedType::LIST {
        return Some("a list");
    }
    if !field.is_primitive() {
        return Some("an object");
    }
    let is_decimal = converted == ConvertedType::DECIMAL;
    match field.get_physical_type() {
        _ if is_decimal => Some("a decimal number"),
        Physical::BOOLEAN | Physical::FLOAT | Physical::DOUBLE => None,
        Physical::INT96 => Some("a time"),
        Physical::FIXED_LEN_BYTE_ARRAY => Some("bytes of a fixed number"),
        Physical::BYTE_ARRAY => {
            let is_string = matches!(
                logical,
                Some(LogicalType::String | LogicalType::Enum | LogicalType::Json)
            ) || matches!(
                converted,
                ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON
            );
            (!is_string).then_some("bytes that are not marked as a string")
        }
        // Times are integers to the file; those in nanoseconds have a logical type alone.
        Physical::INT32 | Physical::INT64 => {
            let is_integer = match logical {
                Some(logical) => {
                    matches!(logical, LogicalType::Integer(_) | LogicalType::Unknown)
                }
                None => converted == ConvertedType::NONE || is_signed(converted).is_some(),
            };
            (!is_integer).then_some("a date or a time")
        }
    }
}

/// Whether integers of a converted type have a sign; None for what is no integer.
fn is_signed(converted: ConvertedType) -> Option<bool> {
    use ConvertedType as C;
    match converted {
        C::INT_8 | C::INT_16 | C::INT_32 | C::INT_64 => Some(true),
        C::UINT_8 | C::UINT_16 | C::UINT_32 | C::UINT_64 => Some(false),
        _ => None,
    }
}

/// Appends a row group's values of one column, which has `n_rows` with them.
fn read_column(
    reader: ColumnReader,
    field: &Type,
    n_rows: usize,
    column: &mut Vec<String>,
) -> Parsed<()> {
    let has_sign = is_signed(field.get_basic_info().converted_type()).unwrap_or(true);
    match reader {
        ColumnReader::ByteArrayColumnReader(reader) => {
            append(reader, field, n_rows, column, |value| match std::str::from_utf8(value.data()) {
                Ok(text) => Ok(text.to_owned()),
                Err(e) => Err(format!("is not UTF-8 from byte {} on", e.valid_up_to() + 1)),
            })
        }
        ColumnReader::Int32ColumnReader(reader) => {
            append(reader, field, n_rows, column, |&value| match has_sign {
                true => Ok(value.to_string()),
                false => Ok(value.cast_unsigned().to_string()),
            })
        }
        ColumnReader::Int64ColumnReader(reader) => {
            append(reader, field, n_rows, column, |&value| match has_sign {
                true => Ok(value.to_string()),
                false => Ok(value.cast_unsigned().to_string()),
            })
        }
        // As JSON has them; NaN is how some programs mark a missing value.
        ColumnReader::BoolColumnReader(reader) => {
            append(reader, field, n_rows, column, |value| Ok(value.to_string()))
        }
        ColumnReader::FloatColumnReader(reader) => append(reader, field, n_rows, column, |value| {
            Ok(if value.is_nan() { String::new() } else { format!("{value:?}") })
        }),
        ColumnReader::DoubleColumnReader(reader) => {
            append(reader, field, n_rows, column, |value| {
                Ok(if value.is_nan() { String::new() } else { format!("{value:?}") })
            })
        }
        _ => Err(format!("`{}` is not of the type that the schema says", field.name())),
    }
}

fn append<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    field: &Type,
    n_rows: usize,
    column: &mut Vec<String>,
    text: impl Fn(&T::T) -> Parsed<String>,
) -> Parsed<()> {
    let name = field.name();
    loop {
        // A level for each row where a column may have nulls: 1 where there is a value.
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        let of_nullable = field.is_optional().then_some(&mut levels);
        let (n_read, ..) =
            reader.read_records(CHUNK, of_nullable, None, &mut values).map_err(|e| {
                format!("row {} or one behind it: `{name}` cannot be read: {e}", column.len() + 1)
            })?;
        if n_read == 0 {
            return Ok(());
        }
        if column.len() + n_read > n_rows {
            return Err(format!("`{name}` goes on behind row {n_rows}, the last of the file"));
        }
        let mut values = values.iter();
        for row in 0..n_read {
            let value = match levels.get(row) {
                Some(0) => None,
                _ => values.next(),
            };
            let value = value.map(&text).transpose();
            let value = value.map_err(|e| format!("row {}: `{name}` {e}", column.len() + 1))?;
            column.push(value.unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use parquet::data_type::{
        BoolType, ByteArray, ByteArrayType, DoubleType, FloatType, Int32Type, Int64Type,
    };
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;
    use crate::data::random::SplitMix64;
    use crate::data::table::tests::check_error;

    /// Values of one leaf, with levels where the column may have nulls or lists.
    enum Column {
        Strings(Vec<ByteArray>, Option<Vec<i16>>),
        Ints(Vec<i32>, Option<Vec<i16>>),
        Longs(Vec<i64>),
        Doubles(Vec<f64>, Vec<i16>, Vec<i16>),
        Plain(Vec<f64>),
        Floats(Vec<f32>),
        Bools(Vec<bool>, Vec<i16>),
    }

    fn strings(texts: &[&str]) -> Column {
        Column::Strings(texts.iter().map(|&text| text.into()).collect(), None)
    }

    /// A file of row groups, each with its columns' leaves.
    fn file(schema: &str, compression: Compression, groups: &[Vec<Column>]) -> Vec<u8> {
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = WriterProperties::builder().set_compression(compression).build();
        let mut bytes = Vec::new();
        let mut writer =
            SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
        for columns in groups {
            let mut group = writer.next_row_group().unwrap();
            for column in columns {
                let mut leaf = group.next_column().unwrap().unwrap();
                match column {
                    Column::Strings(values, levels) => {
                        leaf.typed::<ByteArrayType>().write_batch(values, levels.as_deref(), None)
                    }
                    Column::Ints(values, levels) => {
                        leaf.typed::<Int32Type>().write_batch(values, levels.as_deref(), None)
                    }
                    Column::Longs(values) => {
                        leaf.typed::<Int64Type>().write_batch(values, None, None)
                    }
                    Column::Plain(values) => {
                        leaf.typed::<DoubleType>().write_batch(values, None, None)
                    }
                    Column::Floats(values) => {
                        leaf.typed::<FloatType>().write_batch(values, None, None)
                    }
                    Column::Bools(values, levels) => {
                        leaf.typed::<BoolType>().write_batch(values, Some(levels), None)
                    }
                    Column::Doubles(values, levels, lists) => {
                        leaf.typed::<DoubleType>().write_batch(values, Some(levels), Some(lists))
                    }
                }
                .unwrap();
                leaf.close().unwrap();
            }
            group.close().unwrap();
        }
        writer.close().unwrap();
        bytes
    }

    fn read_bytes(bytes: &[u8]) -> Table {
        crate::data::table::tests::read("a.parquet", bytes).unwrap()
    }

    const SCHEMA: &str = "message rows {
        required binary text (UTF8);
        optional group vector (LIST) { repeated group list { required double element; } }
        optional int32 label;
        required int64 id (INTEGER(64, false));
        optional binary topic (STRING);
    }";

    /// Two row groups of two rows.
    fn groups() -> Vec<Vec<Column>> {
        vec![
            vec![
                strings(&["a, \"b\"\nc", "größe"]),
                // [1, 2] and null.
                Column::Doubles(vec![1.0, 2.0], vec![2, 2, 0], vec![0, 1, 0]),
                Column::Ints(vec![-3], Some(vec![0, 1])),
                Column::Longs(vec![-1, 7]),
                Column::Strings(vec!["x".into(), "y".into()], Some(vec![1, 1])),
            ],
            vec![
                strings(&["", "d"]),
                Column::Doubles(vec![], vec![0, 0], vec![0, 0]),
                Column::Ints(vec![4, 5], Some(vec![1, 1])),
                Column::Longs(vec![0, 1]),
                Column::Strings(vec![], Some(vec![0, 0])),
            ],
        ]
    }

    #[test]
    fn strings_integers_and_nulls_are_values() {
        for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY] {
            let table = read_bytes(&file(SCHEMA, compression, &groups()));
            assert_eq!(table.columns(), ["text", "vector", "label", "id", "topic"]);
            let rows: Vec<Vec<&str>> = (0..table.n_rows())
                .map(|row| [0, 2, 3, 4].map(|column| table.value(row, column).unwrap()).into())
                .collect();
            let expected = [
                ["a, \"b\"\nc", "", "18446744073709551615", "x"],
                ["größe", "-3", "7", "y"],
                ["", "4", "0", ""],
                ["d", "5", "1", ""],
            ];
            assert_eq!(rows, expected);
            assert_eq!((table.line(0), table.line(3)), (1, 4));
            let message = table.value(2, 1).unwrap_err().to_string();
            assert!(message.contains("a.parquet: row 3: `vector` is a list"), "{message}");
        }
    }

    #[test]
    fn numbers_and_truth_values_are_as_json_has_them() {
        let schema = "message rows { required double x; required float y; optional boolean z; }";
        let columns = vec![
            Column::Plain(vec![1.0, f64::NAN, 0.1]),
            Column::Floats(vec![-100.0, 0.1, f32::NAN]),
            Column::Bools(vec![true, false], vec![1, 0, 1]),
        ];
        let table = read_bytes(&file(schema, Compression::SNAPPY, &[columns]));
        let rows: Vec<Vec<&str>> = (0..3)
            .map(|row| (0..3).map(|column| table.value(row, column).unwrap()).collect())
            .collect();
        assert_eq!(rows, [["1.0", "-100.0", "true"], ["", "0.1", ""], ["0.1", "", "false"]]);
    }

    /// What one table is in each format, as the usual programs write it: the same labels for the same rows.
    #[test]
    fn one_table_gives_the_same_labels_in_every_format() {
        use crate::data::{Dataset, TaskSource};
        let schema = "message rows { required binary text (UTF8); required double whole; optional boolean truth; \
                      required double score; optional binary word (UTF8); }";
        let columns = || {
            vec![
                strings(&["a", "b", "c", "d"]),
                Column::Plain(vec![1.0, f64::NAN, 0.0, -100.0]),
                Column::Bools(vec![true, false, true], vec![1, 1, 1, 0]),
                Column::Plain(vec![0.5, 1.0, 0.5, 1.0]),
                Column::Strings(vec!["1".into(), "x".into(), "NA".into()], Some(vec![1, 1, 1, 0])),
            ]
        };
        let rows = [
            ["a", "1.0", "True", "0.5", "1"],
            ["b", "", "False", "1.0", "x"],
            ["c", "0.0", "True", "0.5", "NA"],
            ["d", "-100.0", "", "1.0", ""],
        ];
        let names = ["text", "whole", "truth", "score", "word"];
        let lines = |separator: &str| {
            let lines = std::iter::once(names).chain(rows).map(|row| row.join(separator) + "\n");
            lines.collect::<String>()
        };
        let objects = [
            r#"{"text":"a","whole":1.0,"truth":true,"score":0.5,"word":"1"}"#,
            r#"{"text":"b","whole":null,"truth":false,"score":1.0,"word":"x"}"#,
            r#"{"text":"c","whole":0,"truth":true,"score":0.5,"word":"NA"}"#,
            r#"{"text":"d","whole":-100,"truth":null,"score":1.0,"word":null}"#,
        ];
        let folder = tempfile::tempdir().unwrap();
        let contents = [
            ("a.csv", lines(",").into_bytes()),
            ("b.csv", lines(";").into_bytes()),
            ("a.tsv", lines("\t").into_bytes()),
            ("a.jsonl", objects.join("\n").into_bytes()),
            ("a.json", format!("[{}]", objects.join(",")).into_bytes()),
            ("a.parquet", file(schema, Compression::SNAPPY, &[columns()])),
        ];
        for (name, content) in contents {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            let task = |column: &str| {
                TaskSource::parse(&format!("{column}={}:text:{column}", path.display())).unwrap()
            };
            let tasks: Vec<TaskSource> = names[1..].iter().map(|column| task(column)).collect();
            let data = Dataset::load(&tasks, &[], 0.0, 1, None).unwrap();
            let labels: Vec<Vec<&str>> = data
                .tasks
                .iter()
                .map(|task| task.labels.iter().map(String::as_str).collect())
                .collect();
            let expected =
                [vec!["0", "1"], vec!["false", "true"], vec!["0.5", "1.0"], vec!["1", "NA", "x"]];
            assert_eq!(labels, expected, "{name}");
            let classes: Vec<Vec<i32>> = (data.train.iter())
                .map(|example| (0..4).map(|task| example.label(task)).collect())
                .collect();
            let none = crate::batch::ABSENT_LABEL;
            let expected = [[1, 1, 0, 0], [none, 0, 1, 2], [0, 1, 0, 1], [none, none, 1, none]];
            assert_eq!(classes, expected, "{name}");
        }
    }

    /// More rows than are decoded at a time, with nulls where chunks meet.
    #[test]
    fn long_columns() {
        let n = 3 * CHUNK + 17;
        let is_null = |row: usize| row.is_multiple_of(3) || row.is_multiple_of(CHUNK);
        let levels = (0..n).map(|row| i16::from(!is_null(row))).collect();
        let values = (0..n).filter(|&row| !is_null(row)).map(|row| row as i32).collect();
        let columns = vec![Column::Ints(values, Some(levels))];
        let schema = "message rows { optional int32 label; }";
        let table = read_bytes(&file(schema, Compression::SNAPPY, &[columns]));
        assert_eq!(table.n_rows(), n);
        for row in 0..n {
            let expected = if is_null(row) { String::new() } else { row.to_string() };
            assert_eq!(table.value(row, 0).unwrap(), expected);
        }
    }

    #[test]
    fn other_types_are_named() {
        let types = [
            ("binary x", "bytes that are not marked as a string"),
            ("binary x (BSON)", "bytes"),
            ("fixed_len_byte_array (16) x", "bytes of a fixed number"),
            ("int96 x", "a time"),
            ("int32 x (DATE)", "a date or a time"),
            ("int64 x (TIMESTAMP_MILLIS)", "a date or a time"),
            ("int64 x (TIMESTAMP(NANOS, true))", "a date or a time"),
            ("int32 x (DECIMAL(9, 2))", "a decimal number"),
            ("binary x (DECIMAL(9, 2))", "a decimal number"),
            ("group x { required int32 y; }", "an object"),
        ];
        for (text, kind) in types {
            let end = if text.ends_with('}') { "" } else { ";" };
            let schema =
                parse_message_type(&format!("message m {{ required {text}{end} }}")).unwrap();
            let found = not_text(&schema.get_fields()[0]);
            assert!(found.is_some_and(|found| found.starts_with(kind)), "{text}: {found:?}");
        }
        for text in [
            "binary x (UTF8)",
            "binary x (ENUM)",
            "binary x (JSON)",
            "int32 x (INT_8)",
            "int64 x",
            "boolean x",
            "double x",
            "float x",
        ] {
            let schema = parse_message_type(&format!("message m {{ optional {text}; }}")).unwrap();
            assert_eq!(not_text(&schema.get_fields()[0]), None, "{text}");
        }
        let schema = parse_message_type("message m { repeated binary x (UTF8); }").unwrap();
        assert_eq!(not_text(&schema.get_fields()[0]), Some("a list"));
    }

    #[test]
    fn faults_are_named() {
        check_error("a.parquet", b"", &["not a whole Parquet file"]);
        check_error("a.parquet", b"text,label\na,x\n", &["not a whole Parquet file"]);
        let schema = "message rows { required binary text (UTF8); }";
        let whole = file(schema, Compression::SNAPPY, &[vec![strings(&["a", "b"])]]);
        check_error("a.parquet", &whole[..whole.len() - 9], &["not a whole Parquet file"]);
        let latin: Vec<ByteArray> = vec!["a".into(), b"caf\xe9".to_vec().into()];
        let groups = [vec![strings(&["x"])], vec![Column::Strings(latin, None)]];
        let bytes = file(schema, Compression::UNCOMPRESSED, &groups);
        check_error("a.parquet", &bytes, &["row 3", "`text`", "not UTF-8 from byte 4"]);
        let schema = "message rows { required int64 x (TIMESTAMP_MILLIS); }";
        let bytes = file(schema, Compression::SNAPPY, &[vec![Column::Longs(vec![1])]]);
        check_error("a.parquet", &bytes, &["no column holds strings, numbers or", "`x`"]);
    }

    #[test]
    fn columns_are_named_once() {
        let schema = "message rows { required int64 x; required int64 x; }";
        let columns = vec![Column::Longs(vec![1]), Column::Longs(vec![2])];
        let bytes = file(schema, Compression::SNAPPY, &[columns]);
        check_error("a.parquet", &bytes, &["a.parquet: the header names column `x` twice"]);
    }

    /// What a damaged file is read as is not known; that there is no panic, and one line that names the file, is.
    #[test]
    fn damaged_files_are_read_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let (mut n_read, mut n_refused, mut n_caught) = (0, 0, 0);
        for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY] {
            let whole = file(SCHEMA, compression, &groups());
            std::fs::write(&path, &whole).unwrap();
            let damaged = File::options().write(true).open(&path).unwrap();
            let mut random = SplitMix64::new(17);
            for (at, byte) in whole.iter().enumerate() {
                // A bit at random, and all of them.
                for flipped in [1 << random.below(8), 0xff] {
                    damaged.write_all_at(&[byte ^ flipped], at as u64).unwrap();
                    match Table::read(&path) {
                        Ok(_) => n_read += 1,
                        Err(error) => {
                            let message = error.to_string();
                            let names = matches!(error, Error::Content { .. });
                            assert!(names && message.contains("a.parquet"), "{at}: {message}");
                            assert!(!message.contains('\n'), "{at}: {message}");
                            n_refused += 1;
                            n_caught += usize::from(message.contains("cannot be decoded"));
                        }
                    }
                }
                damaged.write_all_at(&[*byte], at as u64).unwrap();
            }
            assert!(Table::read(&path).is_ok(), "each flip alone");
        }
        assert!(n_read > 100 && n_refused > 100, "{n_read} {n_refused}");
        // Without these nothing shows that a panic is caught.
        assert!(n_caught > 0);
    }

    /// The writer here has no other codec, so the one that stands in the footer is overwritten.
    #[test]
    fn other_codecs_are_named() {
        let schema = "message rows { required int32 label; }";
        let columns = || vec![Column::Ints(vec![1, 2, 3], None)];
        let plain = file(schema, Compression::UNCOMPRESSED, &[columns()]);
        let snappy = file(schema, Compression::SNAPPY, &[columns()]);
        // The field that names the codec: 4, of type i32, behind the list with the column's name.
        let at = |bytes: &[u8], codec: u8| {
            let tail = [b"label".as_slice(), &[0x15, codec]].concat();
            bytes.windows(tail.len()).position(|window| window == tail).map(|at| at + 6)
        };
        assert!(at(&plain, 0).is_some() && at(&plain, 2).is_none());
        let place = at(&snappy, 2).unwrap();
        // Zigzag numbers: 4 is GZIP (2), 12 is ZSTD (6).
        for (number, name) in [(4, "GZIP"), (12, "ZSTD")] {
            let mut bytes = snappy.clone();
            bytes[place] = number;
            check_error("a.parquet", &bytes, &["`label`", name, "Snappy"]);
        }
    }
}
