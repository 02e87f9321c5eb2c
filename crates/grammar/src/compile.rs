use std::collections::HashMap;
use std::fmt;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::ApproximateTokEnv;
use llguidance::{ParserFactory, TokenParser, regex_to_lark};
use request::{Constraint, TokenId};
use sampling::Mask;
use serde_json::Value;

use crate::matcher::Matcher;
use crate::{Vocabulary, VocabularyError, json, lark};

/// Compiles constraints for one model. Built once; shared by all sequences.
#[derive(Debug)]
pub struct Grammars {
    compiler: Arc<Compiler>,
    places: Arc<Places>,
}

/// What compilations share.
pub(crate) struct Compiler {
    factory: ParserFactory,
    added: HashMap<String, TokenId>,
    /// The tokens that are text.
    text: Mask,
    /// The others.
    control: Vec<TokenId>,
    stop: Vec<TokenId>,
}

/// Why a constraint was not compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// It is wrong, not supported, or costs too much. `field` as `request::Constraint::field` names it.
    #[error("{field}: {reason}")]
    Refused { field: &'static str, reason: String },
    /// Nothing is known against it: others hold the compiler. The caller may come again.
    #[error("{field}: other constraints, slow to compile, hold the compiler; try again later")]
    Busy { field: &'static str },
}

/// What one constraint may cost. llguidance's own figures where nothing else is said.
fn limits() -> ParserLimits {
    ParserLimits {
        // A lexer state is 1 to 2 kB: 50 MB for the worst grammar, where 250,000 states were half a gigabyte.
        max_lexer_states: 30_000,
        // Symbols; the largest schemas in use (FHIR) have 200,000.
        max_grammar_size: 200_000,
        // Errors go to clients: no dump of the parser in them.
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// Bytes of stack to compile on. Chains of references recurse in llguidance, a few kilobytes a link, and
/// `Constraint::MOST_BYTES` bounds the links. Reserved, not used: pages are touched as it recurses.
const STACK: usize = 512 << 20;

/// How long a compilation may take, and how long it may wait for a place to begin. llguidance counts its
/// work, but one derivative of an intersection of expressions can cost seconds in a single count.
const PATIENCE: Duration = Duration::from_secs(5);

/// Compilations at once. One that outlasts its patience cannot be stopped and keeps its place, so this
/// is also the most threads that hostile constraints can hold; all held: others are refused after
/// `PATIENCE`.
const PLACES: usize = 2;

impl Grammars {
    /// Builds the trie of the vocabulary and the tables that masks share: some 0.5 s for 150,000 tokens.
    pub fn new(vocabulary: &Vocabulary) -> Result<Self, VocabularyError> {
        let compiler = Arc::new(Compiler::new(vocabulary)?);
        Ok(Self { compiler, places: Arc::new(Places::new(PLACES)) })
    }

    /// Compiles a constraint, and computes its first mask, so that one that allows nothing, or costs too
    /// much from the start, is refused here.
    ///
    /// Milliseconds for the schemas of applications; hostile ones are given up after some seconds. Blocks:
    /// call it off the threads that serve others.
    pub fn compile(&self, constraint: &Constraint) -> Result<Box<dyn engine::Constraint>, CompileError> {
        let field = constraint.field();
        let refused = |reason| CompileError::Refused { field, reason };
        constraint.validate().map_err(|e| refused(e.why))?;
        let place = Places::take(&self.places, PATIENCE).ok_or(CompileError::Busy { field })?;
        let (tell, told) = mpsc::sync_channel(1);
        let (compiler, source) = (self.compiler.clone(), constraint.clone());
        let work = move || {
            let matcher = compiler.matcher(&source);
            drop(place);
            // Nobody listens when patience is over.
            let _ = tell.send(matcher);
        };
        // Owned by its place; not joined, since it cannot be stopped.
        let thread = thread::Builder::new().name("grammar".to_owned()).stack_size(STACK);
        thread.spawn(work).map_err(|e| refused(format!("no thread to compile on: {e}")))?;
        let matcher = told.recv_timeout(PATIENCE).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                refused(format!("takes longer than {} s to compile; simplify it", PATIENCE.as_secs()))
            }
            RecvTimeoutError::Disconnected => refused("the compiler failed".to_owned()),
        })?;
        Ok(Box::new(matcher.map_err(refused)?))
    }
}

