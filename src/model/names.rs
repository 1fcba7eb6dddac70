//! What the tensors of each family are called, without the base prefix, and how a file's own names
//! are found: with or without the prefix, `gamma`/`beta` for `weight`/`bias` of a LayerNorm.

use super::config::Family;
use super::weights::WeightFile;

/// The name prefix of a family's base model inside a model with a head.
fn prefix(family: Family) -> &'static str {
    match family {
        Family::Bert => "bert.",
        Family::Roberta => "roberta.",
        Family::DistilBert => "distilbert.",
    }
}

/// Dotted module names of one layer's parts.
pub(super) struct LayerNames {
    pub query: String,
    pub key: String,
    pub value: String,
    pub attention_out: String,
    pub attention_norm: String,
    pub ffn_in: String,
    pub ffn_out: String,
    pub ffn_norm: String,
}

pub(super) fn layer(family: Family, index: usize) -> LayerNames {
    let name = |part: &str| match family {
        Family::Bert | Family::Roberta => format!("encoder.layer.{index}.{part}"),
        Family::DistilBert => format!("transformer.layer.{index}.{part}"),
    };
    match family {
        Family::Bert | Family::Roberta => LayerNames {
            query: name("attention.self.query"),
            key: name("attention.self.key"),
            value: name("attention.self.value"),
            attention_out: name("attention.output.dense"),
            attention_norm: name("attention.output.LayerNorm"),
            ffn_in: name("intermediate.dense"),
            ffn_out: name("output.dense"),
            ffn_norm: name("output.LayerNorm"),
        },
        Family::DistilBert => LayerNames {
            query: name("attention.q_lin"),
            key: name("attention.k_lin"),
            value: name("attention.v_lin"),
            attention_out: name("attention.out_lin"),
            attention_norm: name("sa_layer_norm"),
            ffn_in: name("ffn.lin1"),
            ffn_out: name("ffn.lin2"),
            ffn_norm: name("output_layer_norm"),
        },
    }
}

pub(super) const WORD_EMBEDDINGS: &str = "embeddings.word_embeddings.weight";
pub(super) const POSITION_EMBEDDINGS: &str = "embeddings.position_embeddings.weight";
pub(super) const TOKEN_TYPE_EMBEDDINGS: &str = "embeddings.token_type_embeddings.weight";
pub(super) const EMBEDDINGS_NORM: &str = "embeddings.LayerNorm";
pub(super) const POOLER: &str = "pooler.dense";

/// Finds the names that a model's own file uses.
pub(super) struct Resolver<'a> {
    family: Family,
    file: Option<&'a WeightFile>,
}

impl<'a> Resolver<'a> {
    /// Without a file the names are those that transformers writes for a model with a head.
    pub fn new(family: Family, file: Option<&'a WeightFile>) -> Self {
        Self { family, file }
    }

    /// The file's name of the tensor `name` (written without prefix). Where the file has none of its
    /// forms, the prefixed form, which loading will report as missing.
    pub fn tensor(&self, name: &str) -> String {
        self.find(&[name]).unwrap_or_else(|| format!("{}{name}", prefix(self.family)))
    }

    /// The file's names of a LayerNorm's scale and shift.
    pub fn norm(&self, module: &str) -> (String, String) {
        let of = |new: &str, old: &str| {
            let (new, old) = (format!("{module}.{new}"), format!("{module}.{old}"));
            self.find(&[&new, &old]).unwrap_or_else(|| format!("{}{new}", prefix(self.family)))
        };
        (of("weight", "gamma"), of("bias", "beta"))
    }

    /// Whether the model has a pooler: if its file has one, and without a file where transformers'
    /// base class makes one.
    pub fn has_pooler(&self) -> bool {
        match self.file {
            Some(_) => self.find(&[&format!("{POOLER}.weight")]).is_some(),
            None => self.family != Family::DistilBert,
        }
    }

    fn find(&self, forms: &[&str]) -> Option<String> {
        let file = self.file?;
        let prefixed = forms.iter().map(|form| format!("{}{form}", prefix(self.family)));
        prefixed.chain(forms.iter().map(|form| (*form).to_owned())).find(|name| file.contains(name))
    }
}
