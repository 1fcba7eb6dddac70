//! Writes the training step in which everything trains. Nothing here knows of freezing: what a freeze
//! makes useless is deleted by [`mod@super::prune`].

mod backward;

use super::op::{Dropout, EmbedTables, GemmFwdPart, HeadDgradPart, Op};
use super::{BufId, Buffer, Capacity, Frontier, Input, Plan, Role, Rows, TaskOutputs};
use crate::model::params::{Linear, Norm};
use crate::model::{Family, Group, Network, ParamId, Pooling};
use crate::tensor::DType;

/// What a step is made for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOptions {
    pub capacity: Capacity,
    /// The type of activations and matrices; gradients of parameters, moments and vectors are f32.
    pub compute: DType,
    /// Whether dropout acts, with the probabilities of config.json.
    pub dropout: bool,
    /// Whether dropout acts below the frost line too, as long as anything trains.
    pub frozen_dropout: bool,
    /// Clips the global gradient norm to this, None for no clipping.
    pub max_grad_norm: Option<f32>,
    pub loss: Loss,
}

impl StepOptions {
    /// A step in which nothing is drawn, clipped or weighted: what a forward pass needs.
    pub fn plain(capacity: Capacity, compute: DType) -> Self {
        StepOptions {
            capacity,
            compute,
            dropout: false,
            frozen_dropout: false,
            max_grad_norm: None,
            loss: Loss::default(),
        }
    }
}

/// How rows and classes count in the loss; by default it is the mean cross-entropy over the labelled rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Whether batches say what each row's loss is multiplied with.
    pub is_weighted: bool,
    /// Label smoothing: the share of each target that all classes get alike.
    pub smoothing: f32,
}

/// The step for `network` in which every parameter that the loss reaches trains.
pub fn training_step(network: &Network, options: &StepOptions) -> Plan {
    let mut builder = Builder::new(network, *options);
    let hidden = builder.forward();
    let (pooled, dhidden) = builder.heads(hidden);
    builder.backward(dhidden);
    builder.optimizer();
    Plan {
        buffers: builder.buffers,
        ops: builder.ops,
        capacity: options.capacity,
        tasks: builder.tasks,
        last_hidden: hidden,
        pooled,
        frontiers: builder.frontiers,
    }
}

/// Dropout sites, in the order of the forward pass; layer sites repeat with a stride.
mod site {
    pub const EMBEDDINGS: u32 = 0;
    pub const CLASSIFIER: u32 = 1;
    const FIRST_LAYER: u32 = 8;
    const PER_LAYER: u32 = 4;
    pub const PROBABILITIES: u32 = 0;
    pub const ATTENTION_OUT: u32 = 1;
    pub const FFN_OUT: u32 = 2;

    pub fn of_layer(layer: usize, kind: u32) -> u32 {
        FIRST_LAYER + PER_LAYER * layer as u32 + kind
    }
}

/// A LayerNorm's operands, kept for the backward pass.
struct SavedNorm {
    norm: Norm,
    dropout: Option<Dropout>,
    out: BufId,
    /// What the next LayerNorm adds up: the stream, or `out` itself where that is as wide.
    stream: BufId,
    xhat: BufId,
    rstd: BufId,
}

struct SavedLayer {
    input: BufId,
    q: BufId,
    k: BufId,
    v: BufId,
    attention_dropout: Option<Dropout>,
    context: BufId,
    lse: BufId,
    attention_norm: SavedNorm,
    pre: BufId,
    act: BufId,
    ffn_norm: SavedNorm,
}

struct Builder<'a> {
    network: &'a Network,
    options: StepOptions,
    buffers: Vec<Buffer>,
    ops: Vec<Op>,
    values: Vec<BufId>,
    gradients: Vec<Option<BufId>>,
    inputs: Inputs,
    tasks: Vec<TaskOutputs>,
    layers: Vec<SavedLayer>,
    embeddings: Option<SavedNorm>,
    embeddings_dropout: Option<Dropout>,
    frontiers: Vec<Frontier>,
}

