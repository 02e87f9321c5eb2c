//! A cargo workspace as its manifests and `cargo tree` show it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use toml::{Table, Value};

pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) members: Vec<Member>,
}

pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    /// What its manifest names.
    pub(crate) edges: Vec<Edge>,
}

pub(crate) struct Edge {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// A crate of this workspace.
    pub(crate) ours: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Normal,
    Dev,
    Build,
}

/// A crate in somebody's tree.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Crate {
    pub(crate) name: String,
    pub(crate) licence: String,
}

impl Workspace {
    pub(crate) fn open(root: &Path) -> Self {
        let manifest = read(&root.join("Cargo.toml"));
        let globs = manifest["workspace"]["members"].as_array().expect("workspace.members");
        let dirs = globs.iter().flat_map(|glob| expand(root, glob.as_str().expect("a member is a path")));
        let manifests: Vec<(PathBuf, Table)> =
            dirs.map(|d| (d.clone(), read(&d.join("Cargo.toml")))).collect();
        let names: BTreeSet<String> = manifests.iter().map(|(_, m)| name(m)).collect();
        let members = manifests.iter().map(|(dir, manifest)| Member {
            name: name(manifest),
            dir: dir.clone(),
            edges: edges(manifest, &names),
        });
        let members: Vec<_> = members.collect();
        assert!(!members.is_empty(), "{} has no members", root.display());
        Self { root: root.to_owned(), members }
    }

    /// Everything that `member` contains when it is built, itself included.
    pub(crate) fn tree(&self, member: &str) -> Vec<Crate> {
        self.cargo_tree(&["-p", member, "-e", "normal"])
    }

    /// Everything that is needed to build the workspace.
    pub(crate) fn whole_tree(&self) -> Vec<Crate> {
        self.cargo_tree(&["--workspace", "-e", "normal,build"])
    }

    fn cargo_tree(&self, args: &[&str]) -> Vec<Crate> {
        let cargo = option_env!("CARGO").unwrap_or("cargo");
        let out = Command::new(cargo)
            .args(["tree", "--prefix", "none", "--no-dedupe", "--format", "{p}|{l}", "--offline"])
            .args(args)
            .current_dir(&self.root)
            .output()
            .expect("cargo starts");
        assert!(out.status.success(), "cargo tree {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8(out.stdout).expect("cargo prints UTF-8");
        let crates: BTreeSet<Crate> = text.lines().filter_map(parse).collect();
        crates.into_iter().collect()
    }
}

/// `name v1.2.3 (extra)|licence`.
fn parse(line: &str) -> Option<Crate> {
    let (package, licence) = line.rsplit_once('|')?;
    let name = package.split_whitespace().next()?;
    Some(Crate { name: name.to_owned(), licence: licence.trim_end_matches(" (*)").trim().to_owned() })
}

fn read(path: &Path) -> Table {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn name(manifest: &Table) -> String {
    manifest["package"]["name"].as_str().expect("package.name").to_owned()
}

/// A member as written: a path, or `path/*`.
fn expand(root: &Path, glob: &str) -> Vec<PathBuf> {
    let Some(parent) = glob.strip_suffix("/*") else { return vec![root.join(glob)] };
    let entries = std::fs::read_dir(root.join(parent)).unwrap();
    let mut dirs: Vec<_> =
        entries.map(|e| e.unwrap().path()).filter(|d| d.join("Cargo.toml").is_file()).collect();
    dirs.sort();
    dirs
}

fn edges(manifest: &Table, ours: &BTreeSet<String>) -> Vec<Edge> {
    let targets = manifest.get("target").and_then(Value::as_table);
    let tables = std::iter::once(manifest)
        .chain(targets.into_iter().flat_map(|t| t.values()).filter_map(Value::as_table));
    let kinds = [
        ("dependencies", Kind::Normal),
        ("dev-dependencies", Kind::Dev),
        ("build-dependencies", Kind::Build),
    ];
    let mut edges = Vec::new();
    for table in tables {
        for (section, kind) in kinds {
            let Some(section) = table.get(section).and_then(Value::as_table) else { continue };
            edges.extend(section.iter().map(|(key, value)| {
                // `alias = { package = "real" }` names the real one.
                let name = value.get("package").and_then(Value::as_str).unwrap_or(key);
                Edge { name: name.to_owned(), kind, ours: ours.contains(name) }
            }));
        }
    }
    edges
}
