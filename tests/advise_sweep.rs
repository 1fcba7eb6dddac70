//! The sweep over depths: cached or not, trials end with the same scores.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::{random_values, tiny_config};
use frostline::advise::candidates::{Candidate, candidates};
use frostline::advise::halving::Search;
use frostline::advise::progress::{SweepObserver, SweepProgress, UpcomingTrial};
use frostline::advise::sweep::{Subject, Sweep, SweepOptions, SweepOutcome};
use frostline::advise::verdict::Trial;
use frostline::cache::{CacheOptions, CachePlace, n_bytes};
use frostline::data::{BatchLimit, Corpus, Dataset, TaskSource, TokenRules};
use frostline::measure::{Ceilings, Pace};
use frostline::model::{Config, Family, Network, Pooling};
use frostline::plan::prefix::prefix_of;
use frostline::session::Engine;
use frostline::train::{
    LossOptions, Metric, RateRules, Schedule, TrainOptions, Warmup, step_options,
};
use frostline::{Error, Result};

/// The folder whose tokenizer is used.
fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pytorch/bert-mean")
}

/// Labelled texts of one to eight words, a fifth of them held out unless `holdout` is 0.
fn corpus(config: &Config, holdout: f64) -> Corpus {
    let words = ["the", "phone", "is", "good", "a", "song", "very", "fast"];
    let text = |at: usize| words.iter().cycle().skip(at).take(1 + at * 5 % 8).copied();
    let row = |at: usize| {
        let text: Vec<&str> = text(at).collect();
        format!("{},{},{}\n", text.join(" "), at % 5, at * 7 % 3)
    };
    let rows: String = (0..60).map(row).collect();
    let file = tempfile::NamedTempFile::with_suffix(".csv").unwrap();
    std::fs::write(file.path(), format!("text,topic,sentiment\n{rows}")).unwrap();
    let task =
        |name: &str| TaskSource::parse(&format!("{name}={}", file.path().display())).unwrap();
    let tasks = [task("topic"), task("sentiment")];
    let dataset = Dataset::load(&tasks, &[], holdout, 1, None).unwrap();
    let rules = TokenRules {
        vocab_size: config.vocab_size,
        max_length: 11,
        type_vocab_size: config.type_vocab_size,
        positions: config.position_scheme(),
    };
    Corpus::new(dataset, &golden(), rules, |_| {}).unwrap()
}

fn options(search: Search, place: CachePlace) -> SweepOptions {
    let train = TrainOptions {
        limit: BatchLimit::Sequences(7),
        even_batches: false,
        batches_per_step: 1,
        loss: LossOptions::default(),
        frozen_dropout: false,
        n_epochs: 1,
        max_steps: Some(24),
        learning_rate: 3e-3,
        head_learning_rate: 3e-2,
        rates: RateRules::default(),
        weight_decay: 0.01,
        max_grad_norm: Some(1.0),
        warmup: Warmup::Steps(6),
        schedule: Schedule::Linear,
        logging_steps: 5,
        eval_steps: Some(1),
        best: None,
        seed: 0,
    };
    SweepOptions {
        train,
        seeds: vec![1, 2],
        search,
        metric: Metric::Accuracy(None),
        cache: CacheOptions { place, folder: PathBuf::from("nowhere"), limit_bytes: 1 << 30 },
        keep: None,
    }
}

/// What was told of a sweep.
#[derive(Default)]
struct Told {
    n_fills: usize,
    n_begun: usize,
    n_steps: u64,
    ended: Vec<Trial>,
    last: Option<SweepProgress>,
    /// Ends the sweep after so many steps.
    end_at: Option<u64>,
}

impl SweepObserver for Told {
    fn fill(&mut self, n_done: usize, n_examples: usize) -> Result<()> {
        self.n_fills += usize::from(n_done == n_examples);
        Ok(())
    }

    fn begin(&mut self, trial: &UpcomingTrial) -> Result<()> {
        assert!(trial.predicted_seconds > 0.0 && trial.predicted_seconds.is_finite());
        self.n_begun += 1;
        Ok(())
    }

    fn step(&mut self, progress: &SweepProgress) -> Result<()> {
        self.n_steps += 1;
        let [low, high] = progress.left_seconds;
        assert!(low <= high && progress.done_seconds > 0.0, "{progress:?}");
        self.last = Some(*progress);
        match self.end_at {
            Some(end) if self.n_steps == end => Err(Error::Interrupted),
            _ => Ok(()),
        }
    }

    fn end(&mut self, trial: &Trial) -> Result<()> {
        self.ended.push(trial.clone());
        Ok(())
    }
}

/// A network, texts for it, and a pace that nobody measured.
struct Setting {
    engine: Engine,
    network: Network,
    corpus: Corpus,
    candidates: Vec<Candidate>,
    pace: Pace,
}

