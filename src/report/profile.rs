//! A step op by op: tables for people, one document for programs, a trace for Perfetto and Chrome.

use serde_json::{Value, json};

use super::cells::draw;
use super::table::digits;
use crate::backend::cuda::occupancy::{Multiprocessor, resources_of};
use crate::backend::{KernelLaunch, LaunchCounts};
use crate::measure::profile::{LaunchProfile, OpProfile, Profile};
use crate::plan::Phase;

/// All that has one name.
#[derive(Clone, Default)]
struct Group {
    name: String,
    n: usize,
    seconds: f64,
    floor_seconds: f64,
    flops: u64,
    bytes: u64,
    counts: Option<LaunchCounts>,
    /// The largest.
    launch: Option<KernelLaunch>,
}

/// The group of `name`, in order of first appearance.
fn group<'a>(groups: &'a mut Vec<Group>, name: &str) -> &'a mut Group {
    let at = groups.iter().position(|group| group.name == name).unwrap_or(groups.len());
    if at == groups.len() {
        groups.push(Group { name: name.to_owned(), ..Group::default() });
    }
    &mut groups[at]
}

fn by_op(profile: &Profile) -> Vec<Group> {
    let mut groups = Vec::new();
    for op in &profile.ops {
        let group = group(&mut groups, op.op);
        group.n += 1;
        group.seconds += op.seconds;
        group.floor_seconds += op.floor_seconds;
        group.flops += op.cost.flops;
        group.bytes += op.cost.bytes;
    }
    groups
}

fn by_kernel(profile: &Profile) -> Vec<Group> {
    let mut groups = Vec::new();
    for LaunchProfile { launch, seconds, counts } in profile.ops.iter().flat_map(|op| &op.launches)
    {
        let group = group(&mut groups, &launch.kernel);
        group.n += 1;
        group.seconds += seconds;
        if let Some(counts) = counts {
            *group.counts.get_or_insert_default() += *counts;
        }
        let is_larger =
            group.launch.as_ref().is_none_or(|other| n_blocks(launch) > n_blocks(other));
        if is_larger {
            group.launch = Some(launch.clone());
        }
    }
    groups
}

fn n_blocks(launch: &KernelLaunch) -> u64 {
    launch.grid.iter().map(|&n| u64::from(n)).product()
}

/// Time by op, beside the machine's ceilings.
pub fn ops_table(profile: &Profile) -> String {
    let header = [
        "op",
        "calls",
        "ms",
        "share",
        "GFLOP",
        "GFLOP/s",
        "MB",
        "GB/s",
        "floor ms",
        "of the\nfloor",
    ];
    let (total, mut rows) = (profile.seconds(), Vec::new());
    let mut sum = Group { name: "all".into(), ..Group::default() };
    let row = |group: &Group| {
        vec![
            group.name.clone(),
            group.n.to_string(),
            digits(group.seconds * 1e3),
            percent(group.seconds / total),
            digits(group.flops as f64 / 1e9),
            digits(group.flops as f64 / 1e9 / group.seconds),
            digits(group.bytes as f64 / 1e6),
            digits(group.bytes as f64 / 1e9 / group.seconds),
            digits(group.floor_seconds * 1e3),
            percent(group.floor_seconds / group.seconds),
        ]
    };
    let mut groups = by_op(profile);
    groups.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    for group in &groups {
        sum.n += group.n;
        sum.seconds += group.seconds;
        sum.floor_seconds += group.floor_seconds;
        sum.flops += group.flops;
        sum.bytes += group.bytes;
        rows.push(row(group));
    }
    rows.push(row(&sum));
    draw(&header, rows)
}

/// Time by kernel, and what its largest launch needs of a multiprocessor; empty where ops are no kernels.
pub fn kernels_table(profile: &Profile, capability: (u32, u32)) -> String {
    let header = [
        "kernel",
        "launches",
        "ms",
        "share",
        "blocks",
        "threads",
        "registers",
        "shared\nKB",
        "occupancy",
    ];
    let total = profile.seconds();
    let mut groups = by_kernel(profile);
    groups.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    table_of(&header, &groups, |group, launch| {
        let mut cells = vec![digits(group.seconds * 1e3), percent(group.seconds / total)];
        cells.extend(needs(launch, capability));
        cells
    })
}

