//! Ctrl-C.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Result};

/// Whether somebody wants the run to end.
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on Ctrl-C (and SIGTERM) ends the run after its step; a second one ends it at once.
    ///
    /// # Errors
    /// When the system does not let this process listen.
    pub fn listen() -> Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        let handler = asked.clone();
        ctrlc::set_handler(move || {
            if handler.swap(true, Ordering::SeqCst) {
                std::process::exit(i32::from(Error::Interrupted.exit_code()));
            }
        })
        .map_err(|e| Error::Run(format!("cannot listen for Ctrl-C: {e}")))?;
        Ok(Self(asked))
    }

    /// Whether it should end now.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
