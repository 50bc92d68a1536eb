//! What can be wrong with a configuration, and the sentence for it.

use super::values::ValueError;
use crate::names;
use std::fmt;

/// An error with its place.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    file: String,
    /// 0 where the whole file is meant.
    line: usize,
    kind: ErrorKind,
}

impl ConfigError {
    pub(super) fn new(file: &str, line: usize, kind: ErrorKind) -> ConfigError {
        ConfigError {
            file: file.to_owned(),
            line,
            kind,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.line == 0 {
            write!(f, "{}: {}", self.file, self.kind)
        } else {
            write!(f, "{}:{}: {}", self.file, self.line, self.kind)
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The line is no INI.
    Syntax(&'static str),
    KeyOutsideSection(String),
    RepeatedSection {
        header: String,
        first_line: usize,
    },
    RepeatedKey {
        key: String,
        first_line: usize,
    },
    UnknownSection {
        name: String,
        suggestion: Option<String>,
    },
    UnknownKey {
        key: String,
        section: String,
        /// Another section that has such a key.
        home: Option<&'static str>,
        suggestion: Option<String>,
    },
    Value {
        key: String,
        error: ValueError,
        /// The value looks as if a comment stood behind it.
        has_comment: bool,
    },
    /// A rule between the keys of a section is broken.
    Section(&'static str),
    Missing(&'static str),
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            ErrorKind::Syntax(why) | ErrorKind::Section(why) => f.write_str(why),
            ErrorKind::KeyOutsideSection(key) => {
                write!(f, "`{key}` stands before the first [section]")
            }
            ErrorKind::RepeatedSection { header, first_line } => {
                write!(f, "[{header}] was there before, in line {first_line}")
            }
            ErrorKind::RepeatedKey { key, first_line } => {
                write!(f, "`{key}` was given before, in line {first_line}")
            }
            ErrorKind::UnknownSection { name, suggestion } => {
                write!(f, "unknown section [{name}]")?;
                write_suggestion(f, suggestion.as_deref())
            }
            ErrorKind::UnknownKey {
                key,
                section,
                home,
                suggestion,
            } => {
                write!(f, "`{key}`: no such key in [{section}]")?;
                if let Some(home) = home {
                    return write!(f, "; it belongs in [{home}]");
                }
                write_suggestion(f, suggestion.as_deref())
            }
            ErrorKind::Value {
                key,
                error,
                has_comment,
            } => {
                write!(f, "`{key}`: {error}")?;
                if *has_comment {
                    f.write_str(" (a comment stands on its own line)")?;
                }
                Ok(())
            }
            ErrorKind::Missing(what) => write!(f, "{what} is needed"),
        }
    }
}

/// The known word that a mistyped one most likely meant.
pub fn suggestion<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    names::nearest(word, known).map(str::to_owned)
}

pub fn write_suggestion(f: &mut fmt::Formatter, suggestion: Option<&str>) -> fmt::Result {
    match suggestion {
        Some(word) => write!(f, "; did you mean `{word}`?"),
        None => Ok(()),
    }
}
