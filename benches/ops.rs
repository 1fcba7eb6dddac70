//! The CPU ops that cost most, one at a time, at two shapes: BERT-base with 8 sequences of 128 tokens,
//! MiniLM with 32 of 64.
//!
//! For products and attention criterion's `elements` are FLOPs (`Gelem/s` reads GFLOP/s); for the
//! other ops it shows bytes. Both are what `plan::cost` counts for the op of that shape in a real
//! step, so that they compare with `measure::Ceilings`. Operands stay where the last repeat left them:
//! those of less than a cache's size may beat the copy's rate.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};

use frostline::backend::cpu::Cpu;
use frostline::backend::dropout::Mask;
use frostline::backend::host::ops::{
    AdamwTensor, AttentionGradients, AttentionSaved, AttentionShape, DgradPart, FwdPart,
    NormDparams, NormDx, NormOutputs, NormParams, NormSaved, Ops, Qkv, RowMask, WgradPart,
};
use frostline::model::{Config, Group, Network, ParamId, Pooling};
use frostline::philox::normal;
use frostline::plan::fuse::fuse;
use frostline::plan::op::Dropout;
use frostline::plan::{Capacity, Cost, Counts, Plan, StepOptions, training_step};
use frostline::tensor::DType;

type Benches<'a> = BenchmarkGroup<'a, WallTime>;

/// A model, a batch shape, and the plans that know what ops cost there.
struct Case {
    network: Network,
    counts: Counts,
    cu_seqlens: Vec<i32>,
    with_dropout: [Plan; 2],
    without_dropout: [Plan; 2],
}

/// `[rows, cols]` of ordinary values; `stream` keeps matrices apart.
fn matrix(stream: u32, rows: usize, cols: usize) -> Vec<f32> {
    normal(7, stream, rows * cols, 1.0)
}

fn mask() -> Mask {
    Mask::new(Dropout { p: 0.1, site: 1, group: Group::Layer(0) }, 7, 1)
}

/// `dropout` as benchmarks' names say it.
fn suffix(dropout: bool) -> &'static str {
    if dropout { " dropout" } else { "" }
}

fn bench(group: &mut Benches, name: &str, throughput: Throughput, mut body: impl FnMut()) {
    group.throughput(throughput);
    group.bench_function(name, |bencher| bencher.iter(&mut body));
}

fn flops(cost: Cost) -> Throughput {
    Throughput::Elements(cost.flops)
}

fn bytes(cost: Cost) -> Throughput {
    Throughput::Bytes(cost.bytes)
}

impl Case {
    fn new(arch: &str, n_sequences: usize, length: usize) -> Self {
        let config = Config::published(arch).expect("a published size");
        let tasks = [("topic".to_owned(), 4)];
        let network = Network::new(&config, None, &tasks, Pooling::Mean).expect("a valid network");
        let tokens = n_sequences * length;
        let capacity = Capacity { tokens, sequences: n_sequences, max_length: length };
        let plans = |dropout| {
            let options = StepOptions {
                dropout,
                max_grad_norm: Some(1.0),
                ..StepOptions::plain(capacity, DType::F32)
            };
            let plan = training_step(&network, &options);
            [fuse(&plan), plan]
        };
        Case {
            with_dropout: plans(true),
            without_dropout: plans(false),
            counts: Counts::full(capacity, 1),
            cu_seqlens: (0..=n_sequences).map(|end| (end * length) as i32).collect(),
            network,
        }
    }

    /// The cost of the op called `op` that writes or updates the buffer called `buffer`.
    fn cost(&self, dropout: bool, op: &str, buffer: &str) -> Cost {
        let plans = if dropout { &self.with_dropout } else { &self.without_dropout };
        let found = plans.iter().rev().find_map(|plan| {
            let is_it = |id| plan.buffer(id).name == buffer;
            let mut ops = plan.ops.iter().filter(|candidate| candidate.name() == op);
            let op = ops.find(|op| op.writes().into_iter().chain(op.updates()).any(is_it))?;
            Some(plan.cost(op, &self.counts))
        });
        found.unwrap_or_else(|| panic!("no {op} writes {buffer}"))
    }

    fn gradient_of(&self, param: ParamId) -> String {
        format!("d.{}", self.network.param(param).name)
    }

