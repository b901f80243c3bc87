//! The only door to handlebars: template sources become compiled templates, and those render mails.
//!
//! Nothing here reads a database or a queue. The store keeps versions as [`TemplateSource`]s, the application feeds the
//! [`Catalogue`], the pipeline asks it for a [`CompiledTemplate`] and renders.
//!
//! Invariants:
//! - nothing is rendered that was not walked first ([`CompiledTemplate::compile`]): handlebars' strict mode has holes, and
//!   partials that include each other would end the process;
//! - no error repeats the value of a variable: values are people's data.

use std::fmt;

/// What a version of a template is made of.
pub mod source;

/// A folder of templates on disk.
pub mod folder;

/// `manifest.toml`.
pub mod manifest;

/// What can be told of a source before it is parsed.
mod syntax;

/// What a parsed template uses, and whether it may.
mod walk;

/// Sources made ready to render.
pub mod compile;

/// What templates can call.
mod helpers;

/// Amounts, numbers and dates as the readers of a language write them.
mod figures;

/// Which variant a reader gets.
mod locale;

/// Styles moved from `<style>` to the elements, where every mail program heeds them.
mod inline;

/// The `each` that counts.
mod budget;

/// Variables made into subject, HTML and text.
pub mod render;

/// What is refused at save time.
pub mod lint;

/// The templates of a running daemon.
pub mod catalogue;

pub use catalogue::Catalogue;
pub use compile::CompiledTemplate;
pub use folder::{FolderFault, FolderFaults, read_folder};
pub use lint::{HTML_BYTES_MAX, Inspection, compile_sound, inspect, lint};
pub use locale::is_locale;
pub use manifest::parse_manifest;
pub use render::{AttachedFile, RenderError, System};
pub use source::{TemplateSource, Variant, is_key};

/// The three things a template makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// One line, nothing escaped.
    Subject,
    /// A document, everything escaped.
    Html,
    /// Lines, nothing escaped.
    Text,
}

impl Part {
    /// In the order they are rendered: the other two may print the subject.
    pub const ALL: [Self; 3] = [Self::Subject, Self::Html, Self::Text];

    /// The file it is kept in.
    #[must_use]
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Subject => "subject.hbs",
            Self::Html => "html.hbs",
            Self::Text => "text.hbs",
        }
    }

    /// The file that one of its partials is kept in.
    fn partial_file_name(self, partial: &str) -> String {
        let kind = if self == Self::Html { "html" } else { "text" };
        format!("_shared/{kind}/{partial}.hbs")
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file_name())
    }
}

/// One thing that is wrong with a template, for the person who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct LintFault {
    /// The file: `html.hbs`, `_shared/text/layout.hbs`, `manifest.toml`, `sample.json`.
    pub part: String,
    /// Counted from 1; nothing when it is about the file as a whole.
    pub line: Option<usize>,
    /// What is wrong, and what would be right.
    pub words: String,
}

impl LintFault {
    pub(crate) fn new(part: impl Into<String>, line: impl Into<Option<usize>>, words: impl Into<String>) -> Self {
        Self { part: part.into(), line: line.into(), words: words.into() }
    }
}

impl fmt::Display for LintFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.part, self.words),
            None => write!(f, "{}: {}", self.part, self.words),
        }
    }
}
