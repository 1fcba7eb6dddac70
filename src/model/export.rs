//! A trained model for other libraries: transformers' `AutoModelForSequenceClassification` where one of its classes
//! computes what our head does, else a folder that sentence-transformers loads.
//!
//! | family | pooling | equal in transformers |
//! |---|---|---|
//! | BERT | `pooler` | `BertForSequenceClassification`: pooler, then `classifier` |
//! | RoBERTa, XLM-R | `pooler` | `RobertaForSequenceClassification`: `classifier.dense` is the pooler, then `classifier.out_proj` |
//! | all | `mean`, `cls` | none: a head on those vectors alone has no class of its own |
//! | DistilBERT | `cls` | none: its class has a further layer with a ReLU |

use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::Family;
use super::folder::{self, ModelFolder};
use super::params::{Group, Network, Pooling};
use super::weights::{self, NamedTensor, WeightFile};
use crate::{Error, Result, files};

/// What an exported folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exported {
    /// For `AutoModelForSequenceClassification`.
    SequenceClassification,
    /// For `SentenceTransformer`, whose embeddings are the head's logits.
    HeadOfSentenceTransformer,
    /// For `SentenceTransformer`, whose embeddings are the pooled vectors.
    SentenceTransformer,
}

/// Writes the model of `model` with the head of `task` into `dir`, which exists; without a task its encoder alone.
///
/// # Errors
/// A task that the model does not have, an encoder whose pooling no other library has, files that cannot be read or
/// written.
pub fn export(dir: &Path, model: &ModelFolder, task: Option<&str>) -> Result<Exported> {
    let tasks = &model.settings.tasks;
    let Some(task) = task else {
        return sentence_transformer(dir, model, None);
    };
    let Some(settings) = tasks.get(task) else {
        let known: Vec<&str> = tasks.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(Error::content(
            &model.dir,
            format!("has no head `{task}`; there are: {known}"),
        ));
    };
    match (model.config.family, model.pooling) {
        (Family::Bert | Family::Roberta, Pooling::Pooler) => {
            classifier(dir, model, task, &settings.labels)
        }
        _ => sentence_transformer(dir, model, Some((task, &settings.labels))),
    }
}

/// The network with one head, or with one that is left out again.
fn network(model: &ModelFolder, head: Option<(&str, &[String])>) -> Result<Network> {
    let (task, n_labels) = head.map_or(("none", 2), |(task, labels)| (task, labels.len()));
    let tasks = [(task.to_owned(), n_labels)];
    Network::new(&model.config, Some(model.weights()?), &tasks, model.pooling)
}

/// A tensor of the file under another name.
fn renamed(file: &WeightFile, from: &str, to: String, shape: &[usize]) -> Result<NamedTensor> {
    let bytes = file.bytes(from)?.to_vec();
    Ok(NamedTensor { name: to, dtype: file.dtype(from)?, shape: shape.to_vec(), bytes })
}

fn classifier(dir: &Path, model: &ModelFolder, task: &str, labels: &[String]) -> Result<Exported> {
    let network = network(model, Some((task, labels)))?;
    // The same table under the names that transformers gives it.
    let tasks = [(task.to_owned(), labels.len())];
    let renames = Network::new(&model.config, None, &tasks, model.pooling)?;
    let file = model.weights()?;
    let is_bert = model.config.family == Family::Bert;
    let mut tensors = Vec::new();
    for (param, known) in network.params.iter().zip(&renames.params) {
        let part = known.name.rsplit('.').next().unwrap_or_default();
        let name = match known.group {
            Group::Head(_) if is_bert => format!("classifier.{part}"),
            Group::Head(_) => format!("classifier.out_proj.{part}"),
            Group::Pooler if !is_bert => format!("classifier.dense.{part}"),
            _ => known.name.clone(),
        };
        tensors.push(renamed(file, &param.name, name, &param.shape)?);
    }
    weights::write(&dir.join(weights::SINGLE_FILE), &tensors)?;
    folder::copy_companions(&model.dir, dir)?;
    write_config(dir, model, labels)?;
    Ok(Exported::SequenceClassification)
}

