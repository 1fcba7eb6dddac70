//! A model folder as transformers, sentence-transformers or frostline wrote it, and the folder that
//! a training run writes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::Config;
use super::params::{Group, Init, Network, ParamId, Pooling, head_tensor};
use super::weights::{self, INDEX_FILE, NamedTensor, SINGLE_FILE, WeightFile};
use crate::tensor::{self, DType};
use crate::{Error, Result, files, philox};

pub(super) const SETTINGS: &str = "frostline.json";

/// Without it there is no model.
pub const CONFIG: &str = "config.json";

/// All names that files have which commands write into an output folder, by their paths from it.
pub const WRITTEN_NAMES: &[&str] = &[
    CONFIG,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "sentence_bert_config.json",
    SINGLE_FILE,
    SETTINGS,
    MODULES,
    POOLING,
    "2_Dense/config.json",
    "2_Dense/labels.json",
    "2_Dense/model.safetensors",
    "train_log.jsonl",
    "trainer_state.json",
    "drift.json",
];

/// `frostline.json`: what stands beside a model that this program trained.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    #[serde(default)]
    pub pooling: Option<Pooling>,
    /// Labels of each task, in the order of the head's rows.
    #[serde(default)]
    pub tasks: BTreeMap<String, TaskSettings>,
    /// The freeze spec that the model was trained with.
    #[serde(default)]
    pub freeze: Option<String>,
}

/// One task in [`Settings`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSettings {
    pub labels: Vec<String>,
}

/// A folder with `config.json`, and perhaps weights.
pub struct ModelFolder {
    pub dir: PathBuf,
    pub config: Config,
    /// None where only config.json is there: enough for a plan.
    pub weights: Option<WeightFile>,
    pub settings: Settings,
    /// From frostline.json, else sentence-transformers' 1_Pooling, else the mean.
    pub pooling: Pooling,
}

impl ModelFolder {
    /// Opens `dir`; weights are mapped, not read.
    ///
    /// # Errors
    /// A folder that is not there, or a file in it that is wrong; missing weights are no error here.
    pub fn open(dir: &Path) -> Result<Self> {
        if dir.is_file() {
            return Err(Error::content(dir, "is a file: name the folder that it lies in"));
        }
        if !dir.is_dir() {
            let problem = "is not a model folder: no such directory";
            return Err(Error::content(dir, problem));
        }
        let config = Config::read(&dir.join("config.json"))?;
        let has_weights = [SINGLE_FILE, INDEX_FILE].iter().any(|name| dir.join(name).exists());
        let weights = has_weights.then(|| WeightFile::open(dir)).transpose()?;
        let settings: Settings = match read_json(&dir.join(SETTINGS))? {
            Some(value) => serde_json::from_value(value)
                .map_err(|e| Error::content(dir.join(SETTINGS), e.to_string()))?,
            None => Settings::default(),
        };
        let pooling = match settings.pooling {
            Some(pooling) => pooling,
            None => sentence_transformers_pooling(dir)?.unwrap_or(Pooling::Mean),
        };
        Ok(Self { dir: dir.to_owned(), config, weights, settings, pooling })
    }

    /// The weights, where a command cannot do without.
    ///
    /// # Errors
    /// A folder with config.json alone.
    pub fn weights(&self) -> Result<&WeightFile> {
        match &self.weights {
            Some(weights) => Ok(weights),
            None => Err(super::weights::no_weights(&self.dir)),
        }
    }
}

/// Where a network comes from: a folder, or a published size with random values.
pub enum Source {
    Folder(ModelFolder),
    Published(Config),
}

impl Source {
    /// The encoder's sizes.
    pub fn config(&self) -> &Config {
        match self {
            Source::Folder(folder) => &folder.config,
            Source::Published(config) => config,
        }
    }

    /// The pooling that applies when none is asked for.
    pub fn pooling(&self) -> Pooling {
        match self {
            Source::Folder(folder) => folder.pooling,
            Source::Published(_) => Pooling::Mean,
        }
    }

