//! Every function of the CPU's table against the reference's, on ragged shapes; and that an output
//! that is not asked for changes no bit of the others.

mod common;

use std::collections::BTreeSet;

use common::{assert_close, close, ends_of, integers, normals, same_bits};
use frostline::backend::cpu::Cpu;
use frostline::backend::dropout::Mask;
use frostline::backend::host::ops::{
    AdamwTensor, AttentionGradients, AttentionSaved, AttentionShape, DgradPart, Embedding, FwdPart,
    HeadPart, NormDparams, NormDx, NormOutputs, NormParams, NormSaved, Qkv, RowMask, Targets,
    WgradPart,
};
use frostline::backend::host::{Element, Ops};
use frostline::backend::reference::Reference;
use frostline::batch::{ABSENT_LABEL, IGNORED_LABEL};
use frostline::model::{Group, Pooling};
use frostline::plan::op::Dropout;

/// Relative L2 error that each op may have in f32. A rounding is 6e-8 at most and 3e-8 on average;
/// the reference's results are rounded to f32 as well before they are compared.
const TOLERANCES: [(&str, f64, &str); 31] = [
    ("embed_fwd", 1e-7, "two additions"),
    ("prefix_load", 0.0, "a copy"),
    ("layernorm_fwd", 3e-7, "a mean and a variance over D, then four roundings"),
    ("embed_layernorm_fwd", 3e-7, "as layernorm_fwd"),
    ("dropout_fwd", 1e-7, "one product"),
    ("gemm_fwd", 5e-7, "K = 384 products, rounding errors grow with the root of K"),
    ("gelu_fwd", 4e-7, "the fit of erf is off by 4e-7 at most, of values about 1"),
    ("gemm_gelu_fwd", 6e-7, "gemm_fwd, then gelu_fwd"),
    ("tanh_fwd", 1e-7, "libm's tanhf"),
    (
        "attention_fwd",
        5e-7,
        "exp to 2 ulp, at an argument that carries the rounding of a dot product",
    ),
    ("pool_fwd", 3e-7, "a mean of 128 rows"),
    ("head_fwd", 5e-7, "as gemm_fwd"),
    ("xent_fwd", 1e-7, "in f64 inside"),
    ("head_dgrad", 5e-7, "sums over the labels of two heads"),
    ("head_wgrad", 1e-6, "sums over 129 rows that nearly cancel"),
    ("pool_bwd", 1e-7, "one product"),
    ("tanh_bwd", 2e-7, "three roundings, 1 - out² cancels a little"),
    ("dropout_bwd", 2e-7, "a sum of two and a product"),
    ("gelu_bwd", 4e-7, "as gelu_fwd"),
    ("gemm_dgrad", 1e-6, "as gemm_fwd, over three products"),
    ("gemm_gelu_dgrad", 1e-6, "gemm_dgrad, then gelu_bwd"),
    ("gemm_wgrad", 5e-7, "sums over 129 rows"),
    ("bias_grad", 5e-7, "sums over 129 rows"),
    ("layernorm_bwd_dx", 5e-7, "two sums over D"),
    ("layernorm_bwd_params", 5e-7, "sums over 129 rows"),
    ("layernorm_bwd", 5e-7, "as its parts"),
    ("attention_bwd", 1e-6, "as attention_fwd, then dp - delta cancels"),
    ("embed_wgrad", 3e-7, "sums over the tokens with one id"),
    ("grad_accumulate", 6e-8, "one addition"),
    ("grad_norm", 2e-7, "blocks of 1024 in f32, their sum in f64"),
    ("adamw_step", 2e-7, "a handful of roundings"),
];

fn tolerance(op: &str) -> f64 {
    TOLERANCES.iter().find(|(name, ..)| *name == op).unwrap().1
}

/// Results of one call, in f32; None for what was not asked for.
type Outputs = Vec<Option<Vec<f32>>>;

/// One call of an op, the same for both tables.
trait Case {
    const OP: &'static str;
    /// Optional outputs; bit `i` of `wanted` asks for the i-th.
    const N_OPTIONAL: u32 = 0;
    /// Whether the op is called at all with none of its optional outputs.
    const ALLOWS_NONE: bool = true;

    fn run<O: Ops>(&self, ops: &O, wanted: u32) -> Outputs;
}

/// CPU against reference with all outputs, and each table against itself with fewer.
fn check<C: Case>(case: &C, shape: &str) {
    let all = (1 << C::N_OPTIONAL) - 1;
    let (cpu, reference) = (case.run(&Cpu, all), case.run(&Reference, all));
    assert_eq!(cpu.len(), reference.len());
    for (i, (cpu, reference)) in cpu.iter().zip(&reference).enumerate() {
        let (cpu, reference) = (cpu.as_ref().unwrap(), reference.as_ref().unwrap());
        assert!(!cpu.is_empty());
        let what = format!("{} output {i}, {shape}", C::OP);
        assert_close(&what, cpu, reference, tolerance(C::OP));
    }
    for wanted in u32::from(!C::ALLOWS_NONE)..all {
        assert_same_bits(&case.run(&Cpu, wanted), &cpu, C::OP, wanted);
        assert_same_bits(&case.run(&Reference, wanted), &reference, C::OP, wanted);
    }
}

fn assert_same_bits(some: &Outputs, full: &Outputs, op: &str, wanted: u32) {
    for (i, (some, full)) in some.iter().zip(full).enumerate() {
        if let (Some(some), Some(full)) = (some, full) {
            assert!(same_bits(some, full), "{op}: output {i} changes with outputs {wanted:b}");
        }
    }
}

fn of<E: Element>(values: &[f32]) -> Vec<E> {
    E::from_f32s(values.to_vec())
}

fn nan<E: Element>(n: usize) -> Vec<E> {
    vec![E::NAN; n]
}

fn done<E: Element>(values: Vec<E>) -> Option<Vec<f32>> {
    Some(values.into_iter().map(Element::to_f32).collect())
}

/// An output that is wanted or not, as NaN to begin with.
fn optional<E: Element>(n: usize, wanted: u32, bit: u32) -> Option<Vec<E>> {
    (wanted >> bit & 1 == 1).then(|| nan(n))
}