struct Inputs {
    input_ids: BufId,
    position_ids: BufId,
    token_type_ids: BufId,
    cu_seqlens: BufId,
    labels: Vec<BufId>,
    /// Empty where the loss is a mean.
    loss_weights: Vec<BufId>,
}

impl<'a> Builder<'a> {
    fn new(network: &'a Network, options: StepOptions) -> Self {
        let mut buffers = Vec::new();
        let mut push = |name: &str, rows, input| {
            let (name, role) = (name.to_owned(), Role::Input(input));
            let dtype =
                if matches!(input, Input::LossWeights(_)) { DType::F32 } else { DType::I32 };
            buffers.push(Buffer { name, rows, cols: 1, dtype, role });
            BufId(buffers.len() - 1)
        };
        let n_weighted = if options.loss.is_weighted { network.heads.len() } else { 0 };
        let inputs = Inputs {
            input_ids: push("input_ids", Rows::Tokens, Input::InputIds),
            position_ids: push("position_ids", Rows::Tokens, Input::PositionIds),
            token_type_ids: push("token_type_ids", Rows::Tokens, Input::TokenTypeIds),
            cu_seqlens: push("cu_seqlens", Rows::SequenceEnds, Input::CuSeqlens),
            labels: (network.heads.iter().enumerate())
                .map(|(i, head)| {
                    push(&format!("labels.{}", head.task), Rows::Sequences, Input::Labels(i))
                })
                .collect(),
            loss_weights: (network.heads.iter().enumerate().take(n_weighted))
                .map(|(i, head)| {
                    let name = format!("loss_weights.{}", head.task);
                    push(&name, Rows::Sequences, Input::LossWeights(i))
                })
                .collect(),
        };
        let mut builder = Builder {
            network,
            options,
            buffers,
            ops: Vec::new(),
            values: Vec::new(),
            gradients: vec![None; network.params.len()],
            inputs,
            tasks: Vec::new(),
            layers: Vec::new(),
            embeddings: None,
            embeddings_dropout: None,
            frontiers: Vec::new(),
        };
        builder.values = network
            .param_ids()
            .map(|id| {
                let param = network.param(id);
                builder.param_buffer(
                    id,
                    param.name.clone(),
                    param.dtype(options.compute),
                    Role::Value(id),
                )
            })
            .collect();
        builder
    }

    fn buffer(&mut self, name: String, rows: Rows, cols: usize, dtype: DType, role: Role) -> BufId {
        self.buffers.push(Buffer { name, rows, cols, dtype, role });
        BufId(self.buffers.len() - 1)
    }

    fn param_buffer(&mut self, id: ParamId, name: String, dtype: DType, role: Role) -> BufId {
        let shape = &self.network.param(id).shape;
        let (rows, cols) = (shape[0], shape.get(1).copied().unwrap_or(1));
        self.buffer(name, Rows::Fixed(rows), cols, dtype, role)
    }

    /// An activation or its gradient, in the compute type.
    fn activation(&mut self, name: impl Into<String>, rows: Rows, cols: usize) -> BufId {
        self.buffer(name.into(), rows, cols, self.options.compute, Role::Transient)
    }

    /// A statistic, in f32.
    fn statistic(&mut self, name: impl Into<String>, rows: Rows, cols: usize) -> BufId {
        self.buffer(name.into(), rows, cols, DType::F32, Role::Transient)
    }

    fn name(&self, buf: BufId) -> String {
        self.buffers[buf.0].name.clone()
    }

    /// A buffer for the gradient of `of`, shaped as it is.
    fn gradient_of(&mut self, of: BufId, suffix: &str) -> BufId {
        let Buffer { name, rows, cols, dtype, .. } = self.buffers[of.0].clone();
        self.buffer(format!("d.{name}{suffix}"), rows, cols, dtype, Role::Transient)
    }

