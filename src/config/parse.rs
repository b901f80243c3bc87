//! Texts become values. Pure, but for certificates, which are looked at where they are.
//!
//! Invariant: a complaint follows the setting's name or value ("is not ...") and never repeats the text: it may be a
//! secret in the wrong place.

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use tracing_subscriber::EnvFilter;
use url::{Host, Url};

use super::{AdminToken, RateLimit, Role, SesTag, read::secret, source::content};
use crate::{
    email::{EmailAddress, attachment::FileType, feedback::Mark},
    feedback::topic::TopicArn,
};

/// A value, or what is wrong with the text.
pub(super) type Parsed<T> = Result<T, String>;

const DAY: Duration = Duration::from_secs(24 * 3600);
const HASH_KEY_CHARS_MIN: usize = 32;
const TOKEN_CHARS_MIN: usize = 16;
/// With a link's last part it must stay one line of a mail.
const PUBLIC_URL_CHARS_MAX: usize = 200;
const SES_TAGS_MAX: usize = 10;
/// What may stand behind the question mark of AMQP_URL.
const AMQP_PARAMETERS: [&str; 5] = ["auth_mechanism", "heartbeat", "connection_timeout", "frame_max", "channel_max"];
/// The same of DATABASE_URL.
const DATABASE_PARAMETERS: [&str; 18] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "ssl-mode",
    "ssl-root-cert",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "statement-cache-capacity",
];
/// As libpq has them.
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// One of a few words, whatever their case.
pub(super) fn one_of<T: Copy>(choices: &[(&str, T)]) -> impl Fn(&str) -> Parsed<T> {
    move |text| {
        choices
            .iter()
            .find(|(word, _)| word.eq_ignore_ascii_case(text.trim()))
            .map(|(_, value)| *value)
            .ok_or_else(|| format!("is not one of {}", choices.iter().map(|c| c.0).collect::<Vec<_>>().join(", ")))
    }
}

/// Yes or no.
pub(super) fn flag(text: &str) -> Parsed<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "on" | "yes" | "1" => Ok(true),
        "false" | "off" | "no" | "0" => Ok(false),
        _ => Err("is neither true nor false".to_owned()),
    }
}

/// A whole number within limits.
pub(super) fn number<T: FromStr + PartialOrd + Display>(range: RangeInclusive<T>) -> impl Fn(&str) -> Parsed<T> {
    move |text| {
        let number = text.trim().parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("is not a whole number from {} to {}", range.start(), range.end()))
    }
}

/// A number of seconds.
pub(super) fn seconds(range: RangeInclusive<u64>) -> impl Fn(&str) -> Parsed<Duration> {
    move |text| number(range.clone())(text).map(Duration::from_secs)
}

/// A number of days.
pub(super) fn days(range: RangeInclusive<u32>) -> impl Fn(&str) -> Parsed<Duration> {
    move |text| number(range.clone())(text).map(|days| DAY * days)
}

/// A duration with its unit: `100ms`, `90s`, `5m`, `2h`, `1d`.
pub(super) fn duration(text: &str) -> Parsed<Duration> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let milliseconds = match text[digits..].trim_start() {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 3600 * 1000,
        "d" => 24 * 3600 * 1000,
        _ => return Err("is not a number with a unit (ms, s, m, h, d)".to_owned()),
    };
    let count: u64 = text[..digits].parse().map_err(|_| "is not a number with a unit (ms, s, m, h, d)".to_owned())?;
    count.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(|| "is too long".to_owned())
}

/// The delays before the second, third ... try.
pub(super) fn ladder(text: &str) -> Parsed<Vec<Duration>> {
    let steps = text.split(',').map(duration).collect::<Parsed<Vec<_>>>();
    let steps = steps.map_err(|_| "has a step that is not a number with a unit (ms, s, m, h, d)".to_owned())?;
    if steps.len() > 12 {
        return Err("has more than 12 steps".to_owned());
    }
    if !steps.iter().all(|step| (Duration::from_millis(100)..=DAY).contains(step)) {
        return Err("has a step that is not from 100ms to 24h".to_owned());
    }
    if !steps.is_sorted_by(|one, next| one < next) {
        return Err("has steps that do not rise".to_owned());
    }
    Ok(steps)
}