impl Compiler {
    pub(crate) fn new(vocabulary: &Vocabulary) -> Result<Self, VocabularyError> {
        let trie = vocabulary.trie()?;
        // Not canonical: text is not forced, see the crate's documentation.
        let tokens = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory =
            ParserFactory::new_simple(&(tokens as _)).map_err(|e| VocabularyError::Trie(brief(&e)))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self {
            factory,
            added: vocabulary.added(),
            text: vocabulary.text(),
            control: vocabulary.control().collect(),
            stop: vocabulary.stop().to_vec(),
        })
    }

    pub(crate) fn matcher(&self, constraint: &Constraint) -> Result<Matcher, String> {
        let parser = self.factory.create_parser(self.grammar(constraint)?).map_err(|e| explain(&e))?;
        honoured(&parser)?;
        let takes = self.takes(&parser);
        let mut matcher = Matcher::new(parser, takes, &self.stop);
        engine::Constraint::masks(&mut matcher, &[])?;
        Ok(matcher)
    }

    /// The tokens that an answer may hold: text, and the control tokens that the grammar names. Its
    /// expressions do not keep the others out: `~"a"` is any bytes but `a`, a control token's as well.
    fn takes(&self, parser: &TokenParser) -> Mask {
        let lexemes = &parser.parser.grammar().lexer_spec().lexemes;
        let mut takes = self.text.clone();
        let named = self.control.iter().filter(|id| lexemes.iter().any(|l| l.contains_token(id.0)));
        named.for_each(|id| takes.allow(*id));
        takes
    }

    fn grammar(&self, constraint: &Constraint) -> Result<TopLevelGrammar, String> {
        Ok(TopLevelGrammar::from_grammar(match constraint {
            Constraint::JsonObject => GrammarWithLexer::from_json_schema(json::any_object()),
            Constraint::JsonSchema(schema) => {
                let schema: Value =
                    serde_json::from_str(schema).map_err(|e| format!("the schema is not JSON: {e}"))?;
                GrammarWithLexer::from_json_schema(json::bounded(schema))
            }
            Constraint::Regex(expression) => GrammarWithLexer::from_lark(whole(expression)),
            Constraint::Grammar(grammar) => {
                GrammarWithLexer::from_lark(lark::number_tokens(grammar, &self.added)?)
            }
        }))
    }
}

impl fmt::Debug for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiler")
            .field("added", &self.added)
            .field("stop", &self.stop)
            .finish_non_exhaustive()
    }
}

/// Places of compilations under way.
#[derive(Debug)]
struct Places {
    free: Mutex<usize>,
    freed: Condvar,
}

/// One place; given back when dropped.
struct Place(Arc<Places>);

impl Places {
    fn new(free: usize) -> Self {
        Self { free: Mutex::new(free), freed: Condvar::new() }
    }

    /// `None` when none became free in time.
    fn take(places: &Arc<Self>, patience: Duration) -> Option<Place> {
        let free = places.free.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = places.freed.wait_timeout_while(free, patience, |free| *free == 0);
        let (mut free, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *free = free.checked_sub(1)?;
        Some(Place(places.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

/// A grammar of the expression. It is matched against the whole answer, so anchors at both ends say
/// nothing more and are taken off: the lexer has no anchors.
fn whole(expression: &str) -> String {
    let expression = expression.strip_prefix('^').unwrap_or(expression);
    let expression = match expression.strip_suffix('$') {
        Some(open) if (open.len() - open.trim_end_matches('\\').len()) & 1 == 0 => open,
        _ => expression,
    };
    match expression {
        "" => "start: \"\"".to_owned(),
        _ => format!("start: /{}/", regex_to_lark(expression, "")),
    }
}

/// Refuses what llguidance reads but Paceline does not do.
fn honoured(parser: &TokenParser) -> Result<(), String> {
    let spec = parser.parser.grammar().lexer_spec();
    if spec.has_stop {
        return Err("stop= would hide text that was already sent; use suffix=, which keeps it".to_owned());
    }
    if !spec.can_rollback() {
        return Err("max_tokens= is not supported: tokens that were guessed could not be taken back; use \
                    a repetition such as /.{0,80}/"
            .to_owned());
    }
    Ok(())
}

/// llguidance's reason, with what to do where its own advice does not fit.
fn explain(error: &anyhow::Error) -> String {
    let reason = brief(error);
    match reason {
        r if r.starts_with("oneOf constraints") => {
            "oneOf whose options overlap is not supported; use anyOf, or put \
             {\"x-guidance\": {\"coerce_one_of\": true}} at the top of the schema to read oneOf as anyOf"
                .to_owned()
        }
        r if r.starts_with("Unimplemented keys") => format!("{r} in the schema; remove them"),
        r => r,
    }
}

/// An error without the parser states and backtraces that llguidance puts behind it, and with what it
/// quotes of the constraint cut short.
pub(crate) fn brief(error: &anyhow::Error) -> String {
    const COLUMNS: usize = 160;
    let text = format!("{error:#}");
    let text = text.split("\n<").next().unwrap_or_default();
    let cut = |line: &str| match line.char_indices().nth(COLUMNS) {
        Some((end, _)) => format!("{}...", line.get(..end).unwrap_or_default()),
        None => line.to_owned(),
    };
    // A line of carets marks a column of the one above it, which may be cut.
    let lines = text.lines().filter(|line| !line.trim_matches([' ', '|', '^']).is_empty());
    lines.take(6).map(cut).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_come_back() {
        let places = Arc::new(Places::new(2));
        let mut held: Vec<Option<Place>> = (0..3).map(|_| Places::take(&places, Duration::ZERO)).collect();
        assert_eq!(held.iter().map(Option::is_some).collect::<Vec<_>>(), [true, true, false]);
        let freeing = thread::spawn(move || drop(held.pop().zip(held.pop())));
        assert!(Places::take(&places, Duration::from_secs(5)).is_some());
        freeing.join().unwrap_or_default();
    }
}