    /// The folder's weight file, where there is one.
    pub fn weights(&self) -> Option<&WeightFile> {
        match self {
            Source::Folder(folder) => folder.weights.as_ref(),
            Source::Published(_) => None,
        }
    }

    /// The tasks that the folder's frostline.json names, with their labels.
    pub fn known_labels(&self) -> Vec<(String, Vec<String>)> {
        match self {
            Source::Folder(folder) => (folder.settings.tasks.iter())
                .map(|(task, settings)| (task.clone(), settings.labels.clone()))
                .collect(),
            Source::Published(_) => Vec::new(),
        }
    }

    /// Lays out the network for `tasks`.
    ///
    /// # Errors
    /// As [`Network::new`].
    pub fn network(&self, tasks: &[(String, usize)], pooling: Option<Pooling>) -> Result<Network> {
        let pooling = pooling.unwrap_or(self.pooling());
        Network::new(self.config(), self.weights(), tasks, pooling)
    }

    /// The values that training starts from, in table order: from the folder's file, and random
    /// from `seed` for a head that the file lacks (for everything, where there is no folder).
    ///
    /// # Errors
    /// A missing or malformed tensor, a head of another number of labels, a folder without weights.
    pub fn initial_values(&self, network: &Network, seed: u64) -> Result<Vec<Vec<f32>>> {
        let weights = match self {
            Source::Folder(folder) => Some(folder.weights()?),
            Source::Published(_) => None,
        };
        let ids: Vec<ParamId> = network.param_ids().collect();
        ids.into_par_iter().map(|id| initial_value(network, id, weights, seed)).collect()
    }
}

fn initial_value(
    network: &Network,
    id: ParamId,
    weights: Option<&WeightFile>,
    seed: u64,
) -> Result<Vec<f32>> {
    let param = network.param(id);
    if let Some(file) = weights {
        if let Group::Head(head) = param.group {
            let head = &network.heads[head];
            let matrix = head_tensor(&head.task, "weight");
            if let Some([rows, _]) = file.shape(&matrix)
                && *rows != head.n_labels
            {
                let problem = format!(
                    "{matrix} has {rows} rows, but task {} has {} labels",
                    head.task, head.n_labels
                );
                return Err(Error::content(file.path_of(&matrix), problem));
            }
            if file.contains(&matrix) {
                return file.read_f32(&param.name, &param.shape);
            }
        } else {
            return file.read_f32(&param.name, &param.shape);
        }
    }
    let n = param.n_elements();
    Ok(match param.init {
        Init::Zero => vec![0.0; n],
        Init::One => vec![1.0; n],
        Init::Normal(std) => philox::normal(seed, id.0 as u32, n, std),
    })
}

/// Everything that [`write_model`] needs beside the values.
pub struct TrainedModel<'a> {
    pub network: Network,
    /// The folder that the run started from, None for random initialisation.
    pub origin: Option<&'a ModelFolder>,
    pub settings: Settings,
    /// The values of trained parameters in f32, None for frozen ones, in table order.
    pub trained: Vec<Option<Vec<f32>>>,
    /// The values that frozen parameters without a file started from, in table order.
    pub initial: &'a [Vec<f32>],
}

impl TrainedModel<'_> {
    /// The type in which a parameter is written: that of the file that it came from.
    ///
    /// # Errors
    /// A type there that is no float.
    fn stored_dtype(&self, id: ParamId) -> Result<DType> {
        let name = &self.network.param(id).name;
        let weights = self.origin.and_then(|folder| folder.weights.as_ref());
        weights.filter(|file| file.contains(name)).map_or(Ok(DType::F32), |file| file.dtype(name))
    }

    /// Whether writing a parameter rounds it.
    ///
    /// # Errors
    /// A type in its file that is no float.
    pub fn rounds(&self, id: ParamId) -> Result<bool> {
        Ok(self.stored_dtype(id)? != DType::F32)
    }
}

