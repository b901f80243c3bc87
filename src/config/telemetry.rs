//! `OTEL_*`: where traces and metrics are pushed to, under the names that every OpenTelemetry SDK knows.
//!
//! Invariant: without an endpoint, or with `OTEL_SDK_DISABLED=true`, nothing is made and nothing is sent.

use std::{fmt, time::Duration};

use secrecy::SecretString;
use url::Url;

use super::{
    Faults, Settings, parse,
    parse::Parsed,
    read::{Reader, Recorded, secret},
};

/// Path of traces below `OTEL_EXPORTER_OTLP_ENDPOINT`.
const TRACES_PATH: &str = "v1/traces";
/// Path of metrics likewise.
const METRICS_PATH: &str = "v1/metrics";

/// What is pushed, and to whom.
#[derive(Debug, Clone)]
pub struct TelemetryConfig {
    /// Where traces go; nothing: none are made.
    pub traces: Option<Endpoint>,
    /// Where metrics go, besides `/metrics`; nothing: nowhere.
    pub metrics: Option<Endpoint>,
    /// `OTEL_EXPORTER_OTLP_HEADERS`: sent with each export; tokens as a rule.
    pub headers: Vec<(String, SecretString)>,
    /// `OTEL_EXPORTER_OTLP_TIMEOUT`: limit of one export, its repetitions included (10 s).
    pub timeout: Duration,
    /// `OTEL_METRIC_EXPORT_INTERVAL`: between two exports of metrics (60 s).
    pub metrics_every: Duration,
    /// `OTEL_SERVICE_NAME` (postrider).
    pub service_name: String,
    /// `OTEL_RESOURCE_ATTRIBUTES`: what else is told of this daemon.
    pub resource: Vec<(String, String)>,
    /// `OTEL_TRACES_SAMPLER` and `_ARG`: which traces are kept (parentbased_always_on).
    pub sampling: Sampling,
}

/// Where an OTLP receiver takes one signal.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint(String);

impl Endpoint {
    /// As it is posted to.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Endpoint {
    /// A URL may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Endpoint")
    }
}

/// Which traces are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// The producer's decision holds where there is one, and for everything that is made of its message.
    pub is_parent_based: bool,
    /// Part of the others that is kept, 0 to 1.
    pub ratio: f64,
}

impl Settings {
    /// What is pushed, and to whom.
    ///
    /// # Errors
    /// All that is missing or wrong in this part.
    pub fn telemetry(&self) -> Result<TelemetryConfig, Faults> {
        let mut reader = Reader::new(self);
        let value = telemetry(&mut reader);
        reader.finish(value)
    }
}

pub(super) fn telemetry(r: &mut Reader<'_>) -> Result<TelemetryConfig, Recorded> {
    let disabled = r.read("OTEL_SDK_DISABLED", parse::flag);
    let base = r.read_optional("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    let traces_at = r.read_optional("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint);
    let metrics_at = r.read_optional("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", endpoint);
    let exporters = [("otlp", true), ("none", false)];
    let wants_traces = r.read("OTEL_TRACES_EXPORTER", parse::one_of(&exporters));
    let wants_metrics = r.read("OTEL_METRICS_EXPORTER", parse::one_of(&exporters));
    let protocol = r.read("OTEL_EXPORTER_OTLP_PROTOCOL", parse::one_of(&[("http/protobuf", ())]));
    let headers = r.read_optional("OTEL_EXPORTER_OTLP_HEADERS", headers);
    let timeout = r.read("OTEL_EXPORTER_OTLP_TIMEOUT", milliseconds(100..=60_000));
    let metrics_every = r.read("OTEL_METRIC_EXPORT_INTERVAL", milliseconds(100..=3_600_000));
    let service_name = r.read("OTEL_SERVICE_NAME", parse::line(100));
    let resource = r.read_optional("OTEL_RESOURCE_ATTRIBUTES", attributes);
    let sampling = sampling(r);
    protocol?;
    let (disabled, base) = (disabled?, base?);
    let at = |wanted: bool, own: Option<Url>, path: &str| {
        let url = own.or_else(|| base.as_ref().map(|base| below(base, path)));
        url.filter(|_| wanted && !disabled).map(|url| Endpoint(url.into()))
    };
    Ok(TelemetryConfig {
        traces: at(wants_traces?, traces_at?, TRACES_PATH),
        metrics: at(wants_metrics?, metrics_at?, METRICS_PATH),
        headers: headers?.unwrap_or_default(),
        timeout: timeout?,
        metrics_every: metrics_every?,
        service_name: service_name?,
        resource: resource?.unwrap_or_default(),
        sampling: sampling?,
    })
}

fn sampling(r: &mut Reader<'_>) -> Result<Sampling, Recorded> {
    let (on, off, some) = (Some(1.0), Some(0.0), None);
    let sampler = r.read(
        "OTEL_TRACES_SAMPLER",
        parse::one_of(&[
            ("parentbased_always_on", (true, on)),
            ("parentbased_always_off", (true, off)),
            ("parentbased_traceidratio", (true, some)),
            ("always_on", (false, on)),
            ("always_off", (false, off)),
            ("traceidratio", (false, some)),
        ]),
    );
    let ratio = r.read("OTEL_TRACES_SAMPLER_ARG", ratio);
    let (is_parent_based, fixed) = sampler?;
    let ratio = ratio?;
    Ok(Sampling { is_parent_based, ratio: fixed.unwrap_or(ratio) })
}

