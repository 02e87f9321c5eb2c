use proto::frame::RefusedReason;
use tonic::Status;

/// Why there is no link or no session; every case means plain decoding for now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("drafter {0} did not answer in time")]
    Late(String),
    #[error("drafter {drafter}: {status}")]
    Status { drafter: String, status: Box<Status> },
    #[error("drafter {drafter}: {why}")]
    Pairing { drafter: String, why: String },
    #[error("drafter {drafter} refused: {reason:?}: {message}")]
    Refused { drafter: String, reason: RefusedReason, message: String },
    #[error("drafter {0} was restarted since the request was placed")]
    Restarted(String),
    #[error("the stream to drafter {0} ended")]
    Ended(String),
}

impl LinkError {
    /// Asking the same drafter again for the same sequence cannot end otherwise.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Refused { reason, .. } => {
                matches!(reason, RefusedReason::TooLong | RefusedReason::NotBuilt | RefusedReason::Invalid)
            }
            Self::Pairing { .. } | Self::Restarted(_) => true,
            Self::Late(_) | Self::Status { .. } | Self::Ended(_) => false,
        }
    }

    /// What came of asking, in a word.
    pub(crate) fn answered(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "refused",
            Self::Late(_) => "late",
            Self::Status { .. } | Self::Ended(_) => "unreachable",
            Self::Pairing { .. } | Self::Restarted(_) => "unpaired",
        }
    }
}