/// Writes a model folder's files into `dir`, which exists: frozen tensors with the bytes of the file
/// that they came from, trained ones in that file's type.
///
/// # Errors
/// When a file cannot be read or written.
pub fn write_model(dir: &Path, model: &TrainedModel) -> Result<()> {
    let weights = model.origin.and_then(|folder| folder.weights.as_ref());
    let mut tensors = Vec::new();
    for (id, param) in model.network.param_ids().zip(&model.network.params) {
        let stored = weights.filter(|file| file.contains(&param.name));
        let dtype = model.stored_dtype(id)?;
        let bytes = match (&model.trained[id.0], stored) {
            (Some(values), _) => tensor::from_f32(dtype, values),
            (None, Some(file)) => file.bytes(&param.name)?.to_vec(),
            (None, None) => tensor::from_f32(dtype, &model.initial[id.0]),
        };
        let (name, shape) = (param.name.clone(), param.shape.clone());
        tensors.push(NamedTensor { name, dtype, shape, bytes });
    }
    weights::write(&dir.join(SINGLE_FILE), &tensors)?;
    let mut settings = serde_json::to_vec_pretty(&model.settings)
        .map_err(|e| Error::content(dir.join(SETTINGS), e.to_string()))?;
    settings.push(b'\n');
    files::write_atomically(&dir.join(SETTINGS), &settings)?;
    match model.origin {
        Some(folder) => {
            copy_companions(&folder.dir, dir)?;
            write_pooling(&folder.dir, dir, &model.network)
        }
        None => {
            let config = published_config_json(&model.network.config);
            files::write_atomically(&dir.join("config.json"), config.as_bytes())
        }
    }
}

/// What may stand beside a model's weights: configuration and tokenizer.
pub(super) const COMPANIONS: [&str; 9] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "sentence_bert_config.json",
];

/// Copies what belongs to a model beside its weights.
pub(super) fn copy_companions(from: &Path, to: &Path) -> Result<()> {
    for name in COMPANIONS {
        let source = from.join(name);
        if !source.is_file() {
            continue;
        }
        std::fs::copy(&source, to.join(name)).map_err(|e| Error::io(&source, e))?;
    }
    Ok(())
}

pub(super) const MODULES: &str = "modules.json";
const POOLING_FOLDER: &str = "1_Pooling";
pub(super) const POOLING: &str = "1_Pooling/config.json";

/// Says in sentence-transformers' files, where the model came with them, how the trained one pools. They
/// have no word for the tanh pooler: then they are left out, and transformers alone reads the folder.
fn write_pooling(from: &Path, to: &Path, network: &Network) -> Result<()> {
    let is_cls = match network.pooling {
        Pooling::Cls => true,
        Pooling::Mean => false,
        Pooling::Pooler => return Ok(()),
    };
    let modules = from.join(MODULES);
    if modules.is_file() {
        std::fs::copy(&modules, to.join(MODULES)).map_err(|e| Error::io(&modules, e))?;
    }
    let (source, target) = (from.join(POOLING), to.join(POOLING));
    if !source.is_file() {
        return Ok(());
    }
    let folder = to.join(POOLING_FOLDER);
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    // What cannot be read differs from what is known: settings of our own opened this model.
    if sentence_transformers_pooling(from).is_ok_and(|own| own == Some(network.pooling)) {
        std::fs::copy(&source, &target).map_err(|e| Error::io(&source, e))?;
        return Ok(());
    }
    let settings = serde_json::json!({
        "word_embedding_dimension": network.config.hidden_size,
        "pooling_mode_cls_token": is_cls,
        "pooling_mode_mean_tokens": !is_cls,
        "pooling_mode_max_tokens": false,
        "pooling_mode_mean_sqrt_len_tokens": false,
    });
    files::write_atomically(&target, format!("{settings:#}\n").as_bytes())
}

