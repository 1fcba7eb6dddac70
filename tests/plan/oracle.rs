//! What a step must make and keep under a mask, worked out from the chain rule place by place, with
//! no regard to how pruning finds it.

use std::collections::BTreeSet;

use frostline::freeze::FreezeMask;
use frostline::model::{Network, ParamId, Pooling};

/// Names of buffers.
#[derive(Debug, Default, PartialEq)]
pub struct Expected {
    /// All that the backward pass writes.
    pub written: BTreeSet<String>,
    /// The activations that the forward pass keeps for it.
    pub saved: BTreeSet<String>,
    /// The parameters that train.
    pub trained: BTreeSet<String>,
}

struct Walk<'a> {
    network: &'a Network,
    mask: &'a FreezeMask,
    /// Which dropouts act: those of config.json, or none.
    dropout: bool,
    expected: Expected,
}

impl Walk<'_> {
    fn trains(&self, id: ParamId) -> bool {
        !self.mask.is_frozen(id)
    }

    /// Records the gradient of a parameter if it trains, and says whether it does.
    fn param(&mut self, id: ParamId) -> bool {
        if self.trains(id) {
            let name = self.network.param(id).name.clone();
            self.expected.written.insert(format!("d.{name}"));
            self.expected.trained.insert(name);
        }
        self.trains(id)
    }

    fn write(&mut self, is_needed: bool, name: impl Into<String>) {
        if is_needed {
            self.expected.written.insert(name.into());
        }
    }

    fn save(&mut self, is_needed: bool, name: impl Into<String>) {
        if is_needed {
            self.expected.saved.insert(name.into());
        }
    }

    /// Whether anything in the embeddings trains; records their backward pass.
    fn embeddings(&mut self, dropout_acts: bool) -> bool {
        let tables = self.network.embeddings;
        let mut sum = self.param(tables.word) | self.param(tables.position);
        sum |= tables.token_type.is_some_and(|table| self.param(table));
        let (gamma, beta) = (self.param(tables.norm.gamma), self.param(tables.norm.beta));
        let out = sum | gamma | beta;
        self.save(gamma | sum, "emb.out.xhat");
        self.save(sum, "emb.out.rstd");
        self.write(sum, "d.emb.out.sum");
        self.write(out && dropout_acts, "d.emb.out");
        out
    }

    /// One layer: `below` says whether anything before it trains, `input` what its input is called.
    /// Returns whether the gradient at its output is needed.
    fn layer(&mut self, index: usize, below: bool, input: &str) -> bool {
        let layer = self.network.layers[index];
        let name = |part: &str| format!("l{index}.{part}");
        let mut saves_input = false;
        let mut is_needed = [false; 3];
        for (at, linear) in [layer.query, layer.key, layer.value].into_iter().enumerate() {
            let weight = self.param(linear.weight);
            saves_input |= weight;
            is_needed[at] = weight | self.param(linear.bias) | below;
        }
        let [q, k, v] = is_needed;
        self.save(saves_input, input);
        self.write(below, format!("d.{input}.qkv"));
        self.write(q, format!("d.{}", name("q")));
        self.write(k, format!("d.{}", name("k")));
        self.write(v, format!("d.{}", name("v")));

        let context = q | k | v;
        for part in ["q", "k", "attn.lse"] {
            self.save(context, name(part));
        }
        // dv needs the probabilities alone; dq and dk their gradients too, from v.
        self.save(q | k, name("v"));
        let out_weight = self.param(layer.attention_out.weight);
        self.save(out_weight, name("attn"));
        self.write(context, format!("d.{}", name("attn")));

        let attn_y = out_weight | self.param(layer.attention_out.bias) | context;
        let h = self.norm(&name("h"), layer.attention_norm, attn_y, below);

        let in_weight = self.param(layer.ffn_in.weight);
        self.save(in_weight, name("h"));
        let pre = in_weight | self.param(layer.ffn_in.bias) | h;
        self.write(h, format!("d.{}", name("h")));
        self.save(pre, name("ffn.pre"));
        self.write(pre, format!("d.{}", name("ffn.pre")));
        self.write(pre, format!("d.{}", name("ffn.act")));
        let out_weight = self.param(layer.ffn_out.weight);
        self.save(out_weight, name("ffn.act"));
        let ffn_y = out_weight | self.param(layer.ffn_out.bias) | pre;
        self.norm(&name("out"), layer.ffn_norm, ffn_y, h)
    }

    /// A LayerNorm over branch and residual: which of the two needs its gradient.
    fn norm(
        &mut self,
        name: &str,
        norm: frostline::model::Norm,
        branch: bool,
        residual: bool,
    ) -> bool {
        let (gamma, beta) = (self.param(norm.gamma), self.param(norm.beta));
        let sum = branch | residual;
        self.save(gamma | sum, format!("{name}.xhat"));
        self.save(sum, format!("{name}.rstd"));
        if self.dropout {
            self.write(branch, format!("d.{name}.sum"));
            self.write(residual, format!("d.{name}.res"));
        } else {
            self.write(sum, format!("d.{name}.sum"));
        }
        gamma | beta | sum
    }

    /// Pooling and heads; `below` says whether the encoder's gradient is needed.
    fn heads(&mut self, below: bool, last: &str) {
        let pooler = match self.network.pooling {
            Pooling::Pooler => self.network.pooler,
            Pooling::Mean | Pooling::Cls => None,
        };
        let mut pooled = below;
        if let Some(linear) = pooler {
            let weight = self.param(linear.weight);
            pooled |= weight | self.param(linear.bias);
            self.save(weight, "pool.first");
            self.save(pooled, "pool.out");
            self.write(pooled, "d.pool.pre");
            self.write(below, "d.pool.first");
        }
        self.write(below, format!("d.{last}"));
        let mut saves_features = false;
        for head in &self.network.heads {
            let weight = self.param(head.linear.weight);
            let bias = self.param(head.linear.bias);
            saves_features |= weight;
            self.save(weight | bias | pooled, format!("d.logits.{}", head.task));
        }
        self.save(saves_features, if self.dropout { "pool.drop" } else { "pool.out" });
        self.write(pooled && self.dropout, "d.pool.drop");
        self.write(pooled, "d.pool.out");
    }
}

/// What `mask` leaves of a step of `network`, with dropout in all that trains or nowhere.
pub fn expected(network: &Network, mask: &FreezeMask, dropout: bool) -> Expected {
    let mut walk = Walk { network, mask, dropout, expected: Expected::default() };
    let mut below = walk.embeddings(dropout);
    // Dropout behind the embeddings acts only where they train.
    let mut input = if dropout && below { "emb.drop" } else { "emb.out" }.to_owned();
    for index in 0..network.layers.len() {
        below = walk.layer(index, below, &input);
        input = format!("l{index}.out");
    }
    walk.heads(below, &input);
    walk.expected
}
