//! Endpoints that are declared by name: a host name and a port, which the agent resolves.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// The longest host name, in characters (RFC 1123, section 2.1, and RFC 1035, section 2.3.4).
const NAME_MAX: usize = 253;

/// The longest part of a host name between two dots, in characters (RFC 1035, section 2.3.4).
const LABEL_MAX: usize = 63;

/// A host name and a port, such as `vpn.example.org:51820`. The name is in lower case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointName {
    host: String,
    port: u16,
}

impl EndpointName {
    /// The host name, as it is looked up.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; never 0.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Why a text is no host name and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointNameError {
    /// There is no port, or one that is no number from 1 to 65535.
    #[error("it has no port from 1 to 65535")]
    Port,
    /// The name is too long, or a part of it is.
    #[error("a host name has at most {NAME_MAX} characters, and at most {LABEL_MAX} between two dots")]
    Length,
    /// It has a character that host names do not have, or has one at a wrong place.
    #[error("a host name has letters, digits and dots, and hyphens between them")]
    Character,
    /// Its last part is a number, as an address has it that is written wrongly.
    #[error("neither an IPv4 address nor a host name, whose last part is no number")]
    Number,
}

impl FromStr for EndpointName {
    type Err = EndpointNameError;

    /// Host names as in RFC 1123, section 2.1. A dot at the end says that no search domain is to be tried.
    fn from_str(text: &str) -> Result<Self, EndpointNameError> {
        let (host, port) = text.rsplit_once(':').ok_or(EndpointNameError::Port)?;
        // `u16` would take a sign.
        let digits = !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit());
        let port = port.parse().ok().filter(|port| digits && *port != 0).ok_or(EndpointNameError::Port)?;
        let labels = host.strip_suffix('.').unwrap_or(host);
        if labels.len() > NAME_MAX {
            return Err(EndpointNameError::Length);
        }
        labels.split('.').try_for_each(check_label)?;
        let last = labels.rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|character| character.is_ascii_digit()) {
            return Err(EndpointNameError::Number);
        }
        Ok(Self { host: host.to_ascii_lowercase(), port })
    }
}

fn check_label(label: &str) -> Result<(), EndpointNameError> {
    let inside = |character: u8| character.is_ascii_alphanumeric() || character == b'-';
    if label.is_empty() || !label.bytes().all(inside) || label.starts_with('-') || label.ends_with('-') {
        return Err(EndpointNameError::Character);
    }
    if label.len() > LABEL_MAX { Err(EndpointNameError::Length) } else { Ok(()) }
}

impl fmt::Display for EndpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for EndpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for EndpointName {
    /// The text of [`fmt::Display`].
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EndpointName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_with_a_port_are_read_and_written() {
        let longest = format!("{0}.{0}.{0}.{1}:1", "a".repeat(63), "b".repeat(61));
        for text in
            ["vpn.example.org:51820", "a:1", "n-1.2.x:65535", "1a.example.:7", "xn--bcher-kva.de:5", &longest]
        {
            assert_eq!(text.parse::<EndpointName>().unwrap().to_string(), text);
        }
        assert_eq!("VPN.Example.org:5".parse::<EndpointName>().unwrap().host(), "vpn.example.org");
    }

    #[test]
    fn what_is_no_host_name_or_no_port_is_refused() {
        use EndpointNameError::{Character, Length, Number, Port};
        let label = format!("{}.org:1", "a".repeat(64));
        let name = format!("{0}.{0}.{0}.{0}:1", "a".repeat(63));
        for (text, error) in [
            ("vpn.example.org", Port),
            ("a:", Port),
            ("a:0", Port),
            ("a:65536", Port),
            ("a:+1", Port),
            (":1", Character),
            (".:1", Character),
            ("a..b:1", Character),
            ("a_b:1", Character),
            ("-a:1", Character),
            ("a-.b:1", Character),
            ("bücher.de:1", Character),
            ("a b:1", Character),
            ("2001:db8::1:1", Character),
            ("192.168.1.300:1", Number),
            ("10:1", Number),
            (&label, Length),
            (&name, Length),
        ] {
            assert_eq!(text.parse::<EndpointName>(), Err(error), "{text}");
        }
    }
}
