//! What a user may write where a model is wanted: a name, a path, or a place on the hub.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};

use super::store::Name;

/// A model as the user named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A model in the store or the catalogue.
    Name(Name),
    /// A file or a folder that is used where it is.
    Path(PathBuf),
    /// `hf:org/repo[:file]`; without a file the repository must hold exactly one GGUF file, or a model in
    /// safetensors and no GGUF file.
    Hub { repo: String, file: Option<String> },
}

impl Source {
    /// Anything with a slash, or that ends in `.gguf`, is a path; `hf:` is the hub; the rest a name.
    pub fn parse(text: &str) -> Result<Self> {
        ensure!(
            !text.trim().is_empty(),
            "the model is empty: give a name, a path to a .gguf file or a folder, or hf:org/repo"
        );
        if let Some(rest) = text.strip_prefix("hf:") {
            return parse_hub(text, rest);
        }
        if text.contains(['/', '\\']) || text.ends_with(".gguf") {
            return Ok(Self::Path(PathBuf::from(text)));
        }
        Ok(Self::Name(Name::parse(text)?))
    }
}

fn parse_hub(text: &str, rest: &str) -> Result<Source> {
    let (repo, file) = match rest.split_once(':') {
        Some((repo, file)) => (repo, Some(file)),
        None => (rest, None),
    };
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    let Some((org, name)) = repo.split_once('/') else {
        bail!("{text}: the repository is missing its owner; write hf:org/repo or hf:org/repo:file.gguf");
    };
    ensure!(
        plain(org) && plain(name),
        "{text}: \"{repo}\" is not a repository of the hub; write hf:org/repo or hf:org/repo:file.gguf"
    );
    if let Some(file) = file {
        ensure!(
            file.ends_with(".gguf") && file.split('/').all(plain),
            "{text}: \"{file}\" is not a GGUF file of a repository; name a file that ends in .gguf, \
             or no file for a model in safetensors"
        );
    }
    Ok(Source::Hub { repo: repo.to_owned(), file: file.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_paths_and_the_hub_are_told_apart() {
        let hub =
            |repo: &str, file: Option<&str>| Source::Hub { repo: repo.into(), file: file.map(Into::into) };
        for (text, want) in [
            ("coder-1.5b", Source::Name(Name::parse("coder-1.5b").unwrap())),
            ("./coder-1.5b", Source::Path("./coder-1.5b".into())),
            ("x.gguf", Source::Path("x.gguf".into())),
            ("/models/x", Source::Path("/models/x".into())),
            ("hf:Qwen/Q-GGUF", hub("Qwen/Q-GGUF", None)),
            ("hf:Qwen/Q-GGUF:sub/q4.gguf", hub("Qwen/Q-GGUF", Some("sub/q4.gguf"))),
        ] {
            assert_eq!(Source::parse(text).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_a_model_is_refused_with_the_way_out() {
        for (text, says) in [
            ("", "the model is empty"),
            ("a b", "letters, digits"),
            ("hf:Qwen", "missing its owner"),
            ("hf:/x", "is not a repository"),
            ("hf:a/b/c", "is not a repository"),
            ("hf:a/b:model.safetensors", "or no file for a model in safetensors"),
            ("hf:a/b:../../etc/x.gguf", "is not a GGUF file"),
        ] {
            let error = Source::parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".*") {
            if let Ok(Source::Hub { file: Some(file), .. }) = Source::parse(&text) {
                prop_assert!(!file.split('/').any(|p| p == ".." || p.is_empty()));
            }
        }
    }
}
