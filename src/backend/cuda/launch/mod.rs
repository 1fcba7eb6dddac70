//! From an op of the plan to launches of kernels: one function per op, named as the op, in the file of
//! its family. A launch function decides geometry and arguments; it does no arithmetic and touches no
//! memory.

mod attention;
mod elementwise;
mod gemm;
mod head;
mod optimizer;
mod rows;

use self::rows::{Branch, NormDparams, NormDx, NormOutputs, NormParams, NormSaved};
use super::device::{Arg, Device, Launch, Mark};
use super::inputs::{Derived, Inputs};
use super::memory::Addresses;
use crate::Result;
use crate::backend::KernelLaunch;
use crate::plan::op::{Dropout, GemmDgradPart, GemmFwdPart};
use crate::plan::{BufId, Capacity, Input, Op, Plan, Role, Rows};
use crate::tensor::DType;

/// `rows` arguments of kernels for counts that the batch decides, as `kernels/common.cuh` has them.
const ROWS_TOKENS: i32 = -1;
const ROWS_SEQUENCES: i32 = -2;

/// What the launches of a plan need beside its buffers. A rehearsal with no device fills it in.
#[derive(Debug, Default)]
pub(super) struct Needs {
    pub inputs: Inputs,
    pub scratch_bytes: usize,
    pub n_counters: usize,
    /// Tables of each op, by its index.
    pub tables: Vec<(usize, Vec<u64>)>,
    /// Launches of each op.
    pub launches: Vec<Vec<KernelLaunch>>,
}

/// Where the things of a bound plan that [`Needs`] asked for lie.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    pub inputs: u64,
    pub scratch: u64,
    pub counters: u64,
    /// In the order of [`Needs::tables`].
    pub tables: Vec<u64>,
}

/// Whether launches go to a device, or are only rehearsed.
pub(super) enum Stage<'a> {
    Rehearsal,
    Performance {
        device: &'a mut dyn Device,
        places: &'a Places,
        /// Takes a mark after each launch.
        marks: Option<&'a mut Vec<Mark>>,
    },
}

/// What a launch function sees: the addresses of its op's buffers and the facts of the plan.
pub(super) struct Context<'a> {
    pub plan: &'a Plan,
    pub addresses: &'a Addresses<'a>,
    pub needs: &'a mut Needs,
    pub stage: Stage<'a>,
    /// Index of the op in the plan.
    pub op: usize,
    /// Tables that the op has asked for so far.
    n_tables: usize,
    n_processors: u32,
}

impl<'a> Context<'a> {
    pub fn new(
        plan: &'a Plan,
        addresses: &'a Addresses<'a>,
        needs: &'a mut Needs,
        stage: Stage<'a>,
        n_processors: u32,
    ) -> Self {
        Context { plan, addresses, needs, stage, op: 0, n_tables: 0, n_processors }
    }

    /// Launches one op of the plan.
    pub fn perform(&mut self, op: usize) -> Result<()> {
        (self.op, self.n_tables) = (op, 0);
        if matches!(self.stage, Stage::Rehearsal) {
            self.needs.launches.push(Vec::new());
        }
        let (plan, op) = (self.plan, &self.plan.ops[op]);
        let shows =
            matches!(&self.stage, Stage::Performance { device, .. } if device.shows_ranges());
        if let (true, Stage::Performance { device, .. }) = (shows, &mut self.stage) {
            let first = op.writes().into_iter().chain(op.updates()).next();
            let target = first.map_or("", |buf| &plan.buffer(buf).name);
            // Names of tensors may hold what separates ranges in a profiler's filters.
            device.begin_range(&format!("{} {target}", op.name()).replace('/', "."));
        }
        let performed = dispatch(self, op);
        if let (true, Stage::Performance { device, .. }) = (shows, &mut self.stage) {
            device.end_range();
        }
        performed
    }

    /// The device address of a buffer.
    pub fn address(&mut self, buf: BufId) -> u64 {
        match self.plan.buffer(buf).role {
            Role::Input(input) => self.input(Derived::Input(input)),
            _ => self.addresses.of(buf),
        }
    }

