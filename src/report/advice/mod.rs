//! Advice as tables, for a terminal, as Markdown and on a page.

mod closing;
mod data;
mod depths;

use serde_json::{Value, json};

pub use self::closing::{closing, comparison};
use super::cells::Cells;
use super::environment::Environment;
use super::table::grouped;
use crate::advise::survey::ModelAdvice;

/// All that one `advise` found out, and on what.
pub struct Advice {
    pub environment: Environment,
    /// What the run was asked for.
    pub settings: Value,
    pub models: Vec<ModelAdvice>,
}

/// A table with its title and what to know about it.
pub struct Titled {
    pub title: String,
    pub note: String,
    pub cells: Cells,
}

impl Advice {
    /// The document of `--json`.
    pub fn document(&self) -> Value {
        json!({
            "environment": self.environment,
            "settings": self.settings,
            "models": self.models,
        })
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.environment.line());
        for model in &self.models {
            text += &format!("\n{}\n", headline(model));
            for Titled { title, note, cells } in tables(model) {
                text += &format!("\n{}\n{}", with_note(&title, &note), cells.text());
            }
            text += &format!("\n{}", closing(model));
        }
        if let Some(Titled { title, note, cells }) = comparison(&self.models) {
            text += &format!("\n{}\n{}", with_note(&title, &note), cells.text());
        }
        text
    }

    /// The same tables as Markdown.
    pub fn markdown(&self) -> String {
        let one = |table: Titled| {
            format!("\n{}\n\n{}", with_note(&table.title, &table.note), table.cells.markdown())
        };
        let mut text = String::new();
        for model in &self.models {
            text += &format!("{}\n", headline(model));
            text.extend(tables(model).into_iter().map(one));
            text += &format!("\n{}\n", closing(model));
        }
        text.extend(comparison(&self.models).map(one));
        text
    }
}

fn with_note(title: &str, note: &str) -> String {
    match note {
        "" => title.to_owned(),
        note => format!("{title} ({note})"),
    }
}

/// What a model is.
pub fn headline(model: &ModelAdvice) -> String {
    format!(
        "{}: {} layers of {}, {} parameters, heads read {} pooling",
        model.model,
        model.n_layers,
        model.hidden_size,
        grouped(model.n_values),
        model.pooling.name()
    )
}

/// All tables of a model, in the order in which they are shown.
pub fn tables(model: &ModelAdvice) -> Vec<Titled> {
    let mut tables = vec![data::words(model), data::rows(model)];
    for task in &model.tasks {
        tables.push(data::layers(model, task));
        tables.push(data::classes(model, task));
        tables.extend(data::suspects(task));
    }
    tables.push(depths::costs(model));
    tables.extend(model.sweep.as_ref().map(|sweep| depths::sweep(model, sweep)));
    tables.extend(depths::agreement(model));
    tables
}

fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    match percent {
        p if p > 0.0 && p < 0.95 => format!("{p:.1} %"),
        p => format!("{p:.0} %"),
    }
}
