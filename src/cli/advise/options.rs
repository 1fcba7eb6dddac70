//! What can be said of advice on the command line.

use std::time::Duration;

use crate::advise::costs::Limits;
use crate::advise::recommend::HEAD_RATE;
use crate::cli::step::{Rates, Regularizers, rate};
use crate::train::Metric;

/// What a training run may take.
#[derive(clap::Args, Debug)]
pub struct LimitArgs {
    /// The longest that a training run may take, as 90s, 10min or 2h
    #[arg(long, value_name = "TIME", value_parser = time)]
    budget: Option<Duration>,
    /// The most memory that a training step may need, as 800MB or 8GB [default: what is free on the device]
    #[arg(long, alias = "max_memory", value_name = "SIZE", value_parser = size)]
    max_memory: Option<u64>,
}

impl LimitArgs {
    /// The limits, `free_bytes` being free on the device.
    pub fn limits(&self, free_bytes: Option<usize>) -> Limits {
        Limits {
            seconds: self.budget.map(|budget| budget.as_secs_f64()),
            memory_bytes: self.max_memory.or(free_bytes.map(|bytes| bytes as u64)),
        }
    }
}

fn time(text: &str) -> std::result::Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err("expected a time above 0, as 90s, 10min or 2h".into()),
    }
}

fn size(text: &str) -> std::result::Result<u64, String> {
    const UNITS: [(&str, f64); 7] = [
        ("KIB", 1024.0),
        ("MIB", 1048576.0),
        ("GIB", 1073741824.0),
        ("KB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("B", 1.0),
    ];
    let upper = text.to_ascii_uppercase();
    let number = |(unit, factor): &(&str, f64)| {
        let number: f64 = upper.strip_suffix(unit)?.trim_end().parse().ok()?;
        let bytes = number * factor;
        (1.0..1e18).contains(&bytes).then_some(bytes as u64)
    };
    let expected = || "expected a size with its unit, as 800MB, 8GB or 8GiB".to_owned();
    UNITS.iter().find_map(number).ok_or_else(expected)
}

/// How fast runs learn.
#[derive(clap::Args, Debug)]
pub struct RateArgs {
    /// Learning rate [default: 5e-5, or 2e-5 for models that are 1024 wide or more]
    #[arg(long, alias = "learning_rate", value_parser = rate)]
    learning_rate: Option<f32>,
    /// Learning rate of the heads [default: 1e-3 if one is new, else the learning rate; three times that where heads
    /// train alone]
    #[arg(long, alias = "head_learning_rate", value_parser = rate)]
    pub head_learning_rate: Option<f32>,
    #[command(flatten)]
    regularizers: Regularizers,
}

/// Width from which on models are large, for which BERT's and RoBERTa's authors give lower rates.
const LARGE: usize = 1024;

impl RateArgs {
    /// The rates of a model of this width, whose heads are all there or not.
    pub fn of(&self, hidden_size: usize, has_heads: bool) -> Rates {
        let learning_rate =
            self.learning_rate.unwrap_or(if hidden_size >= LARGE { 2e-5 } else { 5e-5 });
        let of_heads = if has_heads { learning_rate } else { HEAD_RATE };
        Rates {
            learning_rate,
            head_learning_rate: Some(self.head_learning_rate.unwrap_or(of_heads)),
            regularizers: self.regularizers,
        }
    }
}

/// A metric whose error by the number of rows is known.
pub fn share_metric(text: &str) -> std::result::Result<Metric, String> {
    match Metric::parse(text)? {
        Metric::Loss => {
            Err("expected accuracy or macro_f1, or of a task, as topic_macro_f1".into())
        }
        metric => Ok(metric),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times() {
        let sizes = [
            ("8GB", 8_000_000_000),
            ("1.5 gb", 1_500_000_000),
            ("2GiB", 1 << 31),
            ("800MB", 800_000_000),
            ("4096B", 4096),
        ];
        for (text, bytes) in sizes {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GB", "8", "8TB", "-1GB", "nan", "inf", "0", "1e30"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(time("10min"), Ok(Duration::from_secs(600)));
        assert!(time("0s").is_err() && time("10").is_err() && time("soon").is_err());
    }
}
