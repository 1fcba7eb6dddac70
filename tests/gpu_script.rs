//! benches/gpu.sh as it is rehearsed: whatever goes wrong, it goes on, says so, and leaves its archive.
#![cfg(all(unix, feature = "emulator"))]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// An unpacked bundle in a folder of its own, and where its results go.
struct Bundle {
    folder: TempDir,
}

/// What takes the place of a program of the bundle.
enum Program<'a> {
    Built(&'a Path),
    /// The body of a shell script.
    Script(&'a str),
}

fn frostline() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_frostline"))
}

fn gpu() -> PathBuf {
    let path = frostline().parent().unwrap().join("examples/gpu");
    assert!(
        path.exists(),
        "{} is not there: run `cargo build --example gpu` first",
        path.display()
    );
    path
}

impl Bundle {
    fn new(frostline: &Program, gpu: &Program) -> Self {
        let folder = TempDir::new().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        fs::copy(root.join("benches/gpu.sh"), folder.path().join("gpu.sh")).unwrap();
        for (name, program) in [("frostline", frostline), ("gpu", gpu)] {
            let to = folder.path().join(name);
            match program {
                Program::Built(path) => symlink(path, &to).unwrap(),
                Program::Script(body) => {
                    fs::write(&to, format!("#!/bin/sh\n{body}\n")).unwrap();
                    fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
                }
            }
        }
        Bundle { folder }
    }

    /// `gpu.sh run`, with no more programs than any machine has: neither cargo nor a Python with PyTorch.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("bash");
        command
            .arg(self.folder.path().join("gpu.sh"))
            .arg("run")
            .args(args)
            .arg(self.results())
            .env("PATH", "/usr/bin:/bin")
            .stdin(Stdio::null());
        command
    }

    fn results(&self) -> PathBuf {
        self.folder.path().join("results")
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn summary(&self, part: &str) -> String {
        fs::read_to_string(self.results().join(format!("summary-{part}.txt"))).unwrap()
    }

    /// Names of what lies in a part's archive, which must be whole; and nothing else but the summary beside it.
    fn archived(&self, part: &str) -> Vec<String> {
        let archive = self.results().join(format!("{part}.tar.gz"));
        let listed = Command::new("tar").arg("-tzf").arg(&archive).output().unwrap();
        assert!(listed.status.success(), "{listed:?}");
        let mut beside: Vec<_> = fs::read_dir(self.results())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        beside.sort();
        assert_eq!(beside, [format!("{part}.tar.gz"), format!("summary-{part}.txt")]);
        let names = String::from_utf8(listed.stdout).unwrap();
        names.lines().map(|name| name.trim_start_matches("./").to_owned()).collect()
    }
}

/// A line of the summary begins with the step and says how it ended.
fn assert_line(summary: &str, step: &str, outcome: &str) {
    let line = summary.lines().find(|line| line.split_whitespace().next() == Some(step));
    let line = line.unwrap_or_else(|| panic!("no line of {step} in:\n{summary}"));
    assert!(line.contains(outcome), "{line}");
}

#[test]
fn part_a_runs_whole_on_the_emulator() {
    let bundle = Bundle::new(&Program::Built(frostline()), &Program::Built(&gpu()));
    let output = bundle.run(&["--part", "a", "--device", "emulated"]);
    let summary = bundle.summary("a");
    assert!(output.status.success(), "{summary}\n{}", String::from_utf8_lossy(&output.stderr));
    let steps =
        ["doctor", "step-cpu", "compare-f32", "compare-bf16", "bench-main", "shapes", "profile"];
    for step in steps {
        assert_line(&summary, step, "done");
    }
    assert_line(&summary, "torch-main", "skipped");
    let names = bundle.archived("a");
    for name in ["doctor.json", "bench-main.json", "shapes.json", "profile.json", "summary-a.txt"] {
        assert!(names.iter().any(|one| one == name), "no {name} in {names:?}");
    }
}

