//! `--forgetting`: other labelled data that the encoder should still know something of.

use super::data_args::{DataArgs, read_corpus, with_tokenizer};
use crate::data::TaskSource;
use crate::model::Source;
use crate::train::forgetting::ForgettingSet;
use crate::{Error, Result};

/// Other labelled data.
#[derive(clap::Args, Debug)]
pub struct ForgettingArgs {
    /// Labelled data that is not trained on (repeatable): how well a linear probe reads its labels off the pooled
    /// vectors, before training and after it
    #[arg(long = "forgetting", value_name = "NAME=FILE[:TEXT[:LABEL]]")]
    sets: Vec<String>,
}

impl ForgettingArgs {
    /// Whether any is named.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// The files that are named.
    pub fn files(&self) -> Vec<std::path::PathBuf> {
        let sources = self.sets.iter().filter_map(|text| TaskSource::parse(text).ok());
        sources.map(|source| source.path).collect()
    }

    /// Reads and tokenises the data sets, split as those of tasks are.
    ///
    /// # Errors
    /// A name that is given twice, a data set that a probe cannot be fitted and scored on; as [`DataArgs::corpus`].
    pub fn read(
        &self,
        source: &Source,
        data: &DataArgs,
        max_length: Option<usize>,
        seed: u64,
    ) -> Result<Vec<ForgettingSet>> {
        let mut sets: Vec<ForgettingSet> = Vec::with_capacity(self.sets.len());
        for text in &self.sets {
            let task = TaskSource::parse(text)
                .map_err(|error| Error::usage(format!("--forgetting: {error}")))?;
            if sets.iter().any(|set| set.name == task.name) {
                return Err(Error::usage(format!("--forgetting: `{}` is named twice", task.name)));
            }
            let name = task.name.clone();
            let (folder, files) = (with_tokenizer(source)?, (&[task][..], &[][..]));
            let corpus = read_corpus(folder, files, None, (data.holdout, seed), max_length)?;
            let set = ForgettingSet::new(&name, corpus)?;
            if set.n_fitted() < set.n_training_rows() {
                eprintln!(
                    "--forgetting {name}: probes are fitted on {} of {} training rows",
                    set.n_fitted(),
                    set.n_training_rows()
                );
            }
            sets.push(set);
        }
        Ok(sets)
    }
}
