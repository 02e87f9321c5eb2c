//! Generates Rust from `paceline/**/*.proto` and the descriptor set that reflection serves.
use std::error::Error;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=paceline");
    println!("cargo::rerun-if-env-changed=PROTOC");

    let mut protos = Vec::new();
    collect(Path::new("paceline"), &mut protos)?;
    protos.sort();

    let mut config = tonic_prost_build::Config::new();
    // Cargo hands a build script its settings only this way.
    #[allow(clippy::disallowed_methods)]
    let installed = std::env::var("PROTOC").ok();
    if installed.is_none() {
        // Nobody has to install protoc to build this.
        config.protoc_executable(protoc_bin_vendored::protoc_bin_path()?);
    }
    #[allow(clippy::disallowed_methods)]
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .file_descriptor_set_path(out.join("paceline.binpb"))
        .include_file("packages.rs")
        .compile_with_config(config, &protos, &[PathBuf::from(".")])?;
    Ok(())
}

fn collect(folder: &Path, protos: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, protos)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            protos.push(path);
        }
    }
    Ok(())
}
