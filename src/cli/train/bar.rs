//! Training as it goes, for people.

use std::time::Instant;

use indicatif::ProgressBar;

use super::report::quality_line;
use crate::cli::progress;
use crate::train::{LogLine, Observer};

/// Shows training as it goes: a bar on a terminal, a line an epoch everywhere.
pub struct Bar {
    bar: Option<ProgressBar>,
    begun: Instant,
    n_done: u64,
    n_tokens: usize,
    is_quiet: bool,
}

impl Bar {
    /// Begins the clock, so many steps being done.
    pub fn new(n_done: u64) -> Self {
        Self { bar: None, begun: Instant::now(), n_done, n_tokens: 0, is_quiet: false }
    }

    /// Without the line an epoch, for a run among others.
    pub fn quiet() -> Self {
        Self { is_quiet: true, ..Self::new(0) }
    }

    /// Tells people something without breaking the bar.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }
}

impl Observer for Bar {
    fn step(&mut self, line: &LogLine, n_tokens: usize, n_steps: u64) {
        let n_done = self.n_done;
        let bar = self.bar.get_or_insert_with(|| {
            let bar = progress::bar(n_steps, "training");
            bar.set_position(n_done);
            bar
        });
        self.n_tokens += n_tokens;
        let rate = self.n_tokens as f64 / self.begun.elapsed().as_secs_f64();
        if let LogLine::Step { loss, .. } = line {
            bar.set_message(format!("loss {loss:.3}, {rate:.0} tokens/s"));
        }
        bar.inc(1);
    }

    fn freeze(&mut self, line: &LogLine) {
        if let LogLine::Freeze {
            epoch,
            freeze,
            trainable_parameters,
            flops_share,
            memory_bytes,
            ..
        } = line
        {
            self.say(&format!(
                "epoch {epoch:.2}: {freeze} frozen from here, {trainable_parameters} values train; planned: \
                 {:.0} % of the FLOPs of a step that trains all, {:.0} MB",
                100.0 * flops_share,
                *memory_bytes as f64 / 1e6
            ));
        }
    }

    fn evaluation(&mut self, line: &LogLine) {
        if let (LogLine::Evaluation { epoch, eval, .. }, false) = (line, self.is_quiet) {
            self.say(&format!("epoch {epoch:.2}: {}", quality_line(eval)));
        }
    }
}