/// How long a mail is tried.
pub(super) fn age_max(text: &str) -> Parsed<Duration> {
    let age = duration(text)?;
    if (Duration::from_secs(1)..=DAY * 7).contains(&age) { Ok(age) } else { Err("is not from 1s to 7d".to_owned()) }
}

/// Between two looks for what is to be anonymised or deleted.
pub(super) fn retention_every(text: &str) -> Parsed<Duration> {
    let every = duration(text)?;
    if (Duration::from_secs(1)..=DAY).contains(&every) { Ok(every) } else { Err("is not from 1s to 24h".to_owned()) }
}

/// `unlimited`, `N/day`, `N/week`.
pub(super) fn rate_limit(text: &str) -> Parsed<RateLimit> {
    let text = text.trim().to_ascii_lowercase();
    if text == "unlimited" {
        return Ok(RateLimit::Unlimited);
    }
    let limit = text.split_once('/').and_then(|(count, unit)| {
        let count = number(1..=1_000_000)(count).ok()?;
        match unit.trim() {
            "day" => Some(RateLimit::PerDay(count)),
            "week" => Some(RateLimit::PerWeek(count)),
            _ => None,
        }
    });
    limit.ok_or_else(|| "is neither unlimited nor N/day nor N/week (N from 1 on)".to_owned())
}

/// A URL with one of these schemes. The parser's own words are dropped: they do not help with an unescaped password.
fn url(text: &str, schemes: [&str; 2]) -> Parsed<Url> {
    let url = Url::parse(text.trim())
        .map_err(|_| "is not a URL; are special characters of the password percent-encoded?".to_owned())?;
    if schemes.contains(&url.scheme()) {
        Ok(url)
    } else {
        Err(format!("does not start with {}:// or {}://", schemes[0], schemes[1]))
    }
}

/// Each parameter of a URL's query must be known: what is misspelt would be passed over, or logged with its value by a library.
fn parameters(url: &Url, known: &[&str]) -> Parsed<()> {
    // Told by number: a password with an unescaped question mark becomes a parameter's name.
    // `options[NAME]` sets NAME for the session.
    let name = |name: &str| name.split('[').next().unwrap_or_default().to_owned();
    match url.query_pairs().position(|(written, _)| !known.contains(&name(&written).as_str())) {
        None => Ok(()),
        Some(at) => Err(format!("has a parameter ({}) behind its ? that is not one of {}", at + 1, known.join(", "))),
    }
}

/// Where the broker is.
pub(super) fn amqp_url(text: &str) -> Parsed<SecretString> {
    let url = url(text, ["amqp", "amqps"])?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err("names no host".to_owned());
    }
    if url.path().trim_start_matches('/').contains('/') {
        return Err("names a virtual host with a slash, which must be written %2f".to_owned());
    }
    parameters(&url, &AMQP_PARAMETERS)?;
    for (name, value) in url.query_pairs() {
        let is_sound = match name.as_ref() {
            "auth_mechanism" => ["plain", "amqplain", "external"].iter().any(|known| value.eq_ignore_ascii_case(known)),
            _ => {
                value.parse::<u16>().is_ok()
                    || (name == "frame_max" || name == "connection_timeout") && value.parse::<u32>().is_ok()
            }
        };
        if !is_sound {
            return Err(format!(
                "has a parameter {name} that is not {}",
                match name.as_ref() {
                    "auth_mechanism" => "plain, amqplain or external",
                    _ => "a number",
                }
            ));
        }
    }
    if url.scheme() == "amqp" && is_external(&url) {
        return Err("says auth_mechanism=external, which needs amqps://".to_owned());
    }
    Ok(secret(text.trim()))
}

fn is_external(url: &Url) -> bool {
    url.query_pairs().any(|(name, value)| name == "auth_mechanism" && value.eq_ignore_ascii_case("external"))
}

