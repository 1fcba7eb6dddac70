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
    /// `cpu`, `emulated`, or the GPU's name.
    pub device: String,
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
        let device = match engine.device {
            Device::Cpu => "cpu".to_owned(),
            Device::Emulated { .. } => "emulated".to_owned(),
            Device::Cuda { .. } => cuda::gpu_name()?,
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Ok(Self {
            frostline: env!("CARGO_PKG_VERSION"),
            device,
            dtype: engine.compute,
            cpu: cpu_name(),
            threads: rayon::current_num_threads(),
            os: std::env::consts::OS,
            command: std::env::args_os().map(|arg| arg.to_string_lossy().into()).collect(),
            unix_time: now.map_or(0, |elapsed| elapsed.as_secs()),
        })
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
