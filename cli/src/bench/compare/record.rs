//! What a target answers, and what a drafter would have said at each place.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use engine::{Command, Engine, Model, Outcome, Outlet, Recorded, Room, Settings, TargetEvent, TargetOpen};
use kvcache::{ClassId, PageId};
use model::{CpuModel, Options, PageBudget};
use request::{Finish, Limits, Request, RequestId, Sampling, Speculation, Strategy, TokenId};
use sampling::Draw;
use scheduler::{Layers, Output, Parent, Row, RowToken, SequenceId, Slot, Step, TableChange, TableDelta};
use text::{ChatTemplate, Tokenizer};

use super::asked::{Asked, Question};
use super::trace::{Answer, File, Greedy, Head};

/// Prompts that are answered at once.
const AT_ONCE: u32 = 8;
/// Rows of one step of the drafter.
const CHUNK: usize = 256;

/// What to record.
#[derive(Debug)]
pub(super) struct Recording<'a> {
    /// Name and file of each model.
    pub(super) target: (&'a str, &'a Path),
    pub(super) drafter: (&'a str, &'a Path),
    pub(super) prompts: &'a str,
    pub(super) questions: &'a [Question],
    pub(super) max_tokens: u32,
    pub(super) threads: usize,
}

/// Records on the CPU: first all answers, then the drafter's word for each of their places.
pub(super) fn record(recording: &Recording<'_>) -> Result<File> {
    let (target, drafter) = (recording.target.1, recording.drafter.1);
    let tokenizer = Tokenizer::open(target).with_context(|| target.display().to_string())?;
    let other = Tokenizer::open(drafter).with_context(|| drafter.display().to_string())?;
    ensure!(
        tokenizer.vocab_hash() == other.vocab_hash(),
        "{} and {} have different vocabularies",
        recording.target.0,
        recording.drafter.0
    );
    let template = ChatTemplate::open(target).context("no usable chat template")?;
    let encode = |question: &Question| question.encode(&tokenizer, &template, recording.max_tokens);
    let asked: Vec<Asked> = recording.questions.iter().map(encode).collect::<Result<_>>()?;
    let longest = asked.iter().map(|a| a.ids.len()).max().context("no prompt to record")?;
    let longest = u32::try_from(longest)?.saturating_add(recording.max_tokens);

    let load = |path: &Path, slots: u32| {
        let pages = PageBudget::Pages(kvcache::pages_for(longest).saturating_mul(slots));
        let vocab = Some(tokenizer.vocab_len());
        let options = Options { context: None, vocab, slots, pages, threads: recording.threads, heads: None };
        CpuModel::load(path, &options)
    };
    let settings = Settings { max_waiting: asked.len(), max_wait: Duration::MAX, ..Settings::default() };
    let limits = Limits::new(recording.max_tokens, tokenizer.stop_ids().to_vec());
    let told = answers(Engine::new(load(target, AT_ONCE)?, settings), &asked, &limits)?;
    eprintln!("recorded {} answers of {}", told.len(), recording.target.0);
    let mut model = load(drafter, 1)?;
    let answers = asked
        .into_iter()
        .zip(told)
        .map(|(asked, (target, finish))| {
            let drafter = forced(&mut model, &asked.ids, &target)?;
            let recorded = Recorded { prompt: asked.ids, target, drafter };
            Ok(Answer { name: asked.name, stopped: finish == Finish::Stop, recorded })
        })
        .collect::<Result<Vec<_>>>()?;
    let fingerprint = |path| model::fingerprint(path).map(|f| f.as_str().to_owned());
    let head = Head {
        paceline_trace: Head::version(),
        target: recording.target.0.to_owned(),
        target_fingerprint: fingerprint(target)?,
        drafter: recording.drafter.0.to_owned(),
        drafter_fingerprint: fingerprint(drafter)?,
        vocab_size: tokenizer.vocab_len(),
        prompts: recording.prompts.to_owned(),
        max_tokens: recording.max_tokens,
        sampling: Greedy::Greedy,
    };
    Ok(File { head, answers })
}

/// The greedy answer to every prompt, and how it ended.
fn answers<M: Model>(
    mut engine: Engine<M>,
    asked: &[Asked],
    limits: &Limits,
) -> Result<Vec<(Vec<TokenId>, Finish)>> {
    let clock = Instant::now();
    // Read after each step, which commits at most one event and an end a sequence.
    let (outlet, events) = sync_channel(asked.len() * 4);
    for (nth, one) in asked.iter().enumerate() {
        let speculation = Speculation { strategy: Strategy::None, ..Speculation::default() };
        let id = RequestId::new(&format!("record-{nth}"))?;
        let request = Request::new(id, one.ids.clone(), Sampling::GREEDY, limits.clone());
        let (admit, admitted) = sync_channel(1);
        let open = TargetOpen {
            sequence: SequenceId(nth as u64),
            request: Request { speculation, ..request },
            constraint: None,
            deadline: None,
            outlet: Box::new(Told(nth, outlet.clone())),
            admitted: Box::new(move |answer| {
                let _ = admit.try_send(answer);
            }),
        };
        engine.command(Duration::ZERO, Command::Target(Box::new(open)));
        admitted.try_recv().context("the engine did not answer")?.with_context(|| one.name.clone())?;
    }
    let mut told = vec![(Vec::new(), None); asked.len()];
    while !engine.is_empty() {
        if let Outcome::Idle { .. } = engine.step(clock.elapsed()) {
            bail!("the engine stands still");
        }
        take(&events, &mut told);
    }
    let ended = |(i, (ids, finish)): (usize, (Vec<TokenId>, Option<Finish>))| match finish {
        Some(finish @ (Finish::Stop | Finish::Length)) => Ok((ids, finish)),
        other => bail!("{}: the answer ended by {other:?}", asked[i].name),
    };
    told.into_iter().enumerate().map(ended).collect()
}

