//! The table of a network's parameters: names, shapes, groups. No values.

use super::config::{Config, Family};
use super::names::{self, Resolver};
use super::weights::WeightFile;
use crate::tensor::DType;
use crate::{Error, Result};

/// Index into [`Network::params`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(pub usize);

/// Where in the network a parameter stands. The order is the order of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// The three tables and their LayerNorm.
    Embeddings,
    /// Layer number, from 0.
    Layer(usize),
    /// The pre-trained tanh layer on the first token.
    Pooler,
    /// Index of the task.
    Head(usize),
}

/// One parameter tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    /// The name that the model's own file uses.
    pub name: String,
    /// Matrices are `[out, in]` (tables `[rows, D]`), vectors `[n]`.
    pub shape: Vec<usize>,
    pub group: Group,
    /// Whether AdamW's weight decay applies: to all but biases and LayerNorm parameters.
    pub decays: bool,
    /// What a random initialisation gives: 1 for LayerNorm scales, 0 for vectors, normal otherwise.
    pub init: Init,
}

/// Initial distribution of a parameter that no file holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    Zero,
    One,
    /// Normal with mean 0 and this standard deviation.
    Normal(f32),
}

impl Param {
    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The type that kernels read it in: matrices in that of the activations. Vectors stay in f32: they
    /// are small, and a narrow bias would cost accuracy.
    pub fn dtype(&self, compute: DType) -> DType {
        if self.shape.len() == 2 { compute } else { DType::F32 }
    }
}

/// A dense layer: `y = x · weightᵀ + bias`, weight `[out, in]`, bias `[out]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    pub weight: ParamId,
    pub bias: ParamId,
}

/// A LayerNorm's scale and shift, both `[D]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    pub gamma: ParamId,
    pub beta: ParamId,
}

/// The tables that make a token's first hidden state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Embeddings {
    pub word: ParamId,
    pub position: ParamId,
    pub token_type: Option<ParamId>,
    pub norm: Norm,
}

/// One transformer layer (post-LayerNorm, as in the BERT paper).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layer {
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub attention_out: Linear,
    pub attention_norm: Norm,
    pub ffn_in: Linear,
    pub ffn_out: Linear,
    pub ffn_norm: Norm,
}

/// One task's classifier on the pooled vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    pub task: String,
    pub linear: Linear,
    /// C, number of labels.
    pub n_labels: usize,
}

/// How the tokens of a sequence become one vector.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The mean over the sequence's tokens.
    Mean,
    /// The first token.
    Cls,
    /// The first token through the pre-trained dense layer and tanh.
    Pooler,
}

impl Pooling {
    /// The word that files and options use.
    pub fn name(self) -> &'static str {
        match self {
            Pooling::Mean => "mean",
            Pooling::Cls => "cls",
            Pooling::Pooler => "pooler",
        }
    }
}

/// An encoder with its heads, as structure: which parameter stands where.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    pub config: Config,
    pub pooling: Pooling,
    pub params: Vec<Param>,
    pub embeddings: Embeddings,
    pub layers: Vec<Layer>,
    pub pooler: Option<Linear>,
    pub heads: Vec<Head>,
}

impl Network {
    /// Lays out an encoder with one head per task, `(name, number of labels)`.
    ///
    /// Tensors are named as `file` names them, or as transformers would where there is no file.
    ///
    /// # Errors
    /// `pooler` pooling on a model without a pooler, no task, a task named twice, or a task with
    /// fewer than two labels.
    pub fn new(
        config: &Config,
        file: Option<&WeightFile>,
        tasks: &[(String, usize)],
        pooling: Pooling,
    ) -> Result<Self> {
        if tasks.is_empty() {
            return Err(Error::usage("no task: give at least one --task"));
        }
        for (i, (task, n_labels)) in tasks.iter().enumerate() {
            if tasks[..i].iter().any(|(other, _)| other == task) {
                return Err(Error::usage(format!("--task {task} is given twice")));
            }
            if *n_labels < 2 {
                let problem = format!("--task {task}: {n_labels} labels, a head needs at least 2");
                return Err(Error::usage(problem));
            }
        }
        let mut table = Table { params: Vec::new(), resolver: Resolver::new(config.family, file) };
        let (width, ffn) = (config.hidden_size, config.intermediate_size);
        let embeddings = table.embeddings(config);
        let layers = (0..config.n_layers)
            .map(|i| {
                let (names, group) = (names::layer(config.family, i), Group::Layer(i));
                Layer {
                    query: table.linear(&names.query, width, width, group),
                    key: table.linear(&names.key, width, width, group),
                    value: table.linear(&names.value, width, width, group),
                    attention_out: table.linear(&names.attention_out, width, width, group),
                    attention_norm: table.norm(&names.attention_norm, width, group),
                    ffn_in: table.linear(&names.ffn_in, ffn, width, group),
                    ffn_out: table.linear(&names.ffn_out, width, ffn, group),
                    ffn_norm: table.norm(&names.ffn_norm, width, group),
                }
            })
            .collect();
        let pooler = table
            .resolver
            .has_pooler()
            .then(|| table.linear(names::POOLER, width, width, Group::Pooler));
        if pooling == Pooling::Pooler && pooler.is_none() {
            return Err(Error::usage(
                "--pooling pooler: this model has no pooler, use mean or cls",
            ));
        }
        let heads = tasks
            .iter()
            .enumerate()
            .map(|(i, (task, n_labels))| Head {
                task: task.clone(),
                linear: table.head(task, *n_labels, width, Group::Head(i)),
                n_labels: *n_labels,
            })
            .collect();
        let params = table.params;
        Ok(Self { config: config.clone(), pooling, params, embeddings, layers, pooler, heads })
    }