/// The model's config.json with the class and the labels.
fn write_config(dir: &Path, model: &ModelFolder, labels: &[String]) -> Result<()> {
    let path = model.dir.join("config.json");
    let Some(Value::Object(mut config)) = folder::read_json(&path)? else {
        return Err(Error::content(path, "is not a JSON object"));
    };
    let class = match config.get("model_type").and_then(Value::as_str) {
        Some("xlm-roberta") => "XLMRobertaForSequenceClassification",
        Some("roberta") => "RobertaForSequenceClassification",
        _ => "BertForSequenceClassification",
    };
    let numbered = || labels.iter().enumerate();
    let id2label: Map<String, Value> =
        numbered().map(|(at, label)| (at.to_string(), json!(label))).collect();
    let label2id: Map<String, Value> =
        numbered().map(|(at, label)| (label.clone(), json!(at))).collect();
    for (key, value) in [
        ("architectures", json!([class])),
        ("id2label", json!(id2label)),
        ("label2id", json!(label2id)),
        ("problem_type", json!("single_label_classification")),
    ] {
        config.insert(key.to_owned(), value);
    }
    write_json(&dir.join("config.json"), &Value::Object(config))
}

fn sentence_transformer(
    dir: &Path,
    model: &ModelFolder,
    head: Option<(&str, &[String])>,
) -> Result<Exported> {
    let mode = match model.pooling {
        Pooling::Mean => "pooling_mode_mean_tokens",
        Pooling::Cls => "pooling_mode_cls_token",
        Pooling::Pooler => {
            let problem = "pools by the tanh pooler, for which sentence-transformers has no word";
            let cure = match head {
                Some(_) => ", and its family has no class in transformers that would do",
                None => ": export it with a --head",
            };
            return Err(Error::content(&model.dir, format!("{problem}{cure}")));
        }
    };
    let network = network(model, head)?;
    let file = model.weights()?;
    let is_head = |group: &Group| matches!(group, Group::Head(_));
    let encoder: Vec<NamedTensor> = (network.params.iter())
        .filter(|param| !is_head(&param.group))
        .map(|param| renamed(file, &param.name, param.name.clone(), &param.shape))
        .collect::<Result<_>>()?;
    weights::write(&dir.join(weights::SINGLE_FILE), &encoder)?;
    folder::copy_companions(&model.dir, dir)?;
    let width = model.config.hidden_size;
    let module = |at: usize, name: &str, path: &str| {
        json!({ "idx": at, "name": at.to_string(), "path": path,
                "type": format!("sentence_transformers.models.{name}") })
    };
    let mut modules = vec![module(0, "Transformer", ""), module(1, "Pooling", "1_Pooling")];
    let mut pooling = json!({ "word_embedding_dimension": width });
    for name in [
        "pooling_mode_cls_token",
        "pooling_mode_mean_tokens",
        "pooling_mode_max_tokens",
        "pooling_mode_mean_sqrt_len_tokens",
    ] {
        pooling[name] = json!(name == mode);
    }
    write_json(&dir.join(folder::POOLING), &pooling)?;
    if let Some((_, labels)) = head {
        modules.push(module(2, "Dense", "2_Dense"));
        let arguments = json!({
            "in_features": width,
            "out_features": labels.len(),
            "bias": true,
            "activation_function": "torch.nn.modules.linear.Identity",
        });
        write_json(&dir.join("2_Dense/config.json"), &arguments)?;
        write_json(&dir.join("2_Dense/labels.json"), &json!(labels))?;
        let tensors: Vec<NamedTensor> = (network.params.iter())
            .filter(|param| is_head(&param.group))
            .map(|param| {
                let part = param.name.rsplit('.').next().unwrap_or_default();
                renamed(file, &param.name, format!("linear.{part}"), &param.shape)
            })
            .collect::<Result<_>>()?;
        weights::write(&dir.join("2_Dense/model.safetensors"), &tensors)?;
    }
    write_json(&dir.join(folder::MODULES), &json!(modules))?;
    Ok(match head {
        Some(_) => Exported::HeadOfSentenceTransformer,
        None => Exported::SentenceTransformer,
    })
}

/// Writes a document, and makes its folder.
fn write_json(path: &Path, value: &Value) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
    }
    files::write_atomically(path, format!("{value:#}\n").as_bytes())
}