fn finish<E: Element>(values: Option<Vec<E>>) -> Option<Vec<f32>> {
    values.and_then(done)
}

const ROWS: [usize; 3] = [1, 7, 129];
const WIDTHS: [usize; 3] = [8, 24, 384];

/// Sequences that have `n_rows` tokens together.
fn sequences(n_rows: usize) -> Vec<i32> {
    match n_rows {
        1 => ends_of(&[1]),
        7 => ends_of(&[4, 1, 2]),
        129 => ends_of(&[2, 33, 1, 77, 16]),
        n => panic!("no sequences for {n} rows"),
    }
}

fn mask(p: f32) -> Mask {
    Mask::new(Dropout { p, site: 9, group: Group::Layer(0) }, 42, 3)
}

/// Calls `f` with every row count and width.
fn for_shapes(mut f: impl FnMut(usize, usize)) {
    for rows in ROWS {
        for width in WIDTHS {
            f(rows, width);
        }
    }
}

fn ids(seed: u64, n: usize, below: usize) -> Vec<i32> {
    integers(seed, n, below).into_iter().map(|id| id as i32).collect()
}

struct EmbedFwd {
    rows: usize,
    width: usize,
    has_types: bool,
}

struct OwnedTables<E> {
    ids: [Vec<i32>; 3],
    tables: [Vec<E>; 3],
    width: usize,
    has_types: bool,
}

impl<E: Element> OwnedTables<E> {
    fn new(case: &EmbedFwd) -> Self {
        let EmbedFwd { rows, width, has_types } = *case;
        Self {
            ids: [ids(1, rows, 37), ids(2, rows, 40), ids(3, rows, 2)],
            tables: [(4, 37), (5, 40), (6, 2)].map(|(seed, n)| of(&normals(seed, n * width))),
            width,
            has_types,
        }
    }

    fn view(&self) -> Embedding<'_, E> {
        let [word_ids, position_ids, type_ids] = &self.ids;
        let [word, position, token_type] = &self.tables;
        Embedding {
            input_ids: word_ids,
            word,
            position_ids,
            position,
            token_type: self.has_types.then_some((type_ids.as_slice(), token_type.as_slice())),
            width: self.width,
        }
    }
}

impl Case for EmbedFwd {
    const OP: &'static str = "embed_fwd";

    fn run<O: Ops>(&self, ops: &O, _: u32) -> Outputs {
        let tables = OwnedTables::new(self);
        let mut out = nan(self.rows * self.width);
        ops.embed_fwd(&tables.view(), &mut out);
        vec![done(out)]
    }
}

struct EmbedLayernormFwd(EmbedFwd);

impl Case for EmbedLayernormFwd {
    const OP: &'static str = "embed_layernorm_fwd";
    const N_OPTIONAL: u32 = 2;

    fn run<O: Ops>(&self, ops: &O, wanted: u32) -> Outputs {
        let EmbedFwd { rows, width, .. } = self.0;
        let tables = OwnedTables::new(&self.0);
        norm_outputs::<O>(rows, width, wanted, |norm, to| {
            ops.embed_layernorm_fwd(&tables.view(), norm, to);
        })
    }
}

fn norm_outputs<O: Ops>(
    rows: usize,
    width: usize,
    wanted: u32,
    call: impl FnOnce(&NormParams<O::Element>, NormOutputs<O::Element>),
) -> Outputs {
    let (gamma, beta) = (of(&normals(7, width)), of(&normals(8, width)));
    let mut out = nan(rows * width);
    let mut xhat = optional(rows * width, wanted, 0);
    let mut rstd = optional(rows, wanted, 1);
    let norm = NormParams { gamma: &gamma, beta: &beta, eps: 1e-5 };
    let to = NormOutputs { out: &mut out, xhat: xhat.as_deref_mut(), rstd: rstd.as_deref_mut() };
    call(&norm, to);
    vec![done(out), finish(xhat), finish(rstd)]
}

#[test]
fn embeddings() {
    for_shapes(|rows, width| {
        for has_types in [true, false] {
            let case = EmbedFwd { rows, width, has_types };
            check(&case, &format!("{rows}x{width}"));
            check(&EmbedLayernormFwd(case), &format!("{rows}x{width}"));
        }
    });
}

struct LayernormFwd {
    rows: usize,
    width: usize,
    has_residual: bool,
    has_dropout: bool,
}

impl Case for LayernormFwd {
    const OP: &'static str = "layernorm_fwd";
    const N_OPTIONAL: u32 = 2;

    fn run<O: Ops>(&self, ops: &O, wanted: u32) -> Outputs {
        let LayernormFwd { rows, width, has_residual, has_dropout } = *self;
        // An offset, so that a mean that is not subtracted shows.
        let x: Vec<f32> = normals(1, rows * width).iter().map(|x| 2.0 * x + 3.0).collect();
        let (x, residual) = (of(&x), of(&normals(2, rows * width)));
        let ends = sequences(rows);
        let mask = has_dropout.then(|| RowMask { mask: mask(0.1), cu_seqlens: Some(&ends) });
        norm_outputs::<O>(rows, width, wanted, |norm, to| {
            ops.layernorm_fwd(&x, has_residual.then_some(&residual), mask, norm, to);
        })
    }
}

#[test]
fn layernorm_forward() {
    for_shapes(|rows, width| {
        for (has_residual, has_dropout) in
            [(false, false), (true, false), (false, true), (true, true)]
        {
            let case = LayernormFwd { rows, width, has_residual, has_dropout };
            check(&case, &format!("{rows}x{width} {has_residual} {has_dropout}"));
        }
    });
}

/// Both backward ops of LayerNorm and their fusion; `N_DOUT` gradients are summed.
struct NormBwd {
    rows: usize,
    width: usize,
    n_dout: usize,
    has_dropout: bool,
}

struct NormTensors<E> {
    douts: Vec<Vec<E>>,
    xhat: Vec<E>,
    rstd: Vec<E>,
    gamma: Vec<E>,
    ends: Vec<i32>,
}