    /// The parameter with this id.
    pub fn param(&self, id: ParamId) -> &Param {
        &self.params[id.0]
    }

    /// All ids, in table order.
    pub fn param_ids(&self) -> impl Iterator<Item = ParamId> + use<> {
        (0..self.params.len()).map(ParamId)
    }

    /// Number of values in all parameters.
    pub fn n_values(&self) -> usize {
        self.params.iter().map(Param::n_elements).sum()
    }

    /// Names of the tasks, in head order.
    pub fn task_names(&self) -> Vec<&str> {
        self.heads.iter().map(|head| head.task.as_str()).collect()
    }
}

/// Name of a head's tensor in a model file; `part` is `weight` or `bias`.
pub fn head_tensor(task: &str, part: &str) -> String {
    format!("heads.{task}.{part}")
}

/// Standard deviation of random matrices: transformers' initializer_range.
const INIT_STD: f32 = 0.02;

struct Table<'a> {
    params: Vec<Param>,
    resolver: Resolver<'a>,
}

impl Table<'_> {
    fn push(&mut self, name: String, shape: Vec<usize>, group: Group, init: Init) -> ParamId {
        let decays = matches!(init, Init::Normal(_));
        self.params.push(Param { name, shape, group, decays, init });
        ParamId(self.params.len() - 1)
    }

    fn matrix(&mut self, name: String, rows: usize, cols: usize, group: Group) -> ParamId {
        self.push(name, vec![rows, cols], group, Init::Normal(INIT_STD))
    }

    fn linear(&mut self, module: &str, n_out: usize, n_in: usize, group: Group) -> Linear {
        let weight = self.resolver.tensor(&format!("{module}.weight"));
        let bias = self.resolver.tensor(&format!("{module}.bias"));
        Linear {
            weight: self.matrix(weight, n_out, n_in, group),
            bias: self.push(bias, vec![n_out], group, Init::Zero),
        }
    }

    fn head(&mut self, task: &str, n_labels: usize, width: usize, group: Group) -> Linear {
        Linear {
            weight: self.matrix(head_tensor(task, "weight"), n_labels, width, group),
            bias: self.push(head_tensor(task, "bias"), vec![n_labels], group, Init::Zero),
        }
    }

    fn norm(&mut self, module: &str, width: usize, group: Group) -> Norm {
        let (gamma, beta) = self.resolver.norm(module);
        Norm {
            gamma: self.push(gamma, vec![width], group, Init::One),
            beta: self.push(beta, vec![width], group, Init::Zero),
        }
    }

    fn embeddings(&mut self, config: &Config) -> Embeddings {
        let (width, group) = (config.hidden_size, Group::Embeddings);
        let mut table = |name: &str, rows: usize| {
            let name = self.resolver.tensor(name);
            self.matrix(name, rows, width, group)
        };
        let word = table(names::WORD_EMBEDDINGS, config.vocab_size);
        let position = table(names::POSITION_EMBEDDINGS, config.max_positions);
        let token_type = (config.family != Family::DistilBert)
            .then(|| table(names::TOKEN_TYPE_EMBEDDINGS, config.type_vocab_size));
        let norm = self.norm(names::EMBEDDINGS_NORM, width, group);
        Embeddings { word, position, token_type, norm }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks() -> Vec<(String, usize)> {
        vec![("topic".into(), 4), ("sentiment".into(), 3)]
    }

    /// Parameter counts of the published encoders (with pooler), and two heads on top.
    #[test]
    fn published_parameter_counts() {
        for (arch, encoder) in [
            ("bert-base", 109_482_240),
            ("bert-large", 335_141_888),
            ("roberta-base", 124_645_632),
            ("distilbert-base", 66_362_880),
            ("minilm-l6", 22_713_216),
        ] {
            let config = Config::published(arch).unwrap();
            let network = Network::new(&config, None, &tasks(), Pooling::Mean).unwrap();
            assert_eq!(network.n_values(), encoder + 7 * (config.hidden_size + 1), "{arch}");
        }
    }

    #[test]
    fn only_matrices_decay() {
        let config = Config::published("minilm-l6").unwrap();
        let network = Network::new(&config, None, &tasks(), Pooling::Mean).unwrap();
        for param in &network.params {
            assert_eq!(param.decays, param.shape.len() == 2, "{}", param.name);
        }
    }

    #[test]
    fn bad_tasks_are_named() {
        let config = Config::published("distilbert-base").unwrap();
        let error = |tasks: &[(String, usize)], pooling| {
            Network::new(&config, None, tasks, pooling).unwrap_err().to_string()
        };
        assert!(error(&[], Pooling::Mean).contains("no task"));
        assert!(error(&[("a".into(), 1)], Pooling::Mean).contains("a: 1 labels"));
        assert!(error(&[("a".into(), 2), ("a".into(), 3)], Pooling::Mean).contains("twice"));
        assert!(error(&tasks(), Pooling::Pooler).contains("no pooler"));
    }
}
