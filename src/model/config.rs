//! `config.json`, as transformers writes it for BERT, RoBERTa (XLM-R, CamemBERT) and DistilBERT.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::batch::PositionScheme;
use crate::{Error, Result};

/// The families whose tensors we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Bert,
    Roberta,
    DistilBert,
}

/// The sizes and constants of an encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub family: Family,
    /// V, rows of the word table.
    pub vocab_size: usize,
    /// D, width of the residual stream.
    pub hidden_size: usize,
    /// L, number of layers.
    pub n_layers: usize,
    /// H, heads of a layer; D / H is the head size.
    pub n_heads: usize,
    /// F, width of the feed-forward part.
    pub intermediate_size: usize,
    /// Rows of the position table.
    pub max_positions: usize,
    /// Rows of the token type table, 0 where the family has none (DistilBERT).
    pub type_vocab_size: usize,
    pub layer_norm_eps: f32,
    /// The padding token: its row of the word table gets no gradient, as in `torch.nn.Embedding`.
    pub pad_token_id: Option<i32>,
    /// Dropout on the residual branches and behind the embeddings.
    pub hidden_dropout: f32,
    /// Dropout on attention probabilities.
    pub attention_dropout: f32,
    /// Dropout on the pooled vector, before the heads.
    pub classifier_dropout: f32,
}

/// Published sizes for `--arch`, by transformers' names of the checkpoints.
pub const ARCHITECTURES: [&str; 6] =
    ["bert-base", "bert-large", "roberta-base", "roberta-large", "distilbert-base", "minilm-l6"];

impl Config {
    /// The published size called `name`.
    ///
    /// # Errors
    /// A name that is not in [`ARCHITECTURES`].
    pub fn published(name: &str) -> Result<Self> {
        let bert = |hidden_size, n_layers, n_heads| Config {
            family: Family::Bert,
            vocab_size: 30_522,
            hidden_size,
            n_layers,
            n_heads,
            intermediate_size: 4 * hidden_size,
            max_positions: 512,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            pad_token_id: Some(0),
            hidden_dropout: 0.1,
            attention_dropout: 0.1,
            classifier_dropout: 0.1,
        };
        let roberta = |base: Config| Config {
            family: Family::Roberta,
            vocab_size: 50_265,
            max_positions: 514,
            type_vocab_size: 1,
            layer_norm_eps: 1e-5,
            pad_token_id: Some(1),
            ..base
        };
        Ok(match name {
            "bert-base" => bert(768, 12, 12),
            "bert-large" => bert(1024, 24, 16),
            "roberta-base" => roberta(bert(768, 12, 12)),
            "roberta-large" => roberta(bert(1024, 24, 16)),
            "distilbert-base" => Config {
                family: Family::DistilBert,
                type_vocab_size: 0,
                classifier_dropout: 0.2,
                ..bert(768, 6, 12)
            },
            "minilm-l6" => bert(384, 6, 12),
            _ => {
                let known = ARCHITECTURES.join(", ");
                return Err(Error::usage(format!("--arch {name}: unknown, there are {known}")));
            }
        })
    }

    /// Reads and checks `config.json` at `path`.
    ///
    /// # Errors
    /// A file that cannot be read, is not a JSON object, lacks a size, or asks for something that
    /// this engine does not compute; the message names field and value.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::InvalidData => Error::content(path, "is not UTF-8 text"),
            _ => Error::io(path, e),
        })?;
        let object: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|e| Error::content(path, format!("is not a JSON object: {e}")))?;
        Fields { path: path.to_owned(), object }.config()
    }

    /// How positions are numbered.
    pub fn position_scheme(&self) -> PositionScheme {
        match (self.family, self.pad_token_id) {
            (Family::Roberta, Some(pad_id)) => PositionScheme::AfterPadding { pad_id },
            _ => PositionScheme::FromZero,
        }
    }

    /// The longest sequence that the position table serves.
    pub fn max_length(&self) -> usize {
        match self.position_scheme() {
            PositionScheme::FromZero => self.max_positions,
            PositionScheme::AfterPadding { pad_id } => {
                self.max_positions.saturating_sub(pad_id as usize + 1)
            }
        }
    }
}

/// The object of a config.json, with typed access that names what is wrong.
struct Fields {
    path: PathBuf,
    object: Map<String, Value>,
}

