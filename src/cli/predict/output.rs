//! What `predict` prints and writes.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use npyz::WriterBuilder;
use serde_json::{Value, json};

use crate::files::write_atomically;
use crate::model::weights::{NamedTensor, write};
use crate::predict::Prediction;
use crate::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people: texts are shortened
    Table,
    /// A column for each task's label and probability
    Csv,
    /// An object a text, with the probabilities of all labels
    Jsonl,
}

/// Rows on stdout, as they come.
pub struct Output<'a> {
    format: Format,
    /// Tasks with their labels.
    tasks: &'a [(String, Vec<String>)],
    has_header: bool,
}

/// Characters of a text that a table shows.
const SHOWN: usize = 60;

impl<'a> Output<'a> {
    pub fn new(format: Format, tasks: &'a [(String, Vec<String>)]) -> Self {
        Self { format, tasks, has_header: false }
    }

    /// Prints a row a text; false once nobody reads them.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn rows(&mut self, texts: &[&str], predictions: &[Prediction]) -> Result<bool> {
        let mut bytes = Vec::new();
        match self.format {
            Format::Table => self.table(&mut bytes, texts, predictions),
            Format::Csv => self.csv(&mut bytes, texts, predictions)?,
            Format::Jsonl => {
                for (text, prediction) in texts.iter().zip(predictions) {
                    bytes.extend(self.object(text, prediction).to_string().into_bytes());
                    bytes.push(b'\n');
                }
            }
        }
        self.has_header = true;
        let mut stdout = std::io::stdout();
        match stdout.write_all(&bytes).and_then(|()| stdout.flush()) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
            Err(e) => Err(Error::io("stdout", e)),
            Ok(()) => Ok(true),
        }
    }

    /// The most probable label of each task, with its probability.
    fn best<'b>(&'b self, prediction: &'b Prediction) -> impl Iterator<Item = (&'b str, f64)> {
        self.tasks.iter().zip(&prediction.probabilities).map(|((_, labels), probabilities)| {
            let best = |best: usize, at: usize| {
                if probabilities[at] > probabilities[best] { at } else { best }
            };
            let at = (0..probabilities.len()).fold(0, best);
            (labels[at].as_str(), probabilities[at])
        })
    }

    fn table(&self, bytes: &mut Vec<u8>, texts: &[&str], predictions: &[Prediction]) {
        let widths: Vec<usize> = (self.tasks.iter())
            .map(|(task, labels)| {
                let longest = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
                (longest + 7).max(task.chars().count())
            })
            .collect();
        let line = |text: &str, cells: &[String]| {
            let mut line = format!("{text:<SHOWN$}");
            for (cell, width) in cells.iter().zip(&widths) {
                line += &format!("  {cell:<width$}");
            }
            format!("{}\n", line.trim_end()).into_bytes()
        };
        if !self.has_header {
            let names: Vec<String> = self.tasks.iter().map(|(task, _)| task.clone()).collect();
            bytes.extend(line("text", &names));
        }
        for (text, prediction) in texts.iter().zip(predictions) {
            let cells: Vec<String> =
                self.best(prediction).map(|(label, p)| format!("{label} ({p:.2})")).collect();
            bytes.extend(line(&shortened(text), &cells));
        }
    }

    fn csv(&self, bytes: &mut Vec<u8>, texts: &[&str], predictions: &[Prediction]) -> Result<()> {
        let failed = |e: csv::Error| Error::Run(format!("writing CSV: {e}"));
        let mut writer = csv::Writer::from_writer(bytes);
        if !self.has_header {
            let names = self.tasks.iter();
            let names = names.flat_map(|(task, _)| [task.clone(), format!("{task}_probability")]);
            let header = std::iter::once("text".to_owned()).chain(names);
            writer.write_record(header).map_err(failed)?;
        }
        for (text, prediction) in texts.iter().zip(predictions) {
            let best = self.best(prediction);
            let cells = best.flat_map(|(label, p)| [label.to_owned(), format!("{p:.6}")]);
            let record = std::iter::once((*text).to_owned()).chain(cells);
            writer.write_record(record).map_err(failed)?;
        }
        writer.flush().map_err(|e| Error::Run(format!("writing CSV: {e}")))
    }

    /// `{"text": ..., "<task>": {"label", "probability", "probabilities": {label: p}}}`.
    fn object(&self, text: &str, prediction: &Prediction) -> Value {
        let mut object = serde_json::Map::new();
        object.insert("text".to_owned(), json!(text));
        let all = self.tasks.iter().zip(&prediction.probabilities).zip(self.best(prediction));
        for (((task, labels), probabilities), (label, probability)) in all {
            let by_label: BTreeMap<&String, &f64> = labels.iter().zip(probabilities).collect();
            let value =
                json!({"label": label, "probability": probability, "probabilities": by_label});
            object.insert(task.clone(), value);
        }
        Value::Object(object)
    }
}

/// A text on one line, cut where it is long.
fn shortened(text: &str) -> String {
    let flat: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if flat.chars().count() <= SHOWN {
        return flat;
    }
    let kept: String = flat.chars().take(SHOWN - 3).collect();
    format!("{kept}...")
}

/// The pooled vectors of all texts, on their way into a file.
pub struct Embeddings {
    path: PathBuf,
    is_npy: bool,
    values: Vec<f32>,
    n_texts: usize,
}

impl Embeddings {
    /// For a file whose extension says what it will be.
    ///
    /// # Errors
    /// Another extension than .safetensors or .npy.
    pub fn new(path: &Path) -> Result<Self> {
        let extension = path.extension().and_then(|extension| extension.to_str());
        let is_npy = match extension {
            Some("npy") => true,
            Some("safetensors") => false,
            _ => {
                return Err(Error::usage(format!(
                    "--embeddings {}: expected a .safetensors or .npy file",
                    path.display()
                )));
            }
        };
        Ok(Self { path: path.to_owned(), is_npy, values: Vec::new(), n_texts: 0 })
    }

    pub fn add(&mut self, predictions: &[Prediction]) {
        self.n_texts += predictions.len();
        for prediction in predictions {
            self.values.extend(&prediction.pooled);
        }
    }

    /// Writes `[texts, width]`; in a safetensors file it is called `embeddings`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(self) -> Result<()> {
        let width = self.values.len().checked_div(self.n_texts).unwrap_or(0);
        let shape = [self.n_texts, width];
        if !self.is_npy {
            return write(
                &self.path,
                &[NamedTensor::f32("embeddings", shape.to_vec(), &self.values)],
            );
        }
        let mut bytes = Vec::new();
        let written = npyz::WriteOptions::<f32>::new()
            .default_dtype()
            .shape(&shape.map(|n| n as u64))
            .writer(&mut bytes)
            .begin_nd()
            .and_then(|mut writer| {
                writer.extend(self.values.iter().copied())?;
                writer.finish()
            });
        written.map_err(|e| Error::io(&self.path, e))?;
        write_atomically(&self.path, &bytes)
    }
}
