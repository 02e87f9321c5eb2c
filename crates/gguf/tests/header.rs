//! Good files are read as written; bad ones are refused by name; no bytes at all make it panic.

use gguf::write::Writer;
use gguf::{Array, Error, Header, Metadata, TensorKind, Value};
use proptest::prelude::*;

fn small() -> Writer {
    Writer::new()
        .key("general.architecture", Value::Str("llama".into()))
        .key("llama.block_count", Value::U32(30))
        .key("llama.rope.freq_base", Value::F32(1e4))
        .key("tokenizer.ggml.add_bos_token", Value::Bool(true))
        .key("tokenizer.ggml.tokens", Value::Array(Array::Str(vec!["a".into(), "ü".into()])))
        .key("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![1, 3])))
        .key("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.5, -1.0])))
        .tensor("norm", &[3], TensorKind::F32, &[7; 12])
        .tensor("head", &[64, 2], TensorKind::Q8_0, &[9; 4 * 34])
}

fn read(file: &[u8]) -> Result<Header, Error> {
    Header::read(file, file.len() as u64)
}

#[test]
fn a_file_is_read_as_it_was_written() {
    for version in [2, 3] {
        let file = small().version(version).finish();
        let header = read(&file).unwrap();
        let meta = &header.metadata;
        assert_eq!((header.version, header.alignment), (version, 32));
        assert_eq!(meta.str("general.architecture").unwrap(), "llama");
        assert_eq!(meta.u32("llama.block_count").unwrap(), 30);
        assert_eq!(meta.f32("llama.rope.freq_base").unwrap(), 1e4);
        assert!(meta.bool("tokenizer.ggml.add_bos_token").unwrap());
        assert_eq!(meta.strs("tokenizer.ggml.tokens").unwrap(), ["a", "ü"]);
        assert_eq!(meta.i32s("tokenizer.ggml.token_type").unwrap(), [1, 3]);
        assert_eq!(meta.f32s("tokenizer.ggml.scores").unwrap(), [0.5, -1.0]);
        assert_eq!(meta.iter().count(), 7);

        let head = header.tensor("head").unwrap();
        assert_eq!(
            (head.dims.as_slice(), head.kind, head.elements()),
            ([64, 2].as_slice(), TensorKind::Q8_0, 128)
        );
        assert_eq!((head.offset, head.bytes()), (32, 4 * 34));
        let data = (header.data_offset + head.offset) as usize;
        assert_eq!(file[data..data + 4 * 34], [9; 4 * 34]);
        assert_eq!(header.data_offset % 32, 0);
    }
}

#[test]
fn every_value_type_survives() {
    let values = [
        Value::U8(200),
        Value::I8(-7),
        Value::U16(65535),
        Value::I16(-300),
        Value::U32(1 << 31),
        Value::I32(-5),
        Value::U64(1 << 40),
        Value::I64(-(1 << 40)),
        Value::F32(0.25),
        Value::F64(1e300),
        Value::Bool(false),
        Value::Str(String::new()),
        Value::Array(Array::U8(vec![1])),
        Value::Array(Array::I8(vec![-1])),
        Value::Array(Array::U16(vec![2])),
        Value::Array(Array::I16(vec![-2])),
        Value::Array(Array::U32(vec![3, 4])),
        Value::Array(Array::I32(vec![])),
        Value::Array(Array::U64(vec![1 << 60])),
        Value::Array(Array::I64(vec![-1])),
        Value::Array(Array::F32(vec![1.5])),
        Value::Array(Array::F64(vec![2.5])),
        Value::Array(Array::Bool(vec![true, false])),
        Value::Array(Array::Str(vec!["".into(), "x".into()])),
    ];
    let keyed: Vec<_> = values.iter().enumerate().map(|(i, v)| (format!("k{i}"), v.clone())).collect();
    let file = keyed.iter().fold(Writer::new(), |w, (key, value)| w.key(key, value.clone())).finish();
    assert_eq!(read(&file).unwrap().metadata, keyed.into_iter().collect::<Metadata>());
}

#[test]
fn getters_name_the_key() {
    let meta =
        read(&small().key("big", Value::U64(1 << 33)).key("neg", Value::I32(-1)).finish()).unwrap().metadata;
    for (error, says) in [
        (meta.u32("no.such").unwrap_err(), r#""no.such" is missing"#),
        (
            meta.str("llama.block_count").unwrap_err(),
            r#""llama.block_count" should be a string and is U32(30)"#,
        ),
        (meta.u32("general.architecture").unwrap_err(), r#"is Str("llama")"#),
        (meta.u32("big").unwrap_err(), "an integer below 2^32 and is 8589934592"),
        (meta.u64("neg").unwrap_err(), "an unsigned integer and is I32(-1)"),
        (meta.f32s("tokenizer.ggml.tokens").unwrap_err(), "an array of F32 and is an array of 2 strings"),
        (meta.optional("neg", Metadata::str).unwrap_err(), r#""neg" should be a string"#),
    ] {
        assert!(error.to_string().contains(says), "{error}");
    }
    assert_eq!(meta.optional("no.such", Metadata::u32).unwrap(), None);
    assert_eq!(meta.optional("llama.block_count", Metadata::u32).unwrap(), Some(30));
}

#[test]
fn bad_files_are_refused_by_name() {
    let f32s = |name: &str, dims: &[u64]| Writer::new().tensor(name, dims, TensorKind::F32, &[0; 64]);
    let mut big_endian = small().finish();
    big_endian[4..8].copy_from_slice(&3u32.to_be_bytes());
    let mut bool_two = Writer::new().key("flag", Value::Bool(true)).finish();
    let flag = 24 + 8 + 4 + 4;
    bool_two[flag] = 2;
    let mut nested = Writer::new().key("k", Value::Array(Array::U8(vec![1]))).finish();
    nested[24 + 8 + 1 + 4] = 9;
    let mut not_utf8 = small().finish();
    not_utf8[32] = 0xff;
    let mut type_99 = Writer::new().key("k", Value::U8(0)).finish();
    type_99[24 + 8 + 1] = 99;
    let mut unaligned = f32s("w", &[4]).finish();
    unaligned[24 + 8 + 1 + 4 + 8 + 4] = 1;

    for (file, says) in [
        (b"PK\x03\x04 a zip file".to_vec(), "not a GGUF file: it starts with [50, 4b, 03, 04]"),
        (b"GG".to_vec(), "ends within the magic number"),
        (small().version(1).finish(), "GGUF version 1 is not read"),
        (small().version(4).finish(), "GGUF version 4 is not read"),
        (big_endian, "big-endian"),
        (bool_two, r#"key "flag" has the boolean 2"#),
        (nested, r#"key "k" is an array of arrays"#),
        (not_utf8, "the name of metadata key 0 at byte 32 is not valid UTF-8"),
        (type_99, r#"key "k" has the unknown value type 99"#),
        (unaligned, r#"tensor "w" starts at 1, not a multiple of the alignment 32"#),
        (Writer::new().key("k", Value::U8(0)).key("k", Value::U8(0)).finish(), r#"key "k" appears twice"#),
        (Writer::new().alignment(48).finish(), "general.alignment is 48"),
        (Writer::new().alignment(0).finish(), "general.alignment is 0"),
        (
            f32s("w", &[4]).tensor("w", &[4], TensorKind::F32, &[0; 16]).finish(),
            r#"tensor "w" appears twice"#,
        ),
        (f32s("w", &[1, 1, 1, 1, 1]).finish(), r#"tensor "w" has 5 dimensions"#),
        (f32s("w", &[0, 4]).finish(), "dimension of size 0"),
        (f32s("w", &[1 << 40, 1 << 40]).finish(), "more than 2^64 bytes"),
        (f32s("w", &[1 << 20]).finish(), r#"tensor "w" ends at byte 4194"#),
        (
            Writer::new().tensor("w", &[48], TensorKind::Q4_0, &[0; 27]).finish(),
            "rows of 48 elements, not whole Q4_0 blocks of 32",
        ),
        (
            Writer::new().raw_tensor("w", &[32], 4, &[0; 32]).finish(),
            "type number 4, which this version does not know (ggml has removed it",
        ),
        (Writer::new().raw_tensor("w", &[32], 77, &[0; 32]).finish(), "type number 77"),
    ] {
        let error = read(&file).expect_err(says).to_string();
        assert!(error.contains(says), "{error}\nshould say: {says}");
    }
}

#[test]
fn a_missing_file_is_an_io_error() {
    let error = Header::open(std::path::Path::new("no/such/file.gguf")).unwrap_err();
    assert!(matches!(error, Error::Io { at: 0, .. }), "{error}");
}

#[test]
fn every_truncation_of_the_header_is_refused() {
    let file = small().finish();
    let header = read(&file).unwrap();
    let last = header.tensor("head").unwrap();
    let end = (header.data_offset + last.offset + last.bytes()) as usize;
    for len in 0..end {
        assert!(read(&file[..len]).is_err(), "{len} of {end} bytes");
    }
}

#[test]
fn a_claimed_length_costs_nothing() {
    // Each 8-byte field of the header claims nearly 2^64 of something: refused, or read until the
    // input ends. Believing one would abort the process.
    let file = small().finish();
    for at in 8..file.len() - 8 {
        for claim in [u64::MAX, 1 << 62, 1 << 40] {
            let mut file = file.clone();
            file[at..at + 8].copy_from_slice(&claim.to_le_bytes());
            let _ = read(&file);
            let _ = Header::read(file.as_slice(), u64::MAX);
        }
    }
}

proptest! {
    #[test]
    fn mutations_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        keep in any::<prop::sample::Index>(),
        lie in any::<bool>(),
    ) {
        let mut file = small().finish();
        for (at, byte) in edits {
            let at = at.index(file.len());
            file[at] = byte;
        }
        file.truncate(keep.index(file.len()) + 1);
        let len = if lie { u64::MAX } else { file.len() as u64 };
        if let Ok(header) = Header::read(file.as_slice(), len) {
            // What was accepted keeps its promises.
            for tensor in &header.tensors {
                prop_assert!(header.data_offset + tensor.offset + tensor.bytes() <= len);
                prop_assert_eq!(tensor.offset % header.alignment, 0);
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..256)) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(tail);
        let _ = read(&file);
    }
}