impl Fields {
    fn config(&self) -> Result<Config> {
        let model_type = self.object.get("model_type").and_then(Value::as_str);
        let family = match model_type {
            Some("bert") => Family::Bert,
            Some("roberta" | "xlm-roberta" | "camembert") => Family::Roberta,
            Some("distilbert") => Family::DistilBert,
            _ => {
                let value = self.object.get("model_type").unwrap_or(&Value::Null);
                return Err(self.wrong(
                    "model_type",
                    value,
                    "supported are bert, roberta, xlm-roberta, camembert and distilbert",
                ));
            }
        };
        let config =
            if family == Family::DistilBert { self.distilbert() } else { self.bert(family) }?;
        self.check(&config)?;
        Ok(config)
    }

    fn bert(&self, family: Family) -> Result<Config> {
        self.gelu("hidden_act")?;
        let hidden_dropout = self.probability("hidden_dropout_prob", 0.1)?;
        Ok(Config {
            family,
            vocab_size: self.size("vocab_size", None)?,
            hidden_size: self.size("hidden_size", None)?,
            n_layers: self.size("num_hidden_layers", None)?,
            n_heads: self.size("num_attention_heads", None)?,
            intermediate_size: self.size("intermediate_size", None)?,
            max_positions: self.size("max_position_embeddings", Some(512))?,
            type_vocab_size: self.size("type_vocab_size", Some(2))?,
            layer_norm_eps: self.positive("layer_norm_eps", 1e-12)?,
            pad_token_id: self.pad_token_id(if family == Family::Roberta { 1 } else { 0 })?,
            hidden_dropout,
            attention_dropout: self.probability("attention_probs_dropout_prob", 0.1)?,
            classifier_dropout: self.probability("classifier_dropout", hidden_dropout)?,
        })
    }

    fn distilbert(&self) -> Result<Config> {
        self.gelu("activation")?;
        Ok(Config {
            family: Family::DistilBert,
            vocab_size: self.size("vocab_size", None)?,
            hidden_size: self.size("dim", None)?,
            n_layers: self.size("n_layers", None)?,
            n_heads: self.size("n_heads", None)?,
            intermediate_size: self.size("hidden_dim", None)?,
            max_positions: self.size("max_position_embeddings", Some(512))?,
            type_vocab_size: 0,
            layer_norm_eps: 1e-12,
            pad_token_id: self.pad_token_id(0)?,
            hidden_dropout: self.probability("dropout", 0.1)?,
            attention_dropout: self.probability("attention_dropout", 0.1)?,
            classifier_dropout: self.probability("seq_classif_dropout", 0.2)?,
        })
    }

    fn check(&self, config: &Config) -> Result<()> {
        if !config.hidden_size.is_multiple_of(config.n_heads) {
            return Err(Error::content(
                &self.path,
                format!(
                    "hidden size {} is not a multiple of the {} attention heads",
                    config.hidden_size, config.n_heads
                ),
            ));
        }
        if let Some(kind) = self.object.get("position_embedding_type")
            && kind.as_str() != Some("absolute")
        {
            return Err(self.wrong("position_embedding_type", kind, "only absolute is supported"));
        }
        for field in ["is_decoder", "add_cross_attention"] {
            if let Some(value @ Value::Bool(true)) = self.object.get(field) {
                return Err(self.wrong(field, value, "only encoders are supported"));
            }
        }
        if config.family == Family::Roberta && config.pad_token_id.is_none() {
            let problem = "RoBERTa's positions need the padding token";
            return Err(self.wrong("pad_token_id", &Value::Null, problem));
        }
        if let Some(pad) = config.pad_token_id
            && pad as usize >= config.vocab_size
        {
            let problem = format!("the vocabulary has {} tokens", config.vocab_size);
            return Err(self.wrong("pad_token_id", &pad.into(), &problem));
        }
        if config.max_length() == 0 {
            let problem = "leaves no position for a token";
            return Err(self.wrong(
                "max_position_embeddings",
                &config.max_positions.into(),
                problem,
            ));
        }
        Ok(())
    }

    fn wrong(&self, field: &str, value: &Value, problem: &str) -> Error {
        Error::content(&self.path, format!("{field} is {value}: {problem}"))
    }

