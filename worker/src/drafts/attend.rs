use std::sync::Arc;
use std::time::Duration;

use engine::Command;
use proto::Candidate;
use proto::frame::Open;
use request::{Request, Strategy};
use scheduler::SequenceId;
use tokio_util::sync::CancellationToken;

use super::{Links, Port};

/// Between two rounds through the candidates; doubles up to `LONGEST_PAUSE`.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// One sequence that wants a drafter.
#[derive(Debug)]
pub(crate) struct Attendance {
    pub(crate) sequence: SequenceId,
    pub(crate) request: Request,
    /// Ranked, best first.
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) port: Arc<Port>,
    /// Cancelled when the sequence is over.
    pub(crate) done: CancellationToken,
}

/// Keeps a drafter attached to a sequence until it is over: asks the candidates in order, and again
/// when the one that granted is gone.
pub(crate) async fn attend(links: Arc<Links>, attendance: Attendance) {
    let done = attendance.done.clone();
    tokio::select! {
        () = keep(&links, &attendance) => (),
        () = done.cancelled() => (),
    }
}

async fn keep(links: &Links, attendance: &Attendance) {
    let Attendance { sequence, request, candidates, port, done } = attendance;
    let inbox = &links.me().inbox;
    let mut pause = PAUSE;
    loop {
        for peer in candidates {
            let Ok(link) = links.get(peer).await else { continue };
            let granted = match link.open(*sequence, fixed_window(request), open(request)).await {
                Ok(granted) => granted,
                Err(error) => {
                    tracing::debug!(%error, "no session");
                    continue;
                }
            };
            pause = PAUSE;
            port.attach(link.clone(), granted.session);
            // A full inbox costs lockstep its waiting, nothing else.
            let _ = inbox.send(Command::Drafter { sequence: *sequence, attached: true });
            // It was opened with what the request brought; what was committed since is told at once,
            // or lockstep would wait for drafts of somebody who waits for commits.
            let have = (request.prompt.len() + request.committed.len()) as u32;
            let _ = inbox.send(Command::Resync { sequence: *sequence, have });
            // Also when this task is dropped in between: the drafter's slot must not leak.
            let closing = Closing { link: &link, session: granted.session, port };
            tokio::select! {
                () = granted.detached.cancelled() => (),
                () = done.cancelled() => return,
            }
            drop(closing);
            let _ = inbox.send(Command::Drafter { sequence: *sequence, attached: false });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

struct Closing<'a> {
    link: &'a super::link::Link,
    session: u64,
    port: &'a Port,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.port.detach();
        self.link.close(self.session);
    }
}

/// Lockstep drafts exactly what a step verifies.
fn fixed_window(request: &Request) -> Option<u32> {
    match request.speculation.strategy {
        Strategy::Lockstep { k, .. } => Some(k),
        Strategy::Auto | Strategy::None | Strategy::Draft => None,
    }
}

/// What a drafter must know; the link fills in session and window.
fn open(request: &Request) -> Open {
    Open {
        session: 0,
        prompt: request.prompt.clone(),
        committed: request.committed.clone(),
        sampling: request.sampling,
        rule: request.speculation.rule,
        window: 1,
        stop_ids: request.limits.stop_ids.clone(),
        longest: (request.prompt.len() as u32).saturating_add(request.limits.max_tokens),
    }
}
