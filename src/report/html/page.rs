//! What all pages have in common.

use std::fmt::Write;

use serde_json::Value;

use super::svg::escaped;
use crate::measure::Ceilings;
use crate::report::environment::Environment;

const STYLE: &str = include_str!("style.css");

/// A page under construction.
pub struct Page(String);

impl Page {
    /// A page that begins with texts: its title, where it comes from, what it says in short.
    pub fn new(title: &str, note: &str, summary: &str) -> Self {
        Self(format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{0}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{0}</h1>\n\
             <p class=\"note\">{1}</p>\n<p class=\"summary\">{2}</p>\n",
            escaped(title),
            escaped(note),
            escaped(summary),
        ))
    }

    /// A section; heading, note and content are HTML.
    pub fn section(&mut self, heading: &str, note: &str, content: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "<h2>{heading}</h2>\n<p class=\"note\">{note}</p>\n{content}");
    }

    /// The whole page.
    pub fn finish(self) -> String {
        self.0 + "</body>\n</html>\n"
    }
}

/// A picture in a section.
pub fn figure(svg: String) -> String {
    format!("<figure class=\"wide\">\n{svg}</figure>\n")
}

/// Where the figures come from, and how to have them again; `data` lists the files that were read.
pub fn environment(environment: &Environment, ceilings: &Ceilings, data: &Value) -> String {
    let mut facts = vec![
        ("frostline", environment.frostline.to_owned()),
        ("commit", environment.commit.unwrap_or("not known").to_owned()),
        ("device", environment.device.clone()),
        ("driver", environment.driver.clone().unwrap_or("none".into())),
        ("processor", environment.cpu.clone().unwrap_or("not known".into())),
        ("threads", environment.threads.to_string()),
        ("type", environment.dtype.name().to_owned()),
        ("machine", ceilings.line()),
        ("date", environment.date()),
    ];
    for file in data.as_array().into_iter().flatten() {
        let text = |key: &str| file[key].as_str().unwrap_or("").to_owned();
        facts.push(("data", format!("{}, SHA-256 {}", text("file"), text("sha256"))));
    }
    let list: String = (facts.iter())
        .map(|(name, value)| format!("<dt>{name}</dt><dd>{}</dd>\n", escaped(value)))
        .collect();
    let command = escaped(&environment.command_line());
    format!("<dl>\n{list}</dl>\n<pre>{command}</pre>\n")
}
