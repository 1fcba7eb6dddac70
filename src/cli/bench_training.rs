//! The `--train` part of `bench`: what each freeze does to accuracy, and the proof of freezing.

use super::bench::Args;
use super::train::Bar;
use crate::Result;
use crate::data::Corpus;
use crate::freeze::{FreezeMask, FreezeSpec};
use crate::measure::scenarios::Scenario;
use crate::model::{Group, ModelFolder, Network, Source, WeightFile};
use crate::report::Training;
use crate::session::Session;
use crate::train::{TrainOptions, TrainOutcome, evaluate, prove_frozen, train};

/// Trains every scenario from the same start; None for one under which nothing trains.
///
/// A scenario that freezes a head while something else trains starts from trained heads: a frozen
/// random head would say nothing.
///
/// # Errors
/// A run that fails, or a frozen tensor that changed.
pub fn run(
    args: &Args,
    source: &Source,
    network: &Network,
    corpus: &Corpus,
    scenarios: &[Scenario],
    initial: &[Vec<f32>],
) -> Result<Vec<Option<Training>>> {
    let options = args.training.options(&args.data, &args.rates, args.seed);
    let mut with_heads: Option<Vec<Vec<f32>>> = None;
    let mut trainings = Vec::with_capacity(scenarios.len());
    for scenario in scenarios {
        if network.param_ids().all(|id| scenario.mask.is_frozen(id)) {
            trainings.push(None);
            continue;
        }
        eprintln!("training with {} frozen", scenario.freeze);
        let starts_trained = freezes_a_head(network, &scenario.mask);
        let start = if starts_trained {
            if with_heads.is_none() {
                with_heads = Some(trained_heads(args, network, corpus, initial, &options)?);
            }
            with_heads.as_deref().unwrap_or(initial)
        } else {
            initial
        };
        let mut session = Session::on_cpu(network.clone(), start.to_vec());
        let before = starts_trained.then(|| evaluate(&mut session, corpus, &corpus.eval, 0));
        let outcome = train_quietly(&mut session, corpus, &scenario.mask, &options)?;
        // Heads that were trained first are not the file's; the values given are what must stay.
        let file = source.weights().filter(|_| !starts_trained);
        let proof = prove_frozen(&session, &outcome.trained, file, start)?;
        trainings.push(Some(Training {
            eval: evaluate(&mut session, corpus, &corpus.eval, outcome.n_steps)?,
            train: evaluate(&mut session, corpus, &corpus.train, outcome.n_steps)?,
            before: before.transpose()?,
            seconds: outcome.train_time.as_secs_f64(),
            n_proven: proof.n_tensors,
        }));
    }
    Ok(trainings)
}

fn freezes_a_head(network: &Network, mask: &FreezeMask) -> bool {
    network.heads.iter().any(|head| mask.is_frozen(head.linear.weight))
}

/// The start with heads from `--init`, or trained with the backbone frozen.
fn trained_heads(
    args: &Args,
    network: &Network,
    corpus: &Corpus,
    initial: &[Vec<f32>],
    options: &TrainOptions,
) -> Result<Vec<Vec<f32>>> {
    let mut start = initial.to_vec();
    let heads = || {
        let is_head = |group| matches!(group, Group::Head(_));
        network.param_ids().filter(move |id| is_head(network.param(*id).group))
    };
    if let Some(dir) = &args.init {
        let folder = ModelFolder::open(dir)?;
        let file: &WeightFile = folder.weights()?;
        for id in heads() {
            let param = network.param(id);
            start[id.0] = file.read_f32(&param.name, &param.shape)?;
        }
        return Ok(start);
    }
    eprintln!("training the heads with the backbone frozen, for scenarios that freeze a head");
    let mask = FreezeSpec::parse("backbone")?.mask(network)?;
    let mut session = Session::on_cpu(network.clone(), start.clone());
    train_quietly(&mut session, corpus, &mask, options)?;
    for id in heads() {
        start[id.0] = session.value(id);
    }
    Ok(start)
}

fn train_quietly(
    session: &mut Session,
    corpus: &Corpus,
    mask: &FreezeMask,
    options: &TrainOptions,
) -> Result<TrainOutcome> {
    let mut bar = Bar::quiet();
    let outcome = train(session, corpus, mask, options, &mut bar)?;
    bar.finish();
    Ok(outcome)
}