/// What the emulator counted, by kernel, and what its largest launch needs; empty where nothing was counted.
pub fn counts_table(profile: &Profile, capability: (u32, u32)) -> String {
    let header = [
        "kernel",
        "launches",
        "MMA",
        "sectors",
        "bytes",
        "sectors\nused",
        "bank\nconflicts",
        "barriers",
        "blocks",
        "threads",
        "registers",
        "shared\nKB",
        "occupancy",
    ];
    let groups = by_kernel(profile);
    table_of(&header, &groups, |group, launch| {
        let counts = group.counts.unwrap_or_default();
        let mut cells = vec![
            counts.mma.to_string(),
            counts.global_sectors.to_string(),
            counts.global_bytes.to_string(),
            sectors_used(&counts).map_or("-".into(), percent),
            counts.shared_conflicts.to_string(),
            counts.barriers.to_string(),
        ];
        cells.extend(needs(launch, capability));
        cells
    })
}

/// The share of the bytes of all touched sectors that accesses asked for.
pub fn sectors_used(counts: &LaunchCounts) -> Option<f64> {
    let bytes = counts.global_sectors as f64 * 32.0;
    (counts.global_sectors > 0).then(|| counts.global_bytes as f64 / bytes)
}

fn table_of(
    header: &[&str],
    groups: &[Group],
    cells: impl Fn(&Group, &KernelLaunch) -> Vec<String>,
) -> String {
    let rows: Vec<Vec<String>> = (groups.iter())
        .filter_map(|group| {
            let mut row = vec![group.name.clone(), group.n.to_string()];
            row.extend(cells(group, group.launch.as_ref()?));
            Some(row)
        })
        .collect();
    if rows.is_empty() { String::new() } else { draw(header, rows) }
}

/// Blocks, threads, registers, shared memory and occupancy of the largest launch of a kernel.
fn needs(launch: &KernelLaunch, capability: (u32, u32)) -> [String; 5] {
    let need = Need::of(launch, capability);
    [
        n_blocks(launch).to_string(),
        launch.block.to_string(),
        need.registers.map_or("-".into(), |n| n.to_string()),
        digits(f64::from(need.shared_bytes) / 1024.0),
        need.occupancy.map_or("-".into(), percent),
    ]
}

/// What a launch needs of a multiprocessor.
struct Need {
    registers: Option<u32>,
    shared_bytes: u32,
    occupancy: Option<f64>,
}

impl Need {
    fn of(launch: &KernelLaunch, capability: (u32, u32)) -> Self {
        let resources = resources_of(&launch.kernel, capability);
        let fixed = resources.as_ref().map_or(0, |resources| resources.shared_bytes);
        // No launch asks for more than a multiprocessor has.
        let shared_bytes = fixed + launch.shared_bytes as u32;
        let occupancy = resources.as_ref().map(|resources| {
            let multiprocessor = Multiprocessor::of(capability);
            multiprocessor.occupancy(resources.registers, launch.block, shared_bytes)
        });
        let registers = resources.map(|resources| resources.registers);
        Need { registers, shared_bytes, occupancy }
    }
}

