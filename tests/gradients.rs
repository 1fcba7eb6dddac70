//! Backward passes against the meaning of "gradient": central differences in f64 of the reference's
//! forward ops, and of the loss of a whole step; then the CPU's whole step against the reference's.

mod common;

use common::{
    LENGTHS, Runner, STATE, assert_close, ends_of, families_and_poolings, integers, options,
    plan_of, random_batch, random_values, relative_error, tiny_network, wide_normals,
};
use frostline::backend::StepState;
use frostline::backend::cpu::Cpu;
use frostline::backend::dropout::Mask;
use frostline::backend::host::Ops;
use frostline::backend::host::ops::{
    AttentionGradients, AttentionSaved, AttentionShape, DgradPart, Embedding, FwdPart, HeadPart,
    NormDparams, NormDx, NormOutputs, NormParams, NormSaved, Qkv, RowMask, Targets, WgradPart,
};
use frostline::backend::reference::Reference;
use frostline::batch::{ABSENT_LABEL, Batch, IGNORED_LABEL};
use frostline::model::{Family, Group, Network, ParamId, Pooling};
use frostline::plan::op::Dropout;
use frostline::plan::{Capacity, Plan};
use frostline::tensor::DType;

/// Relative error of a central difference: `h²` of truncation, and rounding of 1e-16 over `h`.
const STEP: f64 = 1e-5;
const TOLERANCE: f64 = 1e-8;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Checks `gradient` against central differences of `f` about `x`.
#[track_caller]
fn check(what: &str, x: &[f64], gradient: &[f64], f: impl Fn(&[f64]) -> f64) {
    let mut moved = x.to_vec();
    let numeric: Vec<f64> = (0..x.len())
        .map(|i| {
            moved[i] = x[i] + STEP;
            let above = f(&moved);
            moved[i] = x[i] - STEP;
            let below = f(&moved);
            moved[i] = x[i];
            (above - below) / (2.0 * STEP)
        })
        .collect();
    assert!(gradient.iter().any(|g| *g != 0.0), "{what}: a gradient of zeros proves nothing");
    assert_close(what, gradient, &numeric, TOLERANCE);
}

fn nan(n: usize) -> Vec<f64> {
    vec![f64::NAN; n]
}

fn mask(p: f32) -> Mask {
    Mask::new(Dropout { p, site: 3, group: Group::Layer(0) }, 7, 1)
}

const ENDS: [i32; 4] = [0, 1, 4, 6];
const ROWS: usize = 6;
const WIDTH: usize = 8;

fn token_mask(p: f32) -> RowMask<'static> {
    RowMask { mask: mask(p), cu_seqlens: Some(&ENDS) }
}

#[test]
fn layernorm() {
    let n = ROWS * WIDTH;
    let (x, residual) = (wide_normals(1, n), wide_normals(2, n));
    let (gamma, beta) = (wide_normals(3, WIDTH), wide_normals(4, WIDTH));
    // The gradient comes in two parts that the op sums.
    let (dout_a, dout_b) = (wide_normals(5, n), wide_normals(6, n));
    let dout: Vec<f64> = dout_a.iter().zip(&dout_b).map(|(a, b)| a + b).collect();
    for mask in [None, Some(token_mask(0.3))] {
        let forward = |x: &[f64], residual: &[f64], gamma: &[f64], beta: &[f64]| {
            let (mut out, mut xhat, mut rstd) = (nan(n), nan(n), nan(ROWS));
            let to = NormOutputs { out: &mut out, xhat: Some(&mut xhat), rstd: Some(&mut rstd) };
            let norm = NormParams { gamma, beta, eps: 1e-5 };
            Reference.layernorm_fwd(x, Some(residual), mask, &norm, to);
            (dot(&out, &dout), xhat, rstd)
        };
        let (_, xhat, rstd) = forward(&x, &residual, &gamma, &beta);
        let dout = [dout_a.as_slice(), dout_b.as_slice()];
        let saved = NormSaved { dout: &dout, xhat: &xhat, rstd: &rstd, gamma: &gamma, mask };
        let (mut dx, mut dresidual) = (nan(n), nan(n));
        let to = NormDx { dx: Some(&mut dx), dresidual: Some(&mut dresidual) };
        Reference.layernorm_bwd_dx(&saved, to);
        let (mut dgamma, mut dbeta) = (nan(WIDTH), nan(WIDTH));
        let to = NormDparams { dgamma: Some(&mut dgamma), dbeta: Some(&mut dbeta) };
        Reference.layernorm_bwd_params(&dout, Some(&xhat), to);

        check("dx", &x, &dx, |x| forward(x, &residual, &gamma, &beta).0);
        check("dresidual", &residual, &dresidual, |r| forward(&x, r, &gamma, &beta).0);
        check("dgamma", &gamma, &dgamma, |gamma| forward(&x, &residual, gamma, &beta).0);
        check("dbeta", &beta, &dbeta, |beta| forward(&x, &residual, &gamma, beta).0);

        // The fused op is its parts.
        let mut fused = [nan(n), nan(n), nan(WIDTH), nan(WIDTH)];
        let [a, b, c, d] = &mut fused;
        let to = NormDx { dx: Some(a), dresidual: Some(b) };
        Reference.layernorm_bwd(&saved, to, NormDparams { dgamma: Some(c), dbeta: Some(d) });
        assert_eq!(fused, [dx, dresidual, dgamma, dbeta]);
    }
}