    /// A positive whole number; without a `default` the field must be there.
    fn size(&self, field: &str, default: Option<usize>) -> Result<usize> {
        // Sizes beyond this are mistakes, and products of two of them must not overflow.
        const LARGEST: u64 = 1 << 31;
        match (self.object.get(field), default) {
            (Some(value), _) => match value.as_u64() {
                Some(n) if (1..=LARGEST).contains(&n) => Ok(n as usize),
                _ => Err(self.wrong(field, value, "expected a whole number from 1 to 2^31")),
            },
            (None, Some(default)) => Ok(default),
            (None, None) => Err(Error::content(&self.path, format!("{field} is missing"))),
        }
    }

    /// A probability below 1; null counts as absent, as for classifier_dropout.
    fn probability(&self, field: &str, default: f32) -> Result<f32> {
        match self.object.get(field) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => match value.as_f64() {
                Some(p) if (0.0..1.0).contains(&p) => Ok(p as f32),
                _ => Err(self.wrong(field, value, "expected a number from 0 to below 1")),
            },
        }
    }

    fn positive(&self, field: &str, default: f32) -> Result<f32> {
        match self.object.get(field) {
            None => Ok(default),
            Some(value) => match value.as_f64() {
                Some(v) if v > 0.0 && v < 1.0 => Ok(v as f32),
                _ => Err(self.wrong(field, value, "expected a number between 0 and 1")),
            },
        }
    }

    fn pad_token_id(&self, default: i32) -> Result<Option<i32>> {
        match self.object.get("pad_token_id") {
            None => Ok(Some(default)),
            Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64().and_then(|id| i32::try_from(id).ok()) {
                Some(id) => Ok(Some(id)),
                None => Err(self.wrong("pad_token_id", value, "expected a token id or null")),
            },
        }
    }

    /// Only the exact GELU is computed: transformers' `gelu`, and `gelu_python`, its twin.
    fn gelu(&self, field: &str) -> Result<()> {
        match self.object.get(field) {
            None => Ok(()),
            Some(value) => match value.as_str() {
                Some("gelu" | "gelu_python") => Ok(()),
                _ => Err(self.wrong(field, value, "only gelu (with erf) is supported")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        Config::read(&path)
    }

    const BERT: &str = r#"{"model_type": "bert", "vocab_size": 99, "hidden_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64"#;

    #[test]
    fn class_defaults_fill_what_is_not_a_size() {
        let config = read(&format!("{BERT}}}")).unwrap();
        assert_eq!((config.max_positions, config.type_vocab_size), (512, 2));
        assert_eq!((config.layer_norm_eps, config.pad_token_id), (1e-12, Some(0)));
        assert_eq!((config.hidden_dropout, config.classifier_dropout), (0.1, 0.1));
    }

    #[test]
    fn null_classifier_dropout_follows_hidden_dropout() {
        let text = format!(r#"{BERT}, "hidden_dropout_prob": 0.3, "classifier_dropout": null}}"#);
        assert_eq!(read(&text).unwrap().classifier_dropout, 0.3);
    }

    #[test]
    fn roberta_counts_positions_after_the_padding_token() {
        let text = format!(r#"{BERT}, "max_position_embeddings": 514}}"#);
        let config = read(&text.replace("\"bert\"", "\"roberta\"")).unwrap();
        assert_eq!(config.pad_token_id, Some(1));
        assert_eq!(config.max_length(), 512);
    }

    #[test]
    fn messages_name_field_and_value() {
        for (text, expected) in [
            ("[]".to_owned(), "is not a JSON object"),
            (BERT.replace("\"vocab_size\": 99, ", "") + "}", "vocab_size is missing"),
            (BERT.replace("32", "33") + "}", "hidden size 33 is not a multiple of the 4"),
            (BERT.replace("99", "-1") + "}", "vocab_size is -1"),
            (BERT.replace("\"bert\"", "\"gpt2\"") + "}", "model_type is \"gpt2\""),
            (format!(r#"{BERT}, "hidden_act": "relu"}}"#), "hidden_act is \"relu\""),
            (format!(r#"{BERT}, "hidden_dropout_prob": 1.0}}"#), "hidden_dropout_prob is 1.0"),
            (format!(r#"{BERT}, "is_decoder": true}}"#), "is_decoder is true"),
        ] {
            let message = read(&text).unwrap_err().to_string();
            assert!(message.contains("config.json") && message.contains(expected), "{message}");
        }
    }

    #[test]
    fn published_sizes() {
        for name in ARCHITECTURES {
            assert!(Config::published(name).is_ok());
        }
        assert!(Config::published("bert-tiny").is_err());
    }
}
