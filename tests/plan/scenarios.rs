//! What each freeze removes, scenario by scenario.

use super::{CAPACITY, backward_writes, names, network, oracle, saved, set};
use crate::common::{mask_of, options, plan_of};
use frostline::model::{Group, Network, Pooling};
use frostline::plan::{Op, Plan, Role};

/// The scenarios of the four questions and their relatives.
const SPECS: [&str; 11] = [
    "none",
    "backbone",
    "head:topic",
    "lower:1",
    "lower:2",
    "all",
    "backbone+head:topic",
    "all+keep:*.bias+keep:heads.*",
    "layers:1..2",
    "name:*query*",
    "embeddings",
];

const POOLINGS: [Pooling; 3] = [Pooling::Mean, Pooling::Cls, Pooling::Pooler];

/// Pruned and not fused, so that every gradient has an op of its own.
fn pruned(network: &Network, spec: &str, dropout: bool) -> Plan {
    plan_of(network, spec, &options(CAPACITY, dropout, Some(1.0)), false)
}

fn has_op(plan: &Plan, is: impl Fn(&Op) -> bool) -> bool {
    plan.ops.iter().any(is)
}

#[test]
fn plans_are_sound() {
    for pooling in POOLINGS {
        let network = network(pooling);
        for spec in SPECS {
            for dropout in [false, true] {
                for max_grad_norm in [None, Some(1.0)] {
                    for fused in [false, true] {
                        let options = options(CAPACITY, dropout, max_grad_norm);
                        let plan = plan_of(&network, spec, &options, fused);
                        plan.verify().unwrap_or_else(|fault| panic!("{spec}: {fault}"));
                    }
                }
            }
        }
    }
}

/// Every scenario makes and keeps exactly what the chain rule asks for.
#[test]
fn nothing_is_made_or_kept_that_no_trained_tensor_needs() {
    for pooling in POOLINGS {
        let network = network(pooling);
        for spec in SPECS {
            for dropout in [false, true] {
                let what = format!("{spec}, {pooling:?}, dropout {dropout}");
                check_against_oracle(&network, spec, dropout, &what);
            }
        }
    }
}

fn check_against_oracle(network: &Network, spec: &str, dropout: bool, what: &str) {
    let plan = pruned(network, spec, dropout);
    let expected = oracle::expected(network, &mask_of(network, spec), dropout);
    assert_eq!(backward_writes(&plan), expected.written, "{what}");
    assert_eq!(saved(&plan), expected.saved, "{what}");
    let trained = plan.trained().into_iter().map(|id| network.param(id).name.clone());
    assert_eq!(trained.collect::<std::collections::BTreeSet<_>>(), expected.trained, "{what}");
    check_state(&plan, network, what);
}

/// Gradients, moments and updates are there for the trained tensors and for no other.
fn check_state(plan: &Plan, network: &Network, what: &str) {
    let trained = plan.trained();
    let touched: Vec<Role> = (plan.ops.iter())
        .flat_map(|op| op.reads().into_iter().chain(op.writes()).chain(op.updates()))
        .map(|buf| plan.buffer(buf).role)
        .collect();
    for id in network.param_ids() {
        let trains = trained.contains(&id);
        for role in [Role::Gradient(id), Role::Moment1(id), Role::Moment2(id)] {
            assert_eq!(touched.contains(&role), trains, "{what}: {role:?}");
        }
        assert_eq!(plan.gradient(id).is_some(), trains, "{what}");
        assert_eq!(plan.trained().contains(&id), trains, "{what}");
        let changes = plan.ops_that_change(|role| role == Role::Value(id));
        assert_eq!(changes.len(), usize::from(trains), "{what}");
    }
}

#[test]
fn everything_frozen_is_inference() {
    let network = network(Pooling::Mean);
    let plan = pruned(&network, "all", true);
    assert!(plan.ops.iter().all(|op| op.phase() == frostline::plan::Phase::Forward));
    assert_eq!(saved(&plan), set([]));
    assert_eq!(plan.n_trained_values(), 0);
    assert_eq!(plan.grad_norm(), None);
    assert!(plan.tasks.len() == 2, "losses and logits stay");
    assert!(!has_op(&plan, |op| matches!(op, Op::DropoutFwd { .. })));
    assert!(plan.ops.iter().all(|op| op.clone().dropout().is_none_or(|site| site.is_none())));
}

#[test]
fn a_frozen_backbone_leaves_the_heads() {
    let network = network(Pooling::Pooler);
    let plan = pruned(&network, "backbone", true);
    let gradients = set([
        "d.heads.topic.weight",
        "d.heads.topic.bias",
        "d.heads.sentiment.weight",
        "d.heads.sentiment.bias",
    ]);
    // No backward op below the pooled vector, and the heads themselves make no input gradient.
    assert_eq!(backward_writes(&plan), gradients);
    assert_eq!(saved(&plan), set(["pool.drop", "d.logits.topic", "d.logits.sentiment"]));
}