    fn value(&self, id: ParamId) -> BufId {
        self.values[id.0]
    }

    fn param_gradient(&mut self, id: ParamId) -> BufId {
        let name = format!("d.{}", self.network.param(id).name);
        let buf = self.param_buffer(id, name, DType::F32, Role::Gradient(id));
        self.gradients[id.0] = Some(buf);
        buf
    }

    fn dropout(&self, p: f32, site: u32, group: Group) -> Option<Dropout> {
        // Pruning switches off what lies below the frost line, and no such line lies above the heads.
        let group = if self.options.frozen_dropout { Group::Head(0) } else { group };
        (self.options.dropout && p > 0.0).then_some(Dropout { p, site, group })
    }

    fn linear(&mut self, x: BufId, layers: &[(Linear, BufId)]) {
        let parts = layers
            .iter()
            .map(|(linear, out)| GemmFwdPart {
                weight: self.value(linear.weight),
                bias: self.value(linear.bias),
                out: *out,
            })
            .collect();
        self.ops.push(Op::GemmFwd { x, parts });
    }

    fn layernorm(
        &mut self,
        x: BufId,
        residual: Option<BufId>,
        norm: Norm,
        dropout: Option<Dropout>,
        name: String,
    ) -> SavedNorm {
        let width = self.network.config.hidden_size;
        let xhat = self.activation(format!("{name}.xhat"), Rows::Tokens, width);
        let rstd = self.statistic(format!("{name}.rstd"), Rows::Tokens, 1);
        let stream = (self.options.compute != DType::F32)
            .then(|| self.statistic(format!("{name}.stream"), Rows::Tokens, width));
        let out = self.activation(name, Rows::Tokens, width);
        self.ops.push(Op::LayernormFwd {
            x,
            residual,
            dropout,
            gamma: self.value(norm.gamma),
            beta: self.value(norm.beta),
            eps: self.network.config.layer_norm_eps,
            out,
            stream,
            xhat: Some(xhat),
            rstd: Some(rstd),
        });
        SavedNorm { norm, dropout, out, stream: stream.unwrap_or(out), xhat, rstd }
    }

    /// Embeddings and layers; returns the last hidden state.
    fn forward(&mut self) -> BufId {
        let (config, tables) = (&self.network.config, self.network.embeddings);
        let sum = self.activation("emb.sum", Rows::Tokens, config.hidden_size);
        self.ops.push(Op::EmbedFwd { tables: self.embed_tables(), out: sum });
        let saved = self.layernorm(sum, None, tables.norm, None, "emb.out".into());
        let (mut hidden, mut stream) = (saved.out, saved.stream);
        self.embeddings = Some(saved);
        self.embeddings_dropout =
            self.dropout(config.hidden_dropout, site::EMBEDDINGS, Group::Embeddings);
        if let Some(dropout) = self.embeddings_dropout {
            let out = self.activation("emb.drop", Rows::Tokens, config.hidden_size);
            self.ops.push(Op::DropoutFwd { x: hidden, dropout, out });
            (hidden, stream) = (out, out);
        }
        for index in 0..self.network.layers.len() {
            self.frontiers.push(Frontier { group: Group::Layer(index), hidden, stream });
            (hidden, stream) = self.layer(index, hidden, stream);
        }
        hidden
    }

    fn embed_tables(&self) -> EmbedTables {
        let tables = self.network.embeddings;
        EmbedTables {
            input_ids: self.inputs.input_ids,
            word: self.value(tables.word),
            position_ids: self.inputs.position_ids,
            position: self.value(tables.position),
            token_type: tables
                .token_type
                .map(|table| (self.inputs.token_type_ids, self.value(table))),
        }
    }

