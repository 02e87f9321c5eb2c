//! GPT-2's byte-level alphabet: each byte is written as one printable character, so that a
//! vocabulary of strings can hold any bytes.

/// Bytes that stand for themselves; the others are numbered upward from U+0100.
fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// The characters of all bytes, in byte order.
pub(crate) fn alphabet() -> impl Iterator<Item = (u8, char)> {
    let mut next = '\u{100}'..;
    (0..=255u8).map(move |byte| {
        // The open range ends only at char::MAX, 68 characters are taken.
        (byte, if is_printable(byte) { char::from(byte) } else { next.next().unwrap_or(char::MAX) })
    })
}

/// From the characters of a token back to its bytes.
#[derive(Debug)]
pub(crate) struct ToBytes {
    /// Byte by character; every character of the alphabet is below U+0144.
    byte: [Option<u8>; 0x144],
}

impl ToBytes {
    pub(crate) fn new() -> Self {
        let mut byte = [None; 0x144];
        for (b, c) in alphabet() {
            byte[c as usize] = Some(b);
        }
        Self { byte }
    }

    /// Appends the token's bytes. A token with a character outside the alphabet is taken as it is
    /// written, as Hugging Face's `ByteLevel` decoder does.
    pub(crate) fn append(&self, token: &str, out: &mut Vec<u8>) {
        let start = out.len();
        for c in token.chars() {
            match self.byte.get(c as usize) {
                Some(Some(byte)) => out.push(*byte),
                _ => {
                    out.truncate(start);
                    out.extend(token.as_bytes());
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_gpt2s() {
        let chars: Vec<char> = alphabet().map(|(_, c)| c).collect();
        assert_eq!(chars.len(), 256);
        for (byte, c) in
            [(b'a', 'a'), (b' ', 'Ġ'), (b'\n', 'Ċ'), (b'\t', 'ĉ'), (0, 'Ā'), (0xad, 'Ń'), (255, 'ÿ')]
        {
            assert_eq!(chars[byte as usize], c, "{byte:#x}");
        }
        let theirs = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        assert!(chars.iter().all(|c| theirs.contains(c)));
    }

    #[test]
    fn tokens_come_back_as_bytes() {
        let to = ToBytes::new();
        for (token, bytes) in [
            ("Ġdef", " def".as_bytes()),
            ("ÃŃ", "í".as_bytes()),
            ("é漢", "é漢".as_bytes()),
            ("ðŁ", &[0xf0, 0x9f]),
        ] {
            let mut out = b"x".to_vec();
            to.append(token, &mut out);
            assert_eq!(&out[1..], bytes, "{token}");
        }
    }
}
