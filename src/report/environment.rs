//! Where a figure comes from: without it no figure is worth keeping.

use serde::Serialize;

/// The machine and program of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    pub frostline: &'static str,
    pub device: String,
    /// The processor's name, where the system tells it.
    pub cpu: Option<String>,
    pub threads: usize,
    pub os: &'static str,
    pub command: Vec<String>,
    /// Seconds since 1970, UTC.
    pub unix_time: u64,
}

impl Environment {
    /// This process on the CPU.
    pub fn of_cpu() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            frostline: env!("CARGO_PKG_VERSION"),
            device: "cpu".into(),
            cpu: cpu_name(),
            threads: rayon::current_num_threads(),
            os: std::env::consts::OS,
            command: std::env::args_os().map(|arg| arg.to_string_lossy().into()).collect(),
            unix_time: now.map_or(0, |elapsed| elapsed.as_secs()),
        }
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let cpu = self.cpu.as_deref().unwrap_or("unknown processor");
        let threads = if self.threads == 1 { "thread" } else { "threads" };
        format!("frostline {} on {cpu}, {} {threads}, f32", self.frostline, self.threads)
    }
}

fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
