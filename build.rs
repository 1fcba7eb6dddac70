//! Compiles `kernels/`: for GPUs where nvcc is found, and for the emulator where its feature is on.
//!
//! In `OUT_DIR` arise a fatbin for each kernel file, what ptxas said of it, and `embedded.rs`, which
//! embeds both. Without nvcc that list is empty and one warning says how to change it. What was compiled
//! once is kept in `target/kernels`, where the builds of all profiles find it.

use std::cmp::Reverse;
use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, thread};

/// Where `scripts/install_cuda_toolchain.sh` puts nvcc.
const OWN_TOOLCHAIN: &str = "target/cuda-toolchain/nvidia/cu13/bin";

/// The oldest nvcc that can compile the kernels: C++17 for sm_90a.
const OLDEST_NVCC: (u32, u32) = (12, 0);

type Outcome<T> = Result<T, String>;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");
    if let Err(problem) = build() {
        // Fails the build as an exit status would, without all that this script printed.
        problem.lines().for_each(|line| println!("cargo::error={line}"));
    }
}

fn build() -> Outcome<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR: cargo sets it")?);
    let sources = files("kernels", &["cu"])?;
    let mut embedded = Embedded::default();
    match find_nvcc() {
        Ok(nvcc) => {
            let headers = files("kernels", &["cuh"])?;
            run_all(sources.iter().map(|source| nvcc.job(source, &out)).collect(), &headers)?;
            embedded.nvcc = Some(nvcc.version);
            embedded.stems = sources.iter().map(|source| stem(source)).collect();
        }
        Err(missing) => println!(
            "cargo::warning=built without GPU kernels: {missing}. To have them, run \
             `bash scripts/install_cuda_toolchain.sh` (or set NVCC to a CUDA toolkit's nvcc) and \
             build again"
        ),
    }
    embedded.write(&out)?;
    name_commit();
    #[cfg(feature = "emulator")]
    emulator::build(&sources, &out)?;
    Ok(())
}

/// Tells a release build which commit it is of, where git knows: reports say it. Other builds do without, so that
/// a commit does not make them anew.
fn name_commit() {
    if env::var("PROFILE").as_deref() != Ok("release") {
        return;
    }
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let (Some(commit), Some(log)) =
        (git(&["rev-parse", "--short=12", "HEAD"]), git(&["rev-parse", "--git-path", "logs/HEAD"]))
    else {
        return;
    };
    if Path::new(&log).exists() {
        println!("cargo::rerun-if-changed={log}");
    }
    let differs = git(&["status", "--porcelain", "--untracked-files=no"]);
    let mark = if differs.is_some_and(|files| files.is_empty()) { "" } else { "+" };
    println!("cargo::rustc-env=FROSTLINE_COMMIT={commit}{mark}");
}

struct Nvcc {
    path: PathBuf,
    version: (u32, u32),
}

