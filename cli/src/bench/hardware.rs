//! The machine a figure was measured on.

use serde::Serialize;

/// What belongs beside every figure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hardware {
    /// As the operating system names the processor.
    pub cpu: String,
    /// Threads that this process may run at once.
    pub cores: usize,
    /// Of Rust's target: x86_64, aarch64.
    pub arch: &'static str,
    pub os: &'static str,
}

impl Hardware {
    pub fn here() -> Self {
        // Other systems than Linux have no such file; their figures say so.
        let cpu = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| model_name(&text));
        Self {
            cpu: cpu.unwrap_or_else(|| "unknown processor".into()),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            arch: std::env::consts::ARCH,
            os: std::env::consts::OS,
        }
    }

    /// One line, for a table of results.
    pub fn line(&self) -> String {
        format!("{}, {} cores, {} {}", self.cpu, self.cores, self.os, self.arch)
    }
}

fn model_name(cpuinfo: &str) -> Option<String> {
    let named = |key: &str| {
        cpuinfo.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == key && !value.trim().is_empty()).then(|| value.trim().to_owned())
        })
    };
    // x86 names a model; 32-bit ARM kernels name the board's processor.
    named("model name").or_else(|| named("Processor"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_named_processor_counts() {
        let x86 = "processor\t: 0\nmodel name\t: Xeon X\nflags : a\n\nprocessor: 1\nmodel name : Y\n";
        assert_eq!(model_name(x86).as_deref(), Some("Xeon X"));
        assert_eq!(model_name("Processor : ARMv8\n").as_deref(), Some("ARMv8"));
        assert_eq!(model_name("model name :\nno colon\n"), None);
    }
}
