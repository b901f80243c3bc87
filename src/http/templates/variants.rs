//! A template's other locales, as the API takes and gives them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::templates::Variant;

/// A template in another locale: all of it, with every partial that it reaches.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VariantBody {
    subject: String,
    html_content: String,
    text_content: String,
    /// The partials of the HTML part by name, all of them
    #[serde(default)]
    partials_html: BTreeMap<String, String>,
    /// The partials of the text part by name, all of them
    #[serde(default)]
    partials_text: BTreeMap<String, String>,
}

impl From<Variant> for VariantBody {
    fn from(variant: Variant) -> Self {
        let Variant { subject, html, text, partials_html, partials_text } = variant;
        Self { subject, html_content: html, text_content: text, partials_html, partials_text }
    }
}

impl From<VariantBody> for Variant {
    fn from(body: VariantBody) -> Self {
        let VariantBody { subject, html_content, text_content, partials_html, partials_text } = body;
        Self { subject, html: html_content, text: text_content, partials_html, partials_text }
    }
}

/// All of them, by locale.
pub(super) fn written(variants: BTreeMap<String, Variant>) -> BTreeMap<String, VariantBody> {
    variants.into_iter().map(|(locale, variant)| (locale, variant.into())).collect()
}

/// The same the other way.
pub(super) fn read(variants: BTreeMap<String, VariantBody>) -> BTreeMap<String, Variant> {
    variants.into_iter().map(|(locale, body)| (locale, body.into())).collect()
}