/// The first nvcc of $NVCC, the toolkit's folder, PATH and our own toolchain; or why there is none.
fn find_nvcc() -> Outcome<Nvcc> {
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH", "NVCC_CCBIN"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if let Some(path) = env::var_os("NVCC").map(PathBuf::from)
        && !path.is_file()
    {
        return Err(format!("$NVCC is {}, which is no file", path.display()));
    }
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let on_path = env::var_os("PATH").unwrap_or_default();
    let folders = (toolkits.map(|toolkit| PathBuf::from(toolkit).join("bin")))
        .chain(env::split_paths(&on_path))
        .chain([PathBuf::from(OWN_TOOLCHAIN)]);
    let candidates = (env::var_os("NVCC").into_iter().map(PathBuf::from))
        .chain(folders.map(|folder| folder.join("nvcc")));
    let Some(path) = candidates.into_iter().find(|path| path.is_file()) else {
        return Err("no nvcc in $NVCC, $CUDA_HOME/bin, $CUDA_PATH/bin, PATH or \
                    target/cuda-toolchain"
            .into());
    };
    println!("cargo::rerun-if-changed={}", path.display());
    let shown = path.display();
    let output = (Command::new(&path).arg("--version").output())
        .map_err(|error| format!("{shown} cannot be started ({error})"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = parse_release(&text)
        .ok_or_else(|| format!("{shown} --version names no release: {:?}", text.trim()))?;
    if version < OLDEST_NVCC {
        let (major, minor) = version;
        return Err(format!("{shown} is of CUDA {major}.{minor}, 12.0 or later is needed"));
    }
    Ok(Nvcc { path, version })
}

/// `(13, 0)` of `Cuda compilation tools, release 13.0, V13.0.88`.
fn parse_release(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.split_once("release ")?;
    let (major, rest) = rest.split_once('.')?;
    let minor = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

impl Nvcc {
    /// Machine code for sm_80 (which serves all of 8.x) and sm_90a, PTX for what comes after.
    fn job(&self, source: &Path, out: &Path) -> Job {
        let output = out.join(stem(source)).with_extension("fatbin");
        let mut command = Command::new(&self.path);
        command
            .args(["-std=c++17", "-O3", "-lineinfo", "-fatbin", "-Xptxas", "-v"])
            // A quarter of the size: lines take more room than code.
            .args(["-Xfatbin", "-compress-all"])
            .arg("-gencode=arch=compute_80,code=[sm_80,compute_80]")
            .arg("-gencode=arch=compute_90a,code=sm_90a")
            .args(["-I", "kernels"]);
        let compiler = format!("{:?}", self.version);
        Job { source: source.to_owned(), output, command, compiler }
    }
}

/// What `embedded.rs` will say.
#[derive(Default)]
struct Embedded {
    nvcc: Option<(u32, u32)>,
    stems: Vec<String>,
}

impl Embedded {
    fn write(&self, out: &Path) -> Outcome<()> {
        let mut text = format!("const NVCC: Option<(u32, u32)> = {:?};\n", self.nvcc);
        text += "static FILES: &[EmbeddedFile] = &[\n";
        for stem in &self.stems {
            let log = out.join(stem).with_extension("log");
            for line in read(&log)?.lines().filter(|line| line.contains("warning")) {
                println!("cargo::warning={line}");
            }
            let image = out.join(stem).with_extension("fatbin");
            text += &format!(
                "    EmbeddedFile {{ name: {stem:?}, image: &Aligned(*include_bytes!({image:?})).0, \
                 ptxas_report: include_str!({log:?}) }},\n"
            );
        }
        text += "];\n";
        let path = out.join("embedded.rs");
        fs::write(&path, text).map_err(|error| in_file(&path, &error))
    }
}

/// One source file to compile. What the compiler says is kept beside the output, as `.log`.
struct Job {
    source: PathBuf,
    output: PathBuf,
    /// All but source and output.
    command: Command,
    /// Which compiler it is, beyond its path.
    compiler: String,
}

impl Job {
    /// Compiles, unless the output of the same command, source and headers is there already, here or from the
    /// build of another profile: cargo runs this script whole whenever any kernel changes.
    fn run(&mut self, headers: u64, kept: &Path) -> Outcome<()> {
        let key_path = self.output.with_extension("key");
        let mut hasher = DefaultHasher::new();
        (headers, read(&self.source)?, &self.compiler).hash(&mut hasher);
        format!("{:?}", self.command).hash(&mut hasher);
        let key = format!("{:016x}", hasher.finish());
        if self.output.exists() && fs::read_to_string(&key_path).is_ok_and(|old| old == key) {
            return Ok(());
        }
        let copy = |from: &Path, to: &Path| {
            fs::copy(from, to).map(|_| ()).map_err(|error| in_file(from, &error))
        };
        let log_path = self.output.with_extension("log");
        let file_name = self.output.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kept_output = kept.join(format!("{file_name}-{key}"));
        let kept_log = kept.join(format!("{file_name}-{key}.log"));
        if kept_output.exists() && kept_log.exists() {
            copy(&kept_log, &log_path)?;
            copy(&kept_output, &self.output)?;
            return fs::write(&key_path, &key).map_err(|error| in_file(&key_path, &error));
        }
        self.command.arg("-o").arg(&self.output).arg(&self.source);
        let program = self.command.get_program().to_string_lossy().into_owned();
        let result = self.command.output().map_err(|error| {
            format!("{program}, which compiles {}, cannot be started ({error})", self.name())
        })?;
        let log = String::from_utf8_lossy(&result.stderr).into_owned();
        if !result.status.success() {
            return Err(format!("{}: {program} failed:\n{log}", self.name()));
        }
        let write =
            |path: &Path, text: &str| fs::write(path, text).map_err(|error| in_file(path, &error));
        write(&log_path, &log)?;
        // Renamed, since another build may look at the same moment.
        let beside = kept.join(format!("{file_name}-{}", std::process::id()));
        write(&kept_log, &log)?;
        copy(&self.output, &beside)?;
        fs::rename(&beside, &kept_output).map_err(|error| in_file(&kept_output, &error))?;
        // Last: an interrupted run leaves no key.
        write(&key_path, &key)
    }

    fn name(&self) -> String {
        self.source.display().to_string()
    }
}

/// `target/kernels`: `OUT_DIR` is `target/PROFILE/build/PACKAGE/out`.
fn kept_folder() -> Outcome<PathBuf> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR: cargo sets it")?);
    let folder = out.ancestors().nth(4).unwrap_or(&out).join("kernels");
    fs::create_dir_all(&folder).map_err(|error| in_file(&folder, &error))?;
    Ok(folder)
}

/// Runs all jobs on the cores that cargo grants; fails with all that failed.
fn run_all(mut jobs: Vec<Job>, headers: &[PathBuf]) -> Outcome<()> {
    // The longest first, so that no core waits for it in the end.
    jobs.sort_by_key(|job| Reverse(fs::metadata(&job.source).map_or(0, |source| source.len())));
    let mut hasher = DefaultHasher::new();
    for header in headers {
        (header, read(header)?).hash(&mut hasher);
    }
    let headers = hasher.finish();
    let kept = kept_folder()?;
    let n_threads = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let (queue, problems) = (Mutex::new(jobs.into_iter()), Mutex::new(Vec::new()));
    let next = || queue.lock().ok()?.next();
    thread::scope(|scope| {
        for _ in 0..n_threads {
            scope.spawn(|| {
                while let Some(mut job) = next() {
                    if let (Err(problem), Ok(mut problems)) =
                        (job.run(headers, &kept), problems.lock())
                    {
                        problems.push(problem);
                    }
                }
            });
        }
    });
    let problems = problems.into_inner().map_err(|_| "a compilation panicked")?;
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
}

/// The emulator: the same kernels, compiled for the CPU with a runtime that plays the GPU.
#[cfg(feature = "emulator")]
mod emulator {
    use super::*;

    const RUNTIME: &str = "kernels/emulator";
    const SHIM: &str = "kernels/emulator/shim";

    pub fn build(kernels: &[PathBuf], out: &Path) -> Outcome<()> {
        let out = out.join("emulator");
        fs::create_dir_all(&out).map_err(|error| in_file(&out, &error))?;
        let compiler = compiler().try_get_compiler().map_err(|error| no_compiler(&error))?;
        let version = (compiler.to_command().arg("--version").output())
            .map_err(|error| no_compiler(&format!("{}: {error}", compiler.path().display())))?;
        let version = String::from_utf8_lossy(&version.stdout).into_owned();
        let runtime = files(RUNTIME, &["cpp"])?;
        let mut jobs = Vec::new();
        for source in kernels.iter().chain(&runtime) {
            let mut command = compiler.to_command();
            command.args(["-x", "c++", "-include", "kernels/emulator/cuda_host.h"]);
            if source.extension() == Some(OsStr::new("cu")) {
                // Calls before each access to memory, which the runtime counts: not the sanitizer.
                command.arg("-fsanitize=thread");
            }
            // The whole name: a kernel file and a runtime file may share a stem.
            let mut name = source.file_name().unwrap_or_default().to_owned();
            name.push(".o");
            let output = out.join(name);
            command.arg("-c");
            jobs.push(Job { source: source.clone(), output, command, compiler: version.clone() });
        }
        let objects: Vec<PathBuf> = jobs.iter().map(|job| job.output.clone()).collect();
        let mut headers = files("kernels", &["cuh"])?;
        headers.extend(files(RUNTIME, &["h"])?);
        headers.extend(files(SHIM, &["h", "hpp"])?);
        run_all(jobs, &headers)?;
        self::compiler()
            .objects(objects)
            // Kernels register themselves: nothing refers to their objects by name.
            .link_lib_modifier("+whole-archive")
            .try_compile("frostline_emulator")
            .map_err(|error| no_compiler(&error))
    }

    /// Optimised in every profile (fibres in plain debug code are ten times slower), with line numbers.
    fn compiler() -> cc::Build {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").opt_level(2).debug(false).flag("-g1").warnings(false);
        build.include("kernels").include(RUNTIME).include(SHIM);
        build.flag("-Wno-unknown-pragmas").flag("-Wno-psabi");
        build
    }

    fn no_compiler(error: &dyn std::fmt::Display) -> String {
        format!(
            "the feature `emulator` needs a C++17 compiler ({error}): install g++, set CXX, or build \
             without the feature"
        )
    }
}

/// Files of a folder by extension, sorted.
fn files(folder: &str, extensions: &[&str]) -> Outcome<Vec<PathBuf>> {
    let list = || -> io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut found = list().map_err(|error| in_file(Path::new(folder), &error))?;
    found.retain(|path| extensions.iter().any(|kind| path.extension() == Some(OsStr::new(kind))));
    found.sort();
    Ok(found)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: &Path) -> Outcome<String> {
    fs::read_to_string(path).map_err(|error| in_file(path, &error))
}

fn in_file(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}