    /// `[N, K]` of a linear layer, with the forward op and its output, and the output of its dgrad.
    fn products(&self, group: &mut Benches) {
        let layer = self.network.layers[0];
        for (linear, forward, out, dx) in [
            (layer.attention_out, "gemm_fwd", "l0.attn.y", "d.l0.attn"),
            (layer.ffn_in, "gemm_gelu_fwd", "l0.ffn.act", "d.l0.h"),
            (layer.ffn_out, "gemm_fwd", "l0.ffn.y", "d.l0.ffn.act"),
        ] {
            let m = self.counts.tokens;
            let shape = &self.network.param(linear.weight).shape;
            let (n, k) = (shape[0], shape[1]);
            let shape = format!("{m}x{n}x{k}");
            let (x, dout) = (matrix(0, m, k), matrix(1, m, n));
            let (weight, bias) = (normal(7, 2, n * k, 0.02), vec![0.1; n]);
            let mut out_values = vec![0.0; m * n];
            let mut pre = vec![0.0; m * n];
            let cost = self.cost(true, forward, out);
            bench(group, &format!("{forward} {shape}"), flops(cost), || {
                let part = FwdPart { weight: &weight, bias: &bias, out: &mut out_values };
                match forward {
                    "gemm_fwd" => Cpu.gemm_fwd(&x, k, vec![part]),
                    _ => Cpu.gemm_gelu_fwd(&x, k, part, Some(&mut pre)),
                }
            });
            let mut dx_values = vec![0.0; m * k];
            let cost = self.cost(true, "gemm_dgrad", dx);
            bench(group, &format!("gemm_dgrad {shape}"), flops(cost), || {
                Cpu.gemm_dgrad(&[DgradPart { dout: &dout, weight: &weight, n }], k, &mut dx_values);
            });
            let mut dweight = vec![0.0; n * k];
            let cost = self.cost(true, "gemm_wgrad", &self.gradient_of(linear.weight));
            bench(group, &format!("gemm_wgrad {shape}"), flops(cost), || {
                let part = WgradPart { dout: &dout, dweight: &mut dweight, dbias: None, n };
                Cpu.gemm_wgrad(&x, k, vec![part]);
            });
        }
    }

    fn attention(&self, group: &mut Benches) {
        let (tokens, config) = (self.counts.tokens, &self.network.config);
        let (width, n_heads) = (config.hidden_size, config.n_heads);
        let [q, k, v, dout] = [0, 1, 2, 3].map(|stream| matrix(stream, tokens, width));
        let [mut out, mut dq, mut dk, mut dv] = [(); 4].map(|()| vec![0.0; tokens * width]);
        let mut lse = vec![0.0; tokens * n_heads];
        for dropout in [false, true] {
            let mask = dropout.then(mask);
            let shape = AttentionShape { cu_seqlens: &self.cu_seqlens, n_heads, width, mask };
            let suffix = suffix(dropout);
            let cost = self.cost(dropout, "attention_fwd", "l0.attn");
            bench(group, &format!("attention_fwd{suffix}"), flops(cost), || {
                let qkv = Qkv { q: &q, k: &k, v: &v };
                Cpu.attention_fwd(&qkv, &shape, &mut out, Some(&mut lse));
            });
            let cost = self.cost(dropout, "attention_bwd", "d.l0.q");
            bench(group, &format!("attention_bwd{suffix}"), flops(cost), || {
                let v = Some(&v[..]);
                let saved = AttentionSaved { dout: &dout, lse: &lse, q: &q, k: &k, v };
                let to =
                    AttentionGradients { dq: Some(&mut dq), dk: Some(&mut dk), dv: Some(&mut dv) };
                Cpu.attention_bwd(&saved, &shape, to);
            });
        }
    }

