//! What a repository holds, as the hub lists it, and which of its files are meant.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::{Found, Located};
use crate::models::catalogue::HubFile;

/// The answer of `/api/models/{repo}/revision/{revision}?blobs=true`; what we do not read is left out.
#[derive(Debug, Deserialize)]
pub(super) struct Listing {
    /// The commit that is listed.
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
    /// In bytes; mirrors that do not know `blobs=true` leave it out.
    size: Option<u64>,
    /// For files in the hub's large-file storage, as every GGUF of use is.
    lfs: Option<LargeFile>,
}

#[derive(Debug, Deserialize)]
struct LargeFile {
    sha256: Option<String>,
}

impl Listing {
    /// `text` is outside data. Errors: no JSON of that shape, a commit that is no hash.
    pub(super) fn parse(text: &[u8]) -> Result<Self> {
        let listing: Self = serde_json::from_slice(text).context("the hub's answer is not a listing")?;
        ensure!(is_hex(&listing.sha, 40..=64), "the hub names \"{:.80}\" as a commit", listing.sha);
        Ok(listing)
    }

    /// What is meant of `repo`: the GGUF file `wanted`, or the only one, or the files of a model in
    /// safetensors where there is no GGUF file.
    pub(super) fn find(self, repo: &str, wanted: Option<&str>) -> Result<Found> {
        let is = |end: &str| self.siblings.iter().any(|s| s.rfilename.ends_with(end));
        if wanted.is_some() || is(".gguf") || !is(".safetensors") {
            return self.locate(repo, wanted).map(Found::File);
        }
        let Self { sha: commit, siblings } = self;
        let has = |name: &str| siblings.iter().any(|s| s.rfilename == name);
        for file in NEEDED {
            ensure!(has(file), "hf:{repo} has safetensors, but no {file}, without which they are no model");
        }
        // One file with all weights goes before its shards, where a repository has both.
        let single = has("model.safetensors");
        ensure!(
            single || has(INDEX),
            "hf:{repo} has neither model.safetensors nor {INDEX}; files of other names are not read"
        );
        let wanted = |name: &str| {
            TEXT.contains(&name)
                || if single { name == "model.safetensors" } else { name == INDEX || is_shard(name) }
        };
        let files = siblings.into_iter().filter(|s| wanted(&s.rfilename));
        files.map(|file| located(repo, file, &commit)).collect::<Result<_>>().map(Found::Folder)
    }

    /// The GGUF file of `repo` that is meant: `wanted`, or the only one.
    pub(super) fn locate(self, repo: &str, wanted: Option<&str>) -> Result<Located> {
        let Self { sha: commit, siblings } = self;
        let files: Vec<Sibling> = siblings.into_iter().filter(|s| s.rfilename.ends_with(".gguf")).collect();
        let names: Vec<&str> = files.iter().map(|f| f.rfilename.as_str()).collect();
        let path = choose(repo, wanted, &names)?.to_owned();
        match files.into_iter().find(|f| f.rfilename == path) {
            Some(file) => located(repo, file, &commit),
            None => bail!("hf:{repo} has no file \"{path}\""),
        }
    }
}

/// Without these safetensors are no model.
const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];
const INDEX: &str = "model.safetensors.index.json";
/// The files of a model besides its weights; each is small.
const TEXT: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// `model-00001-of-00003.safetensors`.
fn is_shard(path: &str) -> bool {
    path.strip_suffix(".safetensors").is_some_and(|stem| stem.starts_with("model-") && is_part(stem))
}

fn located(repo: &str, file: Sibling, commit: &str) -> Result<Located> {
    let Sibling { rfilename, size, lfs } = file;
    let file = HubFile { repo: repo.to_owned(), file: rfilename };
    let Some(bytes) = size.filter(|n| *n > 0) else {
        bail!("the hub tells no size of {}; a mirror has to know blobs=true", file.describe());
    };
    let sha256 = lfs.and_then(|l| l.sha256).map(|s| s.to_lowercase());
    if let Some(claim) = &sha256 {
        ensure!(
            is_hex(claim, 64..=64),
            "the hub names \"{claim:.80}\" as the SHA-256 of {}",
            file.describe()
        );
    }
    Ok(Located { file, bytes, sha256, commit: commit.to_owned() })
}

