//! `--config FILE`: a TOML file that holds options, which the command line overrides.
//!
//! Its keys are the options' long names (or aliases), `-` and `_` alike; a list gives an option
//! several times; `true` sets a flag.

use std::ffi::OsString;
use std::path::Path;

use clap::error::ErrorKind;
use clap::{Arg, Command};
use toml::Value;

use crate::{Error, Result};

/// Puts the options of the file that `--config` names behind the subcommand, before what was typed.
///
/// # Errors
/// A file that cannot be read, is not TOML, or has a key or a value that the subcommand does not know.
pub fn expand(args: Vec<OsString>, command: &Command) -> Result<Vec<OsString>> {
    let Some((at, path)) = find(&args) else {
        return Ok(args);
    };
    let name = args.get(1).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Some(subcommand) = command.find_subcommand(&name) else {
        // Clap will say what is wrong with the subcommand.
        return Ok(args);
    };
    let path = Path::new(&path);
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let table: toml::Table = toml::from_str(&text).map_err(|e| {
        let before = e.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        Error::content(path, format!("line {line} is not TOML: {}", e.message()))
    })?;
    let typed: Vec<OsString> =
        args.iter().enumerate().filter(|(i, _)| !at.contains(i)).map(|(_, a)| a.clone()).collect();
    if find(&typed).is_some() {
        return Err(Error::usage("--config stands twice: one file can be given"));
    }
    let mut expanded: Vec<OsString> = typed[..2].to_vec();
    for (key, value) in &table {
        let option = find_option(subcommand, key).ok_or_else(|| {
            Error::content(path, format!("{key}: frostline {name} has no such option"))
        })?;
        let names = option_names(option);
        if names.iter().any(|name| name == "config") {
            return Err(Error::content(path, format!("{key}: a settings file names no other")));
        }
        let is_typed = |names: &[String]| typed.iter().any(|arg| is_one_of(arg, names));
        let rivals = rivals(subcommand, option);
        if !is_typed(&names) && !rivals.into_iter().any(|rival| is_typed(&option_names(rival))) {
            for value in values(path, key, value)? {
                let arg = format!("--{}{value}", names[0]);
                check_value(path, subcommand, key, &arg)?;
                expanded.push(arg.into());
            }
        }
    }
    expanded.extend_from_slice(&typed[2..]);
    Ok(expanded)
}

/// Refuses a value that the option does not take, by the file's name: clap knows of no file.
fn check_value(path: &Path, subcommand: &Command, key: &str, arg: &str) -> Result<()> {
    let parsed = subcommand.clone().try_get_matches_from([subcommand.get_name(), arg]);
    match parsed.map_err(|error| (error.kind(), error.to_string())) {
        Err((
            ErrorKind::InvalidValue | ErrorKind::ValueValidation | ErrorKind::TooManyValues,
            text,
        )) => {
            let problem = text.lines().next().unwrap_or_default();
            let problem = problem.strip_prefix("error: ").unwrap_or(problem);
            Err(Error::content(path, format!("{key}: {problem}")))
        }
        _ => Ok(()),
    }
}

/// Places and value of `--config FILE` or `--config=FILE`.
fn find(args: &[OsString]) -> Option<(Vec<usize>, OsString)> {
    args.iter().enumerate().find_map(|(at, arg)| {
        let text = arg.to_str()?;
        if text == "--config" {
            return Some((vec![at, at + 1], args.get(at + 1)?.clone()));
        }
        text.strip_prefix("--config=").map(|path| (vec![at], path.into()))
    })
}

/// The option that `key` names.
fn find_option<'a>(command: &'a Command, key: &str) -> Option<&'a Arg> {
    let key = key.replace('_', "-");
    let is_key = |name: &String| name.replace('_', "-") == key;
    command.get_arguments().find(|option| option_names(option).iter().any(is_key))
}

/// Long name and aliases of an option.
fn option_names(option: &Arg) -> Vec<String> {
    let aliases = option.get_all_aliases().unwrap_or_default();
    option.get_long().into_iter().chain(aliases).map(str::to_owned).collect()
}

/// The options that cannot stand beside `option`: one that is typed takes the place of one in the
/// file.
fn rivals<'a>(command: &'a Command, option: &'a Arg) -> Vec<&'a Arg> {
    let names_it = |other: &&Arg| {
        let conflicts = command.get_arg_conflicts_with(other);
        conflicts.iter().any(|arg| arg.get_id() == option.get_id())
    };
    let mut rivals = command.get_arg_conflicts_with(option);
    rivals.extend(command.get_arguments().filter(names_it));
    rivals
}

fn is_one_of(arg: &OsString, names: &[String]) -> bool {
    let Some(long) = arg.to_str().and_then(|text| text.strip_prefix("--")) else {
        return false;
    };
    let typed = long.split_once('=').map_or(long, |(name, _)| name);
    names.iter().any(|name| name == typed)
}

/// What stands behind the option's name, once for each time that it is given.
fn values(path: &Path, key: &str, value: &Value) -> Result<Vec<String>> {
    let one = |value: &Value| match value {
        Value::String(text) => Ok(format!("={text}")),
        Value::Integer(n) => Ok(format!("={n}")),
        Value::Float(x) => Ok(format!("={x}")),
        _ => Err(Error::content(path, format!("{key} is {value}: expected a text or a number"))),
    };
    match value {
        Value::Boolean(true) => Ok(vec![String::new()]),
        Value::Boolean(false) => Ok(Vec::new()),
        Value::Array(items) => items.iter().map(one).collect(),
        _ => Ok(vec![one(value)?]),
    }
}
