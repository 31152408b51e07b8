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
    /// It is nothing of this host.
    #[error(
        "{text:?} is neither an IP address nor an interface of this host (with or without a port); \
         its interfaces are {interfaces}"
    )]
    Local {
        /// What was given.
        text: String,
        /// The interfaces there are.
        interfaces: String,
    },
    /// An interface leaves the choice open.
    #[error("interface {interface} has several addresses ({found}): name the one to use")]
    Several {
        /// Interface.
        interface: String,
        /// Its addresses.
        found: String,
    },
    /// The host leaves the choice open.
    #[error(
        "this host has several addresses that others may reach ({0}): name the one to use with \
         --advertise-addr"
    )]
    SeveralRoutes(String),
}

/// An address of an interface of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// Name of the interface.
    pub interface: String,
    /// The address.
    pub ip: IpAddr,
}

/// An address of this host from `<ip|interface>[:port]`; the port is none unless it is there. An
/// interface stands for its only IPv4 address, or its only IPv6 address if it has no other.
///
/// # Errors
/// [`AddressError::Local`], [`AddressError::Several`].
pub fn local(text: &str, host: &[InterfaceAddress]) -> Result<(IpAddr, Option<u16>), AddressError> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse() {
        return Ok((ip, None));
    }
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok((addr.ip(), Some(addr.port())));
    }
    let (name, port) = match text.rsplit_once(':').map(|(name, port)| (name, port.parse())) {
        Some((name, Ok(port))) => (name, Some(port)),
        _ => (text, None),
    };
    of_interface(name, host)?.map(|ip| (ip, port)).ok_or_else(|| {
        let mut names: Vec<&str> = host.iter().map(|one| one.interface.as_str()).collect();
        names.dedup();
        AddressError::Local { text: text.to_owned(), interfaces: names.join(", ") }
    })
}

/// The address that an interface stands for; none if it has no address.
fn of_interface(name: &str, host: &[InterfaceAddress]) -> Result<Option<IpAddr>, AddressError> {
    let ips: Vec<IpAddr> =
        host.iter().filter(|one| one.interface == name).map(|one| one.ip).collect();
    let (four, six): (Vec<IpAddr>, Vec<IpAddr>) = ips.into_iter().partition(IpAddr::is_ipv4);
    // Link-local addresses mean nothing without their interface, which others do not know.
    let six: Vec<IpAddr> = six.into_iter().filter(|ip| !is_link_local(ip)).collect();
    let candidates = if four.is_empty() { six } else { four };
    match candidates.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some(*only)),
        several => {
            Err(AddressError::Several { interface: name.to_owned(), found: listed(several) })
        }
    }
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn listed(ips: &[IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Refuses to choose between default routes of the same rank: `routes` is the kernel's table as
/// `/proc/net/route` shows it. One default route, or none, leaves no choice.
///
/// # Errors
/// [`AddressError::SeveralRoutes`].
pub fn check_routes(routes: &str, host: &[InterfaceAddress]) -> Result<(), AddressError> {
    let mut defaults: Vec<(u32, &str)> = routes.lines().filter_map(default_route).collect();
    defaults.sort_unstable();
    let best = defaults.first().map(|(metric, _)| *metric);
    let mut interfaces: Vec<&str> =
        defaults.iter().filter(|(rank, _)| Some(*rank) == best).map(|(_, name)| *name).collect();
    interfaces.dedup();
    if interfaces.len() < 2 {
        return Ok(());
    }
    let candidates = host
        .iter()
        .filter(|one| one.ip.is_ipv4() && interfaces.contains(&one.interface.as_str()))
        .map(|one| format!("{} on {}", one.ip, one.interface))
        .collect::<Vec<_>>();
    Err(AddressError::SeveralRoutes(candidates.join(", ")))
}

/// Metric and interface of a line that is a default route in use.
fn default_route(line: &str) -> Option<(u32, &str)> {
    const UP: u32 = 1;
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [interface, target, _, flags, _, _, metric, mask, ..] = fields.as_slice() else {
        return None;
    };
    let up = u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & UP != 0);
    let all = *target == "00000000" && *mask == "00000000";
    (up && all).then(|| metric.parse().ok().map(|metric| (metric, *interface)))?
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

    fn host() -> Vec<InterfaceAddress> {
        let one = |interface: &str, ip: &str| InterfaceAddress {
            interface: interface.to_owned(),
            ip: ip.parse().unwrap(),
        };
        vec![
            one("lo", "127.0.0.1"),
            one("lo", "::1"),
            one("eth0", "192.0.2.2"),
            one("eth0", "2001:db8::2"),
            one("eth1", "192.0.2.65"),
            one("eth1", "192.0.2.66"),
            one("six", "fe80::1"),
            one("six", "2001:db8::3"),
            one("mute", "fe80::2"),
        ]
    }

    #[test]
    fn an_address_of_this_host_is_an_ip_or_an_interface() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (given, meant) in [
            ("0.0.0.0", (ip("0.0.0.0"), None)),
            ("192.0.2.9:7", (ip("192.0.2.9"), Some(7))),
            ("[2001:db8::9]:0", (ip("2001:db8::9"), Some(0))),
            ("eth0", (ip("192.0.2.2"), None)),
            ("eth0:99", (ip("192.0.2.2"), Some(99))),
            ("six", (ip("2001:db8::3"), None)),
        ] {
            assert_eq!(local(given, &host()), Ok(meant), "{given}");
        }
        assert_eq!(
            local("eth1:2377", &host()).unwrap_err().to_string(),
            "interface eth1 has several addresses (192.0.2.65, 192.0.2.66): name the one to use"
        );
        for given in ["", "eth9", "mute", "eth0:x", "192.0.2"] {
            let text = local(given, &host()).unwrap_err().to_string();
            assert!(text.starts_with(&format!("{given:?} is neither an IP")), "{text}");
            assert!(text.ends_with("its interfaces are lo, eth0, eth1, six, mute"), "{text}");
        }
    }

    #[test]
    fn two_ways_out_of_the_same_rank_leave_the_choice_to_the_user() {
        const HEAD: &str =
            "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n";
        let routes = |lines: &[&str]| check_routes(&(HEAD.to_owned() + &lines.join("\n")), &host());
        let first = "eth0 00000000 010200C0 0003 0 0 100 00000000 0 0 0";
        let lesser = "eth1 00000000 410200C0 0003 0 0 200 00000000 0 0 0";
        let equal = "eth1 00000000 410200C0 0003 0 0 100 00000000 0 0 0";
        let down = "eth1 00000000 410200C0 0002 0 0 100 00000000 0 0 0";
        let near = "eth1 000200C0 00000000 0001 0 0 0 00FFFFFF 0 0 0";
        assert_eq!(routes(&[]), Ok(()));
        assert_eq!(routes(&[first, near, down]), Ok(()));
        assert_eq!(routes(&[lesser, first]), Ok(()));
        let text = routes(&[first, equal]).unwrap_err().to_string();
        assert!(
            text.contains("(192.0.2.2 on eth0, 192.0.2.65 on eth1, 192.0.2.66 on eth1)"),
            "{text}"
        );
    }

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
