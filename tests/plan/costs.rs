//! FLOPs and bytes of every op, counted by hand from the shapes.

use std::collections::BTreeSet;

use super::{CAPACITY, network};
use crate::common::{LENGTHS, mask_of, network_of, options, plan_of, random_batch, tiny_config};
use frostline::batch::Batch;
use frostline::model::{Family, Network, Pooling};
use frostline::plan::accumulate::accumulate;
use frostline::plan::prefix::compile_cached;
use frostline::plan::{
    Capacity, Cost, Counts, Loss, Op, Phase, Plan, StepOptions, prune, training_step,
};
use frostline::tensor::DType;

// The sizes of the network and the batch, in the letters of the crate's documentation.
/// Tokens: 5 + 1 + 33 + 2 + 17 + 32.
const T: usize = 90;
const B: usize = 6;
/// 5² + 1² + 33² + 2² + 17² + 32².
const SQUARES: usize = 2432;
const D: usize = 24;
const H: usize = 3;
const F: usize = 41;
const V: usize = 37;
const POSITIONS: usize = 40;
const TYPES: usize = 2;
/// Labels of topic and sentiment.
const C: [usize; 2] = [5, 3];
/// Of the six rows of either task one is ignored and one is absent.
const PRESENT: usize = 5;
const LABELLED: usize = 4;

const F32: usize = 4;
const BF16: usize = 2;
const I32: usize = 4;
const CU_SEQLENS: usize = I32 * (B + 1);

/// All parameters of the 3-layer network with its pooler and heads.
const N_VALUES: usize = (V + POSITIONS + TYPES) * D
    + 2 * D
    + 3 * (4 * (D * D + D) + F * D + F + D * F + D + 4 * D)
    + (D * D + D)
    + (C[0] + C[1]) * (D + 1);
/// Those of them that decay: the matrices.
const N_MATRIX_VALUES: usize =
    (V + POSITIONS + TYPES) * D + 3 * (4 * D * D + 2 * D * F) + D * D + (C[0] + C[1]) * D;

struct Expected {
    op: &'static str,
    /// Name of its first output; of the first tensor that it updates for adamw_step.
    out: &'static str,
    flops: usize,
    bytes: usize,
}

const fn row(op: &'static str, out: &'static str, flops: usize, bytes: usize) -> Expected {
    Expected { op, out, flops, bytes }
}

fn batch(network: &Network) -> Batch {
    random_batch(network, &LENGTHS, 1)
}

fn plan(network: &Network, spec: &str, compute: DType, dropout: bool, fused: bool) -> Plan {
    let options = StepOptions { compute, ..options(CAPACITY, dropout, Some(1.0)) };
    plan_of(network, spec, &options, fused)
}

/// Compares rows with the plan, and returns the names of the ops that they cover.
#[track_caller]
fn check(plan: &Plan, network: &Network, rows: &[Expected]) -> BTreeSet<&'static str> {
    let counts = Counts::of(&batch(network));
    for Expected { op: name, out, flops, bytes } in rows {
        let is_it = |op: &&Op| {
            let first = op.writes().into_iter().chain(op.updates()).next();
            op.name() == *name && first.is_some_and(|buf| plan.buffer(buf).name == *out)
        };
        let found: Vec<&Op> = plan.ops.iter().filter(is_it).collect();
        assert_eq!(found.len(), 1, "{name} that makes {out}");
        let cost = plan.cost(found[0], &counts);
        let expected = Cost { flops: *flops as u64, bytes: *bytes as u64 };
        assert_eq!(cost, expected, "{name} that makes {out}");
    }
    rows.iter().map(|row| row.op).collect()
}

const QUERY: &str = "d.bert.encoder.layer.0.attention.self.query.weight";
const NORM: &str = "d.bert.encoder.layer.0.attention.output.LayerNorm.weight";

