use serde::Serialize;

/// One turn of a conversation, in the fields that chat templates read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// As the template knows it: `system`, `user`, `assistant`.
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}