/// Whether a sound URL of the broker asks for TLS, and whether our certificate stands for user and password.
pub(super) fn amqp_protection(url: &SecretString) -> (bool, bool) {
    Url::parse(url.expose_secret()).map_or((false, false), |url| (url.scheme() == "amqps", is_external(&url)))
}

/// Where the database is. Without a host it is a socket, which the query names.
pub(super) fn database_url(text: &str) -> Parsed<SecretString> {
    let url = url(text, ["postgres", "postgresql"])?;
    parameters(&url, &DATABASE_PARAMETERS)?;
    for (name, value) in url.query_pairs() {
        match name.as_ref() {
            "sslmode" | "ssl-mode" if !SSL_MODES.contains(&value.as_ref()) => {
                return Err(format!("has a {name} that is not one of {}", SSL_MODES.join(", ")));
            }
            "sslrootcert" | "ssl-root-cert" | "ssl-ca" | "sslcert" | "ssl-cert" => {
                ca_file(&value).map_err(|problem| format!("has a {name} that names a file which {problem}"))?;
            }
            "sslkey" | "ssl-key" => {
                key_file(&value).map_err(|problem| format!("has an {name} that names a file which {problem}"))?;
            }
            _ => {}
        }
    }
    Ok(secret(text.trim()))
}

/// The key of the hash that stands for an address.
pub(super) fn hash_key(text: &str) -> Parsed<SecretString> {
    if text.chars().count() < HASH_KEY_CHARS_MIN {
        return Err(format!("is shorter than {HASH_KEY_CHARS_MIN} characters"));
    }
    Ok(secret(text))
}

/// A file of certificates that is there.
pub(super) fn ca_file(text: &str) -> Parsed<PathBuf> {
    let pem = content(Path::new(text))?;
    if !pem.contains("-----BEGIN CERTIFICATE-----") {
        return Err("holds no PEM certificate".to_owned());
    }
    Ok(PathBuf::from(text))
}

/// A file with a private key that is there.
pub(super) fn key_file(text: &str) -> Parsed<PathBuf> {
    let pem = content(Path::new(text))?;
    if !pem.contains("PRIVATE KEY-----") {
        return Err("holds no PEM private key".to_owned());
    }
    Ok(PathBuf::from(text))
}

/// A host name or address to connect to.
pub(super) fn host(text: &str) -> Parsed<String> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if bare.parse::<IpAddr>().is_ok() {
        return Ok(bare.to_owned());
    }
    match Host::parse(text) {
        Ok(Host::Domain(name)) => Ok(name),
        _ => Err("is not a host name or address".to_owned()),
    }
}

/// What EHLO says: a domain, or an address literal (RFC 5321 §4.1.3).
pub(super) fn helo_name(text: &str) -> Parsed<String> {
    let text = text.trim();
    let literal = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let sound = match literal {
        Some(inside) => inside.strip_prefix("IPv6:").unwrap_or(inside).parse::<IpAddr>().is_ok(),
        None => {
            text.len() <= 255
                && text.split('.').all(|label| {
                    (1..=63).contains(&label.len())
                        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                })
        }
    };
    if sound { Ok(text.to_owned()) } else { Err("is neither a host name nor an address in brackets".to_owned()) }
}

/// One address.
pub(super) fn address(text: &str) -> Parsed<EmailAddress> {
    EmailAddress::parse(text).map_err(|error| format!("is not an e-mail address: {error}"))
}

/// A domain that addresses can have.
pub(super) fn domain(text: &str) -> Parsed<String> {
    let address = EmailAddress::parse(&format!("postmaster@{}", text.trim()));
    address.map(|address| address.domain().to_owned()).map_err(|_| "is not a domain name with a dot".to_owned())
}