impl NormBwd {
    fn tensors<E: Element>(&self) -> NormTensors<E> {
        let NormBwd { rows, width, n_dout, .. } = *self;
        // Rows that are normalised, as those of a real xhat.
        let mut xhat = normals(1, rows * width);
        for row in xhat.chunks_mut(width) {
            let mean = row.iter().sum::<f32>() / width as f32;
            row.iter_mut().for_each(|x| *x -= mean);
            let std = (row.iter().map(|x| x * x).sum::<f32>() / width as f32).sqrt();
            row.iter_mut().for_each(|x| *x /= std);
        }
        let rstd: Vec<f32> = normals(2, rows).iter().map(|v| v.abs() + 0.5).collect();
        NormTensors {
            douts: (0..n_dout as u64).map(|i| of(&normals(10 + i, rows * width))).collect(),
            xhat: of(&xhat),
            rstd: of(&rstd),
            gamma: of(&normals(3, width)),
            ends: sequences(rows),
        }
    }

    fn call<E: Element>(&self, f: impl FnOnce(&NormSaved<E>)) {
        let tensors: NormTensors<E> = self.tensors();
        let dout: Vec<&[E]> = tensors.douts.iter().map(Vec::as_slice).collect();
        let mask =
            self.has_dropout.then(|| RowMask { mask: mask(0.3), cu_seqlens: Some(&tensors.ends) });
        f(&NormSaved {
            dout: &dout,
            xhat: &tensors.xhat,
            rstd: &tensors.rstd,
            gamma: &tensors.gamma,
            mask,
        });
    }
}

struct LayernormBwdDx<'a>(&'a NormBwd);
struct LayernormBwdParams<'a>(&'a NormBwd);
struct LayernormBwd<'a>(&'a NormBwd);

impl Case for LayernormBwdDx<'_> {
    const OP: &'static str = "layernorm_bwd_dx";
    const N_OPTIONAL: u32 = 2;
    const ALLOWS_NONE: bool = false;

    fn run<O: Ops>(&self, ops: &O, wanted: u32) -> Outputs {
        let n = self.0.rows * self.0.width;
        let (mut dx, mut dresidual) = (optional(n, wanted, 0), optional(n, wanted, 1));
        self.0.call(|saved: &NormSaved<O::Element>| {
            let to = NormDx { dx: dx.as_deref_mut(), dresidual: dresidual.as_deref_mut() };
            ops.layernorm_bwd_dx(saved, to);
        });
        vec![finish(dx), finish(dresidual)]
    }
}

impl Case for LayernormBwdParams<'_> {
    const OP: &'static str = "layernorm_bwd_params";
    const N_OPTIONAL: u32 = 2;
    const ALLOWS_NONE: bool = false;

    fn run<O: Ops>(&self, ops: &O, wanted: u32) -> Outputs {
        let width = self.0.width;
        let (mut dgamma, mut dbeta) = (optional(width, wanted, 0), optional(width, wanted, 1));
        self.0.call(|saved: &NormSaved<O::Element>| {
            let xhat = dgamma.is_some().then_some(saved.xhat);
            let to = NormDparams { dgamma: dgamma.as_deref_mut(), dbeta: dbeta.as_deref_mut() };
            ops.layernorm_bwd_params(saved.dout, xhat, to);
        });
        vec![finish(dgamma), finish(dbeta)]
    }
}

impl Case for LayernormBwd<'_> {
    const OP: &'static str = "layernorm_bwd";
    const N_OPTIONAL: u32 = 4;
    const ALLOWS_NONE: bool = false;

    fn run<O: Ops>(&self, ops: &O, wanted: u32) -> Outputs {
        let (n, width) = (self.0.rows * self.0.width, self.0.width);
        let (mut dx, mut dresidual) = (optional(n, wanted, 0), optional(n, wanted, 1));
        let (mut dgamma, mut dbeta) = (optional(width, wanted, 2), optional(width, wanted, 3));
        self.0.call(|saved: &NormSaved<O::Element>| {
            let dx = NormDx { dx: dx.as_deref_mut(), dresidual: dresidual.as_deref_mut() };
            let dparams =
                NormDparams { dgamma: dgamma.as_deref_mut(), dbeta: dbeta.as_deref_mut() };
            ops.layernorm_bwd(saved, dx, dparams);
        });
        vec![finish(dx), finish(dresidual), finish(dgamma), finish(dbeta)]
    }
}

#[test]
fn layernorm_backward() {
    for_shapes(|rows, width| {
        for (n_dout, has_dropout) in [(1, false), (2, false), (2, true)] {
            let case = NormBwd { rows, width, n_dout, has_dropout };
            let shape = format!("{rows}x{width}, {n_dout} dout, dropout {has_dropout}");
            check(&LayernormBwdDx(&case), &shape);
            check(&LayernormBwdParams(&case), &shape);
            check(&LayernormBwd(&case), &shape);
            // The fusion is its parts, one after the other.
            let mut parts = LayernormBwdDx(&case).run(&Cpu, 0b11);
            parts.extend(LayernormBwdParams(&case).run(&Cpu, 0b11));
            assert_same_bits(&LayernormBwd(&case).run(&Cpu, 0b1111), &parts, "fused", 0b1111);
        }
    });
}

struct Rowwise {
    rows: usize,
    width: usize,
    per_token: bool,
}

struct DropoutFwd(Rowwise);
struct DropoutBwd(Rowwise);

impl Rowwise {
    fn mask<'a>(&self, ends: &'a [i32]) -> RowMask<'a> {
        RowMask { mask: mask(0.3), cu_seqlens: self.per_token.then_some(ends) }
    }
}

impl Case for DropoutFwd {
    const OP: &'static str = "dropout_fwd";

    fn run<O: Ops>(&self, ops: &O, _: u32) -> Outputs {
        let (n, ends) = (self.0.rows * self.0.width, sequences(self.0.rows));
        let mut out = nan(n);
        ops.dropout_fwd(&of(&normals(1, n)), self.0.mask(&ends), self.0.width, &mut out);
        vec![done(out)]
    }
}

impl Case for DropoutBwd {
    const OP: &'static str = "dropout_bwd";