/// One op per gradient target, with dropout, the pooler and clipping.
fn plain_rows() -> Vec<Expected> {
    vec![
        // Three gathered rows a token, and their ids.
        row("embed_fwd", "emb.sum", 2 * T * D, 3 * I32 * T + 3 * F32 * T * D + F32 * T * D),
        row("layernorm_fwd", "emb.out", 8 * T * D, F32 * (3 * T * D + T + 2 * D)),
        // Dropout and residual: one each.
        row("layernorm_fwd", "l0.h", (8 + 1 + 1) * T * D, F32 * (4 * T * D + T + 2 * D)),
        row("dropout_fwd", "emb.drop", T * D, F32 * 2 * T * D),
        row("dropout_fwd", "pool.drop", B * D, F32 * 2 * B * D),
        row("gemm_fwd", "l0.q", 3 * 2 * T * D * D, F32 * (T * D + 3 * (D * D + D + T * D))),
        row("gemm_fwd", "l0.ffn.pre", 2 * T * F * D, F32 * (T * D + F * D + F + T * F)),
        row("gemm_fwd", "pool.pre", 2 * B * D * D, F32 * (B * D + D * D + D + B * D)),
        row("gelu_fwd", "l0.ffn.act", 5 * T * F, F32 * 2 * T * F),
        row("tanh_fwd", "pool.out", B * D, F32 * 2 * B * D),
        // q·kᵀ and p·v are 2 s² Dh a head each; 6 for softmax and 1 for dropout per score.
        row(
            "attention_fwd",
            "l0.attn",
            4 * SQUARES * D + H * SQUARES * 7,
            F32 * (4 * T * D + T * H) + CU_SEQLENS,
        ),
        row("pool_fwd", "pool.first", 0, F32 * 2 * B * D + CU_SEQLENS),
        row(
            "head_fwd",
            "logits.topic",
            2 * PRESENT * C[0] * D,
            F32 * (B * D + C[0] * D + C[0] + B * C[0]) + I32 * B,
        ),
        row(
            "xent_fwd",
            "loss.topic",
            LABELLED * C[0] * (4 + 2),
            F32 * (2 * B * C[0] + 1) + I32 * B,
        ),
        row(
            "head_dgrad",
            "d.pool.drop",
            2 * LABELLED * (C[0] + C[1]) * D,
            F32 * (B * D + (C[0] + C[1]) * (B + D)) + 2 * I32 * B,
        ),
        row(
            "head_wgrad",
            "d.heads.sentiment.weight",
            LABELLED * C[1] * (2 * D + 1),
            F32 * (C[1] * D + C[1] + B * D + B * C[1]) + I32 * B,
        ),
        row("pool_bwd", "d.l2.out", 0, F32 * (T * D + B * D) + CU_SEQLENS),
        row("tanh_bwd", "d.pool.pre", 3 * B * D, F32 * 3 * B * D),
        row("dropout_bwd", "d.pool.out", B * D, F32 * 2 * B * D),
        // Two gradients are summed.
        row("dropout_bwd", "d.emb.out", 2 * T * D, F32 * 3 * T * D),
        row("gelu_bwd", "d.l0.ffn.pre", 11 * T * F, F32 * 3 * T * F),
        row("gemm_dgrad", "d.l0.out.qkv", 3 * 2 * T * D * D, F32 * (T * D + 3 * (T * D + D * D))),
        row("gemm_dgrad", "d.l0.ffn.act", 2 * T * D * F, F32 * (T * F + T * D + D * F)),
        row("gemm_wgrad", QUERY, 2 * T * D * D, F32 * (D * D + 2 * T * D)),
        row(
            "gemm_wgrad",
            "d.bert.encoder.layer.0.intermediate.dense.weight",
            2 * T * F * D,
            F32 * (F * D + T * D + T * F),
        ),
        row(
            "bias_grad",
            "d.bert.encoder.layer.0.intermediate.dense.bias",
            T * F,
            F32 * (F + T * F),
        ),
        // 8, a sum of two gradients, dropout; dx and dresidual.
        row(
            "layernorm_bwd_dx",
            "d.l0.h.sum",
            (8 + 1 + 1) * T * D,
            F32 * (2 * T * D + 2 * T * D + T * D + T + D),
        ),
        // The last one has one gradient alone.
        row(
            "layernorm_bwd_dx",
            "d.l2.out.sum",
            (8 + 1) * T * D,
            F32 * (2 * T * D + T * D + T * D + T + D),
        ),
        // No dropout inside, no residual.
        row("layernorm_bwd_dx", "d.emb.out.sum", 8 * T * D, F32 * (T * D + T * D + T * D + T + D)),
        row("layernorm_bwd_params", NORM, (2 + 1 + 1) * T * D, F32 * (2 * D + 3 * T * D)),
        // Scores, dp, dq, dk, dv; 3 + 5 + 1 per score.
        row(
            "attention_bwd",
            "d.l0.q",
            5 * 2 * SQUARES * D + H * SQUARES * 9,
            F32 * (3 * T * D + 4 * T * D + T * H) + CU_SEQLENS,
        ),
        row(
            "embed_wgrad",
            "d.bert.embeddings.word_embeddings.weight",
            T * D,
            F32 * (V * D + T * D) + I32 * T,
        ),
        row("grad_norm", "grad_norm", 2 * N_VALUES, F32 * (N_VALUES + 2)),
        // 13, decay and clipping; gradient read, value and moments read and written, norm and factor.
        row(
            "adamw_step",
            "bert.embeddings.word_embeddings.weight",
            (13 + 1 + 1) * V * D,
            28 * V * D + F32 * 2,
        ),
        row("adamw_step", "heads.topic.bias", (13 + 1) * C[0], 28 * C[0] + F32 * 2),
    ]
}

