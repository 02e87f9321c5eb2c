//! Drafts and their judgement.
