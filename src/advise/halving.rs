//! Which trials a sweep over depths makes: all, or by successive halving (Jamieson and Talwalkar, "Non-stochastic Best
//! Arm Identification and Hyperparameter Optimization", AISTATS 2016, arXiv 1502.07943).
//!
//! Halving gives every depth a little training, and the best of them more. Here it has three rungs:
//!
//! | rung | depths | seeds | steps |
//! |---|---|---|---|
//! | 0 | all | the first | a sixth |
//! | 1 | a third, two at least: the best, the one that is to be proven, and the most frozen of those near the best | the first | all |
//! | 2 | the most frozen of these that cannot be told from the best | the others | all |
//!
//! Four things are unlike the paper's. A trial of rung 0 is a training of its own, whose rate decays to its own end, and
//! not the beginning of a longer one: a training that is stopped while its rate is high says little about one that is
//! brought to its end. The depth that is to be proven is always brought to its end, since short trainings favour depths
//! that train little. No fewer than two depths are trained at full length, since a winner without anybody beside it has
//! won nothing. And what is looked for is not the best score, of which the next seed makes another depth's, but the most
//! frozen depth that is as good: of depths that are within the error of so many rows the cheaper goes on.

/// Which trials are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Search {
    /// Every depth with every seed, at full length.
    Full,
    /// Every depth for a sixth of the steps, a third at full length, one of these with all seeds.
    Halving,
}

/// A trial that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    pub rung: usize,
    /// Index of the depth, the most frozen first.
    pub depth: usize,
    /// Index of the seed.
    pub seed: usize,
    pub n_steps: u64,
}

/// What a depth reached on a rung.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    pub depth: usize,
    /// More is better.
    pub score: f64,
}

/// The standard error of the difference of two depths' scores; None where it is not known.
pub type ErrorBetween<'a> = &'a dyn Fn(usize, usize) -> Option<f64>;

/// The rungs of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rungs {
    pub search: Search,
    pub n_depths: usize,
    pub n_seeds: usize,
    /// Steps of a trial at full length.
    pub n_steps: u64,
    /// The depth that is to be proven, which is trained at full length in any case.
    pub keep: Option<usize>,
}

/// The share of the steps that a short trial has, and the fewest that say anything.
const SHORT_SHARE: u64 = 6;
const MIN_STEPS: u64 = 20;
/// One in so many depths is trained at full length, and no fewer than these.
const SURVIVOR_SHARE: usize = 3;
const MIN_SURVIVORS: usize = 2;

impl Rungs {
    /// Steps of the trials of rung 0. None where there is no such rung: all depths would be left, or a short trial would
    /// be as long as the others.
    pub fn n_short_steps(&self) -> Option<u64> {
        let n_short = (self.n_steps / SHORT_SHARE).max(MIN_STEPS);
        let is_useful = n_short < self.n_steps && self.n_depths > MIN_SURVIVORS;
        (self.search == Search::Halving && is_useful).then_some(n_short)
    }

    /// The trials of the first rung.
    pub fn first(&self) -> Vec<Planned> {
        let all = 0..self.n_depths;
        match (self.search, self.n_short_steps()) {
            (Search::Full, _) => {
                let n_steps = self.n_steps;
                let seeds = 0..self.n_seeds;
                // A depth's trials together: its cache serves them one after the other.
                let of = |depth| {
                    seeds.clone().map(move |seed| Planned { rung: 0, depth, seed, n_steps })
                };
                all.flat_map(of).collect()
            }
            (Search::Halving, Some(n_steps)) => {
                all.map(|depth| Planned { rung: 0, depth, seed: 0, n_steps }).collect()
            }
            (Search::Halving, None) => self.at_full_length(all),
        }
    }

    /// The trials of the rung behind `rung`, of whose trials `scored` tells; none where that was the last.
    pub fn next(&self, rung: usize, scored: &[Scored], error: ErrorBetween) -> Vec<Planned> {
        match (self.search, rung) {
            (Search::Halving, 0) => self.at_full_length(survivors(scored, self.keep, error)),
            (Search::Halving, 1) => {
                let alike = by_score(scored).first().map(|best| like(best, scored, error));
                let cheapest = alike.into_iter().flatten().next();
                cheapest.map_or_else(Vec::new, |one| self.with_other_seeds(one.depth).collect())
            }
            _ => Vec::new(),
        }
    }