/// The same after fusing.
fn fused_rows() -> Vec<Expected> {
    vec![
        row(
            "embed_layernorm_fwd",
            "emb.out",
            (2 + 8) * T * D,
            3 * I32 * T + 3 * F32 * T * D + F32 * (2 * T * D + T + 2 * D),
        ),
        row(
            "gemm_gelu_fwd",
            "l0.ffn.act",
            2 * T * F * D + 5 * T * F,
            F32 * (T * D + F * D + F + 2 * T * F),
        ),
        row(
            "gemm_gelu_dgrad",
            "d.l0.ffn.pre",
            2 * T * D * F + 11 * T * F,
            F32 * (T * F + T * D + D * F + T * F),
        ),
        row(
            "gemm_wgrad",
            QUERY,
            3 * (2 * T * D * D + T * D),
            F32 * (T * D + 3 * (D * D + D + T * D)),
        ),
        row(
            "layernorm_bwd",
            "d.l0.h.sum",
            (8 + 2 + 1 + 1 + 1) * T * D,
            F32 * (2 * T * D + 2 * D + 2 * T * D + T * D + T + D),
        ),
        row(
            "adamw_step",
            "bert.embeddings.word_embeddings.weight",
            (13 + 1) * N_VALUES + N_MATRIX_VALUES,
            28 * N_VALUES + F32 * 2,
        ),
    ]
}

#[test]
fn every_op_costs_what_its_shapes_say() {
    let network = network(Pooling::Pooler);
    let mut covered =
        check(&plan(&network, "none", DType::F32, true, false), &network, &plain_rows());
    covered.extend(check(&plan(&network, "none", DType::F32, true, true), &network, &fused_rows()));
    covered.insert(prefix_load());
    weighted_and_smoothed_losses();
    covered.insert(grad_accumulate());
    let text = include_str!("../../src/plan/op.rs");
    let variants: BTreeSet<&str> = (text.lines())
        .filter(|line| line.trim_start().starts_with("Op::"))
        .filter_map(|line| line.split("=> \"").nth(1)?.split('"').next())
        .collect();
    assert!(variants.len() >= 29, "{variants:?}");
    assert_eq!(covered, variants);
}

/// A row of the cache in f32 for each row, and its number; in bf16 the stream besides.
fn prefix_load() -> &'static str {
    let network = network(Pooling::Mean);
    let (counts, capacity) = (Counts::of(&batch(&network)), Capacity::of([&batch(&network)]));
    for (spec, dtype, flops, bytes) in [
        ("lower:1", DType::F32, 0, F32 * 2 * T * D + I32 * T),
        ("lower:1", DType::Bf16, 0, F32 * 2 * T * D + BF16 * T * D + I32 * T),
        ("backbone", DType::F32, 0, F32 * 2 * B * D + I32 * B),
        ("backbone", DType::Bf16, 0, F32 * 2 * B * D + I32 * B),
    ] {
        let options = StepOptions { compute: dtype, ..options(capacity, false, None) };
        let plan = compile_cached(&network, &mask_of(&network, spec), &options).unwrap();
        let cost = plan.cost(&plan.ops[0], &counts);
        let expected = Cost { flops, bytes: bytes as u64 };
        assert_eq!(cost, expected, "{spec} {dtype:?}");
    }
    "prefix_load"
}

