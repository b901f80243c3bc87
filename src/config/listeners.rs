//! The two HTTP listeners: where they are, who may come, and by which protocol.

use std::{net::IpAddr, path::PathBuf, str::FromStr, sync::Arc};

use chrono::Utc;
use url::Host;

use super::{
    HttpConfig,
    dkim::others_can_read,
    parse,
    parse::Parsed,
    read::{Reader, Recorded},
};
use crate::http::tls::{ListenerTls, TlsFile, TlsFiles};

/// What holds for one of the listeners.
#[derive(Debug, Clone)]
pub struct ListenerConfig {
    /// How its settings begin: `ADMIN`, `WEBHOOK`.
    pub stem: &'static str,
    /// `<LISTENER>_CONNECTIONS_MAX`: connections at once (admin 128, webhook 256).
    pub connections_max: usize,
    /// `<LISTENER>_CONNECTIONS_PER_ADDRESS_MAX`: of these from one address (64, 128); trusted proxies may have all.
    pub connections_per_address_max: usize,
    /// `<LISTENER>_TRUSTED_PROXIES`: whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed; empty: nobody's.
    pub trusted_proxies: Vec<Network>,
    /// `<LISTENER>_TLS_CERT_FILE` and `<LISTENER>_TLS_KEY_FILE`, `ADMIN_TLS_CLIENT_CA_FILE`; nothing: plain HTTP.
    pub tls: Option<Arc<ListenerTls>>,
}

/// Addresses with the same beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether an address begins like this.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let shared = |one: u128, other: u128, width: u32| {
            let differing = width - u32::from(self.bits);
            // A shift by the whole width would be none.
            (one ^ other).checked_shr(differing).unwrap_or(0) == 0
        };
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(one), IpAddr::V4(other)) => shared(one.to_bits().into(), other.to_bits().into(), 32),
            (IpAddr::V6(one), IpAddr::V6(other)) => shared(one.to_bits(), other.to_bits(), 128),
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "is not an IP address or a network such as 10.0.0.0/8".to_owned();
        let (address, bits) = match text.trim().split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text.trim(), None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= width).ok_or_else(wrong)?,
            None => width,
        };
        Ok(Self { address, bits })
    }
}

pub(super) fn http(r: &mut Reader<'_>) -> Result<HttpConfig, Recorded> {
    let admin_addr = r.read("ADMIN_ADDR", parse::listen_address);
    let webhook_addr = r.read_optional("WEBHOOK_ADDR", parse::listen_address);
    let tokens = r.read_optional("ADMIN_TOKENS", parse::admin_tokens);
    let admin_hosts = r.read_optional("ADMIN_HOSTS", hosts);
    let admin = listener(r, "ADMIN");
    let webhook = listener(r, "WEBHOOK");
    // Port 0 lets the system choose, each time another one.
    if let (Ok(admin), Ok(Some(webhook))) = (&admin_addr, &webhook_addr)
        && admin == webhook
        && admin.port() != 0
    {
        r.fault("WEBHOOK_ADDR", "is the same as ADMIN_ADDR");
    }
    Ok(HttpConfig {
        admin_addr: admin_addr?,
        webhook_addr: webhook_addr?,
        tokens: tokens?.unwrap_or_default(),
        admin_hosts: admin_hosts?.unwrap_or_default(),
        admin: admin?,
        webhook: webhook?,
    })
}

fn listener(r: &mut Reader<'_>, stem: &'static str) -> Result<ListenerConfig, Recorded> {
    let (all, one) = (format!("{stem}_CONNECTIONS_MAX"), format!("{stem}_CONNECTIONS_PER_ADDRESS_MAX"));
    let connections_max = r.read(&all, parse::number(8..=10_000));
    let per_address_max = r.read(&one, parse::number(4..=10_000));
    let trusted_proxies = r.read_optional(&format!("{stem}_TRUSTED_PROXIES"), networks);
    let tls = tls(r, stem);
    Ok(ListenerConfig {
        stem,
        connections_max: connections_max?,
        connections_per_address_max: per_address_max?,
        trusted_proxies: trusted_proxies?.unwrap_or_default(),
        tls: tls?,
    })
}

