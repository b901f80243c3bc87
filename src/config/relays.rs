//! The relays: one from the environment's `SMTP_HOST`, or the file's list.
//!
//! Invariant: settings of one relay are never applied to another; a password goes only to the host it was written for.

use std::{net::IpAddr, time::Duration};

use super::{
    Fault, RelayConfig, RelayCredentials, RelayTls, Setting, SmtpConfig,
    file::ListedTable,
    parse::{self, Parsed},
    read::{Reader, Recorded, lane_name, secret},
    source::{Found, content, known_name, named},
};
use crate::email::{Lane, PerLane};

/// What SMTPS listens on: TLS from the first byte (RFC 8314 §3.3).
const IMPLICIT_TLS_PORT: u16 = 465;
/// What a server may take to answer the final dot (RFC 5321 §4.5.3.2.6).
const DOT_TIMEOUT_RFC: Duration = Duration::from_secs(600);
/// The settings of the only relay when the file names none.
const SINGLE: [&str; 6] = ["SMTP_HOST", "SMTP_PORT", "SMTP_USE_TLS", "SMTP_CA_FILE", "SMTP_USER", "SMTP_PASSWORD"];

pub(super) fn smtp(r: &mut Reader<'_>) -> Result<SmtpConfig, Recorded> {
    let relays = relays(r);
    let helo_name = r.read_optional("SMTP_HELO_NAME", parse::helo_name);
    let step_timeout = r.read("SMTP_TIMEOUT_SECONDS", parse::seconds(1..=600));
    let dot_timeout = r.read("SMTP_DOT_TIMEOUT_SECONDS", parse::seconds(1..=3600));
    let connections = r.read_lanes("SMTP_CONNECTIONS", parse::number(1..=500));
    let mails_per_connection_max = r.read("SMTP_MAILS_PER_CONNECTION", parse::number(1..=10_000));
    let idle_max = r.read("SMTP_IDLE_SECONDS", parse::seconds(1..=3600));
    let warm_connections_fast = r.read("SMTP_WARM_CONNECTIONS_FAST", parse::number(0..=500));
    if dot_timeout.is_ok_and(|limit| limit < DOT_TIMEOUT_RFC) {
        r.warn("SMTP_DOT_TIMEOUT_SECONDS is below the 600 of RFC 5321: a slow relay's mails may be sent twice");
    }
    Ok(SmtpConfig {
        relays: relays?,
        helo_name: helo_name?.unwrap_or_else(machine_name),
        step_timeout: step_timeout?,
        dot_timeout: dot_timeout?,
        connections: connections?,
        mails_per_connection_max: mails_per_connection_max?,
        idle_max: idle_max?,
        warm_connections_fast: warm_connections_fast?,
    })
}

/// This machine's host name, if EHLO can say it.
fn machine_name() -> String {
    let name = hostname::get().ok().and_then(|name| name.into_string().ok());
    name.and_then(|name| parse::helo_name(&name).ok()).unwrap_or_else(|| "localhost".to_owned())
}

fn relays(r: &mut Reader<'_>) -> Result<Vec<RelayConfig>, Recorded> {
    let tables = &r.settings.file.relays;
    if tables.is_empty() {
        return single(r).map(|relay| vec![relay]);
    }
    if r.settings.environment_has("SMTP_HOST") {
        r.warn("the relays of the settings file are not used: SMTP_HOST of the environment wins");
        return single(r).map(|relay| vec![relay]);
    }
    for name in SINGLE {
        if r.settings.environment_has(name) {
            r.warn(format!("{name} is not used: the settings file names the relays"));
        }
    }
    let of_one_relay = |name: &String| known_name(name).is_some_and(|setting| SINGLE.contains(&setting.name));
    if r.settings.file.values.keys().any(of_one_relay) {
        r.record(Fault {
            setting: format!("relays (in {})", r.settings.file.path),
            problem: "stand beside a relay under [settings]".to_owned(),
            accepts: format!(
                "accepts one of the two: [[relays]], or {} under [settings]",
                SINGLE.join(", ").to_lowercase()
            ),
        });
    }
    let listed: Vec<_> = tables.iter().map(|table| listed(r, table)).collect();
    let relays = listed.into_iter().collect::<Result<Vec<_>, _>>()?;
    for (index, relay) in relays.iter().enumerate() {
        if relays[..index].iter().any(|other| other.name == relay.name) {
            r.record(Fault {
                setting: format!("{}.name (in {})", tables[index].key, r.settings.file.path),
                problem: "is the name of another relay too".to_owned(),
                accepts: "accepts a name for each relay; without one it is host:port".to_owned(),
            });
        }
    }
    Ok(relays)
}

