//! Where a figure comes from: without it no figure is worth keeping.

use serde::Serialize;

use crate::Result;
use crate::backend::cuda;
use crate::session::{Device, Engine};
use crate::tensor::DType;

/// The machine and program of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    pub frostline: &'static str,
    /// The commit that a release build was made from, where git knew it; `+` if files differed from it.
    pub commit: Option<&'static str>,
    /// `cpu`, `emulated`, or the GPU's name.
    pub device: String,
    /// What the GPU's driver serves.
    pub driver: Option<String>,
    /// The type of activations and matrices.
    pub dtype: DType,
    /// The processor's name, where the system tells it.
    pub cpu: Option<String>,
    pub threads: usize,
    pub os: &'static str,
    pub command: Vec<String>,
    /// Seconds since 1970, UTC.
    pub unix_time: u64,
}

impl Environment {
    /// This process, computing on `engine`.
    ///
    /// # Errors
    /// When the GPU does not say what it is.
    pub fn of(engine: Engine) -> Result<Self> {
        let (device, driver) = match engine.device {
            Device::Cpu => ("cpu".to_owned(), None),
            Device::Emulated { .. } => ("emulated".to_owned(), None),
            Device::Cuda { .. } => {
                let (name, driver) = cuda::gpu_and_driver()?;
                (name, Some(driver))
            }
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Ok(Self {
            frostline: env!("CARGO_PKG_VERSION"),
            commit: option_env!("FROSTLINE_COMMIT"),
            device,
            driver,
            dtype: engine.compute,
            cpu: cpu_name(),
            threads: rayon::current_num_threads(),
            os: std::env::consts::OS,
            command: std::env::args_os().map(|arg| arg.to_string_lossy().into()).collect(),
            unix_time: now.map_or(0, |elapsed| elapsed.as_secs()),
        })
    }

    /// The time at which this was made, as 2026-11-24T05:00:00Z.
    pub fn date(&self) -> String {
        let since = std::time::Duration::from_secs(self.unix_time);
        humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since).to_string()
    }

    /// The command as a shell reads it.
    pub fn command_line(&self) -> String {
        let quoted = |arg: &String| {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
            match !arg.is_empty() && arg.chars().all(is_plain) {
                true => arg.clone(),
                false => format!("'{}'", arg.replace('\'', "'\\''")),
            }
        };
        self.command.iter().map(quoted).collect::<Vec<_>>().join(" ")
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let cpu = self.cpu.as_deref().unwrap_or("unknown processor");
        let threads = if self.threads == 1 { "thread" } else { "threads" };
        let place = match self.device.as_str() {
            "cpu" => format!("{cpu}, {} {threads}", self.threads),
            "emulated" => "the emulator (its times say nothing of a GPU)".to_owned(),
            gpu => gpu.to_owned(),
        };
        format!("frostline {} on {place}, {}", self.frostline, self.dtype.name())
    }
}

fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
