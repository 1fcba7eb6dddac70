//! Single ops at the shapes of BERT-base: their time on the device, and their operands and results for
//! benches/pytorch/shapes.py, which does the same in PyTorch.
//!
//! An op is repeated within one plan, which is replayed as a recorded graph between two events: no time of the host's is
//! in it.

use std::path::Path;
use std::sync::Arc;

use frostline::Result;
use frostline::backend::cuda::{self, CudaBackend};
use frostline::backend::{Backend, StepState, Timing};
use frostline::batch::Batch;
use frostline::files::write_atomically;
use frostline::measure::stats::{Interval, median_interval};
use frostline::model::ParamId;
use frostline::model::weights::{NamedTensor, write};
use frostline::philox::normal;
use frostline::plan::op::{GemmDgradPart, GemmFwdPart, GemmWgradPart};
use frostline::plan::{BufId, Buffer, Capacity, Counts, Input, Layout, Op, Plan, Role, Rows};
use frostline::tensor::{self, DType};
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::Device;

/// Times an op is repeated between two events, and replays that are timed.
#[derive(Clone, Copy)]
struct Repeats {
    ops: usize,
    replays: usize,
}

/// What the shapes are made from.
#[derive(Clone, Copy)]
struct Sizes {
    /// D, and the feed-forward part's width.
    width: usize,
    feed_forward: usize,
    /// Rows of the products.
    tokens: usize,
    /// Sequences and length of each attention.
    attentions: [(usize, usize); 2],
    head_size: usize,
    repeats: Repeats,
}

/// BERT-base with 128 sequences of 128 tokens, and 32 of 512.
const BASE: Sizes = Sizes {
    width: 768,
    feed_forward: 3072,
    tokens: 128 * 128,
    attentions: [(128, 128), (32, 512)],
    head_size: 64,
    repeats: Repeats { ops: 20, replays: 12 },
};

/// What the emulator does in seconds.
#[cfg(feature = "emulator")]
const TINY: Sizes = Sizes {
    width: 64,
    feed_forward: 256,
    tokens: 192,
    attentions: [(3, 64), (1, 160)],
    head_size: 32,
    repeats: Repeats { ops: 1, replays: 2 },
};

/// Times every shape; writes `shapes.json` and a file of tensors for each into `dir`, which is made.
pub fn run(dir: &Path, device: Device) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| frostline::Error::io(dir, e))?;
    match device {
        Device::Cuda => measure(&mut cuda::gpu(true)?, &BASE, dir),
        Device::Emulated => on_emulator(dir),
    }
}

#[cfg(feature = "emulator")]
fn on_emulator(dir: &Path) -> Result<()> {
    measure(&mut cuda::emulator(true), &TINY, dir)
}

#[cfg(not(feature = "emulator"))]
fn on_emulator(_dir: &Path) -> Result<()> {
    Err(cuda::no_emulator())
}

fn measure<D: cuda::Device>(backend: &mut CudaBackend<D>, sizes: &Sizes, dir: &Path) -> Result<()> {
    let mut entries = Vec::new();
    for (at, case) in cases(sizes).into_iter().enumerate() {
        let file = format!("{at}.safetensors");
        let (times, tensors) = case.run(backend, sizes.repeats)?;
        write(&dir.join(&file), &tensors)?;
        let us = median_interval(&times, 42)?;
        entries.push(case.entry(&file, us));
        println!(
            "{:34} {:9.1} us ({:.1} to {:.1})  {:7.1} TFLOP/s",
            case.name,
            us.median,
            us.low,
            us.high,
            case.flops() as f64 / us.median / 1e6
        );
        // After each: whoever is cut off leaves what there is.
        let document = json!({
            "device": backend.device().name(),
            "dtype": DType::Bf16.name(),
            "repeats": sizes.repeats.ops,
            "shapes": entries,
        });
        write_atomically(&dir.join("shapes.json"), format!("{document:#}\n").as_bytes())?;
    }
    Ok(())
}

/// One op and its operands.
struct Case {
    name: String,
    op: Op,
    buffers: Vec<Buffer>,
    /// Sequences and length of each, of a product one long one.
    batch: (usize, usize),
    /// Sizes for shapes.json.
    sizes: Value,
}

/// Buffers while a case is made.
#[derive(Default)]
struct Buffers(Vec<Buffer>);

impl Buffers {
    fn add(&mut self, name: &str, [rows, cols]: [usize; 2], dtype: DType, role: Role) -> BufId {
        let rows = Rows::Fixed(rows);
        self.0.push(Buffer { name: name.into(), rows, cols, dtype, role });
        BufId(self.0.len() - 1)
    }

    /// What the op reads: a parameter, which the host can write.
    fn operand(&mut self, name: &str, shape: [usize; 2], dtype: DType) -> BufId {
        self.add(name, shape, dtype, Role::Value(ParamId(self.0.len())))
    }

    fn result(&mut self, name: &str, shape: [usize; 2], dtype: DType) -> BufId {
        self.add(name, shape, dtype, Role::Result)
    }
}

