//! Progress bars on stderr; off a terminal they are silent.

use std::borrow::Cow;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over `n` units of work, with the time left.
pub fn bar(n: u64, title: impl Into<Cow<'static, str>>) -> ProgressBar {
    let bar = ProgressBar::new(n).with_message(title);
    // The template is fixed and right; a wrong one would leave indicatif's own look.
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}, {eta} left") {
        bar.set_style(style);
    }
    bar
}

/// A bar over the bytes of a download, whose size may be unknown.
pub fn bytes_bar(n_bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match n_bytes {
        Some(n) => {
            (ProgressBar::new(n), "{bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left")
        }
        None => (ProgressBar::new_spinner(), "{spinner} {bytes}, {bytes_per_sec}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
