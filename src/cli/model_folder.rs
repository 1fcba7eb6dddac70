//! Opens what --model names: a folder, or a model of the hub, whose download people see on stderr.

use std::path::Path;

use indicatif::{HumanBytes, ProgressBar};

use super::{output_folder, progress};
use crate::model::ModelFolder;
use crate::model::folder::CONFIG;
use crate::model::hub::{self, Event, Name, Need};
use crate::{Error, Result};

/// Opens the folder `model`; where there is none and `model` may be a name on the hub, the model of that name, with
/// what is needed of it.
///
/// # Errors
/// A folder that is none, or has a wrong file in it; or as [`hub::find`].
pub fn open(option: &str, model: &Path, need: Need) -> Result<ModelFolder> {
    let name = match model.exists() {
        true => None,
        false => model.to_str().and_then(Name::parse),
    };
    let Some(name) = name else {
        return match (model.join(CONFIG).is_file(), output_folder::unplaced_hint(model)) {
            (false, Some(hint)) => Err(Error::content(model, format!("{option}: {hint}"))),
            _ => ModelFolder::open(model),
        };
    };
    let mut bar = ProgressBar::hidden();
    let snapshot = hub::find(option, &name, need, &mut |event| match event {
        Event::Begins { url, n_bytes } => {
            let size = n_bytes.map(|n| format!(" ({})", HumanBytes(n))).unwrap_or_default();
            eprintln!("downloading {url}{size}");
            bar = progress::bytes_bar(n_bytes);
        }
        Event::Bytes(n) => bar.inc(n),
        Event::Ends => bar.finish_and_clear(),
        Event::UsesCopy { problem } => eprintln!("{problem}: using the copy in the cache"),
    })?;
    ModelFolder::open(&snapshot)
}