/// The relay of `SMTP_HOST`.
fn single(r: &mut Reader<'_>) -> Result<RelayConfig, Recorded> {
    let host = r.read("SMTP_HOST", parse::host);
    let port = r.read("SMTP_PORT", parse::number(1..=65535));
    let use_tls = r.read("SMTP_USE_TLS", parse::flag);
    let ca_file = r.read_optional("SMTP_CA_FILE", parse::ca_file);
    let user = r.read_optional("SMTP_USER", parse::line(256));
    let password = r.read_optional("SMTP_PASSWORD", |text| Ok(secret(text)));
    let credentials = match (user, password) {
        (Ok(Some(user)), Ok(Some(password))) => Ok(Some(RelayCredentials { user, password })),
        (Ok(None), Ok(None)) => Ok(None),
        (Ok(Some(_)), Ok(None)) => Err(r.fault("SMTP_PASSWORD", "is missing although SMTP_USER is set")),
        (Ok(None), Ok(Some(_))) => Err(r.fault("SMTP_USER", "is missing although SMTP_PASSWORD is set")),
        (Err(recorded), _) | (_, Err(recorded)) => Err(recorded),
    };
    let (host, port) = (host?, port?);
    let tls = match use_tls? {
        false => RelayTls::Plain,
        true if port == IMPLICIT_TLS_PORT => RelayTls::Implicit,
        true => RelayTls::StartTls,
    };
    let relay = RelayConfig {
        name: host_and_port(&host, port),
        host,
        port,
        tls,
        ca_file: ca_file?,
        credentials: credentials?,
        connections: PerLane::from_fn(|_| None),
    };
    warn_of_bare_password(r, &relay);
    Ok(relay)
}

/// One relay of the file.
fn listed(r: &mut Reader<'_>, table: &ListedTable) -> Result<RelayConfig, Recorded> {
    let tls_words = [("starttls", RelayTls::StartTls), ("implicit", RelayTls::Implicit), ("plain", RelayTls::Plain)];
    let name = value(r, table, "name", "a short name", parse::line(64));
    let host = value(r, table, "host", accepts("SMTP_HOST"), parse::host);
    let port = value(r, table, "port", accepts("SMTP_PORT"), parse::number(1..=65535));
    let tls = value(r, table, "tls", "starttls, implicit or plain", parse::one_of(&tls_words));
    let ca_file = value(r, table, "ca_file", accepts("SMTP_CA_FILE"), parse::ca_file);
    let user = value(r, table, "user", accepts("SMTP_USER"), parse::line(256));
    let password = value(r, table, "password", accepts("SMTP_PASSWORD"), |text| Ok(secret(text)));
    let from_file = value(r, table, "password_file", "the path of a file with the password", |text| {
        let password =
            content(text.as_ref()).map_err(|problem| format!("names a file{} that {problem}", named(text.as_ref())));
        password.map(|password| secret(&password))
    });
    let connections = PerLane::from_fn(|lane| connections(r, table, lane));
    let password = match (password, from_file) {
        (Ok(Some(_)), Ok(Some(_))) => {
            Err(fault(r, table, "password", "is set twice: also password_file is set, keep one"))
        }
        (Ok(password), Ok(from_file)) => Ok(password.or(from_file)),
        (Err(recorded), _) | (_, Err(recorded)) => Err(recorded),
    };
    let credentials = match (user, password) {
        (Ok(Some(user)), Ok(Some(password))) => Ok(Some(RelayCredentials { user, password })),
        (Ok(None), Ok(None)) => Ok(None),
        (Ok(Some(_)), Ok(None)) => Err(fault(r, table, "password", "is missing although user is set")),
        (Ok(None), Ok(Some(_))) => Err(fault(r, table, "user", "is missing although a password is set")),
        (Err(recorded), _) | (_, Err(recorded)) => Err(recorded),
    };
    let host = match host {
        Ok(Some(host)) => Ok(host),
        Ok(None) => Err(fault(r, table, "host", "is missing")),
        Err(recorded) => Err(recorded),
    };
    let (port, tls) = match (port?, tls?) {
        (Some(port), Some(tls)) => (port, tls),
        (Some(IMPLICIT_TLS_PORT), None) => (IMPLICIT_TLS_PORT, RelayTls::Implicit),
        (Some(port), None) => (port, RelayTls::StartTls),
        (None, Some(RelayTls::Implicit)) => (IMPLICIT_TLS_PORT, RelayTls::Implicit),
        (None, tls) => (587, tls.unwrap_or(RelayTls::StartTls)),
    };
    let host = host?;
    let relay = RelayConfig {
        name: name?.unwrap_or_else(|| host_and_port(&host, port)),
        host,
        port,
        tls,
        ca_file: ca_file?,
        credentials: credentials?,
        connections: PerLane { fast: connections.fast?, standard: connections.standard?, bulk: connections.bulk? },
    };
    warn_of_bare_password(r, &relay);
    Ok(relay)
}

