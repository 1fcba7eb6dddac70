//! The printed plan of each scenario, word for word. `FROSTLINE_BLESS=1` writes the texts anew.

use std::path::PathBuf;

use super::CAPACITY;
use crate::common::{LENGTHS, options, plan_of, random_batch, tiny_network};
use frostline::model::{Family, Pooling};
use frostline::plan::{Counts, Layout, Plan};

fn check(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/plan")
        .join(format!("{name}.txt"));
    if std::env::var_os("FROSTLINE_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == expected,
        "{} differs (FROSTLINE_BLESS=1 accepts this):\n{text}",
        path.display()
    );
}

fn plans(specs: &[&str]) -> (Vec<Plan>, Counts) {
    let network = tiny_network(Family::Bert, 2, Pooling::Mean);
    let counts = Counts::of(&random_batch(&network, &LENGTHS, 1));
    let options = options(CAPACITY, true, Some(1.0));
    (specs.iter().map(|spec| plan_of(&network, spec, &options, true)).collect(), counts)
}

#[test]
fn printed_plans() {
    let specs = ["none", "lower:1", "backbone", "head:topic", "all"];
    let (plans, counts) = plans(&specs);
    for (spec, plan) in specs.iter().zip(plans) {
        check(&spec.replace(':', "-"), &plan.print(&Layout::new(&plan), &counts));
    }
}

#[test]
fn printed_difference() {
    let (plans, counts) = plans(&["none", "lower:1"]);
    check("diff-none-lower-1", &plans[1].print_diff(&plans[0], &counts));
}

/// A plan does not differ from itself, and a freeze only takes away: an op that lost some of its
/// outputs is shown as it was and as it is, never as a new one.
#[test]
fn differences_pair_what_belongs_together() {
    let network = tiny_network(Family::Bert, 2, Pooling::Mean);
    let counts = Counts::of(&random_batch(&network, &LENGTHS, 1));
    for fused in [false, true] {
        let plan = |spec| plan_of(&network, spec, &options(CAPACITY, true, Some(1.0)), fused);
        let full = plan("none");
        // The heading alone is left.
        assert_eq!(full.print_diff(&full, &counts).lines().count(), 1);
        for spec in ["name:*query.weight", "name:*LayerNorm.weight", "all+keep:*.bias", "backbone"]
        {
            let text = plan(spec).print_diff(&full, &counts);
            assert!(text.lines().count() > 1);
            // Half of a fused op whose other half is gone stands alone again.
            let is_half = |line: &&str| {
                let halves = [" bias_grad ", " layernorm_bwd_params ", " layernorm_bwd_dx "];
                fused && halves.iter().any(|op| line.contains(op))
            };
            let added = text.lines().filter(|line| line.trim_start().starts_with("+ "));
            let added: Vec<&str> = added.filter(|line| !is_half(line)).collect();
            assert_eq!(added, [""; 0], "{spec}");
        }
    }
}