    /// The address of the cache, or of a batch's rows of it.
    pub fn prefix(&self) -> u64 {
        self.addresses.memory.prefix.map_or(0, |block| block.address)
    }

    /// The address of a buffer that may be missing, 0 where it is.
    pub fn optional(&mut self, buf: Option<BufId>) -> u64 {
        buf.map_or(0, |buf| self.address(buf))
    }

    pub fn cols(&self, buf: BufId) -> usize {
        self.plan.buffer(buf).cols
    }

    /// The number of rows as kernels are told it.
    pub fn rows(&self, buf: BufId) -> i32 {
        match self.plan.buffer(buf).rows {
            Rows::Tokens => ROWS_TOKENS,
            Rows::Sequences => ROWS_SEQUENCES,
            Rows::SequenceEnds => unreachable!("no kernel goes over the ends of sequences"),
            Rows::Fixed(n) => n as i32,
        }
    }

    /// The number of rows at capacity.
    pub fn capacity_rows(&self, buf: BufId) -> usize {
        let capacity = self.plan.capacity;
        self.plan.buffer(buf).rows.count(capacity.tokens, capacity.sequences)
    }

    pub fn capacity(&self) -> Capacity {
        self.plan.capacity
    }

    /// The type of a buffer's elements.
    pub fn dtype(&self, buf: BufId) -> DType {
        self.plan.buffer(buf).dtype
    }

    /// The input that a buffer of ids holds.
    pub fn input_of(&self, buf: BufId) -> Input {
        match self.plan.buffer(buf).role {
            Role::Input(input) => input,
            role => unreachable!("{role:?} is no input"),
        }
    }

    /// The address of an array that the batch brings or that follows from it.
    pub fn input(&mut self, array: Derived) -> u64 {
        let offset = self.needs.inputs.place(array, self.plan.capacity) as u64;
        match &self.stage {
            Stage::Rehearsal => 0,
            Stage::Performance { places, .. } => places.inputs + offset,
        }
    }

    /// Sequence numbers of tokens and ends of sequences for a buffer's rows, 0 and 0 where its rows are
    /// sequences.
    pub fn sequences_of_rows(&mut self, buf: BufId) -> [u64; 2] {
        match self.plan.buffer(buf).rows {
            Rows::Tokens => {
                [self.input(Derived::SequenceIds), self.input(Derived::Input(Input::CuSeqlens))]
            }
            _ => [0, 0],
        }
    }

    /// Memory that is this op's own while it runs; what it holds before is arbitrary.
    pub fn scratch(&mut self, n_bytes: usize) -> u64 {
        self.needs.scratch_bytes = self.needs.scratch_bytes.max(n_bytes);
        match &self.stage {
            Stage::Rehearsal => 0,
            Stage::Performance { places, .. } => places.scratch,
        }
    }

    /// `n` 32-bit counters that are 0, and that the kernel leaves 0.
    pub fn counters(&mut self, n: usize) -> u64 {
        self.needs.n_counters = self.needs.n_counters.max(n);
        match &self.stage {
            Stage::Rehearsal => 0,
            Stage::Performance { places, .. } => places.counters,
        }
    }

    /// A table that stays as it is for as long as the plan is bound. It may hold addresses of
    /// parameters, gradients, masters and moments, not of the arena or of inputs.
    pub fn table(&mut self, words: impl FnOnce(&mut Self) -> Vec<u64>) -> u64 {
        let nth = self.n_tables;
        self.n_tables += 1;
        if matches!(self.stage, Stage::Rehearsal) {
            let words = words(self);
            self.needs.tables.push((self.op, words));
            return 0;
        }
        let of_op = |(_, (op, _)): &(usize, &(usize, Vec<u64>))| *op == self.op;
        let found = self.needs.tables.iter().enumerate().filter(of_op).nth(nth);
        let (at, _) = found.expect("the rehearsal asked for the same tables");
        match &self.stage {
            Stage::Rehearsal => 0,
            Stage::Performance { places, .. } => places.tables[at],
        }
    }

