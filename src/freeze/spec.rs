//! The freeze spec: parts joined by `+`, applied left to right on "everything trains".
//!
//! | part | freezes |
//! |---|---|
//! | `none` | nothing |
//! | `all` | everything |
//! | `backbone` | all that is not a head's, the pooler included |
//! | `embeddings` | the tables and their LayerNorm |
//! | `pooler` | the tanh pooler |
//! | `lower:N` | the embeddings and layers `0..N` |
//! | `layers:A..B` | layers `A` to `B - 1` |
//! | `head:NAME` | the head of a task |
//! | `name:GLOB` | tensors by the name that the model's file has; `*` matches any characters |
//! | `keep:GLOB` | lets these tensors train again |

use std::ops::Range;

use super::glob::Glob;
use super::mask::FreezeMask;
use crate::model::{Group, Network, Param};
use crate::{Error, Result};

/// A parsed spec. It says nothing of any model until [`FreezeSpec::mask`] applies it to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreezeSpec {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    None,
    All,
    Backbone,
    Embeddings,
    Pooler,
    Lower(usize),
    Layers(Range<usize>),
    Head(String),
    Name(Glob),
    Keep(Glob),
}

const GRAMMAR: &str = "none, all, backbone, embeddings, pooler, lower:N, layers:A..B, head:NAME, \
                       name:GLOB or keep:GLOB, joined by +";

impl FreezeSpec {
    /// Parses `text`.
    ///
    /// # Errors
    /// An empty spec or part, an unknown part, a number or range that is none.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::usage(format!("freeze spec is empty: expected {GRAMMAR}")));
        }
        let parts = text.split('+').map(|part| parse_part(text, part)).collect::<Result<_>>()?;
        Ok(Self { text: text.to_owned(), parts })
    }

    /// The spec as it was typed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Applies the spec to a network.
    ///
    /// # Errors
    /// A part that matches nothing there; the message says what there is to match.
    pub fn mask(&self, network: &Network) -> Result<FreezeMask> {
        let mut mask = FreezeMask::none(network.params.len());
        for part in self.parts.iter().filter(|part| **part != Part::None) {
            self.check(part, network)?;
            let mut n_matched = 0;
            for (id, param) in network.param_ids().zip(&network.params) {
                if part.matches(param, network) {
                    mask.set(id, !matches!(part, Part::Keep(_)));
                    n_matched += 1;
                }
            }
            if n_matched == 0 {
                return Err(self.matches_nothing(part, network));
            }
        }
        Ok(mask)
    }

    fn check(&self, part: &Part, network: &Network) -> Result<()> {
        let n_layers = network.layers.len();
        let n_asked = match part {
            Part::Lower(n) => *n,
            Part::Layers(range) => range.end,
            _ => return Ok(()),
        };
        if n_asked > n_layers {
            let problem = format!("goes beyond the model's {n_layers} layers");
            return Err(self.error(&part.to_string(), &problem));
        }
        Ok(())
    }

    fn matches_nothing(&self, part: &Part, network: &Network) -> Error {
        let there_is = match part {
            Part::Head(_) => format!("the heads are {}", network.task_names().join(", ")),
            Part::Pooler => "the model has no pooler".to_owned(),
            _ => {
                let first = network.params.first().map_or("", |param| param.name.as_str());
                let last = network.params.last().map_or("", |param| param.name.as_str());
                format!("the model's {} tensors are called {first} to {last}", network.params.len())
            }
        };
        self.error(&part.to_string(), &format!("matches nothing: {there_is}"))
    }

    fn error(&self, part: &str, problem: &str) -> Error {
        Error::usage(format!("freeze spec {:?}: {part:?} {problem}", self.text))
    }
}

impl Part {
    fn matches(&self, param: &Param, network: &Network) -> bool {
        match self {
            Part::None => false,
            Part::All => true,
            Part::Backbone => !matches!(param.group, Group::Head(_)),
            Part::Embeddings => param.group == Group::Embeddings,
            Part::Pooler => param.group == Group::Pooler,
            Part::Lower(n) => match param.group {
                Group::Embeddings => true,
                Group::Layer(layer) => layer < *n,
                Group::Pooler | Group::Head(_) => false,
            },
            Part::Layers(range) => {
                matches!(param.group, Group::Layer(layer) if range.contains(&layer))
            }
            Part::Head(task) => {
                matches!(param.group, Group::Head(head) if network.heads[head].task == *task)
            }
            Part::Name(glob) | Part::Keep(glob) => glob.matches(&param.name),
        }
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Part::None => f.write_str("none"),
            Part::All => f.write_str("all"),
            Part::Backbone => f.write_str("backbone"),
            Part::Embeddings => f.write_str("embeddings"),
            Part::Pooler => f.write_str("pooler"),
            Part::Lower(n) => write!(f, "lower:{n}"),
            Part::Layers(range) => write!(f, "layers:{}..{}", range.start, range.end),
            Part::Head(task) => write!(f, "head:{task}"),
            Part::Name(glob) => write!(f, "name:{glob}"),
            Part::Keep(glob) => write!(f, "keep:{glob}"),
        }
    }
}

