//! The backward pass below the heads, and the optimizer.

use super::{Builder, Inputs, SavedLayer, SavedNorm};
use crate::model::params::{Layer, Linear};
use crate::model::{Family, Group, ParamId};
use crate::plan::op::{AdamwItem, GemmDgradPart, GemmWgradPart, Op, TensorRate};
use crate::plan::{BufId, Role, Rows};
use crate::tensor::DType;

impl Builder<'_> {
    pub(super) fn linear_wgrad(&mut self, x: BufId, linear: Linear, dout: BufId) {
        let dweight = self.param_gradient(linear.weight);
        let parts = vec![GemmWgradPart { dout, dweight, dbias: None }];
        self.ops.push(Op::GemmWgrad { x, parts });
        let dbias = self.param_gradient(linear.bias);
        self.ops.push(Op::BiasGrad { dout, dbias });
    }

    pub(super) fn linear_dgrad(&mut self, layers: &[(Linear, BufId)], dx: BufId) {
        let parts = layers
            .iter()
            .map(|(linear, dout)| GemmDgradPart { dout: *dout, weight: self.value(linear.weight) })
            .collect();
        self.ops.push(Op::GemmDgrad { parts, dx });
    }

    /// LayerNorm's backward ops; returns the gradient at the branch and at the residual.
    fn layernorm_bwd(&mut self, saved: &SavedNorm, dout: Vec<BufId>) -> (BufId, BufId) {
        let SavedNorm { norm, dropout, out, xhat, rstd, .. } = *saved;
        let dgamma = self.param_gradient(norm.gamma);
        let dbeta = self.param_gradient(norm.beta);
        let dx = self.gradient_of(out, ".sum");
        let dresidual = dropout.map(|_| self.gradient_of(out, ".res"));
        self.ops.push(Op::LayernormBwdParams {
            dout: dout.clone(),
            xhat,
            dgamma: Some(dgamma),
            dbeta: Some(dbeta),
        });
        self.ops.push(Op::LayernormBwdDx {
            dout,
            xhat,
            rstd,
            gamma: self.value(norm.gamma),
            dropout,
            dx: Some(dx),
            dresidual,
        });
        (dx, dresidual.unwrap_or(dx))
    }

    pub(super) fn backward(&mut self, dhidden: BufId) {
        let mut dout = vec![dhidden];
        for index in (0..self.network.layers.len()).rev() {
            // Each layer was saved by `layer`, in order.
            let Some(saved) = self.layers.pop() else { break };
            dout = self.layer_bwd(self.network.layers[index], saved, dout);
        }
        if let Some(saved) = self.embeddings.take() {
            self.embeddings_bwd(saved, dout);
        }
    }

    fn layer_bwd(&mut self, layer: Layer, saved: SavedLayer, dout: Vec<BufId>) -> Vec<BufId> {
        let (dffn_y, dresidual) = self.layernorm_bwd(&saved.ffn_norm, dout);
        self.linear_wgrad(saved.act, layer.ffn_out, dffn_y);
        let dact = self.gradient_of(saved.act, "");
        self.linear_dgrad(&[(layer.ffn_out, dffn_y)], dact);
        let dpre = self.gradient_of(saved.pre, "");
        self.ops.push(Op::GeluBwd { x: saved.pre, dout: dact, dx: dpre });
        let h = saved.attention_norm.out;
        self.linear_wgrad(h, layer.ffn_in, dpre);
        let dh = self.gradient_of(h, "");
        self.linear_dgrad(&[(layer.ffn_in, dpre)], dh);

        let (dattn_y, dresidual) = self.layernorm_bwd(&saved.attention_norm, vec![dresidual, dh]);
        self.linear_wgrad(saved.context, layer.attention_out, dattn_y);
        let dcontext = self.gradient_of(saved.context, "");
        self.linear_dgrad(&[(layer.attention_out, dattn_y)], dcontext);
        let [dq, dk, dv] = [saved.q, saved.k, saved.v].map(|buf| self.gradient_of(buf, ""));
        self.ops.push(Op::AttentionBwd {
            dout: dcontext,
            lse: saved.lse,
            q: saved.q,
            k: saved.k,
            v: saved.v,
            cu_seqlens: self.inputs.cu_seqlens,
            n_heads: self.network.config.n_heads,
            dropout: saved.attention_dropout,
            dq: Some(dq),
            dk: Some(dk),
            dv: Some(dv),
        });
        self.linear_wgrad(saved.input, layer.query, dq);
        self.linear_wgrad(saved.input, layer.key, dk);
        self.linear_wgrad(saved.input, layer.value, dv);
        let name = format!("d.{}.qkv", self.name(saved.input));
        let dinput = self.activation(name, Rows::Tokens, self.network.config.hidden_size);
        self.linear_dgrad(&[(layer.query, dq), (layer.key, dk), (layer.value, dv)], dinput);
        vec![dresidual, dinput]
    }

    fn embeddings_bwd(&mut self, saved: SavedNorm, mut dout: Vec<BufId>) {
        if let Some(dropout) = self.embeddings_dropout {
            let dx = self.gradient_of(saved.out, "");
            self.ops.push(Op::DropoutBwd { dout, dropout, dx });
            dout = vec![dx];
        }
        let (dsum, _) = self.layernorm_bwd(&saved, dout);
        let (tables, config) = (self.network.embeddings, &self.network.config);
        let padding = config.pad_token_id.map(|id| id as usize);
        // RoBERTa's position table has a padding row as well (transformers' RobertaEmbeddings).
        let position_padding = padding.filter(|_| config.family == Family::Roberta);
        let Inputs { input_ids, position_ids, token_type_ids, .. } = self.inputs;
        let mut wgrad = |table, ids, padding_row| {
            let dtable = self.param_gradient(table);
            self.ops.push(Op::EmbedWgrad { dx: dsum, ids, padding_row, dtable });
        };
        wgrad(tables.word, input_ids, padding);
        wgrad(tables.position, position_ids, position_padding);
        if let Some(table) = tables.token_type {
            wgrad(table, token_type_ids, None);
        }
    }

    pub(super) fn optimizer(&mut self) {
        let reached: Vec<(ParamId, BufId)> = self
            .network
            .param_ids()
            .filter_map(|id| self.gradients[id.0].map(|grad| (id, grad)))
            .collect();
        let clip = self.options.max_grad_norm.map(|max_norm| {
            let out = self.buffer("grad_norm".into(), Rows::Fixed(2), 1, DType::F32, Role::Result);
            let grads = reached.iter().map(|(_, grad)| *grad).collect();
            self.ops.push(Op::GradNorm { grads, max_norm, out });
            out
        });
        for (id, grad) in reached {
            let param = self.network.param(id);
            let value = self.value(id);
            let of = |what: &str| format!("{what}.{}", param.name);
            let narrow = self.buffers[value.0].dtype != DType::F32;
            let master =
                narrow.then(|| self.param_buffer(id, of("master"), DType::F32, Role::Master(id)));
            let moment1 = self.param_buffer(id, of("m"), DType::F32, Role::Moment1(id));
            let moment2 = self.param_buffer(id, of("v"), DType::F32, Role::Moment2(id));
            let item = AdamwItem {
                value,
                master,
                grad,
                moment1,
                moment2,
                decays: param.decays,
                is_head: matches!(param.group, Group::Head(_)),
                rate: TensorRate::default(),
            };
            self.ops.push(Op::AdamwStep { items: vec![item], clip });
        }
    }
}
