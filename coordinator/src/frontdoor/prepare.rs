//! From a question to the request that workers get.

use std::sync::Arc;

use proto::bounds::MAX_STOP_IDS;
use request::{Limits, Request, Sampling, TokenId};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{FrontDoor, request_id};
use crate::failure::{self, Failure, Reason, from_field, invalid};
use crate::generate::Prepared;
use crate::models::Model;
use crate::question::{Prediction, Prompt, Question, Spelling};
use crate::random;
use crate::text::{Pieces, StopRules, StopStrings, Stopped};

/// What only the model's text can say.
struct Resolved {
    prompt: Vec<TokenId>,
    prediction: Vec<TokenId>,
    committed: Vec<TokenId>,
    /// As after `committed`.
    pieces: Pieces,
}

/// The cheap checks first: under overload most requests get no further than those.
pub(super) async fn prepare(
    door: &FrontDoor,
    question: Question,
    spelling: Spelling,
    deadline: Instant,
) -> Result<Prepared, Failure> {
    let arrived = std::time::Instant::now();
    let operation = if matches!(question.prompt, Prompt::Chat(_)) { "chat" } else { "text_completion" };
    let model = Arc::clone(door.models.find(&question.model)?);
    question.validate(spelling)?;
    let context = door.router.context(&model.name, model.text.vocab_hash())?;
    if let Some(full) = door.router.full(&model.name, model.text.vocab_hash(), question.priority) {
        return Err(full);
    }
    for (field, ids) in [("committed", &question.committed), (spelling.stop_ids, &question.stop.ids)] {
        known_ids(field, ids, &model)?;
    }
    known_biases(&question, &model)?;
    let stop_ids = stop_ids(&question, spelling, &model)?;
    let rules = StopRules {
        strings: StopStrings::new(question.stop.strings),
        ids: stop_ids.clone(),
        include: question.stop.include_in_output,
        min_tokens: question.min_tokens,
        shown: shown(&question.shown, &model),
    };
    let (prompt, prediction, committed) = (question.prompt, question.prediction, question.committed);
    let Resolved { prompt, mut prediction, committed, pieces } =
        resolve(door, &model, prompt, prediction, committed, rules, spelling, deadline)
            .instrument(telemetry::span!("tokenize"))
            .await?;
    let max_tokens = max_tokens(door, question.max_tokens, prompt.len(), context, &model.name, spelling)?;
    // What lies beyond the answer's end predicts nothing.
    prediction.truncate(max_tokens as usize);
    let sampling = Sampling {
        params: question.params,
        seed: match question.seed {
            Some(seed) => seed,
            None => random::seed()?,
        },
        choice: 0,
    };
    let id = match question.id {
        Some(id) => id,
        None => request_id()?,
    };
    let limits = Limits { min_tokens: question.min_tokens, ..Limits::new(max_tokens, stop_ids) };
    let request = Request {
        attempt: question.attempt,
        committed,
        adjust: question.adjust,
        constraint: question.constraint,
        logprobs: question.logprobs,
        quality: question.quality,
        speculation: question.speculation,
        prediction,
        priority: question.priority,
        cache_salt: question.cache_salt,
        ..Request::new(id, prompt, sampling, limits)
    };
    request.validate().map_err(|e| from_field(&e))?;
    let (named_stop_ids, n) = (question.stop.ids, question.n);
    Ok(Prepared { model, request, named_stop_ids, pieces, n, deadline, operation, arrived })
}

#[expect(clippy::too_many_arguments, reason = "one closure's captures, named once")]
async fn resolve(
    door: &FrontDoor,
    model: &Arc<Model>,
    prompt: Prompt,
    prediction: Option<Prediction>,
    committed: Vec<TokenId>,
    rules: StopRules,
    spelling: Spelling,
    deadline: Instant,
) -> Result<Resolved, Failure> {
    if let Prompt::Tokens(ids) = &prompt {
        known_ids(spelling.prompt, ids, model)?;
    }
    if let Some(Prediction::Tokens(ids)) = &prediction {
        known_ids(spelling.prediction, ids, model)?;
    }
    let bytes = prompt.bytes() + prediction.as_ref().map_or(0, Prediction::bytes) + committed.len() * 4;
    let model = Arc::clone(model);
    let work = move || {
        let text = &model.text;
        let prediction = match prediction {
            None => Vec::new(),
            Some(Prediction::Tokens(ids)) => ids,
            Some(Prediction::Text(guess)) => text.within(&guess, spelling.prediction)?,
        };
        let pieces = after(Pieces::new(text, rules), &committed)?;
        Ok(Resolved { prompt: text.tokens(prompt, spelling.prompt)?, prediction, committed, pieces })
    };
    door.aside.run(bytes, spelling.prompt, deadline, work).await
}

