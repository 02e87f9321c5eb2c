//! The models that this coordinator serves, by name and alias.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::ModelConfig;
use crate::failure::{self, Failure, Reason};
use crate::text::{ModelText, TextError};

/// Why a model's files cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("model {name}: {}: {source}", path.display())]
pub struct ModelFileError {
    pub name: String,
    pub path: PathBuf,
    pub source: Box<TextError>,
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) aliases: Vec<String>,
    pub(crate) text: ModelText,
}

/// In the order of the configuration.
#[derive(Debug)]
pub(crate) struct Models(Vec<Arc<Model>>);

impl Models {
    /// Reads the text part of all models: seconds for a large vocabulary, so not on a runtime thread.
    pub(crate) fn load(configs: Vec<ModelConfig>) -> Result<Self, ModelFileError> {
        let load = |config: ModelConfig| {
            let ModelConfig { name, path, aliases } = config;
            match ModelText::open(&path) {
                Ok(text) => Ok(Arc::new(Model { name, aliases, text })),
                Err(e) => Err(ModelFileError { name, path, source: Box::new(e) }),
            }
        };
        configs.into_iter().map(load).collect::<Result<_, _>>().map(Self)
    }

    pub(crate) fn all(&self) -> &[Arc<Model>] {
        &self.0
    }

    pub(crate) fn find(&self, name: &str) -> Result<&Arc<Model>, Failure> {
        self.0.iter().find(|m| m.name == name || m.aliases.iter().any(|a| a == name)).ok_or_else(|| {
            let served: Vec<_> = self.0.iter().map(|m| m.name.as_str()).collect();
            let shown: String = name.chars().take(80).collect();
            Failure {
                field: Some("model".into()),
                ..failure::new(
                    Reason::ModelNotFound,
                    format!("model: `{shown}` is not served here; served: {}", served.join(", ")),
                )
            }
        })
    }
}
