use crate::InvalidField;

/// A form that the output is held to, token by token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// A JSON Schema document.
    JsonSchema(String),
    /// A regular expression that the whole output matches.
    Regex(String),
    /// A grammar in the Lark dialect of llguidance.
    Grammar(String),
}

impl Constraint {
    /// Longest schema, expression or grammar.
    pub const MOST_BYTES: usize = 256 << 10;

    /// The field that carries it in the public API.
    pub fn field(&self) -> &'static str {
        match self {
            Self::JsonObject => "json_object",
            Self::JsonSchema(_) => "json_schema",
            Self::Regex(_) => "regex",
            Self::Grammar(_) => "grammar",
        }
    }

    /// Checks sizes; whether it can be compiled is told by who compiles it.
    pub fn validate(&self) -> Result<(), InvalidField> {
        let (Self::JsonSchema(source) | Self::Regex(source) | Self::Grammar(source)) = self else {
            return Ok(());
        };
        if source.is_empty() {
            return Err(InvalidField::new(self.field(), "is empty"));
        }
        if source.len() > Self::MOST_BYTES {
            return Err(InvalidField::new(
                self.field(),
                format!("has {} bytes; at most {} are taken", source.len(), Self::MOST_BYTES),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bounded() {
        assert!(Constraint::JsonObject.validate().is_ok());
        assert!(Constraint::Regex("[ab]+".into()).validate().is_ok());
        assert_eq!(Constraint::Regex(String::new()).validate().unwrap_err().field, "regex");
        let long = "x".repeat(Constraint::MOST_BYTES + 1);
        assert_eq!(Constraint::JsonSchema(long).validate().unwrap_err().field, "json_schema");
    }
}
