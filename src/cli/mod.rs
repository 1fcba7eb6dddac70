//! The command line: typed arguments in, a call, a rendering out. One file per subcommand.

mod advise;
mod args;
mod batch_file;
mod bench;
mod bench_training;
mod data_args;
mod doctor;
mod export;
mod exports;
mod forgetting;
mod interrupt;
mod memory_probe;
mod model_folder;
mod output_folder;
mod plan;
mod predict;
mod profile;
mod progress;
mod settings;
mod step;
mod train;
mod workload;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::Error;

/// Fine-tunes BERT-family encoders with part of the network frozen, and measures what the freeze
/// really saves.
#[derive(Parser, Debug)]
#[command(name = "frostline", version, args_override_self = true, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Measure the step of every freeze scenario on the same data, beside its prediction
    Bench(Box<bench::Args>),
    /// Train with one freeze spec and write a model folder
    Train(Box<train::Args>),
    /// Say where to put the frost line for a task: how near it is to what the encoder knows, what each depth costs, and, with
    /// --prove, what it gives
    Advise(Box<advise::Args>),
    /// Label texts with a trained model, or write their embeddings
    Predict(predict::Args),
    /// Write a trained model for transformers or sentence-transformers
    Export(export::Args),
    /// Print the plan of a training step, its cost and memory; needs config.json alone
    Plan(plan::Args),
    /// Show where the time of a step goes, op by op and kernel by kernel
    Profile(Box<profile::Args>),
    /// Run training steps on a given batch and dump losses, logits, gradients and parameters
    Step(step::Args),
    /// The growth of this process's memory over one scenario's steps, for bench
    #[command(hide = true)]
    MemoryProbe(memory_probe::Args),
    /// Say what device, driver and kernels are here, and run every kernel against the reference
    Doctor(doctor::Args),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Runs the command that `args` (the program's name first) asks for.
///
/// Text for people goes to stderr, results to stdout; errors are one block on stderr, and the exit
/// status is [`Error::exit_code`].
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let outcome = settings::expand(args.into_iter().collect(), &command()).and_then(|args| {
        let matches = command().try_get_matches_from(args);
        match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
            Ok(cli) => run(cli.command),
            // Help and version are "errors" that print to stdout with status 0.
            Err(error) => error.exit(),
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // When stderr is gone there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Bench(args) => bench::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Advise(args) => advise::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Export(args) => export::run(&args),
        Command::MemoryProbe(args) => memory_probe::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Step(args) => step::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut shown_command(), "frostline", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    }
}

/// The command line.
fn command() -> clap::Command {
    const SIZES: [&str; 2] = ["bench", "profile"];
    // A number below zero is a value like others, which its option refuses in words of its own.
    let mut command = Cli::command().mut_subcommands(|command| {
        command.mut_args(|arg| match arg.get_action().takes_values() {
            true => arg.allow_negative_numbers(true),
            false => arg,
        })
    });
    for name in SIZES {
        command = command.mut_subcommand(name, |command| {
            let command = command.mut_arg("max_length", |arg| {
                arg.help(
                    "Cut texts to this many tokens [default: the model's longest, at most 512]; \
                     length of synthetic rows [default: 128]",
                )
            });
            command.mut_arg("tasks", |arg| {
                arg.value_name("NAME=FILE[:TEXT[:LABEL]]|NAME=N").help(
                    "A task and its file (repeatable): CSV, TSV, JSON lines or Parquet (if built in); columns \
                     default to `text`, and to the task's name or `label`. Or its number of labels: then tokens \
                     are synthetic",
                )
            })
        });
    }
    command.mut_subcommand("bench", |command| {
        command
            .mut_arg("tasks", |arg| arg.required(false).required_unless_present("ceilings"))
            .mut_arg("model", |arg| arg.required_unless_present("ceilings"))
    })
}

/// The command line without its hidden subcommands, which completion scripts would offer.
fn shown_command() -> clap::Command {
    let command = command();
    let shown = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()).cloned();
    clap::Command::new("frostline")
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true)
        .subcommands(shown)
}

/// Prints a result to stdout; a closed pipe is no error.
fn print(text: &str) -> Result<(), Error> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("stdout", e)),
        _ => Ok(()),
    }
}

/// Prints one JSON document to stdout.
fn print_json(value: &serde_json::Value) -> Result<(), Error> {
    print(&format!("{value:#}\n"))
}