impl Setting {
    fn new(engine: Engine, pooling: Pooling) -> Self {
        let config = Config { vocab_size: 64, ..tiny_config(Family::Bert, 3) };
        let corpus = corpus(&config, 0.2);
        let network = Network::new(&config, None, &corpus.task_sizes(), pooling).unwrap();
        let candidates = candidates(&network).unwrap();
        let ceilings =
            Ceilings { gemm_flops_per_second: 1e10, copy_bytes_per_second: 1e10, op_seconds: 1e-6 };
        let pace = Pace { ceilings, factors: [1.0; 3], forward_factor: 1.0 };
        Self { engine, network, corpus, candidates, pace }
    }

    fn run(&self, options: SweepOptions, told: &mut Told) -> Result<SweepOutcome> {
        // Heads by the seed, and below them the same for all.
        let initial = |seed: u64| {
            let mut values = random_values(&self.network, 3);
            let of_seed = random_values(&self.network, 100 + seed);
            for head in &self.network.heads {
                values[head.linear.weight.0] = of_seed[head.linear.weight.0].clone();
            }
            Ok(values)
        };
        let subject = Subject {
            engine: self.engine,
            network: &self.network,
            corpus: &self.corpus,
            candidates: &self.candidates,
            initial: &initial,
            pace: &self.pace,
        };
        let sweep = Sweep::plan(subject, options)?;
        sweep.run(told)
    }
}

/// Everything of the trials that does not depend on the clock, scores by their bits.
fn results(outcome: &SweepOutcome) -> Vec<(usize, String, u64, u64, u64)> {
    let of = |trial: &Trial| {
        (trial.rung, trial.freeze.clone(), trial.seed, trial.n_steps, trial.score.to_bits())
    };
    outcome.trials.iter().map(of).collect()
}

fn check_places(setting: &Setting, search: Search) -> SweepOutcome {
    let run = |place, limit_bytes| {
        let mut options = options(search, place);
        options.cache.limit_bytes = limit_bytes;
        let folder = tempfile::tempdir().unwrap();
        options.cache.folder = folder.path().to_owned();
        let mut told = Told::default();
        let outcome = setting.run(options, &mut told).unwrap();
        assert_eq!((told.n_begun, &told.ended), (outcome.trials.len(), &outcome.trials));
        assert_eq!(told.n_steps, outcome.trials.iter().map(|trial| trial.n_steps).sum::<u64>());
        // Behind the last step nothing is left.
        assert!(told.last.unwrap().left_seconds.iter().all(|left| left.abs() <= 1e-9));
        (outcome, told.n_fills)
    };
    let (plain, n_fills) = run(CachePlace::Off, 1 << 30);
    assert!(n_fills == 0 && plain.trials.iter().all(|trial| !trial.is_cached));
    for place in [CachePlace::Host, CachePlace::Device, CachePlace::Disk] {
        let (cached, n_fills) = run(place, 1 << 30);
        assert_eq!(n_fills, 1, "one pass for all depths");
        assert_eq!(results(&cached), results(&plain), "{place:?}");
        for (cached, plain) in cached.trials.iter().zip(&plain.trials) {
            assert_eq!(cached.tasks, plain.tasks, "{place:?}");
            assert_eq!(cached.is_cached, cached.freeze != "none");
        }
        assert_eq!(cached.verdict, plain.verdict);
    }
    // Room for one depth of tokens and no other: each is filled when its turn comes.
    let step = step_options(
        &setting.corpus,
        setting.engine.compute,
        &options(search, CachePlace::Host).train,
    );
    let prefix = prefix_of(&setting.network, &setting.candidates[2].mask, &step).unwrap();
    let (cached, n_fills) = run(CachePlace::Host, n_bytes(&setting.corpus, &prefix));
    assert!(n_fills > 1);
    assert_eq!(results(&cached), results(&plain));
    let document = serde_json::to_value(&plain).unwrap();
    assert_eq!(document["metric"], "eval_accuracy");
    plain
}

