use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use cluster::{Role, VocabHash};
use engine::{Model, ModelError, ModelSpec, Picks, SaidBy, SelfDraft, Ticket};
use grammar::{Grammars, Vocabulary};
use model::{CpuModel, CpuOptions, Group, GroupPlan, Options, PageBudget};
use rank::{Constraints, Identity};
use request::{Sampling, TokenId};
use sampling::Draw;
use scheduler::{Slot, Step};
use text::Tokenizer;
use transport::local::Network;

use crate::support::identity;

/// What fits into a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) slots: u32,
    /// Of 16 positions.
    pub(crate) pages: u32,
}

impl Size {
    pub(crate) const LARGE: Self = Self { slots: 8, pages: 600 };
}

/// A model file as tests use it.
#[derive(Clone)]
pub(crate) struct Weights {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    vocab_hash: VocabHash,
    constraints: Constraints,
}

impl Weights {
    pub(crate) fn open(name: &str, path: &Path) -> Self {
        let tokenizer = Tokenizer::open(path).unwrap();
        let vocab_hash = VocabHash(tokenizer.vocab_hash());
        let grammars = Grammars::new(&Vocabulary::of(&tokenizer).unwrap()).unwrap();
        let constraints = Constraints::new(Some(grammars));
        Self { name: name.into(), path: path.into(), vocab_hash, constraints }
    }

    pub(crate) fn identity(&self, role: Role, id: &str) -> Identity {
        Identity { vocab_hash: self.vocab_hash, ..identity(role, id, &self.name, 0) }
    }

    pub(crate) fn constraints(&self) -> Constraints {
        self.constraints.clone()
    }

    pub(crate) fn make(&self) -> impl FnOnce() -> CpuModel + Send + 'static {
        self.sized(Size::LARGE)
    }

    /// Builds the model with one thread, so that target and drafter do not wait for each other's.
    pub(crate) fn sized(&self, size: Size) -> impl FnOnce() -> CpuModel + Send + 'static {
        self.with_context(size, 2048)
    }

    /// With a short context.
    pub(crate) fn short(&self, context: u32) -> impl FnOnce() -> CpuModel + Send + 'static {
        self.with_context(Size::LARGE, context)
    }

    /// It draws of the most common tokens only (FR-Spec, arXiv 2502.14856).
    pub(crate) fn shortlisted(&self, tokens: u32) -> CpuModel {
        let shortlist = Some(Tokenizer::open(&self.path).unwrap().vocabulary().common(tokens));
        let cpu = CpuOptions { shortlist, ..CpuOptions::default() };
        CpuModel::load_as(&self.path, &options(Size::LARGE, 2048), &cpu).unwrap()
    }

    fn with_context(&self, size: Size, context: u32) -> impl FnOnce() -> CpuModel + Send + 'static {
        let path = self.path.clone();
        move || CpuModel::load(&path, &options(size, context)).unwrap()
    }

    /// The model as two ranks of a group have it, over `network`: rank 0, and the thread of rank 1. SmolLM2 has 3 KV
    /// heads: the ranks have 2 and 1, and the other way round in the next layer.
    pub(crate) fn shared(
        &self,
        network: &Network,
    ) -> (impl FnOnce() -> CpuModel + Send + 'static, JoinHandle<()>) {
        let (make, mut followers) = self.shared_by(network, 2);
        (make, followers.remove(0))
    }

    /// The same with any number of ranks. With more than KV heads each has some spans of every sequence.
    pub(crate) fn shared_by(
        &self,
        network: &Network,
        ranks: usize,
    ) -> (impl FnOnce() -> CpuModel + Send + 'static, Vec<JoinHandle<()>>) {
        let leading = network.fabric("rank-0");
        let options = options(Size::LARGE, 2048);
        let follow = |rank| {
            let following = network.fabric(&format!("rank-{rank}"));
            let (path, options) = (self.path.clone(), options.clone());
            std::thread::spawn(move || {
                let group = Group::follow(&following, "rank-0", rank, plan(ranks)).unwrap();
                let mut model = CpuModel::load_in(&path, &options, &CpuOptions::default(), group).unwrap();
                // An error where a test cuts the network.
                let _ = model.follow();
            })
        };
        let followers = (1..ranks).map(follow).collect();
        let path = self.path.clone();
        let make = move || {
            let group = Group::lead(&leading, plan(ranks), 1).unwrap();
            CpuModel::load_in(&path, &options, &CpuOptions::default(), group).unwrap()
        };
        (make, followers)
    }
}

fn options(size: Size, context: u32) -> Options {
    let pages = PageBudget::Pages(size.pages);
    Options { context: Some(context), vocab: None, slots: size.slots, pages, threads: 1, heads: None }
}

fn plan(ranks: usize) -> GroupPlan {
    GroupPlan {
        memory: vec![1; ranks],
        said: "smollm2".into(),
        start: Duration::from_secs(60),
        within: Duration::from_secs(3),
    }
}

/// A drafter's model whose picks are wrong in some share of the positions, by a fixed pattern: it
/// knows neither seed nor text, so it is wrong at every depth.
pub(crate) struct Corrupted {
    pub(crate) model: CpuModel,
    /// Of 100 picks.
    pub(crate) wrong: u64,
    pub(crate) picks: Arc<AtomicU64>,
}

impl Model for Corrupted {
    fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket, ModelError> {
        self.model.submit(step)
    }

    fn collect(&mut self, ticket: Ticket, draws: &[Draw]) -> Result<Picks, ModelError> {
        let mut picks = self.model.collect(ticket, draws)?;
        for pick in &mut picks.0 {
            let n = self.picks.fetch_add(1, Ordering::Relaxed);
            // Steps of 61 through 100 look random to the text and hit `wrong` of 100.
            if n * 61 % 100 < self.wrong {
                pick.drawn.token = TokenId((pick.drawn.token.0 + 1) % self.model.spec().vocab_size);
            }
        }
        Ok(picks)
    }
}

/// A model on a machine where a step takes its time however many rows it has: whether drafts pay then does not hang on the
/// processor that the test runs on.
pub(crate) struct Steady(pub(crate) CpuModel);

impl Steady {
    const STEP: Duration = Duration::from_millis(20);
}

impl Model for Steady {
    fn spec(&self) -> &ModelSpec {
        self.0.spec()
    }

    fn tile(&self) -> u32 {
        self.0.tile()
    }

    fn layers(&self) -> u32 {
        self.0.layers()
    }

    fn submit(&mut self, step: &Step) -> Result<Ticket, ModelError> {
        self.0.submit(step)
    }

    fn collect(&mut self, ticket: Ticket, draws: &[Draw]) -> Result<Picks, ModelError> {
        std::thread::sleep(Self::STEP);
        self.0.collect(ticket, draws)
    }

    fn self_draft(&mut self, asked: &SelfDraft) -> Result<Vec<(TokenId, f64)>, ModelError> {
        self.0.self_draft(asked)
    }

    fn said(&mut self, slot: Slot, rows: u32, sampling: &Sampling) -> Result<Vec<SaidBy>, ModelError> {
        self.0.said(slot, rows, sampling)
    }
}
