//! What `benches/gpu.sh` needs beside the `frostline` command: a network to hold devices against each other with, the
//! comparison of what they computed, and single ops at the shapes of real layers.
//!
//! ```text
//! gpu model DIR [--tiny]                       writes a model folder and DIR/batch.safetensors, all random
//! gpu probe                                    whether there is a GPU that can be used; nothing is launched on it
//! gpu compare EXPECTED FOUND --initial MODEL --tolerance T --update-tolerance U
//!                                              holds two dumps of `frostline step` against each other
//! gpu shapes DIR --device cuda|emulated        times products and attentions; operands and results go to DIR
//! ```

mod parity;
mod shapes;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use frostline::Result;
use frostline::backend::cuda;

#[derive(Parser)]
enum Command {
    /// Write a network of two layers of BERT-base with random weights, and a batch for `frostline step`
    Model {
        dir: PathBuf,
        /// Layers of 64 values, for the emulator
        #[arg(long)]
        tiny: bool,
    },
    /// Say whether there is a GPU that can be used, by exit status 0 or 3
    Probe,
    /// Hold two dumps of `frostline step` against each other, tensor by tensor
    Compare {
        expected: PathBuf,
        found: PathBuf,
        /// The model's file that both runs began with
        #[arg(long)]
        initial: PathBuf,
        /// What losses, logits and gradients may differ by, as a share of a tensor's norm
        #[arg(long)]
        tolerance: f64,
        /// What the steps' updates of a parameter may differ by, as a share of the update's norm
        #[arg(long)]
        update_tolerance: f64,
    },
    /// Time the products and attentions of BERT-base, and write their operands and results for shapes.py
    Shapes {
        dir: PathBuf,
        #[arg(long, value_enum)]
        device: Device,
    },
}

/// Where ops run; the emulator takes small shapes.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Device {
    Cuda,
    Emulated,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("gpu: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Whether all that was compared agrees.
fn run() -> Result<bool> {
    match Command::parse() {
        Command::Model { dir, tiny } => parity::write_model(&dir, tiny).map(|()| true),
        Command::Probe => cuda::check_gpu().map(|()| true),
        Command::Compare { expected, found, initial, tolerance, update_tolerance } => {
            parity::compare(&expected, &found, &initial, [tolerance, update_tolerance])
        }
        Command::Shapes { dir, device } => shapes::run(&dir, device).map(|()| true),
    }
}