fn take(events: &Receiver<(usize, TargetEvent)>, told: &mut [(Vec<TokenId>, Option<Finish>)]) {
    for (nth, event) in events.try_iter() {
        match event {
            TargetEvent::Committed { frame, .. } => told[nth].0.extend(frame.ids),
            TargetEvent::Ended(ended) => told[nth].1 = Some(ended.finish),
            TargetEvent::Started { .. } | TargetEvent::Ask { .. } | TargetEvent::Again(_) => {}
        }
    }
}

/// Events of one answer, marked with its number.
struct Told(usize, SyncSender<(usize, TargetEvent)>);

impl Outlet<TargetEvent> for Told {
    fn room(&self) -> Room {
        Room::Free
    }

    fn deliver(&mut self, event: TargetEvent) {
        let _ = self.1.try_send((self.0, event));
    }
}

/// A model's most likely token for each place of `answer`, each after the prompt and the true tokens before
/// that place: one pass over both.
fn forced<M: Model>(model: &mut M, prompt: &[TokenId], answer: &[TokenId]) -> Result<Vec<TokenId>> {
    let slot = Slot(0);
    let known = [prompt, answer.split_last().context("an answer without tokens")?.1].concat();
    let classes = 0..u8::try_from(model.spec().classes.len())?;
    let pages = kvcache::pages_for(u32::try_from(known.len())?);
    let append = (0..pages).map(|page| TableChange::Append(PageId(page)));
    // What the answer before this one left is gone.
    let changes = std::iter::once(TableChange::Clear).chain(append);
    let mut deltas: Vec<TableDelta> = classes
        .flat_map(|class| {
            changes.clone().map(move |change| TableDelta { slot, class: ClassId(class), change })
        })
        .collect();
    let rows: Vec<Row> = known
        .iter()
        .enumerate()
        .map(|(at, token)| Row {
            slot,
            token: RowToken::Known(*token),
            position: at as u32,
            parent: Parent::Previous,
            layers: Layers::All,
            output: if at + 1 < prompt.len() { Output::None } else { Output::Pick },
            adapter: None,
        })
        .collect();
    let mut said = Vec::with_capacity(answer.len());
    for rows in rows.chunks(CHUNK) {
        let step = Step { deltas: std::mem::take(&mut deltas), rows: rows.to_vec() };
        let picking = rows.iter().filter(|row| row.output == Output::Pick).count();
        let ticket = model.submit(&step)?;
        let picks = model.collect(ticket, &vec![Draw::new(Sampling::GREEDY); picking])?;
        said.extend(picks.0.into_iter().map(|pick| pick.drawn.token));
    }
    ensure!(said.len() == answer.len(), "the drafter gave {} tokens for {} places", said.len(), answer.len());
    Ok(said)
}

#[cfg(test)]
mod tests {
    use engine::{ToyModel, toy_logits};

    use super::*;

    /// A toy's law read by hand is the judge.
    fn best(seed: u64, tokens: &[TokenId]) -> TokenId {
        let logits = toy_logits(seed, tokens, 40);
        let best = (0..40).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        TokenId(best.unwrap() as u32)
    }

    #[test]
    fn a_trace_holds_what_both_models_say_after_the_true_prefix() {
        let toy = |seed| ToyModel::new(ToyModel::spec(40, 700, 8, 200), seed);
        let ids = |n: u32| (0..n).map(|i| TokenId(1 + i * 7 % 39)).collect::<Vec<_>>();
        // The last one needs several steps of the drafter.
        let asked: Vec<Asked> = [1, 5, 33, 600]
            .map(|n| Asked { name: format!("p{n}"), ids: ids(n), max_tokens: 40, expect: None })
            .into();
        let limits = Limits::new(40, vec![TokenId(0)]);
        let told = answers(Engine::new(toy(1), Settings::default()), &asked, &limits).unwrap();
        let (mut stopped, mut differs) = (0, 0);
        let mut other = toy(2);
        for (asked, (answer, finish)) in asked.iter().zip(&told) {
            let said = forced(&mut other, &asked.ids, answer).unwrap();
            for at in 0..answer.len() {
                let before = [asked.ids.as_slice(), &answer[..at]].concat();
                assert_eq!((answer[at], said[at]), (best(1, &before), best(2, &before)));
                differs += u32::from(answer[at] != said[at]);
            }
            stopped += u32::from(*finish == Finish::Stop);
            assert_eq!(*finish == Finish::Stop, answer.last() == Some(&TokenId(0)));
        }
        assert!(differs > 50 && stopped > 0, "{differs} differ, {stopped} stopped: the test is of no use");
    }
}
