//! The plan as text: one aligned line an op, totals by phase, memory by kind; and the difference
//! between two plans.

use std::collections::HashSet;
use std::fmt::Write;

use super::op::{Op, Phase};
use super::operands::Operand;
use super::{Buffer, Cost, Counts, Layout, Plan, Role, Rows};

/// Operands of an op beyond this many are counted, not named.
const MOST_NAMES: usize = 6;
/// Names that stand for a longer list.
const FEW_NAMES: usize = 3;

impl Plan {
    /// The whole plan, costed at `counts`.
    pub fn print(&self, layout: &Layout, counts: &Counts) -> String {
        let rows: Vec<Row> = self.ops.iter().map(|op| self.row(op, counts)).collect();
        let mut text = aligned(rows.iter().enumerate().map(|(at, row)| (at.to_string(), row)));
        text.push('\n');
        text.push_str(&self.totals(layout, counts));
        text
    }

    /// What this plan lacks, has, and has less of, against `other` (usually a plan that freezes less).
    pub fn print_diff(&self, other: &Plan, counts: &Counts) -> String {
        // An op is the same in both plans if it has its name and makes one thing in common: a freeze
        // may have taken other outputs from it.
        let (own, others) = (self.targets(), other.targets());
        let twin_in = |all: &[(&'static str, HashSet<&str>)],
                       op: &(&'static str, HashSet<&str>)| {
            all.iter().position(|other| other.0 == op.0 && !other.1.is_disjoint(&op.1))
        };
        let mut rows = Vec::new();
        for (op, targets) in other.ops.iter().zip(&others) {
            let row = other.row(op, counts);
            match twin_in(&own, targets).map(|at| self.row(&self.ops[at], counts)) {
                None => rows.push(("-", row)),
                Some(left) if left != row => rows.extend([("<", row), (">", left)]),
                Some(_) => {}
            }
        }
        for (op, targets) in self.ops.iter().zip(&own) {
            if twin_in(&others, targets).is_none() {
                rows.push(("+", self.row(op, counts)));
            }
        }
        aligned(rows.iter().map(|(sign, row)| ((*sign).to_owned(), row)))
    }

    /// For each op its name and what it writes or updates, by name.
    fn targets(&self) -> Vec<(&'static str, HashSet<&str>)> {
        let name = |buf: super::BufId| self.buffer(buf).name.as_str();
        let targets = |op: &Op| op.writes().into_iter().chain(op.updates()).map(name).collect();
        self.ops.iter().map(|op| (op.name(), targets(op))).collect()
    }

    /// Totals by phase and memory by kind.
    pub fn totals(&self, layout: &Layout, counts: &Counts) -> String {
        let mut text = String::new();
        let mut line = |name: &str, n_ops: usize, cost: Cost| {
            let Cost { flops, bytes } = cost;
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{name:<10} {n_ops:>5} ops {:>12} GFLOP {:>12} MB",
                giga(flops),
                mega(bytes)
            );
        };
        for phase in Phase::ALL {
            let n_ops = self.ops.iter().filter(|op| op.phase() == phase).count();
            line(phase.name(), n_ops, self.phase_cost(phase, counts));
        }
        line("step", self.ops.len(), self.total_cost(counts));
        let memory = layout.memory;
        let _ = writeln!(
            text,
            "memory     weights {} + gradients {} + optimizer {} + activations {} + workspace {} \
             = {} MB",
            mega(memory.weights as u64),
            mega(memory.gradients as u64),
            mega(memory.optimizer as u64),
            mega(memory.activations as u64),
            mega(memory.workspace as u64),
            mega(memory.total() as u64)
        );
        let _ = writeln!(text, "trained    {} values", self.n_trained_values());
        text
    }

    fn row(&self, op: &Op, counts: &Counts) -> Row {
        let (mut outs, mut ins) = (Vec::new(), Vec::new());
        let name = |buf: &super::BufId| short_name(self.buffer(*buf));
        op.clone().visit(&mut |operand| match operand {
            Operand::Write(buf) | Operand::Update(buf) => outs.push(name(buf)),
            Operand::Optional(Some(buf)) => outs.push(name(buf)),
            Operand::Optional(None) => outs.push("-".into()),
            Operand::Read(buf) => ins.push(name(buf)),
        });
        Row {
            op: op.name(),
            operands: format!("{} <- {}", listed(&outs), listed(&ins)),
            shape: self.shape(op, counts) + &dropout_note(op),
            cost: self.cost(op, counts),
        }
    }

    fn shape(&self, op: &Op, counts: &Counts) -> String {
        let inner = |x: &super::BufId| format!(" k{}", self.buffer(*x).cols);
        let (main, inner) = match op {
            Op::AdamwStep { items, .. } => return format!("{} tensors", items.len()),
            Op::GradNorm { grads, .. } => return format!("{} tensors", grads.len()),
            Op::GemmFwd { x, parts } => (parts[0].out, inner(x)),
            Op::GemmGeluFwd { x, out, .. } => (*out, inner(x)),
            Op::GemmDgrad { parts, dx } => (*dx, inner(&parts[0].dout)),
            Op::GemmGeluDgrad { dout, dx, .. } => (*dx, inner(dout)),
            Op::GemmWgrad { x, parts } => {
                (parts[0].dweight, format!(" k{}", self.n_rows(*x, counts)))
            }
            _ => match op.writes().first() {
                Some(buf) => (*buf, String::new()),
                None => return String::new(),
            },
        };
        let n_parts = match op {
            Op::GemmFwd { parts, .. } if parts.len() > 1 => format!("{}x", parts.len()),
            Op::GemmDgrad { parts, .. } if parts.len() > 1 => format!("{}x", parts.len()),
            Op::GemmWgrad { parts, .. } if parts.len() > 1 => format!("{}x", parts.len()),
            _ => String::new(),
        };
        let buffer = self.buffer(main);
        let rows = match buffer.rows {
            Rows::Fixed(n) => n,
            rows => rows.count(counts.tokens, counts.sequences),
        };
        format!("{n_parts}{rows}x{}{inner}", buffer.cols)
    }

    /// The plan as a JSON value: ops with their operands and costs.
    pub fn to_json(&self, counts: &Counts) -> serde_json::Value {
        let names = |bufs: Vec<super::BufId>| -> Vec<&str> {
            bufs.into_iter().map(|buf| self.buffer(buf).name.as_str()).collect()
        };
        let ops = self.ops.iter().map(|op| {
            let cost = self.cost(op, counts);
            let outputs = names(op.writes().into_iter().chain(op.updates()).collect());
            serde_json::json!({
                "op": op.name(),
                "phase": op.phase(),
                "outputs": outputs,
                "inputs": names(op.reads()),
                "shape": self.shape(op, counts),
                "flops": cost.flops,
                "bytes": cost.bytes,
            })
        });
        ops.collect()
    }
}

/// A buffer's name; of a parameter's the last two parts, since the op's other operands say which layer.
fn short_name(buffer: &Buffer) -> String {
    let n_parts = match buffer.role {
        Role::Value(_) => 2,
        // With what it is for in front: `d`, `sum`, `m`, `v`, `master`.
        Role::Gradient(_)
        | Role::GradientSum(_)
        | Role::Moment1(_)
        | Role::Moment2(_)
        | Role::Master(_) => 3,
        Role::Input(_) | Role::Transient | Role::Result => return buffer.name.clone(),
    };
    let parts: Vec<&str> = buffer.name.split('.').collect();
    // A head's name is short, and people look for it.
    if parts.len() <= n_parts || parts.contains(&"heads") {
        return buffer.name.clone();
    }
    let last = parts[parts.len() - 2..].join(".");
    if n_parts == 2 { last } else { format!("{}.{last}", parts[0]) }
}

/// What the row says of the op's dropout: ` drop 0.1`.
fn dropout_note(op: &Op) -> String {
    let dropout = match op {
        Op::DropoutFwd { dropout, .. } | Op::DropoutBwd { dropout, .. } => Some(*dropout),
        _ => op.clone().dropout().and_then(|dropout| *dropout),
    };
    dropout.map_or_else(String::new, |dropout| format!(" drop {}", dropout.p))
}

/// One line of a printed plan.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    op: &'static str,
    operands: String,
    shape: String,
    cost: Cost,
}

