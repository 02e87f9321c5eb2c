//! Prefill and decode, through the engine.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use engine::{Command, Engine, Outcome, Outlet, Room, Settings, TargetEvent, TargetOpen};
use model::CpuModel;
use request::{Finish, Limits, Request, RequestId, Sampling, Strategy, TokenId};
use scheduler::SequenceId;

use super::{Batch, EngineArgs};
use crate::bench::spread::Spread;

/// Tokens a second of both phases, for each batch size.
pub(super) fn run(model: CpuModel, args: &EngineArgs, vocab: u32) -> Result<Vec<Batch>> {
    // Prompts differ, but a cache would still cost the time of looking.
    let settings = Settings { prefix_cache: false, max_waiting: 1024, ..Settings::default() };
    let mut bench = Bench {
        engine: Engine::new(model, settings),
        clock: Instant::now(),
        random: fastrand::Rng::with_seed(0),
        vocab,
        sequences: 0,
    };
    let mut batches = Vec::new();
    for batch in &args.batch {
        let (mut prefill, mut decode) = (Vec::new(), Vec::new());
        // The first pass reads the weights from the file.
        for pass in 0..=args.repeat {
            let (p, d) = (bench.prefill(*batch, args.prompt)?, bench.decode(*batch, args)?);
            if pass > 0 {
                prefill.push(p);
                decode.push(d);
            }
        }
        let nothing = "--repeat: nothing was measured";
        batches.push(Batch {
            batch: *batch,
            prefill_tokens_per_s: Spread::of(prefill).context(nothing)?,
            decode_tokens_per_s: Spread::of(decode).context(nothing)?,
        });
    }
    Ok(batches)
}

struct Bench {
    engine: Engine<CpuModel>,
    clock: Instant,
    random: fastrand::Rng,
    vocab: u32,
    sequences: u64,
}

impl Bench {
    /// Prompt tokens a second, all sequences together, each ended by its first token.
    fn prefill(&mut self, batch: u32, prompt: u32) -> Result<f64> {
        let events = self.open(batch, prompt, 1)?;
        let start = Instant::now();
        self.steps(|_, _, _| {})?;
        let taken = start.elapsed();
        self.finished(&events)?;
        Ok(f64::from(batch) * f64::from(prompt) / taken.as_secs_f64().max(1e-9))
    }

    /// Tokens a second, all sequences together, in the steps in which all of them decode.
    fn decode(&mut self, batch: u32, args: &EngineArgs) -> Result<f64> {
        let events = self.open(batch, args.prompt, args.generate)?;
        let (mut tokens, mut taken, mut first) = (0, Duration::ZERO, true);
        self.steps(|rows, decodes, time| {
            // A prompt of one token looks like a decode: each sequence's first step is none.
            let all = rows == batch && decodes == batch && !std::mem::take(&mut first);
            if all {
                tokens += u64::from(decodes);
                taken += time;
            }
        })?;
        self.finished(&events)?;
        ensure!(
            tokens > 0,
            "no step decoded all {batch} sequences: the first ended before the last had its prompt; raise --generate"
        );
        Ok(tokens as f64 / taken.as_secs_f64().max(1e-9))
    }

    /// Runs until nothing is left; `saw` gets each step's rows, picks and time.
    fn steps(&mut self, mut saw: impl FnMut(u32, u32, Duration)) -> Result<()> {
        while !self.engine.is_empty() {
            let start = Instant::now();
            let outcome = self.engine.step(self.clock.elapsed());
            let taken = start.elapsed();
            match outcome {
                Outcome::Worked(facts) => {
                    ensure!(
                        facts.failed == 0,
                        "the model failed: check the file with `paceline models show`"
                    );
                    ensure!(facts.preempted == 0, "pages ran out, which is a fault of this benchmark");
                    saw(facts.known_rows, facts.decodes, taken);
                }
                Outcome::Idle { .. } => bail!("the engine stands still"),
            }
        }
        Ok(())
    }

    fn open(&mut self, batch: u32, prompt: u32, max_tokens: u32) -> Result<Receiver<Finish>> {
        // One end for each sequence.
        let (ends, ended) = sync_channel(batch as usize);
        for _ in 0..batch {
            self.sequences += 1;
            let ids = (0..prompt).map(|_| TokenId(self.random.u32(0..self.vocab))).collect();
            let id = RequestId::new(&format!("bench-{}", self.sequences))?;
            // No stop tokens: answers have the length that was asked for.
            let mut request = Request::new(id, ids, Sampling::GREEDY, Limits::new(max_tokens, Vec::new()));
            // A drafting step is no plain decode; `bench compare` measures drafting.
            request.speculation.strategy = Strategy::None;
            let (admit, admitted) = sync_channel(1);
            let open = TargetOpen {
                sequence: SequenceId(self.sequences),
                request,
                constraint: None,
                deadline: None,
                outlet: Box::new(Ends(ends.clone())),
                admitted: Box::new(move |answer| {
                    let _ = admit.try_send(answer);
                }),
            };
            self.engine.command(self.clock.elapsed(), Command::Target(Box::new(open)));
            admitted.try_recv().context("the engine did not answer")??;
        }
        Ok(ended)
    }

    fn finished(&self, ended: &Receiver<Finish>) -> Result<()> {
        for finish in ended.try_iter() {
            ensure!(finish == Finish::Length, "a sequence ended by {finish:?} instead of its length");
        }
        Ok(())
    }
}

/// Keeps only how a sequence ended; always has room, as nobody reads while steps run.
struct Ends(SyncSender<Finish>);

impl Outlet<TargetEvent> for Ends {
    fn room(&self) -> Room {
        Room::Free
    }

    fn deliver(&mut self, event: TargetEvent) {
        if let TargetEvent::Ended(ended) = event {
            let _ = self.0.try_send(ended.finish);
        }
    }
}