    /// Multiprocessors of the device.
    pub fn n_processors(&self) -> u32 {
        self.n_processors
    }

    /// Site and threshold of a dropout as kernels are told them; a threshold of 0 drops nothing.
    pub fn dropout(&self, dropout: Option<Dropout>) -> [Arg; 2] {
        let (site, threshold) = match dropout {
            Some(dropout) => (dropout.site, crate::backend::dropout::threshold(dropout.p)),
            None => (0, 0),
        };
        [Arg::U32(site), Arg::U32(threshold)]
    }

    /// The suffix of kernels whose activations have the type of `buf`.
    pub fn suffix(&self, buf: BufId) -> &'static str {
        match self.dtype(buf) {
            DType::Bf16 => "bf16",
            _ => "f32",
        }
    }

    /// Launches the kernel `kernel`, whole symbol; the state's address goes before `args`.
    pub fn launch(
        &mut self,
        kernel: &str,
        grid: [u32; 3],
        block: u32,
        shared_bytes: usize,
        args: &[Arg],
    ) -> Result<()> {
        match &mut self.stage {
            Stage::Rehearsal => {
                if let Some(launches) = self.needs.launches.last_mut() {
                    launches.push(KernelLaunch {
                        kernel: kernel.into(),
                        grid,
                        block,
                        shared_bytes,
                    });
                }
                Ok(())
            }
            Stage::Performance { device, places, marks } => {
                let mut all = Vec::with_capacity(args.len() + 1);
                all.push(Arg::Address(places.inputs));
                all.extend_from_slice(args);
                device.launch(&Launch { kernel, grid, block, shared_bytes, args: &all })?;
                if let Some(marks) = marks {
                    marks.push(device.mark()?);
                }
                Ok(())
            }
        }
    }
}