/// A config.json for a model that started from a published size.
fn published_config_json(config: &Config) -> String {
    use super::config::Family;
    let common = |model_type: &str| {
        serde_json::json!({
            "model_type": model_type,
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "intermediate_size": config.intermediate_size,
            "max_position_embeddings": config.max_positions,
            "type_vocab_size": config.type_vocab_size,
            "layer_norm_eps": f64::from(config.layer_norm_eps),
            "pad_token_id": config.pad_token_id,
            "hidden_dropout_prob": config.hidden_dropout,
            "attention_probs_dropout_prob": config.attention_dropout,
        })
    };
    let value = match config.family {
        Family::Bert => common("bert"),
        Family::Roberta => common("roberta"),
        Family::DistilBert => serde_json::json!({
            "model_type": "distilbert",
            "vocab_size": config.vocab_size,
            "dim": config.hidden_size,
            "n_layers": config.n_layers,
            "n_heads": config.n_heads,
            "hidden_dim": config.intermediate_size,
            "max_position_embeddings": config.max_positions,
            "pad_token_id": config.pad_token_id,
            "dropout": config.hidden_dropout,
            "attention_dropout": config.attention_dropout,
            "seq_classif_dropout": config.classifier_dropout,
        }),
    };
    format!("{value:#}\n")
}

pub(super) fn read_json(path: &Path) -> Result<Option<Value>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
    };
    let value = serde_json::from_str(&text)
        .map_err(|e| Error::content(path, format!("is not valid JSON: {e}")))?;
    Ok(Some(value))
}

/// What sentence-transformers' `1_Pooling/config.json` says, in its old and its new form.
fn sentence_transformers_pooling(dir: &Path) -> Result<Option<Pooling>> {
    let path = dir.join(POOLING);
    let Some(value) = read_json(&path)? else {
        return Ok(None);
    };
    if let Some(mode) = value.get("pooling_mode") {
        return match mode.as_str() {
            Some("mean") => Ok(Some(Pooling::Mean)),
            Some("cls") => Ok(Some(Pooling::Cls)),
            _ => Err(unsupported_pooling(&path, mode.to_string())),
        };
    }
    let is_on = |name: &str| value.get(name) == Some(&Value::Bool(true));
    match (is_on("pooling_mode_cls_token"), is_on("pooling_mode_mean_tokens")) {
        (true, false) => Ok(Some(Pooling::Cls)),
        (false, true) => Ok(Some(Pooling::Mean)),
        _ => Err(unsupported_pooling(&path, value.to_string())),
    }
}

fn unsupported_pooling(path: &Path, mode: String) -> Error {
    Error::content(path, format!("pooling mode {mode} is not supported: mean or cls alone is"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooling_of(text: &str) -> Result<Option<Pooling>> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        std::fs::write(dir.path().join("1_Pooling/config.json"), text).unwrap();
        sentence_transformers_pooling(dir.path())
    }

    #[test]
    fn old_and_new_pooling_configurations() {
        let old = r#"{"word_embedding_dimension": 4, "pooling_mode_cls_token": false,
            "pooling_mode_mean_tokens": true}"#;
        assert_eq!(pooling_of(old).unwrap(), Some(Pooling::Mean));
        let new = r#"{"embedding_dimension": 4, "pooling_mode": "cls", "include_prompt": true}"#;
        assert_eq!(pooling_of(new).unwrap(), Some(Pooling::Cls));
        let max = r#"{"pooling_mode": "max"}"#;
        assert!(pooling_of(max).unwrap_err().to_string().contains("\"max\""));
    }

    #[test]
    fn what_is_copied_is_among_what_is_written() {
        assert!(COMPANIONS.iter().all(|name| WRITTEN_NAMES.contains(name)));
    }

    #[test]
    fn written_published_configurations_read_back() {
        for name in crate::model::config::ARCHITECTURES {
            let config = Config::published(name).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("config.json");
            std::fs::write(&path, published_config_json(&config)).unwrap();
            assert_eq!(Config::read(&path).unwrap(), config, "{name}");
        }
    }
}