    /// A layer on the hidden state `input`, whose residual stream is `stream`; returns both behind it.
    fn layer(&mut self, index: usize, input: BufId, stream: BufId) -> (BufId, BufId) {
        let (config, layer) = (&self.network.config, self.network.layers[index]);
        let (width, ffn, group) =
            (config.hidden_size, config.intermediate_size, Group::Layer(index));
        let name = |part: &str| format!("l{index}.{part}");
        let tokens = |this: &mut Self, part, cols| this.activation(name(part), Rows::Tokens, cols);

        let [q, k, v] = ["q", "k", "v"].map(|part| tokens(self, part, width));
        self.linear(input, &[(layer.query, q), (layer.key, k), (layer.value, v)]);
        let context = tokens(self, "attn", width);
        let lse = self.statistic(name("attn.lse"), Rows::Tokens, config.n_heads);
        let site = |kind| site::of_layer(index, kind);
        let attention_dropout =
            self.dropout(config.attention_dropout, site(site::PROBABILITIES), group);
        self.ops.push(Op::AttentionFwd {
            q,
            k,
            v,
            cu_seqlens: self.inputs.cu_seqlens,
            n_heads: config.n_heads,
            dropout: attention_dropout,
            out: context,
            lse: Some(lse),
        });
        let attn_y = tokens(self, "attn.y", width);
        self.linear(context, &[(layer.attention_out, attn_y)]);
        // DistilBERT has no dropout behind the attention's output projection.
        let out_dropout = match config.family {
            Family::DistilBert => None,
            Family::Bert | Family::Roberta => {
                self.dropout(config.hidden_dropout, site(site::ATTENTION_OUT), group)
            }
        };
        let attention_norm =
            self.layernorm(attn_y, Some(stream), layer.attention_norm, out_dropout, name("h"));

        let h = attention_norm.out;
        let pre = tokens(self, "ffn.pre", ffn);
        self.linear(h, &[(layer.ffn_in, pre)]);
        let act = tokens(self, "ffn.act", ffn);
        self.ops.push(Op::GeluFwd { x: pre, out: act });
        let ffn_y = tokens(self, "ffn.y", width);
        self.linear(act, &[(layer.ffn_out, ffn_y)]);
        let ffn_dropout = self.dropout(config.hidden_dropout, site(site::FFN_OUT), group);
        let (residual, norm) = (Some(attention_norm.stream), layer.ffn_norm);
        let ffn_norm = self.layernorm(ffn_y, residual, norm, ffn_dropout, name("out"));
        let (out, stream) = (ffn_norm.out, ffn_norm.stream);
        self.layers.push(SavedLayer {
            input,
            q,
            k,
            v,
            attention_dropout,
            context,
            lse,
            attention_norm,
            pre,
            act,
            ffn_norm,
        });
        (out, stream)
    }