#[test]
fn gelu_and_tanh() {
    // Both tails of GELU and the bend between them.
    let x: Vec<f64> = (-40..=40).map(|i| f64::from(i) * 0.13 + 0.01).collect();
    let dout = wide_normals(1, x.len());
    let mut dx = nan(x.len());
    Reference.gelu_bwd(&x, &dout, &mut dx);
    check("gelu", &x, &dx, |x| {
        let mut out = nan(x.len());
        Reference.gelu_fwd(x, &mut out);
        dot(&out, &dout)
    });
    let tanh = |x: &[f64]| {
        let mut out = nan(x.len());
        Reference.tanh_fwd(x, &mut out);
        out
    };
    Reference.tanh_bwd(&tanh(&x), &dout, &mut dx);
    check("tanh", &x, &dx, |x| dot(&tanh(x), &dout));
}

#[test]
fn attention() {
    let lengths = [1, 5, 19];
    let (n_heads, width) = (2, 6);
    let (ends, n_tokens) = (ends_of(&lengths), 25);
    let n = n_tokens * width;
    let [q, k, v, dout] = [1, 2, 3, 4].map(|seed| wide_normals(seed, n));
    for dropout in [None, Some(mask(0.3))] {
        let shape = AttentionShape { cu_seqlens: &ends, n_heads, width, mask: dropout };
        let forward = |q: &[f64], k: &[f64], v: &[f64]| {
            let (mut out, mut lse) = (nan(n), nan(n_tokens * n_heads));
            Reference.attention_fwd(&Qkv { q, k, v }, &shape, &mut out, Some(&mut lse));
            (out, lse)
        };
        let (_, lse) = forward(&q, &k, &v);
        // All targets at once, and each alone.
        for wanted in [0b111, 0b001, 0b010, 0b100] {
            let [mut dq, mut dk, mut dv] =
                [0, 1, 2].map(|bit| (wanted >> bit & 1 == 1).then(|| nan(n)));
            let saved = AttentionSaved {
                dout: &dout,
                lse: &lse,
                q: &q,
                k: &k,
                v: (wanted & 0b011 != 0).then_some(v.as_slice()),
            };
            let to = AttentionGradients {
                dq: dq.as_deref_mut(),
                dk: dk.as_deref_mut(),
                dv: dv.as_deref_mut(),
            };
            Reference.attention_bwd(&saved, &shape, to);
            if let Some(dq) = dq {
                check("dq", &q, &dq, |q| dot(&forward(q, &k, &v).0, &dout));
            }
            if let Some(dk) = dk {
                check("dk", &k, &dk, |k| dot(&forward(&q, k, &v).0, &dout));
            }
            if let Some(dv) = dv {
                check("dv", &v, &dv, |v| dot(&forward(&q, &k, v).0, &dout));
            }
        }
    }
}