    /// The least and the most that what follows `rung` can take, where `depths` are on it and a trial takes `seconds`.
    pub fn seconds_behind(
        &self,
        rung: usize,
        depths: &[usize],
        seconds: &dyn Fn(&Planned) -> f64,
    ) -> [f64; 2] {
        let others = |depth: usize| -> f64 {
            self.with_other_seeds(depth).map(|trial| seconds(&trial)).sum()
        };
        let once = |depth: usize| -> f64 { self.at_full_length([depth]).iter().map(seconds).sum() };
        let sorted = |of: &dyn Fn(usize) -> f64| {
            let mut all: Vec<f64> = depths.iter().map(|depth| of(*depth)).collect();
            all.sort_by(f64::total_cmp);
            all
        };
        let last = sorted(&others);
        let ends = |all: &[f64]| [all.first(), all.last()].map(|end| end.copied().unwrap_or(0.0));
        match (self.search, rung) {
            (Search::Halving, 0) => {
                let (n, once) = (n_survivors(depths.len()), sorted(&once));
                let [least, most] = ends(&last);
                let dearest: f64 = once.iter().rev().take(n).sum();
                [once.iter().take(n).sum::<f64>() + least, dearest + most]
            }
            (Search::Halving, 1) => ends(&last),
            _ => [0.0; 2],
        }
    }

    fn at_full_length(&self, depths: impl IntoIterator<Item = usize>) -> Vec<Planned> {
        let n_steps = self.n_steps;
        depths.into_iter().map(|depth| Planned { rung: 1, depth, seed: 0, n_steps }).collect()
    }

    fn with_other_seeds(&self, depth: usize) -> impl Iterator<Item = Planned> {
        let n_steps = self.n_steps;
        (1..self.n_seeds).map(move |seed| Planned { rung: 2, depth, seed, n_steps })
    }
}

fn n_survivors(n_depths: usize) -> usize {
    (n_depths / SURVIVOR_SHARE).max(MIN_SURVIVORS).min(n_depths)
}

/// The best first; of equals the most frozen, which costs least.
fn by_score(scored: &[Scored]) -> Vec<Scored> {
    let mut sorted = scored.to_vec();
    sorted.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.depth.cmp(&b.depth)));
    sorted
}

/// The depths that go on, the most frozen first: the best, the one that is kept, those near the best, and if need be the
/// next best.
fn survivors(scored: &[Scored], keep: Option<usize>, error: ErrorBetween) -> Vec<usize> {
    let sorted = by_score(scored);
    let Some(best) = sorted.first() else { return Vec::new() };
    let near = like(best, scored, error);
    let wanted = [best.depth].into_iter().chain(keep);
    let mut depths: Vec<usize> = Vec::new();
    for depth in wanted.chain(near.iter().chain(&sorted).map(|one| one.depth)) {
        if depths.len() < n_survivors(sorted.len()) && !depths.contains(&depth) {
            depths.push(depth);
        }
    }
    depths.sort_unstable();
    depths
}

