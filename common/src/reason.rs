//! Why something failed, in two texts: the ledger keeps all of it, and a log has what quotes no value of a row.

/// A reason. Athena, S3 and PostgreSQL quote values in what they say; the programs' own sentences do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    text: String,
    logged: String,
}

impl Reason {
    /// A text that may quote a value of a row, and what a log has instead: the kind of the failure.
    pub fn quoting(text: impl Into<String>, logged: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            logged: logged.into(),
        }
    }

    /// All of it: for the ledger and for the user of a command.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// For logs.
    pub fn logged(&self) -> &str {
        &self.logged
    }

    /// The same reason behind other words.
    #[must_use]
    pub fn after(self, words: &str) -> Self {
        Self::quoting(
            words.to_owned() + &self.text,
            words.to_owned() + &self.logged,
        )
    }
}

/// A sentence that quotes no value.
impl From<String> for Reason {
    fn from(sentence: String) -> Self {
        Self::quoting(sentence.clone(), sentence)
    }
}