#[test]
fn a_cached_sweep_ends_as_a_plain_one() {
    for pooling in [Pooling::Mean, Pooling::Pooler] {
        let setting = Setting::new(Engine::CPU, pooling);
        let full = check_places(&setting, Search::Full);
        assert_eq!(full.trials.len(), 2 * setting.candidates.len());
        assert!(full.trials.iter().all(|trial| trial.n_steps == 24));
        for depth in &full.verdict.depths {
            assert_eq!(depth.n_full, 2);
            assert_eq!(depth.behind.is_none(), depth.freeze == full.verdict.winner, "{depth:?}");
        }
        for task in full.trials.iter().flat_map(|trial| &trial.tasks) {
            assert_eq!(task.hits.len(), setting.corpus.eval.len(), "every row has both labels");
            let n_right = task.hits.iter().filter(|hit| **hit).count();
            assert_eq!(task.accuracy, Some(n_right as f64 / task.hits.len() as f64));
        }

        let halving = check_places(&setting, Search::Halving);
        let n_depths = setting.candidates.len();
        let rungs: Vec<usize> = halving.trials.iter().map(|trial| trial.rung).collect();
        assert_eq!(rungs, [vec![0; n_depths], vec![1; 2], vec![2; 1]].concat());
        assert!(
            halving.trials[..n_depths].iter().all(|trial| (trial.n_steps, trial.seed) == (20, 1))
        );
        let best = &halving.trials[n_depths + 2];
        assert_eq!((best.n_steps, best.seed), (24, 2));
        // A trial of both searches is the same trial.
        let again = |one: &&Trial| (one.freeze.as_str(), one.seed) == (best.freeze.as_str(), 2);
        assert_eq!(full.trials.iter().find(again).unwrap().score, best.score);
        // Seeds draw other heads and other orders.
        let distinct: BTreeSet<u64> = full.trials.iter().map(|one| one.score.to_bits()).collect();
        assert!(distinct.len() > 2, "{distinct:?}");
    }
}

#[cfg(feature = "emulator")]
#[test]
fn a_cached_sweep_ends_as_a_plain_one_on_the_kernels() {
    use frostline::session::Device;
    use frostline::tensor::DType;

    for compute in [DType::F32, DType::Bf16] {
        let engine = Engine { device: Device::Emulated { graphs: true }, compute };
        let mut setting = Setting::new(engine, Pooling::Mean);
        setting.candidates.retain(|one| ["backbone", "lower:1"].contains(&one.freeze.as_str()));
        let run = |place| {
            let mut options = options(Search::Full, place);
            options.train.max_steps = Some(3);
            results(&setting.run(options, &mut Told::default()).unwrap())
        };
        let plain = run(CachePlace::Off);
        for place in [CachePlace::Device, CachePlace::Host] {
            assert_eq!(run(place), plain, "{compute:?} {place:?}");
        }
    }
}

#[test]
fn a_kept_depth_and_a_stop() {
    let setting = Setting::new(Engine::CPU, Pooling::Mean);
    let run = |keep: &str| {
        let mut chosen = options(Search::Halving, CachePlace::Auto);
        chosen.keep = Some(keep.to_owned());
        setting.run(chosen, &mut Told::default()).unwrap()
    };
    for candidate in &setting.candidates {
        let outcome = run(&candidate.freeze);
        let full = outcome.verdict.depths.iter().filter(|depth| depth.n_full > 0);
        let full: Vec<&str> = full.map(|depth| depth.freeze.as_str()).collect();
        assert!(full.len() == 2 && full.contains(&candidate.freeze.as_str()), "{full:?}");
    }
    let outcome = run("none");
    let [low, high] = outcome.forecast.seconds;
    assert!(0.0 < low && low <= high && high <= outcome.forecast.plain_seconds * 10.0);

    let mut told = Told { end_at: Some(5), ..Told::default() };
    let stopped = setting.run(options(Search::Full, CachePlace::Off), &mut told);
    assert!(matches!(stopped, Err(Error::Interrupted)));
    assert_eq!((told.n_steps, told.ended.len()), (5, 0));
}

#[test]
fn what_cannot_be_is_said_at_once() {
    let setting = Setting::new(Engine::CPU, Pooling::Mean);
    let refused = |change: &dyn Fn(&mut SweepOptions), words: &str| {
        let mut chosen = options(Search::Full, CachePlace::Host);
        change(&mut chosen);
        match setting.run(chosen, &mut Told::default()) {
            Err(Error::Usage(text)) => assert!(text.contains(words), "{text}"),
            other => panic!("{words}: {other:?}"),
        }
    };
    refused(&|options| options.seeds.clear(), "seeds");
    refused(&|options| options.seeds = vec![4, 4], "seeds");
    refused(&|options| options.metric = Metric::Loss, "accuracy");
    refused(&|options| options.metric = Metric::Accuracy(Some("mood".into())), "topic, sentiment");
    refused(&|options| options.keep = Some("lower:9".into()), "lower:9");
    refused(&|options| options.cache.limit_bytes = 10, "--cache-limit");
    refused(&|options| options.train.frozen_dropout = true, "--cache");
    let without = Setting {
        corpus: corpus(&setting.network.config, 0.0),
        ..Setting::new(Engine::CPU, Pooling::Mean)
    };
    let none = without.run(options(Search::Full, CachePlace::Off), &mut Told::default());
    let Err(Error::Usage(text)) = none else { panic!() };
    assert!(text.contains("--holdout"), "{text}");
}
