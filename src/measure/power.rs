//! Clocks, throttling, power and energy of a GPU while it is measured, as its management library (NVML) tells them.
//!
//! A time means little without the clock at which it was taken, and a freeze that saves time may save more or less
//! energy. NVML counts energy in millijoules and updates the count some ten times a second, so that a window of
//! several seconds is needed; every scenario gets one of its own, after the rounds.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::Clock;

use crate::{Error, Result};

/// What a GPU says of itself at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The clock of the multiprocessors.
    pub sm_mhz: u32,
    /// Why it is lower than it could be, idleness and settings aside.
    pub throttled: Vec<&'static str>,
    /// Energy since the driver was loaded; None where the GPU does not count it.
    pub joules: Option<f64>,
}

/// Something that can be read while steps run.
pub trait Gauge {
    /// A reading; None where the GPU does not answer.
    fn read(&mut self) -> Option<Reading>;

    /// How long energy must be counted for the count to mean something.
    fn window(&self) -> Duration;
}

/// The management library's view of one GPU.
pub struct NvmlGauge {
    nvml: Nvml,
    uuid: String,
}

impl NvmlGauge {
    /// The GPU with this UUID (`GPU-...`): ordinals need not agree with CUDA's.
    ///
    /// # Errors
    /// [`Error::Device`] where the library is missing, or does not know the GPU.
    pub fn open(uuid: &str) -> Result<Self> {
        Self::new(Nvml::init(), uuid)
    }

    fn new(
        nvml: std::result::Result<Nvml, nvml_wrapper::error::NvmlError>,
        uuid: &str,
    ) -> Result<Self> {
        let fault = |e| Error::Device(format!("NVML: {e}"));
        let gauge = NvmlGauge { nvml: nvml.map_err(fault)?, uuid: uuid.to_owned() };
        gauge.nvml.device_by_uuid(uuid).map_err(fault)?;
        Ok(gauge)
    }
}

impl Gauge for NvmlGauge {
    fn read(&mut self) -> Option<Reading> {
        let device = self.nvml.device_by_uuid(self.uuid.as_str()).ok()?;
        let reasons = device.current_throttle_reasons().ok()?;
        let names = [
            (ThrottleReasons::SW_POWER_CAP, "power cap"),
            (ThrottleReasons::HW_SLOWDOWN, "hardware slowdown"),
            (ThrottleReasons::SW_THERMAL_SLOWDOWN, "temperature"),
            (ThrottleReasons::HW_THERMAL_SLOWDOWN, "temperature (hardware)"),
            (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power brake"),
        ];
        Some(Reading {
            sm_mhz: device.clock_info(Clock::SM).ok()?,
            throttled: (names.into_iter())
                .filter(|(reason, _)| reasons.contains(*reason))
                .map(|(_, name)| name)
                .collect(),
            joules: device
                .total_energy_consumption()
                .ok()
                .map(|millijoules| millijoules as f64 / 1e3),
        })
    }

    fn window(&self) -> Duration {
        Duration::from_secs(5)
    }
}

/// Clocks that differ by more than this share make times that cannot be compared.
const STEADY: f64 = 0.02;

/// The clocks of all rounds.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Clocks {
    pub lowest_mhz: u32,
    pub highest_mhz: u32,
    /// Reasons that any reading gave.
    pub throttled: BTreeSet<&'static str>,
    /// Whether the clock moved by more than 2 %, or was held down.
    pub moved: bool,
}

impl Clocks {
    /// The summary of readings; None without any.
    pub fn of(readings: &[Reading]) -> Option<Self> {
        let clocks = || readings.iter().map(|reading| reading.sm_mhz);
        let (lowest_mhz, highest_mhz) = (clocks().min()?, clocks().max()?);
        let throttled: BTreeSet<&'static str> =
            readings.iter().flat_map(|reading| reading.throttled.iter().copied()).collect();
        let moved = f64::from(lowest_mhz) < (1.0 - STEADY) * f64::from(highest_mhz)
            || !throttled.is_empty();
        Some(Self { lowest_mhz, highest_mhz, throttled, moved })
    }

    /// One sentence.
    pub fn text(&self) -> String {
        let Self { lowest_mhz, highest_mhz, .. } = self;
        let mut text = format!("multiprocessors at {lowest_mhz} to {highest_mhz} MHz");
        if !self.throttled.is_empty() {
            let reasons: Vec<&str> = self.throttled.iter().copied().collect();
            text += &format!(", held down by {}", reasons.join(", "));
        }
        if self.moved {
            text += ": the clock moved, so that times of these rounds are less sure than their intervals say";
        }
        text
    }
}

