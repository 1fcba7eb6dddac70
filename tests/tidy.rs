//! House rules that a reader would otherwise have to remember.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A source file, by its path from `src`.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The text in front of its test module, which all files have at their end.
    fn code(&self) -> &str {
        self.text.split("\n#[cfg(test)]\n").next().unwrap_or_default()
    }

    /// The module at the crate's root that the file belongs to: `plan` for `plan/op.rs`.
    fn root_module(&self) -> &str {
        self.path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    /// Lines of code with their numbers; comments are blank.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code().lines().enumerate().map(|(at, line)| (at + 1, without_comment(line)))
    }
}

fn without_comment(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut found, mut folders) = (Vec::new(), vec![root.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 40, "the sources were not found");
    found
}

fn assert_none(rule: &str, faults: &[String]) {
    assert!(faults.is_empty(), "{rule}:\n{}", faults.join("\n"));
}

#[test]
fn files_are_of_a_size_that_one_reads() {
    const MOST_LINES: usize = 500;
    let long = sources().into_iter().filter_map(|source| {
        let n = source.code().lines().count();
        (n > MOST_LINES).then(|| format!("{}: {n} lines", source.path))
    });
    assert_none("files beyond 500 lines", &long.collect::<Vec<_>>());
}

/// Modules from the bottom up. A module imports from rows above its own, and from itself.
const LAYERS: [&[&str]; 13] = [
    &["error"],
    &["tensor", "batch", "philox", "mmap", "files", "sums"],
    &["model"],
    &["data"],
    &["freeze"],
    &["plan"],
    &["backend"],
    &["session"],
    &["cache", "predict", "features", "probe", "measure", "doctor"],
    &["train"],
    &["advise", "checkpoint"],
    &["report"],
    &["cli"],
];

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

/// What follows `crate::` in a line: the root modules that it names, braces included.
fn crate_paths(line: &str) -> Vec<&str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut modules = Vec::new();
    for rest in line.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(list) => modules.extend(
                list.split(',')
                    .map(|item| item.trim().split(|c| !is_word(c)).next().unwrap_or_default()),
            ),
            None => modules.push(rest.split(|c| !is_word(c)).next().unwrap_or_default()),
        }
    }
    modules
}

#[test]
fn imports_point_down() {
    let mut faults = Vec::new();
    for source in sources() {
        let own = source.root_module();
        if ["lib", "main"].contains(&own) {
            continue;
        }
        let Some(own_layer) = layer_of(own) else {
            faults.push(format!("{}: has no layer in this test", source.path));
            continue;
        };
        for (at, line) in source.lines() {
            for module in crate_paths(line) {
                // `crate::Error` and `crate::Result` are the error module's.
                let is_type = module.starts_with(char::is_uppercase);
                if is_type || module == own {
                    continue;
                }
                match layer_of(module) {
                    Some(layer) if layer < own_layer => {}
                    _ => faults.push(format!("{}:{at}: imports {module}", source.path)),
                }
            }
        }
    }
    assert_none("imports that do not point down", &faults);
}

#[test]
fn the_plan_knows_no_device_and_does_no_io() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|source| source.root_module() == "plan") {
        for (at, line) in source.lines() {
            if ["std::fs", "std::io", "std::env", "println!", "rayon", "cudarc"]
                .iter()
                .any(|word| line.contains(word))
            {
                faults.push(format!("{}:{at}: {line}", source.path));
            }
        }
    }
    assert_none("plan", &faults);
}

/// Names of all ops, from `Op::name`.
fn op_names() -> Vec<&'static str> {
    (include_str!("../src/plan/op.rs").lines())
        .filter(|line| line.trim_start().starts_with("Op::"))
        .filter_map(|line| line.split("=> \"").nth(1)?.split('"').next())
        .collect()
}

/// One op, one name: the variant in snake case, and the function of every backend's table.
#[test]
fn ops_are_called_the_same_everywhere() {
    let names = op_names();
    let unique: BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(unique.len(), names.len(), "{names:?}");
    let text = include_str!("../src/plan/op.rs");
    let body = text.split("pub enum Op {").nth(1).and_then(|text| text.split("\n}").next());
    let variants: BTreeSet<String> = (body.unwrap().lines())
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(char::is_uppercase))
        .map(|line| snake_case(line.split([' ', '{']).next().unwrap_or_default()))
        .collect();
    assert_eq!(variants, unique.iter().map(|name| (*name).to_owned()).collect());

    let table = include_str!("../src/backend/host/ops.rs");
    let table = table.split("pub trait Ops").nth(1).unwrap();
    let functions: BTreeSet<&str> = (table.split("    fn ").skip(1))
        .filter_map(|text| text.split('(').next())
        .filter(|name| *name != "name")
        .collect();
    assert_eq!(functions, unique);

    let launches = |source: &Source| source.path.starts_with("backend/cuda/launch/");
    let all: String = sources().iter().filter(|one| launches(one)).map(Source::code).collect();
    let kernels = kernel_sources();
    for name in unique {
        assert!(all.contains(&format!("pub(super) fn {name}(")), "no launch function {name}");
        // The symbol bears a type, a variant or nothing more.
        let is_there = kernels.iter().any(|text| text.contains(name));
        assert!(is_there, "no kernel {name}");
    }
}

