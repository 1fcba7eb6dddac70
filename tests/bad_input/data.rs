//! Labelled text for `train` and `bench`, and the tokenizer that it goes through.

use std::fs;

use crate::{GOOD_CSV, Input, check, content};

/// Data files, as `train` and as `bench` read them.
#[test]
fn data_files() {
    fn data(input: &mut Input, name: &str, content: impl AsRef<[u8]>) {
        fs::write(input.path(name), content).unwrap();
        input.argument("area=data.csv", &format!("area={name}"));
    }
    let table = [
        content("row with a field too many", &["ragged.csv", "line 3"], |input| {
            data(input, "ragged.csv", "text,label\na,camera\nb,song,loud\nc,camera\nd,song\n");
        }),
        content("row with a field too few", &["ragged.csv", "line 4"], |input| {
            data(input, "ragged.csv", "text,label\na,camera\nb,song\nc\nd,song\n");
        }),
        content("quote that never ends", &["quote.csv", "line 2|line 3"], |input| {
            data(input, "quote.csv", "text,label\na,camera\n\"b,song\nc,camera\n")
        }),
        content("not UTF-8", &["latin.csv", "UTF-8"], |input| {
            data(input, "latin.csv", b"text,label\ncaf\xe9,camera\nb,song\n")
        }),
        content("no text column", &["words.csv", "text", "words"], |input| {
            data(input, "words.csv", "words,label\na,camera\nb,song\n")
        }),
        content("named column missing", &["data.csv", "mood", "label"], |input| {
            input.argument("area=data.csv", "area=data.csv:text:mood")
        }),
        content("no such file", &["absent.csv"], |input| {
            input.argument("area=data.csv", "area=absent.csv")
        }),
        content("unknown extension", &["data.xlsx", ".csv", ".jsonl"], |input| {
            data(input, "data.xlsx", GOOD_CSV)
        }),
        content("one class", &["same.csv", "area", "camera"], |input| {
            data(input, "same.csv", "text,label\na,camera\nb,camera\nc,camera\n")
        }),
        content("no label at all", &["blank.csv", "area"], |input| {
            data(input, "blank.csv", "text,label\na,\nb,\nc,\n")
        }),
        content("empty file", &["empty.csv", "empty"], |input| data(input, "empty.csv", "")),
        content("header alone", &["header.csv"], |input| data(input, "header.csv", "text,label\n")),
        content("unknown split", &["split.csv", "split", "banana"], |input| {
            let rows = "text,label,split\na,camera,train\nb,song,train\nc,song,banana\n";
            data(input, "split.csv", rows);
        }),
        content("line that is no JSON", &["data.jsonl", "line 2"], |input| {
            let rows = "{\"text\": \"a\", \"label\": \"camera\"}\n{\"text\": \"b\",\n";
            data(input, "data.jsonl", rows);
        }),
        content("no tokenizer", &["tokenizer.json"], |input| {
            fs::remove_file(input.path("model/tokenizer.json")).unwrap()
        }),
        content("tokenizer cut off", &["tokenizer.json"], |input| {
            input.bytes("model/tokenizer.json", |bytes| bytes.truncate(99))
        }),
        content(
            "tokenizer with more words than the model has",
            &["tokenizer.json", "37"],
            |input| {
                let path = input.path("model/tokenizer.json");
                let text = fs::read_to_string(&path).unwrap();
                fs::write(&path, text.replace("\"the\": 4", "\"the\": 40")).unwrap();
            },
        ),
        content(
            "head of the file with other labels",
            &["model.safetensors", "topic", "5", "2"],
            |input| input.argument("area=data.csv", "topic=data.csv"),
        ),
    ];
    check(Input::train, &table);
    check(Input::bench, &table);
}

/// `train` alone writes a folder.
#[test]
fn output_folders() {
    check(
        Input::train,
        &[content("output is a file", &["data.csv"], |input| {
            input.argument("trained", "data.csv")
        })],
    );
}
