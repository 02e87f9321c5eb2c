//! The tokenizer that a GGUF file's metadata describes.

use gguf::{Header, Metadata};
use request::TokenId;
use tokenizers::normalizers::NFC;

use super::{Cutting, Parts, Tokenizer};
use crate::pre_tokenizer::PreTokenizer;
use crate::vocabulary::invalid;
use crate::{TokenizerError, Vocabulary};

const MERGES: &str = "tokenizer.ggml.merges";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const EOT: &str = "tokenizer.ggml.eot_token_id";
const EOM: &str = "tokenizer.ggml.eom_token_id";

impl Tokenizer {
    /// Builds the tokenizer that the file describes.
    pub fn from_gguf(header: &Header) -> Result<Self, TokenizerError> {
        let meta = &header.metadata;
        let unsupported = |key, found: &str, supported: &str| TokenizerError::Unsupported {
            key,
            found: found.to_owned(),
            supported: supported.to_owned(),
        };
        let model = meta.str("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(unsupported("tokenizer.ggml.model", model, "gpt2 (byte-level BPE)"));
        }
        let pre_name = meta.str("tokenizer.ggml.pre")?;
        let pre = PreTokenizer::named(pre_name)
            .ok_or_else(|| unsupported("tokenizer.ggml.pre", pre_name, &PreTokenizer::supported()))?;

        let vocabulary = Vocabulary::from_gguf(header)?;
        let special = |key| special_id(meta, &vocabulary, key);
        let (bos, eos) = (special(BOS)?, special(EOS)?);
        let stop_ids = [eos, special(EOT)?, special(EOM)?].into_iter().flatten().collect();
        let add_bos = meta.optional("tokenizer.ggml.add_bos_token", Metadata::bool)?.unwrap_or(pre.add_bos);
        if add_bos && bos.is_none() {
            return Err(invalid(BOS, "is missing, but tokenizer.ggml.add_bos_token asks for it"));
        }
        let cutting = Cutting {
            normalizer: pre.nfc.then(|| NFC.into()),
            pre: pre.build().map_err(|error| invalid(MERGES, error.to_string()))?.into(),
            merges: merges(meta)?,
            ignore_merges: pre.ignore_merges,
        };
        Self::assemble(Parts { vocabulary, cutting, bos, eos, add_bos, stop_ids }, MERGES)
    }
}

fn merges(meta: &Metadata) -> Result<Vec<(String, String)>, TokenizerError> {
    let pair = |(index, merge): (usize, &String)| match merge.split_once(' ') {
        Some((a, b)) => Ok((a.to_owned(), b.to_owned())),
        None => Err(invalid(MERGES, format!("merge {index}, {merge:?}, is not two tokens"))),
    };
    meta.strs(MERGES)?.iter().enumerate().map(pair).collect()
}

fn special_id(
    meta: &Metadata,
    vocabulary: &Vocabulary,
    key: &'static str,
) -> Result<Option<TokenId>, TokenizerError> {
    let Some(id) = meta.optional(key, Metadata::u32)?.map(TokenId) else { return Ok(None) };
    if vocabulary.token(id).is_none() {
        return Err(invalid(key, format!("is {id}, outside the vocabulary")));
    }
    Ok(Some(id))
}
