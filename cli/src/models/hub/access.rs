//! Where the hub is and as whom it is asked, by the variables of Hugging Face's own tools.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use hf_hub::Cache;
use reqwest::Url;

/// The hub when `HF_ENDPOINT` names no mirror.
const PUBLIC: &str = "https://huggingface.co";

/// An address and, for private or gated repositories, a token.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Access {
    /// Without a slash at its end.
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
}

impl Access {
    /// `endpoint` goes before the variables; `variable` gives one of the environment, `None` when it
    /// is not set. Errors: an address that is no http(s) URL, a token file that was named and cannot
    /// be read.
    pub(super) fn new(endpoint: Option<&str>, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let endpoint = endpoint.map(str::to_owned).or_else(|| set("HF_ENDPOINT"));
        let endpoint = endpoint.unwrap_or_else(|| PUBLIC.to_owned()).trim().trim_end_matches('/').to_owned();
        let url = Url::parse(&endpoint).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        ensure!(
            url.is_some(),
            "the hub's address \"{endpoint}\" (HF_ENDPOINT) is no http:// or https:// URL"
        );
        Ok(Self { endpoint, token: token(&set)? })
    }
}

/// `HF_TOKEN`, the file `HF_TOKEN_PATH`, or what `hf auth login` left; none when
/// `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set.
fn token(set: &dyn Fn(&str) -> Option<String>) -> Result<Option<String>> {
    if set("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() {
        return Ok(None);
    }
    if let Some(token) = set("HF_TOKEN") {
        return Ok(Some(token.trim().to_owned()));
    }
    if let Some(path) = set("HF_TOKEN_PATH") {
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("HF_TOKEN_PATH: cannot read {path}"))?;
        return Ok(Some(text.trim().to_owned()).filter(|t| !t.is_empty()));
    }
    let in_cache = |cache: &str| set(cache).map(|dir| PathBuf::from(dir).join("huggingface"));
    let home = set("HF_HOME").map(PathBuf::from).or_else(|| in_cache("XDG_CACHE_HOME"));
    let home = home.or_else(|| set("HOME").map(|dir| PathBuf::from(dir).join(".cache/huggingface")));
    // The crate's cache is a folder beside the token.
    Ok(home.and_then(|home| Cache::new(home.join("hub")).token()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_of_hugging_faces_tools_are_honoured() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        for (file, text) in
            [("token", "of-home\n"), ("named", " of-file\n"), ("x/huggingface/token", "of-cache")]
        {
            std::fs::create_dir_all(dir.path().join(file).parent().unwrap()).unwrap();
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let (home, named, cache) = (("HF_HOME", path("")), ("HF_TOKEN_PATH", path("named")), path("x"));
        let cache = ("XDG_CACHE_HOME", cache);
        let var = |name: &'static str, value: &str| (name, value.to_owned());
        for (variables, endpoint, token) in [
            (vec![], PUBLIC, None),
            (vec![var("HF_ENDPOINT", "http://mirror/hf/")], "http://mirror/hf", None),
            (vec![var("HF_ENDPOINT", " "), var("HF_TOKEN", "")], PUBLIC, None),
            (vec![var("HF_TOKEN", " of-env "), home.clone(), named.clone()], PUBLIC, Some("of-env")),
            (vec![home.clone(), named.clone()], PUBLIC, Some("of-file")),
            (vec![home.clone(), cache.clone()], PUBLIC, Some("of-home")),
            (vec![cache, var("HOME", "/nowhere")], PUBLIC, Some("of-cache")),
            (vec![home, var("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"), var("HF_TOKEN", "t")], PUBLIC, None),
        ] {
            let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone());
            let access = Access::new(None, variable).unwrap();
            assert_eq!(
                (access.endpoint.as_str(), access.token.as_deref()),
                (endpoint, token),
                "{variables:?}"
            );
        }
    }

    #[test]
    fn an_address_or_token_file_that_cannot_be_used_is_named() {
        for (name, value, says) in [
            (
                "HF_ENDPOINT",
                "huggingface.co",
                "\"huggingface.co\" (HF_ENDPOINT) is no http:// or https:// URL",
            ),
            ("HF_ENDPOINT", "file:///etc", "is no http"),
            ("HF_TOKEN_PATH", "/nowhere/token", "HF_TOKEN_PATH: cannot read /nowhere/token"),
        ] {
            let access = Access::new(None, |n| (n == name).then(|| value.to_owned()));
            let error = access.err().unwrap().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