    fn run<O: Ops>(&self, ops: &O, _: u32) -> Outputs {
        let (n, ends) = (self.0.rows * self.0.width, sequences(self.0.rows));
        let (a, b) = (of(&normals(1, n)), of(&normals(2, n)));
        let mut dx = nan(n);
        ops.dropout_bwd(&[&a, &b], self.0.mask(&ends), self.0.width, &mut dx);
        vec![done(dx)]
    }
}

#[test]
fn dropout() {
    for_shapes(|rows, width| {
        for per_token in [true, false] {
            let shape = format!("{rows}x{width} {per_token}");
            check(&DropoutFwd(Rowwise { rows, width, per_token }), &shape);
            check(&DropoutBwd(Rowwise { rows, width, per_token }), &shape);
        }
    });
}

/// `n_parts` products over the same rows.
struct Gemm {
    m: usize,
    n: usize,
    k: usize,
    n_parts: u64,
}

struct GemmFwd(Gemm);
struct GemmDgrad(Gemm);
struct GemmWgrad(Gemm);
struct GemmGeluFwd(Gemm);
struct GemmGeluDgrad(Gemm);

impl Case for GemmFwd {
    const OP: &'static str = "gemm_fwd";

    fn run<O: Ops>(&self, ops: &O, _: u32) -> Outputs {
        let Gemm { m, n, k, n_parts } = self.0;
        let x = of(&normals(1, m * k));
        let mut tensors: Vec<_> = (0..n_parts)
            .map(|i| (of(&normals(2 + i, n * k)), of(&normals(10 + i, n)), nan(m * n)))
            .collect();
        let parts = tensors.iter_mut().map(|(weight, bias, out)| FwdPart { weight, bias, out });
        ops.gemm_fwd(&x, k, parts.collect());
        tensors.into_iter().map(|(.., out)| done(out)).collect()
    }
}

impl Case for GemmGeluFwd {
    const OP: &'static str = "gemm_gelu_fwd";
    const N_OPTIONAL: u32 = 1;

    fn run<O: Ops>(&self, ops: &O, wanted: u32) -> Outputs {
        let Gemm { m, n, k, .. } = self.0;
        // Weights that keep GELU's input about 1, where it is not yet a ramp.
        let weight: Vec<f32> = normals(2, n * k).iter().map(|w| w / (k as f32).sqrt()).collect();
        let (x, weight, bias) = (of(&normals(1, m * k)), of(&weight), of(&normals(3, n)));
        let (mut out, mut pre) = (nan(m * n), optional(m * n, wanted, 0));
        let part = FwdPart { weight: &weight, bias: &bias, out: &mut out };
        ops.gemm_gelu_fwd(&x, k, part, pre.as_deref_mut());
        vec![done(out), finish(pre)]
    }
}

impl Case for GemmDgrad {
    const OP: &'static str = "gemm_dgrad";

    fn run<O: Ops>(&self, ops: &O, _: u32) -> Outputs {
        let Gemm { m, n, k, n_parts } = self.0;
        let tensors: Vec<_> = (0..n_parts)
            .map(|i| (of(&normals(2 + i, m * n)), of(&normals(10 + i, n * k))))
            .collect();
        let parts: Vec<_> =
            tensors.iter().map(|(dout, weight)| DgradPart { dout, weight, n }).collect();
        let mut dx = nan(m * k);
        ops.gemm_dgrad(&parts, k, &mut dx);
        vec![done(dx)]
    }
}

impl Case for GemmGeluDgrad {
    const OP: &'static str = "gemm_gelu_dgrad";

    fn run<O: Ops>(&self, ops: &O, _: u32) -> Outputs {
        let Gemm { m, n, k, .. } = self.0;
        let (dout, weight) = (of(&normals(1, m * n)), of(&normals(2, n * k)));
        let mut dx = nan(m * k);
        let part = DgradPart { dout: &dout, weight: &weight, n };
        ops.gemm_gelu_dgrad(&part, k, &of(&normals(3, m * k)), &mut dx);
        vec![done(dx)]
    }
}

impl Case for GemmWgrad {
    const OP: &'static str = "gemm_wgrad";
    const N_OPTIONAL: u32 = 1;

    fn run<O: Ops>(&self, ops: &O, wanted: u32) -> Outputs {
        let Gemm { m, n, k, n_parts } = self.0;
        let x = of(&normals(1, m * k));
        let mut tensors: Vec<_> = (0..n_parts)
            .map(|i| (of(&normals(2 + i, m * n)), nan(n * k), optional(n, wanted, 0)))
            .collect();
        let parts = tensors.iter_mut().map(|(dout, dweight, dbias)| WgradPart {
            dout,
            dweight,
            dbias: dbias.as_deref_mut(),
            n,
        });
        ops.gemm_wgrad(&x, k, parts.collect());
        tensors.into_iter().flat_map(|(_, dw, db)| [done(dw), finish(db)]).collect()
    }
}

struct BiasGrad {
    rows: usize,
    width: usize,
}

impl Case for BiasGrad {
    const OP: &'static str = "bias_grad";

    fn run<O: Ops>(&self, ops: &O, _: u32) -> Outputs {
        let mut dbias = nan(self.width);
        ops.bias_grad(&of(&normals(1, self.rows * self.width)), &mut dbias);
        vec![done(dbias)]
    }
}

#[test]
fn products() {
    for m in ROWS {
        for (n, k) in [(8, 24), (24, 8), (24, 384), (384, 24), (384, 384)] {
            for n_parts in [1, 3] {
                let gemm = || Gemm { m, n, k, n_parts };
                let shape = format!("{m}x{n}x{k}, {n_parts} parts");
                check(&GemmFwd(gemm()), &shape);
                check(&GemmDgrad(gemm()), &shape);
                check(&GemmWgrad(gemm()), &shape);
            }
            let shape = format!("{m}x{n}x{k}");
            check(&GemmGeluFwd(Gemm { m, n, k, n_parts: 1 }), &shape);
            check(&GemmGeluDgrad(Gemm { m, n, k, n_parts: 1 }), &shape);
        }
    }
    for_shapes(|rows, width| check(&BiasGrad { rows, width }, &format!("{rows}x{width}")));
}