#[test]
fn a_frozen_head_still_trains_the_backbone() {
    let network = network(Pooling::Mean);
    let (full, plan) = (pruned(&network, "none", true), pruned(&network, "head:topic", true));
    let gone: Vec<String> =
        backward_writes(&full).difference(&backward_writes(&plan)).cloned().collect();
    assert_eq!(gone, ["d.heads.topic.bias", "d.heads.topic.weight"]);
    // Its loss still reaches the encoder, through its frozen weight.
    let reads_topic = |op: &Op| match op {
        Op::HeadDgrad { parts, .. } => {
            let inputs = parts.iter().flat_map(|part| [part.weight, part.dlogits]);
            names(&plan, inputs).is_superset(&set(["heads.topic.weight", "d.logits.topic"]))
        }
        _ => false,
    };
    assert!(has_op(&plan, reads_topic));
    assert_eq!(saved(&plan), saved(&full));
}

/// Below nothing trains and the head itself does not: its loss is still reported, its backward gone.
#[test]
fn a_frozen_head_on_a_frozen_backbone_only_reports_its_loss() {
    let network = network(Pooling::Mean);
    let plan = pruned(&network, "backbone+head:topic", true);
    assert_eq!(backward_writes(&plan), set(["d.heads.sentiment.bias", "d.heads.sentiment.weight"]));
    assert_eq!(saved(&plan), set(["pool.drop", "d.logits.sentiment"]));
    let topic_loss = plan.tasks[0].loss;
    let makes_loss = |op: &Op| match op {
        Op::XentFwd { loss, dlogits, .. } => *loss == topic_loss && dlogits.is_none(),
        _ => false,
    };
    assert!(has_op(&plan, makes_loss), "the loss of topic, without its gradient");
    assert!(!has_op(&plan, |op| matches!(op, Op::HeadDgrad { .. })));
}

#[test]
fn frozen_lower_layers_keep_nothing_and_the_lowest_trained_one_stops_the_gradient() {
    let network = network(Pooling::Mean);
    let plan = pruned(&network, "lower:2", true);
    let layer = [
        "q", "k", "v", "attn", "attn.lse", "h", "h.xhat", "h.rstd", "ffn.pre", "ffn.act",
        "out.xhat", "out.rstd",
    ];
    let mut kept = set(["l1.out", "pool.drop", "d.logits.topic", "d.logits.sentiment"]);
    kept.extend(layer.map(|part| format!("l2.{part}")));
    assert_eq!(saved(&plan), kept, "of the layers below, only the input of the lowest trained one");

    let written = backward_writes(&plan);
    for name in &written {
        let below =
            ["d.emb", "d.l0.", "d.l1.", "d.bert.encoder.layer.0.", "d.bert.encoder.layer.1."];
        assert!(!below.iter().any(|prefix| name.starts_with(prefix)), "{name}");
    }
    // Neither through query, key and value nor around them.
    assert!(!written.contains("d.l1.out.qkv") && !written.contains("d.l2.h.res"));
    assert!(pruned(&network, "lower:1", true).ops.len() > plan.ops.len());
    let one_less = backward_writes(&pruned(&network, "lower:1", true));
    assert!(one_less.contains("d.l1.out.qkv") && one_less.contains("d.l2.h.res"));
    assert!(!one_less.contains("d.l0.out.qkv") && !one_less.contains("d.l1.h.res"));
}

/// Above a trained tensor a frozen one loses its own gradients and the inputs saved for them, and
/// hands the gradient on.
#[test]
fn a_frozen_layer_in_the_middle_hands_the_gradient_on() {
    let network = network(Pooling::Mean);
    let plan = pruned(&network, "layers:1..2", false);
    let written = backward_writes(&plan);
    assert!(!written.iter().any(|name| name.starts_with("d.bert.encoder.layer.1.")));
    for part in ["q", "k", "v", "attn", "h", "h.sum", "ffn.pre", "ffn.act", "out", "out.sum"] {
        let is_made = written.contains(&format!("d.l1.{part}"));
        // `out` has no gradient of its own but the parts that layer 2 makes.
        assert_eq!(is_made, part != "out", "d.l1.{part}");
    }
    let kept = saved(&plan);
    // Inputs of products are kept for weight gradients alone.
    for name in ["l0.out", "l1.attn", "l1.h", "l1.ffn.act"] {
        assert!(!kept.contains(name), "{name}");
    }
    for name in ["l1.q", "l1.k", "l1.v", "l1.attn.lse", "l1.h.xhat", "l1.ffn.pre"] {
        assert!(kept.contains(name), "{name}");
    }
}