fn dispatch(cx: &mut Context, op: &Op) -> Result<()> {
    match op {
        Op::EmbedFwd { tables, out } => rows::embed_fwd(cx, tables, *out),
        Op::PrefixLoad { out, stream, .. } => rows::prefix_load(cx, *out, *stream),
        Op::LayernormFwd { x, residual, dropout, gamma, beta, eps, out, stream, xhat, rstd } => {
            let from = Branch { x: *x, residual: *residual, dropout: *dropout };
            let params = NormParams { gamma: *gamma, beta: *beta, eps: *eps };
            let to = NormOutputs { out: *out, stream: *stream, xhat: *xhat, rstd: *rstd };
            rows::layernorm_fwd(cx, &from, &params, &to)
        }
        Op::EmbedLayernormFwd { tables, gamma, beta, eps, out, stream, xhat, rstd } => {
            let params = NormParams { gamma: *gamma, beta: *beta, eps: *eps };
            let to = NormOutputs { out: *out, stream: *stream, xhat: *xhat, rstd: *rstd };
            rows::embed_layernorm_fwd(cx, tables, &params, &to)
        }
        Op::DropoutFwd { x, dropout, out } => rows::dropout_fwd(cx, *x, *dropout, *out),
        Op::GemmFwd { x, parts } => gemm::gemm_fwd(cx, *x, parts),
        Op::GeluFwd { x, out } => elementwise::gelu_fwd(cx, *x, *out),
        Op::GemmGeluFwd { x, weight, bias, pre, out } => {
            let part = GemmFwdPart { weight: *weight, bias: *bias, out: *out };
            gemm::gemm_gelu_fwd(cx, *x, part, *pre)
        }
        Op::TanhFwd { x, out } => elementwise::tanh_fwd(cx, *x, *out),
        Op::AttentionFwd { q, k, v, cu_seqlens, n_heads, dropout, out, lse } => {
            let shape = attention::Shape::new(cx, *q, *cu_seqlens, *n_heads, *dropout)?;
            attention::attention_fwd(cx, &shape, [*q, *k, *v], *out, *lse)
        }
        Op::PoolFwd { x, cu_seqlens, pooling, out } => {
            head::pool_fwd(cx, *x, *cu_seqlens, *pooling, *out)
        }
        Op::HeadFwd { x, weight, bias, labels, logits, .. } => {
            head::head_fwd(cx, *x, *weight, *bias, *labels, *logits)
        }
        Op::XentFwd { logits, labels, weights, smoothing, loss, dlogits, .. } => {
            let targets =
                head::Targets { labels: *labels, weights: *weights, smoothing: *smoothing };
            head::xent_fwd(cx, *logits, &targets, *loss, *dlogits)
        }
        Op::HeadDgrad { parts, dx } => head::head_dgrad(cx, parts, *dx),
        Op::HeadWgrad { x, dlogits, labels, dweight, dbias, .. } => {
            head::head_wgrad(cx, *x, *dlogits, *labels, *dweight, *dbias)
        }
        Op::PoolBwd { dout, cu_seqlens, pooling, dx } => {
            head::pool_bwd(cx, *dout, *cu_seqlens, *pooling, *dx)
        }
        Op::TanhBwd { out, dout, dx } => elementwise::tanh_bwd(cx, *out, *dout, *dx),
        Op::DropoutBwd { dout, dropout, dx } => rows::dropout_bwd(cx, dout, *dropout, *dx),
        Op::GeluBwd { x, dout, dx } => elementwise::gelu_bwd(cx, *x, *dout, *dx),
        Op::GemmDgrad { parts, dx } => gemm::gemm_dgrad(cx, parts, *dx),
        Op::GemmGeluDgrad { dout, weight, pre, dx } => {
            let part = GemmDgradPart { dout: *dout, weight: *weight };
            gemm::gemm_gelu_dgrad(cx, part, *pre, *dx)
        }
        Op::GemmWgrad { x, parts } => gemm::gemm_wgrad(cx, *x, parts),
        Op::BiasGrad { dout, dbias } => elementwise::bias_grad(cx, *dout, *dbias),
        Op::LayernormBwdDx { dout, xhat, rstd, gamma, dropout, dx, dresidual } => {
            let (xhat, rstd, gamma, dropout) = (*xhat, *rstd, *gamma, *dropout);
            let saved = NormSaved { dout, xhat, rstd, gamma, dropout };
            rows::layernorm_bwd_dx(cx, &saved, NormDx { dx: *dx, dresidual: *dresidual })
        }
        Op::LayernormBwdParams { dout, xhat, dgamma, dbeta } => {
            let to = NormDparams { dgamma: *dgamma, dbeta: *dbeta };
            rows::layernorm_bwd_params(cx, dout, *xhat, to)
        }
        Op::LayernormBwd { dout, xhat, rstd, gamma, dropout, dx, dresidual, dgamma, dbeta } => {
            let (xhat, rstd, gamma, dropout) = (*xhat, *rstd, *gamma, *dropout);
            let saved = NormSaved { dout, xhat, rstd, gamma, dropout };
            let dx = NormDx { dx: *dx, dresidual: *dresidual };
            rows::layernorm_bwd(cx, &saved, dx, NormDparams { dgamma: *dgamma, dbeta: *dbeta })
        }
        Op::AttentionBwd { dout, lse, q, k, v, cu_seqlens, n_heads, dropout, dq, dk, dv } => {
            let shape = attention::Shape::new(cx, *q, *cu_seqlens, *n_heads, *dropout)?;
            let saved = attention::Saved { dout: *dout, lse: *lse, qkv: [*q, *k, *v] };
            attention::attention_bwd(cx, &shape, &saved, [*dq, *dk, *dv])
        }
        Op::EmbedWgrad { dx, ids, padding_row, dtable } => {
            rows::embed_wgrad(cx, *dx, *ids, *padding_row, *dtable)
        }
        Op::GradAccumulate { items, begins } => optimizer::grad_accumulate(cx, items, *begins),
        Op::GradNorm { grads, max_norm, out } => optimizer::grad_norm(cx, grads, *max_norm, *out),
        Op::AdamwStep { items, clip } => optimizer::adamw_step(cx, items, *clip),
    }
}
