//! Files that a result is written to, beside what is printed.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::args::check_output_file;
use crate::files::write_atomically;
use crate::report::{Bench, export, html};
use crate::{Error, Result};

/// Where to write a result, beside what is printed.
#[derive(clap::Args, Debug)]
pub struct ReportArgs {
    /// Write the document of --json to a file
    #[arg(long, alias = "export_json", value_name = "FILE")]
    export_json: Option<PathBuf>,
    /// Write the tables as Markdown
    #[arg(long, alias = "export_markdown", value_name = "FILE")]
    export_markdown: Option<PathBuf>,
    /// Write a page of charts as HTML, one file that opens offline
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Where to write what was measured.
#[derive(clap::Args, Debug)]
pub struct ExportArgs {
    #[command(flatten)]
    reports: ReportArgs,
    /// Write one line a scenario as CSV
    #[arg(long, alias = "export_csv", value_name = "FILE")]
    export_csv: Option<PathBuf>,
}

/// A file that an option names.
type Named<'a> = (&'static str, &'a PathBuf);

impl ReportArgs {
    fn files(&self) -> impl Iterator<Item = Named<'_>> {
        let options = [
            ("--export-json", &self.export_json),
            ("--export-markdown", &self.export_markdown),
            ("--report", &self.report),
        ];
        options.into_iter().filter_map(|(option, file)| Some((option, file.as_ref()?)))
    }

    /// Refuses, before anything is computed, what could not be written or would overwrite an input.
    ///
    /// # Errors
    /// As [`check_files`].
    pub fn check(&self, model: Option<&PathBuf>, inputs: &[&Path]) -> Result<()> {
        check_files(&self.files().collect::<Vec<_>>(), model, inputs)
    }

    /// Writes the files that were asked for.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(
        &self,
        document: &Value,
        markdown: impl FnOnce() -> String,
        page: impl FnOnce() -> String,
    ) -> Result<()> {
        if let Some(file) = &self.export_json {
            write_atomically(file, format!("{document:#}\n").as_bytes())?;
        }
        if let Some(file) = &self.export_markdown {
            write_atomically(file, markdown().as_bytes())?;
        }
        if let Some(file) = &self.report {
            write_atomically(file, page().as_bytes())?;
        }
        Ok(())
    }
}

impl ExportArgs {
    /// As [`ReportArgs::check`].
    ///
    /// # Errors
    /// As [`check_files`].
    pub fn check(&self, model: Option<&PathBuf>, inputs: &[&Path]) -> Result<()> {
        let csv = self.export_csv.as_ref().map(|file| ("--export-csv", file));
        check_files(&self.reports.files().chain(csv).collect::<Vec<_>>(), model, inputs)
    }

    /// Writes the files that were asked for.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, bench: &Bench, document: &Value) -> Result<()> {
        if let Some(file) = &self.export_csv {
            write_atomically(file, &export::csv(bench)?)?;
        }
        self.reports.write(document, || export::markdown(bench), || html::page(bench))
    }
}

/// Refuses files, by the options that name them, which could not be written or are read as part of the model or as
/// inputs.
///
/// # Errors
/// A missing folder, a folder in the place of a file, a file that is read, one file for two options.
fn check_files(
    files: &[(&str, &PathBuf)],
    model: Option<&PathBuf>,
    inputs: &[&Path],
) -> Result<()> {
    for (at, (option, file)) in files.iter().enumerate() {
        check_output_file(option, file, model, inputs)?;
        if let Some((other, _)) = files[..at].iter().find(|(_, other)| other == file) {
            let file = file.display();
            return Err(Error::usage(format!("{other} and {option} both name {file}")));
        }
    }
    Ok(())
}