#[test]
fn products() {
    let (m, k, sizes) = (5, 7, [4, 9]);
    let x = wide_normals(1, m * k);
    let tensors = sizes.map(|n| {
        let seed = n as u64;
        [(seed, n * k), (seed + 20, n), (seed + 40, m * n)].map(|(s, n)| wide_normals(s, n))
    });
    let forward = |x: &[f64], weight: &[f64], bias: &[f64], dout: &[f64]| {
        let mut out = nan(dout.len());
        Reference.gemm_fwd(x, k, vec![FwdPart { weight, bias, out: &mut out }]);
        dot(&out, dout)
    };
    let parts: Vec<_> = (tensors.iter().zip(sizes))
        .map(|([weight, _, dout], n)| DgradPart { dout, weight, n })
        .collect();
    let mut dx = nan(m * k);
    Reference.gemm_dgrad(&parts, k, &mut dx);
    check("dx of two products", &x, &dx, |x| {
        tensors.iter().map(|[weight, bias, dout]| forward(x, weight, bias, dout)).sum()
    });
    let mut gradients = sizes.map(|n| (nan(n * k), nan(n)));
    let parts = (tensors.iter().zip(sizes).zip(&mut gradients))
        .map(|(([_, _, dout], n), (dweight, dbias))| WgradPart {
            dout,
            dweight,
            dbias: Some(dbias),
            n,
        })
        .collect();
    Reference.gemm_wgrad(&x, k, parts);
    for ([weight, bias, dout], (dweight, dbias)) in tensors.iter().zip(&gradients) {
        check("dweight", weight, dweight, |weight| forward(&x, weight, bias, dout));
        check("dbias", bias, dbias, |bias| forward(&x, weight, bias, dout));
        let mut alone = nan(bias.len());
        Reference.bias_grad(dout, &mut alone);
        assert_eq!(&alone, dbias);
    }

    // The fusion of the second product's input gradient with GELU's.
    let [weight, bias, dout] = &tensors[1];
    let pre = wide_normals(90, m * k);
    let gelu = |pre: &[f64]| {
        let mut act = nan(pre.len());
        Reference.gelu_fwd(pre, &mut act);
        act
    };
    let mut dpre = nan(m * k);
    Reference.gemm_gelu_dgrad(&DgradPart { dout, weight, n: sizes[1] }, k, &pre, &mut dpre);
    check("gemm_gelu_dgrad", &pre, &dpre, |pre| forward(&gelu(pre), weight, bias, dout));
}

#[test]
fn pooling_and_dropout() {
    let x = wide_normals(1, ROWS * WIDTH);
    let dout = wide_normals(2, 3 * WIDTH);
    for pooling in [Pooling::Mean, Pooling::Cls] {
        let mut dx = nan(x.len());
        Reference.pool_bwd(&dout, &ENDS, pooling, &mut dx);
        check(pooling.name(), &x, &dx, |x| {
            let mut out = nan(dout.len());
            Reference.pool_fwd(x, &ENDS, pooling, &mut out);
            dot(&out, &dout)
        });
    }
    let (dout_a, dout_b) = (wide_normals(3, x.len()), wide_normals(4, x.len()));
    let dout: Vec<f64> = dout_a.iter().zip(&dout_b).map(|(a, b)| a + b).collect();
    let by_sequence = RowMask { mask: mask(0.3), cu_seqlens: None };
    for mask in [token_mask(0.3), by_sequence] {
        let mut dx = nan(x.len());
        Reference.dropout_bwd(&[&dout_a, &dout_b], mask, WIDTH, &mut dx);
        check("dropout", &x, &dx, |x| {
            let mut out = nan(x.len());
            Reference.dropout_fwd(x, mask, WIDTH, &mut out);
            dot(&out, &dout)
        });
    }
}

#[test]
fn heads() {
    check_heads(None, 0.0);
    // Rows without a label weigh nothing, whatever is said of them.
    check_heads(Some(&[0.5, f32::NAN, 2.0, 0.25, 1.5, 1.0]), 0.0);
    check_heads(Some(&[0.5, 1.0, 2.0, 0.25, 1.5, 1.0]), 0.2);
}

