//! Which templates are marketing: for these the whole suppression list counts.

use serde_json::{Map, Value};

/// The category of each marketing template, by its key. A template that is not among them is transactional.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MarketingTemplates(Map<String, Value>);

impl MarketingTemplates {
    /// Adds a template.
    pub fn insert(&mut self, key: String, category: String) {
        self.0.insert(key, Value::String(category));
    }

    /// As statements take it: key to category.
    pub(in crate::store) fn as_json(&self) -> Value {
        Value::Object(self.0.clone())
    }
}
