use proptest::prelude::*;

use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("models")).unwrap();
    (dir, store)
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

#[test]
fn names_are_plain_file_names() {
    for good in ["a", "coder-1.5b", "Qwen2.5_x", &"x".repeat(128)] {
        assert!(Name::parse(good).is_ok(), "{good}");
    }
    for bad in ["", ".hidden", "-flag", "a/b", "..", "a b", "ä", "a\0", &"x".repeat(129)] {
        assert!(Name::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn the_default_directory_follows_xdg() {
    let os = |s: &str| Some(OsString::from(s));
    for (xdg, home, want) in [
        (os("/c"), os("/h"), Some("/c/paceline/models")),
        (None, os("/h"), Some("/h/.cache/paceline/models")),
        (os(""), os("/h"), Some("/h/.cache/paceline/models")),
        (os("relative"), os("/h"), Some("/h/.cache/paceline/models")),
        (None, None, None),
    ] {
        assert_eq!(Store::default_dir(xdg, home), want.map(PathBuf::from));
    }
}

#[test]
fn a_model_is_listed_only_once_it_is_complete() {
    let (_dir, store) = store();
    let partial = store.partial(&name("m"), "abcdef");
    fs::write(&partial, b"GGUF").unwrap();
    assert!(store.list().unwrap().is_empty());

    let record = Record::new("hf:a/b:c.gguf".into(), "00".repeat(32), 4);
    let path = store.install(&name("m"), &partial, &record).unwrap();
    assert_eq!(path, store.gguf(&name("m")));
    assert!(!partial.exists());
    let found = store.list().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].record.as_ref(), Some(&record));
    assert!(record.date.ends_with('Z') && record.date.len() == 20, "{}", record.date);
}

#[test]
fn a_file_put_there_by_hand_has_no_record() {
    let (_dir, store) = store();
    fs::write(store.gguf(&name("mine")), b"GGUF").unwrap();
    assert_eq!(store.find(&name("mine")).unwrap().unwrap().record, None);
}

#[test]
fn a_file_that_changed_since_it_was_pulled_is_refused() {
    let (_dir, store) = store();
    fs::write(store.gguf(&name("m")), b"GGUF and more").unwrap();
    store.write_record(&name("m"), &Record::new("pip:x==1".into(), "00".repeat(32), 4)).unwrap();
    let error = store.find(&name("m")).unwrap_err().to_string();
    assert!(error.contains("13 bytes, 4 were pulled") && error.contains("models pull m"), "{error}");
}

#[test]
fn too_little_space_is_said_before_the_download() {
    let (_dir, store) = store();
    store.require_space(1).unwrap();
    let error = store.require_space(u64::MAX).unwrap_err().to_string();
    assert!(error.contains("--models-dir"), "{error}");
}

#[tokio::test]
async fn a_lock_is_held_by_one_and_waited_for_until_the_deadline() {
    let (_dir, store) = store();
    let held = store.lock(&name("m"), Duration::ZERO, || ()).await.unwrap();
    let mut waited = false;
    let late = store.lock(&name("m"), Duration::from_millis(300), || waited = true).await;
    assert!(waited);
    assert!(late.unwrap_err().to_string().contains("another process has been pulling m"));
    // Another model is not held up.
    store.lock(&name("other"), Duration::ZERO, || ()).await.unwrap();

    let release = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(250)).await;
        drop(held);
    });
    store.lock(&name("m"), Duration::from_secs(5), || ()).await.unwrap();
    release.await.unwrap();
}

proptest! {
    #[test]
    fn a_damaged_record_is_an_error_that_says_what_to_do(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (_dir, store) = store();
        fs::write(store.gguf(&name("m")), b"GGUF").unwrap();
        fs::write(store.record_path(&name("m")), bytes).unwrap();
        prop_assert!(store.find(&name("m")).is_err());
    }
}
