//! A small workspace that breaks every rule, so that each check is seen to fail.

use std::fs;
use std::path::Path;

use super::workspace::Workspace;

/// Writes a member with these dependencies (`name` or `name:dev`), all of them paths in the fixture.
fn member(root: &Path, dir: &str, dependencies: &[&str], lib: &str) {
    let place = root.join(dir);
    fs::create_dir_all(place.join("src")).unwrap();
    let name = dir.rsplit('/').next().unwrap();
    let up = "../".repeat(dir.split('/').count());
    let section = |dev: bool| {
        let lines = dependencies.iter().filter(|d| d.ends_with(":dev") == dev).map(|d| {
            let d = d.trim_end_matches(":dev");
            let home = if Path::new(&root.join("crates").join(d)).exists() { "crates" } else { "others" };
            format!("{d} = {{ path = \"{up}{home}/{d}\" }}\n")
        });
        lines.collect::<String>()
    };
    let manifest = format!(
        "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\nlicense = \"GPL-3.0\"\n\
         [dependencies]\n{}[dev-dependencies]\n{}",
        section(false),
        section(true)
    );
    fs::write(place.join("Cargo.toml"), manifest).unwrap();
    fs::write(place.join("src/lib.rs"), lib).unwrap();
}

const SAFE: &str = "#![forbid(unsafe_code)]\n";

fn broken() -> (tempfile::TempDir, Workspace) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::write(
        root.join("Cargo.toml"),
        "[workspace]\nresolver = \"3\"\nmembers = [\"crates/*\"]\nexclude = [\"others\"]\n",
    )
    .unwrap();
    // Stand-ins: what counts is the name in the tree.
    for other in ["tokio", "candle-core", "openssl-sys"] {
        member(root, &format!("others/{other}"), &[], "");
    }
    member(root, "others/innocent", &["tokio"], "");
    member(root, "crates/request", &[], "");
    member(root, "crates/kvcache", &["request", "innocent"], SAFE);
    member(root, "crates/worker", &["candle-core:dev", "openssl-sys"], SAFE);
    member(root, "crates/drafter", &["worker"], SAFE);
    member(root, "crates/novelty", &[], SAFE);
    fs::create_dir(root.join("docs")).unwrap();
    fs::write(
        root.join("docs/architecture.md"),
        "| `request` |\n| `kvcache` |\n| `worker` |\n| `drafter` |\n",
    )
    .unwrap();
    fs::write(
        root.join("deny.toml"),
        "[licenses]\nallow = [\"MIT\"]\n[bans]\ndeny = [{ crate = \"openssl-sys\", reason = \"TLS is rustls\" }]\n",
    )
    .unwrap();
    let workspace = Workspace::open(root);
    (dir, workspace)
}

#[test]
fn a_pure_crate_that_gains_tokio_through_another_is_caught() {
    let (_dir, workspace) = broken();
    assert_eq!(super::pure(&workspace), ["kvcache is pure and must not depend on tokio"]);
}

#[test]
fn a_process_that_depends_on_a_process_and_a_crate_without_a_layer_are_caught() {
    let (_dir, workspace) = broken();
    assert_eq!(
        super::direction(&workspace),
        [
            "drafter must not depend on worker",
            "novelty is in no layer: add it to DIRECTION and docs/architecture.md",
        ]
    );
}

#[test]
fn candle_outside_model_is_caught_even_in_tests() {
    let (_dir, workspace) = broken();
    assert_eq!(super::names(&workspace), ["worker names candle-core; only model, tests may"]);
}

#[test]
fn a_crate_that_allows_unsafe_code_is_caught() {
    let (_dir, workspace) = broken();
    let found = super::unsafe_code(&workspace);
    assert!(found.len() == 1 && found[0].contains("request/src/lib.rs"), "{found:?}");
}

#[test]
fn an_undocumented_crate_is_caught() {
    let (_dir, workspace) = broken();
    assert_eq!(
        super::documented(&workspace),
        ["docs/architecture.md has no row for `novelty` in its code map"]
    );
}

#[test]
fn a_banned_crate_and_a_foreign_licence_are_caught() {
    let (_dir, workspace) = broken();
    let found = super::deny::violations(&workspace);
    assert!(found.contains(&"openssl-sys is banned: TLS is rustls".to_owned()), "{found:?}");
    assert!(found.iter().any(|f| f.starts_with("tokio: its licence \"GPL-3.0\"")), "{found:?}");
}