/// Ops from one tensor to another of its shape, and their gradients.
struct GeluFwd(usize);
struct GeluBwd(usize);
struct TanhFwd(usize);
struct TanhBwd(usize);

impl Case for GeluFwd {
    const OP: &'static str = "gelu_fwd";

    fn run<O: Ops>(&self, ops: &O, _: u32) -> Outputs {
        let mut out = nan(self.0);
        ops.gelu_fwd(&of(&normals(1, self.0)), &mut out);
        vec![done(out)]
    }
}

impl Case for GeluBwd {
    const OP: &'static str = "gelu_bwd";

    fn run<O: Ops>(&self, ops: &O, _: u32) -> Outputs {
        let mut dx = nan(self.0);
        ops.gelu_bwd(&of(&normals(1, self.0)), &of(&normals(2, self.0)), &mut dx);
        vec![done(dx)]
    }
}

impl Case for TanhFwd {
    const OP: &'static str = "tanh_fwd";

    fn run<O: Ops>(&self, ops: &O, _: u32) -> Outputs {
        let mut out = nan(self.0);
        ops.tanh_fwd(&of(&normals(1, self.0)), &mut out);
        vec![done(out)]
    }
}

impl Case for TanhBwd {
    const OP: &'static str = "tanh_bwd";

    fn run<O: Ops>(&self, ops: &O, _: u32) -> Outputs {
        let out: Vec<f32> = normals(1, self.0).iter().map(|x| x.tanh()).collect();
        let mut dx = nan(self.0);
        ops.tanh_bwd(&of(&out), &of(&normals(2, self.0)), &mut dx);
        vec![done(dx)]
    }
}

#[test]
fn activations() {
    // The last one is cut into pieces for the threads.
    for n in [1, 7, 129 * 24, 129 * 384] {
        let shape = n.to_string();
        check(&GeluFwd(n), &shape);
        check(&GeluBwd(n), &shape);
        check(&TanhFwd(n), &shape);
        check(&TanhBwd(n), &shape);
    }
}

struct Attention<'a> {
    lengths: &'a [usize],
    n_heads: usize,
    head_size: usize,
    dropout: Option<f32>,
}

impl Attention<'_> {
    fn call(&self, f: impl FnOnce(&AttentionShape, usize)) {
        let ends = ends_of(self.lengths);
        let width = self.n_heads * self.head_size;
        let shape = AttentionShape {
            cu_seqlens: &ends,
            n_heads: self.n_heads,
            width,
            mask: self.dropout.map(mask),
        };
        f(&shape, self.lengths.iter().sum::<usize>() * width);
    }
}

struct AttentionFwd<'a>(&'a Attention<'a>);
struct AttentionBwd<'a>(&'a Attention<'a>);

impl Case for AttentionFwd<'_> {
    const OP: &'static str = "attention_fwd";
    const N_OPTIONAL: u32 = 1;

    fn run<O: Ops>(&self, ops: &O, wanted: u32) -> Outputs {
        let mut outputs = Vec::new();
        self.0.call(|shape, n| {
            let (q, k, v) = (of(&normals(1, n)), of(&normals(2, n)), of(&normals(3, n)));
            let mut out = nan(n);
            let mut lse = optional(n / self.0.head_size, wanted, 0);
            let qkv = Qkv { q: &q, k: &k, v: &v };
            ops.attention_fwd(&qkv, shape, &mut out, lse.as_deref_mut());
            outputs = vec![done(out), finish(lse)];
        });
        outputs
    }
}

impl Case for AttentionBwd<'_> {
    const OP: &'static str = "attention_bwd";
    const N_OPTIONAL: u32 = 3;
    const ALLOWS_NONE: bool = false;

    fn run<O: Ops>(&self, ops: &O, wanted: u32) -> Outputs {
        let mut outputs = Vec::new();
        self.0.call(|shape, n| {
            let (q, k, v) = (of(&normals(1, n)), of(&normals(2, n)), of(&normals(3, n)));
            // The logarithms of a real forward pass, the same for both tables.
            let (mut out, mut lse) = (nan(n), nan(n / self.0.head_size));
            let wide = |seed| of::<f64>(&normals(seed, n));
            let qkv = (wide(1), wide(2), wide(3));
            let qkv = Qkv { q: &qkv.0, k: &qkv.1, v: &qkv.2 };
            Reference.attention_fwd(&qkv, shape, &mut out, Some(&mut lse));
            let (dout, lse) = (of(&normals(4, n)), of(&done(lse).unwrap()));
            let [mut dq, mut dk, mut dv] = [0, 1, 2].map(|bit| optional(n, wanted, bit));
            let needs_scores = dq.is_some() || dk.is_some();
            let saved = AttentionSaved {
                dout: &dout,
                lse: &lse,
                q: &q,
                k: &k,
                v: needs_scores.then_some(v.as_slice()),
            };
            let to = AttentionGradients {
                dq: dq.as_deref_mut(),
                dk: dk.as_deref_mut(),
                dv: dv.as_deref_mut(),
            };
            ops.attention_bwd(&saved, shape, to);
            outputs = vec![finish(dq), finish(dk), finish(dv)];
        });
        outputs
    }
}

#[test]
fn attention() {
    for (n_heads, head_size) in [(3, 8), (2, 32), (1, 64)] {
        for lengths in [[2, 33, 1, 77, 128].as_slice(), &[1]] {
            for dropout in [None, Some(0.1)] {
                let case = Attention { lengths, n_heads, head_size, dropout };
                let shape = format!("{lengths:?}, {n_heads} of {head_size}, {dropout:?}");
                check(&AttentionFwd(&case), &shape);
                // One token attends to itself alone, so that dq and dk are zero: in f32 up to
                // rounding, which is checked by itself below.
                if lengths.len() > 1 {
                    check(&AttentionBwd(&case), &shape);
                }
            }
        }
    }
}

