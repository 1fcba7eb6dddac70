//! `frostline doctor`: what is here, and whether every kernel is right on it.

use comfy_table::Table;
use comfy_table::presets::ASCII_BORDERS_ONLY_CONDENSED;

use super::args::Device;
use super::{print, print_json, progress};
use crate::backend::cuda;
use crate::backend::shadow::Comparison;
use crate::{Error, Result, doctor};

#[derive(clap::Args, Debug)]
#[command(after_help = "Example: frostline doctor --device cuda")]
pub struct Args {
    /// Device whose kernels are checked [auto: the GPU, else the emulator if it is built in]
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    device: Device,
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
    let tell = |what: &str| {
        bar.set_message(format!("checking kernels: {what}"));
        bar.tick();
    };
    let comparisons = match checked {
        Checked::Gpu => doctor::check(|| cuda::gpu(false), tell)?,
        Checked::Emulator => check_emulated(tell)?,
    };
    bar.finish_and_clear();
    let worst = worst_of_each(&comparisons);
    let n_wrong = comparisons.iter().filter(|one| !one.passes()).count();
    if args.json {
        print_json(&serde_json::json!({
            "device": checked.name(),
            "facts": serde_json::Map::from_iter(
                facts.into_iter().map(|(name, value)| (name, value.into())),
            ),
            "checks": worst.iter().map(|(one, n)| serde_json::json!({
                "op": one.op, "output": one.output, "shape": one.shape, "dtype": one.dtype,
                "error": one.error, "tolerance": one.tolerance, "passes": one.passes(), "n": n,
            })).collect::<Vec<_>>(),
            "passes": n_wrong == 0,
        }))?;
    } else {
        print(&text(checked, &facts, &worst))?;
    }
    match n_wrong {
        0 => Ok(()),
        n => Err(Error::Run(format!(
            "{n} of {} outputs on {} are wrong: do not trust what it computes",
            comparisons.len(),
            checked.name()
        ))),
    }
}

#[cfg(feature = "emulator")]
fn check_emulated(tell: impl FnMut(&str)) -> Result<Vec<Comparison>> {
    doctor::check(|| Ok(cuda::emulator(false)), tell)
}

#[cfg(not(feature = "emulator"))]
fn check_emulated(_tell: impl FnMut(&str)) -> Result<Vec<Comparison>> {
    Err(cuda::no_emulator())
}

/// For each op and type the comparison with the largest error against its tolerance, and how many there
/// were.
fn worst_of_each(comparisons: &[Comparison]) -> Vec<(&Comparison, usize)> {
    let mut worst: Vec<(&Comparison, usize)> = Vec::new();
    // A NaN is worse than any number.
    let badness = |one: &Comparison| {
        let ratio = one.error / one.tolerance;
        if ratio.is_nan() { f64::INFINITY } else { ratio }
    };
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

fn text(checked: Checked, facts: &[(String, String)], worst: &[(&Comparison, usize)]) -> String {
    let mut text = String::new();
    for (name, value) in facts {
        text += &format!("{name:<20} {value}\n");
    }
    text += &format!("checked on           {}, the worst of each op:\n", checked.name());
    let mut table = Table::new();
    table.load_style(ASCII_BORDERS_ONLY_CONDENSED);
    table.set_header(["op", "output", "shape", "type", "outputs", "error", "at most", ""]);
    for (one, n) in worst {
        table.add_row([
            one.op.to_owned(),
            one.output.clone(),
            format!("{}x{}", one.shape[0], one.shape[1]),
            one.dtype.name().to_owned(),
            n.to_string(),
            format!("{:.1e}", one.error),
            format!("{:.0e}", one.tolerance),
            if one.passes() { "pass" } else { "FAIL" }.to_owned(),
        ]);
    }
    text + &format!("{table}\n")
}
