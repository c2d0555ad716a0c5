//! Why something failed: an error as one paragraph; and in two texts, of which the ledger keeps all, and a log has what quotes
//! no value of a row.

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

/// An error and each cause behind it once, as one paragraph.
pub fn paragraph(error: &anyhow::Error) -> String {
    let mut paragraph = String::new();
    for cause in error.chain().map(ToString::to_string) {
        // The text of some errors has their cause.
        if paragraph.ends_with(&cause) || (cause.len() >= SENTENCE && paragraph.contains(&cause)) {
            continue;
        }
        if !paragraph.is_empty() {
            paragraph += ": ";
        }
        paragraph += &cause;
    }
    paragraph
}

/// From this length on, a text that stands in another one is not there by chance.
const SENTENCE: usize = 12;

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn paragraph_has_each_cause_once() {
        let error = anyhow!("no route").context("connect: no route");
        assert_eq!(
            paragraph(&error.context("cannot send")),
            "cannot send: connect: no route"
        );
        let refused = "Connection refused (os error 111)";
        let error = anyhow!(refused).context(format!("IO error: {refused}; check the address"));
        assert_eq!(
            paragraph(&error.context("cannot connect")),
            format!("cannot connect: IO error: {refused}; check the address")
        );
        let error = anyhow!("is it?").context("what is it").context("it is");
        assert_eq!(paragraph(&error), "it is: what is it: is it?");
    }
}
