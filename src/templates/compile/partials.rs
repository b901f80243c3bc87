//! Templates share their partials, which are most of what is parsed: what was parsed lately is not parsed again.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, PoisonError},
};

use handlebars::Template;

/// Bytes of sources whose parsed form is kept at most.
const SOURCE_BYTES_MAX: usize = 256 * 1024;

/// The partial of this text, by `parse` if it was not parsed lately.
pub(super) fn parsed(text: &str, parse: impl FnOnce() -> Option<Template>) -> Option<Template> {
    static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let found = known().templates.get(text).cloned();
    if found.is_some() {
        return found;
    }
    let template = parse()?;
    known().keep(text, &template);
    Some(template)
}

/// What was parsed, by its text.
#[derive(Default)]
struct Known {
    templates: HashMap<Box<str>, Template>,
    source_bytes: usize,
}

impl Known {
    /// Forgets all the others when it becomes too much: whoever is compiled next brings its own again.
    fn keep(&mut self, text: &str, template: &Template) {
        if text.len() > SOURCE_BYTES_MAX {
            return;
        }
        if self.source_bytes + text.len() > SOURCE_BYTES_MAX {
            *self = Self::default();
        }
        if self.templates.insert(text.into(), template.clone()).is_none() {
            self.source_bytes += text.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(text: &str) -> Option<Template> {
        Template::compile(text).ok()
    }

    #[test]
    fn what_was_parsed_is_not_parsed_again_and_is_the_same() {
        let text = "a partial of this test: {{#if x}}{{> y}}{{/if}}";
        let first = parsed(text, || compile(text));
        assert!(first.is_some());
        assert_eq!(parsed(text, || unreachable!("it is known")), first);
        assert_eq!(first, compile(text));
    }

    #[test]
    fn a_text_that_cannot_be_parsed_is_looked_at_each_time() {
        let text = "a partial of this test: {{#if x}}";
        assert_eq!(parsed(text, || compile(text)), None);
        let mut is_asked = false;
        assert_eq!(
            parsed(text, || {
                is_asked = true;
                None
            }),
            None
        );
        assert!(is_asked);
    }

    #[test]
    fn no_more_is_kept_than_the_bound() {
        let mut known = Known::default();
        for number in 0..10 {
            let text = format!("{number}{}", "x".repeat(SOURCE_BYTES_MAX / 4));
            known.keep(&text, &compile(&text).expect("plain words"));
            known.keep(&text, &compile(&text).expect("plain words"));
            let kept: usize = known.templates.keys().map(|text| text.len()).sum();
            assert_eq!(known.source_bytes, kept);
            assert!(kept <= SOURCE_BYTES_MAX && known.templates.contains_key(text.as_str()));
        }
        let large = "x".repeat(SOURCE_BYTES_MAX + 1);
        known.keep(&large, &compile(&large).expect("plain words"));
        assert!(!known.templates.contains_key(large.as_str()));
    }
}
