//! A TOML file that an operator wrote, and mistakes in it: where each is, and how to fix it.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{ReadError, Watch, fix};

/// A mistake in a file: what is wrong, on which line, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mistake {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1; absent when no single line is wrong.
    pub line: Option<usize>,
    /// What is wrong and how to fix it, in one sentence.
    pub what: String,
}

impl std::error::Error for Mistake {}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        write!(f, " {}", self.what)
    }
}

/// A TOML file in memory. It knows on which line a byte is, so that a [`Mistake`] can name the line.
#[derive(Debug, Clone)]
pub struct TomlFile {
    path: PathBuf,
    text: String,
}

impl TomlFile {
    /// Reads the file once it is whole. That takes up to a second after a change.
    ///
    /// # Errors
    /// Why it cannot be read now. [`ReadError::Unfinished`] comes after 5 s.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        Watch::new(path.to_owned()).next_version()
    }

    /// Takes `text` for the content of a file at `path`, which is not read.
    #[must_use]
    pub fn from_text(path: &Path, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }

    /// The whole text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// True when the file holds nothing but white space and comments.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    }

    /// Parses the text.
    ///
    /// # Errors
    /// The first mistake in the text: a syntax error, an unknown or missing field, or a value that `T` rejects.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Mistake> {
        toml::from_str(&self.text).map_err(|error| {
            let mut what = fix::reword(error.message());
            let the_fix = fix::fix(&what);
            if what == "duplicate key"
                && let Some(key) = error.span().and_then(|span| self.text.get(span))
            {
                what = format!("`{key}` is here for the second time");
            }
            // Values that check themselves say what to write.
            if !what.contains("; ") {
                what = format!("{what}; {the_fix}");
            }
            match error.span() {
                Some(span) => self.mistake(&span, what),
                None => self.mistake_as_a_whole(what),
            }
        })
    }

    /// A mistake at a span of bytes, as the parser reports them.
    #[must_use]
    pub fn mistake(&self, span: &Range<usize>, what: impl Into<String>) -> Mistake {
        Mistake { line: Some(self.line(span.start)), ..self.mistake_as_a_whole(what) }
    }

    /// A mistake that is on no single line.
    #[must_use]
    pub fn mistake_as_a_whole(&self, what: impl Into<String>) -> Mistake {
        Mistake { file: self.path.clone(), line: None, what: what.into() }
    }

    /// The line that a byte is on, counted from 1.
    #[must_use]
    pub fn line(&self, byte: usize) -> usize {
        1 + self.text.as_bytes().iter().take(byte).filter(|byte| **byte == b'\n').count()
    }
}