fn listed(names: &[String]) -> String {
    match names.len() {
        0 => "-".into(),
        1..=MOST_NAMES => names.join(", "),
        n => format!("{}, ... {} more", names[..FEW_NAMES].join(", "), n - FEW_NAMES),
    }
}

fn aligned<'a>(rows: impl Iterator<Item = (String, &'a Row)> + Clone) -> String {
    let width = |column: fn(&Row) -> &str, title: &str| {
        rows.clone().map(|(_, row)| column(row).len()).max().unwrap_or(0).max(title.len())
    };
    let op = width(|row| row.op, "op");
    let operands = width(|row| &row.operands, "out <- in");
    let shape = width(|row| &row.shape, "shape");
    let mut text = format!(
        "{:>4}  {:<op$}  {:<operands$}  {:<shape$}  {:>10}  {:>10}\n",
        "id", "op", "out <- in", "shape", "GFLOP", "MB"
    );
    for (id, row) in rows {
        let _ = writeln!(
            text,
            "{id:>4}  {:<op$}  {:<operands$}  {:<shape$}  {:>10}  {:>10}",
            row.op,
            row.operands,
            row.shape,
            giga(row.cost.flops),
            mega(row.cost.bytes)
        );
    }
    text
}

/// In units of 10^9, with the digits that matter.
fn giga(n: u64) -> String {
    let value = n as f64 / 1e9;
    if value != 0.0 && value < 0.01 { format!("{value:.1e}") } else { format!("{value:.2}") }
}

/// In units of 10^6.
fn mega(n: u64) -> String {
    let value = n as f64 / 1e6;
    if value != 0.0 && value < 0.1 { format!("{value:.1e}") } else { format!("{value:.1}") }
}