/// Where people reach the public listener: what links begin with, without a slash at the end.
pub(super) fn public_url(text: &str) -> Parsed<String> {
    let text = text.trim().trim_end_matches('/');
    let url = Url::parse(text).map_err(|_| "is not a URL".to_owned())?;
    // RFC 8058 §3.1; and a link over plain HTTP could be followed, and pressed, by anybody on the way.
    if url.scheme() != "https" {
        return Err("does not start with https://".to_owned());
    }
    let is_plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    if !is_plain || url.fragment().is_some() || url.host_str().is_none_or(str::is_empty) {
        return Err("has a user, a query or a fragment, or no host".to_owned());
    }
    let url = url.as_str().trim_end_matches('/');
    let is_written_so = |b: u8| b.is_ascii_alphanumeric() || b":/._-~%[]".contains(&b);
    if url.len() > PUBLIC_URL_CHARS_MAX || !url.bytes().all(is_written_so) {
        return Err(format!("is not of at most {PUBLIC_URL_CHARS_MAX} letters, digits and : / . _ - ~"));
    }
    Ok(url.to_owned())
}

/// A name in DNS before `_domainkey` (RFC 6376 §3.1).
pub(super) fn selector(text: &str) -> Parsed<String> {
    let text = text.trim().to_ascii_lowercase();
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() <= 128 && text.split('.').all(is_label) {
        Ok(text)
    } else {
        Err("is not of labels of letters, digits and -, joined by dots".to_owned())
    }
}