/// Beginning a sum is a copy; then two are read, one written, and there is an addition a value.
fn grad_accumulate() -> &'static str {
    let network = network(Pooling::Pooler);
    let counts = Counts::of(&batch(&network));
    let parts = accumulate(&plan(&network, "none", DType::Bf16, true, true));
    for (plan, flops, bytes) in [
        (&parts.first, 0, 2 * F32 * N_VALUES),
        (&parts.next, N_VALUES, 3 * F32 * N_VALUES),
        (&parts.last, N_VALUES, 3 * F32 * N_VALUES),
    ] {
        let op = plan.ops.iter().find(|op| op.name() == "grad_accumulate").unwrap();
        let expected = Cost { flops: flops as u64, bytes: bytes as u64 };
        assert_eq!(plan.cost(op, &counts), expected);
    }
    "grad_accumulate"
}

/// A weight a row, a sum over the logits, a subtraction from each gradient.
fn weighted_and_smoothed_losses() {
    let network = network(Pooling::Mean);
    let batch = batch(&network);
    for (is_weighted, smoothing, spec, flops, bytes) in [
        (true, 0.0, "none", 4 + 2, F32 * (2 * B * C[0] + 1 + B) + I32 * B),
        (false, 0.1, "none", 5 + 3, F32 * (2 * B * C[0] + 1) + I32 * B),
        (true, 0.1, "all", 5, F32 * (B * C[0] + 1 + B) + I32 * B),
    ] {
        let options = StepOptions {
            loss: Loss { is_weighted, smoothing },
            ..options(Capacity::of([&batch]), false, None)
        };
        let plan = prune(&training_step(&network, &options), &network, &mask_of(&network, spec));
        let op = plan.ops.iter().find(|op| op.name() == "xent_fwd").unwrap();
        let flops = (LABELLED * C[0] * flops) as u64;
        let expected = Cost { flops, bytes: bytes as u64 };
        assert_eq!(plan.cost(op, &Counts::of(&batch)), expected, "{is_weighted} {smoothing}");
    }
}

#[test]
fn mean_pooling() {
    let network = network(Pooling::Mean);
    check(
        &plan(&network, "none", DType::F32, false, false),
        &network,
        &[
            // Additions and a division per element of the result.
            row("pool_fwd", "pool.out", T * D + B * D, F32 * (T * D + B * D) + CU_SEQLENS),
            row("pool_bwd", "d.l2.out", B * D, F32 * (T * D + B * D) + CU_SEQLENS),
            // Without dropout.
            row("layernorm_fwd", "l0.h", (8 + 1) * T * D, F32 * (4 * T * D + T + 2 * D)),
            row(
                "layernorm_bwd_dx",
                "d.l0.h.sum",
                (8 + 1) * T * D,
                F32 * (T * D + 2 * T * D + T * D + T + D),
            ),
            row(
                "attention_fwd",
                "l0.attn",
                4 * SQUARES * D + H * SQUARES * 6,
                F32 * (4 * T * D + T * H) + CU_SEQLENS,
            ),
        ],
    );
}

/// What is left out is not counted, what is done is.
#[test]
fn dropped_outputs_cost_nothing() {
    let network = network(Pooling::Mean);
    check(
        &plan(&network, "all", DType::F32, false, true),
        &network,
        &[
            row("layernorm_fwd", "l0.h", (8 + 1) * T * D, F32 * (3 * T * D + 2 * D)),
            row(
                "gemm_gelu_fwd",
                "l0.ffn.act",
                2 * T * F * D + 5 * T * F,
                F32 * (T * D + F * D + F + T * F),
            ),
            row(
                "attention_fwd",
                "l0.attn",
                4 * SQUARES * D + H * SQUARES * 6,
                F32 * 4 * T * D + CU_SEQLENS,
            ),
            row("xent_fwd", "loss.topic", LABELLED * C[0] * 4, F32 * (B * C[0] + 1) + I32 * B),
        ],
    );
    // The lowest trained layer: no gradient around its attention, dropout all the same.
    check(
        &plan(&network, "lower:2", DType::F32, true, false),
        &network,
        &[row(
            "layernorm_bwd_dx",
            "d.l2.h.sum",
            (8 + 1 + 1) * T * D,
            F32 * (T * D + 2 * T * D + T * D + T + D),
        )],
    );
    // dv alone: the scores again, and one product; v is not read.
    let values = "all+keep:*layer.0.attention.self.value.*";
    check(
        &plan(&network, values, DType::F32, true, false),
        &network,
        &[row(
            "attention_bwd",
            "d.l0.v",
            2 * 2 * SQUARES * D + H * SQUARES * (3 + 1),
            F32 * (T * D + 3 * T * D + T * H) + CU_SEQLENS,
        )],
    );
    // dq alone: scores, dp, dq.
    let queries = "all+keep:*layer.0.attention.self.query.*";
    check(
        &plan(&network, queries, DType::F32, false, false),
        &network,
        &[row(
            "attention_bwd",
            "d.l0.q",
            3 * 2 * SQUARES * D + H * SQUARES * (3 + 5),
            F32 * (T * D + 4 * T * D + T * H) + CU_SEQLENS,
        )],
    );
    let biases = "all+keep:heads.*.bias+keep:*layer.2.output.LayerNorm.*";
    check(
        &plan(&network, biases, DType::F32, false, false),
        &network,
        &[
            row(
                "head_wgrad",
                "d.heads.topic.bias",
                LABELLED * C[0],
                F32 * (C[0] + B * C[0]) + I32 * B,
            ),
            row(
                "layernorm_bwd_params",
                "d.bert.encoder.layer.2.output.LayerNorm.weight",
                (2 + 1) * T * D,
                F32 * (2 * D + 2 * T * D),
            ),
        ],
    );
}