/// A lone token's softmax is 1 whatever its score: no gradient goes through it.
#[test]
fn attention_of_a_lone_token() {
    let case = Attention { lengths: &[1], n_heads: 3, head_size: 32, dropout: None };
    let outputs = AttentionBwd(&case).run(&Cpu, 0b111);
    let [dq, dk, dv] = outputs.as_slice() else { panic!("three gradients") };
    for gradient in [dq, dk] {
        // dp - delta cancels: 32 products of unit normals, rounded to 6e-8 each.
        assert!(gradient.iter().flatten().all(|g| g.abs() <= 1e-5), "{gradient:?}");
    }
    assert_close("dv", dv.as_ref().unwrap(), &normals(4, 96), 1e-6);
}

struct Pool {
    rows: usize,
    width: usize,
    pooling: Pooling,
}

struct PoolFwd<'a>(&'a Pool);
struct PoolBwd<'a>(&'a Pool);

impl Case for PoolFwd<'_> {
    const OP: &'static str = "pool_fwd";

    fn run<O: Ops>(&self, ops: &O, _: u32) -> Outputs {
        let Pool { rows, width, pooling } = *self.0;
        let ends = sequences(rows);
        let mut out = nan((ends.len() - 1) * width);
        ops.pool_fwd(&of(&normals(1, rows * width)), &ends, pooling, &mut out);
        vec![done(out)]
    }
}

impl Case for PoolBwd<'_> {
    const OP: &'static str = "pool_bwd";

    fn run<O: Ops>(&self, ops: &O, _: u32) -> Outputs {
        let Pool { rows, width, pooling } = *self.0;
        let ends = sequences(rows);
        let mut dx = nan(rows * width);
        let dout = of(&normals(1, (ends.len() - 1) * width));
        ops.pool_bwd(&dout, &ends, pooling, &mut dx);
        vec![done(dx)]
    }
}

#[test]
fn pooling() {
    for_shapes(|rows, width| {
        for pooling in [Pooling::Mean, Pooling::Cls] {
            let case = Pool { rows, width, pooling };
            let shape = format!("{rows}x{width} {pooling:?}");
            check(&PoolFwd(&case), &shape);
            check(&PoolBwd(&case), &shape);
        }
    });
}

/// Labels of every kind; one row alone has a label.
fn labels(rows: usize, n_labels: usize, seed: u64) -> Vec<i32> {
    let draws = ids(seed, rows, n_labels).into_iter().enumerate();
    draws
        .map(|(row, class)| match (row + seed as usize) % 4 {
            2 => IGNORED_LABEL,
            3 => ABSENT_LABEL,
            _ => class,
        })
        .collect()
}

struct Head {
    rows: usize,
    width: usize,
    n_labels: usize,
}

struct HeadFwd<'a>(&'a Head);
struct HeadDgrad<'a>(&'a Head);
struct HeadWgrad<'a>(&'a Head);
struct XentFwd<'a> {
    head: &'a Head,
    is_weighted: bool,
    smoothing: f32,
}

/// The rows of a `[rows, n]` result that take part; the others must still be NaN.
fn present<E: Element>(values: Vec<E>, labels: &[i32]) -> Option<Vec<f32>> {
    let (values, n) = (done(values)?, 0..labels.len());
    let width = values.len() / labels.len();
    let row = |row: usize| &values[row * width..(row + 1) * width];
    for absent in n.clone().filter(|&row| labels[row] == ABSENT_LABEL) {
        assert!(row(absent).iter().all(|v| v.is_nan()), "row {absent} is absent and was computed");
    }
    let kept = n.filter(|&row| labels[row] != ABSENT_LABEL);
    Some(kept.flat_map(row).copied().collect())
}

impl Case for HeadFwd<'_> {
    const OP: &'static str = "head_fwd";

    fn run<O: Ops>(&self, ops: &O, _: u32) -> Outputs {
        let Head { rows, width, n_labels } = *self.0;
        let labels = labels(rows, n_labels, 0);
        let x = of(&normals(1, rows * width));
        let (weight, bias) = (of(&normals(2, n_labels * width)), of(&normals(3, n_labels)));
        let mut out = nan(rows * n_labels);
        ops.head_fwd(&x, &labels, FwdPart { weight: &weight, bias: &bias, out: &mut out });
        vec![present(out, &labels)]
    }
}

impl Case for XentFwd<'_> {
    const OP: &'static str = "xent_fwd";
    const N_OPTIONAL: u32 = 1;

    fn run<O: Ops>(&self, ops: &O, wanted: u32) -> Outputs {
        let Head { rows, n_labels, .. } = *self.head;
        let labels = labels(rows, n_labels, 0);
        // Logits of absent rows are never read, nor are weights of rows without a label: they stay NaN.
        let mut logits = of::<O::Element>(&normals(1, rows * n_labels));
        for (row, logits) in logits.chunks_mut(n_labels).enumerate() {
            if labels[row] == ABSENT_LABEL {
                logits.fill(O::Element::NAN);
            }
        }
        let weight = |(normal, label): (f32, &i32)| match label {
            0.. => 0.2 + normal.abs(),
            _ => f32::NAN,
        };
        let weights: Vec<f32> = normals(2, rows).into_iter().zip(&labels).map(weight).collect();
        let targets = Targets {
            labels: &labels,
            weights: self.is_weighted.then_some(&weights),
            smoothing: self.smoothing,
        };
        let mut loss = nan(1);
        let mut dlogits = optional(rows * n_labels, wanted, 0);
        ops.xent_fwd(&logits, &targets, &mut loss, dlogits.as_deref_mut());
        vec![done(loss), dlogits.and_then(|dlogits| present(dlogits, &labels))]
    }
}

/// Gradients at logits as `xent_fwd` leaves them: zero where ignored, anything where absent.
fn dlogits<E: Element>(labels: &[i32], n_labels: usize, seed: u64) -> Vec<E> {
    let mut dlogits = of::<E>(&normals(seed, labels.len() * n_labels));
    for (row, dlogits) in dlogits.chunks_mut(n_labels).enumerate() {
        match labels[row] {
            ABSENT_LABEL => dlogits.fill(E::NAN),
            IGNORED_LABEL => dlogits.fill(E::ZERO),
            _ => {}
        }
    }
    dlogits
}