/// What a scenario draws.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Energy {
    /// Mean over the window.
    pub watts: f64,
    pub joules_per_thousand_samples: f64,
    pub window_seconds: f64,
}

/// Runs `step`, which says how many sequences it had, for the gauge's window, and reads the energy before and after. None
/// where the GPU counts none.
///
/// # Errors
/// Those of `step`.
pub fn energy(
    gauge: &mut dyn Gauge,
    mut step: impl FnMut() -> Result<usize>,
) -> Result<Option<Energy>> {
    let Some(before) = gauge.read().and_then(|reading| reading.joules) else { return Ok(None) };
    let window = gauge.window();
    let begun = Instant::now();
    let mut n_samples = 0;
    while begun.elapsed() < window {
        n_samples += step()?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let after = gauge.read().and_then(|reading| reading.joules);
    Ok(after.map(|after| Energy {
        watts: (after - before) / seconds,
        joules_per_thousand_samples: (after - before) / n_samples as f64 * 1e3,
        window_seconds: seconds,
    }))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// 250 J more at every reading.
    pub struct Fake(pub f64);

    impl Gauge for Fake {
        fn read(&mut self) -> Option<Reading> {
            self.0 += 250.0;
            Some(Reading { sm_mhz: 1980, throttled: Vec::new(), joules: Some(self.0) })
        }

        fn window(&self) -> Duration {
            Duration::from_millis(20)
        }
    }

    #[test]
    fn energy_is_shared_among_the_samples() {
        let mut n_steps = 0;
        let energy = energy(&mut Fake(1e6), || {
            n_steps += 1;
            std::thread::sleep(Duration::from_millis(1));
            Ok(4)
        });
        let energy = energy.unwrap().unwrap();
        assert!(energy.window_seconds >= 0.02 && n_steps >= 2);
        assert!((energy.watts * energy.window_seconds - 250.0).abs() <= 1e-6);
        let expected = 250.0 / f64::from(4 * n_steps) * 1e3;
        assert!((energy.joules_per_thousand_samples - expected).abs() <= 1e-6);
    }

    #[test]
    fn clocks_that_move_are_marked() {
        let reading = |sm_mhz| Reading { sm_mhz, throttled: Vec::new(), joules: None };
        assert_eq!(Clocks::of(&[]), None);
        let steady = Clocks::of(&[reading(1980), reading(1965)]).unwrap();
        assert!(!steady.moved && steady.text() == "multiprocessors at 1965 to 1980 MHz");
        assert!(Clocks::of(&[reading(1980), reading(1755)]).unwrap().moved);
        let mut capped = reading(1980);
        capped.throttled.push("power cap");
        let capped = Clocks::of(&[reading(1980), capped]).unwrap();
        assert!(capped.moved && capped.text().contains("held down by power cap"), "{capped:?}");
    }

    /// A library with NVML's functions for one GPU.
    #[cfg(feature = "emulator")]
    const LIBRARY: &str = r#"
        #include <string.h>
        static int gpu;
        int nvmlInit_v2(void) { return 0; }
        int nvmlShutdown(void) { return 0; }
        const char *nvmlErrorString(int code) { return "no such thing"; }
        int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
            *device = &gpu;
            return strcmp(uuid, "GPU-1") ? 6 : 0;
        }
        int nvmlDeviceGetClockInfo(void *device, unsigned type, unsigned *mhz) {
            *mhz = type == 1 ? 1755 : 2619;
            return device == &gpu ? 0 : 2;
        }
        int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) {
            *reasons = 0x4 | 0x1;
            return 0;
        }
        int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *mj) {
            *mj = 12345;
            return 0;
        }
    "#;

    #[cfg(feature = "emulator")]
    #[test]
    fn readings_come_from_the_library() {
        let folder = tempfile::tempdir().unwrap();
        let (source, library) = (folder.path().join("nvml.c"), folder.path().join("libnvml.so"));
        std::fs::write(&source, LIBRARY).unwrap();
        let mut compiler = std::process::Command::new(std::env::var("CC").unwrap_or("cc".into()));
        compiler.args(["-shared", "-fPIC", "-o"]).args([&library, &source]);
        assert!(compiler.status().unwrap().success());
        let open =
            |uuid| NvmlGauge::new(Nvml::builder().lib_path(library.as_os_str()).init(), uuid);
        let reading = open("GPU-1").unwrap().read();
        let expected = Reading { sm_mhz: 1755, throttled: vec!["power cap"], joules: Some(12.345) };
        assert_eq!(reading, Some(expected));
        let error = open("GPU-2").err().unwrap();
        assert!(matches!(error, Error::Device(_)), "{error:?}");
    }
}