    fn layernorm(&self, group: &mut Benches) {
        let (tokens, width) = (self.counts.tokens, self.network.config.hidden_size);
        let [x, residual, dout] = [0, 1, 2].map(|stream| matrix(stream, tokens, width));
        let [mut out, mut xhat, mut dx, mut dresidual] =
            [(); 4].map(|()| vec![0.0; tokens * width]);
        let (gamma, beta) = (vec![1.1; width], vec![0.1; width]);
        let (mut rstd, mut dgamma, mut dbeta) = (vec![0.0; tokens], gamma.clone(), beta.clone());
        let norm = self.network.layers[0].attention_norm;
        for dropout in [false, true] {
            let mask =
                dropout.then(|| RowMask { mask: mask(), cu_seqlens: Some(&self.cu_seqlens) });
            let suffix = suffix(dropout);
            let cost = self.cost(dropout, "layernorm_fwd", "l0.h");
            bench(group, &format!("layernorm_fwd{suffix}"), bytes(cost), || {
                let params = NormParams { gamma: &gamma, beta: &beta, eps: 1e-12 };
                let to =
                    NormOutputs { out: &mut out, xhat: Some(&mut xhat), rstd: Some(&mut rstd) };
                Cpu.layernorm_fwd(&x, Some(&residual), mask, &params, to);
            });
            let cost = self.cost(dropout, "layernorm_bwd", &self.gradient_of(norm.gamma));
            bench(group, &format!("layernorm_bwd{suffix}"), bytes(cost), || {
                let saved = NormSaved {
                    dout: &[&dout, &residual],
                    xhat: &xhat,
                    rstd: &rstd,
                    gamma: &gamma,
                    mask,
                };
                // Without dropout both gradients are one buffer, dx.
                let dresidual = dropout.then_some(&mut dresidual[..]);
                let dx = NormDx { dx: Some(&mut dx), dresidual };
                let dparams = NormDparams { dgamma: Some(&mut dgamma), dbeta: Some(&mut dbeta) };
                Cpu.layernorm_bwd(&saved, dx, dparams);
            });
        }
    }

    fn gelu(&self, group: &mut Benches) {
        let (tokens, ffn) = (self.counts.tokens, self.network.config.intermediate_size);
        let (x, dout) = (matrix(0, tokens, ffn), matrix(1, tokens, ffn));
        let mut out = vec![0.0; tokens * ffn];
        let cost = self.cost(true, "gelu_fwd", "l0.ffn.act");
        bench(group, "gelu_fwd", bytes(cost), || Cpu.gelu_fwd(&x, &mut out));
        let cost = self.cost(true, "gelu_bwd", "d.l0.ffn.pre");
        bench(group, "gelu_bwd", bytes(cost), || Cpu.gelu_bwd(&x, &dout, &mut out));
    }

    /// The word table's gradient and update, and the norm of all gradients.
    fn parameters(&self, group: &mut Benches) {
        let (tokens, config) = (self.counts.tokens, &self.network.config);
        let (width, vocab) = (config.hidden_size, config.vocab_size);
        let dx = matrix(0, tokens, width);
        // Ids spread over the table, none twice in a row.
        let ids: Vec<i32> = (0..tokens).map(|t| (t * 7919 % vocab) as i32).collect();
        let mut grad = vec![0.0; vocab * width];
        let word = self.network.embeddings.word;
        let cost = self.cost(true, "embed_wgrad", &self.gradient_of(word));
        bench(group, "embed_wgrad", bytes(cost), || {
            Cpu.embed_wgrad(&dx, &ids, Some(0), width, &mut grad);
        });

        let mut value = normal(7, 1, vocab * width, 0.02);
        let [mut moment1, mut moment2] = [(); 2].map(|()| vec![1e-4; vocab * width]);
        let cost = self.cost(true, "adamw_step", &self.network.param(word).name);
        bench(group, "adamw_step", bytes(cost), || {
            Cpu.adamw_step(AdamwTensor {
                value: &mut value,
                grad: &grad,
                moment1: &mut moment1,
                moment2: &mut moment2,
                learning_rate: 2e-5,
                weight_decay: 0.01,
                factor: 0.5,
                step: 3,
            });
        });
        drop((value, moment1, moment2));

        // The pooler gets no gradient from a mean.
        let reached = self.with_dropout[1].trained();
        let sizes = reached.iter().map(|&id| self.network.param(id).n_elements());
        let grads: Vec<Vec<f32>> = sizes.map(|n| vec![1e-3; n]).collect();
        let grads: Vec<&[f32]> = grads.iter().map(Vec::as_slice).collect();
        let cost = self.cost(true, "grad_norm", "grad_norm");
        bench(group, "grad_norm", bytes(cost), || {
            std::hint::black_box(Cpu.grad_norm(&grads, 1.0));
        });
    }
}

fn ops(criterion: &mut Criterion) {
    for (arch, n_sequences, length) in [("bert-base", 8, 128), ("minilm-l6", 32, 64)] {
        let case = Case::new(arch, n_sequences, length);
        let mut group = criterion.benchmark_group(format!("{arch} {n_sequences}x{length}"));
        case.products(&mut group);
        case.attention(&mut group);
        case.layernorm(&mut group);
        case.gelu(&mut group);
        case.parameters(&mut group);
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = ops
}
criterion_main!(benches);