fn check_heads(row_weights: Option<&[f32]>, smoothing: f32) {
    let (rows, k, sizes) = (6, 5, [3, 4]);
    let x = wide_normals(1, rows * k);
    let labels: [Vec<i32>; 2] =
        [vec![2, IGNORED_LABEL, 0, ABSENT_LABEL, 1, 2], vec![ABSENT_LABEL, 3, 0, 1, -100, 2]];
    let targets = |task: usize| {
        // A row that the first task leaves out has a label of the second.
        let weights =
            row_weights.filter(|weights| task == 0 || weights.iter().all(|w| w.is_finite()));
        Targets { labels: &labels[task], weights, smoothing }
    };
    let weights = sizes.map(|n| wide_normals(n as u64, n * k));
    let biases = sizes.map(|n| wide_normals(n as u64 + 30, n));
    let logits = |task: usize, x: &[f64], weight: &[f64], bias: &[f64]| {
        let mut out = nan(rows * sizes[task]);
        Reference.head_fwd(x, &labels[task], FwdPart { weight, bias, out: &mut out });
        out
    };
    let loss = |task: usize, logits: &[f64]| {
        let mut loss = nan(1);
        Reference.xent_fwd(logits, &targets(task), &mut loss, None);
        loss[0]
    };
    let dlogits: Vec<Vec<f64>> = (0..2)
        .map(|task| {
            let logits = logits(task, &x, &weights[task], &biases[task]);
            let (mut unused, mut dlogits) = (nan(1), nan(logits.len()));
            Reference.xent_fwd(&logits, &targets(task), &mut unused, Some(&mut dlogits));
            dlogits
        })
        .collect();
    for task in 0..2 {
        let n = sizes[task];
        let (weight, bias) = (&weights[task], &biases[task]);
        // At the logits of the rows that take part; the others are never written.
        let logits_here = logits(task, &x, weight, bias);
        let is_present = |at: &usize| labels[task][at / n] != ABSENT_LABEL;
        let places: Vec<usize> = (0..rows * n).filter(is_present).collect();
        let at_places = |v: &[f64]| places.iter().map(|&at| v[at]).collect::<Vec<f64>>();
        check("dlogits", &at_places(&logits_here), &at_places(&dlogits[task]), |moved| {
            let mut logits = nan(rows * n);
            places.iter().zip(moved).for_each(|(&at, v)| logits[at] = *v);
            loss(task, &logits)
        });
        let (mut dweight, mut dbias) = (nan(n * k), nan(n));
        let (to_weight, to_bias) = (Some(dweight.as_mut_slice()), Some(dbias.as_mut_slice()));
        Reference.head_wgrad(Some(&x), &dlogits[task], &labels[task], to_weight, to_bias);
        check("dweight", weight, &dweight, |w| loss(task, &logits(task, &x, w, bias)));
        check("dbias", bias, &dbias, |b| loss(task, &logits(task, &x, weight, b)));
    }
    let part = |task: usize| HeadPart {
        dlogits: &dlogits[task],
        weight: &weights[task],
        labels: &labels[task],
    };
    let mut dx = nan(rows * k);
    Reference.head_dgrad(&[part(0), part(1)], &mut dx);
    check("dx of both heads", &x, &dx, |x| {
        (0..2).map(|task| loss(task, &logits(task, x, &weights[task], &biases[task]))).sum()
    });
}

#[test]
fn embeddings() {
    let (n_tokens, sizes) = (30, [11, 9, 2]);
    let ids = [1, 2, 3].map(|seed| {
        let below = sizes[seed as usize - 1];
        integers(seed, n_tokens, below).into_iter().map(|id| id as i32).collect::<Vec<i32>>()
    });
    let tables = [4, 5, 6].map(|seed| wide_normals(seed, sizes[seed as usize - 4] * WIDTH));
    let dout = wide_normals(7, n_tokens * WIDTH);
    let padding = ids[0][5] as usize;
    for at in 0..3 {
        let mut dtable = nan(tables[at].len());
        Reference.embed_wgrad(&dout, &ids[at], None, WIDTH, &mut dtable);
        check("table", &tables[at], &dtable, |table| {
            let mut moved = tables.clone();
            moved[at] = table.to_vec();
            let mut out = nan(n_tokens * WIDTH);
            let tables = Embedding {
                input_ids: &ids[0],
                word: &moved[0],
                position_ids: &ids[1],
                position: &moved[1],
                token_type: Some((&ids[2], &moved[2])),
                width: WIDTH,
            };
            Reference.embed_fwd(&tables, &mut out);
            dot(&out, &dout)
        });
        // The padding row's gradient is dropped, no other changes.
        let mut without = nan(tables[at].len());
        let padding = padding.min(sizes[at] - 1);
        Reference.embed_wgrad(&dout, &ids[at], Some(padding), WIDTH, &mut without);
        let row = padding * WIDTH..(padding + 1) * WIDTH;
        assert!(dtable[row.clone()].iter().any(|g| *g != 0.0));
        dtable[row].fill(0.0);
        assert_eq!(without, dtable);
    }
}

