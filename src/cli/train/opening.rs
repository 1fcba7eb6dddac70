//! What people are told before the first step: what trains, and what becomes of the model's file.

use crate::freeze::FreezeMask;
use crate::model::params::head_tensor;
use crate::model::{Group, Network, Source};
use crate::plan::{Capacity, StepOptions, compile};
use crate::tensor::DType;

/// Tensors that are named; of more the number is said.
const SHOWN: usize = 6;

/// Lines about a run that begins with `mask`.
pub fn lines(network: &Network, mask: &FreezeMask, source: &Source) -> Vec<String> {
    let mut lines = vec![what_trains(network, mask)];
    let Some(file) = source.weights() else { return lines };
    for head in &network.heads {
        if !file.contains(&head_tensor(&head.task, "weight")) {
            lines.push(format!("head {}: not in the model, begins at random", head.task));
        }
    }
    let is_used = |name: &&str| {
        // Positions are numbers from 0 on, and a head of no task is told of elsewhere.
        let is_told = name.ends_with("position_ids") || name.starts_with("heads.");
        is_told || network.params.iter().any(|param| param.name == **name)
    };
    let unused: Vec<&str> = file.names().filter(|name| !is_used(name)).collect();
    if !unused.is_empty() {
        let shown = unused[..unused.len().min(SHOWN)].join(", ");
        let more = if unused.len() > SHOWN { ", ..." } else { "" };
        lines.push(format!(
            "{} tensors of the model's file are left out: {shown}{more}",
            unused.len()
        ));
    }
    lines
}

/// The parts that train with their numbers of values. The plan knows: a tensor that the loss does not reach does not
/// train.
fn what_trains(network: &Network, mask: &FreezeMask) -> String {
    let capacity = Capacity { tokens: 1, sequences: 1, max_length: 1 };
    let plan = compile(network, mask, &StepOptions::plain(capacity, DType::F32));
    let trained = plan.trained();
    // Neighbouring layers of which as much trains are one part.
    let mut parts: Vec<(Group, Group, usize, usize)> = Vec::new();
    let mut groups: Vec<Group> = network.params.iter().map(|param| param.group).collect();
    groups.sort();
    groups.dedup();
    for group in groups {
        let of_group = trained.iter().map(|id| network.param(*id)).filter(|p| p.group == group);
        let n_values: usize = of_group.map(|param| param.n_elements()).sum();
        match parts.last_mut() {
            _ if n_values == 0 => {}
            Some((_, last, of_each, n_groups))
                if *of_each == n_values && is_next_layer(*last, group) =>
            {
                (*last, *n_groups) = (group, *n_groups + 1);
            }
            _ => parts.push((group, group, n_values, 1)),
        }
    }
    let name = |first: Group, last: Group| match (first, last) {
        (Group::Embeddings, _) => "embeddings".to_owned(),
        (Group::Layer(first), Group::Layer(last)) if first != last => {
            format!("layers {first} to {last}")
        }
        (Group::Layer(layer), _) => format!("layer {layer}"),
        (Group::Pooler, _) => "pooler".to_owned(),
        (Group::Head(task), _) => format!("head {}", network.heads[task].task),
    };
    let parts: Vec<String> = (parts.into_iter())
        .map(|(first, last, of_each, n)| format!("{} {}", name(first, last), of_each * n))
        .collect();
    format!(
        "trains {} of {} values: {}",
        plan.n_trained_values(),
        network.n_values(),
        parts.join(", ")
    )
}

fn is_next_layer(last: Group, group: Group) -> bool {
    matches!((last, group), (Group::Layer(last), Group::Layer(next)) if next == last + 1)
}
