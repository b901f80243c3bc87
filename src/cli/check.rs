//! `postrider check`: is everything in order that a mail needs, and if not, what is wrong?

use std::{net::IpAddr, process::ExitCode, sync::Arc};

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use url::Url;

use super::Session;
use crate::{
    broker::{BrokerError, Link, Topology, link::Purpose},
    config::{Config, RateLimit, TopologyMode},
    email::{TemplateKind, unsubscribe::PATH},
    feedback::{fetch::SystemResolver, signers::Signers, sns::SignatureVersion},
    http::marketing_note,
    mime::dkim::SigningKey,
    objects::{Objects, Probed},
    reload,
    smtp::Relays,
    store::Store,
    templates::Catalogue,
};

/// As EMAIL_MAX_ATTACHMENT_SIZE_MB counts.
const MB: usize = 1024 * 1024;
/// Larger attachments are better sent by reference.
const INLINE_MB: usize = 1;

struct Finding {
    what: String,
    result: Result<String, String>,
}

pub(super) async fn run(context: &Session) -> anyhow::Result<ExitCode> {
    context.log_quietly();
    // Wrong settings end it here, all of them listed: the rest could only be guessed at.
    let config = context.settings.config()?;
    let mut findings = vec![Finding { what: "settings".to_owned(), result: Ok("in order".to_owned()) }];
    findings.push(Finding { what: "broker".to_owned(), result: broker(&config).await });
    let Looked { database, templates, notes: in_database } = database(&config).await;
    findings.push(Finding { what: "database".to_owned(), result: database });
    findings.push(Finding { what: "templates".to_owned(), result: templates });
    findings.extend(relays(&config).await);
    findings.extend(webhook(&config));
    findings.extend(attachment_places(&config).await);
    findings.extend(unsubscribing(&config));
    findings.extend(config.dkim.iter().map(|key| signing(key)));

    let marks = if config.feedback_addr().is_some() { marks(&config).await } else { None };
    let notes: Vec<String> = config
        .warnings
        .iter()
        .cloned()
        .chain(unprotected(&config))
        .chain(in_database)
        .chain(attachments(&config))
        .chain(marks)
        .collect();
    let is_sound = findings.iter().all(|f| f.result.is_ok());
    if context.is_json {
        let items: Vec<Value> = findings
            .iter()
            .map(|f| match &f.result {
                Ok(words) => json!({ "what": f.what, "ok": true, "words": words }),
                Err(words) => json!({ "what": f.what, "ok": false, "words": words }),
            })
            .collect();
        Session::print_json(&json!({ "ok": is_sound, "items": items, "warnings": notes }))?;
    } else {
        for finding in &findings {
            match &finding.result {
                Ok(words) => outln!("ok     {:<12} {words}", finding.what),
                Err(words) => outln!("WRONG  {:<12} {words}", finding.what),
            }
        }
        for note in &notes {
            outln!("note   {note}");
        }
    }
    Ok(if is_sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Lines to other machines that anybody on the way could listen to, or answer.
fn unprotected(config: &Config) -> Vec<String> {
    let elsewhere = |url: &SecretString| {
        let url = Url::parse(url.expose_secret()).ok()?;
        let host = url.host_str().filter(|host| !host.is_empty())?.to_owned();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let is_here = bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        (!is_here).then_some((url, host))
    };
    let mut notes = Vec::new();
    if let Some((url, host)) = elsewhere(&config.broker.url)
        && url.scheme() == "amqp"
    {
        notes.push(format!("AMQP_URL: the password and every mail travel to {host} unencrypted; use amqps://"));
    }
    if let Some((url, host)) = elsewhere(&config.store.url) {
        let mode = url.query_pairs().find(|(name, _)| name == "sslmode" || name == "ssl-mode");
        let mode = mode.map_or_else(|| "prefer".to_owned(), |(_, mode)| mode.into_owned());
        if !mode.starts_with("verify-") {
            notes.push(format!(
                "DATABASE_URL: with sslmode={mode} nobody makes sure that it is {host} who answers; use sslmode=verify-full"
            ));
        }
    }
    notes
}

/// What is allowed may still be unwise.
fn attachments(config: &Config) -> Option<String> {
    let limit_mb = config.pipeline.attachment_bytes_max / MB;
    (limit_mb > INLINE_MB).then(|| {
        format!(
            "EMAIL_MAX_ATTACHMENT_SIZE_MB allows {limit_mb} MB: attachments above {INLINE_MB} MB are better sent by reference. \
             Inline they pass through the broker's memory and disk, and a lane holds few such messages at once"
        )
    })
}

/// An event that returns nothing of its mail is matched by the relay's id alone, which an outcome that got lost never told.
async fn marks(config: &Config) -> Option<String> {
    let store = Store::new(&config.store, config.pipeline.lease).ok()?;
    let seen = store.feedback_marks().await.ok()?;
    if seen.events == 0 {
        return Some("no event of SES has come yet: is the SNS topic subscribed to this daemon's webhook?".to_owned());
    }
    (seen.with_marks == 0).then(|| {
        format!(
            "none of the last {} events of SES gave a header or a tag of its mail back, so an unknown outcome cannot be \
             settled by them: turn on \"include original headers\" for the notifications, or publish events through a \
             configuration set, which returns the message's tags",
            seen.events
        )
    })
}

/// Nothing when none is wanted. SNS says where its certificate lies only when it sends something.
fn webhook(config: &Config) -> Option<Finding> {
    let addr = config.feedback_addr()?;
    let result = match Signers::new(&config.sns, Arc::new(SystemResolver)) {
        Ok(_) => {
            let certificates = match config.sns.signing_cert_file {
                Some(_) => "of SNS_SIGNING_CERT_FILE",
                None => "fetched from SNS when it sends something",
            };
            let weakest = match config.sns.signature_version {
                SignatureVersion::V1 => 1,
                SignatureVersion::V2 => 2,
            };
            let topics = config.sns.topics.len();
            Ok(format!(
                "topics: {topics}, taken at {addr}; signatures of version {weakest} or stronger; certificates {certificates}"
            ))
        }
        Err(error) => Err(error.to_string()),
    };
    Some(Finding { what: "webhook".to_owned(), result })
}

/// Where attachments are fetched from and kept, if that is anywhere but in messages and the database.
async fn attachment_places(config: &Config) -> Vec<Finding> {
    let what = || "attachments".to_owned();
    let objects = match Objects::new(&config.store.attachments) {
        Ok(objects) => objects,
        Err(error) => return vec![Finding { what: what(), result: Err(error.to_string()) }],
    };
    let finding = |probed: Probed| {
        let Probed { place, result } = probed;
        let result = result.map(|words| format!("{place}: {words}")).map_err(|words| format!("{place}: {words}"));
        Finding { what: what(), result }
    };
    objects.probe().await.into_iter().map(finding).collect()
}

/// Nothing when there are no links.
fn unsubscribing(config: &Config) -> Option<Finding> {
    let (addr, url) = (config.public_addr()?, config.mail.public_url.as_deref()?);
    let result = Ok(format!("links begin with {url}{PATH}/, and must lead to {addr}"));
    Some(Finding { what: "unsubscribe".to_owned(), result })
}

/// What the key was read for, and what DNS must say for it.
fn signing(key: &SigningKey) -> Finding {
    let result = Ok(format!("signs for {} ({}); in DNS: {}", key.domain(), key.kind(), key.zone_line()));
    Finding { what: "dkim".to_owned(), result }
}

async fn broker(config: &Config) -> Result<String, String> {
    let link = Link::new(&config.broker, Purpose::Publish).map_err(|error| error.to_string())?;
    let connection = link.connect_once().await.map_err(|error| format!("AMQP_URL: {error}"))?;
    // Looking must not change anything: what is missing is reported, not declared.
    let looking = crate::config::BrokerConfig { topology: TopologyMode::Verify, ..config.broker.clone() };
    let verified = Topology::new(&looking).establish(&connection).await;
    drop(connection.close(200, "checked".into()).await);
    match (verified, config.broker.topology) {
        (Ok(()), _) => Ok("reachable, exchanges and queues are there".to_owned()),
        (Err(BrokerError::Missing(missing)), TopologyMode::Declare) => {
            Ok(format!("reachable; the daemon will declare what is missing ({missing})"))
        }
        (Err(error), _) => Err(error.to_string()),
    }
}

/// Templates that say what happens over a cap where there is none.
fn without_cap(config: &Config, catalogue: &Catalogue) -> Vec<String> {
    let limit_of = |kind| match kind {
        TemplateKind::Marketing => config.pipeline.rate_limit_marketing,
        TemplateKind::Transactional => config.pipeline.rate_limit_transactional,
    };
    let active = catalogue.all_active();
    let idle = active.iter().filter_map(|template| {
        let manifest = template.manifest();
        let over_cap = manifest.over_cap.filter(|_| limit_of(manifest.kind) == RateLimit::Unlimited)?;
        Some(format!(
            "template {}: over_cap = \"{}\" never applies, because EMAIL_RATE_LIMIT_{} is unlimited",
            template.key(),
            over_cap.name(),
            manifest.kind.name().to_uppercase()
        ))
    });
    idle.collect()
}

/// What looking into the database found.
struct Looked {
    database: Result<String, String>,
    templates: Result<String, String>,
    /// A word on templates, where there is need of one.
    notes: Vec<String>,
}

impl Looked {
    /// Something about the database itself.
    fn wrong(words: String) -> Self {
        let templates = Err("not looked at: the database must be in order first".to_owned());
        Self { database: Err(words), templates, notes: Vec::new() }
    }
}

async fn database(config: &Config) -> Looked {
    let store = match Store::new(&config.store, config.pipeline.lease) {
        Ok(store) => store,
        Err(error) => return Looked::wrong(format!("DATABASE_URL: {error}")),
    };
    if let Err(error) = store.connect_once().await {
        return Looked::wrong(format!("DATABASE_URL: {error}"));
    }
    let missing = match store.migrations_missing().await {
        Ok(missing) => missing,
        Err(error) => return Looked::wrong(format!("DATABASE_URL: {error}")),
    };
    if !missing.is_empty() {
        return Looked::wrong(format!("lacks {}: run `postrider migrate`", missing.join(", ")));
    }
    if let Err(error) = store.verify_hash_key().await {
        return Looked::wrong(error.to_string());
    }
    let catalogue = Catalogue::new();
    let templates = match reload::load(&store, &catalogue, config.pipeline.tries_default).await {
        Ok(()) if catalogue.all_active().is_empty() => {
            Ok("none yet; the daemon takes them from EMAIL_TEMPLATES_DIR when it starts".to_owned())
        }
        Ok(()) => Ok(format!("{} active", catalogue.all_active().len())),
        Err(error) => Err(error.to_string()),
    };
    let mut notes = without_cap(config, &catalogue);
    if let Ok(true) = store.may_change_schema().await {
        notes.push(
            "the role of DATABASE_URL may change the schema, which a daemon never does: give it one of its own \
             (postrider migrate --grant-to ROLE)"
                .to_owned(),
        );
    }
    notes.extend(marketing_note(&catalogue, &config.mail));
    Looked { database: Ok("reachable, schema up to date".to_owned()), templates, notes }
}

async fn relays(config: &Config) -> Vec<Finding> {
    let relays = match Relays::new(&config.smtp) {
        Ok(relays) => relays,
        Err(error) => return vec![Finding { what: "relay".to_owned(), result: Err(error.to_string()) }],
    };
    let mut findings = Vec::new();
    for relay in &config.smtp.relays {
        let result = match relays.probe(&relay.name).await {
            Some(Ok(offered)) => Ok(format!("{} answers and takes us: {offered}", relay.name)),
            Some(Err(error)) => Err(format!("{}: {}: {error}", relay.name, error.fault)),
            None => Err(format!("{}: is not configured", relay.name)),
        };
        findings.push(Finding { what: "relay".to_owned(), result });
    }
    findings
}