    /// Pooling, heads and losses, forward and backward; returns the pooled vectors and the gradient at the
    /// last hidden state.
    fn heads(&mut self, hidden: BufId) -> (BufId, BufId) {
        let width = self.network.config.hidden_size;
        let cu_seqlens = self.inputs.cu_seqlens;
        let first_token = match self.network.pooling {
            Pooling::Mean => Pooling::Mean,
            Pooling::Cls | Pooling::Pooler => Pooling::Cls,
        };
        let pooler = match self.network.pooling {
            Pooling::Pooler => self.network.pooler,
            Pooling::Mean | Pooling::Cls => None,
        };
        // What the heads read and its gradient are few numbers and stay in f32: a mean gives all tokens of
        // a sequence one gradient, and so one rounding error, which sums over tokens do not average out.
        let token_pool = match pooler {
            Some(_) => self.activation("pool.first", Rows::Sequences, width),
            None => self.statistic("pool.out", Rows::Sequences, width),
        };
        self.ops.push(Op::PoolFwd { x: hidden, cu_seqlens, pooling: first_token, out: token_pool });
        let mut pooled = token_pool;
        if let Some(linear) = pooler {
            let frontier =
                Frontier { group: Group::Pooler, hidden: token_pool, stream: token_pool };
            self.frontiers.push(frontier);
            let pre = self.activation("pool.pre", Rows::Sequences, width);
            self.linear(token_pool, &[(linear, pre)]);
            pooled = self.statistic("pool.out", Rows::Sequences, width);
            self.ops.push(Op::TanhFwd { x: pre, out: pooled });
        }
        let frontier = Frontier { group: Group::Head(0), hidden: pooled, stream: pooled };
        self.frontiers.push(frontier);
        let p = self.network.config.classifier_dropout;
        let dropout = self.dropout(p, site::CLASSIFIER, Group::Head(0));
        let mut features = pooled;
        if let Some(dropout) = dropout {
            features = self.statistic("pool.drop", Rows::Sequences, width);
            self.ops.push(Op::DropoutFwd { x: pooled, dropout, out: features });
        }
        let dlogits: Vec<BufId> =
            (0..self.network.heads.len()).map(|task| self.head(task, features)).collect();

        for (task, &dlogits) in dlogits.iter().enumerate() {
            let linear = self.network.heads[task].linear;
            let dweight = self.param_gradient(linear.weight);
            let dbias = self.param_gradient(linear.bias);
            self.ops.push(Op::HeadWgrad {
                x: features,
                dlogits,
                labels: self.inputs.labels[task],
                task,
                dweight: Some(dweight),
                dbias: Some(dbias),
            });
        }
        let parts = (dlogits.iter().enumerate())
            .map(|(task, &dlogits)| HeadDgradPart {
                dlogits,
                weight: self.value(self.network.heads[task].linear.weight),
                labels: self.inputs.labels[task],
                task,
            })
            .collect();
        let mut dpooled = self.gradient_of(features, "");
        self.ops.push(Op::HeadDgrad { parts, dx: dpooled });
        if let Some(dropout) = dropout {
            let dx = self.gradient_of(pooled, "");
            self.ops.push(Op::DropoutBwd { dout: vec![dpooled], dropout, dx });
            dpooled = dx;
        }
        if let Some(linear) = pooler {
            let dpre = self.activation("d.pool.pre", Rows::Sequences, width);
            self.ops.push(Op::TanhBwd { out: pooled, dout: dpooled, dx: dpre });
            self.linear_wgrad(token_pool, linear, dpre);
            dpooled = self.gradient_of(token_pool, "");
            self.linear_dgrad(&[(linear, dpre)], dpooled);
        }
        let dhidden = self.statistic(format!("d.{}", self.name(hidden)), Rows::Tokens, width);
        self.ops.push(Op::PoolBwd { dout: dpooled, cu_seqlens, pooling: first_token, dx: dhidden });
        (pooled, dhidden)
    }

    /// One head and its loss; returns the gradient at the logits.
    fn head(&mut self, task: usize, features: BufId) -> BufId {
        let head = &self.network.heads[task];
        let (name, n_labels, linear) = (head.task.clone(), head.n_labels, head.linear);
        let labels = self.inputs.labels[task];
        let logits = self.buffer(
            format!("logits.{name}"),
            Rows::Sequences,
            n_labels,
            DType::F32,
            Role::Result,
        );
        let loss = self.buffer(format!("loss.{name}"), Rows::Fixed(1), 1, DType::F32, Role::Result);
        let dlogits = self.statistic(format!("d.logits.{name}"), Rows::Sequences, n_labels);
        self.ops.push(Op::HeadFwd {
            x: features,
            weight: self.value(linear.weight),
            bias: self.value(linear.bias),
            labels,
            task,
            logits,
        });
        self.ops.push(Op::XentFwd {
            logits,
            labels,
            weights: self.inputs.loss_weights.get(task).copied(),
            smoothing: self.options.loss.smoothing,
            task,
            loss,
            dlogits: Some(dlogits),
        });
        self.tasks.push(TaskOutputs { task: name, logits, loss });
        dlogits
    }
}
