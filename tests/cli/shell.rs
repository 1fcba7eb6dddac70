//! Help, version and completions.

use crate::Workspace;

const COMMANDS: [&str; 5] = ["bench", "train", "plan", "profile", "step"];

#[test]
fn help_has_an_example_of_every_command() {
    let workspace = Workspace::new();
    let overview = workspace.ok("--help");
    for command in COMMANDS {
        assert!(overview.contains(&format!("  {command} ")), "{overview}");
        let help = workspace.ok(&format!("{command} --help"));
        let examples = examples(&help);
        assert!(!examples.is_empty(), "{help}");
        assert!(examples.iter().all(|example| example[0] == command), "{help}");
        for option in ["--model", "--json", "--config"] {
            assert!(help.contains(option), "{command}: {option}");
        }
    }
    assert!(overview.contains("completions") && !overview.contains("memory-probe"), "{overview}");
}

/// The examples parse: what they fail on is files and folders that are not there, not their options.
#[test]
fn examples_are_accepted() {
    let workspace = Workspace::new();
    for command in COMMANDS {
        for example in examples(&workspace.ok(&format!("{command} --help"))) {
            check_example(&workspace, command, &example);
        }
    }
}

/// The command lines behind `Example:` or `Examples:`, without the program's name.
fn examples(help: &str) -> Vec<Vec<&str>> {
    let (_, text) = help.rsplit_once("\nExample").unwrap();
    text.split("frostline ").skip(1).map(|one| one.split_whitespace().collect()).collect()
}

fn check_example(workspace: &Workspace, command: &str, example: &[&str]) {
    if example.contains(&"--arch") && ["bench", "profile"].contains(&command) {
        // Minutes of measuring; a size that is not there shows that all else was understood.
        let example = example.join(" ").replace("bert-base", "bert-tiny");
        workspace.refused(&example, 2, &["bert-tiny"]);
        return;
    }
    let output = workspace.run_all(example);
    let stderr = String::from_utf8_lossy(&output.stderr);
    match command {
        "plan" => assert!(output.status.success(), "{stderr}"),
        _ => assert_eq!(output.status.code(), Some(1), "{example:?}: {stderr}"),
    }
}

#[test]
fn version() {
    let workspace = Workspace::new();
    let expected = format!("frostline {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(workspace.ok("--version"), expected);
    assert_eq!(workspace.ok("-V"), expected);
}

#[test]
fn completions() {
    let workspace = Workspace::new();
    for (shell, words) in [
        ("bash", ["_frostline()", "complete -F _frostline"]),
        ("zsh", ["#compdef frostline", "_frostline()"]),
        ("fish", ["complete -c frostline", "fish_frostline"]),
    ] {
        let script = workspace.ok(&format!("completions {shell}"));
        for word in words.iter().chain(&COMMANDS) {
            assert!(script.contains(word), "{shell}: {word}");
        }
        assert!(script.contains("freeze"), "{shell}");
        assert!(!script.contains("memory-probe"), "{shell} offers a hidden command");
    }
    workspace.refused("completions tcsh", 2, &["tcsh", "bash"]);
}

#[test]
fn unknown_commands() {
    let workspace = Workspace::new();
    workspace.refused("brain", 2, &["brain"]);
    workspace.refused("train", 2, &["--task", "--output"]);
}
