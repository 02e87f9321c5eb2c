use std::sync::Arc;
use std::time::Duration;

use engine::{Command, Drafter};
use proto::Candidate;
use proto::frame::{ClosedReason, Open};
use request::{Request, Strategy};
use scheduler::SequenceId;
use telemetry::Label;
use tokio_util::sync::CancellationToken;

use super::link_error::LinkError;
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
    /// Cancelled (that is: signalled) when the sequence leaves the queue.
    pub(crate) started: CancellationToken,
    /// Cancelled when the sequence is over.
    pub(crate) done: CancellationToken,
    /// Names the request's span to the drafter.
    pub(crate) traceparent: String,
}

/// Keeps a drafter attached to a sequence until it is over: asks the candidates, who costs least first, and again
/// when the one that granted is gone.
pub(crate) async fn attend(links: Arc<Links>, attendance: Attendance) {
    let done = attendance.done.clone();
    tokio::select! {
        () = keep(&links, &attendance) => (),
        () = done.cancelled() => (),
    }
}

async fn keep(links: &Arc<Links>, attendance: &Attendance) {
    let Attendance { sequence, request, candidates, port, started, traceparent, .. } = attendance;
    let inbox = &links.me().inbox;
    // A drafter's slot is for sequences that run, not for those that wait.
    started.cancelled().await;
    let mut candidates: Vec<&Candidate> = candidates.iter().collect();
    let mut pause = PAUSE;
    while !candidates.is_empty() {
        let mut useless = Vec::new();
        for peer in links.order(&candidates).await {
            let (known, asked) = match links.get(peer).await {
                Ok(link) => {
                    let window = fixed_window(request, link.turns());
                    (Some(link.known()), link.open(*sequence, window, open(request, traceparent)).await)
                }
                Err(error) => (None, Err(error)),
            };
            let answered = asked.as_ref().map_or_else(LinkError::answered, |_| "granted");
            let placement = known.map_or("unknown", |known| known.nearness.as_str());
            let labels = [links.me().model[0].clone(), Label::reason(answered), Label::placement(placement)];
            telemetry::meters().draft_sessions.add(1, &labels);
            let lease = match asked {
                Ok(lease) => lease,
                Err(error) => {
                    tracing::debug!(%error, "no session");
                    if error.is_final() {
                        useless.push(peer.id.clone());
                    }
                    continue;
                }
            };
            let cost = known.map(|known| known.cost);
            tracing::debug!(drafter = %peer.id, placement, ?cost, of = candidates.len(), "drafts for a sequence");
            port.attach(lease.link.clone(), lease.session);
            // A full inbox costs lockstep its waiting, nothing else.
            let _ = inbox.send(Command::Drafter(*sequence, lease.link.turns()));
            // It was opened with what the request brought; what was committed since is told at once,
            // or lockstep would wait for drafts of somebody who waits for commits.
            let have = (request.prompt.len() + request.committed.len()) as u32;
            let _ = inbox.send(Command::Resync { sequence: *sequence, have });
            lease.detached.cancelled().await;
            port.detach();
            let _ = inbox.send(Command::Drafter(*sequence, Drafter::Gone));
            // After these it would end the same way again, having prefilled the same prompt.
            if let Some(ClosedReason::ContextFull | ClosedReason::Failed | ClosedReason::Invalid) =
                lease.closed()
            {
                useless.push(peer.id.clone());
            }
        }
        candidates.retain(|peer| !useless.contains(&peer.id));
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Lockstep drafts exactly what a step verifies; of a drafter on the same device the engine asks what it wants.
fn fixed_window(request: &Request, turns: Drafter) -> Option<u32> {
    let strategy = request.speculation.strategy;
    let engine_asks = matches!(turns, Drafter::InTurn { .. } | Drafter::AsMeasured);
    let asked = (strategy == Strategy::Auto && engine_asks).then_some(1);
    strategy.waits().map(|(k, _)| k).or(asked)
}

/// What a drafter must know; the link fills in session and window.
fn open(request: &Request, traceparent: &str) -> Open {
    Open {
        session: 0,
        prompt: request.prompt.clone(),
        committed: request.committed.clone(),
        sampling: request.sampling,
        adjust: request.adjust.clone(),
        constraint: request.constraint.clone(),
        rule: request.speculation.rule,
        window: 1,
        stop_ids: request.limits.stop_ids.clone(),
        min_tokens: request.limits.min_tokens,
        cache_salt: request.cache_salt.clone(),
        retrieval: request.speculation.strategy.rapid().map(|rapid| Box::new(rapid.retrieval)),
        traceparent: traceparent.to_owned(),
        longest: (request.prompt.len() as u32).saturating_add(request.limits.max_tokens),
    }
}
