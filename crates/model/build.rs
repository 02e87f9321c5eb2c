//! With the feature `cuda`: compiles every kernel file to a fat binary that the crate embeds.
//!
//! Machine code for sm_80 and sm_90a, and PTX for whatever comes later. `PACELINE_NVCC` names a compiler; otherwise
//! the one that `make cuda` set up in `.cuda`, or the one on the path. `PACELINE_CUDA_ARCH` (`sm_90a`) builds for one
//! chip only, for whoever works on kernels.

use std::env::var_os;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::scope;

const KERNELS: &str = "src/cuda/kernels";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for variable in ["PACELINE_NVCC", "PACELINE_CUDA_ARCH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed={KERNELS}");
    if let Err(why) = compile() {
        println!("cargo::error=the feature `cuda` of crate model: {why}");
        std::process::exit(1);
    }
}

fn compile() -> Result<(), String> {
    let nvcc = nvcc().ok_or("no nvcc was found; run `make cuda`, or set PACELINE_NVCC to the path of one")?;
    let out = PathBuf::from(var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let entries = std::fs::read_dir(KERNELS).map_err(|e| format!("{KERNELS}: {e}"))?;
    let mut sources: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    sources.retain(|path| path.extension().is_some_and(|e| e == "cu"));
    sources.sort();
    // A compiler each: it uses one core.
    scope(|threads| {
        let running: Vec<_> =
            sources.iter().map(|source| threads.spawn(|| one(&nvcc, source, &out))).collect();
        running.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a compiler thread panicked")?)
    })
}

fn one(nvcc: &Path, source: &Path, out: &Path) -> Result<(), String> {
    let name = source.file_stem().unwrap_or_default();
    let mut command = Command::new(nvcc);
    command.args([
        "--fatbin",
        "-O3",
        "-std=c++17",
        "--expt-relaxed-constexpr",
        "-lineinfo",
        "-Werror=all-warnings",
    ]);
    match var_os("PACELINE_CUDA_ARCH") {
        Some(one) => {
            let one = one.to_string_lossy();
            command.arg(format!("-gencode=arch={},code={one}", one.replace("sm_", "compute_")));
        }
        None => {
            command.args([
                "-gencode=arch=compute_80,code=sm_80",
                "-gencode=arch=compute_90a,code=sm_90a",
                "-gencode=arch=compute_80,code=compute_80",
            ]);
        }
    }
    command.arg(source).arg("-o").arg(out.join(name).with_extension("fatbin"));
    let output = command.output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for line in stdout.lines().chain(stderr.lines()).take(40) {
        println!("cargo::warning={line}");
    }
    Err(format!("nvcc could not compile {}", source.display()))
}

fn nvcc() -> Option<PathBuf> {
    if let Some(named) = var_os("PACELINE_NVCC") {
        return Some(named.into());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cuda/lib");
    let own = std::fs::read_dir(root).ok().and_then(|pythons| {
        pythons
            .filter_map(|python| Some(python.ok()?.path().join("site-packages/nvidia/cu13/bin/nvcc")))
            .find(|nvcc| nvcc.is_file())
    });
    own.or_else(|| {
        let path = var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file())
    })
}