/// The texts of the kernels' files.
fn kernel_sources() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            texts.push(std::fs::read_to_string(&path).unwrap());
        }
    }
    assert!(texts.len() >= 10, "the kernels were not found");
    texts
}

#[test]
fn kernels_say_what_a_reader_asks_first() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    for text in kernel_sources() {
        // A file may only make instances of what a header of its family defines.
        let included =
            text.lines().filter_map(|line| line.strip_prefix("#include \"")?.strip_suffix('"'));
        let included = included.map(|name| std::fs::read_to_string(folder.join(name)).unwrap());
        let all: String = included.chain([text.clone()]).collect();
        for field in ["MATHS", "SHAPES", "TRAFFIC", "LAUNCH", "PICTURE", "NEEDS", "HISTORY"] {
            let title = text.lines().next().unwrap_or_default();
            assert!(all.contains(&format!("// {field}")), "{field} is missing in: {title}");
        }
    }
}

#[test]
fn cudarc_stays_under_the_cuda_backend() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|one| !one.path.starts_with("backend/cuda/driver")) {
        for (at, line) in source.lines().filter(|(_, line)| line.contains("cudarc")) {
            faults.push(format!("{}:{at}: {line}", source.path));
        }
    }
    assert_none("cudarc", &faults);
}

#[test]
fn one_module_talks_to_the_network() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|one| !one.path.starts_with("model/hub")) {
        let talks = |line: &str| ["ureq", "std::net"].iter().any(|word| line.contains(word));
        for (at, line) in source.lines().filter(|(_, line)| talks(line)) {
            faults.push(format!("{}:{at}: {line}", source.path));
        }
    }
    assert_none("network", &faults);
}

fn snake_case(name: &str) -> String {
    let mut text = String::new();
    for (at, c) in name.char_indices() {
        if c.is_uppercase() && at > 0 {
            text.push('_');
        }
        text.extend(c.to_lowercase());
    }
    text
}

/// Where `unsafe` may stand: a memory map, one call of the GEMM crate, and the device.
#[test]
fn unsafe_has_its_places() {
    let is_allowed = |path: &str| {
        ["mmap.rs", "backend/cpu/gemm.rs"].contains(&path) || path.starts_with("backend/cuda")
    };
    let mut faults = Vec::new();
    for source in sources() {
        for (at, line) in source.lines() {
            let says_unsafe = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            let is_ban = line.contains("deny(unsafe_code)");
            if says_unsafe.into_iter().any(|word| word == "unsafe") && !is_ban {
                if !is_allowed(&source.path) {
                    faults.push(format!("{}:{at}: {line}", source.path));
                } else if !source.text.contains("// SAFETY:") {
                    faults.push(format!("{}: no SAFETY comment", source.path));
                }
            }
        }
    }
    assert_none("unsafe", &faults);
    assert!(include_str!("../src/lib.rs").contains("#![deny(unsafe_code)]"));
}

#[test]
fn nothing_is_unwrapped() {
    let mut faults = Vec::new();
    for source in sources() {
        for (at, line) in source.lines() {
            if [".unwrap()", "todo!", "unimplemented!", "dbg!"].iter().any(|w| line.contains(w)) {
                faults.push(format!("{}:{at}: {}", source.path, line.trim()));
            }
        }
    }
    assert_none("unwrapped", &faults);
}

#[test]
fn modules_say_what_they_are_for() {
    let silent = sources()
        .into_iter()
        .filter(|source| source.path != "main.rs" && !source.text.starts_with("//!"));
    assert_none("no module comment", &silent.map(|source| source.path).collect::<Vec<_>>());
}

/// The checks above see what they are meant to see.
#[test]
fn the_checks_can_fail() {
    assert_eq!(crate_paths("use crate::plan::{BufId, Op};"), ["plan"]);
    assert_eq!(crate_paths("use crate::{Error, Result};"), ["Error", "Result"]);
    assert_eq!(crate_paths("    crate::cli::run(crate::model::x)"), ["cli", "model"]);
    assert!(layer_of("plan") > layer_of("freeze") && layer_of("cli") > layer_of("session"));
    assert_eq!(snake_case("LayernormBwdDx"), "layernorm_bwd_dx");
    assert_eq!(without_comment("a // unsafe"), "a ");
    let source = Source {
        path: "plan/op.rs".into(),
        text: "x.unwrap()\n#[cfg(test)]\nmod tests {\ny.unwrap()\n}".into(),
    };
    assert_eq!((source.root_module(), source.lines().count()), ("plan", 1));
}
