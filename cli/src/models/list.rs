//! `paceline models list`: what is here, and what could be.

use anyhow::Result;
use indicatif::DecimalBytes;
use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::{Alignment, Padding, Style, object::Columns};

use super::catalogue;
use super::store::{Name, Store};

/// One line of the list; the fields of `--json`.
#[derive(Debug, Serialize)]
struct Line {
    name: String,
    /// Whether the model is in the store.
    installed: bool,
    bytes: u64,
    path: Option<String>,
    source: Option<String>,
    sha256: Option<String>,
    pulled: Option<String>,
    about: Option<String>,
}

/// The list as a table, or as JSON.
pub(super) fn render(store: &Store, json: bool) -> Result<String> {
    let lines = lines(store)?;
    if json {
        return Ok(serde_json::to_string_pretty(&lines)? + "\n");
    }
    let mut table = Builder::default();
    table.push_record(["NAME", "SIZE", "STATE", "ABOUT", "SOURCE"]);
    for line in &lines {
        table.push_record([
            line.name.clone(),
            DecimalBytes(line.bytes).to_string(),
            if line.installed { "here".into() } else { "not pulled".into() },
            line.about.clone().unwrap_or_default(),
            line.source.clone().unwrap_or_else(|| "put there by hand".into()),
        ]);
    }
    let mut table = table.build();
    table.with(Style::blank()).with(Padding::new(0, 1, 0, 0));
    table.modify(Columns::one(1), Alignment::right());
    let text: String = table.to_string().lines().map(|l| format!("{}\n", l.trim_end())).collect();
    Ok(format!("{text}\nmodels directory: {}\n", store.dir().display()))
}

/// What is in the store by name, then what the catalogue has besides.
fn lines(store: &Store) -> Result<Vec<Line>> {
    let entries = catalogue::entries()?;
    let about = |name: &str| entries.iter().find(|e| e.name == name).map(|e| e.about.clone());
    let mut lines: Vec<Line> = store
        .list()?
        .into_iter()
        .map(|model| {
            let (source, sha256, pulled) =
                model.record.map_or((None, None, None), |r| (Some(r.source), Some(r.sha256), Some(r.date)));
            Line {
                about: about(model.name.as_str()),
                name: model.name.to_string(),
                installed: true,
                bytes: model.bytes,
                path: Some(model.path.display().to_string()),
                source,
                sha256,
                pulled,
            }
        })
        .collect();
    for entry in &entries {
        if store.find(&Name::parse(&entry.name)?)?.is_none() {
            lines.push(Line {
                name: entry.name.clone(),
                installed: false,
                bytes: entry.bytes,
                path: None,
                source: Some(entry.hub.describe()),
                sha256: Some(entry.sha256.clone()),
                pulled: None,
                about: Some(entry.about.clone()),
            });
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned_and_the_json_complete() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        std::fs::write(store.gguf(&Name::parse("mine").unwrap()), b"GGUF").unwrap();
        let text = render(&store, false).unwrap();
        let rows: Vec<&str> = text.lines().collect();
        assert!(rows[1].starts_with("mine") && rows[1].contains("put there by hand"), "{text}");
        let state = rows[0].find("STATE").unwrap();
        assert_eq!(&rows[1][state..state + 4], "here", "{text}");
        assert_eq!(&rows[2][state..state + 10], "not pulled", "{text}");
        assert!(text.contains("smollm2-135m") && rows.iter().all(|r| !r.ends_with(' ')), "{text}");

        let json: serde_json::Value = serde_json::from_str(&render(&store, true).unwrap()).unwrap();
        let names: Vec<_> = json.as_array().unwrap().iter().map(|l| l["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["mine", "coder-1.5b", "coder-0.5b", "smollm2-135m"]);
        assert_eq!(json[0]["installed"], true);
        assert_eq!(json[1]["bytes"], 1_117_320_768u64);
    }
}
