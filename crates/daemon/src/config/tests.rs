use std::time::Duration;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    name: String,
    #[serde(default)]
    port: u16,
    #[serde(default)]
    grpc: Grpc,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Grpc {
    #[serde(with = "duration")]
    timeout: Duration,
    window: ByteSize,
}

impl Default for Grpc {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(1), window: ByteSize::kib(64) }
    }
}

impl Check for Config {
    fn check(&self) -> Result<(), Wrong> {
        if self.grpc.timeout.is_zero() {
            return Err(Wrong::new("timeout", "must not be 0").within("grpc"));
        }
        Ok(())
    }
}

#[derive(Default, Serialize)]
struct Flags {
    name: Option<String>,
    port: Option<u16>,
    grpc: GrpcFlags,
}

#[derive(Default, Serialize)]
struct GrpcFlags {
    #[serde(with = "duration")]
    timeout: Option<Duration>,
}

struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("paceline-{}-{n}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

fn read(file: &str, env: &[(&str, &str)], flags: &Flags) -> Result<Valid<Config>, ConfigError> {
    let file = File::new(file);
    load(Some(&file.0), environment(env), flags)
}

#[test]
fn later_layers_win_key_by_key() {
    let file = "name = \"file\"\nport = 1\n[grpc]\ntimeout = \"500ms\"\nwindow = \"1 MiB\"\n";
    let none = Flags::default();
    let at = |env: &[(&str, &str)], flags: &Flags| {
        let c = read(file, env, flags).unwrap().into_inner();
        (c.name, c.port, c.grpc.timeout.as_millis(), c.grpc.window.as_u64())
    };
    assert_eq!(at(&[], &none), ("file".into(), 1, 500, 1 << 20));
    let env = [("PACELINE_PORT", "2"), ("PACELINE_GRPC__TIMEOUT", "2s"), ("OTHER_PORT", "9")];
    assert_eq!(at(&env, &none), ("file".into(), 2, 2000, 1 << 20));
    let flags = Flags {
        name: Some("flag".into()),
        port: Some(3),
        grpc: GrpcFlags { timeout: Some(Duration::from_secs(3)) },
    };
    assert_eq!(at(&env, &flags), ("flag".into(), 3, 3000, 1 << 20));
    let reserved = [("PACELINE_CONFIG", "x"), ("PACELINE_MODELS", "/m"), ("PACELINE_REQUIRE", "all")];
    assert_eq!(at(&reserved, &none).1, 1);

    let flags = Flags { name: Some("n".into()), ..Flags::default() };
    let bare: Valid<Config> = load(None, [], &flags).unwrap();
    assert_eq!((bare.grpc.window, bare.grpc.timeout), (ByteSize::kib(64), Duration::from_secs(1)));
}

#[test]
fn an_error_names_the_key_and_its_layer() {
    let ok = "name = \"n\"\n";
    for (file, env, expected) in [
        (format!("{ok}prot = 1"), vec![], "unknown setting `prot` in FILE; known there: name, port, grpc"),
        (
            format!("{ok}[grpc]\nwindws = 1"),
            vec![],
            "unknown setting `grpc.windws` in FILE; known there: timeout, window",
        ),
        (
            ok.into(),
            vec![("PACELINE_PROT", "1")],
            "unknown setting `prot` in environment variable PACELINE_PROT; known there: name, port, grpc",
        ),
        (
            ok.into(),
            vec![("PACELINE_GRPC__X", "1")],
            "unknown setting `grpc.x` in environment variable PACELINE_GRPC__X; known there: timeout, window",
        ),
        (
            ok.into(),
            vec![("PACELINE_PORT", "many")],
            "setting `port` in environment variable PACELINE_PORT: invalid type: found string \"many\", expected u16",
        ),
        (
            ok.into(),
            vec![("PACELINE_PORT", "65536")],
            "setting `port` in environment variable PACELINE_PORT: ",
        ),
        (format!("{ok}[grpc]\ntimeout = \"5 parsecs\""), vec![], "setting `grpc.timeout` in FILE: "),
        (format!("{ok}[grpc]\ntimeout = \"0s\""), vec![], "setting `grpc.timeout` in FILE: must not be 0"),
        (
            ok.into(),
            vec![("PACELINE_GRPC__TIMEOUT", "0s")],
            "setting `grpc.timeout` in environment variable PACELINE_GRPC__TIMEOUT: must not be 0",
        ),
        (
            String::new(),
            vec![],
            "setting `name` is missing: put it in the configuration file, set PACELINE_NAME, or pass the flag",
        ),
        ("name = ".into(), vec![], "configuration file FILE: "),
    ] {
        let file = File::new(&file);
        let error = load::<Config>(Some(&file.0), environment(&env), &Flags::default()).unwrap_err();
        let text = error.to_string().replace(&file.0.display().to_string(), "FILE");
        assert!(text.starts_with(expected), "got      {text}\nexpected {expected}");
    }
    let missing = load::<Config>(Some(Path::new("/nowhere/p.toml")), [], &()).unwrap_err().to_string();
    assert!(missing.starts_with("configuration file /nowhere/p.toml: No such file"), "{missing}");
}

#[test]
fn values_of_the_environment() {
    for (text, expected) in [
        ("true", Value::from(true)),
        ("12", Value::from(12_usize)),
        ("[a, b]", Value::from(vec!["a", "b"])),
        ("500ms", Value::from("500ms")),
        ("\"a\\tb\"", Value::from("a\tb")),
        // An escape after a character of several bytes: figment's reader panics at the first of
        // these (kept from a failed run of the property below) and drops half of the second.
        ("\"¡\\a\"", Value::from("\"¡\\a\"")),
        ("\"¡¡\\n!\"", Value::from("¡¡\n!")),
        ("C:\\modèles", Value::from("C:\\modèles")),
    ] {
        assert_eq!(value_of(text), expected, "{text}");
    }
}

proptest! {
    #[test]
    fn any_environment_is_taken_or_refused(name in "PACELINE_[A-Z_.]{0,12}", value in ".{0,40}") {
        let flags = Flags { name: Some("n".into()), ..Flags::default() };
        let _ = load::<Config>(None, [(name, value)], &flags);
    }

    #[test]
    fn any_file_is_taken_or_refused(text in "[a-z=\\[\\]\". \n0-9{},]{0,80}") {
        let file = File::new(&text);
        let _ = load::<Config>(Some(&file.0), [], &());
    }
}
