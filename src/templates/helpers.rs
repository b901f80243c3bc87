//! What templates can call: one table, used by the walk over templates and by the registries alike.
//!
//! All helpers return values; printing, and with it escaping, is the engine's. Invariant: no helper fails because of an
//! odd value, but for `url`: an address that is no web address must not become a link.

use chrono_tz::Tz;
use handlebars::{Context, Handlebars, Helper, HelperDef, RenderContext, RenderError, RenderErrorReason, ScopedJson};
use serde_json::Value;
use url::Url;

use super::figures::{self, Style};

/// One helper, as templates may call it.
pub(super) struct HelperSpec {
    pub(super) name: &'static str,
    pub(super) least: usize,
    pub(super) most: usize,
    pub(super) block: bool,
    pub(super) include_zero: bool,
}

const fn inline(name: &'static str, least: usize, most: usize) -> HelperSpec {
    HelperSpec { name, least, most, block: false, include_zero: false }
}

const fn block(name: &'static str, include_zero: bool) -> HelperSpec {
    HelperSpec { name, least: 1, most: 1, block: true, include_zero }
}

/// All of them. The engine's `log` and `raw` are missing on purpose: a log must not hold people's data.
const HELPERS: &[HelperSpec] = &[
    block("if", true),
    block("unless", true),
    block("each", false),
    block("with", false),
    inline("lookup", 2, 2),
    inline("eq", 2, 2),
    inline("ne", 2, 2),
    inline("gt", 2, 2),
    inline("gte", 2, 2),
    inline("lt", 2, 2),
    inline("lte", 2, 2),
    inline("and", 1, 16),
    inline("or", 1, 16),
    inline("not", 1, 1),
    inline("len", 1, 1),
    inline("money", 1, 1),
    inline("number", 1, 1),
    inline("percent", 1, 1),
    inline("date", 1, 1),
    inline("datetime", 1, 1),
    inline("default", 2, 2),
    inline("percent_of", 2, 2),
    inline("url", 1, 2),
    inline("lines", 1, 1),
    inline("plural", 3, 3),
    inline("month_name", 1, 1),
];

/// The helper of this name.
pub(super) fn find(name: &str) -> Option<&'static HelperSpec> {
    HELPERS.iter().find(|helper| helper.name == name)
}

/// Why rendering was stopped by us and not by the engine. Travels inside the engine's error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stop {
    #[error("not an http(s) URL")]
    NotAUrl,
    #[error("larger than the limit")]
    TooLarge,
    #[error("repeats too much")]
    TooMuchWork,
    #[error("a parameter is missing")]
    ParameterMissing,
}

impl From<Stop> for RenderError {
    fn from(stop: Stop) -> Self {
        RenderErrorReason::NestedError(Box::new(stop)).into()
    }
}

/// Registers what does not depend on the mail that is rendered. Figures are written in this style.
pub(super) fn register(registry: &mut Handlebars<'static>, style: Style) {
    registry.unregister_helper("log");
    registry.unregister_helper("raw");
    let mut add = |name, function: fn(&Arguments<'_, '_>, Style) -> Result<Value, Stop>| {
        registry.register_helper(name, Box::new(Function { style, function }));
    };
    add("money", |arguments, style| Ok(figures::money(arguments.get(0)?, style).into()));
    add("number", |arguments, style| Ok(figures::number(arguments.get(0)?, style).into()));
    add("percent", |arguments, style| Ok(figures::percent(arguments.get(0)?, style).into()));
    add("month_name", |arguments, style| Ok(figures::month_name(arguments.get(0)?, style).into()));
    add("percent_of", |arguments, _| Ok(figures::percent_of(arguments.get(0)?, arguments.get(1)?).into()));
    add("lines", |arguments, _| Ok(figures::lines(arguments.get(0)?).into()));
    add("default", |arguments, _| {
        let first = arguments.get(0)?;
        let absent = first.is_null() || first.as_str().is_some_and(str::is_empty);
        Ok(if absent { arguments.get(1)?.clone() } else { first.clone() })
    });
    add("plural", |arguments, style| {
        let (one, many) = (figures::text(arguments.get(1)?), figures::text(arguments.get(2)?));
        Ok(figures::plural(arguments.get(0)?, &one, &many, style).into())
    });
    add("url", |arguments, _| {
        let path = arguments.get(1).ok().map(figures::text);
        url(&figures::text(arguments.get(0)?), path.as_deref()).map(Value::from)
    });
}

/// Registers what depends on the mail: dates are shown in the configured zone.
pub(super) fn register_dates(context: &mut RenderContext<'_, '_>, style: Style, zone: Tz) {
    context.register_local_helper("date", Box::new(Dates { style, zone, format: figures::date }));
    context.register_local_helper("datetime", Box::new(Dates { style, zone, format: figures::datetime }));
}

