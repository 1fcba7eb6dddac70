//! Nothing is read twice: weights are mapped and come in page by page, a file of texts is read once however
//! many tasks it serves. Linux counts what a process reads; this test is alone in its process.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::Path;

use frostline::data::{Dataset, TaskSource};
use frostline::model::{ModelFolder, Source};

/// What the count itself and questions about the machine's memory read: a few lines of /proc.
const SLACK: u64 = 16 << 10;

/// Bytes that this process has asked the system to read so far; pages of a map are not among them.
fn n_read() -> u64 {
    let counts = fs::read_to_string("/proc/self/io").unwrap();
    let line = counts.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
    line.parse().unwrap()
}

/// What `work` gives, and how much was read in it.
fn reading<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = n_read();
    let result = work();
    (result, n_read() - before)
}

#[test]
fn every_file_is_read_once_at_most() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pytorch/bert-mean");
    let folder = tempfile::tempdir().unwrap();
    let mut n_settings = 0;
    for name in ["config.json", "model.safetensors"] {
        let n_bytes = fs::copy(golden.join(name), folder.path().join(name)).unwrap();
        if name == "model.safetensors" {
            assert!(n_bytes > 2 * SLACK, "{name} is too small to be seen: {n_bytes}");
        } else {
            n_settings += n_bytes;
        }
    }
    let (n_values, n_bytes) = reading(|| {
        let source = Source::Folder(ModelFolder::open(folder.path()).unwrap());
        let network = source.network(&[("topic".into(), 5)], None).unwrap();
        let values = source.initial_values(&network, 1).unwrap();
        values.iter().map(Vec::len).sum::<usize>()
    });
    assert!(n_values as u64 * 4 > SLACK, "{n_values} values");
    assert!(n_bytes <= n_settings + SLACK, "{n_bytes} bytes read, its settings are {n_settings}");

    let path = folder.path().join("reviews.csv");
    let rows = (0..4000).map(|row| format!("text number {row},t{},m{}\n", row % 5, row % 3));
    fs::write(&path, "text,topic,mood\n".to_owned() + &rows.collect::<String>()).unwrap();
    let size = fs::metadata(&path).unwrap().len();
    assert!(size > 4 * SLACK);
    let tasks = ["topic", "mood"]
        .map(|task| TaskSource::parse(&format!("{task}={}", path.display())).unwrap());
    let (dataset, n_bytes) = reading(|| Dataset::load(&tasks, &[], 0.1, 1, None).unwrap());
    assert_eq!(dataset.train.len() + dataset.eval.len(), 4000);
    assert!(n_bytes >= size, "{n_bytes} bytes read of {size}: the count does not work");
    assert!(n_bytes <= size + SLACK, "{n_bytes} bytes read of {size}");
}