#[test]
fn bias_only_training_keeps_no_inputs_of_products() {
    let network = network(Pooling::Mean);
    let plan = pruned(&network, "all+keep:*.bias+keep:heads.*", false);
    assert!(!has_op(&plan, |op| matches!(op, Op::GemmWgrad { .. } | Op::EmbedWgrad { .. })));
    assert!(has_op(&plan, |op| matches!(op, Op::BiasGrad { .. })));
    let kept = saved(&plan);
    for name in ["emb.out", "l0.h", "l1.h", "l2.h", "l0.ffn.act", "l1.out", "emb.out.xhat"] {
        assert!(!kept.contains(name), "{name}");
    }
    let dgamma = |op: &Op| matches!(op, Op::LayernormBwdParams { dgamma: Some(_), .. });
    assert!(!has_op(&plan, dgamma));
}

/// Dropout stops at the frost line: none below, all of it above.
#[test]
fn dropout_stops_at_the_frost_line() {
    let network = network(Pooling::Mean);
    let sites = |plan: &Plan| -> Vec<Group> {
        let mut groups: Vec<Group> = (plan.ops.iter())
            .filter(|op| op.phase() == frostline::plan::Phase::Forward)
            .filter_map(|op| match op.clone() {
                Op::DropoutFwd { dropout, .. } => Some(dropout.group),
                mut op => op.dropout().copied().flatten().map(|dropout| dropout.group),
            })
            .collect();
        groups.sort();
        groups
    };
    let from_layer = |first: usize| -> Vec<Group> {
        let layers = (first..3).flat_map(|layer| [Group::Layer(layer); 3]);
        layers.chain([Group::Head(0)]).collect()
    };
    let mut all = vec![Group::Embeddings];
    all.extend(from_layer(0));
    for (spec, expected) in [
        ("none", all.clone()),
        ("head:topic", all.clone()),
        ("layers:1..2", all),
        ("embeddings", from_layer(0)),
        ("lower:2", from_layer(2)),
        ("backbone", vec![Group::Head(0)]),
        ("backbone+head:topic", vec![Group::Head(0)]),
        ("all", vec![]),
    ] {
        assert_eq!(sites(&pruned(&network, spec, true)), expected, "{spec}");
        assert_eq!(sites(&pruned(&network, spec, false)), vec![], "{spec}");
    }
}

/// The backward pass draws the masks of the forward pass: the same sites, wherever it has them.
#[test]
fn backward_dropout_is_the_forward_one() {
    let network = network(Pooling::Mean);
    for spec in SPECS {
        let plan = pruned(&network, spec, true);
        for op in &plan.ops {
            let (site, out) = match op {
                Op::LayernormBwdDx { dropout, xhat, .. } => (*dropout, *xhat),
                Op::AttentionBwd { dropout, q, .. } => (*dropout, *q),
                Op::DropoutBwd { dropout, .. } => {
                    let twin = |other: &Op| match other {
                        Op::DropoutFwd { dropout: forward, .. } => forward == dropout,
                        _ => false,
                    };
                    assert!(has_op(&plan, twin), "{spec}");
                    continue;
                }
                _ => continue,
            };
            let forward = plan.ops.iter().find_map(|forward| match forward {
                Op::LayernormFwd { dropout, xhat: Some(xhat), .. } if *xhat == out => {
                    Some(*dropout)
                }
                Op::AttentionFwd { dropout, q, .. } if *q == out => Some(*dropout),
                _ => None,
            });
            assert_eq!(forward, Some(site), "{spec} {}", op.name());
        }
    }
}

/// `verify` sees what it is there for.
#[test]
fn faulty_plans_are_refused() {
    let network = network(Pooling::Mean);
    let plan = pruned(&network, "none", true);
    let fault = |change: &dyn Fn(&mut Plan)| {
        let mut faulty = plan.clone();
        change(&mut faulty);
        faulty.verify().unwrap_err()
    };
    let missing = fault(&|plan| drop(plan.ops.remove(3)));
    assert!(missing.contains("reads before anything wrote"), "{missing}");
    let unordered = fault(&|plan| plan.ops.swap(4, 5));
    assert!(unordered.contains("reads before anything wrote"), "{unordered}");
    let twice = fault(&|plan| plan.ops.insert(4, plan.ops[3].clone()));
    assert!(twice.contains("writes a second time"), "{twice}");
    let headless = fault(&|plan| plan.ops.truncate(10));
    assert!(headless.contains("has no loss"), "{headless}");
    let overwritten = fault(&|plan| {
        if let Some(Op::GemmFwd { parts, .. }) =
            plan.ops.iter_mut().find(|op| matches!(op, Op::GemmFwd { .. }))
        {
            parts[0].out = parts[0].weight;
        }
    });
    assert!(overwritten.contains("overwrites"), "{overwritten}");
    let misshapen = fault(&|plan| {
        let ffn = network.layers[0].ffn_in.weight;
        let weight = plan.buffers.iter().position(|buffer| buffer.role == Role::Value(ffn));
        if let Some(Op::GemmFwd { parts, .. }) =
            plan.ops.iter_mut().find(|op| matches!(op, Op::GemmFwd { .. }))
        {
            parts[0].weight = frostline::plan::BufId(weight.unwrap());
        }
    });
    assert!(misshapen.contains("does not go with"), "{misshapen}");
}
