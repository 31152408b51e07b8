//! Addresses as people write them.

use std::net::{IpAddr, SocketAddr};

/// Port of a node unless its address says otherwise.
pub const PORT: u16 = 2377;

/// An address cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It does not say where.
    #[error(
        "invalid address {0:?}: expected a host name or an IP address, with or without a port, such as 192.0.2.7:2377"
    )]
    Remote(String),
}

/// Where a manager is, as `HOST:PORT`: a name or an IP address, whose port is [`PORT`] unless it
/// is there. An IPv6 address with a port has brackets.
///
/// # Errors
/// [`AddressError::Remote`].
pub fn remote(text: &str) -> Result<String, AddressError> {
    let text = text.trim();
    let bad = || AddressError::Remote(text.to_owned());
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, PORT).to_string());
    }
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return if addr.port() == 0 { Err(bad()) } else { Ok(addr.to_string()) };
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?),
        None => (text, PORT),
    };
    match is_host_name(host) {
        true => Ok(format!("{host}:{port}")),
        false => Err(bad()),
    }
}

/// Whether a name could be found by a resolver. What is all digits and dots is a broken IP
/// address instead.
fn is_host_name(host: &str) -> bool {
    let letters = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let named = host.bytes().any(|b| b.is_ascii_alphabetic());
    letters && named && host.len() <= 253 && !host.starts_with(['-', '.'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_managers_address_has_a_port_or_gets_the_usual_one() {
        for (given, meant) in [
            ("192.0.2.7", "192.0.2.7:2377"),
            (" 192.0.2.7:99 ", "192.0.2.7:99"),
            ("2001:db8::7", "[2001:db8::7]:2377"),
            ("[2001:db8::7]", "[2001:db8::7]:2377"),
            ("[2001:db8::7]:99", "[2001:db8::7]:99"),
            ("m1.example", "m1.example:2377"),
            ("m1:99", "m1:99"),
        ] {
            assert_eq!(remote(given).as_deref(), Ok(meant));
        }
        for given in
            ["", ":2377", "192.0.2.7:0", "192.0.2.7:x", "192.0.2", "m1:70000", "a b", "a/b"]
        {
            let text = remote(given).unwrap_err().to_string();
            assert!(text.contains(&format!("{given:?}")), "{text}");
        }
    }
}