fn cases(sizes: &Sizes) -> Vec<Case> {
    let Sizes { width, feed_forward, tokens, .. } = *sizes;
    // Weights [N, K]: query, key and value in one; attention's output; the feed-forward part's two.
    let linears =
        [(3 * width, width), (width, width), (feed_forward, width), (width, feed_forward)];
    let mut cases = Vec::new();
    for (n, k) in linears {
        cases.extend([gemm_fwd(tokens, n, k), gemm_dgrad(tokens, n, k), gemm_wgrad(tokens, n, k)]);
    }
    for shape in sizes.attentions {
        cases.push(attention_fwd(shape, width, sizes.head_size));
        cases.push(attention_bwd(shape, width, sizes.head_size));
    }
    cases
}

fn product(op: Op, buffers: Buffers, m: usize, n: usize, k: usize) -> Case {
    Case {
        name: format!("{} {m}x{n}x{k}", op.name()),
        op,
        buffers: buffers.0,
        batch: (1, m),
        sizes: json!({ "rows": m, "n": n, "k": k }),
    }
}

fn gemm_fwd(m: usize, n: usize, k: usize) -> Case {
    let mut buffers = Buffers::default();
    let x = buffers.operand("x", [m, k], DType::Bf16);
    let weight = buffers.operand("weight", [n, k], DType::Bf16);
    let bias = buffers.operand("bias", [n, 1], DType::F32);
    let out = buffers.result("out", [m, n], DType::Bf16);
    let op = Op::GemmFwd { x, parts: vec![GemmFwdPart { weight, bias, out }] };
    product(op, buffers, m, n, k)
}

fn gemm_dgrad(m: usize, n: usize, k: usize) -> Case {
    let mut buffers = Buffers::default();
    let dout = buffers.operand("dout", [m, n], DType::Bf16);
    let weight = buffers.operand("weight", [n, k], DType::Bf16);
    let dx = buffers.result("dx", [m, k], DType::Bf16);
    let op = Op::GemmDgrad { parts: vec![GemmDgradPart { dout, weight }], dx };
    product(op, buffers, m, n, k)
}

fn gemm_wgrad(m: usize, n: usize, k: usize) -> Case {
    let mut buffers = Buffers::default();
    let x = buffers.operand("x", [m, k], DType::Bf16);
    let dout = buffers.operand("dout", [m, n], DType::Bf16);
    let dweight = buffers.result("dweight", [n, k], DType::F32);
    let dbias = buffers.result("dbias", [n, 1], DType::F32);
    let part = GemmWgradPart { dout, dweight, dbias: Some(dbias) };
    product(Op::GemmWgrad { x, parts: vec![part] }, buffers, m, n, k)
}

/// Buffers of q, k and v, and of the ends of sequences, which the batch brings.
fn attention(shape: (usize, usize), width: usize) -> (Buffers, [BufId; 3], BufId) {
    let (n_sequences, length) = shape;
    let mut buffers = Buffers::default();
    let qkv = ["q", "k", "v"]
        .map(|name| buffers.operand(name, [n_sequences * length, width], DType::Bf16));
    let role = Role::Input(Input::CuSeqlens);
    let cu_seqlens = buffers.add("cu_seqlens", [n_sequences + 1, 1], DType::I32, role);
    (buffers, qkv, cu_seqlens)
}

fn attention_case(
    op: Op,
    buffers: Buffers,
    batch: (usize, usize),
    n_heads: usize,
    size: usize,
) -> Case {
    let (n_sequences, length) = batch;
    Case {
        name: format!("{} {n_sequences}x{length}, {n_heads} heads of {size}", op.name()),
        op,
        buffers: buffers.0,
        batch,
        sizes: json!({
            "sequences": n_sequences, "length": length, "heads": n_heads, "head_size": size,
            "dropout": 0.0,
        }),
    }
}

fn attention_fwd(shape: (usize, usize), width: usize, head_size: usize) -> Case {
    let (mut buffers, [q, k, v], cu_seqlens) = attention(shape, width);
    let (n_tokens, n_heads) = (shape.0 * shape.1, width / head_size);
    let out = buffers.result("out", [n_tokens, width], DType::Bf16);
    let lse = Some(buffers.result("lse", [n_tokens, n_heads], DType::F32));
    let op = Op::AttentionFwd { q, k, v, cu_seqlens, n_heads, dropout: None, out, lse };
    attention_case(op, buffers, shape, n_heads, head_size)
}

fn attention_bwd(shape: (usize, usize), width: usize, head_size: usize) -> Case {
    let (mut buffers, [q, k, v], cu_seqlens) = attention(shape, width);
    let (n_tokens, n_heads) = (shape.0 * shape.1, width / head_size);
    let dout = buffers.operand("dout", [n_tokens, width], DType::Bf16);
    // What a forward pass leaves, which comes before this op in the plan.
    buffers.result("out", [n_tokens, width], DType::Bf16);
    let lse = buffers.result("lse", [n_tokens, n_heads], DType::F32);
    let [dq, dk, dv] =
        ["dq", "dk", "dv"].map(|name| Some(buffers.result(name, [n_tokens, width], DType::Bf16)));
    let dropout = None;
    let op = Op::AttentionBwd { dout, lse, q, k, v, cu_seqlens, n_heads, dropout, dq, dk, dv };
    attention_case(op, buffers, shape, n_heads, head_size)
}

