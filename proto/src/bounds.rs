//! How much one message may hold. Checked before anything is built from it; a server also gives the
//! byte limits to its decoder, which refuses larger messages before they are read.

/// Prompt and committed tokens of one request together.
pub const MAX_KNOWN_TOKENS: usize = 1 << 20;

/// Token ids in one frame or one stream message.
pub const MAX_CHUNK_TOKENS: usize = 1 << 14;

/// Draft tokens in one frame, and the largest window.
pub const MAX_DRAFT_TOKENS: usize = request::Speculation::MAX_DRAFT as usize;

/// Stop tokens of one request.
pub const MAX_STOP_IDS: usize = 64;

/// Stop tokens that a request may add to the model's own.
pub const MAX_OWN_STOP_IDS: usize = 48;

/// Stop texts of one request.
pub const MAX_STOPS: usize = 16;

/// Bytes of one stop text.
pub const MAX_STOP_BYTES: usize = 1024;

/// Choices of one request.
pub const MAX_CHOICES: u32 = 128;

/// Tokens of a prediction.
pub const MAX_PREDICTION: usize = 1 << 16;

/// Bytes of a cache salt.
pub const MAX_SALT_BYTES: usize = 256;

/// Bytes of a W3C traceparent.
pub const MAX_TRACEPARENT_BYTES: usize = 55;

/// Entries of the distribution that one draft token was drawn from.
pub const MAX_DISTRIBUTION: usize = 64;

/// Drafters named to a worker.
pub const MAX_DRAFTERS: usize = 16;

/// Cores that a node says it computes on.
pub const MAX_SITE_CORES: usize = 4096;

/// GPUs that a node says it computes on.
pub const MAX_SITE_GPUS: usize = 64;

/// Bytes of a machine's or a GPU's name.
pub const MAX_SITE_NAME_BYTES: usize = 64;

/// Units described in one message of a hand-off.
pub const MAX_UNITS: usize = 1024;

/// Messages of a chat prompt.
pub const MAX_CHAT_MESSAGES: usize = 4096;

/// Bytes of a prompt's text, all chat messages together.
pub const MAX_TEXT_BYTES: usize = 4 << 20;

/// Decoder limit of `Inference` and `Worker`: a request of [`MAX_KNOWN_TOKENS`] ids of five bytes.
pub const MAX_REQUEST_BYTES: usize = 8 << 20;

/// Decoder limit of `Draft`, `Cluster` and of a worker's answers.
pub const MAX_FRAME_BYTES: usize = 256 << 10;

/// Bytes of a message for people, in an error or a frame. Longer ones are cut: gRPC sends errors in
/// headers, percent-encoded and once more in the details, and HTTP/2 peers take 8 KiB of them safely.
pub const MAX_MESSAGE_BYTES: usize = 1024;

/// The longest start of `text` of at most `most` bytes that ends between characters.
pub(crate) fn cut(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