fn tls(r: &mut Reader<'_>, stem: &str) -> Result<Option<Arc<ListenerTls>>, Recorded> {
    let (certificate, key) = (format!("{stem}_TLS_CERT_FILE"), format!("{stem}_TLS_KEY_FILE"));
    let client_ca = format!("{stem}_TLS_CLIENT_CA_FILE");
    let certificate_file = r.read_optional(&certificate, parse::line(4096));
    let key_file = r.read_optional(&key, parse::line(4096));
    let client_ca_file = if stem == "ADMIN" { r.read_optional(&client_ca, parse::line(4096)) } else { Ok(None) };
    let files = match (certificate_file?, key_file?, client_ca_file?.map(PathBuf::from)) {
        (Some(cert), Some(key), client_ca) => TlsFiles { certificate: cert.into(), key: key.into(), client_ca },
        (None, None, None) => return Ok(None),
        (Some(_), None, _) => return Err(r.fault(&key, format!("is missing although {certificate} is set"))),
        (None, Some(_), _) => return Err(r.fault(&certificate, format!("is missing although {key} is set"))),
        (None, None, Some(_)) => return Err(r.fault(&certificate, format!("is missing although {client_ca} is set"))),
    };
    if others_can_read(&files.key) {
        r.warn(format!("{key}: everybody on this machine can read the key; take that away (chmod o= FILE)"));
    }
    match ListenerTls::load(files) {
        Ok(tls) => {
            if tls.has_ended(Utc::now()) {
                r.warn(format!("{certificate}: the certificate has expired, so no client will take it; renew it"));
            }
            Ok(Some(tls))
        }
        Err(error) => {
            let name = match error.file {
                TlsFile::Certificate => &certificate,
                TlsFile::Key => &key,
                TlsFile::ClientCa => &client_ca,
            };
            Err(r.fault(name, format!("names a file that {error}")))
        }
    }
}

/// Host names, each as a browser writes it.
fn hosts(text: &str) -> Parsed<Vec<String>> {
    let host = |(index, name): (usize, &str)| match Host::parse(name.trim()) {
        Ok(Host::Domain(name)) => Ok(name.trim_end_matches('.').to_ascii_lowercase()),
        _ => Err(format!("has an entry ({}) that is not a host name without scheme and port", index + 1)),
    };
    text.split(',').enumerate().map(host).collect()
}

fn networks(text: &str) -> Parsed<Vec<Network>> {
    let network = |(index, text): (usize, &str)| {
        text.parse::<Network>().map_err(|problem| format!("has an entry ({}) that {problem}", index + 1))
    };
    text.split(',').enumerate().map(network).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_what_begins_like_it() {
        let holds = |network: &str, address: &str| {
            network.parse::<Network>().expect("a network").contains(address.parse().expect("an address"))
        };
        for (network, address) in [
            ("10.0.0.0/8", "10.255.0.1"),
            ("192.0.2.7", "192.0.2.7"),
            ("192.0.2.7", "::ffff:192.0.2.7"),
            ("0.0.0.0/0", "203.0.113.1"),
            ("::/0", "2001:db8::1"),
            ("2001:db8::/33", "2001:db8:7fff::1"),
        ] {
            assert!(holds(network, address), "{network} {address}");
        }
        for (network, address) in [
            ("10.0.0.0/8", "11.0.0.1"),
            ("192.0.2.6/31", "192.0.2.8"),
            ("192.0.2.7", "192.0.2.6"),
            ("0.0.0.0/0", "2001:db8::1"),
            ("2001:db8::/33", "2001:db8:8000::1"),
        ] {
            assert!(!holds(network, address), "{network} {address}");
        }
        for wrong in ["", "10.0.0.0/33", "10.0.0/8", "proxy.example.bj", "::/129", "10.0.0.0/-1"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
