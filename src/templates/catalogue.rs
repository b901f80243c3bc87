//! The templates of a running daemon: the active version of each key, and the other versions that mails still name.
//!
//! Readers take a snapshot without a lock and keep it for as long as they render; a change swaps the snapshot.
//! Invariant: a version never changes. What was put in under a key and a number stays what it is, whatever is active.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arc_swap::ArcSwap;

use super::CompiledTemplate;

/// Most versions kept for one key besides the active one. Older ones are loaded again when a mail names them.
const VERSIONS_MAX: usize = 16;

/// Compiled templates, by key and version.
#[derive(Default)]
pub struct Catalogue {
    snapshot: ArcSwap<Snapshot>,
}

#[derive(Default, Clone)]
struct Snapshot {
    generation: i64,
    entries: HashMap<String, Entry>,
}

#[derive(Default, Clone)]
struct Entry {
    active: Option<Arc<CompiledTemplate>>,
    versions: BTreeMap<i32, Arc<CompiledTemplate>>,
}

impl Entry {
    fn keep(&mut self, template: Arc<CompiledTemplate>) {
        self.versions.insert(template.version(), template);
        while self.versions.len() > VERSIONS_MAX {
            self.versions.pop_first();
        }
    }
}

impl Catalogue {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The version of `key` that new mails get.
    #[must_use]
    pub fn active(&self, key: &str) -> Option<Arc<CompiledTemplate>> {
        self.snapshot.load().entries.get(key)?.active.clone()
    }

    /// This very version of `key`, active or not; nothing when it was not put in (yet).
    #[must_use]
    pub fn version(&self, key: &str, version: i32) -> Option<Arc<CompiledTemplate>> {
        let snapshot = self.snapshot.load();
        let entry = snapshot.entries.get(key)?;
        entry.active.as_ref().filter(|active| active.version() == version).or(entry.versions.get(&version)).cloned()
    }

    /// Keeps a version at hand without making it active.
    pub fn insert(&self, template: &Arc<CompiledTemplate>) {
        self.snapshot.rcu(|old| {
            let mut new = Snapshot::clone(old);
            new.entries.entry(template.key().to_owned()).or_default().keep(Arc::clone(template));
            new
        });
    }

    /// What [`Catalogue::replace_active`] was last told.
    #[must_use]
    pub fn generation(&self) -> i64 {
        self.snapshot.load().generation
    }

    /// Makes these the active versions, one for each key, and no others. What was active stays at hand. Whoever asked the
    /// database before somebody else did, and comes later, changes nothing.
    pub fn replace_active(&self, generation: i64, active: &[Arc<CompiledTemplate>]) {
        self.snapshot.rcu(|old| {
            if generation < old.generation {
                return Arc::clone(old);
            }
            let mut new = Snapshot { generation, ..Snapshot::clone(old) };
            for entry in new.entries.values_mut() {
                if let Some(former) = entry.active.take() {
                    entry.keep(former);
                }
            }
            for template in active {
                new.entries.entry(template.key().to_owned()).or_default().active = Some(Arc::clone(template));
            }
            Arc::new(new)
        });
    }

    /// Every active template, by key.
    #[must_use]
    pub fn all_active(&self) -> Vec<Arc<CompiledTemplate>> {
        let mut all: Vec<_> = self.snapshot.load().entries.values().filter_map(|entry| entry.active.clone()).collect();
        all.sort_by(|a, b| a.key().cmp(b.key()));
        all
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn compiled(key: &str, version: i32) -> Arc<CompiledTemplate> {
        let manifest =
            "description = \"x\"\ncategory = \"sla\"\npriority = \"P1\"\ndeadline_seconds = 60\nlocale = \"fr\"";
        let source = serde_json::from_value(json!({
            "key": key, "manifest_toml": manifest, "subject": "s", "html": "h", "text": "t"
        }))
        .expect("a source");
        Arc::new(CompiledTemplate::compile(&source, version, 3).expect("compiles"))
    }

    #[test]
    fn what_was_active_stays_at_hand() {
        let catalogue = Catalogue::new();
        assert!(catalogue.active("a").is_none() && catalogue.version("a", 1).is_none());
        catalogue.replace_active(1, &[compiled("a", 1), compiled("b", 1)]);
        catalogue.replace_active(2, &[compiled("a", 2)]);
        catalogue.replace_active(1, &[compiled("a", 1)]);
        let number = |template: Option<Arc<CompiledTemplate>>| template.map(|template| template.version());
        assert_eq!(number(catalogue.active("a")), Some(2), "whoever was overtaken changes nothing");
        assert_eq!(number(catalogue.version("a", 1)), Some(1));
        assert_eq!(number(catalogue.version("a", 2)), Some(2));
        assert_eq!(number(catalogue.version("a", 3)), None);
        assert_eq!(number(catalogue.active("b")), None, "it was not named again");
        assert_eq!(number(catalogue.version("b", 1)), Some(1));
        catalogue.insert(&compiled("c", 9));
        assert_eq!((number(catalogue.active("c")), number(catalogue.version("c", 9))), (None, Some(9)));
        assert_eq!(catalogue.all_active().len(), 1);
    }

    #[test]
    fn old_versions_do_not_pile_up() {
        let catalogue = Catalogue::new();
        for version in 1..=40 {
            catalogue.replace_active(version.into(), &[compiled("a", version)]);
        }
        assert!(catalogue.version("a", 1).is_none());
        assert!(catalogue.version("a", 39).is_some() && catalogue.version("a", 40).is_some());
    }
}