/// A word of letters, digits, `-` and `_`.
pub(super) fn word(chars: RangeInclusive<usize>) -> impl Fn(&str) -> Parsed<String> {
    move |text| {
        let text = text.trim();
        if chars.contains(&text.len()) && is_word(text) {
            Ok(text.to_owned())
        } else {
            Err(format!("is not of {} to {} letters, digits, - and _", chars.start(), chars.end()))
        }
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Tags for SES: names of what each mail has, and pairs that are the same for all. Each name once, and not ours.
pub(super) fn ses_tags(text: &str) -> Parsed<Vec<SesTag>> {
    let mut tags: Vec<SesTag> = Vec::new();
    for (index, written) in text.split(',').map(str::trim).enumerate() {
        let number = index + 1;
        let tag = match written.split_once('=') {
            Some((name, value)) if is_word(name) && is_word(value) && name.len() <= 64 && value.len() <= 128 => {
                SesTag::Fixed(name.to_owned(), value.to_owned())
            }
            None => SesTag::of_mail(written).ok_or_else(|| {
                format!("has an entry ({number}) that is neither template, source, category, lane nor name=value")
            })?,
            Some(_) => {
                return Err(format!("has an entry ({number}) that is not name=value of letters, digits, - and _"));
            }
        };
        if tag.name() == Mark::TAG || tag.name().starts_with("ses") {
            return Err(format!("has an entry ({number}) whose name is reserved"));
        }
        if tags.iter().any(|known| known.name() == tag.name()) {
            return Err(format!("has two entries for {}", tag.name()));
        }
        tags.push(tag);
    }
    if tags.len() > SES_TAGS_MAX {
        return Err(format!("has more than {SES_TAGS_MAX} entries"));
    }
    Ok(tags)
}

/// A short text of visible characters and spaces.
pub(super) fn line(chars_max: usize) -> impl Fn(&str) -> Parsed<String> {
    move |text| {
        let text = text.trim();
        if text.is_empty() || text.chars().count() > chars_max || text.chars().any(char::is_control) {
            return Err(format!("is not a text of 1 to {chars_max} printable characters"));
        }
        Ok(text.to_owned())
    }
}

/// A telephone number as people write it.
pub(super) fn phone(text: &str) -> Parsed<String> {
    let text = text.trim();
    let sound = text.len() <= 40
        && text.chars().all(|c| c.is_ascii_digit() || " +-.()".contains(c))
        && text.chars().any(|c| c.is_ascii_digit());
    if sound { Ok(text.to_owned()) } else { Err("is not a telephone number".to_owned()) }
}

/// A time zone by its name.
pub(super) fn timezone(text: &str) -> Parsed<chrono_tz::Tz> {
    text.trim().parse().map_err(|_| "is not a time zone".to_owned())
}

/// Types of attachments, each once, by their usual extension.
pub(super) fn attachment_types(text: &str) -> Parsed<Vec<FileType>> {
    let mut types = Vec::new();
    for written in text.split(',') {
        let Some(kind) = FileType::from_name(&written.trim().to_ascii_lowercase()) else {
            return Err(format!("has a type that is not one of {}", FileType::ALL.map(FileType::name).join(", ")));
        };
        if !types.contains(&kind) {
            types.push(kind);
        }
    }
    Ok(types)
}

/// Names of producers, each once.
pub(super) fn sources(text: &str) -> Parsed<Vec<String>> {
    let mut sources: Vec<String> = Vec::new();
    for name in text.split(',').map(str::trim) {
        let sound = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        if name.is_empty() || !name.bytes().all(sound) {
            return Err("has a name that is not of lower-case letters, digits, - and _".to_owned());
        }
        if !sources.iter().any(|known| known == name) {
            sources.push(name.to_owned());
        }
    }
    Ok(sources)
}

/// Where to listen.
pub(super) fn listen_address(text: &str) -> Parsed<SocketAddr> {
    text.trim().parse().map_err(|_| "is not an IP address with a port".to_owned())
}

/// ARNs of topics, each once.
pub(super) fn topic_arns(text: &str) -> Parsed<Vec<TopicArn>> {
    let mut topics: Vec<TopicArn> = Vec::new();
    for (index, arn) in text.split(',').map(str::trim).enumerate() {
        let topic = TopicArn::parse(arn).map_err(|problem| format!("has an entry ({}) that {problem}", index + 1))?;
        if !topics.contains(&topic) {
            topics.push(topic);
        }
    }
    Ok(topics)
}

/// How old a message of SNS may be: not less than SNS may take, nor more than a dead-letter queue keeps.
pub(super) fn message_age_max(text: &str) -> Parsed<Duration> {
    let age = duration(text)?;
    if (Duration::from_secs(3600)..=DAY * 14).contains(&age) {
        Ok(age)
    } else {
        Err("is not from 1h to 14d".to_owned())
    }
}

/// `name:role:token`, comma-separated. Entries are told by their number: in a garbled one any part may be the token.
pub(super) fn admin_tokens(text: &str) -> Parsed<Vec<AdminToken>> {
    let mut tokens: Vec<AdminToken> = Vec::new();
    for (index, entry) in text.split(',').map(str::trim).enumerate() {
        let number = index + 1;
        let parts: Vec<&str> = entry.splitn(3, ':').collect();
        let &[name, role, token] = parts.as_slice() else {
            return Err(format!("has an entry ({number}) that is not name:role:token"));
        };
        if !(1..=64).contains(&name.len())
            || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            return Err(format!("has an entry ({number}) whose name is not 1 to 64 characters of a-z 0-9 -"));
        }
        let roles = [("viewer", Role::Viewer), ("operator", Role::Operator), ("admin", Role::Admin)];
        let role = one_of(&roles)(role).map_err(|problem| format!("has an entry ({number}) whose role {problem}"))?;
        if token.len() < TOKEN_CHARS_MIN || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(format!(
                "has an entry ({number}) whose token is not {TOKEN_CHARS_MIN} or more visible ASCII characters"
            ));
        }
        for (other, known) in tokens.iter().enumerate() {
            if known.name == name || known.token.expose_secret() == token {
                let what = if known.name == name { "name" } else { "token" };
                return Err(format!("has two entries ({} and {number}) with the same {what}", other + 1));
            }
        }
        tokens.push(AdminToken { name: name.to_owned(), role, token: secret(token) });
    }
    Ok(tokens)
}

/// What is logged. A bare word must be a level: the filter itself would take `inof` for a target and log nothing else.
pub(super) fn log_filter(text: &str) -> Parsed<String> {
    let text = text.trim();
    let levels = ["trace", "debug", "info", "warn", "error", "off"];
    let sound =
        |part: &str| part.contains(['=', '[']) || levels.iter().any(|level| level.eq_ignore_ascii_case(part.trim()));
    if text.split(',').all(sound) && EnvFilter::try_new(text).is_ok() {
        Ok(text.to_owned())
    } else {
        Err("is not a log filter".to_owned())
    }
}
