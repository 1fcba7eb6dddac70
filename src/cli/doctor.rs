//! `frostline doctor`: what is here, and whether every kernel is right on it.

use std::io::IsTerminal;

use comfy_table::Table;
use comfy_table::presets::ASCII_BORDERS_ONLY_CONDENSED;

use super::args::Device;
use super::{print, print_json, progress};
use crate::backend::cuda;
use crate::backend::shadow::Comparison;
use crate::doctor::{self, Extent, Findings};
use crate::{Error, Result};

#[derive(clap::Args, Debug)]
#[command(after_help = "Example: frostline doctor --device cuda")]
pub struct Args {
    /// Device whose kernels are checked [auto: the GPU, else the emulator if it is built in]
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    device: Device,
    /// Check one small network in each type only, not every kernel: for compute-sanitizer, under which launches take
    /// their time
    #[arg(long)]
    quick: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// What kernels can be checked on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Checked {
    Gpu,
    Emulator,
}

impl Checked {
    fn name(self) -> &'static str {
        match self {
            Checked::Gpu => "cuda",
            Checked::Emulator => "emulated",
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let gpu = cuda::describe_gpu();
    let checked = match (args.device, &gpu) {
        (Device::Cuda, Err(why)) => return Err(Error::Device(format!("--device cuda: {why}"))),
        (Device::Cuda | Device::Auto, Ok(_)) => Checked::Gpu,
        (Device::Emulated, _) => Checked::Emulator,
        (Device::Auto, Err(_)) if cuda::HAS_EMULATOR => Checked::Emulator,
        (Device::Auto, Err(why)) => return Err(Error::Device(why.to_string())),
        (Device::Cpu, _) => {
            return Err(Error::usage(
                "--device cpu: doctor checks the kernels of cuda or emulated",
            ));
        }
    };
    let mut facts = match &gpu {
        Ok(facts) => facts.clone(),
        Err(why) => vec![("gpu".into(), format!("none: {why}"))],
    };

    facts.extend(cuda::describe_kernels());
    let bar = progress::bar(0, "checking kernels");
    let is_seen = std::io::stderr().is_terminal();
    let tell = |what: &str| {
        bar.set_message(format!("checking kernels: {what}"));
        bar.tick();
        // A log says how far it came, whatever ends it.
        if !is_seen {
            eprintln!("checking kernels: {what}");
        }
    };
    let mut findings = Findings::default();
    let outcome = match checked {
        Checked::Gpu => {
            let extent = if args.quick { Extent::Quick } else { Extent::GPU };
            cuda::gpu(false)
                .and_then(|mut backend| doctor::check(&mut backend, extent, &mut findings, tell))
        }
        Checked::Emulator => {
            let extent = if args.quick { Extent::Quick } else { Extent::EMULATOR };
            check_emulated(extent, &mut findings, tell)
        }
    };
    bar.finish_and_clear();
    if findings.comparisons.is_empty() {
        outcome?;
        return Err(Error::Run("nothing was checked".into()));
    }
    if args.json {
        print_json(&document(checked, args.quick, facts, &findings, outcome.as_ref().err()))?;
    } else {
        print(&text(checked, args.quick, &facts, &findings))?;
    }
    outcome.and_then(|()| verdict(checked, args.quick, &findings))
}

/// # Errors
/// When anything is wrong, or a kernel was left out that should not have been.
fn verdict(checked: Checked, quick: bool, findings: &Findings) -> Result<()> {
    let n_checked = findings.comparisons.len() + findings.replays.len();
    if findings.n_wrong() > 0 {
        return Err(Error::Run(format!(
            "{} of {n_checked} outputs on {} are wrong: do not trust what it computes",
            findings.n_wrong(),
            checked.name()
        )));
    }
    let missed = findings.never_launched();
    if !quick && !missed.is_empty() {
        let names = missed.into_iter().collect::<Vec<_>>().join(", ");
        return Err(Error::Run(format!(
            "these kernels were not launched and not checked: {names}"
        )));
    }
    Ok(())
}

#[cfg(feature = "emulator")]
fn check_emulated(extent: Extent, findings: &mut Findings, tell: impl FnMut(&str)) -> Result<()> {
    doctor::check(&mut cuda::emulator(false), extent, findings, tell)
}

#[cfg(not(feature = "emulator"))]
fn check_emulated(
    _extent: Extent,
    _findings: &mut Findings,
    _tell: impl FnMut(&str),
) -> Result<()> {
    Err(cuda::no_emulator())
}

/// How near a comparison is to failing; beyond 1 it fails. A NaN is worse than any number.
fn badness(one: &Comparison) -> f64 {
    let error = one.error / one.tolerance;
    let deviation = one.deviation / one.deviation_tolerance;
    if !one.repeats || error.is_nan() || deviation.is_nan() {
        return f64::INFINITY;
    }
    error.max(deviation)
}

/// For each op and type the comparison that is nearest to failing, and how many there were.
fn worst_of_each(comparisons: &[Comparison]) -> Vec<(&Comparison, usize)> {
    let mut worst: Vec<(&Comparison, usize)> = Vec::new();
    for one in comparisons {
        let same =
            |(other, _): &&mut (&Comparison, usize)| other.op == one.op && other.dtype == one.dtype;
        match worst.iter_mut().find(same) {
            Some((other, n)) => {
                *n += 1;
                if badness(one) > badness(other) {
                    *other = one;
                }
            }
            None => worst.push((one, 1)),
        }
    }
    worst
}

fn document(
    checked: Checked,
    quick: bool,
    facts: Vec<(String, String)>,
    findings: &Findings,
    error: Option<&Error>,
) -> serde_json::Value {
    let one_check = |one: &Comparison| {
        let mut value = serde_json::json!(one);
        value["passes"] = one.passes().into();
        value
    };
    let check = |(one, n): (&Comparison, usize)| {
        let mut value = one_check(one);
        value["n"] = n.into();
        value
    };
    let failure = |(case, one): &(String, Comparison)| {
        let mut value = one_check(one);
        value["case"] = case.as_str().into();
        value
    };
    let worst = worst_of_each(&findings.comparisons);
    serde_json::json!({
        "device": checked.name(),
        "facts": serde_json::Map::from_iter(
            facts.into_iter().map(|(name, value)| (name, value.into())),
        ),
        "quick": quick,
        "checks": worst.into_iter().map(check).collect::<Vec<_>>(),
        "failures": findings.failures.iter().map(failure).collect::<Vec<_>>(),
        "replays": findings.replays,
        "kernels": {
            "embedded": cuda::embedded::kernel_names().len(),
            "launched": findings.launched,
            "never_launched": findings.never_launched(),
        },
        "error": error.map(ToString::to_string),
        "passes": error.is_none() && verdict(checked, quick, findings).is_ok(),
    })
}

fn text(checked: Checked, quick: bool, facts: &[(String, String)], findings: &Findings) -> String {
    let mut text = String::new();
    for (name, value) in facts {
        text += &format!("{name:<20} {value}\n");
    }
    let (n_launched, n_embedded) = (findings.launched.len(), cuda::embedded::kernel_names().len());
    let of_all = match n_embedded {
        0 => String::new(),
        n => format!(" of {n}"),
    };
    let only = if quick { " (--quick)" } else { "" };
    text += &format!("launched             {n_launched}{of_all} kernels{only}\n");
    for replay in &findings.replays {
        let verdict = match replay.n_different {
            0 => format!("{} values, the same bits", replay.n_values),
            n => format!("FAIL: {n} of {} values differ", replay.n_values),
        };
        text += &format!("replayed graph       {}: {verdict}\n", replay.case);
    }
    text += &format!("checked on           {}, the worst of each op:\n", checked.name());
    let mut table = Table::new();
    table.load_style(ASCII_BORDERS_ONLY_CONDENSED);
    table.set_header([
        "op",
        "output",
        "shape",
        "type",
        "outputs",
        "error",
        "at most",
        "one value",
        "at most",
        "",
    ]);
    for (one, n) in worst_of_each(&findings.comparisons) {
        let verdict = match (one.passes(), one.repeats) {
            (true, _) => "pass",
            (false, true) => "FAIL",
            (false, false) => "FAIL: a second run differs",
        };
        table.add_row([
            one.op.to_owned(),
            one.output.clone(),
            format!("{}x{}", one.shape[0], one.shape[1]),
            one.dtype.name().to_owned(),
            n.to_string(),
            format!("{:.1e}", one.error),
            format!("{:.1e}", one.tolerance),
            format!("{:.1e}", one.deviation),
            format!("{:.1e}", one.deviation_tolerance),
            verdict.to_owned(),
        ]);
    }
    text += &format!("{table}\n");
    for (case, one) in &findings.failures {
        let kernels = one.kernels.join(", ");
        text += &format!("FAIL  {case}: {} of {} by {kernels}\n", one.output, one.op);
    }
    text
}
