//! Pairs of texts: from a file's columns to two segments of one sequence.

use std::path::Path;

use frostline::data::{Dataset, Example, TaskSource, Tokenizer};

/// Two texts become one sequence with two segments, and the longer one is cut.
#[test]
fn pairs_of_texts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pytorch/bert-mean");
    let tokenizer = Tokenizer::open(&folder).unwrap();
    let (a, b) = ("the phone is good", "this new camera");
    let encode = |texts: &[(&str, Option<&str>)], length| {
        tokenizer.encode_pairs(texts, length, |_| ()).unwrap()
    };
    let singles = encode(&[(a, None), (b, None)], 20);
    let (first, second) = (singles.sequence(0).0, singles.sequence(1).0);
    let pairs = encode(&[(a, Some(b))], 20);
    let (ids, types) = pairs.sequence(0);
    // Without the second one's [CLS].
    assert_eq!(ids, [first, &second[1..]].concat());
    let segments = [vec![0; first.len()], vec![1; second.len() - 1]].concat();
    assert_eq!(types, segments);
    let cut = encode(&[(a, Some(b))], ids.len() - 1);
    assert_eq!((cut.sequence(0).0.len(), cut.n_truncated), (ids.len() - 1, 1));
    assert_eq!(
        cut.sequence(0).0[first.len() - 1..],
        ids[first.len()..],
        "the first text is longer"
    );
}

#[test]
fn a_second_column_makes_pairs() {
    let folder = tempfile::tempdir().unwrap();
    let load = |header: &str, columns: &str| {
        let path = folder.path().join("a.tsv");
        std::fs::write(&path, format!("{header}\tlabel\na\tb\tx\nc\t \ty\n")).unwrap();
        let source = TaskSource::parse(&format!("t={}{columns}", path.display())).unwrap();
        let pairs = |examples: Vec<Example>| -> Vec<(String, Option<String>)> {
            examples.into_iter().map(|example| (example.text, example.pair)).collect()
        };
        Dataset::load(&[source], &[], 0.0, 1, None)
            .map(|data| pairs(data.train))
            .map_err(|error| error.to_string())
    };
    let text = |text: &str| text.to_owned();
    let pairs = vec![(text("a"), Some(text("b"))), (text("c"), None)];
    let singles = vec![(text("a"), None), (text("c"), None)];
    assert_eq!(load("text\ttext_pair", ""), Ok(pairs.clone()));
    assert_eq!(load("premise\thypothesis", ":premise+hypothesis"), Ok(pairs));
    // A column that is named alone is alone, whatever stands beside it or in its name.
    assert_eq!(load("text\ttext_pair", ":text"), Ok(singles.clone()));
    assert_eq!(load("a+b\tb", ":a+b"), Ok(singles));
    let message = load("premise\thypothesis", ":premise+other").unwrap_err();
    assert!(message.contains("no column `other`"), "{message}");
}
