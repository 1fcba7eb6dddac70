//! One error type for the whole crate.
//!
//! Every message is one sentence that names the file (or option), the field and the value, and says
//! what would be right. The command line prints it after `error: ` and exits with
//! [`Error::exit_code`]; nothing else decides on exit codes.

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong between the command line and the result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line, a freeze spec or a settings file asks for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// The operating system refused to read or write a file.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// A file was read, and what stands in it is wrong.
    #[error("{}: {problem}", path.display())]
    Content { path: PathBuf, problem: String },
    /// A device, driver or toolkit that was asked for is not there.
    #[error("{0}")]
    Device(String),
    /// The run itself failed: it diverged, or a check of its own found a fault.
    #[error("{0}")]
    Run(String),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A fault in the content of a file: `problem` names the field and the value.
    pub fn content(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Error::Content { path: path.as_ref().to_owned(), problem: problem.into() }
    }

    /// An [`io::Error`] together with the path that it is about.
    pub fn io(path: impl AsRef<Path>, source: io::Error) -> Self {
        Error::Io { path: path.as_ref().to_owned(), source }
    }

    /// A usage error: wrong option, spec or setting.
    pub fn usage(problem: impl Into<String>) -> Self {
        Error::Usage(problem.into())
    }

    /// The process's exit status: 2 usage, 3 device or toolkit missing, 130 interrupted, 1 the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::Device(_) => 3,
            Error::Interrupted => 130,
            Error::Io { .. } | Error::Content { .. } | Error::Run(_) => 1,
        }
    }
}
