//! Addresses that lead into one's own network rather than out of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether an address belongs to the public internet: not loopback, private, link-local, shared
/// (RFC 6598), documentation, benchmarking, multicast, reserved or unspecified, by the special-purpose
/// registries of RFC 6890; IPv6 addresses that carry an IPv4 one (mapped, NAT64, 6to4) are judged
/// by it. For [`address_filter`](crate::ConnectionPoolBuilder::address_filter).
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = ip.is_loopback()
        || ip.is_private()
        || ip.is_link_local()
        || ip.is_documentation()
        || ip.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && (b & 0xc0) == 64)
        || (a == 198 && (b & 0xfe) == 18)
        || (a == 192 && b == 0 && c == 0);
    !special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let [a, b, c, d, e, f, g, h] = ip.segments();
    let v4 = |high: u16, low: u16| {
        let [w, x] = high.to_be_bytes();
        let [y, z] = low.to_be_bytes();
        is_public_v4(Ipv4Addr::new(w, x, y, z))
    };
    match [a, b, c, d, e, f] {
        // Mapped, and the deprecated compatible form; ::1 and :: are among the latter.
        [0, 0, 0, 0, 0, 0xffff | 0] => v4(g, h),
        // RFC 6052: NAT64.
        [0x64, 0xff9b, 0, 0, 0, 0] => v4(g, h),
        // RFC 3056: 6to4.
        [0x2002, ..] => v4(b, c),
        // Global unicast (RFC 4291 §2.4), without documentation, benchmarking and Teredo.
        [0x2001, 0x0db8 | 0 | 2, ..] | [0x3fff, 0..=0x0fff, ..] => false,
        [0x2000..=0x3fff, ..] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    // layering: uses this module alone.
    use super::*;

    #[test]
    fn private_and_special_addresses_are_not_public_however_they_are_written() {
        for ip in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "198.18.0.1",
            "192.0.0.8",
            "203.0.113.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "fe80::1",
            "fd00::1",
            "fec0::1",
            "ff02::1",
            "2001:db8::1",
            "100::1",
        ] {
            assert!(!is_public(ip.parse().unwrap()), "{ip}");
        }
        for ip in [
            "1.1.1.1",
            "100.63.255.255",
            "172.32.0.1",
            "198.20.0.1",
            "2606:4700:4700::1111",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2002:101:101::",
        ] {
            assert!(is_public(ip.parse().unwrap()), "{ip}");
        }
    }
}