/// A whole step's plan, with dropout and both tasks.
fn step_plan(network: &Network, batch: &Batch, clip: Option<f32>, fused: bool) -> Plan {
    plan_of(network, "none", &options(Capacity::of([batch]), true, clip), fused)
}

/// The plan's wiring: the derivative of the whole loss along each parameter's own gradient is the
/// gradient's norm. Losses are f32 and so are parameters, hence a wide step, and Richardson's
/// extrapolation to take the curvature out.
#[test]
fn the_step_differentiates_its_own_loss() {
    // A learning rate of zero leaves the parameters alone.
    let state =
        StepState { learning_rate: 0.0, head_learning_rate: 0.0, weight_decay: 0.0, ..STATE };
    for (family, pooling) in families_and_poolings() {
        let network = tiny_network(family, 2, pooling);
        let batch = random_batch(&network, &[5, 1, 9, 3], 3);
        let values = random_values(&network, 4);
        let mut runner = Runner::new(Reference, step_plan(&network, &batch, None, false), &values);
        runner.step(&batch, state);
        let gradients: Vec<Option<Vec<f32>>> =
            network.param_ids().map(|id| runner.gradient(id)).collect();
        let norm = |g: &[f32]| g.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let largest = gradients.iter().flatten().map(|g| norm(g)).fold(0.0, f64::max);
        let mut n_checked = 0;
        for id in network.param_ids() {
            let Some(gradient) = &gradients[id.0] else { continue };
            let name = &network.param(id).name;
            // The key bias has no effect on the loss: its gradient is rounding noise.
            if norm(gradient) <= 1e-6 * largest {
                assert!(name.contains("key.bias") || name.contains("k_lin.bias"), "{name}");
                continue;
            }
            let mut loss_at = |step: f64| {
                let scale = step / norm(gradient);
                let moved: Vec<f32> = (values[id.0].iter().zip(gradient))
                    .map(|(v, g)| (f64::from(*v) + scale * f64::from(*g)) as f32)
                    .collect();
                set(&mut runner, id, moved);
                runner.step(&batch, state);
                runner.losses().into_iter().map(f64::from).sum::<f64>()
            };
            let mut slope = |h: f64| (loss_at(h) - loss_at(-h)) / (2.0 * h);
            // Steps that change the loss by about 0.02.
            let h = (0.02 / norm(gradient)).min(0.1);
            let extrapolated = (4.0 * slope(h / 2.0) - slope(h)) / 3.0;
            set(&mut runner, id, values[id.0].clone());
            let error = (extrapolated - norm(gradient)).abs() / norm(gradient);
            // Losses near 2 are rounded to 1.2e-7, a difference of 0.01 so to 1e-5; where a gradient
            // is small beside the largest, the loss changes by less and the error grows with it.
            let tolerance = 1e-4 + 1e-6 / (h * norm(gradient));
            assert!(error <= tolerance, "{family:?} {pooling:?} {name}: {error:.1e}");
            n_checked += 1;
        }
        assert!(n_checked >= 30, "{n_checked}");
    }
}

fn set<O: Ops>(runner: &mut Runner<O>, id: ParamId, values: Vec<f32>) {
    use frostline::backend::Backend;
    runner.backend.write_value(id, DType::F32, values).unwrap();
}

/// Gradients as parts of one vector: noise is measured against the largest of them.
fn gradient_error(gradient: &[f32], expected: &[f32], largest: f64) -> f64 {
    let zeros = vec![0.0f32; expected.len()];
    let norm: f64 = expected.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    if norm > 1e-6 * largest {
        return relative_error(gradient, expected);
    }
    // Of a gradient that is zero but for rounding, only its size can be checked.
    assert_eq!(gradient.len(), zeros.len());
    gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt() / largest
}