impl Case {
    fn capacity(&self) -> Capacity {
        let (sequences, length) = self.batch;
        Capacity { tokens: sequences * length, sequences, max_length: length }
    }

    fn batch(&self) -> Batch {
        let (n_sequences, length) = self.batch;
        let n_tokens = n_sequences * length;
        Batch {
            input_ids: vec![0; n_tokens],
            position_ids: vec![0; n_tokens],
            token_type_ids: vec![0; n_tokens],
            cu_seqlens: (0..=n_sequences).map(|end| (end * length) as i32).collect(),
            ..Batch::default()
        }
    }

    /// The op, repeated; before a backward attention the forward one that leaves its sums.
    fn plan(&self, n: usize) -> Plan {
        let mut ops = Vec::new();
        if let Op::AttentionBwd { q, k, v, cu_seqlens, n_heads, lse, .. } = &self.op {
            let out = self.buffers.iter().position(|buffer| buffer.name == "out");
            let out = BufId(out.expect("attention_bwd made a buffer for it"));
            ops.push(Op::AttentionFwd {
                q: *q,
                k: *k,
                v: *v,
                cu_seqlens: *cu_seqlens,
                n_heads: *n_heads,
                dropout: None,
                out,
                lse: Some(*lse),
            });
        }
        ops.extend(std::iter::repeat_n(self.op.clone(), n));
        let none = BufId(0);
        Plan {
            buffers: self.buffers.clone(),
            ops,
            capacity: self.capacity(),
            tasks: Vec::new(),
            last_hidden: none,
            pooled: none,
            frontiers: Vec::new(),
        }
    }

    fn flops(&self) -> u64 {
        self.plan(1).cost(&self.op, &Counts::of(&self.batch())).flops
    }

    /// Microseconds of the op in each replay, and all its operands and results.
    fn run<D: cuda::Device>(
        &self,
        backend: &mut CudaBackend<D>,
        repeats: Repeats,
    ) -> Result<(Vec<f64>, Vec<NamedTensor>)> {
        backend.clear(true)?;
        let mut tensors = Vec::new();
        for (at, buffer) in self.buffers.iter().enumerate() {
            let Role::Value(id) = buffer.role else { continue };
            // Exact in the operand's type, so that the file has what the device got.
            let bytes = tensor::from_f32(buffer.dtype, &draws(at, buffer));
            backend.write_value(id, buffer.dtype, tensor::to_f32(buffer.dtype, &bytes))?;
            tensors.push(named(buffer, bytes));
        }
        let plan = self.plan(repeats.ops);
        let layout = Arc::new(Layout::new(&plan));
        let bound = backend.bind(Arc::new(plan), layout)?;
        let batch = self.batch();
        let mut times = Vec::new();
        for replay in 0..=repeats.replays {
            let run = backend.run(&bound, &batch, &StepState::FORWARD, Timing::Phases)?;
            // The first is no replay: it loads the kernels.
            if replay > 0 {
                let phase = run.phases[self.op.phase() as usize];
                times.push(phase.as_secs_f64() * 1e6 / repeats.ops as f64);
            }
        }
        for (at, buffer) in self.buffers.iter().enumerate() {
            if buffer.role == Role::Result {
                let values = backend.read(&bound, BufId(at))?;
                tensors.push(named(buffer, tensor::from_f32(buffer.dtype, &values)));
            }
        }
        Ok((times, tensors))
    }

    fn entry(&self, file: &str, us: Interval) -> Value {
        let mut entry = json!({
            "name": self.name,
            "op": self.op.name(),
            "file": file,
            "flops": self.flops(),
            "us": us,
        });
        if let (Some(entry), Some(sizes)) = (entry.as_object_mut(), self.sizes.as_object()) {
            entry.extend(sizes.clone());
        }
        entry
    }
}

fn named(buffer: &Buffer, bytes: Vec<u8>) -> NamedTensor {
    let n_rows = buffer.rows.count(0, 0);
    // Vectors of one column are vectors elsewhere.
    let shape = if buffer.cols == 1 { vec![n_rows] } else { vec![n_rows, buffer.cols] };
    NamedTensor { name: buffer.name.clone(), dtype: buffer.dtype, shape, bytes }
}

/// Unit normals for activations and gradients, 0.02 for weights; by rows at a time, on all cores.
fn draws(stream: usize, buffer: &Buffer) -> Vec<f32> {
    const ROWS: usize = 64;
    let n_rows = buffer.rows.count(0, 0);
    let std = if ["weight", "bias"].contains(&buffer.name.as_str()) { 0.02 } else { 1.0 };
    let pieces = (0..n_rows.div_ceil(ROWS)).into_par_iter().flat_map_iter(|piece| {
        let n = ROWS.min(n_rows - piece * ROWS) * buffer.cols;
        normal(3, (stream << 24 | piece) as u32, n, std)
    });
    pieces.collect()
}