/// The best, and those whose score is below it by less than the standard error of the difference, in their order.
fn like(best: &Scored, scored: &[Scored], error: ErrorBetween) -> Vec<Scored> {
    let is_like_it = |one: &&Scored| {
        let is_near = |error| best.score - one.score < error;
        one.depth == best.depth || error(best.depth, one.depth).is_some_and(is_near)
    };
    scored.iter().filter(is_like_it).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rungs(search: Search, n_depths: usize, n_seeds: usize, n_steps: u64) -> Rungs {
        Rungs { search, n_depths, n_seeds, n_steps, keep: None }
    }

    fn scored(scores: &[f64]) -> Vec<Scored> {
        let one = |(depth, score): (usize, &f64)| Scored { depth, score: *score };
        scores.iter().enumerate().map(one).collect()
    }

    /// What follows where two scores are told apart from 0.028 on.
    fn next(rungs: &Rungs, rung: usize, scored: &[Scored]) -> Vec<Planned> {
        let error = |a, b| {
            assert_ne!(a, b);
            Some(0.028)
        };
        rungs.next(rung, scored, &error)
    }

    /// Depth, seed and steps of each.
    fn shown(trials: &[Planned]) -> Vec<(usize, usize, u64)> {
        trials.iter().map(|trial| (trial.depth, trial.seed, trial.n_steps)).collect()
    }

    #[test]
    fn full_is_everything() {
        let rungs = rungs(Search::Full, 2, 3, 50);
        let expected = [(0, 0, 50), (0, 1, 50), (0, 2, 50), (1, 0, 50), (1, 1, 50), (1, 2, 50)];
        assert_eq!(shown(&rungs.first()), expected);
        assert!(next(&rungs, 0, &scored(&[0.5, 0.6])).is_empty());
        assert_eq!(rungs.seconds_behind(0, &[0, 1], &|_| 1.0), [0.0; 2]);
    }

    #[test]
    fn halving_drops_two_thirds_and_repeats_one() {
        let rungs = rungs(Search::Halving, 7, 3, 300);
        let first = rungs.first();
        assert_eq!(first.len(), 7);
        assert!(first.iter().all(|one| (one.rung, one.seed, one.n_steps) == (0, 0, 50)));
        let second = next(&rungs, 0, &scored(&[0.5, 0.7, 0.6, 0.8, 0.1, 0.2, 0.3]));
        assert_eq!(shown(&second), [(1, 0, 300), (3, 0, 300)]);
        let pair = |score| [scored(&[0.5, score])[1], scored(&[0.5, 0.7, 0.6, 0.8])[3]];
        let third = next(&rungs, 1, &pair(0.7));
        assert_eq!(shown(&third), [(3, 1, 300), (3, 2, 300)]);
        assert!(third.iter().all(|trial| trial.rung == 2));
        assert_eq!(shown(&next(&rungs, 1, &pair(0.78))), [(1, 1, 300), (1, 2, 300)]);
        assert!(next(&rungs, 2, &scored(&[0.8])).is_empty());
    }

    #[test]
    fn equals_are_cheap_ones() {
        let one = rungs(Search::Halving, 4, 2, 300);
        assert_eq!(shown(&next(&one, 0, &scored(&[0.5; 4]))), [(0, 0, 300), (1, 0, 300)]);
        assert_eq!(shown(&next(&one, 1, &scored(&[0.5; 2]))), [(0, 1, 300)]);
        let nine = rungs(Search::Halving, 9, 1, 300);
        assert_eq!(next(&nine, 0, &scored(&[0.5; 9])).len(), 3);
        assert!(next(&nine, 1, &scored(&[0.5; 3])).is_empty(), "no other seed");
    }

    #[test]
    fn the_cheap_and_near_go_on() {
        let on = |scores: &[f64], keep| {
            let rungs = Rungs { keep, ..rungs(Search::Halving, scores.len(), 1, 300) };
            let trials = next(&rungs, 0, &scored(scores));
            trials.iter().map(|trial| trial.depth).collect::<Vec<_>>()
        };
        assert_eq!(on(&[0.7, 0.78, 0.79, 0.8], None), [1, 3]);
        assert_eq!(on(&[0.7, 0.78, 0.79, 0.8], Some(2)), [2, 3]);
        assert_eq!(on(&[0.7, 0.78, 0.79, 0.8], Some(0)), [0, 3], "far, and yet to be proven");
        assert_eq!(on(&[0.7, 0.6, 0.75, 0.8], None), [2, 3], "nothing is near: the next best");
        assert_eq!(on(&[0.8, 0.79, 0.78, 0.7], Some(0)), [0, 1]);
    }

    #[test]
    fn errors_are_of_pairs() {
        let one = rungs(Search::Halving, 4, 2, 300);
        let scores = scored(&[0.7, 0.76, 0.78, 0.8]);
        let depths = |error: ErrorBetween| {
            one.next(0, &scores, error).iter().map(|trial| trial.depth).collect::<Vec<_>>()
        };
        // Depth 0 is far from the best and its error is as large; of depth 1 nothing is known.
        let error = |_, depth| [Some(0.2), None, Some(0.03)][depth];
        assert_eq!(depths(&error), [0, 3]);
        assert_eq!(depths(&|_, _| None), [2, 3], "nothing is near: the next best");
        let last = one.next(1, &scores[..2], &|_, _| None);
        assert_eq!(shown(&last), [(1, 1, 300)], "the best alone is like it");
    }

    #[test]
    fn a_rung_that_drops_nothing_or_saves_nothing_is_not_there() {
        let n_short =
            |n_depths, n_steps| rungs(Search::Halving, n_depths, 1, n_steps).n_short_steps();
        assert_eq!(n_short(3, 300), Some(50));
        assert_eq!(n_short(3, 60), Some(20));
        assert_eq!((n_short(3, 20), n_short(2, 300), n_short(1, 300)), (None, None, None));
        let few = rungs(Search::Halving, 2, 2, 300);
        assert_eq!(shown(&few.first()), [(0, 0, 300), (1, 0, 300)]);
        assert_eq!(few.first()[0].rung, 1);
        assert_eq!(shown(&next(&few, 1, &scored(&[0.5, 0.6]))), [(1, 1, 300)]);
    }

    #[test]
    fn what_follows_is_between_the_cheapest_and_the_dearest() {
        // A trial of depth d takes 1 + d at full length, whatever the seed.
        let seconds = |trial: &Planned| (1 + trial.depth) as f64;
        let rungs = rungs(Search::Halving, 4, 3, 300);
        let all = [0, 1, 2, 3];
        // Two survivors and two more seeds: 1 + 2 + 2 1, 4 + 3 + 2 4.
        assert_eq!(rungs.seconds_behind(0, &all, &seconds), [5.0, 15.0]);
        assert_eq!(rungs.seconds_behind(1, &[1, 2], &seconds), [4.0, 6.0]);
        assert_eq!(rungs.seconds_behind(2, &[1], &seconds), [0.0, 0.0]);
    }
}