/// Which of a repository's GGUF files is meant.
fn choose<'a>(repo: &str, wanted: Option<&str>, files: &[&'a str]) -> Result<&'a str> {
    let listed = || files.iter().map(|path| format!("\n  hf:{repo}:{path}")).collect::<String>();
    let found = match (wanted, files) {
        (_, []) => bail!("hf:{repo} holds no GGUF file and no safetensors; other formats are not read"),
        (Some(wanted), _) => match files.iter().find(|path| **path == wanted) {
            Some(found) => found,
            None => bail!("hf:{repo} has no file \"{wanted}\"; its GGUF files are:{}", listed()),
        },
        (None, [one]) => one,
        (None, _) => bail!("hf:{repo} holds {} GGUF files; name one:{}", files.len(), listed()),
    };
    ensure!(
        !is_split(found),
        "{found} is one part of a split GGUF; reading those is not built yet, choose a file in one piece"
    );
    Ok(found)
}

/// `model-00001-of-00003.gguf`.
fn is_split(path: &str) -> bool {
    path.strip_suffix(".gguf").is_some_and(is_part)
}

/// `model-00001-of-00003`: one of several, letters of safe names only.
fn is_part(stem: &str) -> bool {
    let mut words = stem.rsplit('-');
    let number = |w: Option<&str>| w.is_some_and(|w| w.len() == 5 && w.bytes().all(|b| b.is_ascii_digit()));
    number(words.next()) && words.next() == Some("of") && number(words.next())
}

