//! What drafting with the first layers takes: `cargo run -p model --example exits -- FILE [THREADS]`, in milliseconds.
#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use std::time::Instant;

use engine::{Model, SelfDraft};
use kvcache::{ClassId, PAGE_POSITIONS, PageId};
use model::{CpuModel, Options, PageBudget};
use request::{Sampling, TokenId};
use sampling::Draw;
use scheduler::{Layers, Output, Parent, Row, RowToken, Slot, Step, TableChange, TableDelta};

const PROMPT: u32 = 250;
const ROUNDS: u32 = 40;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or_else(|| anyhow::anyhow!("give the path of a .gguf file"))?;
    let threads = arguments.next().map_or(Ok(2), |threads| threads.parse())?;
    let (context, vocab, heads) = (None, None, None);
    let options = Options { context, vocab, slots: 1, pages: PageBudget::Pages(1024), threads, heads };
    let mut model = CpuModel::load(path.as_ref(), &options)?;
    let layers = model.spec().layered.map_or(0, |layered| layered.layers);
    let ids: Vec<TokenId> = (0..PROMPT).map(|i| TokenId((i * 7919 + 13) % 20_000)).collect();
    step(&mut model, 0, &ids)?;
    for rows in 1..=4 {
        let took: Result<Vec<f64>, _> = (0..ROUNDS).map(|_| step(&mut model, PROMPT, &ids[..rows])).collect();
        println!("a step of {rows} rows: {:31.2}", median(took?));
    }
    for exit in [1, 4, 6, 8, 10, 15].into_iter().filter(|exit| *exit < layers) {
        for most in [1, 2, 4] {
            let (mut drafting, mut verifying) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                let asked = SelfDraft {
                    slot: Slot(0),
                    token: ids[0],
                    position: PROMPT,
                    exit,
                    window: None,
                    most,
                    stop: None,
                    stop_ids: Vec::new(),
                    sampling: Sampling::GREEDY,
                    watch: false,
                };
                let start = Instant::now();
                let drafts = model.self_draft(&asked)?;
                drafting.push(start.elapsed().as_secs_f64());
                let rows: Vec<TokenId> = std::iter::once(ids[0]).chain(drafts.iter().map(|d| d.0)).collect();
                verifying.push(step(&mut model, PROMPT, &rows)?);
            }
            let [drafting, verifying] = [drafting, verifying].map(median);
            println!("{most} behind {exit:2} layers: {drafting:6.2}, then a step of {verifying:6.2}");
        }
    }
    Ok(())
}

/// In milliseconds.
fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    1e3 * seconds[seconds.len() / 2]
}

/// One step of `ids` from a position on; seconds.
fn step(model: &mut CpuModel, first: u32, ids: &[TokenId]) -> anyhow::Result<f64> {
    let slot = Slot(0);
    let mut step = Step::default();
    let delta = |change| TableDelta { slot, class: ClassId(0), change };
    let from = first.div_ceil(PAGE_POSITIONS);
    step.deltas.push(delta(TableChange::Truncate(from)));
    for page in from..(first + ids.len() as u32).div_ceil(PAGE_POSITIONS) {
        step.deltas.push(delta(TableChange::Append(PageId(page))));
    }
    let (parent, layers, output) = (Parent::Previous, Layers::All, Output::Pick);
    let row = |(position, id): (u32, &TokenId)| {
        let token = RowToken::Known(*id);
        Row { slot, token, position, parent, layers, output, adapter: None }
    };
    step.rows = (first..).zip(ids).map(row).collect();
    let draws = vec![Draw::new(Sampling::GREEDY); ids.len()];
    let start = Instant::now();
    let ticket = model.submit(&step)?;
    model.collect(ticket, &draws)?;
    Ok(start.elapsed().as_secs_f64())
}