impl Case for HeadDgrad<'_> {
    const OP: &'static str = "head_dgrad";

    fn run<O: Ops>(&self, ops: &O, _: u32) -> Outputs {
        let Head { rows, width, n_labels } = *self.0;
        let tensors: Vec<_> = (0..2u64)
            .map(|task| {
                let n_labels = n_labels + task as usize;
                let labels = labels(rows, n_labels, task);
                let weight = of(&normals(3 + task, n_labels * width));
                (dlogits(&labels, n_labels, 5 + task), weight, labels)
            })
            .collect();
        let parts: Vec<_> = (tensors.iter())
            .map(|(dlogits, weight, labels)| HeadPart { dlogits, weight, labels })
            .collect();
        let mut dx = nan(rows * width);
        ops.head_dgrad(&parts, &mut dx);
        vec![done(dx)]
    }
}

impl Case for HeadWgrad<'_> {
    const OP: &'static str = "head_wgrad";
    const N_OPTIONAL: u32 = 2;
    const ALLOWS_NONE: bool = false;

    fn run<O: Ops>(&self, ops: &O, wanted: u32) -> Outputs {
        let Head { rows, width, n_labels } = *self.0;
        let labels = labels(rows, n_labels, 0);
        let dlogits = dlogits(&labels, n_labels, 1);
        let x = of(&normals(2, rows * width));
        let mut dweight = optional(n_labels * width, wanted, 0);
        let mut dbias = optional(n_labels, wanted, 1);
        let x = dweight.is_some().then_some(x.as_slice());
        ops.head_wgrad(x, &dlogits, &labels, dweight.as_deref_mut(), dbias.as_deref_mut());
        vec![finish(dweight), finish(dbias)]
    }
}

#[test]
fn heads_and_losses() {
    for_shapes(|rows, width| {
        for n_labels in [2, 3, 77] {
            let case = Head { rows, width, n_labels };
            let shape = format!("{rows}x{width}, {n_labels} labels");
            check(&HeadFwd(&case), &shape);
            for (is_weighted, smoothing) in [(false, 0.0), (true, 0.0), (false, 0.1), (true, 0.3)] {
                let shape = format!("{shape}, weighted {is_weighted}, smoothing {smoothing}");
                check(&XentFwd { head: &case, is_weighted, smoothing }, &shape);
            }
            check(&HeadDgrad(&case), &shape);
            check(&HeadWgrad(&case), &shape);
        }
    });
}

fn plain(labels: &[i32]) -> Targets<'_> {
    Targets { labels, weights: None, smoothing: 0.0 }
}

/// A task without a label in the batch: loss and gradients are zero, not 0/0.
#[test]
fn a_batch_without_labels_has_no_loss() {
    fn run<O: Ops>(ops: &O) {
        let labels = [IGNORED_LABEL, ABSENT_LABEL];
        let (mut loss, mut dlogits) = (nan(1), nan(4));
        ops.xent_fwd(&of(&normals(1, 4)), &plain(&labels), &mut loss, Some(&mut dlogits));
        assert_eq!(done(loss).unwrap(), [0.0]);
        let (mut dweight, mut dbias, mut dx) = (nan(6), nan(2), nan(6));
        let weight = of(&normals(2, 6));
        let part = HeadPart { dlogits: &dlogits, weight: &weight, labels: &labels };
        ops.head_dgrad(&[part], &mut dx);
        let x = of(&normals(3, 6));
        ops.head_wgrad(Some(&x), &dlogits, &labels, Some(&mut dweight), Some(&mut dbias));
        for gradient in [dx, dweight, dbias] {
            assert!(done(gradient).unwrap().iter().all(|g| *g == 0.0));
        }
    }
    run(&Cpu);
    run(&Reference);
}

/// Logits that overflow exp in f32, and a class that is certain.
#[test]
fn extreme_logits_have_finite_losses() {
    fn run<O: Ops>(ops: &O) {
        let logits = of(&[500.0, -500.0, 0.0, 90.0, 90.0, 90.0]);
        let (mut loss, mut dlogits) = (nan(1), nan(6));
        ops.xent_fwd(&logits, &plain(&[1, 0]), &mut loss, Some(&mut dlogits));
        // (1000 + ln 3) / 2
        assert_close("loss", &done(loss).unwrap(), &[500.549_3f32], 1e-7);
        let third = 1.0f32 / 6.0;
        let expected = [0.5, -0.5, 0.0, -2.0 * third, third, third];
        assert_close("dlogits", &done(dlogits).unwrap(), &expected, 1e-7);
    }
    run(&Cpu);
    run(&Reference);
}

struct EmbedWgrad {
    rows: usize,
    width: usize,
    padding_row: Option<usize>,
}

impl Case for EmbedWgrad {
    const OP: &'static str = "embed_wgrad";

    fn run<O: Ops>(&self, ops: &O, _: u32) -> Outputs {
        let EmbedWgrad { rows, width, padding_row } = *self;
        let mut dtable = nan(37 * width);
        let dx = of(&normals(1, rows * width));
        ops.embed_wgrad(&dx, &ids(2, rows, 37), padding_row, width, &mut dtable);
        vec![done(dtable)]
    }
}

#[test]
fn embedding_gradients() {
    for_shapes(|rows, width| {
        for padding_row in [None, Some(0), Some(ids(2, 1, 37)[0] as usize)] {
            let case = EmbedWgrad { rows, width, padding_row };
            check(&case, &format!("{rows}x{width} {padding_row:?}"));
        }
    });
}

struct GradNorm {
    sizes: Vec<usize>,
    max_norm: f32,
}

impl Case for GradNorm {
    const OP: &'static str = "grad_norm";

    fn run<O: Ops>(&self, ops: &O, _: u32) -> Outputs {
        let grads: Vec<Vec<O::Element>> =
            self.sizes.iter().map(|&n| of(&normals(n as u64, n))).collect();
        let grads: Vec<&[O::Element]> = grads.iter().map(Vec::as_slice).collect();
        let [norm, factor] = ops.grad_norm(&grads, self.max_norm);
        vec![done(vec![norm]), done(vec![factor])]
    }
}

