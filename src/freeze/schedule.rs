//! An unfreezing schedule: freeze specs, each from an epoch or a step on, as `0:backbone 1:lower:4 @500:none`.

use super::{FreezeMask, FreezeSpec};
use crate::model::Network;
use crate::{Error, Result};

/// When a state of a schedule begins, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// With this epoch.
    Epoch(u64),
    /// With the step behind this many.
    Step(u64),
}

impl Begin {
    /// Steps before it, of which `before_epoch` knows those before an epoch; None where that does not.
    pub fn step(self, before_epoch: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        match self {
            Begin::Epoch(epoch) => before_epoch(epoch),
            Begin::Step(step) => Some(step),
        }
    }
}

impl std::fmt::Display for Begin {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Begin::Epoch(epoch) => write!(f, "{epoch}"),
            Begin::Step(step) => write!(f, "@{step}"),
        }
    }
}

/// A parsed schedule: at least one state, the first of which begins the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreezeSchedule {
    states: Vec<(Begin, FreezeSpec)>,
}

/// A state of a schedule, applied to a network.
#[derive(Clone, Debug)]
pub struct FreezeState {
    pub begin: Begin,
    /// The spec as it was typed.
    pub freeze: String,
    pub mask: FreezeMask,
}

impl FreezeState {
    /// One freeze for the whole run.
    pub fn always(freeze: impl Into<String>, mask: FreezeMask) -> Self {
        FreezeState { begin: Begin::Epoch(0), freeze: freeze.into(), mask }
    }
}

impl FreezeSchedule {
    /// Parses states that are separated by white space.
    ///
    /// # Errors
    /// No state, one without a beginning, a first that does not begin at 0, a spec that is none.
    pub fn parse(text: &str) -> Result<Self> {
        let states: Vec<(Begin, FreezeSpec)> =
            text.split_whitespace().map(|state| parse_state(text, state)).collect::<Result<_>>()?;
        match states.first() {
            None => Err(fault(text, "has no state")),
            Some((Begin::Epoch(0) | Begin::Step(0), _)) => Ok(Self { states }),
            Some(_) => Err(fault(text, "begins with nothing: the first state needs to begin at 0")),
        }
    }

    /// One spec for the whole run.
    pub fn of(spec: FreezeSpec) -> Self {
        Self { states: vec![(Begin::Epoch(0), spec)] }
    }

    /// Applies every state to a network.
    ///
    /// # Errors
    /// As [`FreezeSpec::mask`].
    pub fn apply(&self, network: &Network) -> Result<Vec<FreezeState>> {
        let apply = |(begin, spec): &(Begin, FreezeSpec)| {
            let (freeze, mask) = (spec.text().to_owned(), spec.mask(network)?);
            Ok(FreezeState { begin: *begin, freeze, mask })
        };
        self.states.iter().map(apply).collect()
    }
}

/// The schedule as it would be typed; one state that lasts is its spec alone.
impl std::fmt::Display for FreezeSchedule {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        if let [(_, spec)] = self.states.as_slice() {
            return f.write_str(spec.text());
        }
        for (at, (begin, spec)) in self.states.iter().enumerate() {
            write!(f, "{}{begin}:{}", if at > 0 { " " } else { "" }, spec.text())?;
        }
        Ok(())
    }
}

fn fault(schedule: &str, problem: &str) -> Error {
    Error::usage(format!(
        "--schedule {schedule:?} {problem}: expected EPOCH:SPEC or @STEP:SPEC, separated by spaces, as \
         \"0:backbone 1:lower:4 @500:none\""
    ))
}

fn parse_state(schedule: &str, state: &str) -> Result<(Begin, FreezeSpec)> {
    let error = || fault(schedule, &format!("has the state {state:?}"));
    let (begin, spec) = state.split_once(':').ok_or_else(error)?;
    let begin = match begin.strip_prefix('@') {
        Some(step) => Begin::Step(step.parse().map_err(|_| error())?),
        None => Begin::Epoch(begin.parse().map_err(|_| error())?),
    };
    Ok((begin, FreezeSpec::parse(spec)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_begin_with_epochs_and_steps() {
        let schedule = FreezeSchedule::parse("0:backbone  1:lower:4+head:topic @500:none").unwrap();
        let begins: Vec<Begin> = schedule.states.iter().map(|(begin, _)| *begin).collect();
        assert_eq!(begins, [Begin::Epoch(0), Begin::Epoch(1), Begin::Step(500)]);
        assert_eq!(schedule.states[1].1.text(), "lower:4+head:topic");
        assert_eq!(schedule.to_string(), "0:backbone 1:lower:4+head:topic @500:none");
        let before = |epoch: u64| epoch.checked_mul(90);
        assert_eq!(
            (Begin::Epoch(3).step(before), Begin::Step(7).step(before)),
            (Some(270), Some(7))
        );
        assert_eq!(Begin::Epoch(u64::MAX).step(before), None);
        let always = FreezeSchedule::of(FreezeSpec::parse("lower:3").unwrap());
        assert_eq!(always.to_string(), "lower:3");
    }

    #[test]
    fn faults_quote_the_schedule() {
        for (text, expected) in [
            ("", "has no state"),
            ("1:none", "begins with nothing"),
            ("@1:none", "begins with nothing"),
            ("none", "has the state \"none\""),
            ("0:none x:all", "has the state \"x:all\""),
            ("0:none @:all", "has the state \"@:all\""),
            ("0:none -1:all", "has the state \"-1:all\""),
            ("0:nune", "\"nune\" is unknown"),
            ("0:", "freeze spec is empty"),
        ] {
            let message = FreezeSchedule::parse(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
