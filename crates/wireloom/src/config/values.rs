//! The values of `agent.toml` that have bounds: each type accepts what the kernel accepts, and says so otherwise.

use std::{net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};
use wireloom_membership::values;
use wireloom_plan::settings::{is_interface_name, is_table};

/// A type for values that `$check` accepts; its error tells the operator what to write instead.
macro_rules! checked {
    ($name:ident, $raw:ty => $type:ty, $check:expr) => {
        #[derive(Debug)]
        pub(super) struct $name(pub(super) $type);

        impl $name {
            /// The value as it is written, or what is wrong with it and the fix.
            pub(super) fn check(raw: $raw) -> Result<Self, String> {
                let check: fn($raw) -> Result<$type, String> = $check;
                check(raw).map(Self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::check(<$raw>::deserialize(deserializer)?).map_err(de::Error::custom)
            }
        }
    };
}

checked!(NodeName, String => String, |name| match name.as_str() {
    "" => Err("the node's name is empty; write a name, or remove the line to use the host name".into()),
    _ => Ok(name),
});

checked!(InterfaceName, String => String, |name| {
    if is_interface_name(&name) {
        Ok(name)
    } else {
        Err(format!(
            "{name:?} is not an interface name; use 1 to 15 bytes without spaces, \"/\", \":\" or \"%\", such as \
             \"wg0\""
        ))
    }
});

checked!(Port, i64 => u16, |port| {
    u16::try_from(port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("{port} is not a UDP port; use 1 to 65535, such as 51820"))
});

checked!(AbsolutePath, PathBuf => PathBuf, |path| {
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(format!("{path:?} is a relative path; write an absolute one, which starts with /"))
    }
});

// IPV6_MIN_MTU: below 1280 the kernel takes IPv6 off the interface (RFC 8200 section 5).
checked!(Mtu, i64 => u32, |mtu| {
    u32::try_from(mtu)
        .ok()
        .filter(|mtu| (1280..=65_535).contains(mtu))
        .ok_or_else(|| format!("an MTU of {mtu} is out of range; use 1280 (IPv6's least) to 65535, or remove the line"))
});

// FRA_PRIORITY: 0 is the local table's rule, 32766 the main table's. Ours must come between them.
checked!(RulePriority, i64 => u32, |priority| {
    u32::try_from(priority).ok().filter(|priority| (1..32_766).contains(priority)).ok_or_else(|| {
        format!("a rule at priority {priority} is not between those of the tables local and main; use 1 to 32765")
    })
});

// `None` is "auto".
checked!(Table, TableText => Option<u32>, |table| match table {
    TableText::Text(text) if text == "auto" => Ok(None),
    TableText::Text(text) => Err(format!("{text:?} is not a table; write \"auto\", or a number without quotes")),
    TableText::Number(table) => {
        u32::try_from(table).ok().filter(|table| is_table(*table)).map(Some).ok_or_else(|| {
            format!("table {table} is the kernel's own or out of range; use 1 to 252, or 256 to 4294967295")
        })
    }
});

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "this is not a table; write \"auto\", or a number")]
pub(super) enum TableText {
    Number(i64),
    Text(String),
}

checked!(Prefix, String => IpNet, |text| values::cidr(&text));

checked!(HostAddress, String => IpAddr, |text| values::address(&text));

checked!(LinkAddress, String => IpAddr, |text| values::link_address(&text));

checked!(FwMark, FwMarkText => u32, |mark| {
    let value = match &mark {
        FwMarkText::Number(number) => u32::try_from(*number).ok(),
        FwMarkText::Text(text) => match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        },
    };
    value.filter(|value| *value != 0).ok_or_else(|| {
        "a firewall mark is 1 to 0xffffffff, such as \"0xa\"; its bits must be Wireloom's own".into()
    })
});

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "this is not a firewall mark; write 1 to 0xffffffff, such as \"0xa\"")]
pub(super) enum FwMarkText {
    Number(i64),
    Text(String),
}