fn is_hex(text: &str, length: std::ops::RangeInclusive<usize>) -> bool {
    length.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn locate(listing: &Value, wanted: Option<&str>) -> Result<Located> {
        Listing::parse(listing.to_string().as_bytes())?.locate("o/r", wanted)
    }

    fn listing(files: &[Value]) -> Value {
        // As the hub answers, with members that are not read.
        json!({ "_id": "621ffdc1", "id": "o/r", "gated": false, "sha": COMMIT, "siblings": files })
    }

    #[test]
    fn size_hash_and_commit_come_from_the_listing() {
        let hash = "F9343d7d7ec5c3d8bcced056c438fc9f1d3819e9ca3d42418a40857050e10e20";
        let lfs = json!({ "pointerSize": 127, "sha256": hash, "size": 22 });
        let large = json!({ "rfilename": "a.gguf", "size": 22, "blobId": "cd1c", "lfs": lfs });
        let small = json!({ "rfilename": "b.gguf", "size": 5, "blobId": "cd1d" });
        let readme = json!({ "rfilename": "README.md", "size": 1175, "blobId": "6d34" });
        let repo = listing(&[readme, large, small]);
        let located = locate(&repo, Some("a.gguf")).unwrap();
        assert_eq!((located.bytes, located.commit.as_str()), (22, COMMIT));
        assert_eq!(located.sha256, Some(hash.to_lowercase()));
        assert_eq!(locate(&repo, Some("b.gguf")).unwrap().sha256, None);
    }

    #[test]
    fn a_listing_that_cannot_be_trusted_is_refused_by_name() {
        let file =
            |size: Value, lfs: Value| listing(&[json!({ "rfilename": "a.gguf", "size": size, "lfs": lfs })]);
        for (body, says) in [
            (json!({ "siblings": [] }), "missing field `sha`"),
            (json!({ "sha": "../../main", "siblings": [] }), "\"../../main\" as a commit"),
            (file(Value::Null, Value::Null), "no size of hf:o/r:a.gguf; a mirror has to know blobs=true"),
            (file(json!(0), Value::Null), "no size of hf:o/r:a.gguf"),
            (file(json!(-1), Value::Null), "invalid value: integer `-1`"),
            (file(json!(9), json!({ "sha256": "12" })), "\"12\" as the SHA-256 of hf:o/r:a.gguf"),
            (json!("<html>"), "is not a listing"),
        ] {
            let error = format!("{:#}", locate(&body, None).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_file_is_named_or_the_only_one() {
        let two = ["a.gguf", "b.gguf"];
        assert_eq!(choose("o/r", Some("b.gguf"), &two).unwrap(), "b.gguf");
        assert_eq!(choose("o/r", None, &two[..1]).unwrap(), "a.gguf");
        for (wanted, files, says) in [
            (None, &two[..], "holds 2 GGUF files; name one:\n  hf:o/r:a.gguf\n  hf:o/r:b.gguf"),
            (Some("c.gguf"), &two[..], "has no file \"c.gguf\"; its GGUF files are:\n  hf:o/r:a.gguf"),
            (None, &[][..], "holds no GGUF file"),
            (Some("c.gguf"), &[][..], "holds no GGUF file"),
            (None, &["m-00001-of-00002.gguf"][..], "not built yet"),
        ] {
            let error = choose("o/r", wanted, files).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn safetensors_are_taken_with_all_that_makes_them_a_model() {
        let find = |names: &[&str], wanted| {
            let file = |name: &&str| json!({ "rfilename": name, "size": 5 });
            let files: Vec<Value> = names.iter().map(file).collect();
            let listing = Listing::parse(listing(&files).to_string().as_bytes()).unwrap();
            listing.find("o/r", wanted).map(|found| match found {
                Found::File(one) => vec![one.file.file],
                Found::Folder(files) => files.into_iter().map(|f| f.file.file).collect(),
            })
        };
        let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
        let text = ["config.json", "tokenizer.json", "chat_template.jinja"];
        let other =
            ["README.md", "consolidated.safetensors", "sub/config.json", "model-x/../of-1.safetensors"];
        let sharded = [&text[..], &[INDEX, one, two]].concat();
        assert_eq!(find(&[&sharded[..], &other].concat(), None).unwrap(), sharded);
        let single = [&text[..], &["model.safetensors"]].concat();
        assert_eq!(find(&[&single[..], &[INDEX, one, two], &other].concat(), None).unwrap(), single);
        assert_eq!(find(&[&single[..], &["q4.gguf"]].concat(), None).unwrap(), ["q4.gguf"]);
        for (names, wanted, says) in [
            (&["model.safetensors"][..], None, "has safetensors, but no config.json"),
            (&["model.safetensors", "config.json"], None, "but no tokenizer.json"),
            (&["x.safetensors", "config.json", "tokenizer.json"], None, "has neither model.safetensors nor"),
            (&["model.safetensors", "config.json", "tokenizer.json"], Some("a.gguf"), "holds no GGUF file"),
            (&["pytorch_model.bin"], None, "holds no GGUF file and no safetensors"),
        ] {
            let error = find(names, wanted).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    proptest! {
        /// Whatever the hub sends: an error, or a place whose parts are safe in addresses and file names.
        #[test]
        fn what_is_located_is_well_formed(
            cut in any::<prop::sample::Index>(),
            name in ".{0,12}(\\.gguf)?",
            size in any::<i64>(),
            sha in "[0-9a-g./]{0,3}|[0-9a-f]{40}|[0-9a-g]{64}",
            hash in "[0-9a-fA-F]{64}|\\PC{0,90}",
            whole in any::<bool>(),
        ) {
            let file = json!({ "rfilename": name, "size": size, "lfs": { "sha256": hash } });
            let text = json!({ "sha": sha, "siblings": [file] }).to_string().into_bytes();
            let text = if whole { &text[..] } else { &text[..cut.index(text.len())] };
            let Ok(listing) = Listing::parse(text) else { return Ok(()) };
            prop_assert!(whole, "half a listing was read");
            let Ok(located) = listing.locate("o/r", None) else { return Ok(()) };
            prop_assert!(is_hex(&located.commit, 40..=64));
            prop_assert!(located.sha256.is_some_and(|s| is_hex(&s, 64..=64)));
            prop_assert_eq!(located.bytes, u64::try_from(size).unwrap());
        }
    }
}
