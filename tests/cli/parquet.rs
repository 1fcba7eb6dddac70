//! Parquet files as data: the same as the same rows as CSV.

use std::fs;
use std::sync::Arc;

use ::parquet::basic::Compression;
use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;

use frostline::data::Table;

use crate::Workspace;

/// Writes the rows of `reviews.csv` as `reviews.parquet`, in two row groups.
fn write_reviews(workspace: &Workspace) {
    let text = workspace.read("reviews.csv");
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    let fields = rows[0].iter().map(|name| format!("optional binary {name} (STRING);"));
    let schema = format!("message rows {{ {} }}", fields.collect::<String>());
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let file = fs::File::create(workspace.path("reviews.parquet")).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    for rows in rows[1..].chunks(30) {
        let mut group = writer.next_row_group().unwrap();
        let mut at = 0;
        while let Some(mut column) = group.next_column().unwrap() {
            let values: Vec<ByteArray> = rows.iter().map(|row| row[at].into()).collect();
            let levels = vec![1; values.len()];
            let typed = column.typed::<ByteArrayType>();
            typed.write_batch(&values, Some(&levels), None).unwrap();
            column.close().unwrap();
            at += 1;
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn the_same_as_csv() {
    let workspace = Workspace::new();
    write_reviews(&workspace);
    let train = |file: &str, output: &str| {
        let command = format!(
            "train --model model --task topic={file} --task sentiment={file}:text:sentiment --eval topic={file} \
             --eval sentiment={file} --max-steps 5 --learning-rate 1e-2 --device cpu --output {output}"
        );
        workspace.ok(&command);
        fs::read(workspace.path(output).join("model.safetensors")).unwrap()
    };
    assert!(train("reviews.parquet", "of_parquet") == train("reviews.csv", "of_csv"));
    let predict = |file: &str| {
        workspace.ok(&format!("predict --model of_csv {file} --device cpu --format csv"))
    };
    let labels = predict("reviews.parquet:text");
    assert_eq!(labels, predict("reviews.csv"));
    assert!(labels.lines().count() > 40, "{labels}");
}

#[test]
fn refusals() {
    let workspace = Workspace::new();
    write_reviews(&workspace);
    let predict = "predict --model model --embeddings e.npy --device cpu";
    workspace.refused(
        &format!("{predict} reviews.parquet:words"),
        1,
        &["reviews.parquet", "`words`", "`text`"],
    );
    workspace.write("none.parquet", "text\na\n");
    workspace.refused(&format!("{predict} none.parquet"), 1, &["none.parquet", "Parquet"]);
    workspace.refused(&format!("{predict} absent.parquet"), 1, &["absent.parquet"]);
}

/// What the crate panics at is one error like others, without the message of a panic.
#[test]
fn damaged_files_are_one_error() {
    let workspace = Workspace::new();
    write_reviews(&workspace);
    let path = workspace.path("reviews.parquet");
    let whole = fs::read(&path).unwrap();
    // Somewhere in the footer, where it says which columns have dictionaries.
    let panics = |at: &usize| {
        let mut bytes = whole.clone();
        bytes[*at] ^= 0xff;
        fs::write(&path, bytes).unwrap();
        Table::read(&path).is_err_and(|error| error.to_string().contains("cannot be decoded"))
    };
    (0..whole.len()).rev().find(panics).expect("nothing that the crate panics at");
    let command = "predict --model model reviews.parquet --embeddings e.npy --device cpu";
    let output = workspace.command().args(command.split_whitespace()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(
        stderr.starts_with("error: ") && stderr.contains("reviews.parquet: is damaged"),
        "{stderr}"
    );
}
