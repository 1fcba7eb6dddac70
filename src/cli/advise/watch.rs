//! A survey as it goes, for people.

use std::sync::Mutex;

use indicatif::ProgressBar;

use crate::advise::figures::megabytes;
use crate::advise::survey::{Stage, SurveyObserver};
use crate::advise::vectors::Origin;
use crate::cli::progress;

/// One bar after the other.
pub struct Watch(Mutex<ProgressBar>);

impl Watch {
    pub fn new() -> Self {
        Self(Mutex::new(ProgressBar::hidden()))
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.replace(ProgressBar::hidden());
    }

    fn replace(&self, next: ProgressBar) {
        // A thread that panicked while it held the bar has ended the program.
        if let Ok(mut bar) = self.0.lock() {
            bar.finish_and_clear();
            *bar = next;
        }
    }
}

impl SurveyObserver for Watch {
    fn begin(&self, stage: Stage) {
        self.replace(match stage {
            Stage::Vectors { n_texts } => {
                progress::bar(n_texts as u64, "reading with the frozen encoder")
            }
            Stage::Probes { n_points } => progress::bar(n_points as u64, "probing layers"),
            Stage::Costs => ProgressBar::hidden(),
        });
    }

    fn done(&self, n: usize) {
        if let Ok(bar) = self.0.lock() {
            bar.inc(n as u64);
        }
    }

    fn vectors(&self, origin: &Origin) {
        let text = match origin {
            Origin::Computed => return,
            Origin::Written(path) => format!("vectors: written: {}", path.display()),
            Origin::Found(path) => format!("vectors: found: {}", path.display()),
            Origin::TooLarge(n_bytes) => {
                format!("vectors: not kept, {} exceed --cache-limit", megabytes(*n_bytes))
            }
        };
        if let Ok(bar) = self.0.lock() {
            bar.suspend(|| eprintln!("{text}"));
        }
    }
}