/// The relay's own limit of a lane's connections. One without a delivery to carry is one too many.
fn connections(r: &mut Reader<'_>, table: &ListedTable, lane: Lane) -> Result<Option<usize>, Recorded> {
    let key = format!("connections_{lane}");
    let accepted = accepts(&lane_name("SMTP_CONNECTIONS", lane));
    let limit = value(r, table, &key, accepted, parse::number(1..=500_usize))?;
    let prefetch = lane_name("EMAIL_PREFETCH", lane);
    match (limit, r.peek(&prefetch, parse::number(1..=2000_usize))) {
        (Some(limit), Some(held)) if limit > held => {
            let setting = format!("{}.{key} (in {})", table.key, r.settings.file.path);
            let problem = format!("is {limit}, more than the {held} of {prefetch}");
            Err(r.record(Fault { setting, problem, accepts: format!("accepts {accepted}") }))
        }
        (limit, _) => Ok(limit),
    }
}

pub(super) fn value<T>(
    r: &mut Reader<'_>,
    table: &ListedTable,
    key: &str,
    accepts: &str,
    parse: impl FnOnce(&str) -> Parsed<T>,
) -> Result<Option<T>, Recorded> {
    let Some(value) = table.values.get(key) else { return Ok(None) };
    let found = Found {
        text: value.text.clone(),
        label: format!("{} (in {})", value.key, r.settings.file.path),
        printable: !matches!(key, "user" | "password" | "password_file"),
    };
    r.judge(&found, format!("accepts {accepts}"), parse).map(Some)
}

fn fault(r: &mut Reader<'_>, table: &ListedTable, key: &str, problem: &str) -> Recorded {
    let setting = format!("{}.{key} (in {})", table.key, r.settings.file.path);
    let accepts = match key {
        "host" => accepts("SMTP_HOST"),
        "user" => accepts("SMTP_USER"),
        _ => "a password, as password or password_file",
    };
    r.record(Fault { setting, problem: problem.to_owned(), accepts: format!("accepts {accepts}") })
}

pub(super) fn accepts(name: &str) -> &'static str {
    Setting::named(name).map_or("", |setting| setting.accepts)
}

fn host_and_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn warn_of_bare_password(r: &mut Reader<'_>, relay: &RelayConfig) {
    let local = relay.host == "localhost" || relay.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if relay.tls == RelayTls::Plain && relay.credentials.is_some() && !local {
        r.warn(format!("the password for the relay {} travels unencrypted", relay.name));
    }
}