#[test]
fn gradient_norms() {
    for sizes in [vec![1], vec![1, 7, 1025], vec![200_000, 3]] {
        for max_norm in [1.0, 1e6] {
            check(&GradNorm { sizes: sizes.clone(), max_norm }, &format!("{sizes:?}"));
        }
    }
    let zeros: &[f32] = &[0.0; 5];
    assert_eq!(Cpu.grad_norm(&[zeros], 1.0), [0.0, 1.0]);
}

struct GradAccumulate {
    n: usize,
    begins: bool,
}

impl Case for GradAccumulate {
    const OP: &'static str = "grad_accumulate";

    fn run<O: Ops>(&self, ops: &O, _: u32) -> Outputs {
        // Beginning must not read what lies there.
        let mut sum = if self.begins { nan(self.n) } else { of(&normals(1, self.n)) };
        ops.grad_accumulate(&of(&normals(2, self.n)), &mut sum, self.begins);
        vec![done(sum)]
    }
}

#[test]
fn sums_of_gradients() {
    for n in [1, 7, 200_000] {
        for begins in [true, false] {
            check(&GradAccumulate { n, begins }, &format!("{n}, begins {begins}"));
        }
    }
}

struct PrefixLoad {
    rows: &'static [i32],
    width: usize,
}

impl Case for PrefixLoad {
    const OP: &'static str = "prefix_load";

    fn run<O: Ops>(&self, ops: &O, _: u32) -> Outputs {
        let cache = normals(1, 9 * self.width);
        let mut out = vec![O::Element::NAN; self.rows.len() * self.width];
        ops.prefix_load(&cache, self.rows, self.width, &mut out);
        vec![done(out)]
    }
}

#[test]
fn prefix_load() {
    for rows in [&[8] as &[i32], &[0, 3, 3, 8, 1, 0, 7]] {
        for width in [1, 8, 129] {
            check(&PrefixLoad { rows, width }, &format!("{} rows of {width}", rows.len()));
        }
    }
}

struct AdamwStep {
    n: usize,
    step: u64,
    weight_decay: f64,
    factor: f64,
}

impl Case for AdamwStep {
    const OP: &'static str = "adamw_step";

    fn run<O: Ops>(&self, ops: &O, _: u32) -> Outputs {
        let n = self.n;
        let (mut value, grad) = (of(&normals(1, n)), of(&normals(2, n)));
        let mut moment1 = of(&normals(3, n).iter().map(|m| 0.1 * m).collect::<Vec<_>>());
        let mut moment2 = of(&normals(4, n).iter().map(|v| 0.1 * v.abs()).collect::<Vec<_>>());
        ops.adamw_step(AdamwTensor {
            value: &mut value,
            grad: &grad,
            moment1: &mut moment1,
            moment2: &mut moment2,
            learning_rate: 1e-2,
            weight_decay: self.weight_decay,
            factor: self.factor,
            step: self.step,
        });
        vec![done(value), done(moment1), done(moment2)]
    }
}

#[test]
fn adamw() {
    // The last one is cut into pieces for the threads.
    for n in [1, 7, 129, 100_000] {
        for (step, weight_decay, factor) in [(1, 0.01, 1.0), (1000, 0.0, 0.25)] {
            let case = AdamwStep { n, step, weight_decay, factor };
            check(&case, &format!("{n} step {step}"));
        }
    }
}

/// The first step from zero moments in closed form: both corrections cancel the decay rates, so that
/// `p` becomes `p (1 - lr wd) - lr g / (|g| + eps)`.
#[test]
fn adamw_of_a_first_step() {
    fn run<O: Ops>(ops: &O) {
        let mut value = of(&[2.0, -3.0]);
        let (mut moment1, mut moment2) = (vec![O::Element::ZERO; 2], vec![O::Element::ZERO; 2]);
        ops.adamw_step(AdamwTensor {
            value: &mut value,
            grad: &of(&[0.5, -8.0]),
            moment1: &mut moment1,
            moment2: &mut moment2,
            learning_rate: 0.1,
            weight_decay: 0.5,
            factor: 0.5,
            step: 1,
        });
        assert_close("value", &done(value).unwrap(), &[1.8f32, -2.75], 1e-6);
        assert_close("first moment", &done(moment1).unwrap(), &[0.025f32, -0.4], 1e-6);
        assert_close("second moment", &done(moment2).unwrap(), &[6.25e-5f32, 0.016], 1e-6);
    }
    run(&Cpu);
    run(&Reference);
}

/// The table above has every function of the trait, each with a case that calls it.
#[test]
fn every_op_has_a_tolerance_and_a_case() {
    let table = include_str!("../src/backend/host/ops.rs").split("pub trait Ops").nth(1).unwrap();
    let functions: BTreeSet<&str> = (table.split("fn ").skip(1))
        .map(|text| text.split('(').next().unwrap())
        .filter(|name| *name != "name")
        .collect();
    let tolerances: BTreeSet<&str> = TOLERANCES.iter().map(|(op, ..)| *op).collect();
    assert_eq!(functions, tolerances);
    let cases: BTreeSet<&str> = (include_str!("ops.rs").split("const OP: &'static str = \""))
        .skip(1)
        .filter_map(|text| text.split('"').next())
        .filter(|name| functions.contains(name))
        .collect();
    assert_eq!(functions, cases);
}

/// The comparison itself: it sees NaN, zeros, a swapped part and a missing element.
#[test]
fn close_fails_where_it_must() {
    let expected = normals(1, 300);
    assert!(close(&expected, &expected, 0.0));
    let mut swapped = expected.clone();
    swapped.swap(17, 170);
    let mut with_nan = expected.clone();
    with_nan[299] = f32::NAN;
    let zeros = vec![0.0f32; 300];
    for wrong in [&swapped, &with_nan, &zeros, &expected[..299].to_vec(), &vec![f32::NAN; 300]] {
        assert!(!close(wrong, &expected, 1e-2));
        assert!(!close(&expected, wrong, 1e-2));
    }
    assert!(close(&zeros, &zeros, 0.0));
    let tiny: Vec<f32> = expected.iter().map(|v| v * 1.001).collect();
    assert!(close(&tiny, &expected, 1.1e-3) && !close(&tiny, &expected, 0.9e-3));
}