/// A web address, with `path` appended by exactly one slash. Anything but http and https is refused.
fn url(text: &str, path: Option<&str>) -> Result<String, Stop> {
    let text = text.trim();
    let mut url = Url::parse(text).map_err(|_| Stop::NotAUrl)?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err(Stop::NotAUrl);
    }
    match path.map(|path| path.trim_start_matches('/')).filter(|path| !path.is_empty()) {
        Some(path) => {
            let joined = format!("{}/{path}", url.path().trim_end_matches('/'));
            url.set_path(&joined);
        }
        // Kept as written where that is safe: people recognise their address, and a slash more would look odd.
        None if text.bytes().all(|b| b.is_ascii_graphic() && !b"\"'<>`{}|\\^".contains(&b)) => {
            return Ok(text.to_owned());
        }
        None => {}
    }
    Ok(url.into())
}

/// The values a helper is called with.
struct Arguments<'a, 'rc>(&'a Helper<'rc>);

impl Arguments<'_, '_> {
    fn get(&self, index: usize) -> Result<&Value, Stop> {
        match self.0.param(index) {
            Some(parameter) if !parameter.is_value_missing() => Ok(parameter.value()),
            _ => Err(Stop::ParameterMissing),
        }
    }
}

struct Function {
    style: Style,
    function: fn(&Arguments<'_, '_>, Style) -> Result<Value, Stop>,
}

impl HelperDef for Function {
    fn call_inner<'reg: 'rc, 'rc>(
        &self,
        helper: &Helper<'rc>,
        _: &'reg Handlebars<'reg>,
        _: &'rc Context,
        _: &mut RenderContext<'reg, 'rc>,
    ) -> Result<ScopedJson<'rc>, RenderError> {
        Ok(ScopedJson::Derived((self.function)(&Arguments(helper), self.style)?))
    }
}

struct Dates {
    style: Style,
    zone: Tz,
    format: fn(&Value, Style, Tz) -> String,
}

impl HelperDef for Dates {
    fn call_inner<'reg: 'rc, 'rc>(
        &self,
        helper: &Helper<'rc>,
        _: &'reg Handlebars<'reg>,
        _: &'rc Context,
        _: &mut RenderContext<'reg, 'rc>,
    ) -> Result<ScopedJson<'rc>, RenderError> {
        Ok(ScopedJson::Derived((self.format)(Arguments(helper).get(0)?, self.style, self.zone).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn web_addresses() {
        for (text, path, want) in [
            ("https://status.rgz.bj", None, Some("https://status.rgz.bj")),
            (" https://a.bj/x?y=1&z=2#f ", None, Some("https://a.bj/x?y=1&z=2#f")),
            ("http://a.bj/é è", None, Some("http://a.bj/%C3%A9%20%C3%A8")),
            ("https://a.bj/\"onload=x", None, Some("https://a.bj/%22onload=x")),
            ("HTTPS://a.bj", None, Some("HTTPS://a.bj")),
            ("https://a.bj", Some("/cutover"), Some("https://a.bj/cutover")),
            ("https://a.bj/", Some("/cutover"), Some("https://a.bj/cutover")),
            ("https://a.bj//", Some("cutover"), Some("https://a.bj/cutover")),
            ("https://a.bj/x?y=1", Some("/cutover"), Some("https://a.bj/x/cutover?y=1")),
            ("https://a.bj/x", Some(""), Some("https://a.bj/x")),
            ("javascript:alert(1)", None, None),
            ("java\nscript:alert(1)", None, None),
            ("data:text/html,x", None, None),
            ("ftp://a.bj", None, None),
            ("//a.bj", None, None),
            ("www.a.bj", None, None),
            ("https://", None, None),
            ("", None, None),
        ] {
            assert_eq!(url(text, path).ok().as_deref(), want, "{text} {path:?}");
        }
    }

    #[test]
    fn the_table_and_the_registry_agree() {
        let mut registry = Handlebars::new();
        register(&mut registry, Style::French);
        let per_mail = ["each", "date", "datetime"];
        for helper in HELPERS.iter().filter(|helper| !per_mail.contains(&helper.name)) {
            let source = format!("{{{{#if ({} {})}}}}{{{{/if}}}}", helper.name, "1 ".repeat(helper.least));
            let outcome = registry.render_template(&source, &());
            let known = !outcome.is_err_and(|error| matches!(error.reason(), RenderErrorReason::HelperNotFound(_)));
            assert!(known, "{}", helper.name);
        }
    }
}
