use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// Whether this process should be sent work, and if not, what it waits for. Ready when every gate is
/// open; shared by the admin port and the gRPC health service.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    /// Closed gates and why.
    closed: Arc<watch::Sender<BTreeMap<&'static str, String>>>,
}

/// One thing that must be so before the process is ready. Dropped, it stays as it was.
#[derive(Debug)]
pub struct Gate {
    name: &'static str,
    closed: Arc<watch::Sender<BTreeMap<&'static str, String>>>,
}

impl Readiness {
    /// Adds a gate, closed.
    pub fn gate(&self, name: &'static str, why: impl Into<String>) -> Gate {
        let gate = Gate { name, closed: Arc::clone(&self.closed) };
        gate.close(why);
        gate
    }

    pub fn is_ready(&self) -> bool {
        self.closed.borrow().is_empty()
    }

    /// What is waited for: gate and reason.
    pub fn waiting_for(&self) -> BTreeMap<&'static str, String> {
        self.closed.borrow().clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<BTreeMap<&'static str, String>> {
        self.closed.subscribe()
    }
}

impl Gate {
    pub fn open(&self) {
        self.closed.send_if_modified(|closed| closed.remove(self.name).is_some());
    }

    pub fn close(&self, why: impl Into<String>) {
        let why = why.into();
        self.closed.send_if_modified(|closed| closed.insert(self.name, why.clone()).as_ref() != Some(&why));
    }
}
