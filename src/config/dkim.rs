//! The keys that sign mails: one from the environment's `DKIM_KEY_FILE`, or the file's list.
//!
//! Invariant: a key that is configured is read, sound and of use here, or a fault or warning says why not.

use std::{path::Path, sync::Arc};

use super::{
    Fault,
    file::ListedTable,
    parse,
    read::{Reader, Recorded},
    relays::{accepts, value},
    source::content,
};
use crate::mime::dkim::SigningKey;

/// Settings of the only key.
const SINGLE: [&str; 3] = ["DKIM_KEY_FILE", "DKIM_SELECTOR", "DKIM_DOMAIN"];

/// A key as it is written down.
struct Written {
    /// What messages call its file.
    setting: String,
    help: String,
    domain: Option<String>,
    selector: String,
    path: String,
}

/// Those that sign the mails of `SMTP_FROM_EMAIL`.
pub(super) fn dkim(r: &mut Reader<'_>) -> Result<Vec<Arc<SigningKey>>, Recorded> {
    let sender = r.peek("SMTP_FROM_EMAIL", parse::address).map(|address| address.domain().to_owned());
    let tables = &r.settings.file.dkim;
    let written = if tables.is_empty() || r.settings.environment_has("DKIM_KEY_FILE") {
        if !tables.is_empty() {
            r.warn("the DKIM keys of the settings file are not used: DKIM_KEY_FILE of the environment wins");
        }
        single(r).map(|key| key.into_iter().collect::<Vec<_>>())
    } else {
        for name in SINGLE {
            if r.settings.environment_has(name) {
                r.warn(format!("{name} is not used: the settings file lists the DKIM keys"));
            }
        }
        let listed: Vec<_> = tables.iter().map(|table| listed(r, table)).collect();
        listed.into_iter().collect()
    };
    // Each is read, so that all faults come at once.
    let loaded: Vec<_> = written?.into_iter().map(|key| load(r, key, sender.as_deref())).collect();
    let keys: Vec<_> = loaded.into_iter().collect::<Result<_, _>>()?;
    let Some(sender) = sender else { return Ok(Vec::new()) };
    let (ours, others): (Vec<_>, Vec<_>) = keys.into_iter().partition(|(_, key)| key.signs_for(&sender));
    for (setting, key) in &others {
        if ours.is_empty() {
            r.record(Fault {
                setting: setting.clone(),
                problem: format!("is a key of {}, which cannot sign for {sender}, the sender's domain", key.domain()),
                accepts: format!("accepts {}", accepts("DKIM_DOMAIN")),
            });
        } else {
            r.warn(format!("{setting}: the key {} signs nothing: no mail is sent from its domain", key.record_name()));
        }
    }
    for (index, (setting, key)) in ours.iter().enumerate() {
        if ours[..index].iter().any(|(_, other)| other.record_name() == key.record_name()) {
            r.record(Fault {
                setting: setting.clone(),
                problem: "has the domain and selector of another key".to_owned(),
                accepts: "accepts a selector of its own for each key".to_owned(),
            });
        }
    }
    Ok(ours.into_iter().map(|(_, key)| Arc::new(key)).collect())
}

fn single(r: &mut Reader<'_>) -> Result<Option<Written>, Recorded> {
    let path = r.read_optional("DKIM_KEY_FILE", parse::line(4096));
    let selector = r.read_optional("DKIM_SELECTOR", parse::selector);
    let domain = r.read_optional("DKIM_DOMAIN", parse::domain);
    match (path?, selector?, domain?) {
        (Some(path), Some(selector), domain) => Ok(Some(Written {
            setting: "DKIM_KEY_FILE".to_owned(),
            help: format!("accepts {}", accepts("DKIM_KEY_FILE")),
            domain,
            selector,
            path,
        })),
        (None, None, None) => Ok(None),
        (Some(_), None, _) => Err(r.fault("DKIM_SELECTOR", "is missing although DKIM_KEY_FILE is set")),
        (None, _, _) => Err(r.fault("DKIM_KEY_FILE", "is missing although DKIM_SELECTOR or DKIM_DOMAIN is set")),
    }
}

fn listed(r: &mut Reader<'_>, table: &ListedTable) -> Result<Written, Recorded> {
    let domain = value(r, table, "domain", accepts("DKIM_DOMAIN"), parse::domain);
    let selector = value(r, table, "selector", accepts("DKIM_SELECTOR"), parse::selector);
    let path = value(r, table, "key_file", accepts("DKIM_KEY_FILE"), parse::line(4096));
    let setting = |key: &str| format!("{}.{key} (in {})", table.key, r.settings.file.path);
    let missing = |key: &str, of: &str| Fault {
        setting: setting(key),
        problem: "is missing".to_owned(),
        accepts: format!("accepts {}", accepts(of)),
    };
    let (no_selector, no_path) = (missing("selector", "DKIM_SELECTOR"), missing("key_file", "DKIM_KEY_FILE"));
    let setting = setting("key_file");
    match (domain?, selector?, path?) {
        (domain, Some(selector), Some(path)) => {
            Ok(Written { setting, help: format!("accepts {}", accepts("DKIM_KEY_FILE")), domain, selector, path })
        }
        (_, None, _) => Err(r.record(no_selector)),
        (_, _, None) => Err(r.record(no_path)),
    }
}

fn load(r: &mut Reader<'_>, written: Written, sender: Option<&str>) -> Result<(String, SigningKey), Recorded> {
    let Written { setting, help, domain, selector, path } = written;
    let path = Path::new(&path);
    let domain = domain.or_else(|| sender.map(str::to_owned)).unwrap_or_default();
    let key = content(path).map_err(|problem| format!("names a file that {problem}")).and_then(|pem| {
        SigningKey::from_pem(domain, selector, &pem).map_err(|error| format!("names a file that {error}"))
    });
    match key {
        Ok(key) => {
            if others_can_read(path) {
                r.warn(format!(
                    "{setting}: everybody on this machine can read the key; take that away (chmod o= FILE)"
                ));
            }
            Ok((setting, key))
        }
        Err(problem) => Err(r.record(Fault { setting, problem, accepts: help })),
    }
}

#[cfg(unix)]
pub(super) fn others_can_read(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

#[cfg(not(unix))]
pub(super) fn others_can_read(_: &Path) -> bool {
    false
}
