//! The part of `deny.toml` that needs no network: which licences and which crates may come in.

use serde::Deserialize;

use super::workspace::Workspace;

#[derive(Deserialize)]
struct Deny {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

pub(crate) fn violations(workspace: &Workspace) -> Vec<String> {
    let text = std::fs::read_to_string(workspace.root.join("deny.toml")).unwrap();
    let deny: Deny = toml::from_str(&text).unwrap_or_else(|e| panic!("deny.toml: {e}"));
    let mut found = Vec::new();
    for part in workspace.whole_tree() {
        if let Some(ban) = deny.bans.deny.iter().find(|b| b.name == part.name) {
            found.push(format!("{} is banned: {}", part.name, ban.reason));
        }
        let ours = workspace.members.iter().any(|m| m.name == part.name);
        if !ours && let Err(why) = deny.licenses.check(&part.name, &part.licence) {
            found.push(format!("{}: {why}", part.name));
        }
    }
    found
}

impl Licenses {
    fn check(&self, name: &str, licence: &str) -> Result<(), String> {
        if licence.is_empty() {
            return Err("has no licence in its manifest".to_owned());
        }
        let exceptions = self.exceptions.iter().filter(|e| e.name == name).flat_map(|e| &e.allow);
        let allowed: Vec<&str> = self.allow.iter().chain(exceptions).map(String::as_str).collect();
        // Lax: old manifests write "MIT/Apache-2.0".
        let expression = spdx::Expression::parse_mode(licence, spdx::ParseMode::LAX)
            .map_err(|e| format!("its licence \"{licence}\" cannot be read: {e}"))?;
        if expression.evaluate(|one| allowed.contains(&one.to_string().as_str())) {
            return Ok(());
        }
        Err(format!("its licence \"{licence}\" is not allowed by deny.toml"))
    }
}

#[test]
fn licence_expressions_are_weighed_as_a_lawyer_would() {
    let licenses: Licenses = toml::from_str(
        r#"allow = ["MIT", "Apache-2.0"]
           exceptions = [{ crate = "option-ext", allow = ["MPL-2.0"] }]"#,
    )
    .unwrap();
    for (name, licence, allowed) in [
        ("a", "MIT", true),
        ("a", "GPL-3.0 OR MIT", true),
        ("a", "GPL-3.0 AND MIT", false),
        ("a", "MIT/Apache-2.0", true),
        ("a", "(MIT OR GPL-2.0) AND Apache-2.0", true),
        ("a", "Apache-2.0 WITH LLVM-exception", false),
        ("a", "MPL-2.0", false),
        ("option-ext", "MPL-2.0", true),
        ("a", "", false),
        ("a", "see LICENSE", false),
    ] {
        assert_eq!(licenses.check(name, licence).is_ok(), allowed, "{name}: {licence}");
    }
}
