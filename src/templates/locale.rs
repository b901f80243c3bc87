//! Which variant a reader gets: the closest that there is, as a whole. Pure.
//!
//! Invariant: one mail is in one language. A variant has all three parts, and what a part prints by itself (figures, dates,
//! the document's `lang`) follows the variant, not the request.

/// Whether a text names a locale: a BCP 47 tag with a lower-case language, for instance `fr` or `fr-BJ`.
#[must_use]
pub fn is_locale(text: &str) -> bool {
    let mut subtags = text.split('-');
    text.len() <= 35
        && subtags
            .next()
            .is_some_and(|first| (2..=3).contains(&first.len()) && first.bytes().all(|b| b.is_ascii_lowercase()))
        && subtags.all(|tag| (2..=8).contains(&tag.len()) && tag.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// The one of these locales that suits a reader who asked for `asked` (RFC 4647 §3.4): the same, else the same without its
/// last subtag, and so on: `en-GB`, then `en`. Producers write `en_GB` and `EN` as well.
pub(super) fn best<'a>(asked: &str, known: &(impl Iterator<Item = &'a str> + Clone)) -> Option<&'a str> {
    let asked = asked.replace('_', "-");
    let mut range = asked.as_str();
    loop {
        if let Some(found) = known.clone().find(|locale| locale.eq_ignore_ascii_case(range)) {
            return Some(found);
        }
        range = range.rsplit_once('-')?.0;
    }
}

/// The locales whose partials a variant is made of, the most general first: `en`, then `en-GB`.
pub(super) fn from_general(locale: &str) -> impl Iterator<Item = &str> {
    let ends = locale.match_indices('-').map(|(at, _)| at).chain([locale.len()]);
    ends.map(|end| &locale[..end])
}

/// A file's name in a locale: `html.en.hbs` of `html.hbs`. Others than parts and partials are the same in every locale.
pub(super) fn file_in(file: &str, locale: &str) -> String {
    match file.strip_suffix(".hbs") {
        Some(stem) => format!("{stem}.{locale}.hbs"),
        None => file.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_get_the_closest() {
        let known = ["en", "fr-BJ", "pt-BR"];
        for (asked, want) in [
            ("en", Some("en")),
            ("en-GB", Some("en")),
            ("EN_gb", Some("en")),
            ("en-Latn-GB", Some("en")),
            ("fr-BJ", Some("fr-BJ")),
            ("fr-bj-x", Some("fr-BJ")),
            ("fr", None),
            ("pt", None),
            ("english", None),
            ("", None),
            ("-", None),
        ] {
            assert_eq!(best(asked, &known.into_iter()), want, "{asked}");
        }
    }

    #[test]
    fn names() {
        assert!(["fr", "fr-BJ", "yor", "zh-Hant-TW"].into_iter().all(is_locale));
        assert!(!["", "f", "FR", "fr_BJ", "fr-", "french", "fr-B", "fr-é"].into_iter().any(is_locale));
        assert_eq!(from_general("zh-Hant-TW").collect::<Vec<_>>(), ["zh", "zh-Hant", "zh-Hant-TW"]);
        assert_eq!(file_in("_shared/html/layout.hbs", "en"), "_shared/html/layout.en.hbs");
        assert_eq!(file_in("sample.json", "en"), "sample.json");
    }
}