#[test]
fn a_failed_check_is_an_exit_status_and_the_rest_goes_on() {
    let script = "[ \"$1\" = doctor ] && { echo wrong >&2; exit 1; }; echo '{}'";
    let bundle = Bundle::new(&Program::Script(script), &Program::Script("true"));
    let output = bundle.run(&["--part", "a"]);
    let summary = bundle.summary("a");
    assert_eq!(output.status.code(), Some(1), "{summary}");
    assert_line(&summary, "doctor", "FAILED");
    assert_line(&summary, "doctor", "wrong");
    for step in ["compare-bf16", "bench-main", "profile"] {
        assert_line(&summary, step, "done");
    }
    assert!(bundle.archived("a").contains(&"doctor.log".to_owned()));
}

#[test]
fn without_a_usable_gpu_it_ends_at_once() {
    let bundle = Bundle::new(&Program::Script("true"), &Program::Script("exit 3"));
    for part in ["a", "b"] {
        let output = bundle.run(&["--part", part]);
        assert_eq!(output.status.code(), Some(3));
        assert!(!bundle.summary(part).contains("bench"));
        fs::remove_dir_all(bundle.results()).unwrap();
    }
}

/// What fails like a device that is missing, while there is one, is a failed check and no reason to stop.
#[test]
fn a_kernel_that_fails_does_not_end_the_run() {
    let bundle = Bundle::new(&Program::Script("exit 3"), &Program::Script("true"));
    let output = bundle.run(&["--part", "a"]);
    assert_eq!(output.status.code(), Some(1));
    assert_line(&bundle.summary("a"), "profile", "FAILED");
}

/// The tools of NVIDIA are given the right command: each stands in for itself by running what comes behind its options.
#[test]
fn part_b_runs_its_tools_on_the_emulator() {
    let bundle = Bundle::new(&Program::Built(frostline()), &Program::Built(&gpu()));
    let tools = bundle.folder.path().join("tools");
    fs::create_dir(&tools).unwrap();
    for tool in ["ncu", "compute-sanitizer"] {
        let body = "while [ $# -gt 0 ]; do case $1 in */frostline) exec \"$@\" ;; esac; shift; done; exit 9";
        fs::write(tools.join(tool), format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(tools.join(tool), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = bundle.command(&["--part", "b", "--device", "emulated"]);
    let output =
        command.env("PATH", format!("{}:/usr/bin:/bin", tools.display())).output().unwrap();
    let summary = bundle.summary("b");
    assert!(output.status.success(), "{summary}");
    for step in ["ncu", "memcheck", "synccheck"] {
        assert_line(&summary, step, "done");
    }
    assert!(bundle.archived("b").contains(&"synccheck.txt".to_owned()));
}

#[test]
fn what_does_not_fit_is_left_out() {
    let bundle = Bundle::new(&Program::Script("sleep 60"), &Program::Script("true"));
    let begun = Instant::now();
    let output = bundle.run(&["--part", "a", "--seconds", "7"]);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    let summary = bundle.summary("a");
    assert_eq!(output.status.code(), Some(1), "{summary}");
    assert_line(&summary, "doctor", "timed out");
    assert_line(&summary, "bench-main", "skipped");
    bundle.archived("a");
}

#[test]
fn a_signal_in_the_middle_leaves_the_archive() {
    let bundle = Bundle::new(&Program::Script("sleep 60"), &Program::Script("true"));
    let mut child: Child = bundle.command(&["--part", "a"]).stdout(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    // The first step of this part that takes its time is in the summary only when it is over; the file is there before.
    while !bundle.results().join("summary-a.txt").exists() {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_millis(1500));
    let killed = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status().unwrap();
    assert!(killed.success());
    let status = child.wait().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert_eq!(status.code(), Some(130), "{}", bundle.summary("a"));
    assert!(bundle.summary("a").contains("by a signal"));
    bundle.archived("a");
}

#[test]
fn wrong_options_are_a_usage() {
    let bundle = Bundle::new(&Program::Script("true"), &Program::Script("true"));
    for args in
        [&["--part", "c"][..], &[], &["--part", "a", "--seconds", "many"], &["--device", "tpu"]]
    {
        let output = bundle.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("--part a"), "{args:?}");
    }
}