/// Goes on after tokens that the client has, and with them their text.
fn after(mut pieces: Pieces, committed: &[TokenId]) -> Result<Pieces, Failure> {
    let mut told = Vec::new();
    for (i, id) in committed.iter().enumerate() {
        pieces.push(*id, false, &mut told);
        told.clear();
        let Some(stopped) = pieces.stopped() else { continue };
        if i + 1 < committed.len() {
            let by = match stopped {
                Stopped::Id(id) => format!("is the stop token {id}"),
                Stopped::String(string) => format!("completes the stop string {string:?}"),
            };
            let why = format!(
                "committed[{i}]: {by}, so the answer ended there; send the tokens up to it, with the stop \
                 rules of the first attempt"
            );
            return Err(invalid("committed", why));
        }
    }
    Ok(pieces)
}

fn stop_ids(question: &Question, spelling: Spelling, model: &Model) -> Result<Vec<TokenId>, Failure> {
    let own = if question.stop.ignore_eos { &[][..] } else { model.text.stop_ids() };
    let mut ids = own.to_vec();
    ids.extend(question.stop.ids.iter().filter(|id| !own.contains(id)));
    if ids.len() > MAX_STOP_IDS {
        let (field, most) = (spelling.stop_ids, MAX_STOP_IDS.saturating_sub(own.len()));
        let why = format!("{field}: at most {most} tokens are taken beside the model's own {}", own.len());
        return Err(invalid(field, why));
    }
    Ok(ids)
}

fn shown(ids: &[TokenId], model: &Model) -> Vec<(TokenId, String)> {
    let spelling = |id: &TokenId| model.text.tokenizer().vocabulary().token(*id).map(str::to_owned);
    ids.iter().filter_map(|id| Some((*id, spelling(id)?))).collect()
}

fn max_tokens(
    door: &FrontDoor,
    asked: Option<u32>,
    prompt: usize,
    context: u32,
    model: &str,
    spelling: Spelling,
) -> Result<u32, Failure> {
    let too_long = |field: &str, why: String| Failure {
        field: Some(field.into()),
        ..failure::new(Reason::ContextLengthExceeded, format!("{field}: {why}"))
    };
    let left = u32::try_from(prompt).ok().and_then(|prompt| context.checked_sub(prompt)).filter(|l| *l > 0);
    let Some(left) = left else {
        return Err(too_long(
            spelling.prompt,
            format!(
                "the prompt has {prompt} tokens and the context of {model} is {context}, which must hold at \
                 least one token of answer; shorten the prompt"
            ),
        ));
    };
    match asked {
        None => Ok(door.default_max_tokens.min(left)),
        Some(asked) if asked <= left => Ok(asked),
        Some(asked) => Err(too_long(
            spelling.max_tokens,
            format!(
                "{asked} tokens were asked for; the prompt has {prompt} and the context of {model} is \
                 {context}, which leaves {left}"
            ),
        )),
    }
}

/// Ids that came from outside must be entries of the vocabulary.
fn known_ids(field: &'static str, ids: &[TokenId], model: &Model) -> Result<(), Failure> {
    let vocab = model.text.vocab_len();
    match ids.iter().position(|id| id.0 >= vocab) {
        None => Ok(()),
        Some(at) => Err(invalid(
            format!("{field}[{at}]"),
            format!(
                "{field}[{at}]: {} is not below {vocab}, the size of {}'s vocabulary",
                ids[at], model.name
            ),
        )),
    }
}

fn known_biases(question: &Question, model: &Model) -> Result<(), Failure> {
    const FIELD: &str = "logit_bias";
    let vocab = model.text.vocab_len();
    match question.adjust.logit_bias.iter().find(|(id, _)| id.0 >= vocab) {
        None => Ok(()),
        Some((id, _)) => Err(invalid(
            FIELD,
            format!("{FIELD}: {id} is not below {vocab}, the size of {}'s vocabulary", model.name),
        )),
    }
}
