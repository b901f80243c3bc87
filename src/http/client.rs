//! Who asks: the other end of the connection, or whom a trusted proxy names.
//!
//! Invariant: `X-Forwarded-For` and `X-Forwarded-Proto` are believed from the proxies that a setting names, and from nobody else.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::HeaderMap;

use crate::config::Network;

/// Whoever sent a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    /// Their address.
    pub(super) address: IpAddr,
    /// Whether they came by https, here or at the proxy.
    pub(super) is_https: bool,
    /// Whether they have shown a certificate that ADMIN_TLS_CLIENT_CA_FILE has signed.
    pub(super) has_certificate: bool,
    /// Whether the connection is within this machine.
    pub(super) is_local: bool,
}

impl Default for Client {
    /// Somebody of whom nothing is known, and nothing is believed.
    fn default() -> Self {
        Self { address: Ipv6Addr::UNSPECIFIED.into(), is_https: false, has_certificate: false, is_local: true }
    }
}

impl Client {
    /// Whoever is behind the connection's other end, by the word of a trusted proxy.
    pub(super) fn behind(self, headers: &HeaderMap, trusted: &[Network]) -> Self {
        if !is_among(trusted, self.address) {
            return self;
        }
        let list = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
        let list: Vec<_> =
            list.flat_map(|value| value.split(',')).map(|entry| entry.trim().parse::<IpAddr>()).collect();
        // Each proxy adds whom it has heard at the end. Whatever stands before somebody we do not trust, they may have made up.
        let mut address = self.address;
        for entry in list.iter().rev() {
            let Ok(entry) = entry else { break };
            address = plain(*entry);
            if !is_among(trusted, address) {
                break;
            }
        }
        let proto = headers.get("x-forwarded-proto");
        let is_https = self.is_https || proto.is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"));
        Self { address, is_https, ..self }
    }
}

/// Whether the address is in one of these networks.
pub(super) fn is_among(networks: &[Network], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(address))
}

/// An IPv4 address that came in an IPv6 socket, as IPv4.
pub(super) fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// What counts as one client: an IPv4 address, or a whole IPv6 network of the size that one customer gets.
pub(super) fn one_of(address: IpAddr) -> IpAddr {
    match plain(address) {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().expect("a network")
    }

    fn at(address: &str) -> Client {
        Client { address: address.parse().expect("an address"), ..Client::default() }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().expect("a value"));
        }
        headers
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        let told = headers(&[("x-forwarded-for", "203.0.113.9"), ("x-forwarded-proto", "https")]);
        let client = at("192.0.2.1").behind(&told, &[network("10.0.0.0/8")]);
        assert_eq!((client.address.to_string().as_str(), client.is_https), ("192.0.2.1", false));
        let client = at("10.1.2.3").behind(&told, &[network("10.0.0.0/8")]);
        assert_eq!((client.address.to_string().as_str(), client.is_https), ("203.0.113.9", true));
    }

    #[test]
    fn what_a_client_writes_itself_is_not_taken_for_the_proxys_word() {
        let trusted = [network("10.0.0.0/8"), network("2001:db8::/32")];
        for (list, wanted) in [
            (&[("x-forwarded-for", "1.1.1.1, 203.0.113.9")][..], "203.0.113.9"),
            (&[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "203.0.113.9, 10.0.0.7")], "203.0.113.9"),
            (&[("x-forwarded-for", "1.1.1.1, unknown, 10.0.0.7")], "10.0.0.7"),
            (&[("x-forwarded-for", "2001:db8::7")], "2001:db8::7"),
            (&[("x-forwarded-for", "")], "10.0.0.2"),
            (&[("forwarded", "for=1.1.1.1")], "10.0.0.2"),
        ] {
            let client = at("10.0.0.2").behind(&headers(list), &trusted);
            assert_eq!(client.address.to_string(), wanted, "{list:?}");
        }
    }

    #[test]
    fn one_customer_is_one_client() {
        let one = |text: &str| one_of(text.parse().expect("an address")).to_string();
        assert_eq!(one("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(one("::ffff:192.0.2.1"), "192.0.2.1");
    }
}