/// A receiver's URL.
fn endpoint(text: &str) -> Parsed<Url> {
    let url = Url::parse(text.trim()).map_err(|_| "is not a URL".to_owned())?;
    if !["http", "https"].contains(&url.scheme()) {
        return Err("does not start with http:// or https://".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a user or password: put them into OTEL_EXPORTER_OTLP_HEADERS".to_owned());
    }
    Ok(url)
}

/// The same with this path behind its own.
fn below(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
    url
}

/// A number of milliseconds, as these settings have them in every SDK.
fn milliseconds(range: std::ops::RangeInclusive<u64>) -> impl Fn(&str) -> Parsed<Duration> {
    move |text| parse::number(range.clone())(text).map(Duration::from_millis)
}

fn ratio(text: &str) -> Parsed<f64> {
    let ratio = text.trim().parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "is not a number from 0 to 1".to_owned())
}

/// `name=value`, comma-separated, values percent-encoded.
fn pairs(text: &str) -> Parsed<Vec<(String, String)>> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).enumerate();
    let pairs = entries.map(|(index, entry)| {
        let (name, value) = entry.split_once('=').ok_or_else(|| format!("has an entry ({}) without =", index + 1))?;
        let (name, value) = (name.trim(), value.trim());
        if name.is_empty() {
            return Err(format!("has an entry ({}) without a name", index + 1));
        }
        let decoded =
            percent_decoded(value).ok_or_else(|| format!("has an entry ({}) that is not UTF-8", index + 1))?;
        Ok((name.to_owned(), decoded))
    });
    pairs.collect()
}

fn percent_decoded(text: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [first, tail @ ..] = rest {
        let encoded = tail.get(..2).filter(|_| *first == b'%').and_then(|digits| hex::decode(digits).ok());
        bytes.push(encoded.as_ref().map_or(*first, |byte| byte[0]));
        rest = if encoded.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).ok()
}

fn headers(text: &str) -> Parsed<Vec<(String, SecretString)>> {
    let pairs = pairs(text)?.into_iter().enumerate().map(|(index, (name, value))| {
        let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        let is_value = value.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
        if is_name && is_value {
            Ok((name, secret(&value)))
        } else {
            Err(format!("has an entry ({}) that is no HTTP header", index + 1))
        }
    });
    pairs.collect()
}

fn attributes(text: &str) -> Parsed<Vec<(String, String)>> {
    pairs(text)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;
    use crate::config::Environment;

    fn read(settings: &[(&str, &str)]) -> Result<TelemetryConfig, Faults> {
        Settings::read(&settings.iter().copied().collect::<Environment>(), None).telemetry()
    }

    fn at(endpoint: &Option<Endpoint>) -> &str {
        endpoint.as_ref().map_or("", Endpoint::as_str)
    }

    #[test]
    fn without_an_endpoint_nothing_is_pushed() {
        let config = read(&[]).expect("valid");
        assert_eq!((config.traces, config.metrics), (None, None));
        assert_eq!((config.timeout, config.metrics_every), (Duration::from_secs(10), Duration::from_secs(60)));
        assert_eq!(config.sampling, Sampling { is_parent_based: true, ratio: 1.0 });
        assert_eq!(config.service_name, "postrider");
    }

    #[test]
    fn one_endpoint_serves_both_signals_and_each_may_have_its_own() {
        let base = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/base/");
        let config = read(&[base]).expect("valid");
        assert_eq!(at(&config.traces), "http://collector:4318/base/v1/traces");
        assert_eq!(at(&config.metrics), "http://collector:4318/base/v1/metrics");
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://traces.example/ingest");
        let config = read(&[base, own, ("OTEL_METRICS_EXPORTER", "none")]).expect("valid");
        assert_eq!((at(&config.traces), config.metrics), ("https://traces.example/ingest", None));
        let config = read(&[base, own, ("OTEL_SDK_DISABLED", "true")]).expect("valid");
        assert_eq!((config.traces, config.metrics), (None, None));
    }

    #[test]
    fn headers_are_decoded_and_never_shown() {
        let config =
            read(&[("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3cret, x-tenant=a=b")]).expect("valid");
        let seen: Vec<_> = config.headers.iter().map(|(name, value)| (name.as_str(), value.expose_secret())).collect();
        assert_eq!(seen, [("authorization", "Bearer s3cret"), ("x-tenant", "a=b")]);
        assert!(!format!("{config:?}").contains("s3cret"));
    }

    #[test]
    fn samplers_have_the_names_that_every_sdk_knows() {
        let sampling = |name, arg| {
            read(&[("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", arg)]).expect("valid").sampling
        };
        assert_eq!(sampling("parentbased_traceidratio", "0.1"), Sampling { is_parent_based: true, ratio: 0.1 });
        assert_eq!(sampling("always_off", "0.1"), Sampling { is_parent_based: false, ratio: 0.0 });
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once_and_gives_nothing_away() {
        let faults = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:s3cret@collector"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "s3cret"),
            ("OTEL_TRACES_SAMPLER_ARG", "2"),
            ("OTEL_RESOURCE_ATTRIBUTES", "=x"),
        ])
        .expect_err("faults");
        let names: Vec<_> = faults.iter().map(|fault| fault.setting.as_str()).collect();
        let expected = [
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "OTEL_EXPORTER_OTLP_HEADERS",
            "OTEL_RESOURCE_ATTRIBUTES",
            "OTEL_TRACES_SAMPLER_ARG",
        ];
        assert_eq!(names, expected);
        assert!(!faults.to_string().contains("s3cret"), "{faults}");
    }
}