/// The CPU's step, fused, against the reference's, as written: same plan rules, same dropout masks.
#[test]
fn whole_steps_on_the_cpu() {
    for (family, pooling) in families_and_poolings() {
        let network = tiny_network(family, 2, pooling);
        let batch = random_batch(&network, &LENGTHS, 5);
        let values = random_values(&network, 6);
        // A clip that acts: gradient norms here are above 0.5.
        let clip = Some(0.5);
        let mut cpu = Runner::new(Cpu, step_plan(&network, &batch, clip, true), &values);
        let mut reference =
            Runner::new(Reference, step_plan(&network, &batch, clip, false), &values);
        let what = format!("{family:?} {pooling:?}");
        for step in 1..=3 {
            cpu.step(&batch, StepState { step, ..STATE });
            reference.step(&batch, StepState { step, ..STATE });
            // Roundings of two layers, about ten sums deep each.
            assert_close(&what, &cpu.losses(), &reference.losses(), 1e-6);
            if step == 1 {
                compare_first_step(&what, &network, &batch, &mut cpu, &mut reference);
            }
        }
        for (id, (ours, expected)) in
            network.param_ids().zip(cpu.values(&network).iter().zip(reference.values(&network)))
        {
            let name = &network.param(id).name;
            if name.contains("key.bias") || name.contains("k_lin.bias") {
                // AdamW turns the noise of a zero gradient into steps of the learning rate.
                let apart = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs());
                assert!(apart.fold(0.0, f32::max) <= 2.0 * 3.0 * STATE.learning_rate, "{name}");
                continue;
            }
            // Where a gradient is near zero its rounding decides the direction of a step of 1e-3.
            assert_close(&format!("{what} {name}"), ours, &expected, 1e-5);
        }
    }
}

fn compare_first_step(
    what: &str,
    network: &Network,
    batch: &Batch,
    cpu: &mut Runner<Cpu>,
    reference: &mut Runner<Reference>,
) {
    for task in 0..2 {
        // Logits of absent rows are not computed.
        let n_labels = network.heads[task].n_labels;
        let of_present = |logits: Vec<f32>| -> Vec<f32> {
            let rows = logits.chunks(n_labels).zip(&batch.labels[task]);
            rows.filter(|(_, label)| **label != ABSENT_LABEL)
                .flat_map(|(row, _)| row.to_vec())
                .collect()
        };
        let (ours, expected) = (of_present(cpu.logits(task)), of_present(reference.logits(task)));
        assert_close(&format!("{what} logits {task}"), &ours, &expected, 2e-6);
    }
    let norm_of = |runner: &mut Runner<Reference>| {
        use frostline::backend::Backend;
        runner.backend.read(&runner.bound, runner.bound.plan.grad_norm().unwrap()).unwrap()
    };
    let [norm, factor] = norm_of(reference)[..] else { panic!("norm and factor") };
    assert!(norm > 0.5 && factor < 1.0, "{what}: clipping must act, the norm is {norm}");
    let largest = network
        .param_ids()
        .filter_map(|id| reference.gradient(id))
        .map(|g| g.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt())
        .fold(0.0, f64::max);
    let mut n_gradients = 0;
    for id in network.param_ids() {
        let name = &network.param(id).name;
        let (ours, expected) = match (cpu.gradient(id), reference.gradient(id)) {
            (Some(ours), Some(expected)) => (ours, expected),
            (None, None) => {
                assert_eq!(network.param(id).group, Group::Pooler, "{what} {name}");
                continue;
            }
            _ => panic!("{what} {name}: one plan makes the gradient, the other does not"),
        };
        n_gradients += 1;
        // Roundings of two layers forward and backward.
        let error = gradient_error(&ours, &expected, largest);
        assert!(error <= 5e-6, "{what} {name}: {error:.1e}");
    }
    let n_pooler = if network.pooling == Pooling::Pooler { 2 } else { 0 };
    let n_embeddings = if network.config.family == Family::DistilBert { 4 } else { 5 };
    assert_eq!(n_gradients, n_embeddings + 2 * 16 + n_pooler + 4);
}