/// What a freeze removes, by op: `profile` against `other`, which usually freezes less; calls alone where
/// times mean nothing.
pub fn against_table(profile: &Profile, other: &Profile, is_timed: bool) -> String {
    let (own_name, other_name) = (&profile.freeze, &other.freeze);
    let calls = [format!("calls\n{other_name}"), format!("\n{own_name}")];
    let times = [format!("ms\n{other_name}"), format!("\n{own_name}")];
    let header =
        ["op", &calls[0], &calls[1], &times[0], &times[1], "saved ms", "of all\nthat is saved"];
    let n_columns = if is_timed { header.len() } else { 3 };
    let (own, others) = (by_op(profile), by_op(other));
    let find = |groups: &[Group], name: &str| {
        groups.iter().find(|group| group.name == name).cloned().unwrap_or_default()
    };
    let mut names: Vec<&str> = others.iter().map(|group| group.name.as_str()).collect();
    names.extend(own.iter().map(|group| group.name.as_str()));
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(*name));
    let saved = other.seconds() - profile.seconds();
    let row = |name: &str, before: &Group, after: &Group| {
        let gain = before.seconds - after.seconds;
        vec![
            name.to_owned(),
            before.n.to_string(),
            if after.n == 0 { "gone".into() } else { after.n.to_string() },
            digits(before.seconds * 1e3),
            digits(after.seconds * 1e3),
            digits(gain * 1e3),
            // A share of next to nothing is noise.
            if saved > 0.02 * other.seconds() { percent(gain / saved) } else { "-".into() },
        ]
    };
    let rows = names.iter().map(|name| row(name, &find(&others, name), &find(&own, name)));
    let all = |profile: &Profile| Group {
        n: profile.ops.len(),
        seconds: profile.seconds(),
        ..Group::default()
    };
    let rows = rows.chain([row("all", &all(other), &all(profile))]);
    let cut = |mut row: Vec<String>| {
        row.truncate(n_columns);
        row
    };
    draw(&header[..n_columns], rows.map(cut).collect())
}

fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.1} %", share * 100.0) } else { "-".into() }
}

/// The profile as JSON; registers and occupancy are those of a GPU of this capability, times null unless
/// `is_timed`.
pub fn document(profile: &Profile, capability: (u32, u32), is_timed: bool) -> Value {
    let ms = |seconds: f64| is_timed.then_some(seconds * 1e3);
    let launch = |one: &LaunchProfile| {
        let need = Need::of(&one.launch, capability);
        json!({
            "kernel": one.launch.kernel,
            "grid": one.launch.grid,
            "block": one.launch.block,
            "registers": need.registers,
            "shared_bytes": need.shared_bytes,
            "occupancy": need.occupancy,
            "ms": ms(one.seconds),
            "counts": one.counts,
            "sectors_used": one.counts.as_ref().and_then(sectors_used),
        })
    };
    let op = |op: &OpProfile| {
        json!({
            "op": op.op,
            "writes": op.targets,
            "phase": op.phase,
            "flops": op.cost.flops,
            "bytes": op.cost.bytes,
            "ms": ms(op.seconds),
            "floor_ms": ms(op.floor_seconds),
            "launches": op.launches.iter().map(launch).collect::<Vec<_>>(),
        })
    };
    json!({
        "freeze": profile.freeze,
        "ms": ms(profile.seconds()),
        "ops": profile.ops.iter().map(op).collect::<Vec<_>>(),
    })
}

/// A trace in Chrome's format: a process a profile, ops end to end inside their phases, launches inside
/// their ops. Times are the medians.
pub fn trace(profiles: &[Profile]) -> Value {
    let mut events = Vec::new();
    for (process, profile) in profiles.iter().enumerate() {
        let name = json!({ "name": format!("freeze {}", profile.freeze) });
        events.push(json!({ "name": "process_name", "ph": "M", "pid": process, "args": name }));
        let mut event = |name: &str, start: f64, seconds: f64, arguments: Value| {
            events.push(json!({
                "name": name, "ph": "X", "pid": process, "tid": 0,
                "ts": start * 1e6, "dur": seconds * 1e6, "args": arguments,
            }));
        };
        let mut now = 0.0;
        for phase in Phase::ALL {
            let ops = || profile.ops.iter().filter(|op| op.phase == phase);
            if ops().next().is_none() {
                continue;
            }
            event(phase.name(), now, ops().map(|op| op.seconds).sum(), json!({}));
            for op in ops() {
                let cost = json!({
                    "writes": op.targets, "flops": op.cost.flops, "bytes": op.cost.bytes,
                    "floor_us": op.floor_seconds * 1e6,
                });
                event(op.op, now, op.seconds, cost);
                let mut start = now;
                for one in &op.launches {
                    // The medians of launches may add up to more than the median of their op.
                    let seconds = one.seconds.min(now + op.seconds - start).max(0.0);
                    event(&one.launch.kernel, start, seconds, json!({ "grid": one.launch.grid }));
                    start += seconds;
                }
                now += op.seconds;
            }
        }
    }
    json!({ "traceEvents": events, "displayTimeUnit": "ms" })
}