fn parse_part(spec: &str, text: &str) -> Result<Part> {
    let error = |problem: &str| Error::usage(format!("freeze spec {spec:?}: {text:?} {problem}"));
    let number = |digits: &str| {
        digits.parse().map_err(|_| error(&format!("needs a number of layers, not {digits:?}")))
    };
    let (word, argument) = match text.split_once(':') {
        Some((word, argument)) => (word, Some(argument)),
        None => (text, None),
    };
    match (word, argument) {
        ("", None) => Err(error(&format!("is an empty part: expected {GRAMMAR}"))),
        ("none", None) => Ok(Part::None),
        ("all", None) => Ok(Part::All),
        ("backbone", None) => Ok(Part::Backbone),
        ("embeddings", None) => Ok(Part::Embeddings),
        ("pooler", None) => Ok(Part::Pooler),
        ("lower" | "layers" | "head" | "name" | "keep", None | Some("")) => {
            Err(error(&format!("needs something behind the colon: expected {GRAMMAR}")))
        }
        ("lower", Some(n)) => Ok(Part::Lower(number(n)?)),
        ("layers", Some(range)) => {
            let Some((start, end)) = range.split_once("..") else {
                return Err(error("is no range: write layers:A..B, B not included"));
            };
            let range = number(start)?..number(end)?;
            if range.is_empty() {
                return Err(error("is an empty range: B is not included"));
            }
            Ok(Part::Layers(range))
        }
        ("head", Some(task)) => Ok(Part::Head(task.to_owned())),
        ("name", Some(glob)) => Ok(Part::Name(Glob::new(glob))),
        ("keep", Some(glob)) => Ok(Part::Keep(Glob::new(glob))),
        _ => Err(error(&format!("is unknown: expected {GRAMMAR}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Config, Pooling};

    fn network() -> Network {
        let config = Config::published("minilm-l6").unwrap();
        let tasks = [("topic".to_owned(), 4), ("sentiment".to_owned(), 3)];
        Network::new(&config, None, &tasks, Pooling::Mean).unwrap()
    }

    fn frozen(spec: &str) -> Vec<String> {
        let network = network();
        let mask = FreezeSpec::parse(spec).unwrap().mask(&network).unwrap();
        let ids = network.param_ids().filter(|id| mask.is_frozen(*id));
        ids.map(|id| network.param(id).name.clone()).collect()
    }

    fn error(spec: &str) -> String {
        FreezeSpec::parse(spec).and_then(|s| s.mask(&network()).map(|_| s)).unwrap_err().to_string()
    }

    #[test]
    fn parts_freeze_what_they_name() {
        let n_params = network().params.len();
        assert_eq!(frozen("none").len(), 0);
        assert_eq!(frozen("all").len(), n_params);
        assert_eq!(frozen("backbone").len(), n_params - 4);
        assert_eq!(frozen("embeddings").len(), 5);
        assert_eq!(frozen("pooler").len(), 2);
        assert_eq!(frozen("lower:0"), frozen("embeddings"));
        assert_eq!(frozen("lower:2").len(), 5 + 2 * 16);
        assert_eq!(frozen("layers:1..3").len(), 2 * 16);
        assert_eq!(frozen("head:topic"), ["heads.topic.weight", "heads.topic.bias"]);
        assert_eq!(frozen("name:*.query.bias").len(), 6);
        assert_eq!(frozen("embeddings+pooler").len(), 7);
    }

    #[test]
    fn parts_apply_from_left_to_right() {
        let biases = network().params.iter().filter(|p| p.name.ends_with(".bias")).count();
        let n_params = network().params.len();
        // BitFit: all biases, and the heads' two matrices.
        assert_eq!(frozen("all+keep:*.bias+keep:heads.*").len(), n_params - biases - 2);
        assert_eq!(frozen("backbone+none"), frozen("backbone"));
        assert_eq!(frozen("backbone+keep:*").len(), 0);
        assert_eq!(frozen("backbone+keep:*pooler*").len(), n_params - 4 - 2);
    }

    #[test]
    fn errors_say_what_there_is() {
        for (spec, expected) in [
            ("", "is empty"),
            ("none+", "empty part"),
            ("+all", "empty part"),
            ("foo", "\"foo\" is unknown: expected none, all"),
            ("lower", "needs something behind the colon"),
            ("lower:x", "needs a number of layers, not \"x\""),
            ("lower:9", "beyond the model's 6 layers"),
            ("layers:2..2", "empty range"),
            ("layers:3..2", "empty range"),
            ("layers:2", "is no range"),
            ("layers:1..9", "beyond the model's 6 layers"),
            ("head:nope", "the heads are topic, sentiment"),
            ("name:zzz*", "matches nothing: the model's 107 tensors"),
            ("keep:zzz", "matches nothing"),
            ("all:3", "is unknown"),
        ] {
            let message = error(spec);
            assert!(message.contains(expected), "{spec}: {message}");
        }
    }
}