/// In bf16 activations and matrices are two bytes, vectors, statistics and gradients of parameters
/// four; a matrix has a master.
#[test]
fn narrow_types() {
    let network = network(Pooling::Pooler);
    check(
        &plan(&network, "none", DType::Bf16, true, false),
        &network,
        &[
            row(
                "gemm_fwd",
                "l0.q",
                3 * 2 * T * D * D,
                BF16 * (T * D + 3 * (D * D + T * D)) + F32 * 3 * D,
            ),
            // The residual stream goes on in f32; the first one is the embeddings' dropout.
            row(
                "layernorm_fwd",
                "l0.h",
                (8 + 1 + 1) * T * D,
                BF16 * 4 * T * D + F32 * (T * D + T + 2 * D),
            ),
            row(
                "layernorm_fwd",
                "l0.out",
                (8 + 1 + 1) * T * D,
                BF16 * 3 * T * D + F32 * (2 * T * D + T + 2 * D),
            ),
            row("gemm_wgrad", QUERY, 2 * T * D * D, F32 * D * D + BF16 * 2 * T * D),
            row("embed_fwd", "emb.sum", 2 * T * D, 3 * I32 * T + 3 * BF16 * T * D + BF16 * T * D),
            // Value 2, master 4 + 4, moments 16, gradient 4.
            row(
                "adamw_step",
                "bert.embeddings.word_embeddings.weight",
                15 * V * D,
                30 * V * D + F32 * 2,
            ),
            row("adamw_step", "heads.topic.bias", 14 * C[0], 28 * C[0] + F32 * 2),
        ],
    );
}

/// DistilBERT has no table of token types.
#[test]
fn two_tables() {
    let network = network_of(&tiny_config(Family::DistilBert, 1), Pooling::Mean);
    check(
        &plan(&network, "none", DType::F32, true, false),
        &network,
        &[row("embed_fwd", "emb.sum", T * D, 2 * I32 * T + 2 * F32 * T * D + F32 * T * D)],
    );
}

#[test]
fn phases_add_up() {
    let network = network(Pooling::Pooler);
    let counts = Counts::of(&batch(&network));
    let plan = plan(&network, "lower:1", DType::F32, true, true);
    let sum = plan.ops.iter().fold(Cost::default(), |sum, op| sum + plan.cost(op, &counts));
    assert_eq!(plan.total_cost(&counts), sum);
    let phases = Phase::ALL.map(|phase| plan.phase_cost(phase, &counts));
    assert_eq!(phases[0] + phases[1] + phases[2], sum);
    assert!(phases.iter().all(|phase| phase.flops > 0 && phase.bytes > 0));
}

#[test]
fn counts_are_those_of_the_batch() {
    let network = network(Pooling::Mean);
    let counts = Counts::of(&batch(&network));
    assert_eq!((counts.tokens, counts.sequences, counts.sum_squares), (T, B, SQUARES));
    for rows in &counts.task_rows {
        assert_eq!((rows.present, rows.labelled), (PRESENT, LABELLED));
    }
    // A full batch: as many longest sequences as fit, and the rest.
    let full = Counts::full(Capacity { tokens: 70, sequences: 4, max_length: 32 }, 2);
    assert_eq!((full.tokens, full.sequences), (70, 4));
    assert_eq!(full.sum_squares, 2 * 32 * 32 + 6 * 6);
    assert_eq!(full.task_rows.len(), 2);
}
